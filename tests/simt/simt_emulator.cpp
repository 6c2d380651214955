// The emulator's runtime: one fiber a CUDA thread, one scheduler for the CTAs of a cluster.
//
// A fiber runs until it waits (barrier, shuffle, vote) or ends; the scheduler then picks the next
// one at random.  A launch runs to its end on the thread that called it, one launch at a time in
// the process, so nothing below is concurrent.  An error abandons the launch: the failing fiber
// switches away for good and its siblings are never resumed (kernels own nothing that would need a
// destructor), which is safe at any point of any code, unlike an exception.
#include "simt_emulator.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PYDDFAST_SIMT_ASAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define PYDDFAST_SIMT_ASAN 1
#endif
#if defined(PYDDFAST_SIMT_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// glibc's swapcontext makes a system call at every switch; on x86-64 we switch by hand.
#if !defined(__x86_64__) && !defined(PYDDFAST_SIMT_UCONTEXT)
#define PYDDFAST_SIMT_UCONTEXT 1
#endif
#if defined(PYDDFAST_SIMT_UCONTEXT)
#include <ucontext.h>
#endif

namespace pyddfast::simt::emulator {

uint3 current_thread_idx, current_block_idx;
dim3 current_block_dim, current_grid_dim;

namespace {

// ------------------------------------------------------------------------------ context switch

#if defined(PYDDFAST_SIMT_UCONTEXT)

struct Context {
  ucontext_t registers;
};
void switch_context(Context& from, Context& to) { swapcontext(&from.registers, &to.registers); }
void prepare_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context.registers);
  context.registers.uc_stack.ss_sp = stack;
  context.registers.uc_stack.ss_size = bytes;
  context.registers.uc_link = nullptr;
  makecontext(&context.registers, entry, 0);
}

#else

struct Context {
  void* stack_pointer;
};
extern "C" void pyddfast_simt_switch(void** from, void* to);
asm(R"(
.text
.hidden pyddfast_simt_switch
.globl pyddfast_simt_switch
.type pyddfast_simt_switch,@function
pyddfast_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size pyddfast_simt_switch, .-pyddfast_simt_switch
)");
void switch_context(Context& from, Context& to) {
  pyddfast_simt_switch(&from.stack_pointer, to.stack_pointer);
}
void prepare_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  // As if entry had just been called: below an aligned top lie its (absent) return address, the
  // address that the switch returns to, and six callee-saved registers.
  auto** top =
      reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t{15});
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context.stack_pointer = top;
}

#endif

// -------------------------------------------------------------------------------------- state

constexpr int kWarp = 32;
constexpr int kMaxBlock = 1024;
constexpr int kMaxCluster = 8;  // CUDA's portable maximum

#if defined(PYDDFAST_SIMT_ASAN)
constexpr size_t kStackBytes = 256 * 1024;  // redzones and no frame merging
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif
constexpr size_t kGuardBytes = 64 * 1024;  // a multiple of every page size in use

enum class State : int { kRunnable, kBlockBarrier, kClusterBarrier, kWarpOp, kExited };

struct Fiber {
  Context context;
  char* stack = nullptr;  // lowest usable byte
  void* fake_stack = nullptr;
  State state;
  uint3 thread;
  int warp, lane;
  // What it waits for.
  Site site;
  WarpOp op;
  unsigned mask;
  int source;  // shuffles: the lane read from
  uint64_t value, result;
  bool waited_for_grid;
};

struct Cta {
  uint3 block;
  int rank;
  std::vector<Fiber> fibers;
  unsigned runnable_lanes[kMaxBlock / kWarp];
  unsigned runnable_warps;  // those with a runnable lane
  int sticky_warp;
  int exited, at_barrier;
  Site barrier_site;
  std::vector<char> static_image;  // its __shared__ variables while another CTA runs
  std::unique_ptr<char[]> dynamic;
};

struct Barrier {
  std::string kind;
  uint64_t arrivals = 0;
};

struct Runtime {
  std::mutex mutex;  // one launch at a time
  // Settings.
  uint64_t seed = 0, launches = 0;
  int compute_capability = 90, multiprocessors = 4;
  std::string dropped;
  std::map<std::string, Barrier> barriers;  // by "file:line"; never shrinks
  std::set<const void*> kernels;            // launched without an error; never shrinks
  // Direct-mapped cache of the sites of this launch.
  struct CachedSite {
    const char* file;
    int line;
    Barrier* barrier;
    bool dropped;
  } cache[64];

  // The launch that runs.
  const Request* request = nullptr;
  void (*body)(const void*) = nullptr;
  const void* context = nullptr;
  uint64_t random = 0;
  char* static_begin = nullptr;  // thread-local block of the kernel's module
  size_t static_bytes = 0;
  std::vector<Cta> ctas;
  int cluster = 1, threads = 0;
  Cta* active = nullptr;
  Fiber* fiber = nullptr;
  Context scheduler;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  bool sticky = false;
  int cluster_arrived = 0;
  Site cluster_site;
  int error = kSuccess;
  bool failed_in_thread = false;  // current_thread_idx is the thread to blame
  char text[4096];
};
Runtime& runtime() {
  static Runtime* const instance = new Runtime;  // never destroyed: tests may run at exit
  return *instance;
}
thread_local std::string last_error_text;
thread_local bool inside_launch = false;

