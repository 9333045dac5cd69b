#include "packed.h"

#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "dispatch.h"
#include "fingerprint.h"
#include "scratch.h"

namespace seq2seq_ext {
namespace {

// Sizes and kinds of the weights of a block; no two kinds of blocks have the same.
using Sizes = std::array<int64_t, 16>;

// What a block was made of. Compared byte by byte, so there is no padding in it.
struct Header {
  char made_by[16] = "seq2seq_ext 3";  // count up when the layout changes
  char isa[16] = {};
  int64_t type, dtype;
  Sizes sizes;
  int64_t bytes;   // of the whole tensor
  int64_t memory;  // offset of the kernels' part
};
static_assert(sizeof(Header) == 32 + 20 * 8);

// Behind the header: the weights' addresses, then the hashes of each, then the kernels' part.
struct Parts {
  int64_t addresses, hashes, memory;
};

constexpr int64_t kAlignment = 64;

// ---- what blocks are made of --------------------------------------------------------------------
//
// A source has the arrays of a block, where they were given and contiguous, and knows the kernels'
// part. A type that is none of the three is taken for the first there, and told by the header.

struct LayersSource {
  const Layers& layers;

  int32_t dtype() const { return layers.dtype; }
  Sizes sizes() const {
    return {static_cast<int64_t>(layers.cell),
            layers.bias,
            layers.projected,
            layers.L,
            layers.D,
            layers.I,
            layers.H,
            layers.P};
  }
  int64_t count() const { return static_cast<int64_t>(layers.weights.size()); }
  const void* given(int64_t i) const { return layers.given[i]; }
  const void* array(int64_t i) const { return layers.weights[i]; }
  size_t bytes(int64_t i) const { return layers.weight_bytes(i); }
  std::string name(int64_t i) const { return "weights[" + std::to_string(i) + "]"; }

  // Calls with the kernels' view of the layers and whether it is one of floats.
  template <typename Call>
  auto with_stack(const Call& call) const {
    Scratch::Frame frame;
    if (layers.in_float()) {
      Stack<float> stack{};
      fill_layers(layers, frame, stack);
      return call(stack, std::true_type());
    }
    Stack<double> stack{};
    fill_layers(layers, frame, stack);
    return call(stack, std::false_type());
  }
  int64_t memory_size(const Kernels& kernels, WeightType type) const {
    return with_stack([&](const auto& stack, auto is_float) {
      if constexpr (is_float)
        return static_cast<int64_t>(kernels.packed_size_f32(stack, type));
      else
        return static_cast<int64_t>(kernels.packed_size_f64(stack, type));
    });
  }
};

// Of the layers' weights, those of the first.
struct TokensSource {
  const LayersSource layers;
  const View& embedding;

  const Layers& of() const { return layers.layers; }
  int32_t dtype() const { return layers.dtype(); }
  Sizes sizes() const {
    Sizes sizes = layers.sizes();
    std::copy_backward(sizes.begin(), sizes.end() - 2, sizes.end());
    sizes[0] = -3, sizes[1] = embedding.size[0];
    return sizes;
  }
  int64_t count() const { return 1 + of().D * of().roles(); }
  const void* given(int64_t i) const { return i == 0 ? embedding.data() : layers.given(i - 1); }
  const void* array(int64_t i) const { return i == 0 ? embedding.data() : layers.array(i - 1); }
  size_t bytes(int64_t i) const {
    if (i > 0) return layers.bytes(i - 1);
    return static_cast<size_t>(embedding.numel() * element_size(dtype()));
  }
  std::string name(int64_t i) const { return i == 0 ? "embedding" : layers.name(i - 1); }
  int64_t numbers(const Kernels& kernels) const {
    return layers.with_stack([&](const auto& stack, auto is_float) {
      if constexpr (is_float)
        return embedding.size[0] * kernels.token_gates_width_f32(stack);
      else
        return embedding.size[0] * kernels.token_gates_width_f64(stack);
    });
  }
  int64_t memory_size(const Kernels& kernels, WeightType) const {
    return numbers(kernels) * element_size(dtype());
  }
};

struct MatrixSource {
  const char* matrix_name;
  int32_t own_dtype, computed;
  int64_t N, K;
  const void* given_at;
  const void* contiguous;

  MatrixSource(Common& common, const MatrixRows& rows)
      : matrix_name(rows.name),
        own_dtype(common.dtype),
        computed(common.computed),
        N(rows.end - rows.begin),
        K(rows.w.size[1]),
        given_at(at(rows.w, rows.begin)),
        contiguous(at(common.contiguous(rows.w), rows.begin)) {}

  int32_t dtype() const { return own_dtype; }
  Sizes sizes() const { return {-1, N, K}; }
  int64_t count() const { return 1; }
  const void* given(int64_t) const { return given_at; }
  const void* array(int64_t) const { return contiguous; }
  size_t bytes(int64_t) const { return static_cast<size_t>(N * K * element_size(own_dtype)); }
  std::string name(int64_t) const { return matrix_name; }
  int64_t memory_size(const Kernels& kernels, WeightType type) const {
    const bool is_float = computed == aoti_torch_dtype_float32();
    return static_cast<int64_t>(
        (is_float ? kernels.matrix_size_f32 : kernels.matrix_size_f64)(K, N, type));
  }

