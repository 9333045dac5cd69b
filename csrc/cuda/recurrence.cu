// One direction of a layer with the variants of row_step.h: what a step does beside its matrix
// products, which are a library's. One block for each sequence, since layer normalization looks at
// all units of a row; its threads go through the units side by side.
#include "recurrence.cuh"

#include <algorithm>

#include "cells.cuh"
#include "device.cuh"

namespace seq2seq_ext::cuda {
namespace {

#define ROW_STEP __device__ __forceinline__
#include "../row_step.h"
#undef ROW_STEP

// The machine of row_step.h: the threads of a block, a power of two of them.
template <typename Number>
struct ThreadUnits {
  using T = Number;
  using A = Accumulator<T>;
  using V = A;

  template <typename Body>
  __device__ __forceinline__ void units(int64_t n, const Body& body) const {
    for (int64_t u = threadIdx.x; u < n; u += blockDim.x) body(u, 1);
  }
  template <typename X>
  __device__ __forceinline__ V load(const X* row, int64_t u, int64_t) const {
    return widen(row[u]);
  }
  template <typename X>
  __device__ __forceinline__ void store(X* row, int64_t u, int64_t, V v) const {
    if constexpr (std::is_same_v<X, A>) {
      row[u] = v;
    } else {
      row[u] = narrow<X>(v);
    }
  }
  __device__ __forceinline__ A total(V v) const {
    SEQ2SEQ_EXT_DYNAMIC_SHARED(memory);
    A* const sums = reinterpret_cast<A*>(memory);  // one for each thread
    sums[threadIdx.x] = v;
    SEQ2SEQ_EXT_SYNC_THREADS(6);
    for (unsigned width = blockDim.x / 2; width > 0; width /= 2) {
      if (threadIdx.x < width) sums[threadIdx.x] += sums[threadIdx.x + width];
      SEQ2SEQ_EXT_SYNC_THREADS(7);
    }
    const A all = sums[0];
    SEQ2SEQ_EXT_SYNC_THREADS(8);
    return all;
  }
  __device__ __forceinline__ V first(V v, int64_t) const { return v; }
  __device__ __forceinline__ bool leads() const { return threadIdx.x == 0; }

  static __device__ __forceinline__ V sigmoid(V v) { return Functions<T>::sigmoid(v); }
  static __device__ __forceinline__ V tanh(V v) { return Functions<T>::tanh(v); }
  static __device__ __forceinline__ V hard_sigmoid(V v) {
    v = v / A(6) + A(0.5);
    v = v < A(0) ? A(0) : v;  // a NaN stays one
    return v > A(1) ? A(1) : v;
  }
  static __device__ __forceinline__ A inverse_root(A x) { return A(1) / sqrt(x); }
  static __device__ __forceinline__ T narrowed(A x) { return narrow<T>(x); }
  static __device__ __forceinline__ A widened(T x) { return widen(x); }

