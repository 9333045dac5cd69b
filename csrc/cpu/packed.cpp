#include "packed.h"

#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "dispatch.h"
#include "fingerprint.h"
#include "scratch.h"

namespace seq2seq_ext {
namespace {

// What a block was made of. Compared byte by byte, so there is no padding in it.
struct Header {
  char made_by[16] = "seq2seq_ext 1";  // count up when the layout changes
  char isa[16] = {};
  int64_t type, cell, dtype, bias, projected;
  int64_t L, D, I, H, P;
  int64_t bytes;   // of the whole tensor
  int64_t memory;  // offset of the kernels' part
};
static_assert(sizeof(Header) == 32 + 12 * 8);

// Behind the header: the weights' addresses, then the hashes of each, then the kernels' part.
struct Parts {
  int64_t addresses, hashes, memory;
};

constexpr int64_t kAlignment = 64;

Parts parts_of(const Layers& layers) {
  const auto count = static_cast<int64_t>(layers.weights.size());
  int64_t hashes = 0;
  for (int64_t i = 0; i < count; ++i) hashes += Fingerprint::slices(layers.weight_bytes(i));
  Parts parts;
  parts.addresses = sizeof(Header);
  parts.hashes = parts.addresses + count * int64_t{sizeof(void*)};
  const int64_t end = parts.hashes + hashes * int64_t{sizeof(uint64_t)};
  parts.memory = (end + kAlignment - 1) / kAlignment * kAlignment;
  return parts;
}

Header header_of(const Layers& layers, WeightType type, const Kernels& kernels) {
  Header header;
  std::strncpy(header.isa, kernels.name, sizeof header.isa - 1);
  header.type = static_cast<int64_t>(type);
  header.cell = static_cast<int64_t>(layers.cell);
  header.dtype = layers.dtype;
  header.bias = layers.bias;
  header.projected = layers.projected;
  header.L = layers.L;
  header.D = layers.D;
  header.I = layers.I;
  header.H = layers.H;
  header.P = layers.P;
  return header;
}

// A type that is none of the three is taken for the first by the kernels, and told by the header.
int64_t kernels_part(const Layers& layers, WeightType type) {
  const Kernels& kernels = active_kernels();
  Scratch::Frame frame;
  if (layers.computed == aoti_torch_dtype_float32()) {
    Stack<float> stack{};
    fill_layers(layers, frame, stack);
    return static_cast<int64_t>(kernels.packed_size_f32(stack, type));
  }
  Stack<double> stack{};
  fill_layers(layers, frame, stack);
  return static_cast<int64_t>(kernels.packed_size_f64(stack, type));
}

template <typename T, typename Size, typename Pack>
Handle pack_as(Layers& layers, const std::vector<Handle>& weights, WeightType type,
               const Kernels& kernels, const Size& size, const Pack& pack) {
  Scratch::Frame frame;
  Stack<T> stack{};
  fill_layers(layers, frame, stack);
  const Parts parts = parts_of(layers);
  Header header = header_of(layers, type, kernels);
  header.memory = parts.memory;
  header.bytes = parts.memory + static_cast<int64_t>(size(stack, type));
  Handle tensor = empty({{header.bytes}, 1}, aoti_torch_dtype_uint8());
  char* base = static_cast<char*>(data_of(tensor));
  std::memset(base, 0, static_cast<size_t>(header.bytes));
  std::memcpy(base, &header, sizeof header);
  std::memcpy(base + parts.addresses, layers.given.data(), layers.given.size() * sizeof(void*));
  // Before the weights are packed: what another thread changes meanwhile differs from it then.
  auto* hashes = reinterpret_cast<uint64_t*>(base + parts.hashes);
  for (size_t i = 0; i < layers.weights.size(); ++i) {
    const size_t bytes = layers.weight_bytes(static_cast<int64_t>(i));
    Fingerprint::take(layers.weights[i], bytes, hashes);
    hashes += Fingerprint::slices(bytes);
  }
  layers.widen_weights(weights);
  fill_layers(layers, frame, stack);
  pack(stack, type, base + parts.memory);
  return tensor;
}

}  // namespace

WeightType weight_type_of(std::optional<torch::headeronly::ScalarType> dtype,
                          const Layers& layers) {
  using torch::headeronly::ScalarType;
  const bool is_float = layers.computed == aoti_torch_dtype_float32();
  if (!dtype)
    return layers.dtype == aoti_torch_dtype_bfloat16() ? WeightType::kBf16 : WeightType::kFull;
  if (*dtype == (is_float ? ScalarType::Float : ScalarType::Double)) return WeightType::kFull;
  if (*dtype != ScalarType::BFloat16 && *dtype != ScalarType::Char)
    fail("dtype: expected None, BFloat16 or Char, got ", torch::headeronly::toString(*dtype));
  if (!is_float)
    fail("dtype: expected None for weights of Double, got ", torch::headeronly::toString(*dtype));
  return *dtype == ScalarType::BFloat16 ? WeightType::kBf16 : WeightType::kInt8;
}

Handle pack(Layers& layers, const std::vector<Handle>& weights, WeightType type) {
  const Kernels& kernels = active_kernels();
  if (layers.computed == aoti_torch_dtype_float32())
    return pack_as<float>(layers, weights, type, kernels, kernels.packed_size_f32,
                          kernels.pack_f32);
  return pack_as<double>(layers, weights, type, kernels, kernels.packed_size_f64, kernels.pack_f64);
}

PackedBlock packed_block(const Layers& layers, const View& packed, int64_t before, int64_t steps) {
  const auto* base = static_cast<const char*>(packed.data());
  const int64_t bytes = packed.dim == 1 && packed.dtype == aoti_torch_dtype_uint8() &&
                                packed.device.type == aoti_torch_device_type_cpu() &&
                                packed.stride[0] == 1
                            ? packed.size[0]
                            : 0;
  Header made;
  if (bytes < int64_t{sizeof made} || reinterpret_cast<uintptr_t>(base) % kAlignment != 0)
    fail("packed: expected a tensor that prepack made, got shape ", packed);
  std::memcpy(&made, base, sizeof made);
  const Parts parts = parts_of(layers);
  Header expected = header_of(layers, static_cast<WeightType>(made.type), active_kernels());
  expected.memory = parts.memory;
  expected.bytes = parts.memory + kernels_part(layers, static_cast<WeightType>(made.type));
  if (bytes != made.bytes || std::memcmp(&made, &expected, sizeof made) != 0)
    fail("packed: expected what prepack makes of these weights for ", expected.isa,
         ", got a block of other layers or for another instruction set");
  if (std::memcmp(base + parts.addresses, layers.given.data(),
                  layers.given.size() * sizeof(void*)) != 0)
    fail("packed: the weights are other tensors than those it was made of");
  const auto* hashes = reinterpret_cast<const uint64_t*>(base + parts.hashes);
  for (size_t i = 0; i < layers.weights.size(); ++i) {
    const size_t size = layers.weight_bytes(static_cast<int64_t>(i));
    if (!Fingerprint::unchanged(layers.weights[i], size, hashes, before, steps))
      fail("packed: weights[", i, "] has changed since");
    hashes += Fingerprint::slices(size);
  }
  return {base + parts.memory, static_cast<WeightType>(made.type)};
}

}  // namespace seq2seq_ext
