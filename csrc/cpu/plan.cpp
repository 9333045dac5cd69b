// A cost model in multiply-adds. What it weighs:
// - waking a team costs some microseconds, about as much as 10^5 multiply-adds on one core;
// - with rows on threads, no thread waits, but every one of them sweeps all recurrent weights each
// step,
//   so they should fit its second-level cache, and each should have rows enough to fill a tile;
// - with units on threads, each keeps its share of the weights, and all meet once a step: a barrier
//   costs about as much as 5000 multiply-adds, which the step must be worth.

#include "plan.h"

#include <unistd.h>

#include <algorithm>

namespace seq2seq_ext {
namespace {

constexpr double kTeamCost = 1e5;
constexpr double kBarrierCost = 5e3;
constexpr int64_t kRowsPerTile = 6;

int64_t second_level_cache() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  const long size = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (size > 0) return size;
#endif
  return int64_t{1} << 20;
}

}  // namespace

Plan make_plan(const Problem& p, int max_threads) {
  static const int64_t cache = second_level_cache();
  const double per_row = double(num_gates(p.cell)) * double(p.H) * double(p.P);
  const double input =
      double(num_gates(p.cell)) * double(p.H) * double(p.L > 1 ? std::max(p.I, p.D * p.P) : p.I);
  const double total = double(p.N) * double(p.L * p.D) * (per_row + input);
  Plan plan;
  if (max_threads <= 1 || total < kTeamCost) return plan;
  plan.threads = max_threads;
  // Threads that share one direction.
  const int group = p.D == 2 ? std::max(1, max_threads / 2) : max_threads;
  if (group == 1) return plan;
  // Plain panels of four vectors are what backward deals out, and forward needs no finer ones.
  const int64_t panels = p.H * int64_t(p.element_size) / (4 * p.vector_bytes);
  const double mean_rows = p.T > 0 ? double(p.N) / double(p.T) : 0;
  const bool enough_rows = p.B >= group * kRowsPerTile;
  const bool weights_fit = per_row * double(p.element_size) < 0.75 * double(cache);
  const bool can_split = panels >= group && mean_rows * per_row / group > kBarrierCost;
  plan.split_units = can_split && !(enough_rows && weights_fit);
  // Neither helps: tiny steps of few rows.
  if (!plan.split_units && p.B < group) {
    plan.threads = p.D == 2 ? 2 : 1;
  }
  return plan;
}

}  // namespace seq2seq_ext
