// The recurrent kernels alone, on every instruction set that this CPU runs, several teams of
// threads and both plans.
//
// Forward is compared with a scalar implementation below that knows nothing of panels, tiles or
// compact rows. Backward in double is compared with differences of forward along a random direction
// through all inputs at once; backward in float with backward in double. All arrays have exactly
// the size that the contract states and start as NaN, so that values never written show, and
// sanitizers see every overrun.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "random.h"
#include "rounded.h"
#include "run_kernel.h"

using namespace seq2seq_ext;

namespace {

struct Case {
  Cell cell;
  int64_t T, B, I, H, P, L, D;
  bool bias, lengths, resets, mask;
};

const char* name(Cell cell) {
  switch (cell) {
    case Cell::kLstm:
      return "lstm";
    case Cell::kGru:
      return "gru";
    case Cell::kGruResetBefore:
      return "gru_reset_before";
    case Cell::kRnnTanh:
      return "rnn_tanh";
    case Cell::kRnnRelu:
      return "rnn_relu";
    case Cell::kCoupledLstm:  // with variants only
      break;
  }
  return "";
}

using Values = std::vector<double>;

Values random_values(Random& random, int64_t n, double scale) {
  Values v(n);
  for (double& x : v) x = (2 * random.uniform() - 1) * scale;
  return v;
}

// All that a call reads, in double and in the caller's order: x (T, B, I), states, weights by role.
struct Inputs {
  Values x, h_0, c_0;
  std::vector<Values>
      weights;  // per layer and direction: w_ih, w_hh, b_ih, b_hh, w_hr (some empty)
};

struct Setting {
  std::vector<int64_t> length;
  std::vector<uint8_t> reset;  // (T, B)
  Values mask;                 // (L-1, T, B, D*P)
};

struct Outputs {
  Values y, h_n, c_n;
};

Inputs make_inputs(const Case& c, Random& random) {
  const int64_t G = num_gates(c.cell);
  Inputs in{random_values(random, c.T * c.B * c.I, 1),
            random_values(random, c.L * c.D * c.B * c.P, 1),
            {},
            {}};
  if (c.cell == Cell::kLstm) in.c_0 = random_values(random, c.L * c.D * c.B * c.H, 1);
  for (int64_t l = 0; l < c.L; ++l) {
    for (int64_t d = 0; d < c.D; ++d) {
      const int64_t I = l == 0 ? c.I : c.D * c.P;
      const double scale = 1 / std::sqrt(static_cast<double>(c.H));
      in.weights.push_back(random_values(random, G * c.H * I, scale));
      in.weights.push_back(random_values(random, G * c.H * c.P, scale));
      in.weights.push_back(random_values(random, c.bias ? G * c.H : 0, scale));
      in.weights.push_back(random_values(random, c.bias ? G * c.H : 0, scale));
      in.weights.push_back(random_values(random, c.P != c.H ? c.P * c.H : 0, scale));
    }
  }
  return in;
}

Setting make_setting(const Case& c, Random& random) {
  Setting s;
  s.length.assign(c.B, c.T);
  if (c.lengths)
    for (int64_t& n : s.length) n = static_cast<int64_t>(random.next() % (c.T + 1));
  if (c.resets) {
    s.reset.resize(c.T * c.B);
    for (uint8_t& r : s.reset) r = random.next() % 4 == 0;
  }
  if (c.mask) {
    s.mask.resize((c.L - 1) * c.T * c.B * c.D * c.P);
    for (double& m : s.mask) m = random.next() % 3 == 0 ? 0 : 1.5;
  }
  return s;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

Outputs scalar_forward(const Case& c, const Inputs& in, const Setting& s) {
  const int64_t G = num_gates(c.cell);
  Values layer_x = in.x, y;
  Outputs out{
      {}, Values(c.L * c.D * c.B * c.P), Values(c.cell == Cell::kLstm ? c.L * c.D * c.B * c.H : 0)};
  for (int64_t l = 0; l < c.L; ++l) {
    const int64_t I = l == 0 ? c.I : c.D * c.P;
    y.assign(c.T * c.B * c.D * c.P, 0);
    for (int64_t d = 0; d < c.D; ++d) {
      const int64_t index = l * c.D + d;
      const Values* w = &in.weights[index * 5];
      for (int64_t b = 0; b < c.B; ++b) {
        Values h(&in.h_0[(index * c.B + b) * c.P], &in.h_0[(index * c.B + b) * c.P] + c.P),
            cell_state(c.H);
        if (c.cell == Cell::kLstm)
          cell_state.assign(&in.c_0[(index * c.B + b) * c.H],
                            &in.c_0[(index * c.B + b) * c.H] + c.H);
        for (int64_t step = 0; step < s.length[b]; ++step) {
          const int64_t t = d == 0 ? step : s.length[b] - 1 - step;
          if (!s.reset.empty() && s.reset[t * c.B + b]) {
            std::fill(h.begin(), h.end(), 0);
            std::fill(cell_state.begin(), cell_state.end(), 0);
          }
          const double* x = &layer_x[(t * c.B + b) * I];
          const auto from_x = [&](int64_t g, int64_t u) {
            double sum = c.bias ? w[2][g * c.H + u] : 0;
            for (int64_t i = 0; i < I; ++i) sum += w[0][(g * c.H + u) * I + i] * x[i];
            return sum;
          };
          const auto from_h = [&](int64_t g, int64_t u, const Values& state) {
            double sum = c.bias ? w[3][g * c.H + u] : 0;
            for (int64_t i = 0; i < c.P; ++i) sum += w[1][(g * c.H + u) * c.P + i] * state[i];
            return sum;
          };
          Values out_h(c.H);
          if (c.cell == Cell::kLstm) {
            for (int64_t u = 0; u < c.H; ++u) {
              const double i = sigmoid(from_x(0, u) + from_h(0, u, h)),
                           f = sigmoid(from_x(1, u) + from_h(1, u, h));
              const double g = std::tanh(from_x(2, u) + from_h(2, u, h)),
                           o = sigmoid(from_x(3, u) + from_h(3, u, h));
              cell_state[u] = f * cell_state[u] + i * g;
              out_h[u] = o * std::tanh(cell_state[u]);
            }
          } else if (G == 3) {
            Values reset_h(c.P);
            for (int64_t u = 0; u < c.H; ++u)
              reset_h[u] = sigmoid(from_x(0, u) + from_h(0, u, h)) * h[u];
            for (int64_t u = 0; u < c.H; ++u) {
              const double r = sigmoid(from_x(0, u) + from_h(0, u, h)),
                           z = sigmoid(from_x(1, u) + from_h(1, u, h));
              const double n = c.cell == Cell::kGru
                                   ? std::tanh(from_x(2, u) + r * from_h(2, u, h))
                                   : std::tanh(from_x(2, u) + from_h(2, u, reset_h));
              out_h[u] = (1 - z) * n + z * h[u];
            }
          } else {
            for (int64_t u = 0; u < c.H; ++u) {
              const double a = from_x(0, u) + from_h(0, u, h);
              out_h[u] = c.cell == Cell::kRnnTanh ? std::tanh(a) : std::max(a, 0.0);
            }
          }
          if (c.P == c.H) {
            h = out_h;
          } else {
            for (int64_t p = 0; p < c.P; ++p) {
              h[p] = 0;
              for (int64_t u = 0; u < c.H; ++u) h[p] += w[4][p * c.H + u] * out_h[u];
            }
          }
          std::copy(h.begin(), h.end(), &y[((t * c.B + b) * c.D + d) * c.P]);
        }
        std::copy(h.begin(), h.end(), &out.h_n[(index * c.B + b) * c.P]);
        if (c.cell == Cell::kLstm)
          std::copy(cell_state.begin(), cell_state.end(), &out.c_n[(index * c.B + b) * c.H]);
      }
    }
    layer_x = y;
    if (!s.mask.empty() && l + 1 < c.L)
      for (size_t i = 0; i < y.size(); ++i) layer_x[i] *= s.mask[l * y.size() + i];
  }
  out.y = y;
  return out;
}

// A kernel call on arrays of T: the compact order made by hand, exact buffers, std::threads.
template <typename T>
class Call {
 public:
  Call(const Case& c, const Inputs& in, const Setting& s, const Kernels& kernels, Plan plan)
      : c_(c),
        kernels_(kernels),
        x_(cast(in.x)),
        h_0_(cast(in.h_0)),
        c_0_(cast(in.c_0)),
        mask_(cast(s.mask)) {
    for (const Values& w : in.weights) weights_.push_back(cast(w));
    source_.resize(c.B);
    std::iota(source_.begin(), source_.end(), 0);
    std::stable_sort(source_.begin(), source_.end(),
                     [&](int64_t a, int64_t b) { return s.length[a] > s.length[b]; });
    int64_t N = 0;
    for (int64_t t = 0; t < c.T; ++t) {
      offset_.push_back(N);
      int64_t count = 0;
      for (; count < c.B && s.length[source_[count]] > t; ++count) {
        const int64_t row = t * c.B + source_[count];
        x_offset_.push_back(row * c.I);
        y_offset_.push_back(row * c.D * c.P);
        if (!s.reset.empty()) reset_.push_back(s.reset[row]);
      }
      active_.push_back(count);
      N += count;
    }
    for (int64_t i = 0; i < c.L * c.D; ++i) pointers_.push_back(pointers<const T>(weights_, i));
    stack_.cell = c.cell;
    stack_.L = c.L, stack_.D = c.D, stack_.I = c.I, stack_.H = c.H, stack_.P = c.P;
    stack_.sequence = {c.T,
                       c.B,
                       N,
                       active_.data(),
                       offset_.data(),
                       source_.data(),
                       reset_.empty() ? nullptr : reset_.data()};
    stack_.plan = plan;
    stack_.weights = pointers_.data();
    stack_.x = {x_.data(), x_offset_.data(), 0};
    stack_.mask_layer = c.T * c.B * c.D * c.P;
    if (c.mask) stack_.dropout_mask = {mask_.data(), y_offset_.data(), 0};
    stack_.h_0 = h_0_.data();
    stack_.c_0 = c_0_.data();
    y_.assign(c.T * c.B * c.D * c.P, 0);  // the caller zeroes the padding
    for (int64_t r : y_offset_) std::fill(&y_[r], &y_[r] + c.D * c.P, nan());
    reserve_.assign(reserve_size(c.cell, c.L, c.D, N, c.H, c.P), nan());
  }

  // Leaves the initial states out, which means zeros.
  void start_from_nothing() { stack_.h_0 = stack_.c_0 = nullptr; }

  Outputs forward(bool save) { return forward(save, nullptr, WeightType::kFull); }

  // Forward on weights packed beforehand.
  Outputs forward_packed(WeightType type) {
    Block packed(of_type(kernels_.packed_size_f32, kernels_.packed_size_f64)(stack_, type));
    of_type(kernels_.pack_f32, kernels_.pack_f64)(stack_, type, packed.data());
    return forward(false, packed.data(), type);
  }

  // The same, each step's x being a row of a table.
  Outputs forward_tokens(WeightType type) {
    Block packed(of_type(kernels_.packed_size_f32, kernels_.packed_size_f64)(stack_, type));
    of_type(kernels_.pack_f32, kernels_.pack_f64)(stack_, type, packed.data());
    const int64_t rows = c_.T * c_.B;
    const int64_t width =
        of_type(kernels_.token_gates_width_f32, kernels_.token_gates_width_f64)(stack_);
    const Block table(static_cast<size_t>(rows * width) * sizeof(T));
    TokenGates<T> gates{};
    static_cast<Stack<T>&>(gates) = stack_;
    gates.packed = packed.data(), gates.packed_type = type;
    gates.V = rows, gates.features = x_.data(), gates.rows = static_cast<T*>(table.data());
    const Block workspace(
        of_type(kernels_.token_gates_workspace_f32, kernels_.token_gates_workspace_f64)(gates));
    of_type(kernels_.token_gates_f32, kernels_.token_gates_f64)(gates, workspace.data());
    std::vector<int64_t> offset;
    for (int64_t at : x_offset_) offset.push_back(at / c_.I * width);
    const Rows<const T> x = std::exchange(stack_.x, {});
    stack_.gates = {gates.rows, offset.data(), 0};
    const Outputs outputs = forward(false, packed.data(), type);
    stack_.x = x, stack_.gates = {};
    return outputs;
  }

  Outputs forward(bool save, const void* packed, WeightType type) {
    Forward<T> f{};
    static_cast<Stack<T>&>(f) = stack_;
    f.packed = packed;
    f.packed_type = type;
    std::vector<T> h_n(h_0_.size(), nan()), c_n(c_0_.size(), nan());
    f.y = {y_.data(), y_offset_.data(), 0};
    f.h_n = h_n.data();
    f.c_n = c_n.data();
    f.reserve = save ? reserve_.data() : nullptr;
    run_kernel(f, of_type(kernels_.forward_workspace_f32, kernels_.forward_workspace_f64),
               of_type(kernels_.forward_f32, kernels_.forward_f64));
    return {widen(y_), widen(h_n), widen(c_n)};
  }

  // Gradients of the inner product of the outputs with `seed`, after a forward that saved.
  Inputs backward(const Outputs& seed) {
    Backward<T> f{};
    static_cast<Stack<T>&>(f) = stack_;
    const std::vector<T> d_y = cast(seed.y), d_h_n = cast(seed.h_n), d_c_n = cast(seed.c_n);
    std::vector<T> d_x(x_.size(), 0), d_h_0(h_0_.size(), nan()), d_c_0(c_0_.size(), nan());
    for (int64_t r : x_offset_) std::fill(&d_x[r], &d_x[r] + c_.I, nan());
    std::vector<std::vector<T>> d_weights;
    for (const auto& w : weights_) d_weights.emplace_back(w.size(), nan());
    std::vector<Weights<T>> targets;
    for (int64_t i = 0; i < c_.L * c_.D; ++i) targets.push_back(pointers<T>(d_weights, i));
    f.y = {y_.data(), y_offset_.data(), 0};
    f.reserve = reserve_.data();
    f.d_y = {d_y.data(), y_offset_.data(), 0};
    f.d_h_n = d_h_n.data();
    f.d_c_n = d_c_n.data();
    f.d_x = {d_x.data(), x_offset_.data(), 0};
    f.d_h_0 = d_h_0.data();
    f.d_c_0 = d_c_0.data();
    f.d_weights = targets.data();
    run_kernel(f, of_type(kernels_.backward_workspace_f32, kernels_.backward_workspace_f64),
               of_type(kernels_.backward_f32, kernels_.backward_f64));
    Inputs gradients{widen(d_x), widen(d_h_0), widen(d_c_0), {}};
    for (const auto& w : d_weights) gradients.weights.push_back(widen(w));
    return gradients;
  }

 private:
  static T nan() { return std::numeric_limits<T>::quiet_NaN(); }
  static std::vector<T> cast(const Values& v) { return {v.begin(), v.end()}; }
  static Values widen(const std::vector<T>& v) { return {v.begin(), v.end()}; }

  template <typename Q, typename Arrays>
  static Weights<Q> pointers(Arrays& arrays, int64_t i) {
    const auto at = [&](int64_t role) {
      return arrays[i * 5 + role].empty() ? nullptr : arrays[i * 5 + role].data();
    };
    return {at(0), at(1), at(2), at(3), at(4)};
  }

  // The entry for T.
  template <typename Single, typename Double>
  static auto of_type(Single f32, Double f64) {
    if constexpr (std::is_same_v<T, float>) {
      return f32;
    } else {
      return f64;
    }
  }

  const Case c_;
  const Kernels& kernels_;
  std::vector<T> x_, h_0_, c_0_, mask_, y_, reserve_;
  std::vector<std::vector<T>> weights_;
  std::vector<int64_t> source_, active_, offset_, x_offset_, y_offset_;
  std::vector<uint8_t> reset_;
  std::vector<Weights<const T>> pointers_;
  Stack<T> stack_{};
};

int failures = 0, checks = 0;

std::string describe(const Case& c, const char* isa, Plan plan) {
  char text[256];
  std::snprintf(text, sizeof text, "%s %s T%d B%d I%d H%d P%d L%d D%d%s%s%s%s, %d threads%s", isa,
                name(c.cell), int(c.T), int(c.B), int(c.I), int(c.H), int(c.P), int(c.L), int(c.D),
                c.bias ? " bias" : "", c.lengths ? " lengths" : "", c.resets ? " resets" : "",
                c.mask ? " mask" : "", plan.threads,
                plan.split == Split::kUnits    ? " on units"
                : plan.split == Split::kLayers ? " on layers"
                                               : "");
  return text;
}

void compare(const std::string& where, const char* what, const Values& got, const Values& wanted,
             double tolerance) {
  ++checks;
  double scale = 1;
  for (double w : wanted) scale = std::max(scale, std::fabs(w));
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (std::fabs(got[i] - wanted[i]) <= tolerance * scale) continue;  // false for NaN
    if (++failures <= 30)
      std::printf("%s: %s[%zu] = %.9g, expected %.9g\n", where.c_str(), what, i, got[i], wanted[i]);
    return;
  }
}

void compare(const std::string& where, const Outputs& got, const Outputs& wanted,
             double tolerance) {
  compare(where, "y", got.y, wanted.y, tolerance);
  compare(where, "h_n", got.h_n, wanted.h_n, tolerance);
  compare(where, "c_n", got.c_n, wanted.c_n, tolerance);
}

void compare(const std::string& where, const Inputs& got, const Inputs& wanted, double tolerance) {
  compare(where, "d_x", got.x, wanted.x, tolerance);
  compare(where, "d_h_0", got.h_0, wanted.h_0, tolerance);
  compare(where, "d_c_0", got.c_0, wanted.c_0, tolerance);
  for (size_t i = 0; i < wanted.weights.size(); ++i) {
    const std::string what = "d_weights[" + std::to_string(i) + "]";
    compare(where, what.c_str(), got.weights[i], wanted.weights[i], tolerance);
  }
}

// The weights as a narrow type holds them. The biases stay as they are.
Inputs rounded(Inputs in, const Case& c, WeightType type) {
  for (int64_t i = 0; i < static_cast<int64_t>(in.weights.size()); ++i) {
    if (i % 5 == 2 || i % 5 == 3) continue;
    round_matrix(in.weights[i], i % 5 == 4 ? c.P : num_gates(c.cell) * c.H, type);
  }
  return in;
}

double dot(const Values& a, const Values& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}
double dot(const Outputs& a, const Outputs& b) {
  return dot(a.y, b.y) + dot(a.h_n, b.h_n) + dot(a.c_n, b.c_n);
}

void move(Values& v, const Values& direction, double by) {
  for (size_t i = 0; i < v.size(); ++i) v[i] += by * direction[i];
}

Inputs moved(Inputs in, const Inputs& direction, double by) {
  move(in.x, direction.x, by);
  move(in.h_0, direction.h_0, by);
  move(in.c_0, direction.c_0, by);
  for (size_t i = 0; i < in.weights.size(); ++i) move(in.weights[i], direction.weights[i], by);
  return in;
}

void test(const Case& c, uint64_t seed) {
  Random random(seed);
  const Inputs in = make_inputs(c, random);
  const Setting setting = make_setting(c, random);
  const Outputs wanted = scalar_forward(c, in, setting);
  Outputs cotangent{random_values(random, static_cast<int64_t>(wanted.y.size()), 1),
                    random_values(random, static_cast<int64_t>(wanted.h_n.size()), 1),
                    random_values(random, static_cast<int64_t>(wanted.c_n.size()), 1)};
  for (int64_t b = 0; b < c.B; ++b)  // nobody asks for gradients of the padding
    for (int64_t t = setting.length[b]; t < c.T; ++t)
      std::fill_n(&cotangent.y[(t * c.B + b) * c.D * c.P], c.D * c.P, 0.0);

  const Outputs in_bf16 = scalar_forward(c, rounded(in, c, WeightType::kBf16), setting);
  const Outputs in_int8 = scalar_forward(c, rounded(in, c, WeightType::kInt8), setting);
  Inputs without_states = in;
  std::fill(without_states.h_0.begin(), without_states.h_0.end(), 0);
  std::fill(without_states.c_0.begin(), without_states.c_0.end(), 0);

  // The derivative along one random direction through all inputs, from scalar forwards.
  const Inputs direction = make_inputs(c, random);
  constexpr double kStep = 1e-5;
  const double difference =
      (dot(scalar_forward(c, moved(in, direction, kStep), setting), cotangent) -
       dot(scalar_forward(c, moved(in, direction, -kStep), setting), cotangent)) /
      (2 * kStep);
  for (const std::string& isa : available_cpu_isas()) {
    const Kernels& kernels = kernels_for(isa);
    Inputs first, alone_slopes;
    Outputs alone;
    for (const Plan plan :
         {Plan{}, Plan{2, Split::kRows}, Plan{2, Split::kUnits}, Plan{3, Split::kUnits},
          Plan{5, Split::kRows}, Plan{2, Split::kLayers}, Plan{3, Split::kLayers}}) {
      if (plan.split == Split::kLayers && (c.D == 2 || c.L < plan.threads)) continue;
      const std::string where = describe(c, isa.c_str(), plan);
      Call<double> call(c, in, setting, kernels, plan);
      compare(where, call.forward(true), wanted, 1e-12);
      const Inputs gradients = call.backward(cotangent);
      double slope = dot(gradients.x, direction.x) + dot(gradients.h_0, direction.h_0) +
                     dot(gradients.c_0, direction.c_0);
      for (size_t i = 0; i < direction.weights.size(); ++i)
        slope += dot(gradients.weights[i], direction.weights[i]);
      // relu has corners, which a difference may straddle.
      if (c.cell != Cell::kRnnRelu) compare(where, "slope", {slope}, {difference}, 2e-6);
      if (first.weights.empty()) first = gradients;
      compare(where + " against one thread", gradients, first, 1e-12);

      Call<float> narrow(c, in, setting, kernels, plan);
      compare(where + " f32", narrow.forward(true), wanted, 2e-5);
      if (c.cell != Cell::kRnnRelu)
        compare(where + " f32", narrow.backward(cotangent), gradients, 2e-4);
      compare(where + " f32 without saving",
              Call<float>(c, in, setting, kernels, plan).forward(false), wanted, 2e-5);
      compare(where + " packed", call.forward_packed(WeightType::kFull), wanted, 1e-12);
      compare(where + " f32 packed", narrow.forward_packed(WeightType::kFull), wanted, 2e-5);
      compare(where + " bf16", narrow.forward_packed(WeightType::kBf16), in_bf16, 2e-5);
      compare(where + " int8", narrow.forward_packed(WeightType::kInt8), in_int8, 5e-5);
      compare(where + " tokens", call.forward_tokens(WeightType::kFull),
              call.forward_packed(WeightType::kFull), 0);
      for (const WeightType type : {WeightType::kFull, WeightType::kBf16, WeightType::kInt8})
        compare(where + " f32 tokens", narrow.forward_tokens(type), narrow.forward_packed(type), 0);

      // The same bits from any team.
      const Outputs outputs = narrow.forward(true);
      const Inputs slopes = narrow.backward(cotangent);
      Call<float> afresh(c, without_states, setting, kernels, plan);
      const Outputs from_zeros = afresh.forward(true);
      const Inputs slopes_from_zeros = afresh.backward(cotangent);
      afresh.start_from_nothing();
      compare(where + " f32 without states", afresh.forward(true), from_zeros, 0);
      compare(where + " f32 without states", afresh.backward(cotangent), slopes_from_zeros, 0);
      if (plan.threads == 1) {
        alone = outputs;
        alone_slopes = slopes;
      }
      compare(where + " f32 against one thread", outputs, alone, 0);
      compare(where + " f32 against one thread", slopes, alone_slopes, 0);
    }
  }
}

}  // namespace

