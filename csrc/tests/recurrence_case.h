// A call of the recurrence with variants (csrc/recurrence.h), drawn at random, for the tests of
// both devices. All arrays have exactly the size that the contract states; results start as NaN, so
// that values never written show, and sanitizers see every overrun.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <vector>

#include "random.h"
#include "recurrence.h"

namespace seq2seq_ext {

enum class Batch { kDense, kLengths, kPacked, kResets };

struct RecurrenceCase {
  Cell cell;
  int64_t T, B, H;
  Batch batch;
  bool reverse;
  unsigned variants;  // bits below

  bool lstm() const { return is_lstm(cell); }
  bool carries_c() const { return has_cell(cell, projected()); }
  bool has(unsigned variant) const { return (variants & variant) != 0; }
  bool projected() const { return has(32) && cell != Cell::kGruResetBefore; }
  int64_t P() const { return projected() ? std::max<int64_t>(1, H / 2) : H; }
  int64_t G() const { return num_gates(cell); }
};
inline constexpr unsigned kNormalized = 1, kNoisy = 2, kMasked = 4, kPeepholes = 8, kClipped = 16,
                          kProjected = 32, kHard = 64, kAllVariants = 127;

using Values = std::vector<double>;

// What a call reads, in double, and how its rows lie.
struct RecurrenceInputs {
  RecurrenceCase c;
  int64_t N;
  std::vector<int64_t> length, offset;
  std::vector<uint8_t> reset;
  int64_t seed = 0x123456789abcdef;
  Values x, w_hh, b_hn, w_hr, h_0, c_0, h_mask, peephole, norm_hh, norm_c, bias_c;
  Values d_y, d_cells, d_h_n, d_c_n;

  RecurrenceInputs(const RecurrenceCase& given, uint64_t number) : c(given), N(c.T * c.B) {
    Random random(number);
    const int64_t width = c.G() * c.H, P = c.P();
    if (c.batch == Batch::kLengths || c.batch == Batch::kPacked) {
      for (int64_t b = 0; b < c.B; ++b)
        length.push_back(static_cast<int64_t>(random.next() % (c.T + 1)));
      if (c.batch == Batch::kPacked) {
        length[0] = c.T;
        std::sort(length.rbegin(), length.rend());
        N = 0;
        for (int64_t t = 0; t < c.T; ++t) {
          offset.push_back(N);
          for (int64_t n : length) N += n > t;
        }
      }
    }
    if (c.batch == Batch::kResets)
      for (int64_t row = 0; row < N; ++row) reset.push_back(random.next() % 3 == 0);
    const auto draw = [&](bool wanted, int64_t count, double scale = 1) {
      Values v(wanted ? count : 0);
      for (double& value : v) value = (2 * random.uniform() - 1) * scale;
      return v;
    };
    x = draw(true, N * width);
    w_hh = draw(true, width * P, 1 / std::sqrt(double(P)));
    b_hn = draw(c.cell == Cell::kGru, c.H);
    w_hr = draw(c.projected(), P * c.H);
    h_0 = draw(true, c.B * P);
    c_0 = draw(c.carries_c(), c.B * c.H);
    h_mask = draw(c.has(kMasked), c.B * P);
    peephole = draw(c.has(kPeepholes) && c.lstm(), (c.G() - 1) * c.H);
    norm_hh = draw(c.has(kNormalized), width);
    norm_c = draw(c.has(kNormalized) && c.lstm(), c.H);
    bias_c = draw(c.has(kNormalized) && c.lstm(), c.H);
    d_y = draw(true, N * P);
    d_cells = draw(c.carries_c(), N * c.H);
    d_h_n = draw(true, c.B * P);
    d_c_n = draw(c.carries_c(), c.B * c.H);
  }
};

// The same numbers as T, and room for the results. `from` and `to` convert.
template <typename T>
struct RecurrenceArrays {
  using From = T (*)(double);

  RecurrenceArrays(const RecurrenceInputs& in, From from) : in(in), from(from) {
    const RecurrenceCase& c = in.c;
    const int64_t width = c.G() * c.H, P = c.P(), H = c.H, N = in.N;
    const bool normalized = c.has(kNormalized), two = c.projected() || reset_before();
    y = room(N * P), h_n = room(c.B * P);
    cells = room(c.carries_c() ? N * H : 0), c_n = room(c.carries_c() ? c.B * H : 0);
    step = room(N * kept_slots(c.cell) * H), h_in = room(N * P);
    inner = room(two ? N * H : 0), out = room(c.projected() ? N * P : 0);
    sums = room(normalized ? N * width : 0), moments = room(normalized ? N * kMoments : 0);
    d_x = room(N * width);
    d_sum = room(normalized || c.cell == Cell::kGru ? N * width : 0);
    d_cell = room(normalized && c.lstm() ? N * H : 0);
    d_out = room(c.projected() ? N * P : 0);
    d_h_0 = room(c.B * P), d_c_0 = room(c.carries_c() ? c.B * H : 0);
  }

