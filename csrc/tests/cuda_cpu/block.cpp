// Running a block's fibers one after another, choosing who goes on, failing, and whole launches.
#include "block.h"

#include <sched.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <thread>

thread_local constinit uint3 threadIdx{};
thread_local constinit uint3 blockIdx{};
thread_local constinit dim3 blockDim{};
thread_local constinit dim3 gridDim{};

namespace cuda_cpu {

thread_local constinit Block* block = nullptr;

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

namespace {

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

}  // namespace

void fail(const char* format, ...) {
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

Block& this_block(const char* caller) {
  if (block == nullptr) fail("%s called outside of a kernel", caller);
  return *block;
}

// ---- running ----------------------------------------------------------------------------------

namespace {

// Where every fiber starts.
void enter() { block->call_kernel(); }

double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

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
    const Context context = take_context();
    fiber.stack = context.stack;
    fiber.stack_size = stack_bytes();
    fiber.tsan = context.tsan;
    fiber.stack_pointer = first_stack_pointer(context, enter);
  }
  for (unsigned w = 0; w < warp_count; ++w) {
    warps[w].alive = warps[w].ready;
    warps[w].priority = draw();
  }
}

Block::~Block() {
  for (unsigned i = 0; i < threads; ++i) {
    void* stack = const_cast<void*>(fibers[i].stack);
    give_back({static_cast<unsigned char*>(stack), fibers[i].tsan});
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
  release(start_token);
  if (__tsan_get_current_fiber) main.tsan = __tsan_get_current_fiber();
  current = &main;
  begin_anew();
  switch_to(pick());
  acquire(end_token);
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

void Block::call_kernel() {
  if (__sanitizer_finish_switch_fiber) {
    const void* bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
    if (main.stack == nullptr)
      main.stack = bottom, main.stack_size = bytes;  // the first came from it
  }
  acquire(start_token);
  launch.body(launch.arguments);
  leave();
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
  release(end_token);
  switch_to(--remaining == 0 ? &main : pick(), true);
  __builtin_unreachable();
}

// ---- who goes on ------------------------------------------------------------------------------

// After a block barrier the first warp goes on, not the last that came.
void Block::begin_anew() { current_warp = settings.order == Order::kReverse ? warp_count - 1 : 0; }

// Warps that can go on do so until they cannot.
Fiber* Block::pick() {
  for (;;) {
    unsigned w = current_warp;
    bool found = false;
    if (settings.order == Order::kRandom) {
      if (launch.concurrent && draw() % 256 == 0)
        sched_yield();  // blocks too, one ahead of another
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

// ---- launches ---------------------------------------------------------------------------------

void run(dim3 grid, dim3 threads, size_t shared_bytes, bool cooperative, Body body,
         const void* arguments) {
  if (block != nullptr) fail("a kernel launches another");
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
