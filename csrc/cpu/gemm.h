// Matrix products on register tiles.
//
// Every product in this library is C (M x N) += A (M x K) B (K x N) with B cut into panels: V
// vectors of columns, stored K x (V * lanes) without gaps, so that one sweep over k reads it once,
// in order. A tile of MR rows by V vectors stays in registers for the whole of K; each k costs V
// vector loads, MR broadcasts and MR * V multiply-adds. Two FMA ports of four cycles' latency want
// at least 8 accumulators in flight, and the register file bounds MR * V + V + 1: hence the tile
// heights below, and the unrolling over k (kept apart until the end) where a tile has few rows.

// Rows of the largest tile with V vectors.
template <int V>
inline constexpr int kTileRows = ISA_REGISTERS == 32 ? (V == 4 ? 6 : 8)
                                                     : (V == 4   ? 3
                                                        : V == 3 ? 4
                                                        : V == 2 ? 6
                                                                 : 8);

// Sums that a tile keeps apart over k. One accumulator per element has the same order of additions
// in tiles of every height, so that results do not depend on how rows fall into tiles, and hence
// not on how they are dealt to threads. Only calls that never have more than kFewTileRows rows need
// more: there a tile has too few accumulators to cover the latency of an FMA.
inline constexpr int kFewTileRows = ISA_REGISTERS == 32 ? 2 : 1;
constexpr int k_unrolling(int vectors) { return vectors >= (ISA_REGISTERS == 32 ? 4 : 3) ? 2 : 4; }

// How A lies: rows with k adjacent (element (m, k) at m * stride + k), or k after k with the rows
// adjacent (element (m, k) at k * stride + m), as pack_rows leaves it.
enum class Layout { kRows, kColumns };

template <typename T, typename S = T>
struct Tile {
  int64_t K;
  const T* a;
  int64_t stride;
  const Unit<S>* b;  // a panel (groups of k, V * lanes), its rows ldb apart
  int64_t ldb;
  T* c;
  int64_t ldc;
  const T* add;   // what the product is added to: C itself, a row for all rows (stride 0), or
  int64_t ldadd;  // null for nothing
  const T* scale = nullptr;  // (V * lanes) what each column is multiplied by, where S wants it
  bool far = false;          // whether the panel comes from beyond the second-level cache
};

// Products are cut into runs of at most this many k. The run of a panel, 32 KiB with 64-byte
// registers, stays in the first-level cache while the tiles of all rows pass over it; and as each
// run has accumulators of its own that start at zero, rounding errors grow with the length of a run
// and the number of runs instead of with their product.
inline constexpr int64_t kRun = 128;

// Rows of a panel that a prefetch runs ahead.
inline constexpr int64_t kAhead = 16;

// `unrolling`: of k, in calls of few rows.
template <typename T, typename S, int MR, int V, Layout layout, bool few, int unrolling>
static void tile_product(const Tile<T, S>& tile) {
  constexpr int64_t W = kLanes<T>;
  constexpr int G = kGroup<S>;
  constexpr int U = few ? unrolling : 1;
  constexpr int kStep = U > G ? U : G;  // both are powers of two
  const Unit<S>* b = tile.b;
  const T* const a = tile.a;
  const int64_t stride = tile.stride;
  const bool far = tile.far;
  Vec<T> acc[U][MR][V] = {};
  Vec<T> total[MR] = {};  // of what the weights are multiplied by, where they have an offset
  // Groups [0, count / G) at k = at; of the last group only `count` % G where that is not 0.
  const auto step = [&](int64_t at, int count) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int q = 0; q * G < count; ++q) {
      Vec<T> columns[G][V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        Vec<T> group[G];
        // One or two rows take a panel as fast as it comes, and from afar the hardware alone does
        // not run ahead of them across pages.
        if (few && far) __builtin_prefetch(b + (q + kAhead) * tile.ldb + v * W);
        unpack<T, S>(b + q * tile.ldb + v * W, group);
#pragma GCC unroll 4
        for (int j = 0; j < G; ++j) columns[j][v] = group[j];
      }
#pragma GCC unroll 4
      for (int j = 0; j < G; ++j) {
        const int64_t k = at + q * G + j;
        if (q * G + j >= count) break;
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) {
          const Vec<T> row =
              broadcast(layout == Layout::kRows ? a[m * stride + k] : a[k * stride + m]);
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) acc[(q * G + j) % U][m][v] += row * columns[j][v];
          if constexpr (kScaled<S>) total[m] += row;
        }
      }
    }
  };
  int64_t k = 0;
  for (; k + kStep <= tile.K; k += kStep) {
    step(k, kStep);
    b += kStep / G * tile.ldb;
  }
  if constexpr (kStep > 1) {
    for (; k < tile.K; k += G) {
      step(k, G == 1 ? 1 : static_cast<int>(std::min<int64_t>(G, tile.K - k)));
      b += tile.ldb;
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      Vec<T> sum = acc[0][m][v];
#pragma GCC unroll 4
      for (int u = 1; u < U; ++u) sum += acc[u][m][v];
      if constexpr (kScaled<S>) sum = (sum - T(kOffset<S>) * total[m]) * load(tile.scale + v * W);
      T* c = tile.c + m * tile.ldc + v * W;
      store(c, tile.add ? load(tile.add + m * tile.ldadd + v * W) + sum : sum);
    }
  }
}

