// The operators recurrence, recurrence_backward and recurrence_tangent on CUDA tensors: a library's
// product and a kernel or two a step. Nothing waits for the device, so that a call can be captured
// into a graph.

#include <torch/csrc/stable/library.h>

#include <utility>
#include <vector>

#include "../glue/recurrence.h"
#include "numbers.h"
#include "recurrence.cuh"
#include "runtime.h"
#include "sequences.h"

namespace seq2seq_ext::cuda {
namespace {

template <typename T>
class RecurrenceCall {
 public:
  explicit RecurrenceCall(const RecurrenceArguments& a) : a(a), run(a.device, a.dtype) {
    memory.h = run.template take<Accumulator<T>>(a.B * a.P);
    if (a.has_cell()) memory.c = run.template take<Accumulator<T>>(a.B * a.H);
    memory.work = run.template take<Accumulator<T>>(a.B * a.H);
    const Sequences sequences = sequences_of(a, run);
    memory.length = sequences.length;
    offset = sequences.offset;
    first_row.resize(a.T);
    for (int64_t t = 0, row = 0; t < a.T; row += rows(t), ++t) first_row[t] = row;
  }

  bool reset_before() const { return a.cell == Cell::kGruResetBefore; }
  int64_t time(int64_t s, bool reverse) const { return reverse ? a.T - 1 - s : s; }
  // Rows at time t.
  int64_t rows(int64_t t) const { return a.form == Form::kPacked ? a.batch_sizes[t] : a.B; }

  // Rows of time t of a matrix over all rows: columns [column, column + count) of `width`.
  Matrix at_time(const T* all, int64_t t, int64_t width, int64_t column, int64_t count) const {
    return {const_cast<T*>(all) + first_row[t] * width + column, rows(t), count, width};
  }
  // The first rows of a matrix of one row for each sequence.
  Matrix at_hand(const T* memory, int64_t t, int64_t width) const {
    return {const_cast<T*>(memory), rows(t), width, width};
  }
  static Matrix weight(const T* w, int64_t rows, int64_t columns) {
    return {const_cast<T*>(w), rows, columns, columns};
  }

