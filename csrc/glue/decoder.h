// The operators attention_decoder and attention_decoder_backward on whatever device: their
// arguments, checked, as the kernels read them (csrc/decoder.h), and their results.
#pragma once

#include <cstdint>
#include <vector>

#include "../decoder.h"
#include "arguments.h"

namespace seq2seq_ext {

// What both begin with, in the order of ops.cpp.
struct DecoderGiven {
  Handle x;
  std::vector<Handle> weights;
  Handle bias, b_hn, h_0, c_0, feed_0, coverage_0, keys, values, w_query, v, w_coverage, w_out,
      b_out, dropout_mask, lengths, source_lengths, memory;
  int64_t cell, num_layers, heads, residual;
  bool query_first;
  double scale;

  explicit DecoderGiven(ArgumentReader& read);
};

struct DecoderArguments : Common {
  Cell cell;
  int64_t T, B, M, S, L, H, A, C, O, F, heads, residual;
  bool additive, query_first, covers, combines;
  std::vector<const void*> w_in, w_hh;  // (L), contiguous
  View lengths, source_lengths, memory;

  // Throws std::runtime_error naming the argument that is wrong. Keeps pointers into `given`.
  explicit DecoderArguments(const DecoderGiven& given);

  bool has_cell() const { return cell == Cell::kLstm; }
  int64_t gates() const { return num_gates(cell) * H; }  // of a row

  template <typename N>
  void fill(Decoder<N>& call) const {
    const auto at = [](const View& view) { return static_cast<const N*>(view.data()); };
    const auto numbers = [](const View& view) { return static_cast<const int64_t*>(view.data()); };
    call.cell = cell;
    call.T_ = T, call.B = B, call.S = S, call.L = L, call.H = H, call.A = A, call.C = C;
    call.O = O, call.F = F, call.heads = heads, call.residual = residual;
    call.additive = additive, call.query_first = query_first, call.scale = scale;
    call.length = numbers(lengths), call.source = numbers(source_lengths);
    call.memory = numbers(memory);
    call.x = at(x), call.bias = at(bias), call.b_hn = at(b_hn);
    call.ld_feed = F;
    call.w_in = reinterpret_cast<const N* const*>(w_in.data());
    call.w_hh = reinterpret_cast<const N* const*>(w_hh.data());
    call.h_0 = at(h_0), call.c_0 = at(c_0), call.feed_0 = at(feed_0);
    call.coverage_0 = at(coverage_0);
    call.keys = at(keys), call.values = at(values), call.w_query = at(w_query), call.v = at(v);
    call.w_coverage = at(w_coverage), call.w_out = at(w_out), call.b_out = at(b_out);
    call.dropout_mask = at(dropout_mask);
  }

 private:
  DecoderArguments(const DecoderGiven& given, const View& x_given);
  void take_weights(const std::vector<Handle>& weights);

  View x, bias, b_hn, h_0, c_0, feed_0, coverage_0, keys, values, w_query, v, w_coverage, w_out;
  View b_out, dropout_mask;
  double scale;
};

// Results of attention_decoder, in the order of ops.cpp. `put` rounds the first eight to the dtype
// of x; the rest is kept in the dtype that was calculated in.
struct DecoderOutputs {
  int32_t dtype;
  Handle z, context, alignments, attentional, h_n, c_n, feed_n, coverage_n;
  Handle step, h_in, inner, below, query, coverage;

  DecoderOutputs(const DecoderArguments& a, bool save);
  template <typename T>
  void fill(DecoderForward<T>& call) const {
    call.z = at<T>(z), call.context = at<T>(context), call.alignments = at<T>(alignments);
    call.attentional = at<T>(attentional), call.h_n = at<T>(h_n), call.c_n = at<T>(c_n);
    call.feed_n = at<T>(feed_n), call.coverage_n = at<T>(coverage_n);
    call.kept = {at<T>(step),  at<T>(h_in),  at<T>(inner),
                 at<T>(below), at<T>(query), at<T>(coverage)};
  }
  void put(StableIValue* stack) &&;
};

// What attention_decoder_backward gets beside the arguments of attention_decoder: gradients of its
// results, None being zero, and what it left.
struct DecoderCotangents {
  Handle given[8];  // of the first eight results
  Handle context, alignments, attentional, step, h_in, inner, below, query, coverage;
  View d[8];  // contiguous, in the dtype that is calculated in
  View results[3];

  explicit DecoderCotangents(ArgumentReader& read);
  void check(DecoderArguments& a);
  template <typename T>
  void fill(DecoderBackward<T>& call) const {
    const auto of = [](const View& view) { return static_cast<const T*>(view.data()); };
    call.d_z = of(d[0]), call.d_context = of(d[1]), call.d_alignments = of(d[2]);
    call.d_attentional = of(d[3]), call.d_h_n = of(d[4]), call.d_c_n = of(d[5]);
    call.d_feed_n = of(d[6]), call.d_coverage_n = of(d[7]);
    call.context = of(results[0]), call.alignments = of(results[1]);
    call.attentional = of(results[2]);
    call.kept = {at<T>(step),  at<T>(h_in),  at<T>(inner),
                 at<T>(below), at<T>(query), at<T>(coverage)};
  }
};

struct DecoderGradients {
  Handle gates, sum, query, energy, context, out, keys, v, w_coverage, h_0, c_0, feed_0, coverage_0;

  explicit DecoderGradients(const DecoderArguments& a);
  template <typename T>
  void fill(DecoderBackward<T>& call) const {
    call.d_gates = at<T>(gates), call.d_sum = at<T>(sum), call.d_query = at<T>(query);
    call.d_energy = at<T>(energy), call.whole_context = at<T>(context), call.d_out = at<T>(out);
    call.d_keys = at<T>(keys), call.d_v = at<T>(v), call.d_w_coverage = at<T>(w_coverage);
    call.d_h_0 = at<T>(h_0), call.d_c_0 = at<T>(c_0), call.d_feed_0 = at<T>(feed_0);
    call.d_coverage_0 = at<T>(coverage_0);
  }
  void put(StableIValue* stack) &&;
};

}  // namespace seq2seq_ext
