// The persistent CUDA kernels, executed on the CPU: every type, cell and mask, sizes around the
// edges of tiles and pieces, several blocks, on several schedules of the threads.
//
// Forward is compared with a scalar implementation below, in double. Backward in double is compared
// with differences of that along a random direction through all inputs at once; backward in the
// other types with backward in double. All arrays have exactly the size that the contract states
// and start as NaN, so that values never written show, and sanitizers see every overrun.
//
//   test_cuda_rnn            all cases
//   test_cuda_rnn few        some of them, for a build that is slow
//   test_cuda_rnn mutants    takes out one barrier at a time, and fails where nobody notices
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "cuda/kernels.h"
#include "cuda_bf16.h"
#include "cuda_cpu.h"
#include "cuda_fp16.h"
#include "mutants.h"
#include "random.h"

using namespace seq2seq_ext;
using namespace seq2seq_ext::cuda;

namespace {

enum class Mode { kDense, kLengths, kPacked, kResets };

struct Case {
  Cell cell;
  int64_t T, B, H, D;
  Mode mode;
  bool states;  // h_0 and c_0 are given
  Forced layout;
};

const char* name(Cell cell) {
  static constexpr const char* kNames[] = {"lstm", "gru", "gru_reset_before", "rnn_tanh",
                                           "rnn_relu"};
  return kNames[static_cast<int>(cell)];
}

using Values = std::vector<double>;

// ---- the stored types
// -----------------------------------------------------------------------------

template <typename T>
T stored(double x) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(static_cast<float>(x));
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(static_cast<float>(x));
  } else {
    return static_cast<T>(x);
  }
}

template <typename T>
double value(T x) {
  if constexpr (std::is_same_v<T, __half>) {
    return __half2float(x);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __bfloat162float(x);
  } else {
    return x;
  }
}

template <typename T>
std::vector<T> stored(const Values& v) {
  std::vector<T> out;
  for (const double x : v) out.push_back(stored<T>(x));
  return out;
}

template <typename T>
std::vector<T> unwritten(int64_t n) {
  return std::vector<T>(n, stored<T>(std::nan("")));
}

template <typename T>
Values values(const std::vector<T>& v) {
  Values out;
  for (const T x : v) out.push_back(value(x));
  return out;
}

// ---- one layer
// --------------------------------------------------------------------------------------

struct Setting {
  std::vector<int64_t> length;
  std::vector<int64_t> first;  // (T) row of step (t, 0)
  int64_t rows;
  std::vector<uint8_t> reset;  // (rows)

  int64_t row(int64_t t, int64_t b) const { return first[t] + b; }
};

struct Inputs {
  Values x;                  // (rows, D, G*H)
  Values w_hh, b_ih, b_hh;   // (D, G*H, H), (D, G*H)
  Values h_0, c_0;           // (D, B, H) or empty
  Values d_y, d_h_n, d_c_n;  // seeds
};

Values random_values(Random& random, int64_t n, double scale) {
  Values v(n);
  for (double& x : v) x = (2 * random.uniform() - 1) * scale;
  return v;
}

Setting make_setting(const Case& c, Random& random) {
  Setting s;
  s.length.assign(c.B, c.T);
  if (c.mode != Mode::kDense)
    for (int64_t& n : s.length) n = static_cast<int64_t>(random.next() % (c.T + 1));
  if (c.mode == Mode::kPacked) {
    for (int64_t& n : s.length) n = std::max<int64_t>(n, 1);
    s.length[0] = c.T;
    std::sort(s.length.rbegin(), s.length.rend());
  }
  s.rows = 0;
  for (int64_t t = 0; t < c.T; ++t) {
    s.first.push_back(s.rows);
    for (int64_t b = 0; b < c.B; ++b) s.rows += c.mode != Mode::kPacked || t < s.length[b];
  }
  if (c.mode == Mode::kResets || c.mode == Mode::kPacked) {
    s.reset.resize(s.rows);
    for (uint8_t& r : s.reset) r = random.next() % 3 == 0;
  }
  return s;
}