 private:
  static const void* at(const View& w, int64_t row) {
    return static_cast<const char*>(w.data()) + row * w.stride[0] * element_size(w.dtype);
  }
};

struct DecoderSource {
  const DecoderTensors& w;

  int32_t dtype() const { return w.dtype; }
  Sizes sizes() const {
    using Role = DecoderRole;
    const int64_t kinds = w.has(Role::kQuery) + 2 * w.has(Role::kV) + 4 * w.has(Role::kGain) +
                          8 * w.has(Role::kCoverage) + 16 * w.has(Role::kContext);
    return {
        -2,   static_cast<int64_t>(w.cell), w.L, w.H, w.V, w.E, w.X, w.F, w.A, w.C, w.O, w.U, w.R,
        kinds};
  }
  int64_t count() const { return static_cast<int64_t>(w.weights.size()); }
  const void* given(int64_t i) const { return w.array(i); }
  const void* array(int64_t i) const { return w.array(i); }
  size_t bytes(int64_t i) const { return w.bytes(i); }
  std::string name(int64_t i) const { return w.name(i); }
  int64_t memory_size(const Kernels& kernels, WeightType type) const {
    return static_cast<int64_t>(w.in_float()
                                    ? kernels.packed_decoder_size_f32(w.view<float>(), type)
                                    : kernels.packed_decoder_size_f64(w.view<double>(), type));
  }
};

// ---- blocks -------------------------------------------------------------------------------------

template <typename Source>
Header header_of(const Source& source, WeightType type, const Kernels& kernels, Parts& parts) {
  int64_t hashes = 0;
  for (int64_t i = 0; i < source.count(); ++i) hashes += Fingerprint::slices(source.bytes(i));
  parts.addresses = sizeof(Header);
  parts.hashes = parts.addresses + source.count() * int64_t{sizeof(void*)};
  const int64_t end = parts.hashes + hashes * int64_t{sizeof(uint64_t)};
  parts.memory = (end + kAlignment - 1) / kAlignment * kAlignment;
  Header header;
  std::strncpy(header.isa, kernels.name, sizeof header.isa - 1);
  header.type = static_cast<int64_t>(type);
  header.dtype = source.dtype();
  header.sizes = source.sizes();
  header.memory = parts.memory;
  header.bytes = parts.memory + source.memory_size(kernels, type);
  return header;
}

// `pack` writes the kernels' part.
template <typename Source, typename Pack>
Handle make_block(const Source& source, WeightType type, const Pack& pack) {
  const Kernels& kernels = active_kernels();
  Parts parts;
  const Header header = header_of(source, type, kernels, parts);
  Handle tensor = empty({{header.bytes}, 1}, aoti_torch_dtype_uint8());
  char* base = static_cast<char*>(data_of(tensor));
  std::memset(base, 0, static_cast<size_t>(header.bytes));
  std::memcpy(base, &header, sizeof header);
  // Before the weights are packed: what another thread changes meanwhile differs from it then.
  auto* hashes = reinterpret_cast<uint64_t*>(base + parts.hashes);
  for (int64_t i = 0; i < source.count(); ++i) {
    const void* given = source.given(i);
    std::memcpy(base + parts.addresses + i * int64_t{sizeof(void*)}, &given, sizeof given);
    Fingerprint::take(source.array(i), source.bytes(i), hashes);
    hashes += Fingerprint::slices(source.bytes(i));
  }
  pack(kernels, base + parts.memory);
  return tensor;
}

template <typename Source>
PackedBlock check_block(const Source& source, const View& packed, int64_t before, int64_t steps) {
  const bool flat = packed.dim == 1 && packed.dtype == aoti_torch_dtype_uint8() &&
                    packed.device.type == aoti_torch_device_type_cpu() && packed.stride[0] == 1;
  const int64_t bytes = flat ? packed.size[0] : 0;
  const auto* base = flat ? static_cast<const char*>(packed.data()) : nullptr;
  Header made;
  if (bytes < int64_t{sizeof made} || reinterpret_cast<uintptr_t>(base) % kAlignment != 0)
    fail("packed: expected a tensor that prepack made, got shape ", packed);
  std::memcpy(&made, base, sizeof made);
  Parts parts;
  const Header expected =
      header_of(source, static_cast<WeightType>(made.type), active_kernels(), parts);
  if (bytes != made.bytes || std::memcmp(&made, &expected, sizeof made) != 0)
    fail("packed: expected what prepack makes of these weights for ", expected.isa,
         ", got a block of other layers or for another instruction set");
  const auto* hashes = reinterpret_cast<const uint64_t*>(base + parts.hashes);
  for (int64_t i = 0; i < source.count(); ++i) {
    const void* given = source.given(i);
    if (std::memcmp(base + parts.addresses + i * int64_t{sizeof(void*)}, &given, sizeof given) != 0)
      fail("packed: the weights are other tensors than those it was made of");
  }
  for (int64_t i = 0; i < source.count(); ++i) {
    if (!Fingerprint::unchanged(source.array(i), source.bytes(i), hashes, before, steps))
      fail("packed: ", source.name(i), " has changed since");
    hashes += Fingerprint::slices(source.bytes(i));
  }
  return {base + parts.memory, static_cast<WeightType>(made.type)};
}

template <typename T, typename Size, typename Kernel>
void fill_tokens(const Stack<T>& stack, const View& embedding, const PackedBlock& packed,
                 void* memory, Size workspace_size, Kernel kernel) {
  TokenGates<T> call{};
  static_cast<Stack<T>&>(call) = stack;
  call.packed = packed.memory, call.packed_type = packed.type;
  call.V = embedding.size[0], call.features = static_cast<const T*>(embedding.data());
  call.rows = static_cast<T*>(memory);
  Scratch::Frame frame;
  kernel(call, frame.take(workspace_size(call)));
}

}  // namespace

WeightType weight_type_of(std::optional<torch::headeronly::ScalarType> dtype,
                          const Common& common) {
  using torch::headeronly::ScalarType;
  const bool is_float = common.in_float();
  if (!dtype)
    return common.dtype == aoti_torch_dtype_bfloat16() ? WeightType::kBf16 : WeightType::kFull;
  if (*dtype == (is_float ? ScalarType::Float : ScalarType::Double)) return WeightType::kFull;
  if (*dtype != ScalarType::BFloat16 && *dtype != ScalarType::Char)
    fail("dtype: expected None, BFloat16 or Char, got ", torch::headeronly::toString(*dtype));
  if (!is_float)
    fail("dtype: expected None for weights of Double, got ", torch::headeronly::toString(*dtype));
  return *dtype == ScalarType::BFloat16 ? WeightType::kBf16 : WeightType::kInt8;
}

Handle pack(Layers& layers, const std::vector<Handle>& weights, WeightType type) {
  const LayersSource source{layers};
  return make_block(source, type, [&](const Kernels& kernels, void* memory) {
    layers.widen_weights(weights);
    source.with_stack([&](const auto& stack, auto is_float) {
      if constexpr (is_float)
        kernels.pack_f32(stack, type, memory);
      else
        kernels.pack_f64(stack, type, memory);
    });
  });
}

PackedBlock packed_block(const Layers& layers, const View& packed, int64_t before, int64_t steps) {
  return check_block(LayersSource{layers}, packed, before, steps);
}

Handle pack_tokens(const Layers& layers, const View& embedding, const PackedBlock& packed) {
  const TokensSource source{{layers}, embedding};
  if (source.numbers(active_kernels()) > kMostOfTable)
    return empty({{0}, 1}, aoti_torch_dtype_uint8());
  return make_block(source, packed.type, [&](const Kernels& kernels, void* memory) {
    source.layers.with_stack([&](const auto& stack, auto is_float) {
      if constexpr (is_float)
        fill_tokens(stack, embedding, packed, memory, kernels.token_gates_workspace_f32,
                    kernels.token_gates_f32);
      else
        fill_tokens(stack, embedding, packed, memory, kernels.token_gates_workspace_f64,
                    kernels.token_gates_f64);
    });
  });
}

const void* packed_tokens(const Layers& layers, const View& embedding, const View& packed,
                          int64_t before, int64_t steps) {
  return check_block(TokensSource{{layers}, embedding}, packed, before, steps).memory;
}

Handle pack(Common& common, const MatrixRows& rows, WeightType type) {
  const MatrixSource source(common, rows);
  return make_block(source, type, [&](const Kernels& kernels, void* memory) {
    const MatrixSource wide(common, {rows.name, common.widened(rows.w), rows.begin, rows.end});
    if (common.in_float()) {
      kernels.pack_matrix_f32(static_cast<const float*>(wide.contiguous), wide.K, wide.N, type,
                              memory);
    } else {
      kernels.pack_matrix_f64(static_cast<const double*>(wide.contiguous), wide.K, wide.N, type,
                              memory);
    }
  });
}

PackedBlock packed_block(Common& common, const MatrixRows& rows, const View& packed, int64_t before,
                         int64_t steps) {
  return check_block(MatrixSource(common, rows), packed, before, steps);
}

Handle pack(const DecoderTensors& weights, WeightType type) {
  return make_block(DecoderSource{weights}, type, [&](const Kernels& kernels, void* memory) {
    if (weights.in_float()) {
      kernels.pack_decoder_f32(weights.view<float>(), type, memory);
    } else {
      kernels.pack_decoder_f64(weights.view<double>(), type, memory);
    }
  });
}

PackedBlock packed_block(const DecoderTensors& weights, const View& packed, int64_t before,
                         int64_t steps) {
  return check_block(DecoderSource{weights}, packed, before, steps);
}

}  // namespace seq2seq_ext
