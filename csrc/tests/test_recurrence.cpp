// The recurrence with variants on every instruction set of this CPU and teams of several sizes:
// all must give what the baseline gives alone in double. What is right, tests/test_recurrence.py
// tells; here are the edges of vectors and panels, exact arrays, and sanitizers.
#include <string>
#include <type_traits>

#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "recurrence_case.h"
#include "run_kernel.h"

using namespace seq2seq_ext;

namespace {

template <typename T>
Values results(const RecurrenceInputs& in, const Kernels& kernels, int threads) {
  RecurrenceArrays<T> arrays(in, [](double value) { return static_cast<T>(value); });
  Planned<RecurrenceForward<T>> f{};
  Planned<RecurrenceBackward<T>> b{};
  arrays.fill_forward(f);
  arrays.fill_backward(b);
  f.plan.threads = b.plan.threads = threads;
  if constexpr (std::is_same_v<T, float>) {
    run_kernel(f, kernels.recurrence_forward_workspace_f32, kernels.recurrence_forward_f32);
    run_kernel(b, kernels.recurrence_backward_workspace_f32, kernels.recurrence_backward_f32);
  } else {
    run_kernel(f, kernels.recurrence_forward_workspace_f64, kernels.recurrence_forward_f64);
    run_kernel(b, kernels.recurrence_backward_workspace_f64, kernels.recurrence_backward_f64);
  }
  return arrays.results([](T value) { return static_cast<double>(value); });
}

}  // namespace

int main() {
  int checks = 0, failures = 0;
  std::vector<const Kernels*> tables;
  for (const std::string& isa : available_cpu_isas()) tables.push_back(&kernels_for(isa));
  uint64_t number = 0;
  for (const Cell cell : {Cell::kLstm, Cell::kGru, Cell::kGruResetBefore, Cell::kRnnTanh,
                          Cell::kRnnRelu, Cell::kCoupledLstm}) {
    for (const int64_t H : {1, 7, 16, 33}) {
      for (const Batch batch : {Batch::kDense, Batch::kLengths, Batch::kPacked, Batch::kResets}) {
        for (const unsigned variants : {0u, kNormalized, kNoisy | kMasked, kPeepholes | kClipped,
                                        kProjected | kClipped | kHard, kAllVariants}) {
          if (H == 1 && (variants & kNormalized)) continue;  // one number has no deviation
          ++number;
          const RecurrenceCase c{cell, 4, number % 2 ? 5 : 1, H, batch, number % 3 == 0, variants};
          const RecurrenceInputs in(c, number);
          const Values want = results<double>(in, *tables.front(), 1);
          for (const Kernels* kernels : tables) {
            for (const int threads : {1, 3}) {
              checks += 2;
              failures +=
                  !agree(c, kernels->name, results<double>(in, *kernels, threads), want, 1e-11);
              failures +=
                  !agree(c, kernels->name, results<float>(in, *kernels, threads), want, 2e-3);
            }
          }
        }
      }
    }
  }
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures > 0;
}
