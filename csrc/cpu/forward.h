// Forward: for each layer and direction the input projection of a chunk of steps, large enough to
// be a good matrix product and small enough to stay in cache, then the recurrence over those steps.
// A member computes the projection of exactly what it consumes itself, so the two need no
// barrier between them; with split units there is one a step, else none.

template <Cell cell, typename T>
class LayerForward {
  using P_ = Panel<cell>;
  static constexpr int64_t W = kLanes<T>;
  static constexpr int64_t kUnits = P_::kUnitVectors * W;   // hidden units of a panel
  static constexpr int64_t kColumns = P_::kSlots * kUnits;  // elements of a panel's row
  static constexpr int kInputVectors = P_::kInputSlots * P_::kUnitVectors;
  static constexpr int kStateVectors = P_::kStateSlots * P_::kUnitVectors;
  static constexpr bool kTwoPhases = cell == Cell::kGruResetBefore;

 public:
  // Buffers of one direction, shared by its members except for the per-rank scratch.
  LayerForward(const Forward<T>& f, Arena& arena, int64_t max_input)
      : f_(f),
        s_(f.sequence),
        H_(f.H),
        Hp_(padded_units(f.H)),
        P_size_(f.P),
        panels_(panels_of(Hp_, kUnits)),
        Hu_(panels_ * kUnits),
        state_panels_(panels_of(f.P, kPlainColumns<T>)),
        projected_(f.weights[0].w_hr != nullptr),
        ldh_((projected_ ? state_panels_ * kPlainColumns<T> : Hu_) + kUnitPadding),
        ldu_(Hu_ + kUnitPadding) {
    const int64_t members = f.plan.threads;
    w_ih_ = arena.take<T>(panels_ * max_input * kInputVectors * W);
    w_hh_ = arena.take<T>(panels_ * f.P * kStateVectors * W);
    if (kTwoPhases) w_hn_ = arena.take<T>(panels_ * f.P * kUnits);
    if (projected_) w_hr_ = arena.take<T>(state_panels_ * f.H * kPlainColumns<T>);
    bias_ = arena.take<T>(panels_ * kColumns);
    h_[0] = arena.take<T>(s_.B * ldh_);
    h_[1] = arena.take<T>(s_.B * ldh_);
    if (cell == Cell::kLstm) c_ = arena.take<T>(s_.B * ldu_);
    if (projected_ || kTwoPhases) inner_ = arena.take<T>(s_.B * ldu_);
    if (projected_) out_ = arena.take<T>(s_.B * state_panels_ * kPlainColumns<T>);
    chunk_rows_ = chunk_rows();
    const int64_t columns =
        (f.plan.split_units ? panels_of(panels_, smallest_group(f)) : panels_) * kColumns;
    gates_stride_ = chunk_rows_ * columns;
    gates_ = arena.take<T>(members * gates_stride_);
    scratch_ = arena.take<T>(members * large_product_scratch<T>());
    rows_ = arena.take<const T*>(members * chunk_rows_);
    scale_ = arena.take<const T*>(members * chunk_rows_);
  }

  void run(int64_t l, int64_t d, const LayerInput<T>& input, Rows<T> y, T* reserve,
           const Member& member) {
    const int64_t index = l * f_.D + d;
    const Weights<const T>& w = f_.weights[index];
    const Walk walk(s_, d == 1);
    const OwnRows own(f_.plan, member);
    y_ = y;
    y_.base += d * P_size_;
    reserve_ = reserve ? reserve + index * s_.N * reserve_slots(cell) * Hp_ : nullptr;
    h_n_ = f_.h_n + index * s_.B * P_size_;
    c_n_ = cell == Cell::kLstm ? f_.c_n + index * s_.B * H_ : nullptr;

    w_ = &w;
    pack_input_ = input.mask || packing_pays(s_.N, input.size);
    pack_state_ = packing_pays(s_.N, P_size_);
    const auto packed = member.share(panels_);
    pack(w, input.size, packed.begin, packed.end);
    if (projected_ && pack_state_) {
      const auto share = member.share(state_panels_);
      for (int64_t q = share.begin * kPlainVectors; q < share.end * kPlainVectors; ++q) {
        const int64_t count = std::clamp<int64_t>(P_size_ - q * W, 0, W);
        const int64_t panel = q / kPlainVectors, vector = q % kPlainVectors;
        pack_transposed(count, w.w_hr + q * W * H_, H_, H_,
                        w_hr_ + (panel * H_ * kPlainVectors + vector) * W, kPlainColumns<T>);
      }
    }
    start(walk, f_.h_0 + index * s_.B * P_size_,
          cell == Cell::kLstm ? f_.c_0 + index * s_.B * H_ : nullptr, member);
    member.sync();

    // From here on units [panel_begin, panel_end) and rows `own` are this member's.
    const bool split = f_.plan.split_units;
    const Member::Range all_panels{0, panels_}, all_states{0, state_panels_};
    const Work work{own,
                    walk,
                    member,
                    split ? packed : all_panels,
                    split ? member.share(state_panels_) : all_states,
                    gates_ + member.rank * gates_stride_};
    int current = 0;
    for (int64_t step = 0; step < s_.T;) {
      const int64_t end = project(work, input, step);
      T* gates = work.gates;
      for (; step < end; ++step) {
        const int64_t t = walk.time(step);
        const int64_t rows = own.count(s_.active[t]);
        advance(work, t, rows, gates, h_[current], h_[1 - current]);
        gates += rows * columns(work);
        current = 1 - current;
        if (f_.plan.split_units) member.sync();
      }
    }
  }