int main() {
  uint64_t seed = 1;
  for (Cell cell :
       {Cell::kLstm, Cell::kGru, Cell::kGruResetBefore, Cell::kRnnTanh, Cell::kRnnRelu}) {
    test({cell, 1, 1, 1, 1, 1, 1, 1, true, false, false, false}, seed++);
    test({cell, 4, 3, 5, 16, 16, 1, 1, false, false, true, false}, seed++);
    test({cell, 5, 7, 3, 33, 33, 2, 2, true, true, true, true}, seed++);
    test({cell, 3, 13, 70, 20, 20, 3, 1, true, true, false, true}, seed++);
    test({cell, 6, 2, 2, 70, 70, 1, 2, false, true, false, false}, seed++);
    test({cell, 1, 3, 70, 130, 130, 1, 1, true, false, true, false}, seed++);  // weights unpacked
    test({cell, 2, 40, 9, 130, 130, 1, 1, true, false, false, false}, seed++);
  }
  test({Cell::kLstm, 5, 7, 3, 33, 9, 2, 2, true, true, true, true}, seed++);
  test({Cell::kLstm, 3, 4, 6, 64, 40, 1, 1, false, false, false, false}, seed++);
  test({Cell::kLstm, 4, 9, 2, 17, 16, 1, 2, true, true, false, false}, seed++);
  test({Cell::kLstm, 2, 1, 130, 150, 70, 2, 2, true, false, false, true}, seed++);
  test({Cell::kGru, 3, 4, 2, 5, 5, 1, 1, true, true, false, false}, seed++);
  test({Cell::kLstm, 150, 3, 4, 24, 24, 1, 2, true, true, true, false}, seed++);
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures != 0;
}
