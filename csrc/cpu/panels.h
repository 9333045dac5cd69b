// The weights of one direction of one layer in the order in which forward reads them: panels (see
// engine.h), each a sweep over k that no other panel's elements interrupt.
template <Cell cell, typename T, typename S>
class Panels {
  using P_ = Panel<cell>;
  using NarrowRows = typename Narrow<S>::Rows;
  static constexpr int64_t W = kLanes<T>;

 public:
  static constexpr int64_t kUnits = P_::kUnitVectors * W;   // hidden units of a panel
  static constexpr int64_t kColumns = P_::kSlots * kUnits;  // elements of a panel's row
  static constexpr int kInputVectors = P_::kInputSlots * P_::kUnitVectors;
  static constexpr int kStateVectors = P_::kStateSlots * P_::kUnitVectors;
  static constexpr bool kTwoPhases = cell == Cell::kGruResetBefore;

  // Takes memory for an input of I features.
  Panels(const Stack<T>& stack, Arena& arena, int64_t I)
      : H_(stack.H),
        P_size_(stack.P),
        I_(I),
        count_(panels_of(padded_units(stack.H), kUnits)),
        state_count_(panels_of(stack.P, kPlainColumns<T>)),
        projected_(stack.weights[0].w_hr != nullptr) {
    bias_ = arena.take<T>(count_ * kColumns);
    w_ih_ = arena.take<Unit<S>>(count_ * unit_rows<S>(I) * kInputVectors * W);
    w_hh_ = arena.take<Unit<S>>(count_ * unit_rows<S>(P_size_) * kStateVectors * W);
    if (kTwoPhases) w_hn_ = arena.take<Unit<S>>(count_ * unit_rows<S>(P_size_) * kUnits);
    if (projected_) w_hr_ = arena.take<Unit<S>>(state_count_ * unit_rows<S>(H_) * kPlainColumns<T>);
    if constexpr (kScaled<S>) {
      ih_scale_ = arena.take<T>(count_ * kInputVectors * W);
      hh_scale_ = arena.take<T>(count_ * kStateVectors * W);
      if (kTwoPhases) hn_scale_ = arena.take<T>(count_ * kUnits);
      if (projected_) hr_scale_ = arena.take<T>(state_count_ * kPlainColumns<T>);
    }
  }

  int64_t count() const { return count_; }              // panels of hidden units
  int64_t state_count() const { return state_count_; }  // plain panels of projected outputs

  // Turns to a layer whose input has I features, at most those that memory was taken for.
  void set_input(int64_t I) { I_ = I; }

  // Panels [begin, end): biases, and those weights that are asked for. Padding units get zeros.
  void pack(const Weights<const T>& w, int64_t begin, int64_t end, bool input, bool state) {
    for (int64_t p = begin; p < end; ++p) {
      for (int slot = 0; slot < P_::kSlots; ++slot) {
        for (int v = 0; v < P_::kUnitVectors; ++v) {
          const int64_t unit = p * kUnits + v * W;
          const int64_t count = std::clamp<int64_t>(H_ - unit, 0, W);
          const int64_t row = P_::kGate[slot] * H_ + (count > 0 ? unit : 0);
          if (slot < P_::kInputSlots && input) {
            strip(count, w.w_ih + row * I_, I_, p, slot * P_::kUnitVectors + v, kInputVectors,
                  w_ih_, ih_scale_);
          }
          const T* recurrent = w.w_hh + row * P_size_;
          if (slot >= P_::kStateSlot && state) {
            const int64_t vector = (slot - P_::kStateSlot) * P_::kUnitVectors + v;
            strip(count, recurrent, P_size_, p, vector, kStateVectors, w_hh_, hh_scale_);
          } else if (kTwoPhases && state) {
            strip(count, recurrent, P_size_, p, v, P_::kUnitVectors, w_hn_, hn_scale_);
          }
          T* bias = bias_ + p * kColumns + slot * kUnits + v * W;
          // n of GRU keeps its two biases apart, everything else adds them up.
          const bool with_input = slot < P_::kInputSlots;
          const bool with_state = cell != Cell::kGru || slot >= P_::kStateSlot;
          for (int64_t i = 0; i < W; ++i) {
            bias[i] = 0;
            if (i < count && w.b_ih && with_input) bias[i] += w.b_ih[row + i];
            if (i < count && w.b_hh && with_state) bias[i] += w.b_hh[row + i];
          }
        }
      }
    }
  }

