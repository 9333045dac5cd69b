// Runs one kernel call on torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>

#include "contention.h"
#include "denormals.h"
#include "kernels.h"
#include "scratch.h"
#include "team.h"

namespace seq2seq_ext {

// Who takes part in a call. Threads of a pool come when the system lets them. The first to come
// leads: it waits for the others, but no longer than the call is worth, and then closes the team;
// who comes later finds nothing to do. The size of the team is the number of threads wanted or a
// half, a quarter, ... of it, so that the memory it may need is known beforehand.
class Muster {
 public:
  explicit Muster(const Plan& plan)
      : threads_(plan.threads),
        grace_ns_(static_cast<int64_t>(1e9 * std::clamp(plan.seconds / 8, 300e-6, 3e-3))) {}

  // Makes the calling thread, which torch gave the indices [begin, end) of all threads, a member.
  // Returns the size of the team, or 0 if this thread is not in it.
  int join(int64_t begin, int64_t end, Patience& patience, int& rank) {
    const uint32_t ticket = tickets_.fetch_add(1, std::memory_order_acq_rel);
    covered_.add(static_cast<uint32_t>(end - begin));
    if (ticket & kClosed) return 0;
    if (ticket == 0) close();
    while (size_.value() == 0) patience.learn(size_.wait_while(0, patience.spins()));
    const int size = static_cast<int>(size_.value());
    // All there: the same thread gets the same share as in other calls, which its cache may hold.
    rank = size == threads_ ? static_cast<int>(begin) : static_cast<int>(ticket);
    return rank < size ? size : 0;
  }

  // For the leader: returns once torch's threads have all been here, however late. Sleeping makes
  // room for those that have no core; the end of torch's parallel region would spin.
  void await_late() {
    Patience none;
    none.learn(1);
    covered_.await(static_cast<uint32_t>(threads_), none);
  }

  bool complete() const { return static_cast<int>(size_.value()) == threads_; }

 private:
  static constexpr uint32_t kClosed = 1u << 31;

  void close() {
    covered_.await_for(static_cast<uint32_t>(threads_), Patience::kSpins, grace_ns_);
    const uint32_t come = tickets_.fetch_or(kClosed, std::memory_order_acq_rel);
    int size = threads_;
    while (size > static_cast<int>(come)) size = size / 2;
    size_.set(static_cast<uint32_t>(size));
  }

  const int threads_;
  const int64_t grace_ns_;  // a thread that sleeps takes 50 microseconds to come, and more
  std::atomic<uint32_t> tickets_{0};
  Signal covered_;  // how many of the indices have come
  Signal size_;     // of the team, once it is closed
};

// Runs `kernel(call, member, workspace)` on up to plan.threads of torch's threads at once. Members
// wait for each other, so every one must have a thread of its own; where torch gives fewer (inside
// another parallel region, or under a thread limit), or some do not come in time, fewer do all of
// it.
template <typename Call, typename Size, typename Kernel>
void run_team(Call& call, const Size& workspace_size, const Kernel& kernel) {
  const int threads = advised_threads(call.plan.threads, call.plan.seconds);
  call.plan.threads = threads;
  size_t bytes = 0;
  for (Call smaller = call; smaller.plan.threads > 0; smaller.plan.threads /= 2)
    bytes = std::max(bytes, workspace_size(smaller));
  Scratch::Frame frame;
  void* memory = frame.take(bytes);
  Barriers barriers;
  if (threads == 1) {
    const FlushDenormals flush;
    return kernel(call, Member(0, 1, &barriers), memory);
  }
  const auto start = std::chrono::steady_clock::now();
  Muster muster(call.plan);
  Cores cores;
  std::atomic<bool> preempted{false};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    int rank;
    const int size = muster.join(begin, end, barriers.patience, rank);
    if (size == 0) return;
    cores.take_own();
    {
      const FlushDenormals flush;
      Call mine = call;
      mine.plan.threads = size;
      kernel(mine, Member(rank, size, &barriers), memory);
    }
    if (barriers.patience.slept() > 0 && was_preempted())
      preempted.store(true, std::memory_order_relaxed);
    if (rank == 0) muster.await_late();
  });
  // An interruption here and there is no reason for caution; a quarter of the time is.
  const std::chrono::nanoseconds elapsed = std::chrono::steady_clock::now() - start;
  const bool disturbed =
      preempted.load(std::memory_order_relaxed) && 4 * barriers.patience.slept() > elapsed.count();
  report_team(disturbed || !muster.complete());
}

}  // namespace seq2seq_ext
