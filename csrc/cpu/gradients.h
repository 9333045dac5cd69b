// Weight gradients: sums over all N steps of the outer product of a step's gate gradients and the
// features they multiplied, as one blocked product after the recurrence.

// dw (columns x features) = sum over r of d[r] (columns) outer row[r] (features), and the sums of
// d[r] alone. Features are the vector side, so that the product lies as torch keeps it and is
// written once per block of steps; gate gradients are the broadcast side. Callers give each member
// columns of its own, and every element is a sum in one order, on any number of threads.
template <typename T>
struct GradientProduct {
  int64_t N;
  const T* d;  // (N, ldd), with a vector or more behind the last column of a row
  int64_t ldd;
  int64_t features;
  const T* const* rows;     // of the features of a block of steps; null: zeros
  const T* const* factors;  // what they are multiplied by; null, or null for a row: ones
};

inline constexpr int64_t kGradientDepth = 256;   // steps of a block
inline constexpr int64_t kGradientHeight = 192;  // columns of a block: a multiple of tile heights

// Scratch of a member, in elements: a panel of features and, where that is the last and not full,
// its product.
template <typename T>
constexpr int64_t gradient_scratch() {
  return (kGradientDepth + kGradientHeight) * kPlainColumns<T>;
}

// Features [begin, begin + width) of `depth` rows to a panel (depth, vectors), zeros behind them.
template <typename T>
static void pack_features(const GradientProduct<T>& p, int64_t depth, int64_t begin, int64_t width,
                          int64_t vectors, T* out) {
  for (int64_t k = 0; k < depth; ++k) {
    const T* row = p.rows[k];
    const T* factor = p.factors ? p.factors[k] : nullptr;
    for (int64_t v = 0; v < vectors; ++v, out += kLanes<T>) {
      const int64_t count = std::max<int64_t>(width - v * kLanes<T>, 0), at = begin + v * kLanes<T>;
      Vec<T> value = row ? load_first(row + at, count) : Vec<T>{};
      if (row && factor) value *= load_first(factor + at, count);
      store(out, value);
    }
  }
}

// Adds the part of `depth` steps from `first` on to `height` <= kGradientHeight columns of dw, of
// which the first is column `column` of d and row 0 of `dw`; `sums` (height) or null likewise. The
// block with first = 0 begins the sums.
template <typename T>
static void gradient_block(const GradientProduct<T>& p, int64_t first, int64_t depth,
                           int64_t column, int64_t height, T* dw, T* sums, T* scratch) {
  constexpr int64_t MR = kTileRows<kPlainVectors>;
  constexpr int64_t W = kLanes<T>, NR = kPlainColumns<T>;
  const T* d = p.d + first * p.ldd + column;
  for (int64_t i = 0; i < height && sums != nullptr; i += W) {
    Vec<T> sum{};
    for (int64_t k = 0; k < depth; ++k) sum += load(d + k * p.ldd + i);
    store_first(sums + i, first > 0 ? load_first(sums + i, height - i) + sum : sum, height - i);
  }
  if (dw == nullptr) return;
  T* const features = scratch;
  T* const last = features + kGradientDepth * NR;
  const auto product = [&](auto vectors, T* c, int64_t ldc) {
    constexpr int V = decltype(vectors)::value;
    panel_product<T, V, Layout::kColumns, T, MR>(
        height, false, {depth, d, p.ldd, features, V * W, c, ldc, first > 0 ? c : nullptr, ldc},
        MR);
  };
  for (int64_t begin = 0; begin < p.features; begin += NR) {
    const int64_t width = std::min(NR, p.features - begin);
    const int64_t vectors = panels_of(width, W);
    pack_features(p, depth, begin, width, vectors, features);
    T* const c = dw + begin;
    if (width == NR) {
      product(std::integral_constant<int, kPlainVectors>{}, c, p.features);
      continue;
    }
    const int64_t ldc = vectors * W;
    for (int64_t m = 0; m < height && first > 0; ++m)
      std::copy(c + m * p.features, c + m * p.features + width, last + m * ldc);
    with_vectors(vectors, [&](auto v) { product(v, last, ldc); });
    for (int64_t m = 0; m < height; ++m)
      std::copy(last + m * ldc, last + m * ldc + width, c + m * p.features);
  }
}

// Up to this many steps in all, packing costs more than it saves.
inline constexpr int64_t kFewRows = 16;

// The same for at most kFewRows steps in all, which are `depth`.
template <typename T>
static void outer_products(const GradientProduct<T>& p, int64_t depth, int64_t column,
                           int64_t height, T* dw, T* sums) {
  const T *rows[kFewRows], *factors[kFewRows], *d[kFewRows];
  int64_t count = 0;
  for (int64_t k = 0; k < depth; ++k) {
    rows[count] = p.rows[k];
    factors[count] = p.factors ? p.factors[k] : nullptr;
    d[count] = p.d + k * p.ldd + column;
    count += rows[count] != nullptr;
  }
  for (int64_t m = 0; m < height; ++m) {
    for (int64_t i = 0; i < p.features && dw != nullptr; i += kLanes<T>) {
      Vec<T> sum{};
      for (int64_t k = 0; k < count; ++k) {
        Vec<T> x = load_first(rows[k] + i, p.features - i);
        if (factors[k]) x *= load_first(factors[k] + i, p.features - i);
        sum += x * broadcast(d[k][m]);
      }
      store_first(dw + m * p.features + i, sum, p.features - i);
    }
    T total = 0;
    for (int64_t k = 0; k < depth; ++k) total += p.d[k * p.ldd + column + m];
    if (sums) sums[m] = total;
  }
}
