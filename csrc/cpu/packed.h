// Weights that stay packed between calls: a tensor of bytes that only this file reads. It holds
// what it was made of, so that a call can tell whether it still serves: the instruction set, the
// sizes, where the weights lay, and their fingerprint. Nobody writes to it once it is made, so any
// number of threads may use it at once, and one that finds it out of date makes another.
#pragma once

#include <optional>
#include <vector>

#include "../glue/arguments.h"
#include "../glue/tensors.h"
#include "compact.h"
#include "decoder_weights.h"
#include "kernels.h"

namespace seq2seq_ext {

// How weights are kept for which `dtype` is asked, None being their own; float16 is widened. Throws
// where the narrow types do not serve: they are for no weights of double.
WeightType weight_type_of(std::optional<torch::headeronly::ScalarType> dtype, const Common& common);

// uint8 (bytes). Widens the weights of the layers, which are `weights`.
Handle pack(Layers& layers, const std::vector<Handle>& weights, WeightType type);

// The kernels' part of `packed`, for a call of `steps` steps that comes after calls of `before`.
// Throws a message that begins with "packed: " where it was not made of these weights as
// they are now, or for another instruction set.
PackedBlock packed_block(const Layers& layers, const View& packed, int64_t before, int64_t steps);

// What the first layer makes of each row of an embedding (V, I), see TokenGates, with what was
// packed of the layers; an empty tensor where that is more than kMostOfTable.
Handle pack_tokens(const Layers& layers, const View& embedding, const PackedBlock& packed);
const void* packed_tokens(const Layers& layers, const View& embedding, const View& packed,
                          int64_t before, int64_t steps);

// Rows of a weight matrix that are packed apart.
struct MatrixRows {
  const char* name;
  View w;  // (rows, K)
  int64_t begin, end;
};

// The same of a single matrix. What a copy of it takes lives as long as `common`.
Handle pack(Common& common, const MatrixRows& rows, WeightType type);
PackedBlock packed_block(Common& common, const MatrixRows& rows, const View& packed, int64_t before,
                         int64_t steps);

// The same of a decoder, for steps and searches.
Handle pack(const DecoderTensors& weights, WeightType type);
PackedBlock packed_block(const DecoderTensors& weights, const View& packed, int64_t before,
                         int64_t steps);

}  // namespace seq2seq_ext
