// How packed weights are stored: in full (S is the type of the arithmetic), as bfloat16, or as
// 8-bit integers with a scale per column (that is, per output channel, a row of the weight matrix).
//
// Narrow weights lie in 32-bit units: a unit holds a group of 2 or 4 consecutive k of one column,
// the first in its lowest bits. One load brings a group for a vector of columns, and a shift and a
// mask per k make it a vector of floats, with no lane crossing another. bfloat16 is the upper half
// of a float. An 8-bit integer q is stored as the byte q + 128 and becomes the upper mantissa of a
// number between 1 and 2, that is 1.5 + q / 256, which saves its conversion; a product takes
// the 1.5 off as a whole, 1.5 times the sum of what the weights are multiplied by, and the 256 is
// part of the column's scale. All sums are formed in float.

struct Bf16 {};
struct Int8 {};

template <typename S>
struct StorageOf {
  using Unit = S;
  static constexpr int kGroup = 1;
};
template <>
struct StorageOf<Bf16> {
  using Unit = int32_t;
  static constexpr int kGroup = 2;
};
template <>
struct StorageOf<Int8> {
  using Unit = int32_t;
  static constexpr int kGroup = 4;
};
template <typename S>
using Unit = typename StorageOf<S>::Unit;
template <typename S>
inline constexpr int kGroup = StorageOf<S>::kGroup;
template <typename S>
inline constexpr bool kScaled = std::is_same_v<S, Int8>;

// Calls with a storage as a type. The narrow ones are for float only; others take theirs for full.
template <typename T, typename Call>
static auto with_type(WeightType type, const Call& call) {
  if constexpr (std::is_same_v<T, float>) {
    if (type == WeightType::kBf16) return call(Bf16{});
    if (type == WeightType::kInt8) return call(Int8{});
  }
  return call(T{});
}

// Rows of units that K rows of weights take.
template <typename S>
constexpr int64_t unit_rows(int64_t K) {
  return (K + kGroup<S> - 1) / kGroup<S>;
}

// What unpack leaves in every weight.
template <typename S>
inline constexpr float kOffset = std::is_same_v<S, Int8> ? 1.5f : 0.0f;

// A vector of units into the vectors of its kGroup<S> consecutive k; unscaled, with kOffset<S>.
template <typename T, typename S>
ISA_INLINE void unpack(const Unit<S>* units, Vec<T>* out) {
  if constexpr (std::is_same_v<S, T>) {
    out[0] = load(units);
  } else {
    Vec<Bits<T>> bits;
    __builtin_memcpy(&bits, units, sizeof bits);
    if constexpr (std::is_same_v<S, Bf16>) {
      const Vec<Bits<T>> halves[2] = {bits << 16, bits & int32_t(0xffff0000)};
      __builtin_memcpy(&out[0], &halves[0], sizeof bits);
      __builtin_memcpy(&out[1], &halves[1], sizeof bits);
    } else {
      constexpr int32_t kByte = 0xff << 15, kOne = 0x3f800000;
      const Vec<Bits<T>> quarters[4] = {((bits << 15) & kByte) | kOne, ((bits << 7) & kByte) | kOne,
                                        ((bits >> 1) & kByte) | kOne, ((bits >> 9) & kByte) | kOne};
      for (int j = 0; j < 4; ++j) __builtin_memcpy(&out[j], &quarters[j], sizeof bits);
    }
  }
}

// `depth` rows of a panel of `width` columns, scaled, to `wide` (depth, width).
template <typename T, typename S>
static void widen(int64_t depth, int64_t width, const Unit<S>* units, int64_t ldu, const T* scale,
                  T* wide) {
  constexpr int64_t W = kLanes<T>;
  constexpr int G = kGroup<S>;
  for (int64_t k = 0; k < depth; k += G, units += ldu) {
    for (int64_t column = 0; column < width; column += W) {
      Vec<T> group[G];
      unpack<T, S>(units + column, group);
      const Vec<T> factor = kScaled<S> ? load(scale + column) : Vec<T>{};
      for (int64_t j = 0; j < std::min<int64_t>(G, depth - k); ++j)
        store(wide + (k + j) * width + column,
              kScaled<S> ? (group[j] - T(kOffset<S>)) * factor : group[j]);
    }
  }
}