  const RecurrenceArguments& a;
  Runtime run;
  RecurrenceMemory<T> memory{};
  const int64_t* offset = nullptr;
  std::vector<int64_t> first_row;
};

template <typename T>
RecurrenceOutputs forward(const RecurrenceArguments& a, bool save, bool return_cells) {
  RecurrenceOutputs out(a, save, return_cells);
  if (a.B == 0) return out;
  RecurrenceCall<T> call(a);
  Runtime& run = call.run;
  RecurrenceForward<T> f{};
  a.fill(f);
  out.fill(f);
  f.offset = call.offset;
  const int64_t H = a.H, P = a.P, early = call.reset_before() ? 2 * H : a.gates();
  RecurrenceMemory<T>& m = call.memory;
  m.sums = run.template take<T>(a.B * early);
  if (call.reset_before()) m.candidate = run.template take<T>(a.B * H);
  if (a.projected) m.out = run.template take<T>(a.B * P);
  if (!save) {
    m.h_in = run.template take<T>(a.B * P);
    if (a.projected || call.reset_before()) m.inner = run.template take<T>(a.B * H);
  }
  const auto h_in = [&](int64_t t) {
    return save ? call.at_time(f.kept.h_in, t, P, 0, P) : call.at_hand(m.h_in, t, P);
  };
  const auto inner = [&](int64_t t) {
    return save ? call.at_time(f.kept.inner, t, H, 0, H) : call.at_hand(m.inner, t, H);
  };
  check(recurrence_begin(f, m, run.stream()));
  for (int64_t s = 0; s < a.T; ++s) {
    const int64_t t = call.time(s, f.reverse);
    run.multiply(call.at_hand(m.sums, t, early), h_in(t),
                 call.weight(f.w_hh, early, P).transposed());
    if (call.reset_before()) {
      check(recurrence_reset(f, m, s, run.stream()));
      run.multiply(call.at_hand(m.candidate, t, H), inner(t),
                   call.weight(f.w_hh + early * P, H, P).transposed());
    }
    check(recurrence_step(f, m, s, run.stream()));
    if (a.projected) {
      run.multiply(call.at_hand(m.out, t, P), inner(t), call.weight(f.w_hr, P, H).transposed());
      check(recurrence_leave(f, m, s, run.stream()));
    }
  }
  check(recurrence_end(f, m, run.stream()));
  return out;
}

template <typename T>
RecurrenceGradients backward(const RecurrenceArguments& a, const RecurrenceCotangents& d) {
  RecurrenceGradients out(a, d.save);
  if (a.B == 0) return out;
  RecurrenceCall<T> call(a);
  Runtime& run = call.run;
  RecurrenceBackward<T> f{};
  a.fill(f);
  d.fill(f);
  out.fill(f);
  f.offset = call.offset;
  const int64_t H = a.H, P = a.P, width = a.gates(), early = call.reset_before() ? 2 * H : width;
  RecurrenceMemory<T>& m = call.memory;
  m.d_h_in = run.template take<T>(a.B * P);
  if (a.projected) m.d_inner = run.template take<T>(a.B * H);
  if (call.reset_before()) m.d_reset_h = run.template take<T>(a.B * H);
  const T* d_sum = f.d_sum != nullptr ? f.d_sum : f.d_x;
  check(recurrence_begin(f, m, run.stream()));
  for (int64_t s = a.T - 1; s >= 0; --s) {
    const int64_t t = call.time(s, f.reverse);
    if (a.projected) {
      check(recurrence_leave(f, m, s, run.stream()));
      run.multiply(call.at_hand(m.d_inner, t, H), call.at_time(f.d_out, t, P, 0, P),
                   call.weight(f.w_hr, P, H));
    }
    check(recurrence_step(f, m, s, run.stream()));
    if (call.reset_before()) {
      run.multiply(call.at_hand(m.d_reset_h, t, H), call.at_time(d_sum, t, width, early, H),
                   call.weight(f.w_hh + early * P, H, P));
      check(recurrence_reset(f, m, s, run.stream()));
    }
    run.multiply(call.at_hand(m.d_h_in, t, P), call.at_time(d_sum, t, width, 0, early),
                 call.weight(f.w_hh, early, P));
  }
  check(recurrence_end(f, m, run.stream()));
  return out;
}

template <typename T>
TangentOutputs tangent(const RecurrenceArguments& a, const TangentGiven& given) {
  TangentOutputs out(a, given);
  if (a.B == 0) return out;
  RecurrenceCall<T> call(a);
  Runtime& run = call.run;
  RecurrenceTangent<T> f{};
  a.fill(f);
  given.fill(f);
  out.fill(f);
  f.offset = call.offset;
  const RecurrenceForward<T>& forward = f;
  RecurrenceMemory<T>& m = call.memory;
  m.sums = run.template take<T>(a.B * a.gates());
  check(recurrence_begin(forward, m, run.stream()));
  for (int64_t s = 0; s < a.T; ++s) {
    const int64_t t = call.time(s, f.reverse);
    run.multiply(call.at_hand(m.sums, t, a.gates()), call.at_time(f.kept.h_in, t, a.P, 0, a.P),
                 call.weight(f.w_hh, a.gates(), a.P).transposed());
    check(recurrence_step(f, m, s, run.stream()));
  }
  check(recurrence_end(forward, m, run.stream()));
  return out;
}

void recurrence(StableIValue* stack, uint64_t, uint64_t) {
  with_readable_errors([&] {
    ArgumentReader read(stack);
    const RecurrenceForwardGiven given(read);
    if (!given.packed.empty()) fail("packed: expected none on CUDA");
    const RecurrenceArguments a(given);
    with_number(a.dtype, [&](auto number) {
      return forward<decltype(number)>(a, given.save, given.return_cells);
    }).put(stack);
  });
}

void recurrence_backward(StableIValue* stack, uint64_t, uint64_t) {
  with_readable_errors([&] {
    ArgumentReader read(stack);
    const RecurrenceGiven given(read);
    RecurrenceCotangents d(read);
    RecurrenceArguments a(given);
    d.check(a);
    with_number(a.dtype, [&](auto number) { return backward<decltype(number)>(a, d); }).put(stack);
  });
}

void recurrence_tangent(StableIValue* stack, uint64_t, uint64_t) {
  with_readable_errors([&] {
    ArgumentReader read(stack);
    const RecurrenceGiven given(read);
    TangentGiven rest(read);
    RecurrenceArguments a(given);
    rest.check(a);
    with_number(a.dtype, [&](auto number) {
      return tangent<decltype(number)>(a, rest);
    }).put(stack);
  });
}

}  // namespace
}  // namespace seq2seq_ext::cuda

#ifdef SEQ2SEQ_EXT_CUDA_ON_CPU
STABLE_TORCH_LIBRARY_IMPL(seq2seq_ext, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(seq2seq_ext, CUDA, m) {
#endif
  m.impl("recurrence", &seq2seq_ext::cuda::recurrence);
  m.impl("recurrence_backward", &seq2seq_ext::cuda::recurrence_backward);
  m.impl("recurrence_tangent", &seq2seq_ext::cuda::recurrence_tangent);
}
