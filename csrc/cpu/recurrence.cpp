// The operators recurrence, recurrence_backward and recurrence_tangent on CPU tensors.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <utility>

#include "../glue/recurrence.h"
#include "dispatch.h"
#include "kernels.h"
#include "plan.h"
#include "scratch.h"
#include "team_run.h"

namespace seq2seq_ext {
namespace {

template <typename T>
void fill(const RecurrenceArguments& a, Scratch::Frame& frame, bool backward, int vector_bytes,
          Recurrence<T>& call, Plan& plan) {
  a.fill(call);
  call.length = a.lengths;
  if (a.form == Form::kPacked) {
    int64_t* offset = frame.take<int64_t>(a.T);
    int64_t* length = frame.take<int64_t>(a.B);
    for (int64_t t = 0, row = 0, b = a.B; t <= a.T; ++t) {
      const int64_t size = t < a.T ? a.batch_sizes[t] : 0;
      while (b > size) length[--b] = t;
      if (t < a.T) offset[t] = row;
      row += size;
    }
    call.offset = offset;
    call.length = length;
  }
  const Cell cell = a.cell == Cell::kCoupledLstm ? Cell::kGru : a.cell;  // as many gates
  const Problem problem{cell, backward, std::nullopt, a.T,          a.B, a.N, 0, a.H, a.P,
                        1,    1,        sizeof(T),    vector_bytes, true};
  plan = make_plan(problem, static_cast<int>(torch::stable::get_num_threads()));
}

// Runs a kernel; each of the parts fills its own into the call.
template <typename Call, typename... Parts>
void run(const RecurrenceArguments& a, bool backward, size_t (*workspace)(const Call&),
         void (*kernel)(const Call&, const Member&, void*), const Parts&... parts) {
  if (a.B == 0) return;
  Scratch::Frame frame;
  Call call{};
  fill(a, frame, backward, active_kernels().vector_bytes, call, call.plan);
  (parts.fill(call), ...);
  run_team(call, workspace, kernel);
}

bool in_float(const RecurrenceArguments& a) { return a.computed == aoti_torch_dtype_float32(); }

void recurrence(StableIValue* stack, uint64_t, uint64_t) {
  with_readable_errors([&] {
    ArgumentReader read(stack);
    const RecurrenceGiven given(read);
    const bool save = read.boolean(), return_cells = read.boolean();
    const RecurrenceArguments a(given);
    RecurrenceOutputs out(a, save, return_cells);
    const Kernels& k = active_kernels();
    if (in_float(a)) {
      run(a, false, k.recurrence_forward_workspace_f32, k.recurrence_forward_f32, out);
    } else {
      run(a, false, k.recurrence_forward_workspace_f64, k.recurrence_forward_f64, out);
    }
    std::move(out).put(stack);
  });
}

void recurrence_backward(StableIValue* stack, uint64_t, uint64_t) {
  with_readable_errors([&] {
    ArgumentReader read(stack);
    const RecurrenceGiven given(read);
    RecurrenceCotangents d(read);
    RecurrenceArguments a(given);
    d.check(a);
    RecurrenceGradients out(a, d.save);
    const Kernels& k = active_kernels();
    if (in_float(a)) {
      run(a, true, k.recurrence_backward_workspace_f32, k.recurrence_backward_f32, d, out);
    } else {
      run(a, true, k.recurrence_backward_workspace_f64, k.recurrence_backward_f64, d, out);
    }
    std::move(out).put(stack);
  });
}

void recurrence_tangent(StableIValue* stack, uint64_t, uint64_t) {
  with_readable_errors([&] {
    ArgumentReader read(stack);
    const RecurrenceGiven given(read);
    TangentGiven rest(read);
    RecurrenceArguments a(given);
    rest.check(a);
    TangentOutputs out(a, rest);
    const Kernels& k = active_kernels();
    if (in_float(a)) {
      run(a, false, k.recurrence_tangent_workspace_f32, k.recurrence_tangent_f32, rest, out);
    } else {
      run(a, false, k.recurrence_tangent_workspace_f64, k.recurrence_tangent_f64, rest, out);
    }
    std::move(out).put(stack);
  });
}

}  // namespace
}  // namespace seq2seq_ext

STABLE_TORCH_LIBRARY_IMPL(seq2seq_ext, CPU, m) {
  m.impl("recurrence", &seq2seq_ext::recurrence);
  m.impl("recurrence_backward", &seq2seq_ext::recurrence_backward);
  m.impl("recurrence_tangent", &seq2seq_ext::recurrence_tangent);
}
