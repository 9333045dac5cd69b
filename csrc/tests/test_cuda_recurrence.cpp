// The CUDA kernels of the recurrence with variants, executed on the CPU, against the CPU's own in
// double: every cell, type and kind of rows, on several schedules of the threads.
//
//   test_cuda_recurrence           all cases
//   test_cuda_recurrence mutants   takes out one barrier at a time, and fails where nobody notices
#include <string>
#include <type_traits>

#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "cuda/device.cuh"
#include "cuda/recurrence.cuh"
#include "cuda_cpu.h"
#include "cuda_steps.h"
#include "mutants.h"
#include "recurrence_case.h"
#include "run_kernel.h"

using namespace seq2seq_ext;
using namespace seq2seq_ext::cuda;

namespace {

// What csrc/cuda/recurrence.cpp does with torch's products, with the ones above.
template <typename T>
Values results(const RecurrenceInputs& in) {
  using A = Accumulator<T>;
  const RecurrenceCase& c = in.c;
  const int64_t B = c.B, H = c.H, P = c.P(), width = c.G() * H;
  const bool reset_before = c.cell == Cell::kGruResetBefore, projected = c.projected();
  const int64_t early = reset_before ? 2 * H : width;
  RecurrenceArrays<T> arrays(in, [](double value) { return narrow<T>(A(value)); });
  RecurrenceForward<T> f{};
  RecurrenceBackward<T> b{};
  arrays.fill_forward(f);
  arrays.fill_backward(b);
  const auto number = [](int64_t count) { return std::vector<T>(count); };
  std::vector<A> h(B * P), cells(c.carries_c() ? B * H : 0), work(B * H);
  std::vector<T> sums = number(B * early), candidate = number(reset_before ? B * H : 0);
  std::vector<T> out = number(projected ? B * P : 0), d_h_in = number(B * P);
  std::vector<T> d_inner = number(projected ? B * H : 0);
  std::vector<T> d_reset_h = number(reset_before ? B * H : 0);
  const std::vector<int32_t> length(in.length.begin(), in.length.end());
  const auto at = [](auto& array) { return array.empty() ? nullptr : array.data(); };
  RecurrenceMemory<T> m{};
  m.length = at(length), m.h = h.data(), m.c = at(cells), m.work = work.data();
  m.sums = sums.data(), m.candidate = at(candidate), m.out = at(out), m.d_h_in = d_h_in.data();
  m.d_inner = at(d_inner), m.d_reset_h = at(d_reset_h);
  const auto time = [&](int64_t s) { return c.reverse ? c.T - 1 - s : s; };
  const auto row = [&](int64_t t) { return in.offset.empty() ? t * B : in.offset[t]; };
  const auto rows = [&](int64_t t) {
    return in.offset.empty() ? B : (t + 1 < c.T ? in.offset[t + 1] : in.N) - in.offset[t];
  };
  expect(recurrence_begin(f, m, nullptr));
  for (int64_t s = 0; s < c.T; ++s) {
    const int64_t t = time(s), count = rows(t);
    const T* inner = f.kept.inner ? f.kept.inner + row(t) * H : nullptr;
    multiply(count, P, early, f.kept.h_in + row(t) * P, P, f.w_hh, P, true, m.sums);
    if (reset_before) {
      expect(recurrence_reset(f, m, s, nullptr));
      multiply(count, P, H, inner, H, f.w_hh + early * P, P, true, m.candidate);
    }
    expect(recurrence_step(f, m, s, nullptr));
    if (projected) {
      multiply(count, H, P, inner, H, f.w_hr, H, true, m.out);
      expect(recurrence_leave(f, m, s, nullptr));
    }
  }
  expect(recurrence_end(f, m, nullptr));
  const T* d_sum = b.d_sum != nullptr ? b.d_sum : b.d_x;
  expect(recurrence_begin(b, m, nullptr));
  for (int64_t s = c.T - 1; s >= 0; --s) {
    const int64_t t = time(s), count = rows(t);
    if (projected) {
      expect(recurrence_leave(b, m, s, nullptr));
      multiply(count, P, H, b.d_out + row(t) * P, P, b.w_hr, H, false, m.d_inner);
    }
    expect(recurrence_step(b, m, s, nullptr));
    if (reset_before) {
      multiply(count, H, P, d_sum + row(t) * width + early, width, b.w_hh + early * P, P, false,
               m.d_reset_h);
      expect(recurrence_reset(b, m, s, nullptr));
    }
    multiply(count, early, P, d_sum + row(t) * width, width, b.w_hh, P, false, m.d_h_in);
  }
  expect(recurrence_end(b, m, nullptr));
  return arrays.results([](T value) { return double(widen(value)); });
}

Values on_the_cpu(const RecurrenceInputs& in) {
  RecurrenceArrays<double> arrays(in, [](double value) { return value; });
  Planned<RecurrenceForward<double>> f{};
  Planned<RecurrenceBackward<double>> b{};
  arrays.fill_forward(f);
  arrays.fill_backward(b);
  const Kernels& kernels = active_kernels();
  run_kernel(f, kernels.recurrence_forward_workspace_f64, kernels.recurrence_forward_f64);
  run_kernel(b, kernels.recurrence_backward_workspace_f64, kernels.recurrence_backward_f64);
  return arrays.results([](double value) { return value; });
}

template <typename T>
void check(const RecurrenceInputs& in, const Values& want, const char* type, double tolerance) {
  ++checks;
  failures += !agree(in.c, type, results<T>(in), want, tolerance);
}

void run_cases() {
  uint64_t number = 0;
  for (const Cell cell : {Cell::kLstm, Cell::kGru, Cell::kGruResetBefore, Cell::kRnnTanh,
                          Cell::kRnnRelu, Cell::kCoupledLstm}) {
    for (const int64_t H : {3, 40}) {
      for (const Batch batch : {Batch::kDense, Batch::kLengths, Batch::kPacked, Batch::kResets}) {
        for (const unsigned variants :
             {0u, kNormalized, kNoisy | kMasked | kPeepholes, kAllVariants}) {
          ++number;
          cuda_cpu::set_schedule(kSchedules[number % 4]);
          const RecurrenceInputs in({cell, 3, 3, H, batch, number % 3 == 0, variants}, number);
          const Values want = on_the_cpu(in);
          check<double>(in, want, "double", 1e-11);
          check<float>(in, want, "float", 2e-3);
          // Rounding moves a value across a limit or a corner, where gradients jump.
          if (in.c.has(kClipped) || cell == Cell::kRnnRelu || in.c.has(kNormalized)) continue;
          check<__half>(in, want, "half", 0.03);
          check<__nv_bfloat16>(in, want, "bfloat16", 0.2);
        }
      }
    }
  }
}

bool run_for_mutants() {
  for (const char* schedule : kSchedules) {
    cuda_cpu::set_schedule(schedule);
    const RecurrenceInputs in({Cell::kLstm, 3, 3, 70, Batch::kDense, false, kNormalized}, 1);
    check<double>(in, on_the_cpu(in), "double", 1e-11);
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
