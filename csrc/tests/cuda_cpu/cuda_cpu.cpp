// Fibers, the scheduler and the collectives.
//
// This file is compiled without sanitizers and tells them itself what they have to know: to ASan
// which stack is in use, to TSan which fiber runs, and the few places where one thread's memory is
// ordered before another's: launch and end, block barriers, warp barriers. Nothing else here may
// order anything in TSan's eyes, or a barrier that a kernel lacks would not show: hence no mutex,
// no memcpy and no allocation (all are intercepted) while fibers run.
#include "cuda_cpu.h"

#include <sched.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

thread_local constinit uint3 threadIdx{};
thread_local constinit uint3 blockIdx{};
thread_local constinit dim3 blockDim{};
thread_local constinit dim3 gridDim{};

// Null where the sanitizer is not linked.
#define SANITIZER_FUNCTION extern "C" [[gnu::weak, gnu::visibility("default")]]
SANITIZER_FUNCTION void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom,
                                                       size_t bytes);
SANITIZER_FUNCTION void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom,
                                                        size_t* bytes);
SANITIZER_FUNCTION void* __tsan_get_current_fiber();
SANITIZER_FUNCTION void* __tsan_create_fiber(unsigned flags);
SANITIZER_FUNCTION void __tsan_switch_to_fiber(void* fiber, unsigned flags);
SANITIZER_FUNCTION void __tsan_acquire(void* address);
SANITIZER_FUNCTION void __tsan_release(void* address);

