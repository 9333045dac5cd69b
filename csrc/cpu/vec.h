// Vectors of one register, on GCC/Clang vector extensions: operators come from the compiler, and
// the same source becomes SSE2, AVX2, AVX-512 or NEON with the target that the translation unit
// sets. Included inside the namespace of one instruction set; ISA_VECTOR_BYTES is the register's
// width.

template <typename T>
struct VecOf {
  typedef T type __attribute__((vector_size(ISA_VECTOR_BYTES)));
};
template <typename T>
using Vec = typename VecOf<T>::type;

template <typename T>
inline constexpr int64_t kLanes = ISA_VECTOR_BYTES / sizeof(T);

// The integer as wide as T, for looking at a float's bits.
template <typename T>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = int32_t;
};
template <>
struct BitsOf<double> {
  using type = int64_t;
};
template <typename T>
using Bits = typename BitsOf<T>::type;

template <typename T>
ISA_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <typename T>
ISA_INLINE void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// Subtracting zero changes no value, not even -0, so that this is one broadcast.
template <typename T>
ISA_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}

// Of fewer lanes than a vector has.
#if ISA_VECTOR_BYTES == 64
ISA_INLINE unsigned first_lanes(int64_t count) { return (1u << count) - 1; }
ISA_INLINE Vec<float> masked_load(const float* p, int64_t count) {
  return (Vec<float>)_mm512_maskz_loadu_ps(static_cast<__mmask16>(first_lanes(count)), p);
}
ISA_INLINE Vec<double> masked_load(const double* p, int64_t count) {
  return (Vec<double>)_mm512_maskz_loadu_pd(static_cast<__mmask8>(first_lanes(count)), p);
}
ISA_INLINE void masked_store(float* p, Vec<float> v, int64_t count) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>(first_lanes(count)), (__m512)v);
}
ISA_INLINE void masked_store(double* p, Vec<double> v, int64_t count) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>(first_lanes(count)), (__m512d)v);
}
#elif ISA_VECTOR_BYTES == 32
ISA_INLINE __m256i first_floats(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
ISA_INLINE __m256i first_doubles(int64_t count) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
}
ISA_INLINE Vec<float> masked_load(const float* p, int64_t count) {
  return (Vec<float>)_mm256_maskload_ps(p, first_floats(count));
}
ISA_INLINE Vec<double> masked_load(const double* p, int64_t count) {
  return (Vec<double>)_mm256_maskload_pd(p, first_doubles(count));
}
ISA_INLINE void masked_store(float* p, Vec<float> v, int64_t count) {
  _mm256_maskstore_ps(p, first_floats(count), (__m256)v);
}
ISA_INLINE void masked_store(double* p, Vec<double> v, int64_t count) {
  _mm256_maskstore_pd(p, first_doubles(count), (__m256d)v);
}
#else
template <typename T>
ISA_INLINE Vec<T> masked_load(const T* p, int64_t count) {
  alignas(ISA_VECTOR_BYTES) T lanes[kLanes<T>] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
}
template <typename T>
ISA_INLINE void masked_store(T* p, Vec<T> v, int64_t count) {
  alignas(ISA_VECTOR_BYTES) T lanes[kLanes<T>];
  store(lanes, v);
  for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}
#endif

// The first `count` lanes from p, the others zero; nothing behind p + count is touched.
template <typename T>
ISA_INLINE Vec<T> load_first(const T* p, int64_t count) {
  if (count >= kLanes<T>) return load(p);
  return masked_load(p, count);
}

template <typename T>
ISA_INLINE void store_first(T* p, Vec<T> v, int64_t count) {
  if (count >= kLanes<T>) return store(p, v);
  masked_store(p, v, count);
}

// Lanes of a and b in turn, from their first halves or from their second.
template <typename T, bool second, int64_t... I>
ISA_INLINE Vec<T> interleave(Vec<T> a, Vec<T> b, std::integer_sequence<int64_t, I...>) {
  constexpr int64_t W = kLanes<T>, from = second ? W / 2 : 0;
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (from + I / 2 + I % 2 * W)...);
#else
  return __builtin_shuffle(a, b, Vec<Bits<T>>{(from + I / 2 + I % 2 * W)...});
#endif
}

// Transposes a square of W vectors: log2(W) rounds of interleaving each vector of the first half
// with its partner in the second.
template <typename T>
ISA_INLINE void transpose(Vec<T> (&rows)[kLanes<T>]) {
  constexpr int64_t W = kLanes<T>;
  using Lanes = std::make_integer_sequence<int64_t, W>;
#pragma GCC unroll 4
  for (int64_t round = 1; round < W; round *= 2) {
    Vec<T> mixed[W];
#pragma GCC unroll 8
    for (int64_t i = 0; i < W / 2; ++i) {
      mixed[2 * i] = interleave<T, false>(rows[i], rows[i + W / 2], Lanes{});
      mixed[2 * i + 1] = interleave<T, true>(rows[i], rows[i + W / 2], Lanes{});
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < W; ++i) rows[i] = mixed[i];
  }
}
