// The operators attention_decoder and attention_decoder_backward on CUDA tensors: a library's
// products and a kernel behind each. Nothing waits for the device, so that a call can be captured
// into a graph.

#include "../glue/decoder.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <utility>

#include "decoder.cuh"
#include "numbers.h"
#include "runtime.h"
#include "sequences.h"

namespace seq2seq_ext::cuda {
namespace {

template <typename T>
class DecoderCall {
 public:
  using A = Accumulator<T>;

  explicit DecoderCall(const DecoderArguments& a)
      : a(a), width(a.gates()), run(a.device, a.dtype) {}

  bool reset_before() const { return a.cell == Cell::kGruResetBefore; }
  // Columns of W_hh's first product.
  int64_t early() const { return reset_before() ? 2 * a.H : width; }
  // Features that layer l reads.
  int64_t read(int64_t l) const { return l == 0 ? a.F : a.H; }

  // A matrix of one row for each sequence.
  Matrix at_hand(const T* memory, int64_t columns) const {
    return {const_cast<T*>(memory), a.B, columns, columns};
  }
  // The rows of step t of layer l in an array (L, N, columns).
  Matrix at_step(const T* all, int64_t l, int64_t t, int64_t columns) const {
    return at_hand(all + (l * a.T + t) * a.B * columns, columns);
  }
  // Of those, columns [first, first + count).
  static Matrix columns(Matrix rows, int64_t first, int64_t count) {
    rows.data = static_cast<T*>(rows.data) + first;
    rows.columns = count;
    return rows;
  }
  static Matrix weight(const T* w, int64_t rows, int64_t columns) {
    return {const_cast<T*>(w), rows, columns, columns};
  }

  // The call's, in place of what the operator got.
  void take_sequences(Decoder<T>& call, DecoderSequences& m) {
    call.length = call.source = call.memory = nullptr;
    m.length = on_device(a.lengths, a.T, run);
    m.source = on_device(a.source_lengths, a.S, run);
    m.memory = on_device(a.memory, a.M - 1, run);
  }

  template <typename N>
  N* take(bool wanted, int64_t count) {
    return wanted ? run.template take<N>(count) : nullptr;
  }

  DecoderState<T> state(DecoderForward<T>& f, bool save) {
    const int64_t B = a.B, H = a.H;
    DecoderState<T> m{};
    take_sequences(f, m);
    m.h = take<A>(true, a.L * B * H);
    m.c = take<A>(a.has_cell(), a.L * B * H);
    m.coverage = take<A>(a.covers, B * a.S);
    m.energy = take<A>(true, B * a.heads * a.S);
    m.feed = take<T>(true, B * a.F);
    m.top = take<T>(true, B * H);
    m.h_in = take<T>(!save, a.L * B * H);
    m.inner = take<T>(!save && reset_before(), a.L * B * H);
    m.below = take<T>(!save && a.L > 1, B * H);
    m.gates = take<T>(true, B * width);
    m.sums = take<T>(true, B * early());
    m.candidate = take<T>(reset_before(), B * H);
    m.query = take<T>(!save && f.projects(), B * a.A);
    m.joined = take<T>(a.combines, B * (a.C + H));
    m.out = take<T>(a.combines, B * a.O);
    return m;
  }

  DecoderStateGradient<T> gradient(DecoderBackward<T>& f) {
    const int64_t B = a.B, H = a.H;
    DecoderStateGradient<T> m{};
    take_sequences(f, m);
    m.h = take<A>(true, a.L * B * H);
    m.c = take<A>(a.has_cell(), a.L * B * H);
    m.coverage = take<A>(a.covers, B * a.S);
    m.energy = take<A>(true, a.T * B * a.heads * a.S);
    m.feed = take<A>(true, B * a.F);
    m.z = take<A>(true, B * H);
    m.work = take<A>(true, B * H);
    m.h_in = take<T>(true, B * H);
    m.reset_h = take<T>(reset_before(), B * H);
    m.below = take<T>(true, B * std::max(a.F, H));
    m.query = take<T>(f.projects(), B * H);
    m.joined = take<T>(a.combines, B * (a.C + H));
    return m;
  }