 private:
  struct Work {
    OwnRows own;
    const Walk& walk;
    const Member& member;
    Member::Range panels;  // of hidden units
    Member::Range states;  // plain panels of projected outputs
    T* gates;              // the chunk: rows in order of reading, (row, panel, slot, unit)
  };

  static int64_t columns(const Work& work) {
    return (work.panels.end - work.panels.begin) * kColumns;
  }

  // Rows of a chunk: about half a megabyte of gates, but never less than one step, nor so few that
  // the projection re-reads its weights too often.
  int64_t chunk_rows() const {
    const int64_t row_bytes =
        panels_ * kColumns * sizeof(T) / (f_.plan.split_units ? smallest_group(f_) : 1);
    const int64_t wanted =
        std::max<int64_t>(2 * kBlockRows, (int64_t{1} << 19) / std::max<int64_t>(row_bytes, 1));
    return std::max(s_.B, std::min(s_.N, wanted));
  }

  // Weights, where they are to be packed, and biases of panels [begin, end) into panel order;
  // padding units get zeros.
  void pack(const Weights<const T>& w, int64_t I, int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      for (int slot = 0; slot < P_::kSlots; ++slot) {
        for (int v = 0; v < P_::kUnitVectors; ++v) {
          const int64_t unit = p * kUnits + v * W;
          const int64_t count = std::clamp<int64_t>(H_ - unit, 0, W);
          const int64_t row = P_::kGate[slot] * H_ + unit;
          if (slot < P_::kInputSlots && pack_input_) {
            const int64_t vector = slot * P_::kUnitVectors + v;
            pack_transposed(count, w.w_ih + row * I, I, I,
                            w_ih_ + (p * I * kInputVectors + vector) * W, kInputVectors * W);
          }
          const int state_slot = slot - P_::kStateSlot;
          if (state_slot >= 0 && pack_state_) {
            const int64_t vector = state_slot * P_::kUnitVectors + v;
            pack_transposed(count, w.w_hh + row * P_size_, P_size_, P_size_,
                            w_hh_ + (p * P_size_ * kStateVectors + vector) * W, kStateVectors * W);
          } else if (kTwoPhases && pack_state_) {
            pack_transposed(count, w.w_hh + row * P_size_, P_size_, P_size_,
                            w_hn_ + (p * P_size_ * P_::kUnitVectors + v) * W, kUnits);
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

  // The initial states into the working ones. Rows without a step keep theirs as the final ones.
  void start(const Walk& walk, const T* h_0, const T* c_0, const Member& member) {
    const auto share = member.share(s_.B);
    for (int64_t b = share.begin; b < share.end; ++b) {
      const T* h = h_0 + walk.source(b) * P_size_;
      const T* c = c_0 ? c_0 + walk.source(b) * H_ : nullptr;
      const bool runs = s_.T > 0 && b < s_.active[0];
      if (!runs) {
        std::copy(h, h + P_size_, h_n_ + walk.source(b) * P_size_);
        if (c) std::copy(c, c + H_, c_n_ + walk.source(b) * H_);
        continue;
      }
      const bool reset = s_.reset && walk.resets(s_.offset[walk.first_time(b)] + b);
      for (T* state : {h_[0] + b * ldh_, h_[1] + b * ldh_}) {
        std::fill(state, state + ldh_, T(0));
        if (!reset) std::copy(h, h + P_size_, state);
      }
      if (c) {
        std::fill(c_ + b * ldu_, c_ + (b + 1) * ldu_, T(0));
        if (!reset) std::copy(c, c + H_, c_ + b * ldu_);
      }
      if (inner_) std::fill(inner_ + b * ldu_, inner_ + (b + 1) * ldu_, T(0));
    }
  }

  // The input's part of the gates, biases included, for as many steps from `step` on as fit in a
  // chunk. Returns the step behind the last.
  int64_t project(const Work& work, const LayerInput<T>& input, int64_t step) {
    const T** rows = rows_ + work.member.rank * chunk_rows_;
    const T** scale = scale_ + work.member.rank * chunk_rows_;
    int64_t M = 0;
    for (; step < s_.T; ++step) {
      const int64_t t = work.walk.time(step);
      const int64_t count = work.own.count(s_.active[t]);
      if (M + count > chunk_rows_) break;
      for (int64_t j = 0; j < count; ++j, ++M) {
        const int64_t r = s_.offset[t] + work.own.first + j * work.own.step;
        rows[M] = input.rows(r);
        if (input.mask) scale[M] = input.mask(r);
      }
    }
    const int64_t ld = columns(work);
    if (ld == 0) return step;
    const T* bias = bias_ + work.panels.begin * kColumns;
    if constexpr (cell == Cell::kGru) {
      // The slot that the input does not fill starts from its bias.
      constexpr int64_t kSlot = 3 * kUnits;
      for (int64_t m = 0; m < M; ++m)
        for (int64_t column = kSlot; column < ld; column += kColumns) {
          store(work.gates + m * ld + column, load(bias + column));
        }
    }
    if (!pack_input_) {
      for (int64_t p = work.panels.begin; p < work.panels.end; ++p) {
        const int64_t column = (p - work.panels.begin) * kColumns;
        for (int64_t m = 0; m < M; ++m) {
          dot_panel(w_->w_ih, input.size, p, 0, P_::kInputSlots, rows[m], bias + column,
                    work.gates + m * ld + column);
        }
      }
      return step;
    }
    const int64_t panel = input.size * kInputVectors * W;
    large_product<T, kInputVectors>(
        {M, input.size, work.panels.end - work.panels.begin, rows, input.mask ? scale : nullptr,
         w_ih_ + work.panels.begin * panel, panel, work.gates, ld, kColumns, bias, 0,
         scratch_ + work.member.rank * large_product_scratch<T>()});
    return step;
  }

  // tile = add + the product of row `a` with slots [slot, end) of panel p, weights unpacked. Both
  // point at the panel's first slot.
  void dot_panel(const T* w, int64_t K, int64_t p, int slot, int end, const T* a, const T* add,
                 T* tile) const {
    for (; slot < end; ++slot) {
      for (int64_t v = 0; v < P_::kUnitVectors; ++v) {
        const int64_t unit = p * kUnits + v * W;
        const int64_t count = std::clamp<int64_t>(H_ - unit, 0, W);
        const int64_t at = slot * kUnits + v * W;
        const T* matrix_rows = w + (P_::kGate[slot] * H_ + (count > 0 ? unit : 0)) * K;
        store(tile + at, load(add + at) + dot_products(count, matrix_rows, K, K, a));
      }
    }
  }

  // Adds the recurrent product to slots [slot, end) of panel p, for all rows of a step.
  template <int V>
  void state_product(const Work& work, int64_t p, int slot, int end, int64_t rows, const T* packed,
                     const T* a, int64_t lda, T* tile, int64_t ld) const {
    if (pack_state_) {
      T* c = tile + slot * kUnits;
      panel_product<T, V>(rows, {P_size_, a + work.own.first * lda, work.own.step * lda,
                                 packed + p * P_size_ * V * W, V * W, c, ld, c, ld});
      return;
    }
    for (int64_t j = 0; j < rows; ++j) {
      dot_panel(w_->w_hh, P_size_, p, slot, end, a + (work.own.first + j * work.own.step) * lda,
                tile + j * ld, tile + j * ld);
    }
  }

  // One row at one step, as the gate mathematics sees it.
  struct Row {
    int64_t b, r, source;
    bool last;          // of its sequence: its states are the final ones
    bool reset_behind;  // the next step starts afresh
  };

  Row row(const Work& work, int64_t t, int64_t j) const {
    Row row;
    row.b = work.own.first + j * work.own.step;
    row.r = s_.offset[t] + row.b;
    row.source = work.walk.source(row.b);
    row.last = !work.walk.has_next(t, row.b);
    row.reset_behind = s_.reset && !row.last && work.walk.resets(work.walk.next(t, row.b));
    return row;
  }

  void put_h(const Row& row, T* h_next, int64_t unit, Vec<T> h) const {
    store(h_next + row.b * ldh_ + unit, row.reset_behind ? Vec<T>{} : h);
    const int64_t count = P_size_ - unit;
    if (count <= 0) return;
    store_first(y_(row.r) + unit, h, count);
    if (row.last) store_first(h_n_ + row.source * P_size_ + unit, h, count);
  }

  void keep(const Row& row, int slot, int64_t unit, Vec<T> value) const {
    if (reserve_) store(reserve_ + (row.r * reserve_slots(cell) + slot) * Hp_ + unit, value);
  }

  // All rows of one step: the recurrent product of a panel, then its gates.
  void advance(const Work& work, int64_t t, int64_t rows, T* gates, const T* h, T* h_next) const {
    if (rows == 0 && !f_.plan.split_units) return;
    const int64_t ld = columns(work);
    constexpr int kEnd = P_::kStateSlot + P_::kStateSlots;
    for (int64_t p = work.panels.begin; p < work.panels.end; ++p) {
      T* tile = gates + (p - work.panels.begin) * kColumns;
      state_product<kStateVectors>(work, p, P_::kStateSlot, kEnd, rows, w_hh_, h, ldh_, tile, ld);
      for (int64_t j = 0; j < rows; ++j) {
        const Row at = row(work, t, j);
        for (int64_t v = 0; v < P_::kUnitVectors; ++v) {
          const int64_t unit = p * kUnits + v * W;
          if (unit < Hp_) gate(at, unit, tile + j * ld + v * W, h, h_next);
        }
      }
    }
    if constexpr (kTwoPhases) {
      if (f_.plan.split_units) work.member.sync();
      for (int64_t p = work.panels.begin; p < work.panels.end; ++p) {
        T* tile = gates + (p - work.panels.begin) * kColumns;
        state_product<P_::kUnitVectors>(work, p, 0, 1, rows, w_hn_, inner_, ldu_, tile, ld);
        for (int64_t j = 0; j < rows; ++j) {
          const Row at = row(work, t, j);
          const int64_t unit = p * kUnits;
          const Vec<T> n = tanh<T>(load(tile + j * ld));
          const Vec<T> z = load(tile + j * ld + 2 * kUnits);
          keep(at, 2, unit, n);
          put_h(at, h_next, unit, n + z * (load(h + at.b * ldh_ + unit) - n));
        }
      }
    }
    if (projected_) {
      if (f_.plan.split_units) work.member.sync();
      const int64_t ldo = state_panels_ * kPlainColumns<T>;
      for (int64_t q = work.states.begin; q < work.states.end; ++q) {
        const int64_t column = q * kPlainColumns<T>;
        T* out = out_ + work.own.first * ldo + column;
        const T* in = inner_ + work.own.first * ldu_;
        if (pack_state_) {
          panel_product<T, kPlainVectors>(
              rows, {H_, in, work.own.step * ldu_, w_hr_ + q * H_ * kPlainColumns<T>,
                     kPlainColumns<T>, out, work.own.step * ldo, nullptr, 0});
        }
        for (int64_t i = 0; i < rows * kPlainVectors && !pack_state_; ++i) {
          const int64_t j = i / kPlainVectors * work.own.step, v = i % kPlainVectors * W;
          const int64_t count = std::clamp<int64_t>(P_size_ - column - v, 0, W);
          const T* matrix_rows = w_->w_hr + (count > 0 ? column + v : 0) * H_;
          store(out + j * ldo + v, dot_products(count, matrix_rows, H_, H_, in + j * ldu_));
        }
        for (int64_t j = 0; j < rows; ++j) {
          const Row at = row(work, t, j);
          for (int64_t v = 0; v < kPlainVectors; ++v) {
            put_h(at, h_next, column + v * W, load(out + j * work.own.step * ldo + v * W));
          }
        }
      }
    }
  }

  // The gate mathematics of one vector of units; `g` is its place in the panel's first slot.
  ISA_INLINE void gate(const Row& at, int64_t unit, T* g, const T* h, T* h_next) const {
    if constexpr (cell == Cell::kLstm) {
      // c' = f c + i g,  h' = o tanh(c')
      const Vec<T> i = sigmoid<T>(load(g)), f = sigmoid<T>(load(g + kUnits));
      const Vec<T> candidate = tanh<T>(load(g + 2 * kUnits)), o = sigmoid<T>(load(g + 3 * kUnits));
      T* state = c_ + at.b * ldu_ + unit;
      const Vec<T> c = f * load(state) + i * candidate;
      store(state, at.reset_behind ? Vec<T>{} : c);
      if (at.last && unit < H_) store_first(c_n_ + at.source * H_ + unit, c, H_ - unit);
      keep(at, 0, unit, i);
      keep(at, 1, unit, f);
      keep(at, 2, unit, candidate);
      keep(at, 3, unit, o);
      keep(at, 4, unit, c);
      const Vec<T> out = o * tanh<T>(c);
      if (projected_) {
        store(inner_ + at.b * ldu_ + unit, out);
      } else {
        put_h(at, h_next, unit, out);
      }
    } else if constexpr (cell == Cell::kGru) {
      // n = tanh(n_x + r n_h),  h' = n + z (h - n)
      const Vec<T> r = sigmoid<T>(load(g + kUnits)), z = sigmoid<T>(load(g + 2 * kUnits));
      const Vec<T> n_h = load(g + 3 * kUnits);
      const Vec<T> n = tanh<T>(load(g) + r * n_h);
      keep(at, 0, unit, r);
      keep(at, 1, unit, z);
      keep(at, 2, unit, n);
      keep(at, 3, unit, n_h);
      put_h(at, h_next, unit, n + z * (load(h + at.b * ldh_ + unit) - n));
    } else if constexpr (cell == Cell::kGruResetBefore) {
      // r and z, and the reset state that n will be made from
      const Vec<T> r = sigmoid<T>(load(g + kUnits)), z = sigmoid<T>(load(g + 2 * kUnits));
      store(g + 2 * kUnits, z);
      store(inner_ + at.b * ldu_ + unit, r * load(h + at.b * ldh_ + unit));
      keep(at, 0, unit, r);
      keep(at, 1, unit, z);
    } else {
      const Vec<T> a = load(g);
      put_h(at, h_next, unit, cell == Cell::kRnnTanh ? tanh<T>(a) : (a < T(0) ? Vec<T>{} : a));
    }
  }

  const Forward<T>& f_;
  const Sequence& s_;
  const int64_t H_, Hp_, P_size_, panels_, Hu_, state_panels_;
  const bool projected_;
  const int64_t ldh_, ldu_;  // strides of rows of h, and of c and inner; odd multiples of 64 bytes
  int64_t chunk_rows_, gates_stride_;
  const Weights<const T>* w_ = nullptr;         // of the layer at hand
  bool pack_input_ = true, pack_state_ = true;  // else its products read the weights as they are
  T* w_ih_;                                     // (panels, I, input vectors)
  T* w_hh_;                                     // (panels, P, state vectors)
  T* w_hn_ = nullptr;                           // (panels, P, units): reset before
  T* w_hr_ = nullptr;                           // (state panels, H, plain columns)
  T* bias_;                                     // (panels, slots, units)
  T* h_[2];                                     // (B, ldh) before and after a step
  T* c_ = nullptr;                              // (B, ldu)
  T* inner_ = nullptr;  // (B, ldu) o tanh(c) before the projection, or r h with reset before
  T* out_ = nullptr;    // (B, state panels) projected outputs of a step
  T* gates_;            // per rank: a chunk of gate pre-activations
  T* scratch_;          // per rank
  const T** rows_;      // per rank
  const T** scale_;     // per rank
  Rows<T> y_;
  T* reserve_;
  T *h_n_, *c_n_;
};

template <Cell cell, typename T>
static size_t forward_stack(const Forward<T>& f, const Member* member, void* workspace) {
  Arena arena(workspace);
  LayerForward<cell, T> direction0(f, arena, largest_input(f));
  LayerForward<cell, T> direction1 =
      f.D == 2 ? LayerForward<cell, T>(f, arena, largest_input(f)) : direction0;
  const int64_t width = f.D * f.P;
  // Outputs of the inner layers: kept in the reserve for backward, else two that take turns.
  T* kept = f.reserve
                ? f.reserve + f.L * f.D * f.sequence.N * reserve_slots(cell) * padded_units(f.H)
                : nullptr;
  T* spare[2] = {nullptr, nullptr};
  if (!kept)
    for (int64_t i = 0; i < std::min<int64_t>(f.L - 1, 2); ++i)
      spare[i] = arena.take<T>(f.sequence.N * width);
  if (member == nullptr) return arena.used();

  const T* below = nullptr;
  for (int64_t l = 0; l < f.L; ++l) {
    const LayerInput<T> input = layer_input(f, l, below);
    T* inner = kept ? kept + l * f.sequence.N * width : spare[l % 2];
    const Rows<T> y = l == f.L - 1 ? f.y : Rows<T>{inner, nullptr, width};
    for (int64_t d = 0; d < f.D; ++d) {
      Member group;
      if (!join_direction(f.D, d, *member, group)) continue;
      (d == 0 ? direction0 : direction1).run(l, d, input, y, f.reserve, group);
    }
    below = inner;
    member->sync();
  }
  return arena.used();
}
