// exp, sigmoid and tanh of a vector, each within 3 ulp, without branches.
//
// All three come from one range reduction, e^x = 2^n (1 + p) with n = round(x / ln 2) and
// p = e^r - 1 for |r| <= ln(2) / 2. The Taylor series of p is cut where its next term falls below a
// quarter ulp of p: after r^7 / 7! in float, after r^13 / 13! in double. Keeping p apart from the 1
// makes e^x - 1 = 2^n p + (2^n - 1) exact enough near zero to give tanh from it with one division.
// Comparisons are written so that a NaN passes through.

template <typename T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr int kMantissa = 23;
  static constexpr int32_t kBias = 127;
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  static constexpr float kLowest = -87.0f, kHighest = 88.0f;
  static constexpr float kTanhSaturates = 9.1f;
  static constexpr int kTerms = 7;
};
template <>
struct ExpConstants<double> {
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int kMantissa = 52;
  static constexpr int64_t kBias = 1023;
  static constexpr double kLn2High = 0.693147180369123816490, kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kLowest = -708.0, kHighest = 709.0;
  static constexpr double kTanhSaturates = 19.1;
  static constexpr int kTerms = 13;
};

template <typename T>
struct ExpParts {
  Vec<T> scale;     // 2^n
  Vec<T> fraction;  // p
};

// 1 / k!
inline constexpr double kInverseFactorial[] = {1.0,
                                               1.0,
                                               1.0 / 2,
                                               1.0 / 6,
                                               1.0 / 24,
                                               1.0 / 120,
                                               1.0 / 720,
                                               1.0 / 5040,
                                               1.0 / 40320,
                                               1.0 / 362880,
                                               1.0 / 3628800,
                                               1.0 / 39916800,
                                               1.0 / 479001600,
                                               1.0 / 6227020800};

// For kLowest <= x <= kHighest.
template <typename T>
ISA_INLINE ExpParts<T> exp_parts(Vec<T> x) {
  using C = ExpConstants<T>;
  const Vec<T> shifted = x * T(1.44269504088896340736) + C::kRound;
  const Vec<T> n = shifted - C::kRound;
  const Vec<T> r = (x - n * C::kLn2High) - n * C::kLn2Low;
  Vec<T> series = broadcast(T(kInverseFactorial[C::kTerms]));
#pragma GCC unroll 16
  for (int k = C::kTerms - 1; k >= 2; --k) series = series * r + T(kInverseFactorial[k]);
  Vec<Bits<T>> bits;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << C::kMantissa) + (Bits<T>(C::kBias) << C::kMantissa);
  ExpParts<T> parts;
  __builtin_memcpy(&parts.scale, &bits, sizeof bits);
  parts.fraction = series * (r * r) + r;
  return parts;
}

template <typename T>
ISA_INLINE Vec<T> clamp(Vec<T> x, T low, T high) {
  x = x < low ? broadcast(low) : x;
  return x > high ? broadcast(high) : x;
}

template <typename T>
ISA_INLINE Vec<T> exp(Vec<T> x) {
  using C = ExpConstants<T>;
  const ExpParts<T> e = exp_parts<T>(clamp<T>(x, C::kLowest, C::kHighest));
  return e.scale * e.fraction + e.scale;
}

// Exactly zero where e^-x would overflow: a closed gate lets nothing through, however large it is.
template <typename T>
ISA_INLINE Vec<T> sigmoid(Vec<T> x) {
  const Vec<T> y = T(1) / (T(1) + exp<T>(-x));
  return x < -ExpConstants<T>::kHighest ? Vec<T>{} : y;
}

// The sign is taken off and put back as a bit, so that tanh(-0) = -0.
template <typename T>
ISA_INLINE Vec<T> tanh(Vec<T> x) {
  using C = ExpConstants<T>;
  constexpr Bits<T> kSign = std::numeric_limits<Bits<T>>::min();
  Vec<Bits<T>> bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  const Vec<Bits<T>> magnitude_bits = bits & ~kSign;
  Vec<T> magnitude;
  __builtin_memcpy(&magnitude, &magnitude_bits, sizeof bits);
  magnitude = magnitude > C::kTanhSaturates ? broadcast(C::kTanhSaturates) : magnitude;
  const ExpParts<T> e = exp_parts<T>(magnitude + magnitude);
  const Vec<T> expm1 = e.scale * e.fraction + (e.scale - T(1));
  Vec<T> y = expm1 / (expm1 + T(2));
  Vec<Bits<T>> y_bits;
  __builtin_memcpy(&y_bits, &y, sizeof bits);
  y_bits |= bits & kSign;
  __builtin_memcpy(&y, &y_bits, sizeof bits);
  return y;
}