Inputs make_inputs(const Case& c, const Setting& s, Random& random) {
  const int64_t G = num_gates(c.cell);
  const double scale = 1 / std::sqrt(static_cast<double>(c.H));
  Inputs in;
  in.x = random_values(random, s.rows * c.D * G * c.H, 1);
  in.w_hh = random_values(random, c.D * G * c.H * c.H, scale);
  in.b_ih = random_values(random, c.D * G * c.H, scale);
  in.b_hh = random_values(random, c.D * G * c.H, scale);
  const int64_t states = c.D * c.B * c.H;
  if (c.states) in.h_0 = random_values(random, states, 1);
  if (c.states && c.cell == Cell::kLstm) in.c_0 = random_values(random, states, 1);
  in.d_y = random_values(random, s.rows * c.D * c.H, 1);
  in.d_h_n = random_values(random, states, 1);
  if (c.cell == Cell::kLstm) in.d_c_n = random_values(random, states, 1);
  return in;
}

// Rounds every input to T, so that the scalar implementation sees what the kernels see.
template <typename T>
Inputs rounded(Inputs in) {
  for (Values* v :
       {&in.x, &in.w_hh, &in.b_ih, &in.b_hh, &in.h_0, &in.c_0, &in.d_y, &in.d_h_n, &in.d_c_n})
    *v = values(stored<T>(*v));
  return in;
}

struct Outputs {
  Values y, h_n, c_n;
};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

Outputs scalar_forward(const Case& c, const Setting& s, const Inputs& in) {
  const int64_t G = num_gates(c.cell), H = c.H;
  Outputs out{Values(s.rows * c.D * H, 0), Values(c.D * c.B * H, 0),
              Values(c.cell == Cell::kLstm ? c.D * c.B * H : 0, 0)};
  for (int64_t d = 0; d < c.D; ++d) {
    for (int64_t b = 0; b < c.B; ++b) {
      Values h(H, 0), state(H, 0);
      for (int64_t u = 0; u < H; ++u) {
        if (!in.h_0.empty()) h[u] = in.h_0[(d * c.B + b) * H + u];
        if (!in.c_0.empty()) state[u] = in.c_0[(d * c.B + b) * H + u];
      }
      for (int64_t i = 0; i < s.length[b]; ++i) {
        const int64_t row = s.row(d == 0 ? i : s.length[b] - 1 - i, b);
        if (!s.reset.empty() && s.reset[row]) {
          h.assign(H, 0);
          state.assign(H, 0);
        }
        Values next(H);
        for (int64_t u = 0; u < H; ++u) {
          double x[4], sum[4];
          for (int64_t g = 0; g < G; ++g) {
            x[g] = in.x[((row * c.D + d) * G + g) * H + u] + in.b_ih[(d * G + g) * H + u];
            sum[g] = in.b_hh[(d * G + g) * H + u];
            for (int64_t k = 0; k < H; ++k) sum[g] += in.w_hh[((d * G + g) * H + u) * H + k] * h[k];
          }
          switch (c.cell) {
            case Cell::kLstm:
              state[u] = sigmoid(x[1] + sum[1]) * state[u] +
                         sigmoid(x[0] + sum[0]) * std::tanh(x[2] + sum[2]);
              next[u] = sigmoid(x[3] + sum[3]) * std::tanh(state[u]);
              break;
            case Cell::kGru: {
              const double r = sigmoid(x[0] + sum[0]), z = sigmoid(x[1] + sum[1]);
              next[u] = (1 - z) * std::tanh(x[2] + r * sum[2]) + z * h[u];
              break;
            }
            case Cell::kRnnTanh:
              next[u] = std::tanh(x[0] + sum[0]);
              break;
            default:
              next[u] = std::max(0., x[0] + sum[0]);
          }
        }
        h = next;
        for (int64_t u = 0; u < H; ++u) out.y[(row * c.D + d) * H + u] = h[u];
      }
      for (int64_t u = 0; u < H; ++u) {
        out.h_n[(d * c.B + b) * H + u] = h[u];
        if (!out.c_n.empty()) out.c_n[(d * c.B + b) * H + u] = state[u];
      }
    }
  }
  return out;
}

