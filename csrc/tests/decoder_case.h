// A call of the decoder that attends, forward and backward, for tests: its sizes, and its arrays
// for any type of number.
#pragma once

#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "decoder.h"
#include "random.h"

namespace seq2seq_ext {

using Values = std::vector<double>;

enum class Way { kDot, kHeads, kPrevious, kCoverage, kContext };
constexpr Way kWays[] = {Way::kDot, Way::kHeads, Way::kPrevious, Way::kCoverage, Way::kContext};

struct DecoderCase {
  Cell cell;
  Way way;
  int64_t L, B, S, H;
  bool ragged;
  int64_t T = 3;

  int64_t G() const { return num_gates(cell); }
  int64_t A() const { return way == Way::kDot || way == Way::kContext ? H : 6; }
  int64_t C() const { return 4; }
  bool combines() const { return way != Way::kPrevious && way != Way::kContext; }
  int64_t O() const { return combines() ? 5 : 0; }
  int64_t F() const { return combines() ? O() : C(); }
  bool additive() const { return way == Way::kPrevious || way == Way::kCoverage; }
};

// Each array of exactly its size: numbers at random, rounded by `rounded`; results full of NaN. The
// calls may be parts of a larger type.
template <typename T, typename Forward = DecoderForward<T>, typename Backward = DecoderBackward<T>>
class DecoderArrays {
 public:
  template <typename Rounded>
  DecoderArrays(const DecoderCase& c, uint64_t seed, const Rounded& rounded) {
    Random random(seed);
    const auto given = [&](int64_t count) -> const T* {
      std::vector<T> array(count);
      for (T& x : array) x = rounded(2 * random.uniform() - 1);
      given_.push_back(std::move(array));
      return given_.back().data();
    };
    const auto result = [&](int64_t count) {
      results_.emplace_back(count, rounded(std::numeric_limits<double>::quiet_NaN()));
      return results_.back().data();
    };
    const int64_t N = c.T * c.B, width = c.G() * c.H, slots = kept_slots(c.cell);
    const bool covers = c.way == Way::kCoverage, lstm = c.cell == Cell::kLstm;
    const bool before = c.cell == Cell::kGruResetBefore, gru = c.cell == Cell::kGru;
    Decoder<T> call{};
    call.cell = c.cell;
    call.T_ = c.T, call.B = c.B, call.S = c.S, call.L = c.L, call.H = c.H;
    call.A = c.A(), call.C = c.C(), call.O = c.O(), call.F = c.F();
    call.heads = c.way == Way::kHeads ? 2 : 1;
    call.residual = c.L > 1 ? 1 : 0;
    call.additive = c.additive(), call.query_first = c.way == Way::kPrevious;
    call.scale = 0.7;
    if (c.ragged) {
      for (int64_t b = 0; b < c.B; ++b) lengths.push_back((b + c.T) % (c.T + 1));
      for (int64_t b = 0; b < c.B; ++b) sources.push_back((b * 5 + c.S) % (c.S + 1));
      call.length = lengths.data(), call.source = sources.data();
    }
    call.x = given(N * width);
    for (int64_t l = 0; l < c.L; ++l) {
      w_in_.push_back(given(width * (l == 0 ? c.F() : c.H)));
      w_hh_.push_back(given(width * c.H));
    }
    call.w_in = w_in_.data(), call.w_hh = w_hh_.data(), call.ld_feed = c.F();
    call.bias = given(c.L * width);
    if (gru) call.b_hn = given(c.L * c.H);
    call.h_0 = given(c.L * c.B * c.H);
    if (lstm) call.c_0 = given(c.L * c.B * c.H);
    if (!call.query_first) call.feed_0 = given(c.B * c.F());
    call.keys = given(c.B * c.S * c.A()), call.values = given(c.B * c.S * c.C());
    if (c.A() != c.H || c.additive()) call.w_query = given(c.A() * c.H);
    if (c.additive()) call.v = given(c.A());
    if (covers) call.w_coverage = given(c.A()), call.coverage_0 = given(c.B * c.S);
    if (c.combines()) call.w_out = given(c.O() * (c.C() + c.H)), call.b_out = given(c.O());
    if (c.L > 1) call.dropout_mask = given((c.L - 1) * N * c.H);

    static_cast<Decoder<T>&>(forward) = call;
    forward.z = result(N * c.H), forward.context = result(N * c.C());
    forward.alignments = result(N * call.heads * c.S);
    forward.attentional = result(N * c.O());
    forward.h_n = result(c.L * c.B * c.H);
    forward.c_n = lstm ? result(c.L * c.B * c.H) : nullptr;
    forward.feed_n = result(c.B * c.F());
    forward.coverage_n = covers ? result(c.B * c.S) : nullptr;
    forward.kept = {result(c.L * N * slots * c.H),
                    result(c.L * N * c.H),
                    before ? result(c.L * N * c.H) : nullptr,
                    result((c.L - 1) * N * c.H),
                    result(N * c.A()),
                    covers ? result(N * c.S) : nullptr};

    static_cast<Decoder<T>&>(backward) = call;
    const DecoderKept<T>& kept = forward.kept;
    backward.kept = {kept.step, kept.h_in, kept.inner, kept.below, kept.query, kept.coverage};
    backward.context = forward.context, backward.alignments = forward.alignments;
    backward.attentional = forward.attentional;
    backward.d_z = given(N * c.H), backward.d_context = given(N * c.C());
    backward.d_alignments = given(N * call.heads * c.S);
    backward.d_attentional = c.combines() ? given(N * c.O()) : nullptr;
    backward.d_h_n = given(c.L * c.B * c.H);
    backward.d_c_n = lstm ? given(c.L * c.B * c.H) : nullptr;
    backward.d_feed_n = given(c.B * c.F());
    backward.d_coverage_n = covers ? given(c.B * c.S) : nullptr;
    backward.d_gates = result(c.L * N * width);
    backward.d_sum = gru ? result(c.L * N * width) : nullptr;
    backward.d_query = result(N * c.A());
    backward.d_energy = c.additive() ? nullptr : result(N * call.heads * c.S);
    backward.whole_context = result(N * c.C());
    backward.d_out = c.combines() ? result(N * c.O()) : nullptr;
    backward.d_keys = c.additive() ? result(c.B * c.S * c.A()) : nullptr;
    backward.d_v = c.additive() ? result(c.B * c.A()) : nullptr;
    backward.d_w_coverage = covers ? result(c.B * c.A()) : nullptr;
    backward.d_h_0 = result(c.L * c.B * c.H);
    backward.d_c_0 = lstm ? result(c.L * c.B * c.H) : nullptr;
    backward.d_feed_0 = result(c.B * c.F());
    backward.d_coverage_0 = covers ? result(c.B * c.S) : nullptr;
  }

  // All that the kernels wrote.
  template <typename Widened>
  Values results(const Widened& widened) const {
    Values all;
    for (const auto& array : results_)
      for (const T& x : array) all.push_back(widened(x));
    return all;
  }

  Forward forward{};
  Backward backward{};
  std::vector<int64_t> lengths, sources;

 private:
  std::vector<const T*> w_in_, w_hh_;
  std::vector<std::vector<T>> given_, results_;  // whose own memory does not move
};

inline bool agree(const std::string& what, const Values& got, const Values& want,
                  double tolerance) {
  for (size_t i = 0; i < want.size(); ++i) {
    if (std::abs(got[i] - want[i]) <= tolerance * (1 + std::abs(want[i]))) continue;  // NaN: no
    std::printf("%s: [%zu] is %.9g, expected %.9g\n", what.c_str(), i, got[i], want[i]);
    return false;
  }
  return true;
}

}  // namespace seq2seq_ext