  const DecoderArguments& a;
  const int64_t width;
  Runtime run;
};

template <typename T>
DecoderOutputs forward(const DecoderArguments& a, bool save) {
  DecoderOutputs out(a, save);
  if (a.B == 0) return out;
  DecoderCall<T> call(a);
  Runtime& run = call.run;
  DecoderForward<T> f{};
  a.fill(f);
  out.fill(f);
  const DecoderState<T> m = call.state(f, save);
  const int64_t H = a.H, early = call.early();
  // Of layer l at step t, where it is kept or at hand.
  const auto row = [&](const T* kept, const T* memory, int64_t l, int64_t t) {
    return save ? call.at_step(kept, l, t, H) : call.at_hand(memory + l * a.B * H, H);
  };
  const auto below = [&](int64_t l, int64_t t) {
    return l == 0 ? call.at_hand(m.feed, a.F)
           : save ? call.at_step(f.kept.below, l - 1, t, H)
                  : call.at_hand(m.below, H);
  };
  const auto attend = [&](int64_t t) {
    if (f.projects())
      run.multiply(save ? call.at_step(f.kept.query, 0, t, a.A) : call.at_hand(m.query, a.A),
                   call.at_hand(m.top, H), call.weight(f.w_query, a.A, H).transposed());
    check(decoder_attend(f, m, t, run.stream()));
  };
  check(decoder_begin(f, m, run.stream()));
  for (int64_t t = 0; t < a.T; ++t) {
    if (a.query_first) attend(t);
    for (int64_t l = 0; l < a.L; ++l) {
      run.multiply(call.at_hand(m.gates, call.width), below(l, t),
                   call.weight(f.w_in[l], call.width, call.read(l)).transposed());
      run.multiply(call.at_hand(m.sums, early), row(f.kept.h_in, m.h_in, l, t),
                   call.weight(f.w_hh[l], early, H).transposed());
      if (call.reset_before()) {
        check(decoder_reset(f, m, t, l, run.stream()));
        run.multiply(call.at_hand(m.candidate, H), row(f.kept.inner, m.inner, l, t),
                     call.weight(f.w_hh[l] + early * H, H, H).transposed());
      }
      check(decoder_step(f, m, t, l, run.stream()));
    }
    if (!a.query_first) attend(t);
    if (a.combines) {
      run.multiply(call.at_hand(m.out, a.O), call.at_hand(m.joined, a.C + H),
                   call.weight(f.w_out, a.O, a.C + H).transposed());
      check(decoder_combine(f, m, t, run.stream()));
    }
  }
  check(decoder_end(f, m, run.stream()));
  return out;
}

template <typename T>
DecoderGradients backward(const DecoderArguments& a, const DecoderCotangents& d) {
  DecoderGradients out(a);
  if (a.B == 0) return out;
  DecoderCall<T> call(a);
  Runtime& run = call.run;
  DecoderBackward<T> f{};
  a.fill(f);
  d.fill(f);
  out.fill(f);
  const DecoderStateGradient<T> m = call.gradient(f);
  const int64_t H = a.H, width = call.width, early = call.early();
  const T* d_sum = f.d_sum != nullptr ? f.d_sum : f.d_gates;
  const auto attend = [&](int64_t t) {
    check(decoder_attend(f, m, t, run.stream()));
    if (f.projects())
      run.multiply(call.at_hand(m.query, H), call.at_step(f.d_query, 0, t, a.A),
                   call.weight(f.w_query, a.A, H));
  };
  check(decoder_begin(f, m, run.stream()));
  for (int64_t t = a.T - 1; t >= 0; --t) {
    if (a.combines) {
      check(decoder_combine(f, m, t, run.stream()));
      run.multiply(call.at_hand(m.joined, a.C + H), call.at_step(f.d_out, 0, t, a.O),
                   call.weight(f.w_out, a.O, a.C + H));
    }
    if (!a.query_first) attend(t);
    for (int64_t l = a.L - 1; l >= 0; --l) {
      const Matrix d_sums = call.at_step(d_sum, l, t, width);
      check(decoder_step(f, m, t, l, run.stream()));
      if (call.reset_before()) {
        run.multiply(call.at_hand(m.reset_h, H), call.columns(d_sums, early, H),
                     call.weight(f.w_hh[l] + early * H, H, H));
        check(decoder_reset(f, m, t, l, run.stream()));
      }
      run.multiply(call.at_hand(m.h_in, H), call.columns(d_sums, 0, early),
                   call.weight(f.w_hh[l], early, H));
      run.multiply(call.at_hand(m.below, call.read(l)), call.at_step(f.d_gates, l, t, width),
                   call.weight(f.w_in[l], width, call.read(l)));
    }
    if (a.query_first) attend(t);
  }
  check(decoder_end(f, m, run.stream()));
  if (a.additive) check(decoder_keys(f, m, run.stream()));
  return out;
}

void attention_decoder(StableIValue* stack, uint64_t, uint64_t) {
  with_readable_errors([&] {
    ArgumentReader read(stack);
    const DecoderGiven given(read);
    const bool save = read.boolean();
    const DecoderArguments a(given);
    with_number(a.dtype, [&](auto number) {
      return forward<decltype(number)>(a, save);
    }).put(stack);
  });
}

void attention_decoder_backward(StableIValue* stack, uint64_t, uint64_t) {
  with_readable_errors([&] {
    ArgumentReader read(stack);
    const DecoderGiven given(read);
    DecoderCotangents d(read);
    DecoderArguments a(given);
    d.check(a);
    with_number(a.dtype, [&](auto number) { return backward<decltype(number)>(a, d); }).put(stack);
  });
}

}  // namespace
}  // namespace seq2seq_ext::cuda

#ifdef SEQ2SEQ_EXT_CUDA_ON_CPU
STABLE_TORCH_LIBRARY_IMPL(seq2seq_ext, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(seq2seq_ext, CUDA, m) {
#endif
  m.impl("attention_decoder", &seq2seq_ext::cuda::attention_decoder);
  m.impl("attention_decoder_backward", &seq2seq_ext::cuda::attention_decoder_backward);
}
