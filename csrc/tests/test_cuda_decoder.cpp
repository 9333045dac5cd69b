// The CUDA kernels of the decoder that attends, executed on the CPU, against the CPU's own in
// double: every cell, type and way of attending, on several schedules of the threads.
//
//   test_cuda_decoder           all cases
//   test_cuda_decoder mutants   takes out one barrier at a time, and fails where nobody notices
#include <algorithm>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "cuda/decoder.cuh"
#include "cuda/device.cuh"
#include "cuda_cpu.h"
#include "cuda_steps.h"
#include "decoder_case.h"
#include "mutants.h"
#include "run_kernel.h"

using namespace seq2seq_ext;
using namespace seq2seq_ext::cuda;

namespace {

// What csrc/cuda/decoder.cpp does with torch's memory and products, with vectors and a loop.
template <typename T>
class Call {
 public:
  using A = Accumulator<T>;

  Call(const DecoderCase& c, uint64_t seed)
      : c(c),
        arrays(c, seed, [](double value) { return narrow<T>(A(value)); }),
        f(arrays.forward),
        b(arrays.backward),
        width(c.G() * c.H),
        early(reset_before() ? 2 * c.H : width),
        length_(arrays.lengths.begin(), arrays.lengths.end()),
        source_(arrays.sources.begin(), arrays.sources.end()) {}

  Values results() {
    forward();
    backward();
    return arrays.results([](T value) { return double(widen(value)); });
  }

 private:
  bool reset_before() const { return c.cell == Cell::kGruResetBefore; }
  int64_t read(int64_t l) const { return l == 0 ? c.F() : c.H; }

  template <typename N = T>
  N* take(int64_t count) {
    auto& memory = [this]() -> auto& {
      if constexpr (std::is_same_v<N, T>) {
        return numbers_;
      } else {
        return sums_;
      }
    }();
    memory.emplace_back(count, narrow<N>(std::numeric_limits<A>::quiet_NaN()));
    return memory.back().data();
  }

  template <typename Call>
  void take_sequences(Call& call, DecoderSequences& m) {
    call.length = call.source = call.memory = nullptr;
    m.length = length_.empty() ? nullptr : length_.data();
    m.source = source_.empty() ? nullptr : source_.data();
  }

  // The rows of step t of layer l in an array (L, N, columns).
  template <typename N>
  N* at_step(N* all, int64_t l, int64_t t, int64_t columns) const {
    return all + (l * c.T + t) * c.B * columns;
  }

  void forward() {
    const int64_t B = c.B, H = c.H, joined = c.C() + H;
    DecoderState<T> m{};
    take_sequences(f, m);
    m.h = take<A>(c.L * B * H), m.c = c.cell == Cell::kLstm ? take<A>(c.L * B * H) : nullptr;
    m.coverage = c.way == Way::kCoverage ? take<A>(B * c.S) : nullptr;
    m.energy = take<A>(B * f.heads * c.S);
    m.feed = take(B * c.F()), m.top = take(B * H), m.gates = take(B * width);
    m.sums = take(B * early), m.candidate = reset_before() ? take(B * H) : nullptr;
    m.joined = c.combines() ? take(B * joined) : nullptr;
    m.out = c.combines() ? take(B * c.O()) : nullptr;
    const auto attend = [&](int64_t t) {
      if (f.projects())
        multiply(B, H, c.A(), m.top, H, f.w_query, H, true, at_step(f.kept.query, 0, t, c.A()));
      expect(decoder_attend(f, m, t, nullptr));
    };
    expect(decoder_begin(f, m, nullptr));
    for (int64_t t = 0; t < c.T; ++t) {
      if (f.query_first) attend(t);
      for (int64_t l = 0; l < c.L; ++l) {
        const T* below = l == 0 ? m.feed : at_step(f.kept.below, l - 1, t, H);
        multiply(B, read(l), width, below, read(l), f.w_in[l], read(l), true, m.gates);
        multiply(B, H, early, at_step(f.kept.h_in, l, t, H), H, f.w_hh[l], H, true, m.sums);
        if (reset_before()) {
          expect(decoder_reset(f, m, t, l, nullptr));
          multiply(B, H, H, at_step(f.kept.inner, l, t, H), H, f.w_hh[l] + early * H, H, true,
                   m.candidate);
        }
        expect(decoder_step(f, m, t, l, nullptr));
      }
      if (!f.query_first) attend(t);
      if (!c.combines()) continue;
      multiply(B, joined, c.O(), m.joined, joined, f.w_out, joined, true, m.out);
      expect(decoder_combine(f, m, t, nullptr));
    }
    expect(decoder_end(f, m, nullptr));
  }

