// The operators prepack_matrix and linear on CPU tensors: a weight matrix that stays packed, and
// the product of any number of rows with it.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <utility>

#include "../glue/arguments.h"
#include "../glue/tensors.h"
#include "dispatch.h"
#include "kernels.h"
#include "packed.h"
#include "plan.h"
#include "team_run.h"

namespace seq2seq_ext {
namespace {

void check_matrix(const View& w) {
  if (w.dim != 2 || w.size[0] == 0 || w.size[1] == 0)
    fail("w: expected 2 dimensions, neither of size 0, got shape ", w);
}

void prepack_matrix(StableIValue* stack, uint64_t, uint64_t) {
  with_readable_errors([&] {
    ArgumentReader read(stack);
    const Handle given = read.tensor();
    const auto dtype = read.optional_dtype();
    const View w(given);
    Common common(w, "w");
    check_matrix(w);
    stack[0] = result(pack(common, {"w", w, 0, w.size[0]}, weight_type_of(dtype, common)));
  });
}

template <typename T>
void multiply(Linear<T> call) {
  const Kernels& k = active_kernels();
  const LinearProblem problem{call.rows,        call.K,    call.N,
                              call.packed.type, sizeof(T), k.vector_bytes};
  call.plan = make_plan(problem, static_cast<int>(torch::stable::get_num_threads()));
  if constexpr (std::is_same_v<T, float>) {
    run_team(call, k.linear_workspace_f32, k.linear_f32);
  } else {
    run_team(call, k.linear_workspace_f64, k.linear_f64);
  }
}

void linear(StableIValue* stack, uint64_t, uint64_t) {
  with_readable_errors([&] {
    ArgumentReader read(stack);
    const Handle given_x = read.tensor(), given_w = read.tensor();
    const Handle given_bias = read.optional_tensor(), packed = read.tensor();
    const int64_t turn = read.integer();
    const View x(given_x), w(given_w), bias(given_bias);
    Common common(x);
    check_matrix(w);
    const int64_t N = w.size[0], K = w.size[1];
    common.check("w", w, {{N, K}, 2});
    if (x.dim < 2 || x.dim > 3 || x.size[x.dim - 1] != K)
      fail("x: expected shape (N, ", K, ") or (T, B, ", K, "), got ", x);
    if (bias) common.check("bias", bias, {{N}, 1});
    if (turn < 0) fail("turn: expected a number of steps, got ", turn);
    const int64_t steps = std::max<int64_t>(x.size[0], 1);
    const PackedBlock block = packed_block(common, {"w", w, 0, N}, View(packed), turn, steps);

    Shape shape{{}, x.dim};
    std::copy_n(x.size, x.dim - 1, shape.size);
    shape.size[x.dim - 1] = N;
    Handle y = empty(shape, common.computed);
    const void* rows = common.contiguous(common.widened(x)).data();
    const void* add = common.contiguous(common.widened(bias)).data();
    const auto run = [&](auto number) {
      using T = decltype(number);
      multiply<T>({x.numel() / K,
                   K,
                   N,
                   static_cast<const T*>(rows),
                   block,
                   static_cast<const T*>(add),
                   static_cast<T*>(data_of(y)),
                   {}});
    };
    if (x.numel() > 0) {
      if (common.in_float())
        run(float());
      else
        run(double());
    }
    stack[0] = result(in_dtype(std::move(y), common.dtype));
  });
}

}  // namespace
}  // namespace seq2seq_ext

STABLE_TORCH_LIBRARY_IMPL(seq2seq_ext, CPU, m) {
  m.impl("prepack_matrix", &seq2seq_ext::prepack_matrix);
  m.impl("linear", &seq2seq_ext::linear);
}
