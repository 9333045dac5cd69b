// Threads that run one kernel call together. Whoever owns the threads (torch's pool, or a test's
// std::threads) makes a Member for each of them; kernels only ask for rank and size, and meet.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

namespace seq2seq_ext {

// A barrier that spins for about as long as a step takes and then gives the core away, so that it
// costs a fraction of a microsecond when every thread has a core and cannot starve when one has
// not.
class Barrier {
 public:
  void meet(int size) {
    const uint32_t round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
      if (spins < kSpins) {
        pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  static constexpr int kSpins = 4096;

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  // Apart, so that arrivals do not disturb the line that waiters read.
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> round_{0};
};

// The barriers of a call: one for all threads, and one for each of two groups of them.
struct Barriers {
  Barrier all;
  Barrier group[2];
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
    if (size > 1) barrier->meet(size);
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
