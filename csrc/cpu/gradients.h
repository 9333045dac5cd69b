// Weight gradients: sums over all N steps of the outer product of a step's gate gradients and the
// features they multiplied, as one blocked product after the recurrence.

// dW (columns x features) = sum over r of d[r] (columns) outer features[r], computed transposed:
// gate gradients are the vector side, packed a panel at a time, features the broadcast side. The
// caller gives each member its own panels of columns, so the sums have one order on any number of
// threads.
template <typename T>
struct GradientProduct {
  int64_t N;
  const T* d;  // (N, ldd), columns of interest first
  int64_t ldd;
  int64_t columns;
  int64_t features;
  T* transposed;  // (panels, padded features, plain columns)
  T* sums;        // (panels, plain columns) of d over r, or null
};

inline constexpr int64_t kGradientDepth = 256;

template <typename T>
constexpr int64_t gradient_rows(int64_t features) {
  return round_up(features, kTileRows<kPlainVectors>);
}

template <typename T>
constexpr int64_t gradient_scratch(int64_t features) {
  return kGradientDepth * (gradient_rows<T>(features) + kPlainColumns<T>);
}

// Panels [begin, end). `row(r)` is the feature row of step r, null for zeros; `scale(r)` what it is
// multiplied by, null for ones.
template <typename T, typename Row, typename Scale>
static void gradient_product(const GradientProduct<T>& p, int64_t begin, int64_t end, const Row& row,
                             const Scale& scale, T* scratch) {
  constexpr int64_t MR = kTileRows<kPlainVectors>;
  constexpr int64_t NR = kPlainColumns<T>;
  const int64_t height = gradient_rows<T>(p.features);
  T* const packed = scratch + kGradientDepth * height;
  if (begin < end && p.N == 0) {
    std::fill(p.transposed + begin * height * NR, p.transposed + end * height * NR, T(0));
    if (p.sums) std::fill(p.sums + begin * NR, p.sums + end * NR, T(0));
  }
  for (int64_t r0 = 0; r0 < p.N && begin < end; r0 += kGradientDepth) {
    const int64_t depth = std::min(kGradientDepth, p.N - r0);
    for (int64_t k = 0; k < depth; ++k) {
      const T* features = row(r0 + k);
      const T* factors = scale(r0 + k);
      for (int64_t i = 0; i < height; i += MR) {
        T* to = scratch + i * depth + k * MR;
        for (int64_t m = 0; m < MR; ++m) {
          T value = features != nullptr && i + m < p.features ? features[i + m] : T(0);
          if (factors != nullptr && i + m < p.features) value *= factors[i + m];
          to[m] = value;
        }
      }
    }
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t width = std::min(NR, p.columns - panel * NR);
      Vec<T> sums[kPlainVectors] = {};
      for (int64_t k = 0; k < depth; ++k) {
        const T* from = p.d + (r0 + k) * p.ldd + panel * NR;
        for (int64_t v = 0; v < kPlainVectors; ++v) {
          const Vec<T> value = load_first(from + v * kLanes<T>, std::max<int64_t>(width - v * kLanes<T>, 0));
          store(packed + k * NR + v * kLanes<T>, value);
          sums[v] += value;
        }
      }
      if (p.sums) {
        for (int64_t v = 0; v < kPlainVectors; ++v) {
          T* to = p.sums + panel * NR + v * kLanes<T>;
          store(to, r0 > 0 ? load(to) + sums[v] : sums[v]);
        }
      }
      for (int64_t i = 0; i < height; i += MR) {
        rows_product<T, kPlainVectors, Layout::kColumns>(
            MR, {depth, scratch + i * depth, MR, packed, p.transposed + (panel * height + i) * NR, NR, r0 > 0});
      }
    }
  }
}

// Writes panels [begin, end) of a transposed gradient out: column c of d goes to row target(c) of
// dw (rows of `features`), or nowhere where that is negative.
template <typename T, typename Target>
static void write_gradient(const GradientProduct<T>& p, int64_t begin, int64_t end, const Target& target, T* dw) {
  constexpr int64_t NR = kPlainColumns<T>;
  constexpr int64_t kStep = 16;
  const int64_t height = gradient_rows<T>(p.features);
  for (int64_t panel = begin; panel < end; ++panel) {
    for (int64_t i0 = 0; i0 < p.features; i0 += kStep) {
      const int64_t i1 = std::min(p.features, i0 + kStep);
      for (int64_t c = panel * NR; c < std::min(p.columns, (panel + 1) * NR); ++c) {
        const int64_t to = target(c);
        if (to < 0) continue;
        const T* from = p.transposed + panel * height * NR + (c - panel * NR);
        for (int64_t i = i0; i < i1; ++i) dw[to * p.features + i] = from[i * NR];
      }
    }
  }
}

template <typename T, typename Target>
static void write_sums(const GradientProduct<T>& p, int64_t begin, int64_t end, const Target& target, T* db) {
  constexpr int64_t NR = kPlainColumns<T>;
  for (int64_t c = begin * NR; c < std::min(p.columns, end * NR); ++c) {
    const int64_t to = target(c);
    if (to >= 0) db[to] = p.sums[c];
  }
}