  bool reset_before() const { return in.c.cell == Cell::kGruResetBefore; }

  void fill(Recurrence<T>& call) {
    const RecurrenceCase& c = in.c;
    call.cell = c.cell, call.T_ = c.T, call.B = c.B, call.H = c.H, call.P = c.P(), call.N = in.N;
    call.reverse = c.reverse;
    call.length = in.length.empty() ? nullptr : in.length.data();
    call.offset = in.offset.empty() ? nullptr : in.offset.data();
    call.reset = in.reset.empty() ? nullptr : in.reset.data();
    call.x = copy(in.x), call.w_hh = copy(in.w_hh), call.b_hn = copy(in.b_hn);
    call.w_hr = copy(in.w_hr), call.h_0 = copy(in.h_0), call.c_0 = copy(in.c_0);
    call.h_mask = copy(in.h_mask), call.peephole = copy(in.peephole);
    call.norm_hh = copy(in.norm_hh), call.norm_c = copy(in.norm_c);
    call.bias_c = copy(in.bias_c);
    if (c.has(kNoisy)) {
      call.noise = {0.3, c.carries_c() ? 0.2 : 0.0, c.G() > 1 ? 0.25 : 0.0, &in.seed, 5};
    }
    call.hard_sigmoid = c.has(kHard);
    if (c.has(kClipped)) call.cell_clip = 0.6, call.proj_clip = 0.5;
  }
  void fill_forward(RecurrenceForward<T>& f) {
    fill(f);
    f.y = at(y), f.cells = at(cells), f.h_n = at(h_n), f.c_n = at(c_n);
    f.kept = {at(step), at(h_in), at(inner), at(out), at(sums), at(moments)};
  }
  void fill_backward(RecurrenceBackward<T>& f) {
    fill(f);
    f.kept = {at(step), at(h_in), at(inner), at(out), at(sums), at(moments)};
    f.d_y = copy(in.d_y), f.d_cells = copy(in.d_cells);
    f.d_h_n = copy(in.d_h_n), f.d_c_n = copy(in.d_c_n);
    f.d_x = at(d_x), f.d_sum = at(d_sum), f.d_cell = at(d_cell), f.d_out = at(d_out);
    f.d_h_0 = at(d_h_0), f.d_c_0 = at(d_c_0);
  }

  // All results, as double.
  Values results(double (*to)(T)) const {
    Values all;
    for (const auto* array :
         {&y, &cells, &h_n, &c_n, &h_in, &d_x, &d_sum, &d_cell, &d_out, &d_h_0, &d_c_0})
      for (const T& value : *array) all.push_back(to(value));
    return all;
  }

  const RecurrenceInputs& in;
  From from;
  std::vector<T> y, cells, h_n, c_n, step, h_in, inner, out, sums, moments;
  std::vector<T> d_x, d_sum, d_cell, d_out, d_h_0, d_c_0;

 private:
  std::vector<T> room(int64_t count) const {
    return std::vector<T>(count, from(std::numeric_limits<double>::quiet_NaN()));
  }
  static T* at(std::vector<T>& array) { return array.empty() ? nullptr : array.data(); }
  const T* copy(const Values& values) {
    if (values.empty()) return nullptr;
    std::vector<T> numbers;
    numbers.reserve(values.size());
    for (const double value : values) numbers.push_back(from(value));
    copies_.push_back(std::move(numbers));
    return copies_.back().data();
  }
  std::vector<std::vector<T>> copies_;
};

inline const char* name(Cell cell) {
  static constexpr const char* kNames[] = {"lstm",     "gru",      "gru_reset_before",
                                           "rnn_tanh", "rnn_relu", "coupled_lstm"};
  return kNames[static_cast<int>(cell)];
}

// Whether results agree, relative to the largest; tells where not.
inline bool agree(const RecurrenceCase& c, const char* how, const Values& got, const Values& want,
                  double tolerance) {
  double largest = 1;
  for (const double value : want) largest = std::max(largest, std::abs(value));
  for (size_t i = 0; i < want.size(); ++i) {
    if (std::abs(got[i] - want[i]) <= tolerance * largest) continue;  // false for a NaN
    std::printf("%s T %d B %d H %d rows %d%s variants %u, %s: number %zu is %g, not %g\n",
                name(c.cell), int(c.T), int(c.B), int(c.H), int(c.batch),
                c.reverse ? " reverse" : "", c.variants, how, i, got[i], want[i]);
    return false;
  }
  return true;
}

}  // namespace seq2seq_ext