// Saves the callee's registers and the stack pointer, and goes on where another did so.
extern "C" void cuda_cpu_switch(void** save, void* load);
#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.hidden cuda_cpu_switch
.globl cuda_cpu_switch
.type cuda_cpu_switch, @function
cuda_cpu_switch:
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
.size cuda_cpu_switch, .-cuda_cpu_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.p2align 4
.hidden cuda_cpu_switch
.globl cuda_cpu_switch
.type cuda_cpu_switch, %function
cuda_cpu_switch:
  stp x29, x30, [sp, #-160]!
  stp x19, x20, [sp, #16]
  stp x21, x22, [sp, #32]
  stp x23, x24, [sp, #48]
  stp x25, x26, [sp, #64]
  stp x27, x28, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #16]
  ldp x21, x22, [sp, #32]
  ldp x23, x24, [sp, #48]
  ldp x25, x26, [sp, #64]
  ldp x27, x28, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  ldp x29, x30, [sp], #160
  ret
.size cuda_cpu_switch, .-cuda_cpu_switch
)");
#else
#error "cuda_cpu switches fibers on x86-64 and aarch64 only"
#endif

namespace cuda_cpu {
namespace {

constexpr unsigned kWarp = 32, kAllLanes = 0xffffffffu;
constexpr int kGuards = 4096;
constexpr size_t kDeposit = 64;  // bytes of a lane in gather()

// ---- settings ---------------------------------------------------------------------------------

enum class Order { kForward, kReverse, kRandom };

struct Settings {
  Order order = Order::kForward;
  uint64_t seed = 0;
  int mutant = -1;
  double timeout = 60;

  void read_order(const std::string& name) {
    if (name == "forward") {
      order = Order::kForward;
    } else if (name == "reverse") {
      order = Order::kReverse;
    } else if (name.rfind("random:", 0) == 0) {
      seed = std::stoull(name.substr(7));
      order = Order::kRandom;
    } else {
      throw std::invalid_argument("schedule: forward, reverse or random:SEED, not " + name);
    }
  }

  Settings() {
    if (const char* text = std::getenv("CUDA_CPU_SCHEDULE")) read_order(text);
    if (const char* text = std::getenv("CUDA_CPU_MUTANT")) mutant = std::atoi(text);
    if (const char* text = std::getenv("CUDA_CPU_TIMEOUT")) timeout = std::atof(text);
  }
};

Settings settings;
bool seen[kGuards];

double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

void acquire(void* token) {
  if (__tsan_acquire) __tsan_acquire(token);
}
void release(void* token) {
  if (__tsan_release) __tsan_release(token);
}

// ---- stacks -----------------------------------------------------------------------------------

size_t stack_bytes() {
  return __sanitizer_start_switch_fiber || __tsan_create_fiber ? 256 << 10 : 64 << 10;
}

// What a fiber needs, kept for the next one. To TSan a stack that two fibers use one after the other
// is no race, since whoever launches is ordered after the first and before the second.
struct Context {
  unsigned char* stack;
  void* tsan;
};

class Contexts {
 public:
  Context take() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!free_.empty()) {
        const Context context = free_.back();
        free_.pop_back();
        return context;
      }
    }
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* memory = mmap(nullptr, stack_bytes() + page, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    // The lowest page is inaccessible: a stack that overflows does not write into another.
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) throw std::bad_alloc();
    return {static_cast<unsigned char*>(memory) + page,
            __tsan_create_fiber ? __tsan_create_fiber(0) : nullptr};
  }

  void give_back(const Context& context) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(context);
  }

 private:
  std::mutex mutex_;
  std::vector<Context> free_;
};

Contexts& contexts() {
  static Contexts& all = *new Contexts;  // never destroyed: kernels may run while the process ends
  return all;
}

// ---- a block ----------------------------------------------------------------------------------

struct Fiber {
  void* stack_pointer = nullptr;
  const void* stack = nullptr;
  size_t stack_size = 0;
  void* fake_stack = nullptr;  // ASan's
  void* tsan = nullptr;
  uint3 index{};
  unsigned warp = 0, lane = 0;

  // The collective that it waits in, or came from last.
  const char* name = "";
  Site site;
  unsigned mask = 0;
  uint64_t value = 0;  // of a shuffle or vote: what it hands in, then what it gets
  unsigned source = 0;
  Site slept_at;
};

// Lanes by what they do: a lane is in one set at most, and in none while it runs.
struct Warp {
  unsigned ready = 0, waiting = 0, at_barrier = 0, sleeping = 0;
  unsigned waiting_all = 0;  // those of `waiting` that do so for the whole warp
  unsigned alive = 0;        // not at its end yet
  uint32_t priority = 0;
  // Two, since lanes may hand in for the next call while others still read; none is two ahead.
  unsigned gathers = 0;
  unsigned char deposits[2][kWarp * kDeposit];
  // Of warp barriers by the mask's lowest lane, two for the same reason.
  unsigned barriers[kWarp] = {};
  char tokens[kWarp][2];
};

struct Block;

struct Launch {
  Body body;
  const void* arguments;
  dim3 grid, threads;
  bool concurrent;
  std::vector<Block*> blocks;  // those that are there now
};

thread_local Block* block = nullptr;

void enter();

struct Block {
  Block(Launch& of, unsigned number, size_t shared_bytes);
  ~Block();
  Block(const Block&) = delete;

  void run();
  void switch_to(Fiber* next, bool for_good = false);
  Fiber* pick();
  void idle();
  void begin_anew();
  void arrive(Fiber& me, const char* name, unsigned mask, Site site);
  bool all_arrived(const Fiber& me) const;
  void let_go(unsigned warp, unsigned mask);
  [[noreturn]] void leave();
  std::string report() const;

  Launch& launch;
  const uint3 index;
  unsigned threads, warp_count;
  std::unique_ptr<Fiber[]> fibers;
  std::unique_ptr<Warp[]> warps;
  unsigned char* shared = nullptr;
  Fiber main;
  Fiber* current = nullptr;
  unsigned current_warp = 0;
  unsigned remaining;
  uint64_t random;

  unsigned arrived = 0, barriers = 0;
  const char* barrier_name = "";
  Site barrier_site;
  int predicates[2] = {};
  char barrier_tokens[2], start_token, end_token;

  // Progress is whatever a loop that only polls does not do.
  uint64_t progress = 0, progress_before = 0;
  unsigned idle_rounds = 0;
  double last_progress, last_idle = 0;
  bool done = false;

  uint32_t draw() {
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    return static_cast<uint32_t>(random >> 16);
  }
};

// ---- failing ----------------------------------------------------------------------------------

std::string describe(const Site& site) {
  return std::string(site.file_name()) + ":" + std::to_string(site.line());
}

std::string Block::report() const {
  std::string text;
  for (unsigned w = 0; w < warp_count; ++w) {
    const Warp& warp = warps[w];
    const auto state = [&](unsigned lane) -> std::string {
      const Fiber& fiber = fibers[w * kWarp + lane];
      const unsigned bit = 1u << lane;
      char mask[32];
      std::snprintf(mask, sizeof mask, "(0x%08x)", fiber.mask);
      const std::string at = std::string(fiber.name) + mask + " " + describe(fiber.site);
      if (!(warp.alive & bit)) return "has ended";
      if (warp.waiting & bit) return "waits in " + at;
      if (warp.at_barrier & bit)
        return std::string("waits in ") + fiber.name + " " + describe(fiber.site);
      if (warp.sleeping & bit) return "sleeps at " + describe(fiber.slept_at);
      return (warp.ready & bit ? "could run" : "runs") +
             (*fiber.name ? ", was last in " + at : std::string());
    };
    const unsigned lanes = std::min(kWarp, threads - w * kWarp);
    for (unsigned first = 0; first < lanes;) {
      unsigned end = first + 1;
      const std::string what = state(first);
      while (end < lanes && state(end) == what) ++end;
      text += "    warp " + std::to_string(w) + " lanes " + std::to_string(first) + "-" +
              std::to_string(end - 1) + " " + what + "\n";
      first = end;
    }
  }
  return text;
}

// Prints the blocks of `launch`, those that do the same together, and aborts.
[[noreturn]] void abort_with(const std::string& message, const Launch* launch) {
  static bool first = true;
  if (!__atomic_exchange_n(&first, false, __ATOMIC_RELAXED))
    for (;;) pause();  // another thread is at it
  std::fprintf(stderr, "cuda_cpu: %s\n  schedule %s, mutant %d\n", message.c_str(),
               schedule().c_str(), settings.mutant);
  if (launch != nullptr) {
    std::map<std::string, std::string> same;
    for (const Block* b : launch->blocks)
      same[b->done ? "    has ended\n" : b->report()] += " (" + std::to_string(b->index.x) + "," +
                                                         std::to_string(b->index.y) + "," +
                                                         std::to_string(b->index.z) + ")";
    for (const auto& [what, who] : same)
      std::fprintf(stderr, "  block%s\n%s", who.c_str(), what.c_str());
  }
  std::fflush(nullptr);
  std::abort();
}

[[noreturn]] [[gnu::format(printf, 1, 2)]] void fail(const char* format, ...) {
  char message[600];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  if (block == nullptr) abort_with(message, nullptr);
  const Fiber& me = *block->current;
  char who[200];
  std::snprintf(who, sizeof who, "block (%u,%u,%u) thread (%u,%u,%u): ", block->index.x,
                block->index.y, block->index.z, me.index.x, me.index.y, me.index.z);
  abort_with(std::string(who) + message, &block->launch);
}

Block& this_block(const char* name) {
  if (block == nullptr) fail("%s called outside of a kernel", name);
  return *block;
}

bool same_place(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

// ---- running ----------------------------------------------------------------------------------

Block::Block(Launch& of, unsigned number, size_t shared_bytes)
    : launch(of),
      index{number % of.grid.x, number / of.grid.x % of.grid.y, number / of.grid.x / of.grid.y},
      threads(of.threads.x * of.threads.y * of.threads.z),
      warp_count((threads + kWarp - 1) / kWarp),
      fibers(new Fiber[threads]),
      warps(new Warp[warp_count]),
      remaining(threads),
      // splitmix64's constants: neighbouring seeds and blocks draw unlike numbers
      random(((settings.seed + 1) * 0x9e3779b97f4a7c15u) ^ ((number + 1) * 0xbf58476d1ce4e5b9u)),
      last_progress(now()) {
  if (random == 0) random = 1;
  // At least one byte for a pointer that is not null; what is past the size is out of bounds.
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, shared_bytes) != 0) throw std::bad_alloc();
  shared = static_cast<unsigned char*>(memory);
  std::memset(shared, 0xFF, shared_bytes);

  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    fiber.index = {i % of.threads.x, i / of.threads.x % of.threads.y,
                   i / of.threads.x / of.threads.y};
    fiber.warp = i / kWarp, fiber.lane = i % kWarp;
    warps[fiber.warp].ready |= 1u << fiber.lane;
    const Context context = contexts().take();
    fiber.stack = context.stack;
    fiber.stack_size = stack_bytes();
    fiber.tsan = context.tsan;
    // What cuda_cpu_switch will pop: registers, of which only the frame pointer matters (null: the
    // outermost frame), and the address to return to.
    auto* top = reinterpret_cast<void**>(context.stack + fiber.stack_size);
#if defined(__x86_64__)
    top -= 8;
    std::memset(top, 0, 8 * sizeof *top);
    top[6] = reinterpret_cast<void*>(enter);  // then the stack pointer is 8 modulo 16: as by a call
#else
    top -= 20;
    std::memset(top, 0, 20 * sizeof *top);
    top[1] = reinterpret_cast<void*>(enter);
#endif
    fiber.stack_pointer = top;
  }
  for (unsigned w = 0; w < warp_count; ++w) {
    warps[w].alive = warps[w].ready;
    warps[w].priority = draw();
  }
}

Block::~Block() {
  for (unsigned i = 0; i < threads; ++i) {
    void* stack = const_cast<void*>(fibers[i].stack);
    contexts().give_back({static_cast<unsigned char*>(stack), fibers[i].tsan});
  }
  std::free(shared);
}

void Block::run() {
  block = this;
  blockIdx = index;
  blockDim = launch.threads;
  gridDim = launch.grid;
  // The OS thread's own memory, thread-locals among it, is ordered before its fibers: TSan takes it
  // as written when the thread starts, or when it first touches a thread-local.
  release(&start_token);
  if (__tsan_get_current_fiber) main.tsan = __tsan_get_current_fiber();
  current = &main;
  begin_anew();
  switch_to(pick());
  acquire(&end_token);
  block = nullptr;
  __atomic_store_n(&done, true, __ATOMIC_RELEASE);
}

void Block::switch_to(Fiber* next, bool for_good) {
  Fiber& me = *current;
  if (&me == next) return;
  current = next;
  threadIdx = next->index;
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(next->tsan, 1);  // 1: it orders nothing
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &me.fake_stack, next->stack,
                                   next->stack_size);
  cuda_cpu_switch(&me.stack_pointer, next->stack_pointer);
  if (__sanitizer_finish_switch_fiber)
    __sanitizer_finish_switch_fiber(me.fake_stack, nullptr, nullptr);
}

// Where every fiber starts.
void enter() {
  Block& b = *block;
  if (__sanitizer_finish_switch_fiber) {
    const void* bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
    if (b.main.stack == nullptr) b.main.stack = bottom, b.main.stack_size = bytes;
  }
  acquire(&b.start_token);
  b.launch.body(b.launch.arguments);
  b.leave();
}

void Block::leave() {
  Fiber& me = *current;
  Warp& warp = warps[me.warp];
  if (arrived > 0)
    fail("ends while others wait in %s %s", barrier_name, describe(barrier_site).c_str());
  for (unsigned rest = warp.waiting; rest; rest &= rest - 1) {
    const Fiber& other = fibers[me.warp * kWarp + static_cast<unsigned>(__builtin_ctz(rest))];
    if (other.mask >> me.lane & 1)
      fail("ends while lane %u waits for it in %s %s", other.lane, other.name,
           describe(other.site).c_str());
  }
  warp.alive &= ~(1u << me.lane);
  ++progress;
  release(&end_token);
  switch_to(--remaining == 0 ? &main : pick(), true);
  __builtin_unreachable();
}

// ---- who goes on ------------------------------------------------------------------------------

// After a block barrier the first warp goes on, not the last that came.
void Block::begin_anew() { current_warp = settings.order == Order::kReverse ? warp_count - 1 : 0; }

// The next fiber, taken out of the ready ones. Warps that can go on do so until they cannot.
Fiber* Block::pick() {
  for (;;) {
    unsigned w = current_warp;
    bool found = false;
    if (settings.order == Order::kRandom) {
      found = warps[w].ready != 0 && draw() % 8 != 0;
      if (!found) {
        for (unsigned i = 0; i < warp_count; ++i) {
          if (warps[i].ready == 0 || (found && warps[i].priority < warps[w].priority)) continue;
          w = i;
          found = true;
        }
        if (found && draw() % 8 == 0) warps[w].priority = draw();
      }
    } else {
      for (unsigned i = 0; i < warp_count && !found; ++i) {
        const unsigned step = settings.order == Order::kForward ? i : warp_count - i;
        w = (current_warp + step) % warp_count;
        found = warps[w].ready != 0;
      }
    }
    if (found) {
      const unsigned ready = warps[w].ready;
      unsigned lane;
      if (settings.order == Order::kForward) {
        lane = static_cast<unsigned>(__builtin_ctz(ready));
      } else if (settings.order == Order::kReverse) {
        lane = kWarp - 1 - static_cast<unsigned>(__builtin_clz(ready));
      } else {
        const unsigned turn = draw() % kWarp;
        const unsigned turned = turn == 0 ? ready : ready >> turn | ready << (kWarp - turn);
        lane = (static_cast<unsigned>(__builtin_ctz(turned)) + turn) % kWarp;
      }
      warps[w].ready = ready & ~(1u << lane);
      current_warp = w;
      return &fibers[w * kWarp + lane];
    }
    bool woken = false;
    for (unsigned i = 0; i < warp_count; ++i) {
      woken |= warps[i].sleeping != 0;
      warps[i].ready = warps[i].sleeping;
      warps[i].sleeping = 0;
    }
    if (!woken)
      abort_with("deadlock: no thread of block (" + std::to_string(index.x) + "," +
                     std::to_string(index.y) + "," + std::to_string(index.z) + ") can go on",
                 &launch);
    idle();
  }
}

// All that could run sleep: other blocks get the processor, of which there may be fewer than
// blocks.
void Block::idle() {
  const double time = now();
  if (progress != progress_before) {
    progress_before = progress;
    idle_rounds = 0;
    last_progress = time;
  }
  last_idle = time;
  if (++idle_rounds < 8) {
    sched_yield();
    return;
  }
  const timespec pause{0, idle_rounds < 200 ? 50'000 : 1'000'000};
  nanosleep(&pause, nullptr);
  if (time - last_progress < settings.timeout) return;
  for (const Block* other : launch.blocks) {
    if (__atomic_load_n(&other->done, __ATOMIC_ACQUIRE)) continue;
    // One that computes has not been here for long; one that waits for its turn never was.
    if (time - other->last_progress < settings.timeout) return;
    if (launch.concurrent && time - other->last_idle > 0.5 * settings.timeout) return;
  }
  char text[100];
  std::snprintf(text, sizeof text, "nothing but polling for %g seconds", settings.timeout);
  abort_with(text, &launch);
}

// ---- collectives of a warp --------------------------------------------------------------------

void Block::arrive(Fiber& me, const char* name, unsigned mask, Site site) {
  Warp& warp = warps[me.warp];
  const unsigned bit = 1u << me.lane;
  me.name = name, me.mask = mask, me.site = site;
  if (!(mask & bit)) fail("%s: mask 0x%08x lacks the calling lane %u", name, mask, me.lane);
  if (mask & ~warp.alive)
    fail("%s: mask 0x%08x names lanes that have ended or never were, 0x%08x", name, mask,
         mask & ~warp.alive);
  // Two lanes that wait for each other have to be at the same call. One that waits for a lane which
  // waits for others first is no mistake: lanes part and meet again.
  const unsigned whole = warp.waiting_all;
  unsigned rest =
      warp.waiting & ~(mask == kAllLanes ? whole & (whole - 1) : 0);  // one of them will do
  for (; rest; rest &= rest - 1) {
    const Fiber& other = fibers[me.warp * kWarp + static_cast<unsigned>(__builtin_ctz(rest))];
    if (!(mask >> other.lane & 1) || !(other.mask & bit)) continue;
    if (other.mask != mask)
      fail("%s at %s: mask 0x%08x, but lane %u waits with 0x%08x in %s %s", name,
           describe(site).c_str(), mask, other.lane, other.mask, other.name,
           describe(other.site).c_str());
    if (!same_place(site, other.site) || std::strcmp(name, other.name) != 0)
      fail("%s at %s, but lane %u waits in %s %s", name, describe(site).c_str(), other.lane,
           other.name, describe(other.site).c_str());
  }
  warp.waiting |= bit;
  if (mask == kAllLanes) warp.waiting_all |= bit;
}

bool Block::all_arrived(const Fiber& me) const {
  const Warp& warp = warps[me.warp];
  if (me.mask == kAllLanes) return warp.waiting_all == kAllLanes;
  if ((warp.waiting & me.mask) != me.mask) return false;
  for (unsigned rest = me.mask; rest; rest &= rest - 1)
    if (fibers[me.warp * kWarp + static_cast<unsigned>(__builtin_ctz(rest))].mask != me.mask)
      return false;
  return true;
}

void Block::let_go(unsigned w, unsigned mask) {
  warps[w].waiting &= ~mask;
  warps[w].waiting_all &= ~mask;
  warps[w].ready |= mask;
}

}  // namespace

unsigned lane() { return this_block("a shuffle").current->lane; }

void sync_warp(unsigned mask, Site site) {
  Block& b = this_block("__syncwarp");
  Fiber& me = *b.current;
  b.arrive(me, "__syncwarp", mask, site);
  const auto lowest = static_cast<unsigned>(__builtin_ctz(mask));
  unsigned& barriers = b.warps[me.warp].barriers[lowest];
  void* token = &b.warps[me.warp].tokens[lowest][barriers % 2];
  release(token);
  if (b.all_arrived(me)) {
    ++barriers;
    b.let_go(me.warp, mask);
  }
  b.switch_to(b.pick());
  acquire(token);
}

unsigned vote(const char* name, unsigned mask, bool predicate, Site site) {
  Block& b = this_block(name);
  Fiber& me = *b.current;
  b.arrive(me, name, mask, site);
  me.value = predicate;
  if (b.all_arrived(me)) {
    Fiber* fibers = &b.fibers[me.warp * kWarp];
    unsigned result = 0;
    for (unsigned rest = mask; rest; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      result |= static_cast<unsigned>(fibers[lane].value) << lane;
    }
    for (unsigned rest = mask; rest; rest &= rest - 1) fibers[__builtin_ctz(rest)].value = result;
    b.let_go(me.warp, mask);
  }
  b.switch_to(b.pick());
  return static_cast<unsigned>(me.value);
}

uint64_t shuffle(const char* name, unsigned mask, uint64_t value, unsigned source, Site site) {
  Block& b = this_block(name);
  Fiber& me = *b.current;
  b.arrive(me, name, mask, site);
  if (!(mask >> source & 1)) fail("%s: mask 0x%08x lacks the source %u", name, mask, source);
  ++b.progress;
  me.value = value;
  me.source = source;
  if (b.all_arrived(me)) {
    Fiber* fibers = &b.fibers[me.warp * kWarp];
    uint64_t results[kWarp];
    for (unsigned rest = mask; rest; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      results[lane] = fibers[fibers[lane].source].value;
    }
    for (unsigned rest = mask; rest; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      fibers[lane].value = results[lane];
    }
    b.let_go(me.warp, mask);
  }
  b.switch_to(b.pick());
  return me.value;
}

const void* gather(const void* mine, size_t bytes, Site site) {
  Block& b = this_block("gather");
  Fiber& me = *b.current;
  Warp& warp = b.warps[me.warp];
  if (bytes > kDeposit) fail("gather of %zu bytes, more than %zu", bytes, kDeposit);
  b.arrive(me, "gather", kAllLanes, site);
  ++b.progress;
  unsigned char* all = warp.deposits[warp.gathers % 2];
  const auto* from = static_cast<const volatile unsigned char*>(mine);
  volatile unsigned char* to = all + me.lane * kDeposit;
  size_t i = 0;
  if (reinterpret_cast<uintptr_t>(mine) % 4 == 0)
    for (; i + 4 <= bytes; i += 4)
      *reinterpret_cast<volatile uint32_t*>(to + i) =
          *reinterpret_cast<const volatile uint32_t*>(from + i);
  for (; i < bytes; ++i) to[i] = from[i];
  if (b.all_arrived(me)) {
    ++warp.gathers;
    b.let_go(me.warp, kAllLanes);
  }
  b.switch_to(b.pick());
  return all;
}

// ---- a block's barrier, sleep, guards ---------------------------------------------------------

int sync_threads(const char* name, int predicate, Site site) {
  Block& b = this_block(name);
  Fiber& me = *b.current;
  me.name = name, me.site = site, me.mask = 0;
  if (b.remaining != b.threads)
    fail("%s at %s: %u threads of the block have ended", name, describe(site).c_str(),
         b.threads - b.remaining);
  if (b.arrived == 0) {
    b.barrier_name = name;
    b.barrier_site = site;
  } else if (!same_place(site, b.barrier_site) || std::strcmp(name, b.barrier_name) != 0) {
    fail("%s at %s, but others wait in %s %s", name, describe(site).c_str(), b.barrier_name,
         describe(b.barrier_site).c_str());
  }
  // Two of each: threads may be at the next barrier while others still leave this one.
  const unsigned turn = b.barriers % 2;
  b.predicates[turn] += predicate != 0;
  release(&b.barrier_tokens[turn]);
  b.warps[me.warp].at_barrier |= 1u << me.lane;
  if (++b.arrived == b.threads) {
    b.arrived = 0;
    ++b.barriers;
    b.predicates[1 - turn] = 0;
    for (unsigned w = 0; w < b.warp_count; ++w) {
      b.warps[w].ready = b.warps[w].at_barrier;
      b.warps[w].at_barrier = 0;
    }
    b.progress += std::strcmp(name, "__syncthreads") == 0;  // the others vote: a poll may
    b.begin_anew();
  }
  b.switch_to(b.pick());
  acquire(&b.barrier_tokens[turn]);
  return b.predicates[turn];
}

void sleep(Site site) {
  Block& b = this_block("__nanosleep");
  Fiber& me = *b.current;
  me.slept_at = site;
  b.warps[me.warp].sleeping |= 1u << me.lane;
  b.switch_to(b.pick());
}

void fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

long long clock() { return static_cast<long long>(now() * 1e9); }

void trap(Site site) { fail("__trap at %s", describe(site).c_str()); }

unsigned char* dynamic_shared() { return this_block("dynamic_shared").shared; }

bool barrier_active(int number) {
  if (number < 0 || number >= kGuards) fail("no guard may have the number %d", number);
  if (!__atomic_load_n(&seen[number], __ATOMIC_RELAXED))
    __atomic_store_n(&seen[number], true, __ATOMIC_RELAXED);
  return number != settings.mutant;
}

// ---- for tests --------------------------------------------------------------------------------

int mutant() { return settings.mutant; }
void set_mutant(int number) { settings.mutant = number; }

std::set<int> barriers_seen() {
  std::set<int> numbers;
  for (int i = 0; i < kGuards; ++i)
    if (seen[i]) numbers.insert(i);
  return numbers;
}

void forget_barriers() { std::memset(seen, 0, sizeof seen); }

void set_schedule(const std::string& name) { settings.read_order(name); }

std::string schedule() {
  if (settings.order == Order::kForward) return "forward";
  if (settings.order == Order::kReverse) return "reverse";
  return "random:" + std::to_string(settings.seed);
}

// ---- launches ---------------------------------------------------------------------------------

void run(dim3 grid, dim3 threads, size_t shared_bytes, bool cooperative, Body body,
         const void* arguments) {
  Launch launch{body, arguments, grid, threads, cooperative, {}};
  const unsigned total = grid.x * grid.y * grid.z;
  const unsigned fibers = threads.x * threads.y * threads.z;
  // TSan sees a race of two blocks only if neither is ordered before the other. So it gets an OS
  // thread for every block of any launch, and some blocks that nothing orders; what it does takes
  // time in proportion to the fibers that there are, so not many.
  const bool own_thread = cooperative || __tsan_create_fiber;
  constexpr unsigned kMostContexts = 6000;
  unsigned at_a_time = 1;
  if (cooperative) {
    at_a_time = total;
  } else if (own_thread) {
    at_a_time = std::min(total, std::max(2u, std::min(8u, 1024 / fibers)));
  }
  if (__tsan_create_fiber && at_a_time * fibers > kMostContexts)
    fail("%u fibers at a time are more than ThreadSanitizer can hold", at_a_time * fibers);

  std::vector<unsigned> order(total);
  uint64_t random = settings.seed * 2 + 1;
  for (unsigned i = 0; i < total; ++i) {
    order[i] = settings.order == Order::kReverse ? total - 1 - i : i;
    if (settings.order == Order::kRandom) {
      random = random * 6364136223846793005u + 1442695040888963407u;
      std::swap(order[i], order[(random >> 33) % (i + 1)]);
    }
  }
  for (unsigned first = 0; first < total; first += at_a_time) {
    std::vector<std::unique_ptr<Block>> blocks;
    for (unsigned i = first; i < std::min(total, first + at_a_time); ++i) {
      blocks.push_back(std::make_unique<Block>(launch, order[i], shared_bytes));
      launch.blocks.push_back(blocks.back().get());
    }
    std::vector<std::thread> os_threads;
    for (const std::unique_ptr<Block>& b : blocks) {
      if (!own_thread) {
        b->run();
        continue;
      }
      os_threads.emplace_back(&Block::run, b.get());
      const timespec pause{0, 20'000};
      while (!cooperative && !__atomic_load_n(&b->done, __ATOMIC_ACQUIRE))
        nanosleep(&pause, nullptr);
    }
    for (std::thread& thread : os_threads) thread.join();
    launch.blocks.clear();
  }
}

}  // namespace cuda_cpu
