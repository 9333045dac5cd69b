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

constexpr int k_unrolling(int accumulators) {
  if (ISA_REGISTERS == 32) return accumulators <= 4 ? 4 : accumulators <= 9 ? 2 : 1;
  return accumulators <= 3 ? 4 : accumulators <= 6 ? 2 : 1;
}

// How A lies: rows with k adjacent (element (m, k) at m * stride + k), or k after k with the rows
// adjacent (element (m, k) at k * stride + m), as pack_rows leaves it.
enum class Layout { kRows, kColumns };

template <typename T>
struct Tile {
  int64_t K;
  const T* a;
  int64_t stride;
  const T* b;  // a panel (K, V * lanes), its rows ldb apart
  int64_t ldb;
  T* c;
  int64_t ldc;
  const T* add;   // what the product is added to: C itself, a row for all rows (stride 0), or
  int64_t ldadd;  // null for nothing
};

// Products are cut into runs of at most this many k. The run of a panel, 32 KiB with 64-byte
// registers, stays in the first-level cache while the tiles of all rows pass over it; and as each
// run has accumulators of its own that start at zero, rounding errors grow with the length of a run
// and the number of runs instead of with their product.
inline constexpr int64_t kRun = 128;

template <typename T, int MR, int V, Layout layout>
static void tile_product(const Tile<T>& tile) {
  constexpr int64_t W = kLanes<T>;
  constexpr int U = k_unrolling(MR * V);
  const T* b = tile.b;
  const T* const a = tile.a;
  const int64_t stride = tile.stride;
  Vec<T> acc[U][MR][V] = {};
  const auto step = [&](int u, int64_t at) __attribute__((always_inline)) {
    Vec<T> columns[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) columns[v] = load(b + u * tile.ldb + v * W);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      const Vec<T> row =
          broadcast(layout == Layout::kRows ? a[m * stride + at] : a[at * stride + m]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[u][m][v] += row * columns[v];
    }
  };
  int64_t k = 0;
  for (; k + U <= tile.K; k += U) {
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) step(u, k + u);
    b += U * tile.ldb;
  }
  if constexpr (U > 1) {
    for (; k < tile.K; ++k) {
      step(0, k);
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
      T* c = tile.c + m * tile.ldc + v * W;
      store(c, tile.add ? load(tile.add + m * tile.ldadd + v * W) + sum : sum);
    }
  }
}

// The tile product for a run-time number of rows, 1 <= rows <= kTileRows<V>.
template <typename T, int V, Layout layout, int MR = kTileRows<V>>
static void rows_product(int64_t rows, const Tile<T>& tile) {
  if (rows == MR) return tile_product<T, MR, V, layout>(tile);
  if constexpr (MR > 1) rows_product<T, V, layout, MR - 1>(rows, tile);
}

// The product for one panel, any number of rows and any K. Where A lies in columns, its tiles
// follow each other, `tile_step` elements apart.
template <typename T, int V, Layout layout = Layout::kRows>
static void panel_product(int64_t rows, const Tile<T>& p, int64_t tile_step = 0) {
  constexpr int64_t MR = kTileRows<V>;
  if (layout == Layout::kRows) tile_step = MR * p.stride;
  for (int64_t k = 0; k < p.K; k += kRun) {
    Tile<T> tile = p;
    tile.K = std::min(kRun, p.K - k);
    tile.a = p.a + (layout == Layout::kRows ? k : k * p.stride);
    tile.b = p.b + k * p.ldb;
    if (k > 0) {
      tile.add = p.c;
      tile.ldadd = p.ldc;
    }
    for (int64_t m = 0; m < rows; m += MR) {
      rows_product<T, V, layout>(std::min(MR, rows - m), tile);
      tile.a += tile_step;
      tile.c += MR * tile.ldc;
      if (tile.add) tile.add += MR * tile.ldadd;
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
template <typename T>
struct LargeProduct {
  int64_t M, K, panels;
  const T* const* rows;   // (M)
  const T* const* scale;  // (M) or null: multiplies A element by element
  const T* b;
  int64_t panel_stride;
  T* c;
  int64_t ldc, panel_step;
  const T* add;  // as in Tile
  int64_t ldadd;
  T* scratch;
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

template <typename T, int V>
static void large_product(const LargeProduct<T>& p) {
  constexpr int64_t MR = kTileRows<V>;
  constexpr int64_t NR = V * kLanes<T>;
  for (int64_t m = 0; m < p.M; m += kBlockRows) {
    const int64_t height = std::min(kBlockRows, p.M - m);
    const T* const* rows = p.rows + m;
    const bool in_place = p.scale == nullptr && evenly_spaced(rows, height);
    const int64_t distance = height > 1 ? rows[1] - rows[0] : 0;
    for (int64_t k = 0; k < p.K; k += kBlockDepth) {
      const int64_t depth = std::min(kBlockDepth, p.K - k);
      for (int64_t i = 0; i < height && !in_place; i += MR) {
        pack_rows(std::min(MR, height - i), MR, rows + i, p.scale ? p.scale + m + i : nullptr, k,
                  k + depth, p.scratch + i * depth);
      }
      for (int64_t panel = 0; panel < p.panels; ++panel) {
        const T* b = p.b + panel * p.panel_stride + k * NR;
        T* c = p.c + m * p.ldc + panel * p.panel_step;
        const T* add = k > 0 ? c : p.add ? p.add + m * p.ldadd + panel * p.panel_step : nullptr;
        const int64_t ldadd = k > 0 ? p.ldc : p.ldadd;
        if (in_place) {
          panel_product<T, V>(height, {depth, rows[0] + k, distance, b, NR, c, p.ldc, add, ldadd});
        } else {
          panel_product<T, V, Layout::kColumns>(
              height, {depth, p.scratch, MR, b, NR, c, p.ldc, add, ldadd}, depth * MR);
        }
      }
    }
  }
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
  transpose<T>(sums);
#pragma GCC unroll 8
  for (int64_t half = W / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

// Packing a vector of columns costs about 4 cycles per k, a product with it 1/2; dot_products costs
// about 0.6 per k and 80 to add up.
constexpr bool packing_pays(int64_t rows, int64_t K) { return rows * (K + 800) > 40 * K; }
