// The operator translate on CPU tensors: encoder_read, and decoder_search from the states in which
// it ended. For a short source, one after the other from Python takes longer than what they do.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <utility>

#include "calls.h"

namespace seq2seq_ext {
namespace {

// (L*D, B, P) -> (L, B, D*P): the states of both directions side by side.
Handle joined(Handle states, bool bidirectional) {
  if (!bidirectional) return states;
  const View given(states);
  const int64_t L = given.size[0] / 2, B = given.size[1];
  const int64_t bytes = given.size[2] * element_size(given.dtype);
  Handle side_by_side = empty({{L, B, 2 * given.size[2]}, 3}, given.dtype);
  const auto* from = static_cast<const char*>(given.data());
  auto* const to = static_cast<char*>(data_of(side_by_side));
  for (int64_t l = 0; l < L; ++l)
    for (int64_t d = 0; d < 2; ++d)
      for (int64_t b = 0; b < B; ++b, from += bytes)
        std::copy_n(from, bytes, to + ((l * B + b) * 2 + d) * bytes);
  return side_by_side;
}

void translate(StableIValue* stack, uint64_t, uint64_t) {
  with_readable_errors([&] {
    ArgumentReader read(stack);
    EncoderGiven encoder(read);
    SearchGiven search(read, SearchGiven::WithoutSources());
    Outputs states = run_encoder(encoder).states;
    const bool bidirectional = encoder.layers.bidirectional;
    search.h_0 = joined(std::move(states.h_n), bidirectional);
    if (View(states.c_n).dim == 3) search.c_0 = joined(std::move(states.c_n), bidirectional);
    run_search(search, stack);
  });
}

}  // namespace
}  // namespace seq2seq_ext

STABLE_TORCH_LIBRARY_IMPL(seq2seq_ext, CPU, m) { m.impl("translate", &seq2seq_ext::translate); }