// --------------------------------------------------------------------------------- randomness

uint64_t mix(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}
unsigned random_below(unsigned n) {
  Runtime& r = runtime();
  r.random += 0x9e3779b97f4a7c15u;
  return static_cast<unsigned>(((mix(r.random) >> 32) * n) >> 32);
}
int random_bit(unsigned mask) {
  for (unsigned skip = random_below(static_cast<unsigned>(__builtin_popcount(mask))); skip > 0;
       --skip)
    mask &= mask - 1;
  return __builtin_ctz(mask);
}

// ------------------------------------------------------------------------------------- errors

const char* op_name(WarpOp op) {
  switch (op) {
    case WarpOp::kSync:
      return "__syncwarp";
    case WarpOp::kShfl:
      return "__shfl_sync";
    case WarpOp::kShflXor:
      return "__shfl_xor_sync";
    case WarpOp::kShflUp:
      return "__shfl_up_sync";
    case WarpOp::kShflDown:
      return "__shfl_down_sync";
    case WarpOp::kBallot:
      return "__ballot_sync";
    case WarpOp::kAny:
      return "__any_sync";
    case WarpOp::kAll:
      return "__all_sync";
  }
  return "?";
}

// The mangled name of a function from its file's symbol table, read once a file: kernels are local
// symbols, which dladdr does not know.  Empty if the file was stripped.
std::string symbol_of(const void* address) {
  static std::map<std::string, std::map<uintptr_t, std::string>> files;
  Dl_info info;
  link_map* map = nullptr;
  if (!dladdr1(address, &info, reinterpret_cast<void**>(&map), RTLD_DL_LINKMAP)) return "";
  auto& functions = files[info.dli_fname];
  if (functions.empty()) {
    std::ifstream file(info.dli_fname, std::ios::binary);
    const std::string image((std::istreambuf_iterator<char>(file)),
                            std::istreambuf_iterator<char>());
    if (image.size() < sizeof(ElfW(Ehdr))) return "";
    const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(image.data());
    const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(image.data() + header->e_shoff);
    for (int i = 0; i < header->e_shnum; ++i) {
      if (sections[i].sh_type != SHT_SYMTAB) continue;
      const auto* symbols =
          reinterpret_cast<const ElfW(Sym)*>(image.data() + sections[i].sh_offset);
      const char* names = image.data() + sections[sections[i].sh_link].sh_offset;
      for (size_t k = 0; k < sections[i].sh_size / sizeof(ElfW(Sym)); ++k) {
        if ((symbols[k].st_info & 0xf) != STT_FUNC) continue;
        functions.emplace(symbols[k].st_value, names + symbols[k].st_name);
      }
    }
  }
  const auto found = functions.find(reinterpret_cast<uintptr_t>(address) - map->l_addr);
  return found == functions.end() ? "" : found->second;
}

std::string function_name(const void* address) {
  const std::string name = symbol_of(address);
  int status = 0;
  char* readable = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  const std::string result = status == 0 ? readable : name;
  std::free(readable);
  return result;
}

void switch_to_scheduler(bool for_good);

// Ends the launch with an error; called on a fiber.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(int error, const char* format, ...) {
  Runtime& r = runtime();
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(r.text, sizeof(r.text), format, arguments);
  va_end(arguments);
  if (r.fiber == nullptr) {
    std::fprintf(stderr, "simt: outside a kernel: %s\n", r.text);
    std::abort();
  }
  r.error = error;
  r.failed_in_thread = true;
  switch_to_scheduler(true);
  __builtin_unreachable();
}

bool same_site(const Site& a, const Site& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

#define SITE_FORMAT "%s:%d (%s)"
#define SITE_ARGUMENTS(site) (site).file, (site).line, (site).function
#define THREAD_FORMAT "(%u,%u,%u)"
#define THREAD_ARGUMENTS(index) (index).x, (index).y, (index).z

// ----------------------------------------------------------------------------------- fibers

void unpoison_stack([[maybe_unused]] Fiber& fiber) {
#if defined(PYDDFAST_SIMT_ASAN)
  __asan_unpoison_memory_region(fiber.stack, kStackBytes);  // of a fiber that was abandoned
#endif
}

// Stacks are kept for the life of the process: 1024 of them an index of the cluster at most.
char* stack_of(int index) {
  static std::vector<char*>* const stacks = new std::vector<char*>;
  while (static_cast<int>(stacks->size()) <= index) {
    constexpr size_t kBytes = kGuardBytes + kStackBytes;
    void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE) != 0) {
      std::perror("simt: no memory for a fiber's stack");
      std::abort();
    }
    stacks->push_back(static_cast<char*>(memory) + kGuardBytes);
  }
  return (*stacks)[static_cast<size_t>(index)];
}