  // Plain panels [begin, end) of the projection.
  void pack_projection(const Weights<const T>& w, int64_t begin, int64_t end) {
    for (int64_t q = begin * kPlainVectors; q < end * kPlainVectors; ++q) {
      const int64_t count = std::clamp<int64_t>(P_size_ - q * W, 0, W);
      strip(count, w.w_hr + (count > 0 ? q * W * H_ : 0), H_, q / kPlainVectors, q % kPlainVectors,
            kPlainVectors, w_hr_, hr_scale_);
    }
  }

  const T* bias(int64_t p) const { return bias_ + p * kColumns; }

  // Scratch, in elements, of a member whose recurrent products have at most so many rows.
  int64_t scratch_size(int64_t rows) const {
    return std::max(large_product_scratch<T>(),
                    Operand<T, S>::scratch_size(rows, std::max(P_size_, H_)));
  }

  // C (M x panels [begin, end)) = bias + the input's part of the gates.
  void project(LargeProduct<T, S> product, int64_t begin, int64_t end) const {
    start_state_slot(product.M, product.c, product.ldc, begin, end);
    const int64_t panel = unit_rows<S>(I_) * kInputVectors * W;
    if constexpr (Narrow<S>::kKnown) {
      if (as_stored<S>(kBlockDepth) && product.factors == nullptr)
        return project_narrow(product, begin, end);
    }
    product.K = I_;
    product.panels = end - begin;
    product.b = w_ih_ + begin * panel;
    product.panel_stride = panel;
    product.panel_step = kColumns;
    product.add = bias(begin);
    product.ldadd = 0;
    if (kScaled<S>) product.scale = ih_scale_ + begin * kInputVectors * W;
    large_product<T, kInputVectors, S>(product);
  }

  // A slot that the input does not fill starts from its bias.
  void start_state_slot(int64_t M, T* c, int64_t ldc, int64_t begin, int64_t end) const {
    if constexpr (P_::kInputSlots < P_::kSlots) {
      constexpr int64_t kFrom = P_::kInputSlots * kUnits;
      for (int64_t m = 0; m < M; ++m)
        for (int64_t p = begin; p < end; ++p)
          for (int64_t at = kFrom; at < kColumns; at += W)
            store(c + m * ldc + (p - begin) * kColumns + at, load(bias(p) + at));
    }
  }

  // Adds the recurrent product to the tile of panel p. `tile` points at the first of its slots.
  void recur(int64_t p, const Operand<T, S>& a, T* tile, int64_t ld) const {
    T* const state = tile + P_::kStateSlot * kUnits;
    product<kStateVectors>(p, P_size_, w_hh_, hh_scale_, a, state, ld, state);
  }
  // The same for the n of a reset before.
  void recur_candidate(int64_t p, const Operand<T, S>& a, T* tile, int64_t ld) const {
    product<P_::kUnitVectors>(p, P_size_, w_hn_, hn_scale_, a, tile, ld, tile);
  }
  // Plain panel q of the projected outputs.
  void project_state(int64_t q, const Operand<T, S>& a, T* out, int64_t ld) const {
    product<kPlainVectors>(q, H_, w_hr_, hr_scale_, a, out, ld, nullptr);
  }

 private:
  void strip(int64_t count, const T* w, int64_t K, int64_t panel, int64_t vector, int64_t vectors,
             Unit<S>* to, T* scale) {
    pack_strip<T, S>(count, w, K, K, to + (panel * unit_rows<S>(K) * vectors + vector) * W,
                     vectors * W, kScaled<S> ? scale + (panel * vectors + vector) * W : nullptr);
  }