  void backward() {
    const int64_t B = c.B, H = c.H, joined = c.C() + H;
    DecoderStateGradient<T> m{};
    take_sequences(b, m);
    m.h = take<A>(c.L * B * H), m.c = c.cell == Cell::kLstm ? take<A>(c.L * B * H) : nullptr;
    m.coverage = c.way == Way::kCoverage ? take<A>(B * c.S) : nullptr;
    m.energy = take<A>(c.T * B * b.heads * c.S);
    m.feed = take<A>(B * c.F()), m.z = take<A>(B * H), m.work = take<A>(B * H);
    m.h_in = take(B * H), m.reset_h = reset_before() ? take(B * H) : nullptr;
    m.below = take(B * std::max(c.F(), H)), m.query = b.projects() ? take(B * H) : nullptr;
    m.joined = c.combines() ? take(B * joined) : nullptr;
    const auto attend = [&](int64_t t) {
      expect(decoder_attend(b, m, t, nullptr));
      if (b.projects())
        multiply(B, c.A(), H, at_step(b.d_query, 0, t, c.A()), c.A(), b.w_query, H, false, m.query);
    };
    expect(decoder_begin(b, m, nullptr));
    for (int64_t t = c.T - 1; t >= 0; --t) {
      if (c.combines()) {
        expect(decoder_combine(b, m, t, nullptr));
        multiply(B, c.O(), joined, at_step(b.d_out, 0, t, c.O()), c.O(), b.w_out, joined, false,
                 m.joined);
      }
      if (!b.query_first) attend(t);
      for (int64_t l = c.L - 1; l >= 0; --l) {
        const T* d_sums = at_step(b.d_sum != nullptr ? b.d_sum : b.d_gates, l, t, width);
        expect(decoder_step(b, m, t, l, nullptr));
        if (reset_before()) {
          multiply(B, H, H, d_sums + early, width, b.w_hh[l] + early * H, H, false, m.reset_h);
          expect(decoder_reset(b, m, t, l, nullptr));
        }
        multiply(B, early, H, d_sums, width, b.w_hh[l], H, false, m.h_in);
        multiply(B, width, read(l), at_step(b.d_gates, l, t, width), width, b.w_in[l], read(l),
                 false, m.below);
      }
      if (b.query_first) attend(t);
    }
    expect(decoder_end(b, m, nullptr));
    if (c.additive()) expect(decoder_keys(b, m, nullptr));
  }

  const DecoderCase c;
  DecoderArrays<T> arrays;
  DecoderForward<T>& f;
  DecoderBackward<T>& b;
  const int64_t width, early;
  std::vector<int32_t> length_, source_;
  std::vector<std::vector<T>> numbers_;  // whose own memory does not move
  std::vector<std::vector<A>> sums_;
};

Values on_the_cpu(const DecoderCase& c, uint64_t seed) {
  DecoderArrays<double, Planned<DecoderForward<double>>, Planned<DecoderBackward<double>>> arrays(
      c, seed, [](double value) { return value; });
  const Kernels& k = active_kernels();
  run_kernel(arrays.forward, k.decoder_forward_workspace_f64, k.decoder_forward_f64);
  run_kernel(arrays.backward, k.decoder_backward_workspace_f64, k.decoder_backward_f64);
  return arrays.results([](double value) { return value; });
}

template <typename T>
void check(const DecoderCase& c, uint64_t seed, const Values& want, const char* type,
           double tolerance) {
  ++checks;
  failures += !agree("case " + std::to_string(seed) + ", " + type, Call<T>(c, seed).results(), want,
                     tolerance);
}

void run_cases() {
  uint64_t number = 0;
  for (const Cell cell :
       {Cell::kLstm, Cell::kGru, Cell::kGruResetBefore, Cell::kRnnTanh, Cell::kRnnRelu}) {
    for (const Way way : kWays) {
      for (const int64_t H : {3, 40}) {
        for (const int64_t L : {1, 3}) {
          ++number;
          cuda_cpu::set_schedule(kSchedules[number % 4]);
          const DecoderCase c{cell, way, L, 3, int64_t(number % 4) * 3, H, number % 3 > 0};
          const Values want = on_the_cpu(c, number);
          check<double>(c, number, want, "double", 1e-11);
          check<float>(c, number, want, "float", 1e-2);
          // Rounding moves a value across a corner, where gradients jump.
          if (cell == Cell::kRnnRelu || L > 1 || H > 3) continue;
          check<__half>(c, number, want, "half", 0.05);
          check<__nv_bfloat16>(c, number, want, "bfloat16", 0.3);
        }
      }
    }
  }
}

bool run_for_mutants() {
  for (const char* schedule : kSchedules) {
    cuda_cpu::set_schedule(schedule);
    const DecoderCase c{Cell::kGru, Way::kDot, 1, 2, 9, 70, false};
    check<double>(c, 1, on_the_cpu(c, 1), "double", 1e-11);
  }
  return failures == 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "mutants") return check_mutants(run_for_mutants);
  run_cases();
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures > 0;
}