void switch_to_fiber(Fiber& fiber) {
  Runtime& r = runtime();
  r.fiber = &fiber;
  current_thread_idx = fiber.thread;
#if defined(PYDDFAST_SIMT_ASAN)
  __sanitizer_start_switch_fiber(&r.scheduler_fake_stack, fiber.stack, kStackBytes);
#endif
  switch_context(r.scheduler, fiber.context);
#if defined(PYDDFAST_SIMT_ASAN)
  __sanitizer_finish_switch_fiber(r.scheduler_fake_stack, nullptr, nullptr);
#endif
  r.fiber = nullptr;
}

void switch_to_scheduler([[maybe_unused]] bool for_good) {
  Runtime& r = runtime();
  Fiber& fiber = *r.fiber;
#if defined(PYDDFAST_SIMT_ASAN)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.fake_stack, r.scheduler_stack,
                                 r.scheduler_stack_bytes);
#endif
  switch_context(fiber.context, r.scheduler);
#if defined(PYDDFAST_SIMT_ASAN)
  __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
#endif
}

void set_runnable(Cta& cta, Fiber& fiber) {
  fiber.state = State::kRunnable;
  cta.runnable_lanes[fiber.warp] |= 1u << fiber.lane;
  cta.runnable_warps |= 1u << fiber.warp;
}

// Lanes of `mask` that exist, in the current fiber's warp.
template <class Visit>
void for_lanes(unsigned mask, Visit visit) {
  Runtime& r = runtime();
  for (; mask != 0; mask &= mask - 1) {
    const int index = r.fiber->warp * kWarp + __builtin_ctz(mask);
    if (index < r.threads) visit(r.active->fibers[static_cast<size_t>(index)]);
  }
}

// A thread has ended: nobody may be waiting for it.
void on_exit() {
  Runtime& r = runtime();
  Fiber& self = *r.fiber;
  Cta& cta = *r.active;
  self.state = State::kExited;
  ++cta.exited;
  if (r.request->programmatic && !self.waited_for_grid) {
    fail(kLaunchFailure,
         "launched with programmatic = true, but the thread ended without grid_dependency_wait()");
  }
  if (cta.at_barrier > 0) {
    fail(kLaunchFailure,
         "divergent __syncthreads: the thread has ended while %d thread(s) of its block wait "
         "at " SITE_FORMAT,
         cta.at_barrier, SITE_ARGUMENTS(cta.barrier_site));
  }
  if (r.cluster_arrived > 0) {
    fail(kLaunchFailure,
         "divergent cluster_sync: the thread has ended while %d thread(s) of its cluster wait "
         "at " SITE_FORMAT,
         r.cluster_arrived, SITE_ARGUMENTS(r.cluster_site));
  }
  for_lanes(~0u, [&](Fiber& other) {
    if (other.state == State::kWarpOp && (other.mask >> self.lane & 1u)) {
      fail(kLaunchFailure,
           "%s at " SITE_FORMAT ": lane %d waits for lane %d (mask 0x%08x), which has ended",
           op_name(other.op), SITE_ARGUMENTS(other.site), other.lane, self.lane, other.mask);
    }
  });
}

void fiber_main() {
  Runtime& r = runtime();
#if defined(PYDDFAST_SIMT_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &r.scheduler_stack, &r.scheduler_stack_bytes);
#endif
  try {
    r.body(r.context);
  } catch (...) {
    // Not reported from in here: a handler must not be switched away from.
    r.error = kLaunchFailure;
  }
  if (r.error != kSuccess) fail(kLaunchFailure, "the kernel threw a C++ exception");
  on_exit();
  switch_to_scheduler(true);
}

// ---------------------------------------------------------------------------------- scheduling

// Half of the launches pick among all runnable warps; the others keep to one warp until all its
// lanes wait, so that a warp gets as far ahead of its siblings as barriers let it.
Fiber& pick_fiber(Cta& cta) {
  Runtime& r = runtime();
  int warp = cta.sticky_warp;
  if (!r.sticky || !(cta.runnable_warps >> warp & 1u)) warp = random_bit(cta.runnable_warps);
  cta.sticky_warp = warp;
  const int lane = random_bit(cta.runnable_lanes[warp]);
  cta.runnable_lanes[warp] &= ~(1u << lane);
  if (cta.runnable_lanes[warp] == 0) cta.runnable_warps &= ~(1u << warp);
  return cta.fibers[static_cast<size_t>(warp * kWarp + lane)];
}

