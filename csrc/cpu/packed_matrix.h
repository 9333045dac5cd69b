// A weight matrix in plain panels, packed in a call or before it, and the product of many rows with
// one. The panels may be stored in a narrower type; which, is told when the program runs, so that
// no kernel is compiled for each.

template <typename T>
class PackedMatrix {
  static constexpr int64_t W = kLanes<T>;

 public:
  PackedMatrix() = default;
  // The right-hand side (K, N) of products, in memory of the arena.
  PackedMatrix(Arena& arena, int64_t K, int64_t N, WeightType type = WeightType::kFull)
      : K_(K), panels_{N}, type_(type) {
    const int64_t columns = panels_.count() * panels_.columns();
    with_type<T>(type, [&](auto storage) {
      using S = decltype(storage);
      const int64_t units = columns * unit_rows<S>(K);
      b_ = arena.take<Unit<S>>(units);
      far_ = units * int64_t(sizeof(Unit<S>)) > kNear;
      if (kScaled<S>) scale_ = arena.take<T>(columns);
    });
  }
  // The one in a block that stays packed; where there is none, as above.
  PackedMatrix(const PackedBlock& block, Arena& arena, int64_t K, int64_t N) {
    Arena kept(const_cast<void*>(block.memory));
    *this = block.memory ? PackedMatrix(kept, K, N, block.type) : PackedMatrix(arena, K, N);
  }

  int64_t panels() const { return panels_.count(); }
  int64_t panel_columns() const { return panels_.columns(); }
  // Columns that a row of a product is written to.
  int64_t width() const { return round_up(panels_.width, W); }

  // From its transpose w (N, K), as torch keeps weights, rows `ld` apart; panels [begin, end).
  void pack_transpose(const T* w, int64_t begin, int64_t end, int64_t ld) {
    with_type<T>(type_, [&](auto storage) {
      using S = decltype(storage);
      for (int64_t q = begin; q < end; ++q) {
        const int64_t vectors = panels_.vectors_of(q), first = q * panels_.columns();
        for (int64_t v = 0; v < vectors; ++v) {
          const int64_t column = first + v * W;
          pack_strip<T, S>(std::min(W, panels_.width - column), w + column * ld, ld, K_,
                           panel<S>(q) + v * W, vectors * W,
                           kScaled<S> ? scale_ + column : nullptr);
        }
      }
    });
  }

  void pack_transpose(const T* w, int64_t begin, int64_t end) { pack_transpose(w, begin, end, K_); }

  // From w (K, N) itself, as it is.
  void pack(const T* w, const Member& member) {
    const auto share = member.share(panels_.count());
    for (int64_t q = share.begin; q < share.end; ++q) {
      const int64_t vectors = panels_.vectors_of(q), first = q * panels_.columns();
      T* to = panel<T>(q);
      for (int64_t k = 0; k < K_; ++k)
        for (int64_t v = 0; v < vectors; ++v, to += W) {
          const int64_t column = first + v * W;
          store(to, load_first(w + k * panels_.width + column, panels_.width - column));
        }
    }
  }

  // Scratch, in elements, for a product of so many rows.
  int64_t scratch_size(int64_t rows) const {
    return with_type<T>(
        type_, [&](auto storage) { return Operand<T, decltype(storage)>::scratch_size(rows, K_); });
  }

