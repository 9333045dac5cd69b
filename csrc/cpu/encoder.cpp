// The operator encoder_read on CPU tensors: from tokens to the states of a stack of layers. Between
// them are only rows of the embedding; what it saves is the many small operators in which a program
// checks tokens, finds where they end, turns them around, and embeds them.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "calls.h"

namespace seq2seq_ext {
namespace {

// The sources as the layers read them, from what was checked.
struct Sources : Common {
  int64_t B, T, V, E;
  View tokens, embedding;
  std::vector<int64_t> length;  // (B) of tokens that were given

  explicit Sources(const EncoderGiven& given) : Common(View(given.embedding), "embedding") {
    embedding = embedding_of(given.embedding);
    V = embedding.size[0], E = embedding.size[1];
    tokens = View(given.tokens);
    if (tokens.dim != 2) fail("tokens: expected shape (B, T), got ", tokens);
    B = tokens.size[0], T = tokens.size[1];
    tokens = integers("tokens", tokens, {{B, T}, 2}, V - 1);
    embedding = with_adjacent_features(embedding);
    if (given.lengths) {
      const View lengths = integers("lengths", View(given.lengths), {{B}, 1}, T);
      const auto* values = static_cast<const int64_t*>(lengths.data());
      length.assign(values, values + B);
    } else {
      const auto* row = static_cast<const int64_t*>(tokens.data());
      for (int64_t b = 0; b < B; ++b, row += T) {
        int64_t end = T;
        while (end > 0 && row[end - 1] == given.pad) --end;
        length.push_back(end);
      }
    }
    if (given.eos && (*given.eos < 0 || *given.eos >= V))
      fail("eos: expected a token from 0 to ", V - 1, ", got ", *given.eos);
  }

  // The tokens that the layers read, (steps, B); 0 behind the end of a row.
  std::vector<int64_t> read(int64_t steps, std::optional<int64_t> eos, bool reverse) const {
    std::vector<int64_t> order(static_cast<size_t>(steps * B));
    const auto* row = static_cast<const int64_t*>(tokens.data());
    for (int64_t b = 0; b < B; ++b, row += T) {
      const int64_t end = length[b] + (eos ? 1 : 0);
      for (int64_t t = 0; t < end; ++t) {
        const int64_t from = reverse ? end - 1 - t : t;
        order[t * B + b] = from < length[b] ? row[from] : *eos;
      }
    }
    return order;
  }

  void embed(const std::vector<int64_t>& order, const Handle& x) const {
    const auto bytes = static_cast<size_t>(E * element_size(dtype));
    const int64_t row_bytes = embedding.stride[0] * element_size(dtype);
    const auto* table = static_cast<const char*>(embedding.data());
    auto* to = static_cast<char*>(data_of(x));
    for (const int64_t token : order) {
      std::memcpy(to, table + token * row_bytes, bytes);
      to += bytes;
    }
  }
};

void encoder_read(StableIValue* stack, uint64_t, uint64_t) {
  with_readable_errors([&] {
    ArgumentReader read(stack);
    EncoderGiven given(read);
    Encoded encoded = run_encoder(given);
    encoded.states.reserve = std::move(encoded.lengths);
    std::move(encoded.states).put(stack);
  });
}

}  // namespace

EncoderGiven::EncoderGiven(ArgumentReader& read)
    : tokens(read.tensor()), lengths(read.optional_tensor()), embedding(read.tensor()) {
  layers.weights = read.tensors();
  layers.cell = read.integer();
  layers.num_layers = read.integer();
  layers.bidirectional = read.boolean();
  pad = read.integer();
  eos = read.optional_integer();
  reverse = read.boolean();
  layers.packed = read.optional_tensor();
  table = read.optional_tensor();
  layers.turn = read.integer();
}

View embedding_of(const Handle& given) {
  const View embedding(given);
  if (embedding.dim != 2 || embedding.numel() == 0)
    fail("embedding: expected shape (V, E), got ", embedding);
  return embedding;
}

Encoded run_encoder(EncoderGiven& given) {
  const Sources sources(given);
  const int64_t more = given.eos ? 1 : 0;
  Handle lengths = empty({{sources.B}, 1}, aoti_torch_dtype_int64());
  std::transform(sources.length.begin(), sources.length.end(),
                 static_cast<int64_t*>(data_of(lengths)),
                 [&](int64_t length) { return length + more; });
  // A batch without any token takes one step that no row takes.
  const int64_t steps = std::max<int64_t>(sources.T + more, 1);
  const std::vector<int64_t> order = sources.read(steps, given.eos, given.reverse);
  const TokenRows rows{sources.embedding, View(given.table), order.data()};
  given.layers.x = empty({{steps, sources.B, sources.E}, 3}, sources.dtype);
  if (rows.packed && rows.packed.numel() > 0 && given.layers.packed &&
      is_contiguous(sources.embedding)) {
    given.layers.rows = &rows;
  } else {
    sources.embed(order, given.layers.x);
  }
  given.layers.lengths = alias(lengths.get());
  return {run_forward(given.layers), std::move(lengths)};
}

}  // namespace seq2seq_ext

STABLE_TORCH_LIBRARY_IMPL(seq2seq_ext, CPU, m) {
  m.impl("encoder_read", &seq2seq_ext::encoder_read);
}