// A CTA of a cluster keeps running until all its threads wait or have ended.
Cta* pick_cta() {
  Runtime& r = runtime();
  if (r.active != nullptr && r.active->runnable_warps != 0) return r.active;
  Cta* candidates[kMaxCluster];
  unsigned count = 0;
  for (int i = 0; i < r.cluster; ++i) {
    Cta& cta = r.ctas[static_cast<size_t>(i)];
    if (cta.runnable_warps != 0) candidates[count++] = &cta;
  }
  return count == 0 ? nullptr : candidates[random_below(count)];
}

void activate(Cta& cta) {
  Runtime& r = runtime();
  if (&cta == r.active) return;
  if (r.active != nullptr)
    std::memcpy(r.active->static_image.data(), r.static_begin, r.static_bytes);
  std::memcpy(r.static_begin, cta.static_image.data(), r.static_bytes);
  r.active = &cta;
  current_block_idx = cta.block;
}

// Who waits where, one clause for each group of threads.
void describe_deadlock() {
  Runtime& r = runtime();
  std::map<std::string, int> groups;
  for (int i = 0; i < r.cluster; ++i) {
    for (const Fiber& fiber : r.ctas[static_cast<size_t>(i)].fibers) {
      if (fiber.state == State::kExited) {
        ++groups["ended"];
        continue;
      }
      const char* what = fiber.state == State::kBlockBarrier     ? "__syncthreads"
                         : fiber.state == State::kClusterBarrier ? "cluster_sync"
                                                                 : op_name(fiber.op);
      char text[512];
      std::snprintf(text, sizeof(text), "wait in %s at " SITE_FORMAT, what,
                    SITE_ARGUMENTS(fiber.site));
      std::string group = text;
      if (fiber.state == State::kWarpOp) {
        std::snprintf(text, sizeof(text), " with mask 0x%08x", fiber.mask);
        group += text;
      }
      ++groups[group];
    }
  }
  std::string text = "deadlock: no thread can run:";
  for (const auto& [group, count] : groups) {
    text += (text.back() == ':' ? " " : "; ") + std::to_string(count) + " thread(s) " + group;
  }
  r.error = kLaunchFailure;
  std::snprintf(r.text, sizeof(r.text), "%s", text.c_str());
}

void start_cta(Cta& cta, unsigned block, int rank) {
  Runtime& r = runtime();
  const dim3 grid = r.request->grid, size = r.request->block;
  cta.block = {block % grid.x, block / grid.x % grid.y, block / grid.x / grid.y};
  cta.rank = rank;
  cta.exited = cta.at_barrier = 0;
  cta.runnable_warps = 0;
  cta.sticky_warp = 0;
  std::fill(std::begin(cta.runnable_lanes), std::end(cta.runnable_lanes), 0u);
  cta.fibers.resize(static_cast<size_t>(r.threads));
  cta.static_image.assign(r.static_bytes, static_cast<char>(0xff));
  // Exactly as long as asked for, so that ASan sees an overrun.
  cta.dynamic.reset(r.request->shared_bytes ? new char[r.request->shared_bytes] : nullptr);
  std::fill_n(cta.dynamic.get(), r.request->shared_bytes, static_cast<char>(0xff));
  for (int i = 0; i < r.threads; ++i) {
    Fiber& fiber = cta.fibers[static_cast<size_t>(i)];
    const auto index = static_cast<unsigned>(i);
    fiber.thread = {index % size.x, index / size.x % size.y, index / size.x / size.y};
    fiber.warp = i / kWarp;
    fiber.lane = i % kWarp;
    fiber.waited_for_grid = false;
    fiber.stack = stack_of(rank * kMaxBlock + i);
    fiber.fake_stack = nullptr;
    unpoison_stack(fiber);
    // Tops at different offsets, or all stacks would compete for the same lines of the cache.
    const size_t colour = static_cast<size_t>(i % 32) * 128;
    prepare_context(fiber.context, fiber.stack, kStackBytes - colour, fiber_main);
    set_runnable(cta, fiber);
  }
}

void run_cluster(unsigned first_block) {
  Runtime& r = runtime();
  r.active = nullptr;
  r.cluster_arrived = 0;
  for (int rank = 0; rank < r.cluster; ++rank) {
    start_cta(r.ctas[static_cast<size_t>(rank)], first_block + static_cast<unsigned>(rank), rank);
  }
  while (Cta* cta = pick_cta()) {
    activate(*cta);
    switch_to_fiber(pick_fiber(*cta));
    if (r.error != kSuccess) return;
  }
  for (int rank = 0; rank < r.cluster; ++rank) {
    if (r.ctas[static_cast<size_t>(rank)].exited != r.threads) return describe_deadlock();
  }
}

