// What one class adds to the divergence of two distributions, from its log-probabilities, their
// difference d and the probabilities.  p - q, and the terms of KL, cancel where the distributions
// are alike: there they are a polynomial of d times the larger probability.
//
// A class without probability has a logarithm of -inf: none on both sides adds nothing, one that
// only the other side has adds +inf, or what the limit is.
#pragma once

#include <cmath>
#include <type_traits>

#include "common/types.h"

namespace pyddfast {

// Order as DivergenceKind in pyddfast/ops/pairwise.py; p the row's, q the neighbour's.
enum class Divergence : int { kJeffreys, kKlNeighbourRow, kKlRowNeighbour };

// What a row of probabilities may miss of 1: log-probabilities in bfloat16 sum to 1 within a few
// percent.  As in pyddfast/ops/pairwise.py.
constexpr double kMassError = 0.1;

// Beyond what a log-probability is, before exp() overflows.
constexpr float kHighest = 80.0f;

// What a probability that underflows counts as, so that 0 times infinity is not met.  Far above the
// smallest number: subnormal products are slow.
constexpr float kLeast = 0x1p-100f;

PYDD_HD float largest_of(float a, float b) { return a > b ? a : b; }
PYDD_HD double largest_of(double a, double b) { return a > b ? a : b; }

// (q - p) d.
PYDD_HD float jeffreys_term(float p, float q, float d) {
  const float a = std::fabs(d), far = std::fabs(q - p) + kLeast;
  // (1 - exp(-a)) / 2a on [0, 1]: minimax, relative error 9e-8 in fp32.
  float y = 0x1.0d3be0p-14f;
  y = y * a - 0x1.546fdap-11f;
  y = y * a + 0x1.0f17c2p-8f;
  y = y * a - 0x1.55291cp-6f;
  y = y * a + 0x1.555376p-4f;
  y = y * a - 0x1.fffff0p-3f;
  y = y * a + 0.5f;
  const float near = (p + q + far) * y * a;  // p + q + |q - p| is twice the larger one
  return (a < 1.0f ? near : far) * a;
}

// q d - q + p: what a class adds to KL(q || p).
PYDD_HD float kl_term(float p, float q, float d) {
  q = largest_of(q, kLeast);
  // (d - 1 + exp(-d)) / d^2 on [-2, 1]: minimax, relative error 1.1e-7 in fp32.
  float y = 0x1.c294d6p-22f;
  y = y * d - 0x1.617adcp-19f;
  y = y * d + 0x1.9bb810p-16f;
  y = y * d - 0x1.a0bfe6p-13f;
  y = y * d + 0x1.6c2162p-10f;
  y = y * d - 0x1.110f78p-7f;
  y = y * d + 0x1.555540p-5f;
  y = y * d - 0x1.55555ap-3f;
  y = y * d + 0.5f;
  const float near = q * y * (d * d);
  // Below -1000, q is 0.
  const float far = largest_of(q * (largest_of(d, -1000.0f) - 1.0f) + p, 0.0f);
  return std::fabs(d + 0.5f) < 1.5f ? near : far;
}

// In fp64, what cancels leaves more digits than a result in fp32 has; no term is negative.
PYDD_HD double jeffreys_term(double p, double q, double d) {
  return (std::fabs(q - p) + double(kLeast)) * std::fabs(d);
}

PYDD_HD double kl_term(double p, double q, double d) {
  const double term = largest_of(q, double(kLeast)) * (largest_of(d, -1000.0) - 1.0) + p;
  return d == 0.0 ? 0.0 : largest_of(term, 0.0);
}

template <Divergence kKind, class T>
PYDD_HD T divergence_term(T log_p, T p, T log_q, T q) {
  const T d = log_p == log_q ? T(0) : log_q - log_p;  // -inf on both sides has no difference
  if constexpr (kKind == Divergence::kJeffreys) return jeffreys_term(p, q, d);
  if constexpr (kKind == Divergence::kKlNeighbourRow) return kl_term(p, q, d);
  return kl_term(q, p, -d);
}

// The mean over the neighbours.
template <Divergence kKind>
PYDD_HD double mean_divergence(double total, int64_t neighbours) {
  return total / double(neighbours * (kKind == Divergence::kJeffreys ? 2 : 1));
}

}  // namespace pyddfast
