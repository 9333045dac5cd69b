// Products with packed weights in storage S: rows made ready once, and multiplied with any number
// of panels. Where the CPU multiplies narrow weights as they are (narrow_product.h), rows take
// their form first; else panels become numbers of T on the way (gemm.h).

inline constexpr int64_t kNear = int64_t{3} << 19;  // bytes of weights that caches keep at hand

// Whether products of depth K multiply the weights as they are stored.
template <typename S>
static bool as_stored(int64_t K) {
  if constexpr (Narrow<S>::kKnown) return K <= Narrow<S>::Rows::kMostK && Narrow<S>::kernels();
  return false;
}

// Rows row(0), row(1), ... (K) in the form of the weights.
template <typename S, typename Row>
static void prepare_rows(int64_t rows, const Row& row, const typename Narrow<S>::Rows& narrow,
                         int64_t K) {
  if constexpr (Narrow<S>::kKnown) {
    const auto& kernels = Narrow<S>::kernels();
    for (int64_t m = 0; m < rows; ++m) kernels.prepare(row(m), K, narrow, m);
  }
}

// Rows of `a` (K), lda apart, as what weights are multiplied by.
template <typename T, typename S>
class Operand {
  using NarrowRows = typename Narrow<S>::Rows;

 public:
  // Scratch, in elements, that so many rows need.
  static int64_t scratch_size(int64_t rows, int64_t K) {
    if constexpr (Narrow<S>::kKnown) return NarrowRows::size(rows, K) / int64_t(sizeof(T));
    return 0;
  }

  // `few`: whether the call has at most kFewTileRows rows. `scratch` belongs to this until its end.
  Operand(int64_t rows, bool few, const T* a, int64_t lda, int64_t K, T* scratch)
      : rows_(rows),
        K_(K),
        few_(few),
        stored_(as_stored<S>(K)),
        a_(a),
        lda_(lda),
        narrow_(scratch, rows, K) {
    if (stored_) prepare_rows<S>(rows, [&](int64_t m) { return a + m * lda; }, narrow_, K);
  }

  // c = add + the rows times a panel of V vectors; `add` as in Tile. `scale` (V * lanes) of the
  // columns, where S has scales; `far`: whether the panel comes from beyond the second-level cache.
  template <int V, int U = k_unrolling(V)>
  void multiply(const Unit<S>* panel, const T* scale, bool far, T* c, int64_t ldc, const T* add,
                int64_t ldadd) const {
    if constexpr (Narrow<S>::kKnown) {
      if (stored_) {
        return Narrow<S>::kernels().multiply(narrow_,
                                             {rows_, K_, V, panel, scale, c, ldc, add, ldadd, far});
      }
    }
    panel_product<T, V, Layout::kRows, S, kTileRows<V>, U>(
        rows_, few_, {K_, a_, lda_, panel, V * kLanes<T>, c, ldc, add, ldadd, scale, far});
  }

 private:
  int64_t rows_, K_;
  bool few_, stored_;
  const T* a_;
  int64_t lda_;
  NarrowRows narrow_;
};