// The thread-local block of the calling thread that holds `anchor`.
void find_static_memory(const void* anchor) {
  struct Search {
    const char* anchor;
    char* begin;
    size_t bytes;
  } search{static_cast<const char*>(anchor), nullptr, 0};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        auto& found = *static_cast<Search*>(data);
        auto* begin = static_cast<char*>(info->dlpi_tls_data);
        for (int i = 0; begin != nullptr && i < info->dlpi_phnum; ++i) {
          const auto& header = info->dlpi_phdr[i];
          if (header.p_type == PT_TLS && found.anchor >= begin &&
              found.anchor < begin + header.p_memsz) {
            found.begin = begin;
            found.bytes = header.p_memsz;
            return 1;
          }
        }
        return 0;
      },
      &search);
  if (search.begin == nullptr) {
    std::fprintf(stderr, "simt: the module of the kernel has no thread-local block\n");
    std::abort();
  }
  runtime().static_begin = search.begin;
  runtime().static_bytes = search.bytes;
}

int shared_limit_of(int compute_capability) {
  // CUDA programming guide, "Maximum amount of shared memory per thread block".
  switch (compute_capability) {
    case 80:
    case 87:
      return 163 * 1024;
    case 86:
    case 89:
    case 120:
    case 121:
      return 99 * 1024;
    default:
      return 227 * 1024;
  }
}

// What CUDA checks before a kernel starts.
int check_request(const Request& request) {
  Runtime& r = runtime();
  const auto [grid, block] = std::pair(request.grid, request.block);
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const auto text = [&](const char* format, auto... values) {
    std::snprintf(r.text, sizeof(r.text), format, values...);
  };
  if (threads == 0 || threads > kMaxBlock || block.x > 1024 || block.y > 1024 || block.z > 64) {
    text("block (%u,%u,%u): at least 1, at most 1024 threads, at most (1024,1024,64)", block.x,
         block.y, block.z);
    return kInvalidConfiguration;
  }
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 ||
      grid.z > 65535) {
    text("grid (%u,%u,%u): at least 1, at most (2147483647,65535,65535)", grid.x, grid.y, grid.z);
    return kInvalidConfiguration;
  }
  if (request.shared_bytes > static_cast<size_t>(shared_limit_of(r.compute_capability))) {
    text("shared_bytes %zu: at most %d on compute capability %d", request.shared_bytes,
         shared_limit_of(r.compute_capability), r.compute_capability);
    return kInvalidValue;
  }
  const int cluster = request.cluster;
  if (cluster != 1 && cluster != 2 && cluster != 4 && cluster != kMaxCluster) {
    text("cluster %d: 1, 2, 4 or 8", cluster);
    return kInvalidClusterSize;
  }
  if (cluster != 1 && r.compute_capability < 90) {
    text("cluster %d: clusters need compute capability 90, this is %d", cluster,
         r.compute_capability);
    return kInvalidClusterSize;
  }
  if (grid.x % static_cast<unsigned>(cluster) != 0) {
    text("grid.x %u is no multiple of cluster %d", grid.x, cluster);
    return kInvalidConfiguration;
  }
  return kSuccess;
}

void run_grid(const Request& request) {
  Runtime& r = runtime();
  r.cluster = request.cluster;
  r.threads = static_cast<int>(request.block.x * request.block.y * request.block.z);
  r.random = mix(mix(r.seed) + r.launches);
  r.sticky = random_below(2) == 0;
  r.failed_in_thread = false;
  std::fill(std::begin(r.cache), std::end(r.cache), Runtime::CachedSite{});
  if (static_cast<int>(r.ctas.size()) < r.cluster) r.ctas.resize(static_cast<size_t>(r.cluster));
  current_grid_dim = request.grid;
  current_block_dim = request.block;

  // Clusters in random order; a cluster is consecutive blocks along x.
  const uint64_t blocks = uint64_t{request.grid.x} * request.grid.y * request.grid.z;
  std::vector<unsigned> order(blocks / static_cast<unsigned>(r.cluster));
  for (unsigned i = 0; i < order.size(); ++i) {
    order[i] = i;
    std::swap(order[i], order[random_below(i + 1)]);
  }
  for (const unsigned index : order) {
    run_cluster(index * static_cast<unsigned>(r.cluster));
    if (r.error != kSuccess) return;
  }
}

// --------------------------------------------------------------------------------- barriers

// Counts an arrival; true if this barrier is to be left out.
bool arrive(const char* kind, const Site& site) {
  Runtime& r = runtime();
  auto& cached =
      r.cache[(reinterpret_cast<uintptr_t>(site.file) / 8 + static_cast<unsigned>(site.line)) % 64];
  if (cached.file != site.file || cached.line != site.line) {
    const std::string key = std::string(site.file) + ":" + std::to_string(site.line);
    Barrier& barrier = r.barriers[key];
    barrier.kind = kind;
    cached = {site.file, site.line, &barrier, key == r.dropped};
  }
  ++cached.barrier->arrivals;
  return cached.dropped;
}