  template <int V>
  void product(int64_t p, int64_t K, const Unit<S>* b, const T* scale, const Operand<T, S>& a, T* c,
               int64_t ld, const T* add) const {
    const int64_t bytes =
        count_ * unit_rows<S>(P_size_) * kStateVectors * W * int64_t(sizeof(Unit<S>));
    a.template multiply<V>(b + p * unit_rows<S>(K) * V * W,
                           kScaled<S> ? scale + p * V * W : nullptr, bytes > kNear, c, ld, add, ld);
  }

  void project_narrow(const LargeProduct<T, S>& p, int64_t begin, int64_t end) const {
    const auto& kernels = Narrow<S>::kernels();
    for (int64_t m = 0; m < p.M; m += kBlockRows) {
      const int64_t height = std::min(kBlockRows, p.M - m);
      for (int64_t k = 0; k < I_; k += kBlockDepth) {
        const int64_t depth = std::min(kBlockDepth, I_ - k);
        const NarrowRows narrow(p.scratch, height, depth);
        prepare_rows<S>(height, [&](int64_t i) { return p.rows[m + i] + k; }, narrow, depth);
        for (int64_t panel = begin; panel < end; ++panel) {
          T* const c = p.c + m * p.ldc + (panel - begin) * kColumns;
          const int64_t at = panel * unit_rows<S>(I_) + k / kGroup<S>;
          kernels.multiply(narrow, {height, depth, kInputVectors, w_ih_ + at * kInputVectors * W,
                                    kScaled<S> ? ih_scale_ + panel * kInputVectors * W : nullptr, c,
                                    p.ldc, k > 0 ? c : bias(panel), k > 0 ? p.ldc : 0, false});
        }
      }
    }
  }

  int64_t H_, P_size_, I_, count_, state_count_;
  bool projected_;
  T* bias_;                  // (panels, slots, units)
  Unit<S>* w_ih_;            // (panels, I, input vectors)
  Unit<S>* w_hh_;            // (panels, P, state vectors)
  Unit<S>* w_hn_ = nullptr;  // (panels, P, units): reset before
  Unit<S>* w_hr_ = nullptr;  // (state panels, H, plain columns)
  T* ih_scale_ = nullptr;    // (panels, input vectors), where S has scales, as all below
  T* hh_scale_ = nullptr;    // (panels, state vectors)
  T* hn_scale_ = nullptr;    // (panels, units)
  T* hr_scale_ = nullptr;    // (state panels, plain columns)
};

// Layer and direction `index` of a packed block: one behind the other, in the order of the weights.
template <Cell cell, typename T, typename S>
static Panels<cell, T, S> packed_layer(const Stack<T>& stack, void* packed, int64_t index) {
  Arena arena(packed);
  for (int64_t i = 0; i < index; ++i)
    Panels<cell, T, S>(stack, arena, layer_input_size(stack, i / stack.D));
  return Panels<cell, T, S>(stack, arena, layer_input_size(stack, index / stack.D));
}

// Bytes of a packed block.
template <Cell cell, typename T, typename S>
static size_t packed_size(const Stack<T>& stack) {
  Arena arena(nullptr);
  for (int64_t i = 0; i < stack.L * stack.D; ++i)
    Panels<cell, T, S>(stack, arena, layer_input_size(stack, i / stack.D));
  return arena.used();
}

template <Cell cell, typename T, typename S>
static void pack_stack(const Stack<T>& stack, void* packed) {
  for (int64_t i = 0; i < stack.L * stack.D; ++i) {
    Panels<cell, T, S> layer = packed_layer<cell, T, S>(stack, packed, i);
    layer.pack(stack.weights[i], 0, layer.count(), true, true);
    if (stack.weights[i].w_hr) layer.pack_projection(stack.weights[i], 0, layer.state_count());
  }
}