// ---- the kernels
// ------------------------------------------------------------------------------------

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::printf("CUDA error: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

struct Gradients {
  Values d_x, d_h_0, d_c_0, d_w_hh, d_b_hh;
};

template <typename T>
constexpr Number kNumber = std::is_same_v<T, __half>          ? Number::kHalf
                           : std::is_same_v<T, __nv_bfloat16> ? Number::kBfloat16
                           : std::is_same_v<T, float>         ? Number::kFloat
                                                              : Number::kDouble;

// Runs forward and backward of a layer.
template <typename T>
class Run {
 public:
  Run(const Case& c, const Setting& s, const Inputs& in, bool tf32)
      : c_(c), s_(s), G_(num_gates(c.cell)), tf32_(tf32) {
    w_hh_ = stored<T>(in.w_hh), b_ih_ = stored<T>(in.b_ih), b_hh_ = stored<T>(in.b_hh);
    x_ = stored<T>(in.x), h_0_ = stored<T>(in.h_0), c_0_ = stored<T>(in.c_0);
    d_y_ = stored<T>(in.d_y), d_h_n_ = stored<T>(in.d_h_n), d_c_n_ = stored<T>(in.d_c_n);
    reset_ = s.reset;
    y_ = unwritten<T>(s.rows * c.D * c.H);
    h_n_ = unwritten<T>(c.D * c.B * c.H);
    if (c.cell == Cell::kLstm) c_n_ = h_n_;
    reserve_ = unwritten<T>(c.D * s.rows * reserve_slots(c.cell) * padded_units(c.H));
    layer_.cell = c.cell;
    layer_.steps = {c.T, c.B, s.rows, nullptr, nullptr, reset_.empty() ? nullptr : reset_.data()};
    if (c.mode != Mode::kDense) {
      length_.resize(c.B);
      check(upload_lengths(s.length.data(), c.B, length_.data(), nullptr));
      layer_.steps.length = length_.data();
    }
    if (c.mode == Mode::kPacked) {
      offset_.resize(c.T);
      check(packed_offsets(length_.data(), c.B, c.T, offset_.data(), nullptr));
      layer_.steps.offset = offset_.data();
    }
    layer_.H = layer_.P = c.H, layer_.D = c.D;
    for (int64_t d = 0; d < c.D; ++d) {
      layer_.w_hh[d] = w_hh_.data() + d * G_ * c.H * c.H;
      layer_.b_ih[d] = b_ih_.data() + d * G_ * c.H;
      layer_.b_hh[d] = b_hh_.data() + d * G_ * c.H;
    }
    layer_.h_0 = h_0_.empty() ? nullptr : h_0_.data();
    layer_.c_0 = c_0_.empty() ? nullptr : c_0_.data();
  }

  Outputs forward() {
    Forward<T> f{};
    static_cast<Layer<T>&>(f) = layer_;
    f.x = x_.data(), f.y = y_.data(), f.h_n = h_n_.data(), f.reserve = reserve_.data();
    f.c_n = c_n_.empty() ? nullptr : c_n_.data();
    std::vector<T> memory, start;
    f.h = exchange(memory, y_, 1);
    if (!h_0_.empty()) {
      start = unwritten<T>(c_.D * c_.B * padded_to_pieces<T>(c_.H));
      check(pad_states(h_0_.data(), c_.D * c_.B, c_.H, start.data(), nullptr));
      f.h_start = start.data();
    }
    const Plan plan = plan_of(false);
    Layout layout = plan.layout;
    for (int i = 0; i < plan.launches; ++i, layout.first += layout.rows())
      check(persistent_forward(f, layout, plan.tensor, nullptr));
    return {values(y_), values(h_n_), values(c_n_)};
  }

  void adopt_outputs(const Values& y) { y_ = stored<T>(y); }

  Gradients backward() {
    const int64_t states = c_.D * c_.B * c_.H, width = c_.D * G_ * c_.H;
    std::vector<T> d_h_0 = unwritten<T>(states), d_c_0, d_h = unwritten<T>(s_.rows * width), d_x;
    if (c_.cell == Cell::kLstm) d_c_0 = d_h_0;
    if (c_.cell == Cell::kGru) d_x = d_h;
    Backward<T> f{};
    static_cast<Layer<T>&>(f) = layer_;
    f.y = y_.data(), f.reserve = reserve_.data(), f.d_y = d_y_.data(), f.d_h_n = d_h_n_.data();
    f.d_c_n = d_c_n_.empty() ? nullptr : d_c_n_.data();
    std::vector<T> memory;
    f.d_sum = exchange(memory, d_h, G_);
    f.d_h = memory.empty() ? nullptr : d_h.data();
    f.d_x = d_x.empty() ? nullptr : d_x.data();
    f.d_h_0 = d_h_0.data(), f.d_c_0 = d_c_0.empty() ? nullptr : d_c_0.data();
    const Plan plan = plan_of(true);
    Layout layout = plan.layout;
    for (int i = 0; i < plan.launches; ++i, layout.first += layout.rows())
      check(persistent_backward(f, layout, plan.tensor, nullptr));

    // What the glue does afterwards: products over all steps, and sums.
    std::vector<T> entering = unwritten<T>(c_.D * s_.rows * c_.H);
    check(entering_states<T>(f, entering.data(), nullptr, nullptr));
    std::vector<T> d_b = unwritten<T>(width), again = d_b;
    check(sum_rows(d_h.data(), s_.rows, width, width, d_b.data(), again.data(), nullptr));
    for (int64_t i = 0; i < width; ++i)
      if (std::memcmp(&d_b[i], &again[i], sizeof(T)) != 0) std::exit(1);
    Gradients out;
    out.d_w_hh.assign(c_.D * G_ * c_.H * c_.H, 0);
    for (int64_t d = 0; d < c_.D; ++d)
      for (int64_t r = 0; r < s_.rows; ++r)
        for (int64_t i = 0; i < G_ * c_.H; ++i)
          for (int64_t k = 0; k < c_.H; ++k)
            out.d_w_hh[(d * G_ * c_.H + i) * c_.H + k] +=
                value(d_h[(r * c_.D + d) * G_ * c_.H + i]) *
                value(entering[(d * s_.rows + r) * c_.H + k]);
    out.d_x = values(d_x.empty() ? d_h : d_x);
    out.d_h_0 = values(d_h_0), out.d_c_0 = values(d_c_0), out.d_b_hh = values(d_b);
    return out;
  }

 private:
  Plan plan_of(bool backward) const {
    const Problem problem{c_.cell, kNumber<T>, tf32_, backward, c_.T, c_.B, c_.H, c_.H, c_.D};
    const cuda_cpu::Device device = cuda_cpu::pretended();
    const Properties properties{10 * device.major + device.minor,
                                device.multiprocessors,
                                device.registers_per_multiprocessor,
                                device.shared_per_multiprocessor,
                                device.shared_per_block_opt_in,
                                device.threads_per_multiprocessor,
                                device.cooperative};
    const Plan plan = make_plan(problem, properties, c_.layout);
    if (!plan.persistent) {
      std::printf("no persistent plan: %s\n", plan.why);
      std::exit(1);
    }
    return plan;
  }

  Exchange<T> exchange(std::vector<T>& memory, std::vector<T>& rows, int64_t slots) const {
    const int64_t padded = padded_to_pieces<T>(c_.H), width = slots * padded;
    std::vector<T>& used = padded == c_.H ? rows : memory;
    used.resize(s_.rows * c_.D * width);
    std::memset(static_cast<void*>(used.data()), 0xff, used.size() * sizeof(T));
    return {used.data(), c_.D * width, width};
  }

  const Case& c_;
  const Setting& s_;
  int64_t G_;
  bool tf32_;
  Layer<T> layer_{};
  std::vector<T> x_, w_hh_, b_ih_, b_hh_, h_0_, c_0_, d_y_, d_h_n_, d_c_n_, y_, h_n_, c_n_,
      reserve_;
  std::vector<int32_t> length_;
  std::vector<int64_t> offset_;
  std::vector<uint8_t> reset_;
};

// ---- comparisons
// ------------------------------------------------------------------------------------

int checks = 0, failures = 0;

void compare(const std::string& what, const Values& got, const Values& expected, double tolerance) {
  double scale = 1;
  for (const double x : expected) scale = std::max(scale, std::abs(x));
  ++checks;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (std::abs(got[i] - expected[i]) <= tolerance * scale) continue;  // a NaN is not
    ++failures;
    if (failures <= 20)
      std::printf("%s[%zu]: %.9g, expected %.9g\n", what.c_str(), i, got[i], expected[i]);
    return;
  }
}