uint64_t warp_wait(WarpOp op, unsigned mask, uint64_t value, int source, const Site& site) {
  Runtime& r = runtime();
  Fiber& self = *r.fiber;
  if (!(mask >> self.lane & 1u)) {
    fail(kLaunchFailure, "%s at " SITE_FORMAT ": the calling lane %d is not in its mask 0x%08x",
         op_name(op), SITE_ARGUMENTS(site), self.lane, mask);
  }
  if (!(mask >> source & 1u)) {
    fail(kLaunchFailure,
         "%s at " SITE_FORMAT ": lane %d reads lane %d, which is not in mask 0x%08x", op_name(op),
         SITE_ARGUMENTS(site), self.lane, source, mask);
  }
  const int lanes = std::min(kWarp, r.threads - self.warp * kWarp);
  if (lanes < kWarp && mask >> lanes != 0) {
    fail(kLaunchFailure, "%s at " SITE_FORMAT ": mask 0x%08x names lanes of a warp that has %d",
         op_name(op), SITE_ARGUMENTS(site), mask, lanes);
  }
  self.state = State::kWarpOp;
  self.op = op;
  self.mask = mask;
  self.value = value;
  self.source = source;
  self.site = site;
  bool complete = true;
  for_lanes(mask, [&](Fiber& other) {
    if (other.state == State::kExited) {
      fail(kLaunchFailure, "%s at " SITE_FORMAT ": lane %d of mask 0x%08x has ended", op_name(op),
           SITE_ARGUMENTS(site), other.lane, mask);
    }
    const bool waits_for_us = other.state == State::kWarpOp && (other.mask >> self.lane & 1u);
    if (waits_for_us && (other.op != op || other.mask != mask || !same_site(other.site, site))) {
      fail(kLaunchFailure,
           "divergent warp: lane %d calls %s at " SITE_FORMAT
           " with mask 0x%08x, lane %d calls %s "
           "at " SITE_FORMAT " with mask 0x%08x",
           self.lane, op_name(op), SITE_ARGUMENTS(site), mask, other.lane, op_name(other.op),
           SITE_ARGUMENTS(other.site), other.mask);
    }
    complete = complete && waits_for_us;
  });
  if (complete) {
    unsigned ballot = 0;
    for_lanes(mask,
              [&](Fiber& other) { ballot |= static_cast<unsigned>(other.value) << other.lane; });
    for_lanes(mask, [&](Fiber& other) {
      const int first = other.warp * kWarp;
      switch (op) {
        case WarpOp::kBallot:
          other.result = ballot;
          break;
        case WarpOp::kAny:
          other.result = ballot != 0;
          break;
        case WarpOp::kAll:
          other.result = ballot == mask;
          break;
        default:
          other.result = r.active->fibers[static_cast<size_t>(first + other.source)].value;
      }
      set_runnable(*r.active, other);
    });
  }
  switch_to_scheduler(false);
  return self.result;
}

}  // namespace

// ---------------------------------------------------------------------------------- device side

void block_barrier(Site site) {
  if (arrive("__syncthreads", site)) return;
  Runtime& r = runtime();
  Fiber& self = *r.fiber;
  Cta& cta = *r.active;
  if (cta.exited > 0) {
    fail(kLaunchFailure,
         "divergent __syncthreads at " SITE_FORMAT ": %d thread(s) of the block have ended",
         SITE_ARGUMENTS(site), cta.exited);
  }
  if (cta.at_barrier > 0 && !same_site(site, cta.barrier_site)) {
    fail(kLaunchFailure,
         "divergent __syncthreads at " SITE_FORMAT
         ": %d thread(s) of the block wait at " SITE_FORMAT,
         SITE_ARGUMENTS(site), cta.at_barrier, SITE_ARGUMENTS(cta.barrier_site));
  }
  self.state = State::kBlockBarrier;
  self.site = cta.barrier_site = site;
  if (++cta.at_barrier == r.threads) {
    cta.at_barrier = 0;
    for (Fiber& fiber : cta.fibers) set_runnable(cta, fiber);
    cta.sticky_warp = random_bit(cta.runnable_warps);
  }
  switch_to_scheduler(false);
}

void cluster_barrier(Site site) {
  if (arrive("cluster_sync", site)) return;
  Runtime& r = runtime();
  Fiber& self = *r.fiber;
  int exited = 0;
  for (int i = 0; i < r.cluster; ++i) exited += r.ctas[static_cast<size_t>(i)].exited;
  if (exited > 0) {
    fail(kLaunchFailure,
         "divergent cluster_sync at " SITE_FORMAT ": %d thread(s) of the cluster have ended",
         SITE_ARGUMENTS(site), exited);
  }
  if (r.cluster_arrived > 0 && !same_site(site, r.cluster_site)) {
    fail(kLaunchFailure,
         "divergent cluster_sync at " SITE_FORMAT
         ": %d thread(s) of the cluster wait at " SITE_FORMAT,
         SITE_ARGUMENTS(site), r.cluster_arrived, SITE_ARGUMENTS(r.cluster_site));
  }
  self.state = State::kClusterBarrier;
  self.site = r.cluster_site = site;
  if (++r.cluster_arrived == r.threads * r.cluster) {
    r.cluster_arrived = 0;
    for (int i = 0; i < r.cluster; ++i) {
      Cta& cta = r.ctas[static_cast<size_t>(i)];
      for (Fiber& fiber : cta.fibers) set_runnable(cta, fiber);
      cta.sticky_warp = random_bit(cta.runnable_warps);
    }
    // Any CTA may be the first to go on.
    activate(r.ctas[random_below(static_cast<unsigned>(r.cluster))]);
  }
  switch_to_scheduler(false);
}

