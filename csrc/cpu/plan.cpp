// A cost model in nanoseconds. It need not be exact: it has to rank layouts. What it weighs:
// - Waking a team costs some microseconds, and should gain as many.
// - A step's recurrent product takes the time of its multiply-adds or that of bringing the weights
//   from the cache that holds a thread's share of them, whichever is longer.
// - With rows on threads no thread waits, but each brings all recurrent weights every step.
// - With units on threads each brings only its share, and all meet once a step, or as often as the
//   cell needs; a share is a whole number of panels.
// - With layers on threads the time is that of the thread with the most layers, and of the first
//   chunk's way through the others.
// - Products over all steps (the input's part, dx, dW) and the packing of weights spread evenly.
#include "plan.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <stdexcept>

#include "narrow_product.h"

namespace seq2seq_ext {
namespace {

// Round figures of today's cores, per nanosecond.
constexpr double kCyclesPerNs = 3.3;
constexpr double kFmasPerCycle = 2;       // vectors
constexpr double kSecondLevelBytes = 50;  // a cycle
constexpr double kThirdLevelBytes = 25;   // a cycle
constexpr double kGateCycles = 80;        // of a vector of units, all gates
constexpr double kPackingCycles = 10;     // of a vector of weights
constexpr double kStepNs = 40;            // what a step costs beside its arithmetic
constexpr double kBarrierNs = 120;
constexpr double kTeamNs = 6000;
constexpr double kWaves = 12;  // chunks of a layer on its way through a wavefront

int64_t second_level_cache() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  const long size = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (size > 0) return size;
#endif
  return int64_t{1} << 20;
}

int64_t second_level() {
  static const int64_t size = second_level_cache();
  return size;
}

double ceil_div(double a, double b) { return std::ceil(a / b); }

// What weights are stored as decides how fast they are multiplied, and how many bytes are brought.
struct Storage {
  double lanes, madds_per_ns, weight_size;

  Storage(std::optional<WeightType> type, size_t element_size, int vector_bytes)
      : lanes(double(vector_bytes) / double(element_size)),
        madds_per_ns(kCyclesPerNs * kFmasPerCycle * lanes),
        weight_size(type == WeightType::kBf16   ? 2
                    : type == WeightType::kInt8 ? 1
                                                : double(element_size)) {
    // Products of bytes are formed twice as fast, see narrow_product.h.
    if (type == WeightType::kInt8 && int8_kernels(vector_bytes)) madds_per_ns *= 2;
  }
};

class CostModel {
 public:
  explicit CostModel(const Problem& p)
      : p_(p),
        storage_(p.packed, p.element_size, p.vector_bytes),
        lanes_(storage_.lanes),
        madds_per_ns_(storage_.madds_per_ns),
        weight_size_(storage_.weight_size),
        gates_(double(num_gates(p.cell))),
        mean_rows_(p.T > 0 ? double(p.N) / double(p.T) : 0) {}

  double seconds(const Plan& plan) const {
    const double threads = plan.threads;
    if (plan.split == Split::kLayers) {
      const double layer = layer_ns(1, 1, Split::kRows);
      const double most = ceil_div(double(p_.L), threads);
      return 1e-9 * (kTeamNs + layer * (most + (threads - 1) / kWaves));
    }
    const double team = plan.threads > 1 ? kTeamNs + 2 * kBarrierNs * double(p_.L) : 0;
    // Directions run side by side on two groups of threads, one after the other on a single one.
    const double group = p_.D == 2 && plan.threads > 1 ? std::floor(threads / 2) : threads;
    const double rounds = p_.D == 2 && plan.threads == 1 ? 2 : 1;
    return 1e-9 *
           (team + double(p_.L) * rounds *
                       layer_ns(group, threads / double(p_.D == 2 && plan.threads > 1 ? 2 : 1),
                                plan.split));
  }