  // c (rows, ldc) = a (rows, lda) times this, in panels [begin, end), from the last on where
  // `turned`; to it `add` is added if there is one: a row (width) for all, or rows ldadd apart.
  // `few` as in Operand.
  void multiply(int64_t rows, bool few, const T* a, int64_t lda, T* c, int64_t ldc, T* scratch,
                Member::Range range, bool turned = false, const T* add = nullptr,
                int64_t ldadd = 0) const {
    with_type<T>(type_, [&](auto storage) {
      using S = decltype(storage);
      const Operand<T, S> operand(rows, few, a, lda, K_, scratch);
      for (int64_t i = range.begin; i < range.end; ++i) {
        const int64_t q = turned ? range.begin + range.end - 1 - i : i;
        const int64_t first = q * panels_.columns();
        with_vectors(panels_.vectors_of(q), [&](auto v) {
          operand.template multiply<v, k_unrolling(kPlainVectors)>(
              panel<S>(q), kScaled<S> ? scale_ + first : nullptr, far_, c + first, ldc,
              add ? add + first : nullptr, ldadd);
        });
      }
    });
  }
  void multiply(int64_t rows, bool few, const T* a, int64_t lda, T* c, int64_t ldc,
                T* scratch = nullptr, bool turned = false) const {
    multiply(rows, few, a, lda, c, ldc, scratch, {0, panels()}, turned);
  }

 private:
  template <typename S>
  Unit<S>* panel(int64_t q) const {
    return static_cast<Unit<S>*>(b_) + q * panels_.columns() * unit_rows<S>(K_);
  }

  int64_t K_ = 0;
  PlainPanels<T> panels_{0};
  WeightType type_ = WeightType::kFull;
  void* b_ = nullptr;   // (panels, unit rows, vectors * lanes) of units
  T* scale_ = nullptr;  // (panels, columns), where the type has scales
  bool far_ = false;
};

// Memory for every member of a team, of which this one gets its own.
template <typename N>
static N* own_part(Arena& arena, const Plan& plan, const Member* member, int64_t count) {
  const int64_t each = round_up(count, kUnitPadding);
  return arena.take<N>(plan.threads * each) + (member ? member->rank * each : 0);
}

template <typename T>
static size_t matrix_size(int64_t K, int64_t N, WeightType type) {
  Arena arena(nullptr);
  PackedMatrix<T>(arena, K, N, type);
  return arena.used();
}

template <typename T>
static void pack_matrix(const T* w, int64_t K, int64_t N, WeightType type, void* packed) {
  Arena arena(packed);
  PackedMatrix<T> matrix(arena, K, N, type);
  matrix.pack_transpose(w, 0, matrix.panels());
}

// Members have blocks of rows of their own or, where those are too few, panels; either way a number
// is the sum that it is in a team of one.
template <typename T>
static size_t linear(const Linear<T>& f, const Member* member, void* workspace) {
  const int64_t height = std::min(f.rows, kBlockRows);
  const bool few = f.rows <= kFewTileRows;
  Arena arena(workspace);
  const PackedMatrix<T> w(f.packed, arena, f.K, f.N);
  const bool whole = w.width() == f.N;  // vectors end where rows of y do
  const auto per_member = [&](int64_t count) { return own_part<T>(arena, f.plan, member, count); };
  T* const scratch = per_member(w.scratch_size(height));
  T* const out = whole ? nullptr : per_member(height * w.width());
  T* const padded = whole || f.bias == nullptr ? nullptr : per_member(w.width());
  if (member == nullptr) return arena.used();

  if (padded) std::fill(std::copy_n(f.bias, f.N, padded), padded + w.width(), T(0));
  const T* const bias = padded ? padded : f.bias;
  const int64_t blocks = panels_of(f.rows, height);
  Member::Range rows{0, blocks}, panels{0, w.panels()};
  (blocks < member->size ? panels : rows) =
      member->share(blocks < member->size ? panels.end : blocks);
  const int64_t first = panels.begin * w.panel_columns();
  const int64_t end = std::min(panels.end * w.panel_columns(), f.N);
  for (int64_t block = rows.begin; block < rows.end; ++block) {
    const int64_t m = block * height, count = std::min(height, f.rows - m);
    w.multiply(count, few, f.x + m * f.K, f.K, whole ? f.y + m * f.N : out, w.width(), scratch,
               panels, false, bias);
    for (int64_t i = 0; i < count && !whole && first < end; ++i)
      std::copy(out + i * w.width() + first, out + i * w.width() + end,
                f.y + (m + i) * f.N + first);
  }
  return arena.used();
}
