// A decoder that attends (csrc/decoder.h): what a step does beside its matrix products, which are a
// library's. One block for each sequence; within a kernel a feature of a row is always the same
// thread's, so that only attention needs barriers.
#include "decoder.cuh"

#include <algorithm>

#include "attention.cuh"
#include "elementwise.cuh"
#include "row_units.cuh"

namespace seq2seq_ext::cuda {
namespace {

constexpr unsigned kAttentionThreads = 512;

// ---- where rows lie -----------------------------------------------------------------------------

// A step of the block's sequence, and whether it is one of its steps.
struct DecoderPlace : Place {
  bool runs;
};

template <typename T>
__device__ __forceinline__ DecoderPlace place(const Decoder<T>& d, const DecoderSequences& m,
                                              int64_t t) {
  DecoderPlace at;
  at.b = blockIdx.x, at.t = t, at.row = t * d.B + at.b;
  at.reset = false;
  at.runs = t < d.T_ && (m.length == nullptr || t < m.length[at.b]);
  return at;
}

// Row `row` of layer l in an array (L, N, width).
template <typename T, typename X>
__device__ __forceinline__ X* layer_row(const Decoder<T>& d, X* array, int64_t l, int64_t row,
                                        int64_t width) {
  return part(array, l * d.T_ * d.B + row, width);
}

// The block's row of layer l in an array (L, B, H).
template <typename T, typename X>
__device__ __forceinline__ X* state_row(const Decoder<T>& d, X* array, int64_t l) {
  return part(array, l * d.B + blockIdx.x, d.H);
}

// What layer l's cells are to row_step.h.
template <typename T>
__device__ __forceinline__ Recurrence<T> cells_of(const Decoder<T>& d, int64_t l) {
  Recurrence<T> cells{};
  cells.cell = d.cell;
  cells.T_ = d.T_, cells.B = d.B, cells.H = d.H, cells.P = d.H, cells.N = d.T_ * d.B;
  cells.b_hn = part(d.b_hn, l, d.H);
  return cells;
}

// What the block's sequence attends to.
template <typename T, typename X>
__device__ __forceinline__ Attention<T, X> attention_of(const Decoder<T>& d,
                                                        const DecoderSequences& m, const T* query,
                                                        const X* coverage) {
  const int64_t b = blockIdx.x, of = m.memory == nullptr ? b : m.memory[b];
  return {d,
          m.source == nullptr ? d.S : m.source[of],
          query,
          part(d.keys, of, d.S * d.A),
          part(d.values, of, d.S * d.C),
          coverage};
}

// to = from, or zeros where there is no row to copy.
template <typename X, typename T>
__device__ __forceinline__ void fill(X* to, const T* from, int64_t count) {
  if (to == nullptr) return;
  each_of_thread(count,
                 [&](int64_t i) { to[i] = narrow<X>(from == nullptr ? 0 : widen(from[i])); });
}

// ---- forward ------------------------------------------------------------------------------------

// What layer l reads, from the second on.
template <typename T>
__device__ __forceinline__ T* below_of(const DecoderForward<T>& d, const DecoderState<T>& m,
                                       const DecoderPlace& at, int64_t l) {
  return d.kept.below != nullptr ? layer_row(d, d.kept.below, l - 1, at.row, d.H)
                                 : part(m.below, at.b, d.H);
}

template <typename T>
__device__ __forceinline__ ForwardRow<ThreadUnits<T>> forward_row(const DecoderForward<T>& d,
                                                                  const DecoderState<T>& m,
                                                                  const DecoderPlace& at,
                                                                  int64_t l) {
  const int64_t H = d.H, width = num_gates(d.cell) * H;
  const auto at_hand = [&](T* kept, T* memory) {
    return kept != nullptr ? layer_row(d, kept, l, at.row, H) : state_row(d, memory, l);
  };
  ForwardRow<ThreadUnits<T>> r{};
  r.x = part(m.gates, at.b, width);
  r.sum = part(m.sums, at.b, d.cell == Cell::kGruResetBefore ? 2 * H : width);
  r.candidate = part(m.candidate, at.b, H);
  r.h = state_row(d, m.h, l);
  r.c = state_row(d, m.c, l);
  r.h_in = at_hand(d.kept.h_in, m.h_in);
  r.inner = at_hand(d.kept.inner, m.inner);
  r.y = part(m.top, at.b, H);  // until the layer's output stands there
  r.kept_step = layer_row(d, d.kept.step, l, at.row, kept_slots(d.cell) * H);
  return r;
}

// What W_hh multiplies in step t.
template <typename T>
__device__ __forceinline__ void enter(const DecoderForward<T>& d, const DecoderState<T>& m,
                                      int64_t t, int64_t l) {
  if (t >= d.T_) return;
  const DecoderPlace at = place(d, m, t);
  const auto r = forward_row(d, m, at, l);
  if (at.runs) {
    row_enter(ThreadUnits<T>(), cells_of(d, l), at, r);
  } else {
    clear_row(r.h_in, d.H);
  }
}

template <typename T>
__global__ void begin_kernel(const DecoderForward<T> d, const DecoderState<T> m) {
  const int64_t b = blockIdx.x;
  for (int64_t l = 0; l < d.L; ++l) {
    fill(state_row(d, m.h, l), state_row(d, d.h_0, l), d.H);
    fill(state_row(d, m.c, l), state_row(d, d.c_0, l), d.H);
    enter(d, m, 0, l);
  }
  fill(part(m.feed, b, d.F), part(d.feed_0, b, d.F), d.F);
  fill(part(m.top, b, d.H), state_row(d, d.h_0, d.L - 1), d.H);
  fill(part(m.coverage, b, d.S), part(d.coverage_0, b, d.S), d.S);
}

// To what W_in gave, all else that the gates get from outside the cell.
template <typename T>
__device__ __forceinline__ void complete_gates(const DecoderForward<T>& d, const DecoderState<T>& m,
                                               const DecoderPlace& at, int64_t l) {
  const int64_t H = d.H, G = num_gates(d.cell);
  T* const gates = part(m.gates, at.b, G * H);
  const T* const bias = part(d.bias, l, G * H);
  const T* const x = l == 0 ? part(d.x, at.row, G * H) : nullptr;
  each_of_thread(H, [&](int64_t u) {
    for (int64_t i = u; i < G * H; i += H) {
      Accumulator<T> sum = widen(gates[i]);
      if (bias != nullptr) sum += widen(bias[i]);
      if (x != nullptr) sum += widen(x[i]);
      gates[i] = narrow<T>(sum);
    }
  });
}

template <typename T>
__global__ void reset_kernel(const DecoderForward<T> d, const DecoderState<T> m, int64_t t,
                             int64_t l) {
  const DecoderPlace at = place(d, m, t);
  const auto r = forward_row(d, m, at, l);
  if (!at.runs) return clear_row(r.inner, d.H);
  complete_gates(d, m, at, l);
  row_reset(ThreadUnits<T>(), cells_of(d, l), r);
}

template <Cell cell, typename T>
__global__ void step_kernel(const DecoderForward<T> d, const DecoderState<T> m, int64_t t,
                            int64_t l) {
  using Units = ThreadUnits<T>;
  const DecoderPlace at = place(d, m, t);
  const auto r = forward_row(d, m, at, l);
  const bool last = l + 1 == d.L;
  T* const z = last ? part(d.z, at.row, d.H) : below_of(d, m, at, l + 1);
  if (at.runs) {
    if (cell != Cell::kGruResetBefore) complete_gates(d, m, at, l);
    row_forward<Units, cell>(Units(), cells_of(d, l), at, r);
    const bool adds = d.residual > 0 && l >= d.residual;
    const T* const below = adds ? below_of(d, m, at, l) : nullptr;
    const T* const mask = last ? nullptr : layer_row(d, d.dropout_mask, l, at.row, d.H);
    T* const joined = part(m.joined, at.b, d.C + d.H);
    each_of_thread(d.H, [&](int64_t u) {
      Accumulator<T> value = r.h[u];
      if (below != nullptr) value += widen(below[u]);
      if (mask != nullptr) value *= widen(mask[u]);
      z[u] = narrow<T>(value);
      if (!last) return;
      r.y[u] = z[u];
      if (joined != nullptr) joined[d.C + u] = z[u];
    });
  } else {
    clear_row(z, d.H);
    clear_row(r.kept_step, kept_slots(cell) * d.H);
  }
  enter(d, m, t + 1, l);
}

template <typename T>
__global__ void __launch_bounds__(kAttentionThreads, 1)
    attend_kernel(const DecoderForward<T> d, const DecoderState<T> m, int64_t t) {
  const DecoderPlace at = place(d, m, t);
  T* const context = part(d.context, at.row, d.C);
  T* const alignments = part(d.alignments, at.row, d.heads * d.S);
  T* const kept_query = part(d.kept.query, at.row, d.A);
  T* const kept_coverage = part(d.kept.coverage, at.row, d.S);
  if (!at.runs) {
    clear_row(context, d.C);
    clear_row(alignments, d.heads * d.S);
    clear_row(kept_query, d.A);
    return clear_row(kept_coverage, d.S);
  }
  const T* query = part(m.top, at.b, d.H);
  if (d.w_query != nullptr) {
    query = kept_query != nullptr ? kept_query : part(m.query, at.b, d.A);
  } else {
    fill(kept_query, query, d.A);
  }
  Accumulator<T>* const coverage = part(m.coverage, at.b, d.S);
  Accumulator<T>* const energy = part(m.energy, at.b, d.heads * d.S);
  if (coverage != nullptr) fill(kept_coverage, coverage, d.S);
  const auto attention = attention_of<T, Accumulator<T>>(d, m, query, coverage);
  attend(attention, energy, alignments, context);
  if (coverage != nullptr)
    each_of_thread(attention.n, [&](int64_t j) { coverage[j] += energy[j]; });
  if (d.w_out != nullptr) {
    fill(part(m.joined, at.b, d.C + d.H), context, d.C);
  } else {
    fill(part(m.feed, at.b, d.F), context, d.C);
  }
}

template <typename T>
__global__ void combine_kernel(const DecoderForward<T> d, const DecoderState<T> m, int64_t t) {
  const DecoderPlace at = place(d, m, t);
  T* const attentional = part(d.attentional, at.row, d.O);
  if (!at.runs) return clear_row(attentional, d.O);
  const T* const out = part(m.out, at.b, d.O);
  T* const feed = part(m.feed, at.b, d.F);
  each_of_thread(d.O, [&](int64_t u) {
    Accumulator<T> sum = widen(out[u]);
    if (d.b_out != nullptr) sum += widen(d.b_out[u]);
    attentional[u] = feed[u] = narrow<T>(Functions<T>::tanh(sum));
  });
}

template <typename T>
__global__ void end_kernel(const DecoderForward<T> d, const DecoderState<T> m) {
  const int64_t b = blockIdx.x;
  for (int64_t l = 0; l < d.L; ++l) {
    fill(state_row(d, d.h_n, l), state_row(d, m.h, l), d.H);
    fill(state_row(d, d.c_n, l), state_row(d, m.c, l), d.H);
  }
  fill(part(d.feed_n, b, d.F), part(m.feed, b, d.F), d.F);
  fill(part(d.coverage_n, b, d.S), part(m.coverage, b, d.S), d.S);
}

// ---- backward -----------------------------------------------------------------------------------

template <typename T>
__device__ __forceinline__ BackwardRow<ThreadUnits<T>> backward_row(
    const DecoderBackward<T>& d, const DecoderStateGradient<T>& m, const DecoderPlace& at,
    int64_t l) {
  const int64_t H = d.H, width = num_gates(d.cell) * H;
  BackwardRow<ThreadUnits<T>> r{};
  r.d_h = state_row(d, m.h, l);
  r.d_c = state_row(d, m.c, l);
  r.work = part(m.work, at.b, H);
  r.d_reset_h = part(m.reset_h, at.b, H);
  r.d_h_in = part(m.h_in, at.b, H);
  r.d_x = layer_row(d, d.d_gates, l, at.row, width);
  r.d_sum = layer_row(d, d.d_sum, l, at.row, width);
  r.kept_step = layer_row(d, d.kept.step, l, at.row, kept_slots(d.cell) * H);
  r.kept_h_in = layer_row(d, d.kept.h_in, l, at.row, H);
  return r;
}

// Takes up what the products after layer l's step t have left: to the gradient of its state, and of
// what it read.
template <typename T>
__device__ __forceinline__ void leave_layer(const DecoderBackward<T>& d,
                                            const DecoderStateGradient<T>& m, int64_t t,
                                            int64_t l) {
  const DecoderPlace at = place(d, m, t);
  if (!at.runs) return;
  row_enter_backward(ThreadUnits<T>(), cells_of(d, l), at, backward_row(d, m, at, l));
  const int64_t width = l == 0 ? d.F : d.H;
  const T* const below = part(m.below, at.b, width);
  if (l == 0) {
    Accumulator<T>* const feed = part(m.feed, at.b, d.F);
    return each_of_thread(d.F, [&](int64_t u) { feed[u] += widen(below[u]); });
  }
  const bool adds = d.residual > 0 && l >= d.residual;
  const T* const mask = layer_row(d, d.dropout_mask, l - 1, at.row, d.H);
  Accumulator<T>* const z = part(m.z, at.b, d.H);
  each_of_thread(d.H, [&](int64_t u) {
    const Accumulator<T> by = widen(below[u]) + (adds ? z[u] : Accumulator<T>(0));
    z[u] = mask != nullptr ? by * widen(mask[u]) : by;
  });
}

// The gradient that the last layer's z has from the query of step t.
template <typename T>
__device__ __forceinline__ Accumulator<T> query_gradient(const DecoderBackward<T>& d,
                                                         const DecoderStateGradient<T>& m,
                                                         const DecoderPlace& at, int64_t u) {
  if (!at.runs) return 0;
  return widen(d.w_query != nullptr ? m.query[at.b * d.H + u] : d.d_query[at.row * d.A + u]);
}

template <typename T>
__global__ void begin_backward_kernel(const DecoderBackward<T> d, const DecoderStateGradient<T> m) {
  const int64_t b = blockIdx.x;
  for (int64_t l = 0; l < d.L; ++l) {
    fill(state_row(d, m.h, l), state_row(d, d.d_h_n, l), d.H);
    fill(state_row(d, m.c, l), state_row(d, d.d_c_n, l), d.H);
  }
  fill(part(m.feed, b, d.F), part(d.d_feed_n, b, d.F), d.F);
  fill(part(m.coverage, b, d.S), part(d.d_coverage_n, b, d.S), d.S);
}

template <typename T>
__global__ void combine_backward_kernel(const DecoderBackward<T> d, const DecoderStateGradient<T> m,
                                        int64_t t) {
  leave_layer(d, m, t + 1, 0);
  const DecoderPlace at = place(d, m, t);
  T* const d_out = part(d.d_out, at.row, d.O);
  if (!at.runs) return clear_row(d_out, d.O);
  const T* const attentional = part(d.attentional, at.row, d.O);
  const T* const given = part(d.d_attentional, at.row, d.O);
  Accumulator<T>* const feed = part(m.feed, at.b, d.F);
  each_of_thread(d.O, [&](int64_t u) {
    const Accumulator<T> s = widen(attentional[u]);
    const Accumulator<T> by = feed[u] + (given != nullptr ? widen(given[u]) : Accumulator<T>(0));
    d_out[u] = narrow<T>(by * (Accumulator<T>(1) - s * s));
    feed[u] = 0;
  });
}

template <typename T>
__global__ void __launch_bounds__(kAttentionThreads, 1)
    attend_backward_kernel(const DecoderBackward<T> d, const DecoderStateGradient<T> m, int64_t t) {
  if (d.w_out == nullptr) leave_layer(d, m, d.query_first ? t : t + 1, 0);
  const DecoderPlace at = place(d, m, t);
  T* const context = part(d.whole_context, at.row, d.C);
  T* const d_query = part(d.d_query, at.row, d.A);
  T* const d_energy = part(d.d_energy, at.row, d.heads * d.S);
  if (!at.runs) {
    clear_row(context, d.C);
    clear_row(d_query, d.A);
    return clear_row(d_energy, d.heads * d.S);
  }
  const T* const given = part(d.d_context, at.row, d.C);
  const T* const joined = part(m.joined, at.b, d.C + d.H);
  Accumulator<T>* const feed = part(m.feed, at.b, d.F);
  each_of_thread(d.C, [&](int64_t c) {
    Accumulator<T> sum = given != nullptr ? widen(given[c]) : Accumulator<T>(0);
    if (joined != nullptr) {
      sum += widen(joined[c]);
    } else {
      sum += feed[c];
      feed[c] = 0;
    }
    context[c] = narrow<T>(sum);
  });
  const AttentionGradients<T> g{
      context, part(d.d_alignments, at.row, d.heads * d.S), part(m.coverage, at.b, d.S),
      d_query, part(m.energy, at.row, d.heads * d.S),       d_energy};
  attend_backward(
      attention_of<T, T>(d, m, part(d.kept.query, at.row, d.A), part(d.kept.coverage, at.row, d.S)),
      part(d.alignments, at.row, d.heads * d.S), g);
}

template <Cell cell, typename T>
__global__ void step_backward_kernel(const DecoderBackward<T> d, const DecoderStateGradient<T> m,
                                     int64_t t, int64_t l) {
  using Units = ThreadUnits<T>;
  const DecoderPlace at = place(d, m, t);
  Accumulator<T>* const z = part(m.z, at.b, d.H);
  if (l + 1 < d.L) {
    leave_layer(d, m, t, l + 1);
  } else {
    const DecoderPlace asks = place(d, m, d.query_first ? t + 1 : t);
    const T* const given = part(d.d_z, at.row, d.H);
    const T* const joined = part(m.joined, at.b, d.C + d.H);
    each_of_thread(d.H, [&](int64_t u) {
      Accumulator<T> sum = query_gradient(d, m, asks, u);
      if (given != nullptr) sum += widen(given[u]);
      if (joined != nullptr) sum += widen(joined[d.C + u]);
      z[u] = sum;
    });
  }
  const auto r = backward_row(d, m, at, l);
  if (!at.runs) {
    clear_row(r.d_x, num_gates(cell) * d.H);
    return clear_row(r.d_sum, num_gates(cell) * d.H);
  }
  each_of_thread(d.H, [&](int64_t u) { r.d_h[u] += z[u]; });
  const Recurrence<T> cells = cells_of(d, l);
  row_return(Units(), cells, at, r);
  row_backward<Units, cell>(Units(), cells, at, r);
}

template <typename T>
__global__ void reset_backward_kernel(const DecoderBackward<T> d, const DecoderStateGradient<T> m,
                                      int64_t t, int64_t l) {
  const DecoderPlace at = place(d, m, t);
  if (at.runs) row_reset_backward(ThreadUnits<T>(), cells_of(d, l), backward_row(d, m, at, l));
}

template <typename T>
__global__ void end_backward_kernel(const DecoderBackward<T> d, const DecoderStateGradient<T> m) {
  const int64_t b = blockIdx.x;
  if (!d.query_first) leave_layer(d, m, 0, 0);
  const DecoderPlace first = place(d, m, 0);
  for (int64_t l = 0; l < d.L; ++l) {
    const bool asks = d.query_first && l + 1 == d.L;
    const Accumulator<T>* const h = state_row(d, m.h, l);
    T* const d_h_0 = state_row(d, d.d_h_0, l);
    each_of_thread(d.H, [&](int64_t u) {
      d_h_0[u] = narrow<T>(h[u] + (asks ? query_gradient(d, m, first, u) : Accumulator<T>(0)));
    });
    fill(state_row(d, d.d_c_0, l), state_row(d, m.c, l), d.H);
  }
  fill(part(d.d_feed_0, b, d.F), part(m.feed, b, d.F), d.F);
  fill(part(d.d_coverage_0, b, d.S), part(m.coverage, b, d.S), d.S);
}

// Of additive energies: a thread adds up all steps and positions of a feature of a sequence.
template <typename T>
__global__ void keys_kernel(const DecoderBackward<T> d, const DecoderStateGradient<T> m) {
  using A = Accumulator<T>;
  const int64_t b = thread_number() / d.A, k = thread_number() % d.A;
  if (b >= d.B) return;
  const int64_t n = m.source == nullptr ? d.S : m.source[b];
  const int64_t steps = m.length == nullptr ? d.T_ : m.length[b];
  const A v = widen(d.v[k]);
  A d_v = 0, d_w = 0;
  for (int64_t j = 0; j < d.S; ++j) {
    A d_key = 0;
    for (int64_t t = 0; t < steps && j < n; ++t) {
      const int64_t row = t * d.B + b;
      const Attention<T, T> a{d,
                              n,
                              part(d.kept.query, row, d.A),
                              part(d.keys, b, d.S * d.A),
                              nullptr,
                              part(d.kept.coverage, row, d.S)};
      const A s = additive_tanh(a, j, k), energy = m.energy[row * d.S + j];
      const A by = energy * v * (A(1) - s * s);
      d_key += by;
      d_v += energy * s;
      if (d.w_coverage != nullptr) d_w += by * widen(a.coverage[j]);
    }
    d.d_keys[(b * d.S + j) * d.A + k] = narrow<T>(d_key);
  }
  d.d_v[b * d.A + k] = narrow<T>(d_v);
  if (d.w_coverage != nullptr) d.d_w_coverage[b * d.A + k] = narrow<T>(d_w);
}

// ---- launches -----------------------------------------------------------------------------------

// The cells of cells_of(), which no variant has.
template <typename Body>
cudaError_t with_decoder_cell(Cell cell, const Body& body) {
  return with_any_cell(cell, [&](auto number) -> cudaError_t {
    if constexpr (decltype(number)::value != Cell::kCoupledLstm) return body(number);
    return cudaErrorInvalidValue;
  });
}

}  // namespace

template <typename T>
cudaError_t decoder_begin(const DecoderForward<T>& d, const DecoderState<T>& m,
                          cudaStream_t stream) {
  return launch_rows<T>(begin_kernel<T>, d.B, d.H, stream, d, m);
}

template <typename T>
cudaError_t decoder_attend(const DecoderForward<T>& d, const DecoderState<T>& m, int64_t t,
                           cudaStream_t stream) {
  return launch_rows<T, kAttentionThreads>(attend_kernel<T>, d.B, std::max(d.A, d.C), stream, d, m,
                                           t);
}

template <typename T>
cudaError_t decoder_reset(const DecoderForward<T>& d, const DecoderState<T>& m, int64_t t,
                          int64_t l, cudaStream_t stream) {
  return launch_rows<T>(reset_kernel<T>, d.B, d.H, stream, d, m, t, l);
}

template <typename T>
cudaError_t decoder_step(const DecoderForward<T>& d, const DecoderState<T>& m, int64_t t, int64_t l,
                         cudaStream_t stream) {
  return with_decoder_cell(d.cell, [&](auto cell) {
    return launch_rows<T>(step_kernel<decltype(cell)::value, T>, d.B, d.H, stream, d, m, t, l);
  });
}

template <typename T>
cudaError_t decoder_combine(const DecoderForward<T>& d, const DecoderState<T>& m, int64_t t,
                            cudaStream_t stream) {
  return launch_rows<T>(combine_kernel<T>, d.B, d.O, stream, d, m, t);
}

template <typename T>
cudaError_t decoder_end(const DecoderForward<T>& d, const DecoderState<T>& m, cudaStream_t stream) {
  return launch_rows<T>(end_kernel<T>, d.B, d.H, stream, d, m);
}

template <typename T>
cudaError_t decoder_begin(const DecoderBackward<T>& d, const DecoderStateGradient<T>& m,
                          cudaStream_t stream) {
  return launch_rows<T>(begin_backward_kernel<T>, d.B, d.H, stream, d, m);
}

template <typename T>
cudaError_t decoder_combine(const DecoderBackward<T>& d, const DecoderStateGradient<T>& m,
                            int64_t t, cudaStream_t stream) {
  return launch_rows<T>(combine_backward_kernel<T>, d.B, d.O, stream, d, m, t);
}

template <typename T>
cudaError_t decoder_attend(const DecoderBackward<T>& d, const DecoderStateGradient<T>& m, int64_t t,
                           cudaStream_t stream) {
  return launch_rows<T, kAttentionThreads>(attend_backward_kernel<T>, d.B, std::max(d.A, d.C),
                                           stream, d, m, t);
}

template <typename T>
cudaError_t decoder_step(const DecoderBackward<T>& d, const DecoderStateGradient<T>& m, int64_t t,
                         int64_t l, cudaStream_t stream) {
  return with_decoder_cell(d.cell, [&](auto cell) {
    return launch_rows<T>(step_backward_kernel<decltype(cell)::value, T>, d.B, d.H, stream, d, m, t,
                          l);
  });
}

template <typename T>
cudaError_t decoder_reset(const DecoderBackward<T>& d, const DecoderStateGradient<T>& m, int64_t t,
                          int64_t l, cudaStream_t stream) {
  return launch_rows<T>(reset_backward_kernel<T>, d.B, d.H, stream, d, m, t, l);
}

template <typename T>
cudaError_t decoder_end(const DecoderBackward<T>& d, const DecoderStateGradient<T>& m,
                        cudaStream_t stream) {
  return launch_rows<T>(end_backward_kernel<T>, d.B, d.H, stream, d, m);
}

template <typename T>
cudaError_t decoder_keys(const DecoderBackward<T>& d, const DecoderStateGradient<T>& m,
                         cudaStream_t stream) {
  return launch(keys_kernel<T>, d.B * d.A, stream, d, m);
}

#define INSTANTIATE_FOR(Call, State, T)                                                         \
  template cudaError_t decoder_begin(const Call<T>&, const State<T>&, cudaStream_t);            \
  template cudaError_t decoder_attend(const Call<T>&, const State<T>&, int64_t, cudaStream_t);  \
  template cudaError_t decoder_reset(const Call<T>&, const State<T>&, int64_t, int64_t,         \
                                     cudaStream_t);                                             \
  template cudaError_t decoder_step(const Call<T>&, const State<T>&, int64_t, int64_t,          \
                                    cudaStream_t);                                              \
  template cudaError_t decoder_combine(const Call<T>&, const State<T>&, int64_t, cudaStream_t); \
  template cudaError_t decoder_end(const Call<T>&, const State<T>&, cudaStream_t)
#define INSTANTIATE(T)                                                                         \
  INSTANTIATE_FOR(DecoderForward, DecoderState, T);                                            \
  INSTANTIATE_FOR(DecoderBackward, DecoderStateGradient, T);                                   \
  template cudaError_t decoder_keys(const DecoderBackward<T>&, const DecoderStateGradient<T>&, \
                                    cudaStream_t)
INSTANTIATE(__half);
INSTANTIATE(__nv_bfloat16);
INSTANTIATE(float);
INSTANTIATE(double);
#undef INSTANTIATE
#undef INSTANTIATE_FOR

}  // namespace seq2seq_ext::cuda