 private:
  // One direction of one layer: its recurrence on `group` threads, what is spread evenly on `all`.
  double layer_ns(double group, double all, Split split) const {
    const double P = double(p_.P), H = double(p_.H);
    const double I = double(p_.L > 1 ? std::max(p_.I, p_.D * p_.P) : p_.I);
    const double recurrent = gates_ * H * P, input = gates_ * H * I;
    double even = double(p_.N) * input / madds_per_ns_;
    if (p_.backward) even += even + double(p_.N) * recurrent / madds_per_ns_;
    if (!p_.packed) even += (recurrent + input) / lanes_ * kPackingCycles / kCyclesPerNs;

    const double width = unit_share(group, split);
    const double rows = split == Split::kRows ? ceil_div(mean_rows_, group) : mean_rows_;
    const double product = rows * recurrent * width / madds_per_ns_;
    const double bytes = recurrent * width * weight_size_;
    const double level =
        bytes < 0.75 * double(second_level()) ? kSecondLevelBytes : kThirdLevelBytes;
    const double brought = bytes / (level * kCyclesPerNs);
    // A panel once brought serves all rows; with many, bringing the next hides behind them.
    const double step = std::max(product, brought) + 0.15 * std::min(product, brought) +
                        rows * ceil_div(H * width, lanes_) * kGateCycles / kCyclesPerNs + kStepNs;
    const double meetings = split == Split::kUnits && group > 1 ? meetings_per_step() : 0;
    return even / all + double(p_.T) * (step + meetings * kBarrierNs);
  }

  // Of all units, the part that the thread with the most of them has.
  double unit_share(double group, Split split) const {
    if (split != Split::kUnits) return 1;
    const double width = p_.backward || num_gates(p_.cell) == 1 ? 4 * lanes_ : lanes_;
    const double panels = ceil_div(double(p_.H), width);
    return ceil_div(panels, group) / panels;
  }

  double meetings_per_step() const {
    const double phases = (p_.cell == Cell::kGruResetBefore ? 2 : 1) + (p_.P != p_.H ? 1 : 0);
    return p_.backward ? phases + 1 : phases;
  }

  const Problem& p_;
  const Storage storage_;
  const double lanes_, madds_per_ns_, weight_size_, gates_, mean_rows_;
};

struct Forced {
  int threads = 0;  // 0: as many as the model wants
  std::optional<Split> split;
};

Forced parse(const std::string& text) {
  Forced forced;
  const auto fail = [&] {
    throw std::invalid_argument("plan '" + text +
                                "': expected threads=N, split=rows|units|layers, or both with a "
                                "comma between them");
  };
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string item = text.substr(begin, end - begin);
    const size_t equals = item.find('=');
    if (equals == std::string::npos) fail();
    const std::string key = item.substr(0, equals), value = item.substr(equals + 1);
    if (key == "threads") {
      if (value.empty() || value.size() > 4 ||
          value.find_first_not_of("0123456789") != std::string::npos || std::stoi(value) < 1)
        fail();
      forced.threads = std::stoi(value);
    } else if (key == "split") {
      for (const Split split : {Split::kRows, Split::kUnits, Split::kLayers})
        if (value == split_name(split)) forced.split = split;
      if (!forced.split) fail();
    } else {
      fail();
    }
    begin = end + 1;
  }
  return forced;
}

// Null until the environment was read or a plan was set. Readers keep what they hold.
std::shared_ptr<const Forced> forced_plan;
std::atomic<bool> forced_known{false}, forced_any{false};
std::mutex forced_mutex;

void install(const std::string& text) {
  auto forced = std::make_shared<const Forced>(parse(text));
  forced_any.store(!text.empty(), std::memory_order_relaxed);
  forced_plan = std::move(forced);
  forced_known.store(true, std::memory_order_release);
}

Forced forced() {
  if (forced_known.load(std::memory_order_acquire) && !forced_any.load(std::memory_order_relaxed))
    return {};
  const std::lock_guard<std::mutex> lock(forced_mutex);
  if (!forced_known.load(std::memory_order_relaxed)) {
    const char* text = std::getenv("SEQ2SEQ_EXT_PLAN");
    try {
      install(text ? text : "");
    } catch (const std::invalid_argument& error) {
      throw std::runtime_error(std::string("SEQ2SEQ_EXT_PLAN: ") + error.what());
    }
  }
  return *forced_plan;
}

}  // namespace

const char* split_name(Split split) {
  return split == Split::kRows ? "rows" : split == Split::kUnits ? "units" : "layers";
}

void set_plan(const std::string& text) {
  const std::lock_guard<std::mutex> lock(forced_mutex);
  install(text);
}

std::vector<Plan> possible_plans(const Problem& p, int max_threads) {
  const CostModel model(p);
  std::vector<Plan> plans;
  const auto consider = [&](int threads, Split split) {
    Plan plan{threads, split, 0};
    plan.seconds = model.seconds(plan);
    plans.push_back(plan);
  };
  consider(1, Split::kRows);
  // Powers of two, all threads that there are, and what is forced.
  std::vector<int> counts{max_threads, std::min(forced().threads, max_threads)};
  for (int threads = 2; threads < max_threads; threads *= 2) counts.push_back(threads);
  std::sort(counts.begin(), counts.end());
  counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
  for (const int threads : counts) {
    if (threads < 2) continue;
    consider(threads, Split::kRows);
    if (p.rows_only) continue;
    consider(threads, Split::kUnits);
    if (!p.backward && p.D == 1 && p.L >= threads) consider(threads, Split::kLayers);
  }
  return plans;
}

