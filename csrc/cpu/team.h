// Threads that run one kernel call together. Whoever owns the threads (torch's pool, or a test's
// std::threads) makes a Member for each of them; kernels only ask for rank and size, and meet.
//
// Waiting. A thread that waits spins for some microseconds and then sleeps. Spinning is what makes
// a barrier cost a fraction of a microsecond while every thread has a core. Sleeping is what saves
// the call when one has not: the core that goes idle is where the system then runs the thread that
// was waited for, which it would otherwise leave queueing behind another process for milliseconds.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>
#include <ctime>
#include <thread>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace seq2seq_ext {

// How long the threads of a call spin before they sleep. Whoever spun in vain makes all of them
// less patient for the rest of the call: two threads on one core would otherwise spin out their
// patience at every step, each waiting for the other to get the core.
class Patience {
 public:
  static constexpr int kSpins = 1024;  // 10 to 40 microseconds

  int spins() const { return spins_.load(std::memory_order_relaxed); }
  // Nanoseconds that all threads together have slept.
  int64_t slept() const { return slept_.load(std::memory_order_relaxed); }

  // After a wait that took so many nanoseconds of sleep, 0 if spinning was enough.
  void learn(int64_t slept) {
    const int spins = this->spins();
    if (slept > 0) {
      slept_.fetch_add(slept, std::memory_order_relaxed);
      spins_.store(spins / 8 > kFewest ? spins / 8 : kFewest, std::memory_order_relaxed);
    } else if (spins < kSpins) {
      spins_.store(2 * spins, std::memory_order_relaxed);
    }
  }

 private:
  static constexpr int kFewest = 16;
  std::atomic<int> spins_{kSpins};
  std::atomic<int64_t> slept_{0};
};

// A counter that threads can wait for.
class Signal {
 public:
  uint32_t value() const { return value_.load(std::memory_order_acquire); }

  void set(uint32_t value) {
    value_.exchange(value, std::memory_order_seq_cst);
    wake();
  }
  void add(uint32_t amount) {
    value_.fetch_add(amount, std::memory_order_seq_cst);
    wake();
  }

  // Returns once the value is no longer `old`: 0 if that was so within `spins` looks, else the
  // nanoseconds that this thread slept.
  int64_t wait_while(uint32_t old, int spins) {
    for (int i = 0; i < spins; ++i) {
      if (value() != old) return 0;
      pause();
    }
    const auto start = std::chrono::steady_clock::now();
    // The order is what keeps a wake-up from being lost: the sleeper counts itself before the
    // system compares the value, the waker changes the value before it looks for sleepers.
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    while (value_.load(std::memory_order_seq_cst) == old) sleep(old);
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
    const std::chrono::nanoseconds slept = std::chrono::steady_clock::now() - start;
    return std::max<int64_t>(slept.count(), 1);
  }

  // Returns once the value, which only grows, is at least `wanted`.
  void await(uint32_t wanted, Patience& patience) {
    for (uint32_t seen = value(); seen < wanted; seen = value())
      patience.learn(wait_while(seen, patience.spins()));
  }

  // The same, but at most about `spins` looks and then so many nanoseconds.
  void await_for(uint32_t wanted, int spins, int64_t nanoseconds) {
    for (int i = 0; i < spins; ++i) {
      if (value() >= wanted) return;
      pause();
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::nanoseconds(nanoseconds);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    for (uint32_t seen; (seen = value_.load(std::memory_order_seq_cst)) < wanted;) {
      const auto left = end - std::chrono::steady_clock::now();
      if (left <= left.zero()) break;
      sleep(seen, std::chrono::duration_cast<std::chrono::nanoseconds>(left).count());
    }
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
  }

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

 private:
#if defined(__linux__)
  static_assert(sizeof(std::atomic<uint32_t>) == 4, "a futex is one 32-bit word");
  void sleep(uint32_t old, int64_t nanoseconds = -1) {
    const timespec limit{static_cast<time_t>(nanoseconds / 1'000'000'000),
                         static_cast<long>(nanoseconds % 1'000'000'000)};
    syscall(SYS_futex, &value_, FUTEX_WAIT_PRIVATE, old, nanoseconds < 0 ? nullptr : &limit);
  }
  void wake() {
    if (sleepers_.load(std::memory_order_seq_cst) > 0)
      syscall(SYS_futex, &value_, FUTEX_WAKE_PRIVATE, INT_MAX);
  }
#else
  void sleep(uint32_t, int64_t = -1) { std::this_thread::yield(); }
  void wake() {}
#endif

  // Apart, so that what is written often does not disturb the line that waiters read.
  alignas(64) std::atomic<uint32_t> value_{0};
  alignas(64) std::atomic<int> sleepers_{0};
};

class Barrier {
 public:
  void meet(int size, Patience& patience) {
    const uint32_t round = round_.value();
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.set(round + 1);
    } else {
      patience.learn(round_.wait_while(round, patience.spins()));
    }
  }

 private:
  alignas(64) std::atomic<int> arrived_{0};
  Signal round_;
};

// The barriers of a call: one for all threads, and one for each of two groups of them.
struct Barriers {
  Barrier all;
  Barrier group[2];
  Patience patience;
};

struct Member {
  int rank = 0;
  int size = 1;
  Barriers* barriers = nullptr;
  Barrier* barrier = nullptr;

  Member() = default;
  Member(int rank, int size, Barriers* barriers)
      : rank(rank), size(size), barriers(barriers), barrier(&barriers->all) {}

  void sync() const {
    if (size > 1) barrier->meet(size, barriers->patience);
  }

  // The share [begin, end) of `count` equal pieces that falls to this member.
  struct Range {
    int64_t begin, end;
  };
  Range share(int64_t count) const { return {count * rank / size, count * (rank + 1) / size}; }

  // Two groups that go on side by side, the first the larger. Only for a team of at least two.
  Member group(int& index) const {
    const int first = (size + 1) / 2;
    Member member = *this;
    index = rank < first ? 0 : 1;
    member.rank = index == 0 ? rank : rank - first;
    member.size = index == 0 ? first : size - first;
    member.barrier = &barriers->group[index];
    return member;
  }
};

}  // namespace seq2seq_ext