void warp_barrier(unsigned mask, Site site) {
  if (arrive("__syncwarp", site)) return;
  warp_wait(WarpOp::kSync, mask, 0, runtime().fiber->lane, site);
}

uint64_t warp_shuffle(WarpOp op, unsigned mask, uint64_t value, int operand, int width, Site site) {
  if (width < 1 || width > kWarp || (width & (width - 1)) != 0) {
    fail(kLaunchFailure, "%s at " SITE_FORMAT ": width %d: 1, 2, 4, 8, 16 or 32", op_name(op),
         SITE_ARGUMENTS(site), width);
  }
  // PTX ISA, "shfl.sync": a lane outside the segment of `width` lanes means the caller itself.
  const int lane = runtime().fiber->lane;
  const int first = lane & ~(width - 1), last = first + width - 1;
  int source = lane;
  switch (op) {
    case WarpOp::kShfl:
      source = first + (operand & (width - 1));
      break;
    case WarpOp::kShflXor:
      source = lane ^ (operand & (kWarp - 1));
      break;
    case WarpOp::kShflUp:
      source = lane - (operand & (kWarp - 1));
      break;
    default:
      source = lane + (operand & (kWarp - 1));
      break;
  }
  const bool outside = op == WarpOp::kShflUp ? source < first : source > last;
  return warp_wait(op, mask, value, outside ? lane : source, site);
}

unsigned warp_vote(WarpOp op, unsigned mask, bool predicate, Site site) {
  return static_cast<unsigned>(warp_wait(op, mask, predicate, runtime().fiber->lane, site));
}

void* dynamic_shared() { return runtime().active->dynamic.get(); }
int cluster_rank() { return runtime().active->rank; }
int cluster_size() { return runtime().cluster; }

void cluster_read(void* result, const void* address, size_t bytes, int rank, Site site) {
  Runtime& r = runtime();
  if (rank < 0 || rank >= r.cluster) {
    fail(kIllegalAddress, "cluster_load at " SITE_FORMAT ": rank %d of a cluster of %d",
         SITE_ARGUMENTS(site), rank, r.cluster);
  }
  check_aligned(address, bytes, "cluster_load", site);
  Cta& other = r.ctas[static_cast<size_t>(rank)];
  if (other.exited == r.threads) {
    fail(kIllegalAddress, "cluster_load at " SITE_FORMAT ": CTA %d of the cluster has ended",
         SITE_ARGUMENTS(site), rank);
  }
  const auto* at = static_cast<const char*>(address);
  const char* dynamic = r.active->dynamic.get();
  const char* source = nullptr;
  if (at >= r.static_begin && at + bytes <= r.static_begin + r.static_bytes) {
    source =
        (&other == r.active ? r.static_begin : other.static_image.data()) + (at - r.static_begin);
  } else if (dynamic != nullptr && at >= dynamic &&
             at + bytes <= dynamic + r.request->shared_bytes) {
    source = other.dynamic.get() + (at - dynamic);
  } else {
    fail(kIllegalAddress, "cluster_load at " SITE_FORMAT ": %p is not in shared memory",
         SITE_ARGUMENTS(site), address);
  }
  std::memcpy(result, source, bytes);
}

void grid_dependency_wait() { runtime().fiber->waited_for_grid = true; }

void misaligned(const void* address, size_t alignment, const char* what, Site site) {
  fail(kMisalignedAddress, "misaligned %s at " SITE_FORMAT ": address %p is no multiple of %zu",
       what, SITE_ARGUMENTS(site), address, alignment);
}

void trap(const char* what, Site site) {
  fail(kLaunchFailure, "%s at " SITE_FORMAT, what, SITE_ARGUMENTS(site));
}

// ------------------------------------------------------------------------------------ host side