// The tile product for a run-time number of rows, 1 <= rows <= kTileRows<V>.
template <typename T, typename S, int V, Layout layout, int U,
          int MR = std::is_same_v<T, S> ? kTileRows<V> : kFewTileRows>
static void rows_product(int64_t rows, bool few, const Tile<T, S>& tile) {
  if (rows == MR) {
    if constexpr (MR <= kFewTileRows) {
      if (few) return tile_product<T, S, MR, V, layout, true, U>(tile);
    }
    return tile_product<T, S, MR, V, layout, false, 1>(tile);
  }
  if constexpr (MR > 1) rows_product<T, S, V, layout, U, MR - 1>(rows, few, tile);
}

// The product for one panel, any number of rows and any K. Where A lies in columns, its tiles
// follow each other, `tile_step` elements apart, each MR high; else rows are cut into tiles of
// heights as equal as can be. `few`: the call has at most kFewTileRows rows. Where it has more,
// narrow weights are widened first, a run at a time, however many rows are this member's: a product
// of stored weights rounds otherwise.
template <typename T, int V, Layout layout = Layout::kRows, typename S = T,
          int64_t MR = kTileRows<V>, int U = k_unrolling(V)>
static void panel_product(int64_t rows, bool few, const Tile<T, S>& p, int64_t tile_step = 0) {
  constexpr int64_t NR = V * kLanes<T>;
  if constexpr (!std::is_same_v<T, S>) {
    if (!few) {
      alignas(64) T wide[kRun * NR];
      for (int64_t k = 0; k < p.K; k += kRun) {
        const int64_t depth = std::min(kRun, p.K - k);
        widen<T, S>(depth, NR, p.b + k / kGroup<S> * p.ldb, p.ldb, p.scale, wide);
        panel_product<T, V, layout, T>(
            rows, few,
            {depth, p.a + (layout == Layout::kRows ? k : k * p.stride), p.stride, wide, NR, p.c,
             p.ldc, k > 0 ? p.c : p.add, k > 0 ? p.ldc : p.ldadd},
            tile_step);
      }
      return;
    }
  }
  const int64_t run = few ? kRun * U : kRun;
  const int64_t tiles = (rows + MR - 1) / MR;  // one for narrow weights
  for (int64_t k = 0; k < p.K; k += run) {
    Tile<T, S> tile = p;
    tile.K = std::min(run, p.K - k);
    tile.a = p.a + (layout == Layout::kRows ? k : k * p.stride);
    tile.b = p.b + k / kGroup<S> * p.ldb;
    if (k > 0) {
      tile.add = p.c;
      tile.ldadd = p.ldc;
    }
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t height = layout == Layout::kColumns ? std::min(MR, rows - i * MR)
                                                        : rows * (i + 1) / tiles - rows * i / tiles;
      rows_product<T, S, V, layout, U>(height, few, tile);
      tile.a += layout == Layout::kColumns ? tile_step : height * tile.stride;
      tile.c += height * tile.ldc;
      if (tile.add) tile.add += height * tile.ldadd;
    }
  }
}

// Copies columns [k_begin, k_end) of up to `height` rows to `out` (k_end - k_begin, height): k
// after k, the rows adjacent. Rows that are null, and those from `count` on, become zero. Where
// `scale` has rows, each element is multiplied by the one at the same place there.
template <typename T>
static void pack_rows(int64_t count, int64_t height, const T* const* rows, const T* const* scale,
                      int64_t k_begin, int64_t k_end, T* out) {
  for (int64_t m = 0; m < height; ++m) {
    const T* row = m < count ? rows[m] : nullptr;
    T* to = out + m;
    if (row == nullptr) {
      for (int64_t k = k_begin; k < k_end; ++k, to += height) *to = 0;
    } else if (scale == nullptr) {
      for (int64_t k = k_begin; k < k_end; ++k, to += height) *to = row[k];
    } else {
      for (int64_t k = k_begin; k < k_end; ++k, to += height) *to = row[k] * scale[m][k];
    }
  }
}

// Blocking of the large products. A block of A (kBlockRows x kBlockDepth) takes about half of a 512
// KiB second-level cache in float; a panel's slice of B streams past it.
inline constexpr int64_t kBlockRows = 96;  // a multiple of every tile height (8, 6, 4, 3)
inline constexpr int64_t kBlockDepth = 512;