Plan make_plan(const Problem& problem, int max_threads) {
  const Forced force = forced();
  const Plan alone{1, Split::kRows, CostModel(problem).seconds({1, Split::kRows, 0})};
  if (max_threads <= 1 || (force.threads == 0 && !force.split && alone.seconds < 1e-9 * kTeamNs))
    return alone;
  if (force.threads > 0) max_threads = std::min(max_threads, force.threads);
  const std::vector<Plan> plans = possible_plans(problem, max_threads);
  const Plan* best = nullptr;
  // Where nothing is as was forced, what comes nearest is.
  for (const bool same_split : {true, false}) {
    for (const Plan& plan : plans) {
      if (force.threads > 0 && plan.threads != max_threads) continue;
      if (same_split && force.split && plan.threads > 1 && plan.split != *force.split) continue;
      if (best == nullptr || plan.seconds < best->seconds) best = &plan;
    }
    if (best) break;
  }
  return *best;
}

// Owners of shares bring all weights every step, each from the cache that holds them; helpers bring
// theirs alone, whole panels of each matrix, but all meet twice for a product.
Plan make_plan(const DecodingProblem& p, int max_threads) {
  const Problem& rows = p.rows;
  const Plan apart = make_plan(rows, static_cast<int>(std::min<int64_t>(max_threads, p.shares)));
  const Forced force = forced();
  if (force.threads > 0) max_threads = std::min(max_threads, force.threads);
  if (max_threads < 2 || force.split.value_or(Split::kUnits) != Split::kUnits) return apart;
  const Storage storage(rows.packed, rows.element_size, rows.vector_bytes);
  const double lanes = storage.lanes, H = double(rows.H);
  const double panels = ceil_div(double(num_gates(rows.cell)) * H, 4 * lanes);
  const double gates = double(rows.L) * ceil_div(H, lanes) * kGateCycles / kCyclesPerNs;
  const auto bring_ns = [&](double weights) {
    const double bytes = weights * storage.weight_size;
    const bool near = bytes < 0.75 * double(second_level());
    return bytes / ((near ? kSecondLevelBytes : kThirdLevelBytes) * kCyclesPerNs);
  };
  // With more rows, what is done between the products counts too, and helpers wait for that.
  if (!force.split && double(rows.B) * p.weights / storage.madds_per_ns > bring_ns(p.weights) / 2)
    return apart;
  const auto step_ns = [&](double owners, double team) {
    const double own = ceil_div(double(rows.B), owners);
    const double weights = p.weights * ceil_div(panels, team) / panels;
    return std::max(own * weights / storage.madds_per_ns, bring_ns(weights)) + own * gates +
           2 * kBarrierNs * std::log2(team) * p.products;
  };
  const auto call_ns = [&](double step, int threads) {
    return double(rows.T) * step + (threads > 1 ? kTeamNs : 0);
  };
  const double alone = call_ns(step_ns(apart.threads, 1), apart.threads);
  Plan best{0, Split::kUnits, 0};
  for (int threads = 2; threads <= max_threads; threads = std::min(2 * threads, max_threads)) {
    const double ns = call_ns(step_ns(1, threads), threads);
    if (best.threads == 0 || 1e-9 * ns < best.seconds || threads == force.threads)
      best = {threads, Split::kUnits, 1e-9 * ns};
    if (threads == max_threads) break;
  }
  return force.split || best.seconds < 0.8e-9 * alone ? best : apart;
}

Plan make_plan(const LinearProblem& p, int max_threads) {
  const Forced force = forced();
  if (force.threads > 0) max_threads = std::min(max_threads, force.threads);
  const Storage storage(p.packed, p.element_size, p.vector_bytes);
  const double weights = double(p.K) * double(p.N);
  const double ns = std::max(double(p.rows) * weights / storage.madds_per_ns,
                             weights * storage.weight_size / (kThirdLevelBytes * kCyclesPerNs));
  const double shared = ns / max_threads + kTeamNs;
  if (max_threads <= 1 || (force.threads == 0 && ns < shared)) return {1, Split::kRows, 1e-9 * ns};
  return {max_threads, Split::kRows, 1e-9 * shared};
}

}  // namespace seq2seq_ext
