// Matrix products on register tiles.
//
// Every product in this library is C (M x N) += A (M x K) B (K x N) with B cut into panels: V vectors
// of columns, stored K x (V * lanes) without gaps, so that one sweep over k reads it once, in order.
// A tile of MR rows by V vectors stays in registers for the whole of K; each k costs V vector
// loads, MR broadcasts and MR * V multiply-adds. Two FMA ports of four cycles' latency want at least
// 8 accumulators in flight, and the register file bounds MR * V + V + 1: hence the tile heights
// below, and the unrolling over k (kept apart until the end) where a tile has few rows.

// Rows of the largest tile with V vectors.
template <int V>
inline constexpr int kTileRows = ISA_REGISTERS == 32 ? (V == 4 ? 6 : 8) : (V == 4 ? 3 : V == 3 ? 4 : V == 2 ? 6 : 8);

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
  const T* b;  // a panel (K, V * lanes)
  T* c;
  int64_t ldc;
  bool accumulate;  // else C is overwritten
};

// Sums are cut into runs of at most this many k, each in accumulators of its own that start at zero:
// rounding errors then grow with the length of a run and the number of runs instead of with their
// product, for one more addition per element and run.
inline constexpr int64_t kRun = 128;

template <typename T, int MR, int V, Layout layout>
static void tile_product(const Tile<T>& tile) {
  constexpr int64_t W = kLanes<T>;
  constexpr int U = k_unrolling(MR * V);
  const T* b = tile.b;
  const T* const a = tile.a;
  const int64_t stride = tile.stride;
  int64_t k = 0;
  bool accumulate = tile.accumulate;
  do {
    Vec<T> acc[U][MR][V] = {};
    const auto step = [&](int u, int64_t at) __attribute__((always_inline)) {
      Vec<T> columns[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) columns[v] = load(b + (u * V + v) * W);
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
        const Vec<T> row = broadcast(layout == Layout::kRows ? a[m * stride + at] : a[at * stride + m]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) acc[u][m][v] += row * columns[v];
      }
    };
    const int64_t end = std::min(tile.K, k + kRun);
    for (; k + U <= end; k += U) {
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) step(u, k + u);
      b += U * V * W;
    }
    if constexpr (U > 1) {
      for (; k < end; ++k) {
        step(0, k);
        b += V * W;
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
        store(c, accumulate ? load(c) + sum : sum);
      }
    }
    accumulate = true;
  } while (k < tile.K);
}

// The tile product for a run-time number of rows, 1 <= rows <= kTileRows<V>.
template <typename T, int V, Layout layout, int MR = kTileRows<V>>
static void rows_product(int64_t rows, const Tile<T>& tile) {
  if (rows == MR) return tile_product<T, MR, V, layout>(tile);
  if constexpr (MR > 1) rows_product<T, V, layout, MR - 1>(rows, tile);
}

// C += A B for one panel and any number of rows of an A that lies in rows.
template <typename T, int V>
static void panel_product(int64_t rows, Tile<T> tile) {
  constexpr int64_t MR = kTileRows<V>;
  const T* const a = tile.a;
  T* const c = tile.c;
  for (int64_t m = 0; m < rows; m += MR) {
    tile.a = a + m * tile.stride;
    tile.c = c + m * tile.ldc;
    rows_product<T, V, Layout::kRows>(std::min(MR, rows - m), tile);
  }
}

template <typename T>
static void panel_product(int V, int64_t rows, const Tile<T>& tile) {
  switch (V) {
    case 1: return panel_product<T, 1>(rows, tile);
    case 2: return panel_product<T, 2>(rows, tile);
    case 3: return panel_product<T, 3>(rows, tile);
    case 4: return panel_product<T, 4>(rows, tile);
  }
}

// Copies columns [k_begin, k_end) of up to `height` rows to `out` (k_end - k_begin, height): k after
// k, the rows adjacent. Rows that are null, and those from `count` on, become zero. Where `scale`
// has rows, each element is multiplied by the one at the same place there.
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

// C (M x panels) (+)= A B, for many rows: A is given by row pointers (null: a row of zeros), and
// packed into scratch block by block. Panel p of B lies at b + p * panel_stride as (K, V * lanes);
// its product goes to c + p * panel_step of each row of C, rows ldc apart.
template <typename T>
struct LargeProduct {
  int64_t M, K, panels;
  const T* const* rows;   // (M)
  const T* const* scale;  // (M) or null: multiplies A element by element
  const T* b;
  int64_t panel_stride;
  T* c;
  int64_t ldc, panel_step;
  bool accumulate;
  T* scratch;
};

template <typename T, int V>
static void large_product(const LargeProduct<T>& p) {
  constexpr int64_t MR = kTileRows<V>;
  constexpr int64_t NR = V * kLanes<T>;
  for (int64_t k = 0; k < p.K; k += kBlockDepth) {
    const int64_t depth = std::min(kBlockDepth, p.K - k);
    const bool accumulate = p.accumulate || k > 0;
    for (int64_t m = 0; m < p.M; m += kBlockRows) {
      const int64_t height = std::min(kBlockRows, p.M - m);
      for (int64_t i = 0; i < height; i += MR) {
        pack_rows(std::min(MR, height - i), MR, p.rows + m + i, p.scale ? p.scale + m + i : nullptr, k,
                  k + depth, p.scratch + i * depth);
      }
      for (int64_t panel = 0; panel < p.panels; ++panel) {
        const T* b = p.b + panel * p.panel_stride + k * NR;
        T* c = p.c + m * p.ldc + panel * p.panel_step;
        for (int64_t i = 0; i < height; i += MR) {
          rows_product<T, V, Layout::kColumns>(
              std::min(MR, height - i),
              {depth, p.scratch + i * depth, MR, b, c + i * p.ldc, p.ldc, accumulate});
        }
      }
    }
  }
}

template <typename T>
static void large_product(int V, const LargeProduct<T>& p) {
  switch (V) {
    case 2: return large_product<T, 2>(p);
    case 3: return large_product<T, 3>(p);
    case 4: return large_product<T, 4>(p);
  }
}

// Transposes a block of a row-major matrix: out[k * ldo + lane] = w[lane * ldw + k] for `count`
// lanes, zeros up to `lanes`. Blocks of 16 k keep the rows' cache lines warm.
template <typename T>
static void pack_transposed(int64_t count, int64_t lanes, const T* w, int64_t ldw, int64_t K, T* out,
                            int64_t ldo) {
  constexpr int64_t kStep = 16;
  for (int64_t k0 = 0; k0 < K; k0 += kStep) {
    const int64_t k1 = std::min(K, k0 + kStep);
    for (int64_t lane = 0; lane < count; ++lane) {
      const T* row = w + lane * ldw;
      for (int64_t k = k0; k < k1; ++k) out[k * ldo + lane] = row[k];
    }
    for (int64_t lane = count; lane < lanes; ++lane)
      for (int64_t k = k0; k < k1; ++k) out[k * ldo + lane] = 0;
  }
}
