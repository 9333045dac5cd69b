// A block: its fibers, which of them may run, and who goes on.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda_cpu.h"
#include "fiber.h"

namespace cuda_cpu {

constexpr unsigned kWarp = 32;
constexpr size_t kDeposit = 64;  // bytes of a lane in gather()

enum class Order { kForward, kReverse, kRandom };

struct Settings {
  Order order = Order::kForward;
  uint64_t seed = 0;
  int mutant = -1;
  double timeout = 60;

  Settings();  // from the environment
  void read_order(const std::string& name);
};

extern Settings settings;

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
  Token tokens[kWarp][2];
};

struct Block;

struct Launch {
  Body body;
  const void* arguments;
  dim3 grid, threads;
  bool concurrent;
  std::vector<Block*> blocks;  // those that are there now
};

struct Block {
  Block(Launch& of, unsigned number, size_t shared_bytes);
  ~Block();
  Block(const Block&) = delete;

  void run();  // all of it, on the calling thread
  void call_kernel();
  [[noreturn]] void leave();

  // A collective makes the calling fiber wait, or all that wait for it ready, and then goes on with
  // pick(): the next fiber, taken out of the ready ones.
  void switch_to(Fiber* next, bool for_good = false);
  Fiber* pick();
  void begin_anew();
  void idle();

  std::string report() const;

  uint32_t draw() {
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    return static_cast<uint32_t>(random >> 16);
  }

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
  Token barrier_tokens[2], start_token, end_token;

  // Progress is whatever a loop that only polls does not do.
  uint64_t progress = 0, progress_before = 0;
  unsigned idle_rounds = 0;
  double last_progress, last_idle = 0;
  bool done = false;
};

// Of the calling OS thread.
extern thread_local constinit Block* block;
Block& this_block(const char* caller);

std::string describe(const Site& site);
// Prints the message, who called and what every thread is doing, and aborts.
[[noreturn]] [[gnu::format(printf, 1, 2)]] void fail(const char* format, ...);

}  // namespace cuda_cpu
