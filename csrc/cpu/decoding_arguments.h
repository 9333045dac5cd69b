// What the operators decoder_step and decoder_search have alike: a decoder, packed, and what its
// steps read beside the state; checked.
#pragma once

#include <vector>

#include "../decoding.h"
#include "../glue/arguments.h"
#include "decoder_weights.h"
#include "kernels.h"

namespace seq2seq_ext {

// What both begin with, in the order of ops.cpp.
struct DecodingGiven {
  std::vector<Handle> weights;
  Handle packed;
  int64_t turn, checked;
  Handle gates, pieces, keys, values, source_lengths;
  int64_t cell, num_layers, source_features, heads, residual;
  bool query_first;
  double scale;

  explicit DecodingGiven(ArgumentReader& read);

 protected:
  DecodingGiven() = default;
  void take_weights(ArgumentReader& read);
  void take_sources(ArgumentReader& read);
  void take_layout(ArgumentReader& read);
};

struct DecodingArguments {
  DecoderTensors weights;
  PackedBlock packed;
  int64_t M = 0, S = 0;  // 0 without attention, until the caller knows better

  // Throws std::runtime_error naming the argument that is wrong. Keeps pointers into `given`.
  explicit DecodingArguments(const DecodingGiven& given);

  // Checks what has a row for each of `rows`, and for each of M sources, which is then known.
  void take_rows(int64_t rows, int64_t sources);
  // The tensor, contiguous, after a check.
  View take(const char* name, const Handle& given, const Shape& shape);

  template <typename T>
  void fill(Decoding<T>& call) const {
    const auto at = [](const View& view) { return static_cast<const T*>(view.data()); };
    call.w = weights.view<T>();
    call.M = M, call.S = S, call.heads = given_.heads, call.residual = given_.residual;
    call.query_first = given_.query_first, call.scale = given_.scale;
    call.gates = at(gates_), call.pieces = at(pieces_);
    call.keys = at(keys_), call.values = at(values_);
    call.source = static_cast<const int64_t*>(source_.data());
  }

  // How the rows, of which there are so many shares, are laid on threads: with owners of shares, or
  // with one owner of all, whom the others help (Split::kUnits).
  Plan plan(int64_t steps, int64_t rows, int64_t shares) const;

 private:
  const DecodingGiven& given_;
  View gates_, pieces_, keys_, values_, source_;
};

// Throws where a number is not from `low` to `high`.
void check_number(const char* name, int64_t value, int64_t low, int64_t high);

}  // namespace seq2seq_ext
