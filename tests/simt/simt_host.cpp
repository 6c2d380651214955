// The Python module simt_host: control of the emulator, and its self-test kernels.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "selftest.h"
#include "simt_emulator.h"

namespace py = pybind11;
namespace emulator = pyddfast::simt::emulator;
using namespace pyddfast::simt::selftest;

namespace {

// No conversion and no copy: a kernel sees the memory that the test sees.
template <class T>
using Array = py::array_t<T, py::array::c_style>;

void drop_barrier(const std::optional<std::string>& site) {
  if (!emulator::drop_barrier(site ? site->c_str() : nullptr)) {
    throw py::value_error("drop_barrier: site '" + *site +
                          "' is no barrier that a kernel has reached in this process, see "
                          "barrier_sites()");
  }
}

std::map<std::string, std::pair<std::string, uint64_t>> barrier_sites() {
  std::map<std::string, std::pair<std::string, uint64_t>> sites;
  emulator::visit_barriers(
      [](void* context, const char* site, const char* kind, uint64_t arrivals) {
        (*static_cast<decltype(sites)*>(context))[site] = {kind, arrivals};
      },
      &sites);
  return sites;
}

std::set<std::string> launched_kernels() {
  std::set<std::string> names;
  emulator::visit_kernels(
      [](void* context, const char* name) {
        static_cast<std::set<std::string>*>(context)->insert(name);
      },
      &names);
  return names;
}

}  // namespace

PYBIND11_MODULE(simt_host, m) {
  m.def("set_seed", &emulator::set_seed, py::arg("seed"),
        "Seeds the order in which threads and blocks run, and restarts the count of launches.");
  m.def("drop_barrier", &drop_barrier, py::arg("site").none(true),
        "Makes the barrier at 'file:line' do nothing; None: every barrier works.");
  m.def("barrier_sites", &barrier_sites,
        "{'file:line': (kind, arrivals of threads since reset())} of every barrier reached.");
  m.def("launched_kernels", &launched_kernels,
        "The mangled names of the kernels that this process has launched without an error.");
  m.def("reset", &emulator::reset,
        "Seed 0, no barrier dropped, compute capability 90, counters and last error cleared.");
  m.def("set_compute_capability", &emulator::set_compute_capability, py::arg("value"),
        "What device_compute_capability() returns, 10 * major + minor; clusters need 90.");
  m.def("set_multiprocessors", &emulator::set_multiprocessors, py::arg("value"),
        "What device_multiprocessors() returns.");
  m.def("last_error", &emulator::last_error, "The text of this thread's last failed launch.");

  py::enum_<Bug>(m, "Bug", py::arithmetic())
      .value("NONE", kNone)
      .value("MISSING_BARRIER", kMissingBarrier)
      .value("MISSING_REUSE_BARRIER", kMissingReuseBarrier)
      .value("DIVERGENT_SHUFFLE", kDivergentShuffle)
      .value("SHUFFLE_MASKS_DIFFER", kShuffleMasksDiffer)
      .value("SHUFFLE_OUTSIDE_MASK", kShuffleOutsideMask)
      .value("SHUFFLE_FROM_OUTSIDE", kShuffleFromOutside)
      .value("SHUFFLE_WITH_ENDED", kShuffleWithEnded)
      .value("SHUFFLE_WIDTH", kShuffleWidth)
      .value("DIVERGENT_BARRIER", kDivergentBarrier)
      .value("BARRIER_WITH_ENDED", kBarrierWithEnded)
      .value("DEADLOCK", kDeadlock)
      .value("DIVERGENT_CLUSTER_BARRIER", kDivergentClusterBarrier)
      .value("ACTIVE_MASK", kActiveMask)
      .value("TRAP", kTrap)
      .value("OUT_OF_BOUNDS", kOutOfBounds)
      .value("CLUSTER_RANK", kClusterRank)
      .value("CLUSTER_GLOBAL", kClusterGlobal);
  py::enum_<Access>(m, "Access", py::arithmetic())
      .value("LOAD_VECTOR", kLoadVector)
      .value("STORE_VECTOR", kStoreVector)
      .value("FLOAT4", kFloat4)
      .value("FLOAT4_STORE", kFloat4Store)
      .value("LDG", kLdg)
      .value("SCALAR", kScalar);

  // Inputs and outputs are C-contiguous arrays of the kernel's own element type; sizes are the
  // test's business (ASan watches them in the sanitised build).
  const auto self_test = [&](const char* name, auto function) {
    m.def(name, function, py::call_guard<py::gil_scoped_release>());
  };
  self_test("block_sum", [](const Array<float>& in, Array<float>& out, int blocks, int threads,
                            int rows, Bug bug) {
    return launch_block_sum(in.data(), out.mutable_data(), blocks, threads, rows, bug);
  });
  self_test("warp_exchange", [](const Array<float>& in, Array<float>& out, int threads, Bug bug) {
    return launch_warp_exchange(in.data(), out.mutable_data(), threads, bug);
  });
  self_test("cluster_sum", [](const Array<float>& in, Array<float>& out, int blocks, int threads,
                              int cluster, Bug bug) {
    return launch_cluster_sum(in.data(), out.mutable_data(), blocks, threads, cluster, bug);
  });
  self_test("uninitialised_read", [](Array<float>& out, bool dynamic) {
    return launch_uninitialised_read(out.mutable_data(), dynamic);
  });
  self_test("misbehave",
            [](Array<float>& out, Bug bug) { return launch_misbehave(out.mutable_data(), bug); });
  self_test("access",
            [](const Array<unsigned char>& in, Array<unsigned char>& out, int offset, Access how) {
              return launch_access(in.data(), out.mutable_data(), offset, how);
            });
  self_test("warp_ops", [](const Array<float>& in, Array<float>& out, int operand, int width) {
    return launch_warp_ops(in.data(), out.mutable_data(), operand, width);
  });
  self_test("indices", [](Array<int>& out, std::tuple<unsigned, unsigned, unsigned> grid,
                          std::tuple<unsigned, unsigned, unsigned> block, size_t shared_bytes,
                          int cluster) {
    const auto [gx, gy, gz] = grid;
    const auto [bx, by, bz] = block;
    return launch_indices(out.mutable_data(), gx, gy, gz, bx, by, bz, shared_bytes, cluster);
  });
  self_test("intrinsics", [](const Array<float>& in, Array<float>& out) {
    return launch_intrinsics(in.data(), out.mutable_data(), int(in.size()));
  });
  self_test("dependent", [](Array<float>& out, int waiting) {
    return launch_dependent(out.mutable_data(), waiting);
  });
  self_test("barriers", [](Array<float>& out, int blocks, int threads, int count) {
    return launch_barriers(out.mutable_data(), blocks, threads, count);
  });
}
