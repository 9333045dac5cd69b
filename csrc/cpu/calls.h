// Operators of which others are made: what they are given, and what they answer. All throw
// std::runtime_error naming the argument that is wrong.
#pragma once

#include <optional>

#include "../glue/arguments.h"
#include "../search.h"
#include "decoding_arguments.h"

namespace seq2seq_ext {

// An embedding (V, E) that is not empty.
View embedding_of(const Handle& given);

// rnn.
Outputs run_forward(const ForwardGiven& given);

// encoder_read, in the order of ops.cpp.
struct EncoderGiven {
  Handle tokens, lengths, embedding;
  Handle table;         // what prepack_tokens made of it, beside packed layers; or none
  ForwardGiven layers;  // all but x and lengths
  int64_t pad;
  std::optional<int64_t> eos;
  bool reverse;

  explicit EncoderGiven(ArgumentReader& read);
};

struct Encoded {
  Outputs states;  // without a reserve
  Handle lengths;
};

// Fills in what is missing of the layers.
Encoded run_encoder(EncoderGiven& given);

// decoder_search, in the order of ops.cpp.
struct SearchGiven : DecodingGiven {
  Handle h_0, c_0;
  SearchOptions options;

  explicit SearchGiven(ArgumentReader& read);
  // Without what the decoder reads of sources and where it begins.
  struct WithoutSources {};
  SearchGiven(ArgumentReader& read, WithoutSources);

 private:
  void take_options(ArgumentReader& read);
};

// Puts its results in the place of the arguments.
void run_search(const SearchGiven& given, StableIValue* stack);

}  // namespace seq2seq_ext
