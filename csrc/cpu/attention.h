// Attention of one query to the positions of one source, forward and backward: what a decoder's
// step does between its cells (csrc/decoder.h).

// A query and what it attends to; `n` of the positions are there.
template <typename T>
struct Attention {
  const Decoder<T>& d;
  int64_t n;
  const T* query;     // (A)
  const T* keys;      // (S, A)
  const T* values;    // (S, C)
  const T* coverage;  // (S) or null

  ISA_INLINE int64_t key_width() const { return d.A / d.heads; }
  ISA_INLINE int64_t value_width() const { return d.C / d.heads; }
};

// <v, tanh(query + key_j + w coverage_j)> for `count` <= W positions from j on.
template <typename T>
static Vec<T> additive_energies(const Attention<T>& a, int64_t j, int64_t count) {
  constexpr int64_t W = kLanes<T>;
  const int64_t A = a.d.A;
  Vec<T> sums[W] = {};
  for (int64_t k = 0; k < A; k += W) {
    const Vec<T> query = load_first(a.query + k, A - k), v = load_first(a.d.v + k, A - k);
    const Vec<T> w = a.coverage ? load_first(a.d.w_coverage + k, A - k) : Vec<T>{};
    for (int64_t i = 0; i < count; ++i) {
      Vec<T> sum = query + load_first(a.keys + (j + i) * A + k, A - k);
      if (a.coverage) sum += w * a.coverage[j + i];
      sums[i] += v * tanh<T>(sum);
    }
  }
  return lane_totals<T>(sums);
}

// out (columns) = sum over j of weights[j] rows[j], rows `ld` apart.
template <typename T>
static void weighted_sum(int64_t n, const T* weights, const T* rows, int64_t ld, int64_t columns,
                         T* out) {
  constexpr int64_t W = kLanes<T>;
  int64_t k = 0;
  for (; k + 4 * W <= columns; k += 4 * W) {
    Vec<T> sum[4] = {};
    for (int64_t j = 0; j < n; ++j) {
#pragma GCC unroll 4
      for (int64_t i = 0; i < 4; ++i) sum[i] += load(rows + j * ld + k + i * W) * weights[j];
    }
#pragma GCC unroll 4
    for (int64_t i = 0; i < 4; ++i) store(out + k + i * W, sum[i]);
  }
  for (; k < columns; k += W) {
    Vec<T> sum{};
    for (int64_t j = 0; j < n; ++j) sum += load_first(rows + j * ld + k, columns - k) * weights[j];
    store_first(out + k, sum, columns - k);
  }
}

// Replaces n energies by their softmax.
template <typename T>
static void softmax(int64_t n, T* energies) {
  constexpr int64_t W = kLanes<T>;
  T highest = -std::numeric_limits<T>::infinity(), total = 0;
  for (int64_t j = 0; j < n; ++j) highest = std::max(highest, energies[j]);
  for (int64_t j = 0; j < n; j += W)
    store_first(energies + j, exp<T>(load_first(energies + j, n - j) - highest), n - j);
  for (int64_t j = 0; j < n; ++j) total += energies[j];
  for (int64_t j = 0; j < n; ++j) energies[j] /= total;
}

// alignments (heads, S), zeros behind n, and context (C).
template <typename T>
static void attend(const Attention<T>& a, T* alignments, T* context) {
  constexpr int64_t W = kLanes<T>;
  const Decoder<T>& d = a.d;
  for (int64_t head = 0; head < d.heads; ++head) {
    T* const weights = alignments + head * d.S;
    const int64_t width = a.key_width(), first = head * width;
    for (int64_t j = 0; j < a.n; j += W) {
      const int64_t count = std::min(W, a.n - j);
      const Vec<T> energies =
          d.additive ? additive_energies(a, j, count)
                     : dot_products(count, a.keys + j * d.A + first, d.A, width, a.query + first) *
                           T(d.scale);
      store_first(weights + j, energies, count);
    }
    softmax(a.n, weights);
    std::fill(weights + a.n, weights + d.S, T(0));
    const int64_t columns = a.value_width();
    weighted_sum(a.n, weights, a.values + head * columns, d.C, columns, context + head * columns);
  }
}

// Where the gradients of one attention go. `d_coverage` comes with that of the coverage behind the
// step and leaves with that before it.
template <typename T>
struct AttentionGradients {
  const T* d_context;     // (C)
  const T* d_alignments;  // (heads, S) or null: zero
  T* d_coverage;          // (S) or null
  T* d_query;             // (A)
  T* d_energy;            // (heads, S): of <query, key>, or scratch where additive
  T* d_keys;              // (S, A), additive: added to, as are the next two
  T* d_v;                 // (A)
  T* d_w_coverage;        // (A)
};

template <typename T>
static void attend_backward(const Attention<T>& a, const T* alignments,
                            const AttentionGradients<T>& g) {
  constexpr int64_t W = kLanes<T>;
  const Decoder<T>& d = a.d;
  for (int64_t head = 0; head < d.heads; ++head) {
    const T* const weights = alignments + head * d.S;
    T* const energy = g.d_energy + head * d.S;
    const int64_t columns = a.value_width(), first = head * columns;
    for (int64_t j = 0; j < a.n; j += W) {
      const int64_t count = std::min(W, a.n - j);
      Vec<T> by =
          dot_products(count, a.values + j * d.C + first, d.C, columns, g.d_context + first);
      if (g.d_alignments) by += load_first(g.d_alignments + head * d.S + j, count);
      if (g.d_coverage) by += load_first(g.d_coverage + j, count);
      store_first(energy + j, by, count);
    }
    T along = 0;
    for (int64_t j = 0; j < a.n; ++j) along += weights[j] * energy[j];
    const T scale = d.additive ? T(1) : T(d.scale);
    for (int64_t j = 0; j < a.n; ++j) energy[j] = weights[j] * (energy[j] - along) * scale;
    std::fill(energy + a.n, energy + d.S, T(0));
    if (!d.additive) {
      const int64_t width = a.key_width();
      weighted_sum(a.n, energy, a.keys + head * width, d.A, width, g.d_query + head * width);
    }
  }
  if (!d.additive) return;
  const int64_t A = d.A;
  std::fill_n(g.d_query, A, T(0));
  for (int64_t j = 0; j < a.n; ++j) {
    Vec<T> covered{};
    const Vec<T> energy = broadcast(g.d_energy[j]);
    for (int64_t k = 0; k < A; k += W) {
      const int64_t left = A - k;
      const auto add = [&](T* to, Vec<T> value) {
        store_first(to + k, load_first(to + k, left) + value, left);
      };
      Vec<T> sum = load_first(a.query + k, left) + load_first(a.keys + j * A + k, left);
      const Vec<T> w = a.coverage ? load_first(d.w_coverage + k, left) : Vec<T>{};
      if (a.coverage) sum += w * a.coverage[j];
      const Vec<T> s = tanh<T>(sum);
      const Vec<T> by = energy * load_first(d.v + k, left) * (T(1) - s * s);
      add(g.d_query, by);
      add(g.d_keys + j * A, by);
      add(g.d_v, energy * s);
      if (a.coverage) {
        add(g.d_w_coverage, by * a.coverage[j]);
        covered += by * w;
      }
    }
    if (a.coverage)
      for (int64_t lane = 0; lane < W; ++lane) g.d_coverage[j] += covered[lane];
  }
}