// Scratch that large_product needs, in elements.
template <typename T>
constexpr int64_t large_product_scratch() {
  return kBlockRows * kBlockDepth;
}

// C (M x panels) = add + A B, for many rows. A is given by row pointers (null: a row of zeros).
// Rows an equal distance apart are read in place, others packed into scratch block by block. Panel
// p of B lies at b + p * panel_stride as (K, V * lanes); its product goes to c + p * panel_step of
// each row of C, and what it is added to lies at add + p * panel_step of each row there.
template <typename T, typename S = T>
struct LargeProduct {
  int64_t M, K, panels;
  const T* const* rows;     // (M)
  const T* const* factors;  // (M) or null: multiplies A element by element
  const Unit<S>* b;
  int64_t panel_stride;
  T* c;
  int64_t ldc, panel_step;
  const T* add;  // as in Tile
  int64_t ldadd;
  T* scratch;
  const T* scale = nullptr;  // (panels, V * lanes), as in Tile
};

// Whether row pointers are an equal distance apart, and none is null.
template <typename T>
static bool evenly_spaced(const T* const* rows, int64_t count) {
  for (int64_t m = 0; m < count; ++m) {
    if (rows[m] == nullptr || rows[m] - rows[0] != m * (count > 1 ? rows[1] - rows[0] : 0))
      return false;
  }
  return true;
}

template <typename T, int V, typename S = T>
static void large_product(const LargeProduct<T, S>& p) {
  constexpr int64_t MR = kTileRows<V>;
  constexpr int64_t NR = V * kLanes<T>;
  for (int64_t m = 0; m < p.M; m += kBlockRows) {
    const int64_t height = std::min(kBlockRows, p.M - m);
    const T* const* rows = p.rows + m;
    const bool in_place = p.factors == nullptr && evenly_spaced(rows, height);
    const int64_t distance = height > 1 ? rows[1] - rows[0] : 0;
    for (int64_t k = 0; k < p.K; k += kBlockDepth) {
      const int64_t depth = std::min(kBlockDepth, p.K - k);
      for (int64_t i = 0; i < height && !in_place; i += MR) {
        pack_rows(std::min(MR, height - i), MR, rows + i, p.factors ? p.factors + m + i : nullptr,
                  k, k + depth, p.scratch + i * depth);
      }
      for (int64_t panel = 0; panel < p.panels; ++panel) {
        const Unit<S>* b = p.b + panel * p.panel_stride + k / kGroup<S> * NR;
        T* c = p.c + m * p.ldc + panel * p.panel_step;
        const T* add = k > 0 ? c : p.add ? p.add + m * p.ldadd + panel * p.panel_step : nullptr;
        const int64_t ldadd = k > 0 ? p.ldc : p.ldadd;
        const T* scale = p.scale ? p.scale + panel * NR : nullptr;
        if (in_place) {
          panel_product<T, V, Layout::kRows, S>(
              height, false, {depth, rows[0] + k, distance, b, NR, c, p.ldc, add, ldadd, scale});
        } else {
          panel_product<T, V, Layout::kColumns, S>(
              height, false, {depth, p.scratch, MR, b, NR, c, p.ldc, add, ldadd, scale},
              depth * MR);
        }
      }
    }
  }
}

// Adds up the lanes of each of W vectors: the totals as the lanes of one.
template <typename T>
static Vec<T> lane_totals(Vec<T> (&sums)[kLanes<T>]) {
  transpose<T>(sums);
#pragma GCC unroll 8
  for (int64_t half = kLanes<T> / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

// Products of one row `a` (K) with `count` <= W rows of a row-major matrix, as the lanes of a
// vector: no packing, for calls too short to repay it. One sum per matrix row, its lanes spread
// over k, and a transposition to add them up: 4 shuffles a product beside K / W multiply-adds.
template <typename T>
static Vec<T> dot_products(int64_t count, const T* w, int64_t ldw, int64_t K, const T* a) {
  constexpr int64_t W = kLanes<T>;
  Vec<T> sums[W] = {};
  int64_t k = 0;
  if (count == W) {
    for (; k + W <= K; k += W) {
      const Vec<T> row = load(a + k);
#pragma GCC unroll 16
      for (int64_t i = 0; i < W; ++i) sums[i] += load(w + i * ldw + k) * row;
    }
  }
  for (; k < K; k += W) {
    const Vec<T> row = load_first(a + k, K - k);
    for (int64_t i = 0; i < count; ++i) sums[i] += load_first(w + i * ldw + k, K - k) * row;
  }
  return lane_totals<T>(sums);
}

// Packing a vector of columns costs about 4 cycles per k, a product with it 1/2; dot_products costs
// about 0.6 per k and 80 to add up.
constexpr bool packing_pays(int64_t rows, int64_t K) { return rows * (K + 800) > 40 * K; }