// The nearest bfloat16, ties to even, as the upper half of the result.
inline uint32_t nearest_bf16(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  if (value != value) return (bits | 0x400000) >> 16;  // a NaN stays one
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// Transposes a strip of a row-major matrix: out[k * ldo + lane] = w[lane * ldw + k] for `count` <=
// W rows, zeros in the lanes behind.
template <typename T>
static void pack_transposed(int64_t count, const T* w, int64_t ldw, int64_t K, T* out,
                            int64_t ldo) {
  constexpr int64_t W = kLanes<T>;
  for (int64_t k = 0; k < K; k += W) {
    Vec<T> square[W];
    for (int64_t lane = 0; lane < W; ++lane) {
      square[lane] = lane < count ? load_first(w + lane * ldw + k, K - k) : Vec<T>{};
    }
    transpose<T>(square);
    for (int64_t i = 0; i < std::min(W, K - k); ++i) store(out + (k + i) * ldo, square[i]);
  }
}

// A strip of a row-major matrix in storage S: lane i of unit row k / kGroup holds w[i * ldw + k
// ...] for `count` <= W matrix rows, zeros in the lanes behind. `scale` (W) is written where S has
// one.
template <typename T, typename S>
static void pack_strip(int64_t count, const T* w, int64_t ldw, int64_t K, Unit<S>* out, int64_t ldo,
                       T* scale) {
  if constexpr (std::is_same_v<S, T>) {
    (void)scale;
    pack_transposed(count, w, ldw, K, out, ldo);
  } else {
    constexpr int G = kGroup<S>;
    for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
      const T* row = lane < count ? w + lane * ldw : nullptr;
      T largest = 0;
      for (int64_t k = 0; k < K && kScaled<S> && row != nullptr; ++k)
        largest = std::max(largest, std::abs(row[k]));
      const T inverse = largest > 0 ? 127 / largest : T(0);
      for (int64_t k = 0; k < K; k += G) {
        uint32_t unit = 0;
        for (int64_t j = 0; j < std::min<int64_t>(G, K - k) && row != nullptr; ++j) {
          if constexpr (std::is_same_v<S, Bf16>) {
            unit |= nearest_bf16(row[k + j]) << (16 * j);
          } else {
            const T exact = row[k + j] * inverse;  // a NaN becomes -127, for want of better
            const auto q =
                static_cast<int32_t>(std::nearbyint(exact > -127 ? std::min(exact, T(127)) : -127));
            unit |= static_cast<uint32_t>(q + 128) << (8 * j);
          }
        }
        out[k / G * ldo + lane] = static_cast<Unit<S>>(unit);
      }
      if constexpr (kScaled<S>) scale[lane] = largest / 127 * 256;
    }
  }
}

// How products with weights in S are formed where they are not multiplied as floats
// (narrow_product.h): what rows become for that, and the kernels.
template <typename S>
struct Narrow {
  struct Rows {
    Rows(void*, int64_t, int64_t) {}
  };
  static constexpr bool kKnown = false;
};
template <>
struct Narrow<Bf16> {
  using Rows = Bf16Rows;
  static constexpr bool kKnown = true;
  static const NarrowKernels<Rows>& kernels() {
    return bf16_kernels(bf16_pays() ? ISA_VECTOR_BYTES : 0);
  }
};
template <>
struct Narrow<Int8> {
  using Rows = Int16Rows;
  static constexpr bool kKnown = true;
  static const NarrowKernels<Rows>& kernels() { return int8_kernels(ISA_VECTOR_BYTES); }
};
