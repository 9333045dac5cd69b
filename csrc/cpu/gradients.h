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

// Row k of a block of `depth` feature rows into tiles (depth, MR) that follow each other.
template <typename T>
static void pack_features(int64_t features, int64_t depth, int64_t k, const T* row, const T* scale,
                          T* out) {
  constexpr int64_t MR = kTileRows<kPlainVectors>;
  const auto value = [&](int64_t i) {
    return row == nullptr ? T(0) : scale ? row[i] * scale[i] : row[i];
  };
  int64_t i = 0;
  if (row != nullptr && scale == nullptr) {
    for (; i + MR <= features; i += MR)
      __builtin_memcpy(out + i * depth + k * MR, row + i, MR * sizeof(T));
  }
  for (; i < features; i += MR)
    for (int64_t m = 0; m < MR; ++m)
      out[i * depth + k * MR + m] = i + m < features ? value(i + m) : T(0);
}

// Panels [begin, end). `row(r)` is the feature row of step r, null for zeros; `scale(r)` what it is
// multiplied by, null for ones.
template <typename T, typename Row, typename Scale>
static void gradient_product(const GradientProduct<T>& p, int64_t begin, int64_t end,
                             const Row& row, const Scale& scale, T* scratch) {
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
    for (int64_t k = 0; k < depth; ++k)
      pack_features(p.features, depth, k, row(r0 + k), scale(r0 + k), scratch);
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t width = std::min(NR, p.columns - panel * NR);
      Vec<T> sums[kPlainVectors] = {};
      for (int64_t k = 0; k < depth; ++k) {
        const T* from = p.d + (r0 + k) * p.ldd + panel * NR;
        for (int64_t v = 0; v < kPlainVectors; ++v) {
          const Vec<T> value =
              load_first(from + v * kLanes<T>, std::max<int64_t>(width - v * kLanes<T>, 0));
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
      T* c = p.transposed + panel * height * NR;
      panel_product<T, kPlainVectors, Layout::kColumns>(
          height, false, {depth, scratch, MR, packed, NR, c, NR, r0 > 0 ? c : nullptr, NR},
          depth * MR);
    }
  }
}

// Writes panels [begin, end) of a transposed gradient out: column c of d goes to row target(c) of
// dw (rows of `features`), or nowhere where that is negative.
template <typename T, typename Target>
static void write_gradient(const GradientProduct<T>& p, int64_t begin, int64_t end,
                           const Target& target, T* dw) {
  constexpr int64_t W = kLanes<T>;
  constexpr int64_t NR = kPlainColumns<T>;
  const int64_t height = gradient_rows<T>(p.features);
  for (int64_t column = begin * NR; column < std::min(p.columns, end * NR); column += W) {
    const T* from = p.transposed + column / NR * height * NR + column % NR;
    const int64_t count = std::min(W, p.columns - column);
    for (int64_t i = 0; i < p.features; i += W) {
      Vec<T> square[W];
      for (int64_t k = 0; k < W; ++k)
        square[k] = i + k < p.features ? load(from + (i + k) * NR) : Vec<T>{};
      transpose<T>(square);
      for (int64_t c = 0; c < count; ++c) {
        const int64_t to = target(column + c);
        if (to >= 0) store_first(dw + to * p.features + i, square[c], p.features - i);
      }
    }
  }
}

template <typename T, typename Target>
static void write_sums(const GradientProduct<T>& p, int64_t begin, int64_t end,
                       const Target& target, T* db) {
  constexpr int64_t NR = kPlainColumns<T>;
  for (int64_t c = begin * NR; c < std::min(p.columns, end * NR); ++c) {
    const int64_t to = target(c);
    if (to >= 0) db[to] = p.sums[c];
  }
}

// Up to this many steps in all, packing costs more than it saves.
inline constexpr int64_t kFewRows = 16;

// Columns [begin, end) of the same gradient for at most kFewRows steps, straight into the rows of
// dw (where asked for) and db.
template <typename T, typename Row, typename Scale, typename Target>
static void outer_products(const GradientProduct<T>& p, int64_t begin, int64_t end, const Row& row,
                           const Scale& scale, const Target& target, T* dw, T* db, T* second_db) {
  const T* rows[kFewRows];
  const T* factors[kFewRows];
  int64_t count = 0;
  const T* d[kFewRows];
  for (int64_t r = 0; r < p.N; ++r) {
    rows[count] = row(r);
    factors[count] = scale(r);
    d[count] = p.d + r * p.ldd;
    count += rows[count] != nullptr;
  }
  for (int64_t c = begin; c < end; ++c) {
    const int64_t to = target(c);
    if (to < 0) continue;
    for (int64_t i = 0; i < p.features && dw != nullptr; i += kLanes<T>) {
      Vec<T> sum{};
      for (int64_t r = 0; r < count; ++r) {
        Vec<T> x = load_first(rows[r] + i, p.features - i);
        if (factors[r]) x *= load_first(factors[r] + i, p.features - i);
        sum += x * broadcast(d[r][c]);
      }
      store_first(dw + to * p.features + i, sum, p.features - i);
    }
    T total = 0;
    for (int64_t r = 0; r < p.N; ++r) total += p.d[r * p.ldd + c];
    if (db) db[to] = total;
    if (second_db) second_db[to] = total;
  }
}
