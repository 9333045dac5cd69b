// The recurrence with variants on every instruction set of this CPU and teams of several sizes:
// all must give what the baseline gives alone in double. What is right, tests/test_recurrence.py
// tells; here are the edges of vectors and panels, exact arrays, and sanitizers. From weights that
// stay packed: the same bits, or what the baseline gives of rounded ones.
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "recurrence_case.h"
#include "rounded.h"
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

// Forward alone, which keeps nothing; from packed weights if a type is given.
template <typename T>
Values outputs(const RecurrenceInputs& in, const Kernels& kernels, int threads,
               const WeightType* type = nullptr) {
  const auto of_type = [](auto f32, auto f64) {
    if constexpr (std::is_same_v<T, float>)
      return f32;
    else
      return f64;
  };
  RecurrenceArrays<T> arrays(in, [](double value) { return static_cast<T>(value); });
  Planned<RecurrenceForward<T>> f{};
  arrays.fill_forward(f);
  f.kept = {};
  f.plan.threads = threads;
  std::vector<std::unique_ptr<Block>> blocks;
  const auto pack = [&](const T* w, int64_t K, int64_t N) -> PackedBlock {
    blocks.push_back(std::make_unique<Block>(
        of_type(kernels.matrix_size_f32, kernels.matrix_size_f64)(K, N, *type)));
    void* const memory = blocks.back()->data();
    of_type(kernels.pack_matrix_f32, kernels.pack_matrix_f64)(w, K, N, *type, memory);
    return {memory, *type};
  };
  if (type != nullptr) {
    const bool two = arrays.reset_before();
    const int64_t first = two ? 2 * f.H : in.c.G() * f.H;
    f.packed_hh = pack(f.w_hh, f.P, first);
    if (two) f.packed_hn = pack(f.w_hh + first * f.P, f.P, f.H);
    if (f.w_hr != nullptr) f.packed_hr = pack(f.w_hr, f.H, f.P);
  }
  run_kernel(
      f,
      of_type(kernels.recurrence_forward_workspace_f32, kernels.recurrence_forward_workspace_f64),
      of_type(kernels.recurrence_forward_f32, kernels.recurrence_forward_f64));
  Values all;
  for (const auto* array : {&arrays.y, &arrays.cells, &arrays.h_n, &arrays.c_n})
    all.insert(all.end(), array->begin(), array->end());
  return all;
}

// Failures of calls with weights that stay packed, of 7 checks.
int check_packed(const RecurrenceInputs& in, const Kernels& kernels) {
  const RecurrenceCase& c = in.c;
  const std::string name = kernels.name;
  const auto same = [&](const std::string& how, const Values& got, const Values& want) {
    return agree(c, how.c_str(), got, want, 0);
  };
  WeightType type = WeightType::kFull;
  int failures = 0;
  const Values alone = outputs<float>(in, kernels, 1);
  failures += !same(name + " packed", outputs<float>(in, kernels, 1, &type), alone);
  failures += !same(name + " packed, team", outputs<float>(in, kernels, 3, &type), alone);
  failures += !same(name + " f64 packed", outputs<double>(in, kernels, 3, &type),
                    outputs<double>(in, kernels, 1));
  for (const WeightType narrow : {WeightType::kBf16, WeightType::kInt8}) {
    type = narrow;
    RecurrenceInputs rounded = in;
    round_matrix(rounded.w_hh, c.G() * c.H, type);
    round_matrix(rounded.w_hr, c.P(), type);
    const std::string how = name + (type == WeightType::kBf16 ? " bf16" : " int8");
    const Values found = outputs<float>(in, kernels, 1, &type);
    failures += !agree(c, how.c_str(), found, outputs<double>(rounded, kernels, 1), 2e-3);
    failures += !same(how + ", team", outputs<float>(in, kernels, 3, &type), found);
  }
  return failures;
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
            checks += 7;
            failures += check_packed(in, *kernels);
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
