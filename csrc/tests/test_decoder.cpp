// The decoder that attends on every instruction set of this CPU and teams of several sizes: all
// must give what the baseline gives alone in double. What is right, tests/test_attention_decoder.py
// tells; here are the edges of vectors and panels, exact arrays, and sanitizers.
#include <cmath>
#include <cstdio>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "random.h"
#include "run_kernel.h"

using namespace seq2seq_ext;

namespace {

using Values = std::vector<double>;

enum class Way { kDot, kHeads, kPrevious, kCoverage, kContext };

struct Case {
  Cell cell;
  Way way;
  int64_t L, B, S, H;
  bool ragged;

  int64_t G() const { return num_gates(cell); }
  int64_t A() const { return way == Way::kDot || way == Way::kContext ? H : 6; }
  int64_t C() const { return 4; }
  bool combines() const { return way != Way::kPrevious && way != Way::kContext; }
  int64_t O() const { return combines() ? 5 : 0; }
  int64_t F() const { return combines() ? O() : C(); }
  bool additive() const { return way == Way::kPrevious || way == Way::kCoverage; }
};

constexpr int64_t kSteps = 3;

// A call's arrays, each of exactly its size: numbers at random, results full of NaN.
template <typename T>
class Arrays {
 public:
  Arrays(const Case& c, uint64_t seed) : c_(c), random_(seed) {
    const int64_t N = kSteps * c.B, width = c.G() * c.H, slots = kept_slots(c.cell);
    const bool covers = c.way == Way::kCoverage, lstm = c.cell == Cell::kLstm;
    const bool before = c.cell == Cell::kGruResetBefore, gru = c.cell == Cell::kGru;
    call_.cell = c.cell;
    call_.T_ = kSteps, call_.B = c.B, call_.S = c.S, call_.L = c.L, call_.H = c.H;
    call_.A = c.A(), call_.C = c.C(), call_.O = c.O(), call_.F = c.F();
    call_.heads = c.way == Way::kHeads ? 2 : 1;
    call_.residual = c.L > 1 ? 1 : 0;
    call_.additive = c.additive(), call_.query_first = c.way == Way::kPrevious;
    call_.scale = 0.7;
    if (c.ragged) {
      for (int64_t b = 0; b < c.B; ++b) lengths_.push_back((b + kSteps) % (kSteps + 1));
      for (int64_t b = 0; b < c.B; ++b) sources_.push_back((b * 5 + c.S) % (c.S + 1));
      call_.length = lengths_.data(), call_.source = sources_.data();
    }
    call_.x = given(N * width);
    for (int64_t l = 0; l < c.L; ++l) {
      w_in_.push_back(given(width * (l == 0 ? c.F() : c.H)));
      w_hh_.push_back(given(width * c.H));
    }
    call_.w_in = w_in_.data(), call_.w_hh = w_hh_.data(), call_.ld_feed = c.F();
    call_.bias = given(c.L * width);
    if (gru) call_.b_hn = given(c.L * c.H);
    call_.h_0 = given(c.L * c.B * c.H);
    if (lstm) call_.c_0 = given(c.L * c.B * c.H);
    if (!call_.query_first) call_.feed_0 = given(c.B * c.F());
    call_.keys = given(c.B * c.S * c.A()), call_.values = given(c.B * c.S * c.C());
    if (c.A() != c.H || c.additive()) call_.w_query = given(c.A() * c.H);
    if (c.additive()) call_.v = given(c.A());
    if (covers) call_.w_coverage = given(c.A()), call_.coverage_0 = given(c.B * c.S);
    if (c.combines()) call_.w_out = given(c.O() * (c.C() + c.H)), call_.b_out = given(c.O());
    if (c.L > 1) call_.dropout_mask = given((c.L - 1) * N * c.H);

    static_cast<Decoder<T>&>(forward) = call_;
    forward.z = result(N * c.H), forward.context = result(N * c.C());
    forward.alignments = result(N * call_.heads * c.S);
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

    static_cast<Decoder<T>&>(backward) = call_;
    const DecoderKept<T>& kept = forward.kept;
    backward.kept = {kept.step, kept.h_in, kept.inner, kept.below, kept.query, kept.coverage};
    backward.context = forward.context, backward.alignments = forward.alignments;
    backward.attentional = forward.attentional;
    backward.d_z = given(N * c.H), backward.d_context = given(N * c.C());
    backward.d_alignments = given(N * call_.heads * c.S);
    backward.d_attentional = c.combines() ? given(N * c.O()) : nullptr;
    backward.d_h_n = given(c.L * c.B * c.H);
    backward.d_c_n = lstm ? given(c.L * c.B * c.H) : nullptr;
    backward.d_feed_n = given(c.B * c.F());
    backward.d_coverage_n = covers ? given(c.B * c.S) : nullptr;
    backward.d_gates = result(c.L * N * width);
    backward.d_sum = gru ? result(c.L * N * width) : nullptr;
    backward.d_query = result(N * c.A());
    backward.d_energy = c.additive() ? nullptr : result(N * call_.heads * c.S);
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
  Values results() const {
    Values all;
    for (const auto& array : results_) all.insert(all.end(), array.begin(), array.end());
    return all;
  }

  Planned<DecoderForward<T>> forward{};
  Planned<DecoderBackward<T>> backward{};

 private:
  const T* given(int64_t count) {
    std::vector<T> array(count);
    for (T& x : array) x = static_cast<T>(2 * random_.uniform() - 1);
    given_.push_back(std::move(array));
    return given_.back().data();
  }
  T* result(int64_t count) {
    results_.emplace_back(count, std::numeric_limits<T>::quiet_NaN());
    return results_.back().data();
  }

  Case c_;
  Random random_;
  Decoder<T> call_{};
  std::vector<int64_t> lengths_, sources_;
  std::vector<const T*> w_in_, w_hh_;
  std::vector<std::vector<T>> given_, results_;  // whose own memory does not move
};

template <typename T>
Values results(const Case& c, uint64_t seed, const Kernels& kernels, int threads) {
  Arrays<T> arrays(c, seed);
  arrays.forward.plan.threads = arrays.backward.plan.threads = threads;
  if constexpr (std::is_same_v<T, float>) {
    run_kernel(arrays.forward, kernels.decoder_forward_workspace_f32, kernels.decoder_forward_f32);
    run_kernel(arrays.backward, kernels.decoder_backward_workspace_f32,
               kernels.decoder_backward_f32);
  } else {
    run_kernel(arrays.forward, kernels.decoder_forward_workspace_f64, kernels.decoder_forward_f64);
    run_kernel(arrays.backward, kernels.decoder_backward_workspace_f64,
               kernels.decoder_backward_f64);
  }
  return arrays.results();
}

bool agree(const std::string& what, const Values& got, const Values& want, double tolerance) {
  for (size_t i = 0; i < want.size(); ++i) {
    if (std::abs(got[i] - want[i]) <= tolerance * (1 + std::abs(want[i]))) continue;  // NaN: no
    std::printf("%s: [%zu] is %.9g, expected %.9g\n", what.c_str(), i, got[i], want[i]);
    return false;
  }
  return true;
}

}  // namespace

int main() {
  int checks = 0, failures = 0;
  std::vector<const Kernels*> tables;
  for (const std::string& isa : available_cpu_isas()) tables.push_back(&kernels_for(isa));
  uint64_t number = 0;
  for (const Cell cell :
       {Cell::kLstm, Cell::kGru, Cell::kGruResetBefore, Cell::kRnnTanh, Cell::kRnnRelu}) {
    for (const Way way : {Way::kDot, Way::kHeads, Way::kPrevious, Way::kCoverage, Way::kContext}) {
      for (const int64_t H : {1, 7, 16, 33}) {
        for (const int64_t L : {1, 3}) {
          ++number;
          const Case c{cell,           way, L, number % 3 == 0 ? 1 : 5, int64_t(number % 4) * 6, H,
                       number % 2 == 0};
          const Values want = results<double>(c, number, *tables.front(), 1);
          for (const Kernels* kernels : tables) {
            for (const int threads : {1, 3}) {
              const std::string what = std::string(kernels->name) + ", case " +
                                       std::to_string(number) + ", threads " +
                                       std::to_string(threads);
              checks += 2;
              failures += !agree(what, results<double>(c, number, *kernels, threads), want, 1e-10);
              failures += !agree(what + ", float", results<float>(c, number, *kernels, threads),
                                 want, 1e-2);
            }
          }
        }
      }
    }
  }
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures > 0;
}