  __device__ __forceinline__ Drawn<ThreadUnits> noise(const Noise& noise, int64_t t, int64_t b,
                                                      int64_t u) const {
    if (noise.seed == nullptr) return {A(noise.zoneout_h), A(noise.zoneout_c), A(1)};
    const auto seed = static_cast<uint64_t>(*noise.seed);
    const auto happens = [&](uint32_t kind, double probability) {
      if (probability == 0) return false;
      uint32_t n[4] = {(static_cast<uint32_t>(u) & ~3u) + kind, static_cast<uint32_t>(b),
                       static_cast<uint32_t>(t), noise.stream};
      uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
      for (int round = 0; round < kPhiloxRounds; ++round) {
        const uint64_t p = uint64_t{kPhiloxFactor0} * n[0], q = uint64_t{kPhiloxFactor1} * n[2];
        n[0] = static_cast<uint32_t>(q >> 32) ^ n[1] ^ key0;
        n[2] = static_cast<uint32_t>(p >> 32) ^ n[3] ^ key1;
        n[1] = static_cast<uint32_t>(q), n[3] = static_cast<uint32_t>(p);
        key0 += kPhiloxStep0, key1 += kPhiloxStep1;
      }
      const uint32_t even = u & 2 ? n[2] : n[0], odd = u & 2 ? n[3] : n[1];
      return (u & 1 ? odd : even) < threshold(probability);
    };
    return {A(happens(0, noise.zoneout_h) ? 1 : 0), A(happens(1, noise.zoneout_c) ? 1 : 0),
            A(happens(2, noise.candidate) ? 0 : 1 / (1 - noise.candidate))};
  }
};

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
__device__ __forceinline__ T* part(T* matrix, int64_t row, int64_t width) {
  return matrix == nullptr ? nullptr : matrix + row * width;
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

template <typename T>
__device__ __forceinline__ void clear(T* row, int64_t count) {
  if (row == nullptr) return;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) row[i] = narrow<T>(Accumulator<T>(0));
}

// What a step that is not one of the sequence's leaves behind.
template <typename T>
__device__ __forceinline__ void clear(const RecurrenceForward<T>& a,
                                      const ForwardRow<ThreadUnits<T>>& r) {
  clear(r.y, a.P);
  clear(r.cells, a.H);
  clear(r.kept_step, kept_slots(a.cell) * a.H);
  clear(r.kept_out, a.P);
  clear(r.kept_sums, num_gates(a.cell) * a.H);
  clear(r.kept_moments, kMoments);
  clear(r.h_in, a.P);
  clear(r.inner, a.H);
}

template <typename T>
__device__ __forceinline__ void clear(const RecurrenceBackward<T>& a,
                                      const BackwardRow<ThreadUnits<T>>& r) {
  const int64_t width = num_gates(a.cell) * a.H;
  clear(r.d_x, width);
  clear(r.d_sum, width);
  clear(r.d_cell, a.H);
  clear(r.d_out, a.P);
  clear(r.whole_h, a.H);
  clear(r.whole_c, a.H);
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
    clear(t.second, kept);
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

// ---- launches -----------------------------------------------------------------------------------

template <typename T, typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const Recurrence<T>& a, cudaStream_t stream,
                   Arguments... arguments) {
  unsigned threads = kWarp;
  while (threads < 256 && threads < a.H) threads *= 2;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(a.B));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = threads * sizeof(Accumulator<T>);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

// body(cell) with the cell as a type.
template <typename Body>
cudaError_t with_any_cell(Cell cell, const Body& body) {
  switch (cell) {
    case Cell::kLstm:
      return body(std::integral_constant<Cell, Cell::kLstm>());
    case Cell::kCoupledLstm:
      return body(std::integral_constant<Cell, Cell::kCoupledLstm>());
    case Cell::kGru:
      return body(std::integral_constant<Cell, Cell::kGru>());
    case Cell::kGruResetBefore:
      return body(std::integral_constant<Cell, Cell::kGruResetBefore>());
    case Cell::kRnnTanh:
      return body(std::integral_constant<Cell, Cell::kRnnTanh>());
    case Cell::kRnnRelu:
      return body(std::integral_constant<Cell, Cell::kRnnRelu>());
  }
  return cudaErrorInvalidValue;
}

}  // namespace

template <typename T>
cudaError_t recurrence_begin(const RecurrenceForward<T>& a, const RecurrenceMemory<T>& m,
                             cudaStream_t stream) {
  return launch<T>(begin_kernel<T>, a, stream, a, m);
}

template <typename T>
cudaError_t recurrence_reset(const RecurrenceForward<T>& a, const RecurrenceMemory<T>& m, int64_t s,
                             cudaStream_t stream) {
  return launch<T>(reset_kernel<T>, a, stream, a, m, s);
}

template <typename T>
cudaError_t recurrence_step(const RecurrenceForward<T>& a, const RecurrenceMemory<T>& m, int64_t s,
                            cudaStream_t stream) {
  return with_any_cell(a.cell, [&](auto cell) {
    return launch<T>(step_kernel<decltype(cell)::value, T>, a, stream, a, m, s);
  });
}

template <typename T>
cudaError_t recurrence_step(const RecurrenceTangent<T>& a, const RecurrenceMemory<T>& m, int64_t s,
                            cudaStream_t stream) {
  return with_any_cell(a.cell, [&](auto cell) -> cudaError_t {
    if constexpr (has_tangent(decltype(cell)::value)) {
      return launch<T>(tangent_kernel<decltype(cell)::value, T>, a, stream, a, m, s);
    }
    return cudaErrorInvalidValue;
  });
}

template <typename T>
cudaError_t recurrence_leave(const RecurrenceForward<T>& a, const RecurrenceMemory<T>& m, int64_t s,
                             cudaStream_t stream) {
  return launch<T>(leave_kernel<T>, a, stream, a, m, s);
}

template <typename T>
cudaError_t recurrence_end(const RecurrenceForward<T>& a, const RecurrenceMemory<T>& m,
                           cudaStream_t stream) {
  return launch<T>(end_kernel<T>, a, stream, a.H, a.P, m, a.h_n, a.c_n);
}

template <typename T>
cudaError_t recurrence_begin(const RecurrenceBackward<T>& a, const RecurrenceMemory<T>& m,
                             cudaStream_t stream) {
  return launch<T>(begin_backward_kernel<T>, a, stream, a, m);
}

template <typename T>
cudaError_t recurrence_leave(const RecurrenceBackward<T>& a, const RecurrenceMemory<T>& m,
                             int64_t s, cudaStream_t stream) {
  return launch<T>(leave_backward_kernel<T>, a, stream, a, m, s);
}

template <typename T>
cudaError_t recurrence_step(const RecurrenceBackward<T>& a, const RecurrenceMemory<T>& m, int64_t s,
                            cudaStream_t stream) {
  return with_any_cell(a.cell, [&](auto cell) {
    return launch<T>(step_backward_kernel<decltype(cell)::value, T>, a, stream, a, m, s);
  });
}

template <typename T>
cudaError_t recurrence_reset(const RecurrenceBackward<T>& a, const RecurrenceMemory<T>& m,
                             int64_t s, cudaStream_t stream) {
  return launch<T>(reset_backward_kernel<T>, a, stream, a, m, s);
}

template <typename T>
cudaError_t recurrence_end(const RecurrenceBackward<T>& a, const RecurrenceMemory<T>& m,
                           cudaStream_t stream) {
  return launch<T>(end_backward_kernel<T>, a, stream, a, m);
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