double dot(const Values& a, const Values& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

double objective(const Case& c, const Setting& s, const Inputs& in) {
  const Outputs out = scalar_forward(c, s, in);
  // Padding has outputs, always 0, and seeds that count for nothing.
  return dot(out.y, in.d_y) + dot(out.h_n, in.d_h_n) + dot(out.c_n, in.d_c_n);
}

// Directional derivative by central differences against the inner product with the gradients.
void check_derivative(const std::string& what, const Case& c, const Setting& s, const Inputs& in,
                      const Gradients& g, Random& random) {
  constexpr double kStep = 1e-6;
  Inputs up = in, down = in;
  double expected = 0, size = 1;
  const auto move = [&](Values Inputs::* part, const Values& gradient) {
    for (size_t i = 0; i < (in.*part).size(); ++i) {
      const double direction = 2 * random.uniform() - 1;
      (up.*part)[i] += kStep * direction;
      (down.*part)[i] -= kStep * direction;
      expected += direction * gradient[i];
      size += std::abs(direction * gradient[i]);
    }
  };
  move(&Inputs::x, g.d_x);
  move(&Inputs::w_hh, g.d_w_hh);
  move(&Inputs::b_hh, g.d_b_hh);
  if (!in.h_0.empty()) move(&Inputs::h_0, g.d_h_0);
  if (!in.c_0.empty()) move(&Inputs::c_0, g.d_c_0);
  const double found = (objective(c, s, up) - objective(c, s, down)) / (2 * kStep);
  ++checks;
  if (std::abs(found - expected) <= 1e-6 * size) return;
  ++failures;
  std::printf("%s: derivative %.9g, expected %.9g\n", what.c_str(), expected, found);
}

template <typename T>
void check_type(const std::string& what, const Case& c, const Setting& s, const Inputs& exact,
                bool tf32, double epsilon) {
  const Inputs in = rounded<T>(exact);
  Run<T> run(c, s, in, tf32);
  const Outputs out = run.forward(), expected = scalar_forward(c, s, in);
  compare(what + " y", out.y, expected.y, 8 * epsilon);
  compare(what + " h_n", out.h_n, expected.h_n, 8 * epsilon);
  compare(what + " c_n", out.c_n, expected.c_n, 8 * epsilon);
  const Gradients got = run.backward();
  Run<double> truth(c, s, in, false);
  truth.forward();
  // Of an RNN nothing but y is saved. Rounded, it may lie on the other side of the rectifier's
  // kink.
  if (reserve_slots(c.cell) == 0) truth.adopt_outputs(out.y);
  const Gradients gradients = truth.backward();
  compare(what + " d_x", got.d_x, gradients.d_x, 16 * epsilon);
  compare(what + " d_h_0", got.d_h_0, gradients.d_h_0, 16 * epsilon);
  compare(what + " d_c_0", got.d_c_0, gradients.d_c_0, 16 * epsilon);
  compare(what + " d_w_hh", got.d_w_hh, gradients.d_w_hh, 16 * epsilon);
  compare(what + " d_b_hh", got.d_b_hh, gradients.d_b_hh, 16 * epsilon);
  if (!std::is_same_v<T, double> || got.d_x.empty()) return;
  {
    Random random(7);
    check_derivative(what, c, s, in, got, random);
  }
}

void check_case(const Case& c, uint64_t seed, int type) {
  Random random(seed);
  const Setting s = make_setting(c, random);
  const Inputs in = make_inputs(c, s, random);
  static constexpr const char* kModes[] = {"dense", "lengths", "packed", "resets"};
  static constexpr const char* kTypes[] = {"double", "float", "tf32", "half", "bfloat16"};
  const std::string what =
      std::string(name(c.cell)) + " " + kTypes[type] + " T " + std::to_string(c.T) + " B " +
      std::to_string(c.B) + " H " + std::to_string(c.H) + " D " + std::to_string(c.D) + " " +
      kModes[static_cast<int>(c.mode)] + " tiles " + std::to_string(c.layout.tiles) + " slices " +
      std::to_string(c.layout.slices) + " " + cuda_cpu::schedule();
  switch (type) {
    case 0:
      return check_type<double>(what, c, s, in, false, 1e-13);
    case 1:
      return check_type<float>(what, c, s, in, false, 0x1p-22);
    case 2:
      return check_type<float>(what, c, s, in, true, 0x1p-10);
    case 3:
      return check_type<__half>(what, c, s, in, false, 0x1p-10);
    default:
      return check_type<__nv_bfloat16>(what, c, s, in, false, 0x1p-7);
  }
}

constexpr Cell kCells[] = {Cell::kLstm, Cell::kGru, Cell::kRnnTanh, Cell::kRnnRelu};
constexpr Mode kModesOfCases[] = {Mode::kDense, Mode::kLengths, Mode::kPacked, Mode::kResets};
const char* const kSchedules[] = {"forward", "reverse", "random:1", "random:2"};

// Layouts in which every way to share the work occurs: several blocks, slices, tiles, groups and
// launches.
Forced layout_number(uint64_t i) {
  Forced forced;
  forced.persistent = true;
  forced.tiles = i % 3 == 2 ? 2 : 1;
  forced.slices = i % 3 == 1 ? 8 : 4;
  forced.groups = 1 + static_cast<int>(i / 3 % 2);
  forced.rows = i / 6 % 2 == 0 ? 0 : 3;
  return forced;
}

// ThreadSanitizer holds fewer fibers at a time than the largest cases have: the widest have one
// group of blocks then, and weights beyond the registers are left out.
#ifdef __SANITIZE_THREAD__
constexpr bool kRacesWatched = true;
#else
constexpr bool kRacesWatched = false;
#endif

void run_cases(bool few) {
  uint64_t i = 0;
  for (const int64_t H : {1, 8, 24, 33, 64}) {
    for (const int64_t B : {1, 3, 8}) {
      for (const Cell cell : kCells) {
        for (const Mode mode : kModesOfCases) {
          for (int type = 0; type < 5; ++type, ++i) {
            if (few && (i % 11 != 0 || H > 33)) continue;
            cuda_cpu::set_schedule(kSchedules[i % 4]);
            const int64_t D = i % 2 == 0 || mode == Mode::kPacked ? 1 : 2;
            Forced layout = layout_number(i / 4);
            if (kRacesWatched && H * D > 64) layout.groups = 1;
            check_case({cell, 4, B, H, D, mode, i % 3 != 0, layout}, i, type);
          }
        }
      }
    }
  }
  // More sequences than a pass, than a thread's one state, and than a launch; weights beyond what
  // the registers hold.
  for (int type = 0; type < 5; ++type) {
    cuda_cpu::set_schedule(kSchedules[type % 4]);
    Forced forced;
    forced.persistent = true, forced.tiles = 1, forced.slices = 4, forced.groups = 1;
    check_case({Cell::kLstm, 2, few ? 20 : 70, 8, 1, Mode::kResets, true, forced}, 1000 + type,
               type);
    check_case({Cell::kGru, 2, 3, few ? 40 : 300, 1, Mode::kLengths, true, forced}, 2000 + type,
               type);
    if (few || kRacesWatched) continue;
    check_case({Cell::kLstm, 1, 2, 600, 1, Mode::kDense, true, forced}, 3000 + type, type);
  }
}

// Cases that meet every barrier on every schedule.
bool run_for_mutants() {
  for (const char* schedule : kSchedules) {
    cuda_cpu::set_schedule(schedule);
    for (int type = 0; type < 4; ++type)
      check_case({Cell::kLstm, 3, 3, 40, 1, Mode::kDense, true, layout_number(0)}, 10, type);
  }
  return failures == 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  cuda_cpu::Device device = cuda_cpu::h100();
  device.registers_per_thread = 255;
  device.multiprocessors = 512;  // as many blocks as a case may want
  cuda_cpu::pretend(device);
  if (what == "mutants") return check_mutants(run_for_mutants);
  run_cases(what == "few");
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures > 0;
}
