// The operators recurrence, recurrence_backward and recurrence_tangent on CPU tensors.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <utility>

#include "../glue/recurrence.h"
#include "dispatch.h"
#include "kernels.h"
#include "packed.h"
#include "plan.h"
#include "scratch.h"
#include "team_run.h"

namespace seq2seq_ext {
namespace {

template <typename T>
void fill(const RecurrenceArguments& a, Scratch::Frame& frame, bool backward, int vector_bytes,
          std::optional<WeightType> packed, Recurrence<T>& call, Plan& plan) {
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
  const Problem problem{cell, backward, packed, a.T, a.B,       a.N,          0,
                        a.H,  a.P,      1,      1,   sizeof(T), vector_bytes, true};
  plan = make_plan(problem, static_cast<int>(torch::stable::get_num_threads()));
}

// Blocks of a call's matrices, checked: of w_hh, of which a reset before has two, then of w_hr.
class PackedWeights {
 public:
  PackedWeights(RecurrenceArguments& a, const RecurrenceForwardGiven& given) : there_(false) {
    if (given.packed.empty()) return;
    if (given.save)
      fail("packed: expected none with save, for backward reads the weights themselves");
    if (given.turn < 0) fail("turn: expected a number of steps, got ", given.turn);
    const bool reset_before = a.cell == Cell::kGruResetBefore;
    const size_t count = 1 + (reset_before ? 1 : 0) + (a.projected ? 1 : 0);
    if (given.packed.size() != count)
      fail("packed: expected none or ", count, " blocks for the cell ", a.cell,
           a.projected ? " with a projection" : "", ", got ", given.packed.size());
    const auto block = [&](const MatrixRows& rows, size_t i) {
      return packed_block(a, rows, View(given.packed[i]), given.turn, a.T);
    };
    const int64_t rows = a.gates(), first = reset_before ? 2 * a.H : rows;
    hh_ = block({"w_hh", a.w_hh, 0, first}, 0);
    if (reset_before) hn_ = block({"w_hh", a.w_hh, first, rows}, 1);
    if (a.projected) hr_ = block({"w_hr", a.w_hr, 0, a.P}, 1);
    there_ = true;
  }

  std::optional<WeightType> type() const { return there_ ? std::optional(hh_.type) : std::nullopt; }
  template <typename T>
  void fill(Planned<RecurrenceForward<T>>& call) const {
    call.packed_hh = hh_, call.packed_hn = hn_, call.packed_hr = hr_;
  }

 private:
  bool there_;
  PackedBlock hh_, hn_, hr_;
};

// Runs a kernel; each of the parts fills its own into the call.
template <typename Call, typename... Parts>
void run(const RecurrenceArguments& a, bool backward, std::optional<WeightType> packed,
         size_t (*workspace)(const Call&), void (*kernel)(const Call&, const Member&, void*),
         const Parts&... parts) {
  if (a.B == 0) return;
  Scratch::Frame frame;
  Call call{};
  fill(a, frame, backward, active_kernels().vector_bytes, packed, call, call.plan);
  (parts.fill(call), ...);
  run_team(call, workspace, kernel);
}

void recurrence(StableIValue* stack, uint64_t, uint64_t) {
  with_readable_errors([&] {
    ArgumentReader read(stack);
    const RecurrenceForwardGiven given(read);
    RecurrenceArguments a(given, !given.packed.empty());
    const PackedWeights weights(a, given);
    RecurrenceOutputs out(a, given.save, given.return_cells);
    const Kernels& k = active_kernels();
    if (a.in_float()) {
      run(a, false, weights.type(), k.recurrence_forward_workspace_f32, k.recurrence_forward_f32,
          out, weights);
    } else {
      run(a, false, weights.type(), k.recurrence_forward_workspace_f64, k.recurrence_forward_f64,
          out, weights);
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
    if (a.in_float()) {
      run(a, true, std::nullopt, k.recurrence_backward_workspace_f32, k.recurrence_backward_f32, d,
          out);
    } else {
      run(a, true, std::nullopt, k.recurrence_backward_workspace_f64, k.recurrence_backward_f64, d,
          out);
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
    if (a.in_float()) {
      run(a, false, std::nullopt, k.recurrence_tangent_workspace_f32, k.recurrence_tangent_f32,
          rest, out);
    } else {
      run(a, false, std::nullopt, k.recurrence_tangent_workspace_f64, k.recurrence_tangent_f64,
          rest, out);
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
