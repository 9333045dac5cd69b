// One direction of a layer with the variants of row_step.h: what a step does beside its matrix
// products, which are a library's. One block for each sequence, since layer normalization looks at
// all units of a row; its threads go through the units side by side.
#include "recurrence.cuh"

#include "row_units.cuh"

namespace seq2seq_ext::cuda {
namespace {

// ---- where rows lie -----------------------------------------------------------------------------

// The block's step; whether it is one of the sequence's; whether there is a row for it at all.
struct BlockPlace : Place {
  bool runs, there;
};

template <typename T>
__device__ __forceinline__ BlockPlace place(const Recurrence<T>& a, const RecurrenceMemory<T>& m,
                                            int64_t s) {
  BlockPlace at;
  at.b = blockIdx.x;
  at.t = a.reverse ? a.T_ - 1 - s : s;
  at.runs = m.length == nullptr || at.t < m.length[at.b];
  at.there = at.runs || a.offset == nullptr;
  at.row = at.there ? (a.offset == nullptr ? at.t * a.B : a.offset[at.t]) + at.b : 0;
  at.reset = at.runs && a.reset != nullptr && a.reset[at.row] != 0;
  return at;
}

template <typename T>
__device__ __forceinline__ ForwardRow<ThreadUnits<T>> forward_row(const RecurrenceForward<T>& a,
                                                                  const RecurrenceMemory<T>& m,
                                                                  const BlockPlace& at) {
  const int64_t width = num_gates(a.cell) * a.H, b = at.b, row = at.row;
  const bool apart = a.cell == Cell::kGruResetBefore;
  const Kept<T>& kept = a.kept;
  ForwardRow<ThreadUnits<T>> r{};
  r.x = a.x + row * width;
  r.sum = part(m.sums, b, apart ? 2 * a.H : width);
  r.candidate = part(m.candidate, b, a.H);
  r.out = part(m.out, b, a.P);
  r.h = part(m.h, b, a.P);
  r.c = part(m.c, b, a.H);
  r.work = part(m.work, b, a.H);
  r.h_in = kept.h_in != nullptr ? part(kept.h_in, row, a.P) : part(m.h_in, b, a.P);
  r.inner = kept.inner != nullptr ? part(kept.inner, row, a.H) : part(m.inner, b, a.H);
  r.y = a.y + row * a.P;
  r.cells = part(a.cells, row, a.H);
  r.kept_step = part(kept.step, row, kept_slots(a.cell) * a.H);
  r.kept_out = part(kept.out, row, a.P);
  r.kept_sums = part(kept.sums, row, width);
  r.kept_moments = part(kept.moments, row, kMoments);
  return r;
}

template <typename T>
__device__ __forceinline__ BackwardRow<ThreadUnits<T>> backward_row(const RecurrenceBackward<T>& a,
                                                                    const RecurrenceMemory<T>& m,
                                                                    const BlockPlace& at) {
  const int64_t width = num_gates(a.cell) * a.H, b = at.b, row = at.row;
  const Kept<const T>& kept = a.kept;
  BackwardRow<ThreadUnits<T>> r{};
  r.d_h = part(m.h, b, a.P);
  r.d_c = part(m.c, b, a.H);
  r.work = part(m.work, b, a.H);
  r.d_inner = part(m.d_inner, b, a.H);
  r.d_reset_h = part(m.d_reset_h, b, a.H);
  r.d_h_in = part(m.d_h_in, b, a.P);
  r.d_y = part(a.d_y, row, a.P);
  r.d_cells = part(a.d_cells, row, a.H);
  r.d_kept_step = part(a.d_step, row, kept_slots(a.cell) * a.H);
  r.d_kept_h_in = part(a.d_h_in, row, a.P);
  r.d_x = part(a.d_x, row, width);
  r.d_sum = part(a.d_sum, row, width);
  r.d_cell = part(a.d_cell, row, a.H);
  r.d_out = part(a.d_out, row, a.P);
  r.whole_h = part(a.whole_h, row, a.H);
  r.whole_c = part(a.whole_c, row, a.H);
  r.kept_step = part(kept.step, row, kept_slots(a.cell) * a.H);
  r.kept_h_in = part(kept.h_in, row, a.P);
  r.kept_out = part(kept.out, row, a.P);
  r.kept_sums = part(kept.sums, row, width);
  r.kept_moments = part(kept.moments, row, kMoments);
  return r;
}

// What a step that is not one of the sequence's leaves behind.
template <typename T>
__device__ __forceinline__ void clear(const RecurrenceForward<T>& a,
                                      const ForwardRow<ThreadUnits<T>>& r) {
  clear_row(r.y, a.P);
  clear_row(r.cells, a.H);
  clear_row(r.kept_step, kept_slots(a.cell) * a.H);
  clear_row(r.kept_out, a.P);
  clear_row(r.kept_sums, num_gates(a.cell) * a.H);
  clear_row(r.kept_moments, kMoments);
  clear_row(r.h_in, a.P);
  clear_row(r.inner, a.H);
}

template <typename T>
__device__ __forceinline__ void clear(const RecurrenceBackward<T>& a,
                                      const BackwardRow<ThreadUnits<T>>& r) {
  const int64_t width = num_gates(a.cell) * a.H;
  clear_row(r.d_x, width);
  clear_row(r.d_sum, width);
  clear_row(r.d_cell, a.H);
  clear_row(r.d_out, a.P);
  clear_row(r.whole_h, a.H);
  clear_row(r.whole_c, a.H);
}

// ---- forward ------------------------------------------------------------------------------------

// What W_hh multiplies in step s.
template <typename T>
__device__ __forceinline__ void enter(const RecurrenceForward<T>& a, const RecurrenceMemory<T>& m,
                                      int64_t s) {
  if (s >= a.T_) return;
  const BlockPlace at = place(a, m, s);
  if (!at.there) return;
  const auto r = forward_row(a, m, at);
  if (at.runs) {
    row_enter(ThreadUnits<T>(), a, at, r);
  } else {
    clear(a, r);
  }
}

template <typename T>
__global__ void begin_kernel(const RecurrenceForward<T> a, const RecurrenceMemory<T> m) {
  const int64_t b = blockIdx.x;
  for (int64_t u = threadIdx.x; u < a.P; u += blockDim.x)
    m.h[b * a.P + u] = a.h_0 == nullptr ? 0 : widen(a.h_0[b * a.P + u]);
  for (int64_t u = threadIdx.x; u < a.H && m.c != nullptr; u += blockDim.x)
    m.c[b * a.H + u] = a.c_0 == nullptr ? 0 : widen(a.c_0[b * a.H + u]);
  enter(a, m, 0);
}

template <typename T>
__global__ void reset_kernel(const RecurrenceForward<T> a, const RecurrenceMemory<T> m, int64_t s) {
  const BlockPlace at = place(a, m, s);
  if (at.runs) row_reset(ThreadUnits<T>(), a, forward_row(a, m, at));
}

template <Cell cell, typename T>
__global__ void step_kernel(const RecurrenceForward<T> a, const RecurrenceMemory<T> m, int64_t s) {
  using Units = ThreadUnits<T>;
  const BlockPlace at = place(a, m, s);
  if (at.runs) row_forward<Units, cell>(Units(), a, at, forward_row(a, m, at));
  if (a.w_hr == nullptr) enter(a, m, s + 1);
}

template <Cell cell, typename T>
__global__ void tangent_kernel(const RecurrenceTangent<T> a, const RecurrenceMemory<T> m,
                               int64_t s) {
  using Units = ThreadUnits<T>;
  const BlockPlace at = place(a, m, s);
  const int64_t kept = kept_slots(cell) * a.H;
  const TangentRow<Units> t{part(a.sum, at.row, num_gates(cell) * a.H), part(a.step, at.row, kept),
                            part(a.whole_h, at.row, a.H), part(a.whole_c, at.row, a.H),
                            part(a.second, at.row, kept)};
  if (at.runs) {
    row_tangent<Units, cell>(Units(), a, forward_row<T>(a, m, at), t);
  } else if (at.there) {
    clear_row(t.second, kept);
  }
  enter<T>(a, m, s + 1);
}

template <typename T>
__global__ void leave_kernel(const RecurrenceForward<T> a, const RecurrenceMemory<T> m, int64_t s) {
  const BlockPlace at = place(a, m, s);
  if (at.runs) row_leave(ThreadUnits<T>(), a, at, forward_row(a, m, at));
  enter(a, m, s + 1);
}

template <typename T>
__global__ void end_kernel(int64_t H, int64_t P, const RecurrenceMemory<T> m, T* h, T* c) {
  const int64_t b = blockIdx.x;
  for (int64_t u = threadIdx.x; u < P; u += blockDim.x) h[b * P + u] = narrow<T>(m.h[b * P + u]);
  for (int64_t u = threadIdx.x; u < H && m.c != nullptr; u += blockDim.x)
    c[b * H + u] = narrow<T>(m.c[b * H + u]);
}

// ---- backward -----------------------------------------------------------------------------------

template <typename T>
__global__ void begin_backward_kernel(const RecurrenceBackward<T> a, const RecurrenceMemory<T> m) {
  const int64_t b = blockIdx.x;
  for (int64_t u = threadIdx.x; u < a.P; u += blockDim.x)
    m.h[b * a.P + u] = a.d_h_n == nullptr ? 0 : widen(a.d_h_n[b * a.P + u]);
  for (int64_t u = threadIdx.x; u < a.H && m.c != nullptr; u += blockDim.x)
    m.c[b * a.H + u] = a.d_c_n == nullptr ? 0 : widen(a.d_c_n[b * a.H + u]);
}

// The gradient of the state behind step s, from what the products after step s + 1 gave.
template <typename T>
__device__ __forceinline__ void return_to(const RecurrenceBackward<T>& a,
                                          const RecurrenceMemory<T>& m, int64_t s) {
  if (s + 1 >= a.T_) return;
  const BlockPlace at = place(a, m, s + 1);
  if (at.runs) row_enter_backward(ThreadUnits<T>(), a, at, backward_row(a, m, at));
}

template <typename T>
__global__ void leave_backward_kernel(const RecurrenceBackward<T> a, const RecurrenceMemory<T> m,
                                      int64_t s) {
  return_to(a, m, s);
  const BlockPlace at = place(a, m, s);
  if (at.runs) row_return(ThreadUnits<T>(), a, at, backward_row(a, m, at));
}

template <Cell cell, typename T>
__global__ void step_backward_kernel(const RecurrenceBackward<T> a, const RecurrenceMemory<T> m,
                                     int64_t s) {
  using Units = ThreadUnits<T>;
  if (a.w_hr == nullptr) return_to(a, m, s);
  const BlockPlace at = place(a, m, s);
  if (!at.there) return;
  const auto r = backward_row(a, m, at);
  if (!at.runs) return clear(a, r);
  if (a.w_hr == nullptr) row_return(Units(), a, at, r);
  row_backward<Units, cell>(Units(), a, at, r);
}

template <typename T>
__global__ void reset_backward_kernel(const RecurrenceBackward<T> a, const RecurrenceMemory<T> m,
                                      int64_t s) {
  const BlockPlace at = place(a, m, s);
  if (at.runs) row_reset_backward(ThreadUnits<T>(), a, backward_row(a, m, at));
}

template <typename T>
__global__ void end_backward_kernel(const RecurrenceBackward<T> a, const RecurrenceMemory<T> m) {
  return_to(a, m, -1);
  const int64_t b = blockIdx.x;
  // The same threads have just written these.
  for (int64_t u = threadIdx.x; u < a.P; u += blockDim.x)
    a.d_h_0[b * a.P + u] = narrow<T>(m.h[b * a.P + u]);
  for (int64_t u = threadIdx.x; u < a.H && m.c != nullptr; u += blockDim.x)
    a.d_c_0[b * a.H + u] = narrow<T>(m.c[b * a.H + u]);
}

}  // namespace

template <typename T>
cudaError_t recurrence_begin(const RecurrenceForward<T>& a, const RecurrenceMemory<T>& m,
                             cudaStream_t stream) {
  return launch_rows<T>(begin_kernel<T>, a.B, a.H, stream, a, m);
}

template <typename T>
cudaError_t recurrence_reset(const RecurrenceForward<T>& a, const RecurrenceMemory<T>& m, int64_t s,
                             cudaStream_t stream) {
  return launch_rows<T>(reset_kernel<T>, a.B, a.H, stream, a, m, s);
}

template <typename T>
cudaError_t recurrence_step(const RecurrenceForward<T>& a, const RecurrenceMemory<T>& m, int64_t s,
                            cudaStream_t stream) {
  return with_any_cell(a.cell, [&](auto cell) {
    return launch_rows<T>(step_kernel<decltype(cell)::value, T>, a.B, a.H, stream, a, m, s);
  });
}

template <typename T>
cudaError_t recurrence_step(const RecurrenceTangent<T>& a, const RecurrenceMemory<T>& m, int64_t s,
                            cudaStream_t stream) {
  return with_any_cell(a.cell, [&](auto cell) -> cudaError_t {
    if constexpr (has_tangent(decltype(cell)::value)) {
      return launch_rows<T>(tangent_kernel<decltype(cell)::value, T>, a.B, a.H, stream, a, m, s);
    }
    return cudaErrorInvalidValue;
  });
}

template <typename T>
cudaError_t recurrence_leave(const RecurrenceForward<T>& a, const RecurrenceMemory<T>& m, int64_t s,
                             cudaStream_t stream) {
  return launch_rows<T>(leave_kernel<T>, a.B, a.H, stream, a, m, s);
}

template <typename T>
cudaError_t recurrence_end(const RecurrenceForward<T>& a, const RecurrenceMemory<T>& m,
                           cudaStream_t stream) {
  return launch_rows<T>(end_kernel<T>, a.B, a.H, stream, a.H, a.P, m, a.h_n, a.c_n);
}

template <typename T>
cudaError_t recurrence_begin(const RecurrenceBackward<T>& a, const RecurrenceMemory<T>& m,
                             cudaStream_t stream) {
  return launch_rows<T>(begin_backward_kernel<T>, a.B, a.H, stream, a, m);
}

template <typename T>
cudaError_t recurrence_leave(const RecurrenceBackward<T>& a, const RecurrenceMemory<T>& m,
                             int64_t s, cudaStream_t stream) {
  return launch_rows<T>(leave_backward_kernel<T>, a.B, a.H, stream, a, m, s);
}

template <typename T>
cudaError_t recurrence_step(const RecurrenceBackward<T>& a, const RecurrenceMemory<T>& m, int64_t s,
                            cudaStream_t stream) {
  return with_any_cell(a.cell, [&](auto cell) {
    return launch_rows<T>(step_backward_kernel<decltype(cell)::value, T>, a.B, a.H, stream, a, m,
                          s);
  });
}

template <typename T>
cudaError_t recurrence_reset(const RecurrenceBackward<T>& a, const RecurrenceMemory<T>& m,
                             int64_t s, cudaStream_t stream) {
  return launch_rows<T>(reset_backward_kernel<T>, a.B, a.H, stream, a, m, s);
}

template <typename T>
cudaError_t recurrence_end(const RecurrenceBackward<T>& a, const RecurrenceMemory<T>& m,
                           cudaStream_t stream) {
  return launch_rows<T>(end_backward_kernel<T>, a.B, a.H, stream, a, m);
}

#define INSTANTIATE_FOR(Call, T)                                                                   \
  template cudaError_t recurrence_begin(const Call<T>&, const RecurrenceMemory<T>&, cudaStream_t); \
  template cudaError_t recurrence_reset(const Call<T>&, const RecurrenceMemory<T>&, int64_t,       \
                                        cudaStream_t);                                             \
  template cudaError_t recurrence_step(const Call<T>&, const RecurrenceMemory<T>&, int64_t,        \
                                       cudaStream_t);                                              \
  template cudaError_t recurrence_leave(const Call<T>&, const RecurrenceMemory<T>&, int64_t,       \
                                        cudaStream_t);                                             \
  template cudaError_t recurrence_end(const Call<T>&, const RecurrenceMemory<T>&, cudaStream_t)
#define INSTANTIATE(T)                                                                          \
  INSTANTIATE_FOR(RecurrenceForward, T);                                                        \
  INSTANTIATE_FOR(RecurrenceBackward, T);                                                       \
  template cudaError_t recurrence_step(const RecurrenceTangent<T>&, const RecurrenceMemory<T>&, \
                                       int64_t, cudaStream_t)
INSTANTIATE(__half);
INSTANTIATE(__nv_bfloat16);
INSTANTIATE(float);
INSTANTIATE(double);
#undef INSTANTIATE
#undef INSTANTIATE_FOR

}  // namespace seq2seq_ext::cuda