int run_erased(const Request& request, void (*body)(const void*), const void* context) {
  Runtime& r = runtime();
  if (inside_launch) fail(kLaunchFailure, "a kernel cannot launch a kernel");
  const std::lock_guard<std::mutex> lock(r.mutex);
  ++r.launches;
  r.error = check_request(request);
  std::string where = ", seed " + std::to_string(r.seed) + ", launch " + std::to_string(r.launches);
  if (r.error == kSuccess) {
    inside_launch = true;
    r.request = &request;
    r.body = body;
    r.context = context;
    find_static_memory(request.anchor());
    const std::vector<char> kept(r.static_begin, r.static_begin + r.static_bytes);
    run_grid(request);
    std::memcpy(r.static_begin, kept.data(), kept.size());
    inside_launch = false;
    if (r.failed_in_thread) {
      char text[128];
      std::snprintf(text, sizeof(text), ", block " THREAD_FORMAT ", thread " THREAD_FORMAT,
                    THREAD_ARGUMENTS(current_block_idx), THREAD_ARGUMENTS(current_thread_idx));
      where = text + where;
    }
  }
  if (r.error == kSuccess) {
    r.kernels.insert(request.kernel);
  } else {
    std::string name = function_name(request.kernel);
    if (name.empty()) name = "?";
    last_error_text = std::string(r.text) + " [kernel " + name + where + "]";
  }
  return r.error;
}

const char* last_error() { return last_error_text.c_str(); }
int compute_capability() { return runtime().compute_capability; }
int multiprocessors() { return runtime().multiprocessors; }
int shared_limit() { return shared_limit_of(runtime().compute_capability); }

void set_seed(uint64_t seed) {
  const std::lock_guard<std::mutex> lock(runtime().mutex);
  runtime().seed = seed;
  runtime().launches = 0;
}

void set_compute_capability(int value) { runtime().compute_capability = value; }
void set_multiprocessors(int value) { runtime().multiprocessors = value; }

bool drop_barrier(const char* site) {
  Runtime& r = runtime();
  const std::lock_guard<std::mutex> lock(r.mutex);
  if (site != nullptr && r.barriers.count(site) == 0) return false;
  r.dropped = site == nullptr ? "" : site;
  return true;
}

void visit_barriers(void (*visit)(void*, const char*, const char*, uint64_t), void* context) {
  Runtime& r = runtime();
  const std::lock_guard<std::mutex> lock(r.mutex);
  for (const auto& [site, barrier] : r.barriers) {
    if (barrier.arrivals > 0) visit(context, site.c_str(), barrier.kind.c_str(), barrier.arrivals);
  }
}

void visit_kernels(void (*visit)(void*, const char*), void* context) {
  Runtime& r = runtime();
  const std::lock_guard<std::mutex> lock(r.mutex);
  for (const void* kernel : r.kernels) visit(context, symbol_of(kernel).c_str());
}

void reset() {
  set_seed(0);
  Runtime& r = runtime();
  const std::lock_guard<std::mutex> lock(r.mutex);
  r.compute_capability = 90;
  r.multiprocessors = 4;
  r.dropped.clear();
  for (auto& [site, barrier] : r.barriers) barrier.arrivals = 0;
  last_error_text.clear();
}

}  // namespace pyddfast::simt::emulator

// ------------------------------------------------------------------- the compiler's own checks
//
// Kernels are compiled with -fsanitize=alignment,bounds.  Instead of libubsan these handlers (their
// names and arguments are the compilers' ABI) turn a finding into an error of the launch: every
// access is checked, vectors and scalars, and every index into an array of known length.

namespace {
struct SourceLocation {
  const char* file;
  uint32_t line, column;
};
struct TypeDescriptor {
  uint16_t kind, info;
  char name[1];
};
struct TypeMismatch {
  SourceLocation location;
  const TypeDescriptor* type;
  unsigned char log_alignment, kind;
};
struct OutOfBounds {
  SourceLocation location;
  const TypeDescriptor* array_type;
  const TypeDescriptor* index_type;
};
constexpr const char* kAccess[] = {"load", "store", "reference", "member access", "member call"};
}  // namespace

namespace emulator = pyddfast::simt::emulator;

extern "C" {
__attribute__((visibility("default"))) void __ubsan_handle_type_mismatch_v1(
    const TypeMismatch* data, uintptr_t address) {
  emulator::fail(address == 0 ? emulator::kIllegalAddress : emulator::kMisalignedAddress,
                 "misaligned %s of %s at %s:%u: address %p is no multiple of %d",
                 data->kind < 5 ? kAccess[data->kind] : "use", data->type->name,
                 data->location.file, data->location.line, reinterpret_cast<void*>(address),
                 1 << data->log_alignment);
}
__attribute__((visibility("default"))) void __ubsan_handle_out_of_bounds(const OutOfBounds* data,
                                                                         uintptr_t index) {
  emulator::fail(emulator::kIllegalAddress, "index %zd out of bounds of %s at %s:%u",
                 static_cast<ssize_t>(index), data->array_type->name, data->location.file,
                 data->location.line);
}
__attribute__((visibility("default"))) void __ubsan_handle_type_mismatch_v1_abort(
    const TypeMismatch* data, uintptr_t address) {
  __ubsan_handle_type_mismatch_v1(data, address);
}
__attribute__((visibility("default"))) void __ubsan_handle_out_of_bounds_abort(
    const OutOfBounds* data, uintptr_t index) {
  __ubsan_handle_out_of_bounds(data, index);
}
}
