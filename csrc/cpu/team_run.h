// Runs one kernel call on torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>

#include "kernels.h"
#include "scratch.h"
#include "team.h"

namespace seq2seq_ext {

// Runs `kernel(call, member, workspace)` on plan.threads of torch's threads at once. Members wait
// for each other, so every one must have a thread of its own; where torch gives fewer (inside
// another parallel region, or under a thread limit), the first alone does all of it.
template <typename Call, typename Size, typename Kernel>
void run_team(Call& call, const Size& workspace_size, const Kernel& kernel) {
  const int threads = call.plan.threads;
  size_t bytes = workspace_size(call);
  const Plan planned = call.plan;
  if (threads > 1) {
    call.plan = Plan{};
    bytes = std::max(bytes, workspace_size(call));
    call.plan = planned;
  }
  Scratch::Frame frame;
  void* memory = frame.take(bytes);
  Barriers barriers;
  if (threads == 1) return kernel(call, Member(0, 1, &barriers), memory);
  std::atomic<int> members{0}, covered{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    members.fetch_add(1, std::memory_order_relaxed);
    covered.fetch_add(static_cast<int>(end - begin), std::memory_order_acq_rel);
    while (covered.load(std::memory_order_acquire) < threads) std::this_thread::yield();
    if (members.load(std::memory_order_relaxed) == threads) {
      kernel(call, Member(static_cast<int>(begin), threads, &barriers), memory);
    } else if (begin == 0) {
      Call alone = call;
      alone.plan = Plan{};
      kernel(alone, Member(0, 1, &barriers), memory);
    }
  });
}

}  // namespace seq2seq_ext
