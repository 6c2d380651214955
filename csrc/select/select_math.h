// What greedy selection does with one row: the similarity of two rows from their distance, the
// row's state after a pick, and the key whose largest value is picked next.
#pragma once

#include <cmath>

#include "common/types.h"

namespace pyddfast {

// How a row x_i and the center c are compared.
enum class Form : int {
  kSquares,   // sum (x - c)^2
  kCosine,    // 1 - cos: half the sum of squares of unit vectors; 1 where either is zero
  kJeffreys,  // sum (exp x - exp c)(x - c)
  kDot,       // sum x c
  kEntry,     // entry i of the picked row of a matrix
};

// What the comparison becomes.
enum class Rule : int {
  kCenter,    // state: the least distance; key: state times factor
  kCut,       // state: the gain, from which twice the similarity is taken; key: state
  kNearest,   // key: minus the distance
  kFarthest,  // key: the distance
};

// Similarities of the rule kCut.
enum class Similarity : int { kCosine01, kCosine, kDot, kEuclidean, kRbf };

struct SimilarityMap {
  Similarity kind;
  double gamma;   // kRbf
  double offset;  // kEuclidean: the largest distance

  // From the form's value: kCosine's for the first two, kSquares' for the last two.
  PYDD_HD double operator()(double value) const {
    switch (kind) {
      case Similarity::kCosine01:
        return 1.0 - 0.5 * value;
      case Similarity::kCosine:
        return value < 1.0 ? 1.0 - value : 0.0;
      case Similarity::kDot:
        return value;
      case Similarity::kEuclidean:
        return offset - sqrt(value);
      case Similarity::kRbf:
        return exp(-gamma * value);
    }
    return value;
  }
};

// The state of a row after a pick it compares to with `value`; `own`: the row is the pick.
PYDD_HD double updated(Rule rule, const SimilarityMap& map, double state, double value, bool own) {
  if (rule == Rule::kCenter) return own ? 0.0 : value < state ? value : state;
  if (rule == Rule::kCut) return state - 2.0 * map(value);
  return rule == Rule::kNearest ? -value : value;
}

// What is maximised.  A factor of 0 is no reason to go anywhere, at infinity either.
PYDD_HD double key_of(double state, double factor) { return factor == 0.0 ? 0.0 : state * factor; }

struct Best {
  double key;
  int64_t row;  // -1: none yet
};

// Keeps the lower row where keys tie, whatever the order; a NaN loses to every number.
PYDD_HD bool better(const Best& a, const Best& b) {
  if (a.row < 0 || b.row < 0) return b.row < 0 && a.row >= 0;
  if (a.key > b.key) return true;
  if (a.key < b.key) return false;
  const bool a_nan = a.key != a.key, b_nan = b.key != b.key;
  return a_nan == b_nan ? a.row < b.row : b_nan;
}

}  // namespace pyddfast
