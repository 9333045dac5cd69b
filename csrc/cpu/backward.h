// Backward: only the recurrence of dh is sequential. It runs the steps in the opposite order and
// leaves every step's gate gradients behind; the gradients of weights and input are then products
// over all steps at once, shared by the whole team.

template <Cell cell, typename T>
class LayerBackward {
  using P_ = Panel<cell>;
  static constexpr int64_t W = kLanes<T>;
  static constexpr bool kTwoPhases = cell == Cell::kGruResetBefore;

 public:
  LayerBackward(const Backward<T>& f, Arena& arena, int64_t max_input)
      : f_(f),
        s_(f.sequence),
        H_(f.H),
        Hp_(padded_units(f.H)),
        P_size_(f.P),
        projected_(f.weights[0].w_hr != nullptr),
        few_(f.sequence.B <= kFewTileRows),
        units_(panels(f, Hp_)),
        states_(panels(f, padded_units(f.P))),
        ldg_(P_::kSlots * Hp_ + kUnitPadding),
        ldh_(states_.count() * states_.columns() + kUnitPadding),
        ldc_(units_.count() * units_.columns() + kUnitPadding) {
    d_gates_ = arena.take<T>(s_.N * ldg_);
    d_h_ = arena.take<T>(s_.B * ldh_);
    if (cell == Cell::kLstm) d_c_ = arena.take<T>(s_.B * ldc_);
    if (projected_ || kTwoPhases) {
      d_inner_ = arena.take<T>(s_.B * ldc_);
      inner_ = arena.take<T>(s_.N * Hp_);
    }
    if (projected_) {
      d_out_ = arena.take<T>(s_.N * ldh_);
      w_hr_ = arena.take<T>(units_.count() * units_.columns() * f.P);
    }
    const int64_t columns = states_.count() * states_.columns();
    w_hh_ = arena.take<T>(columns * P_::kStateSlots * Hp_);
    if (kTwoPhases) w_hn_ = arena.take<T>(columns * Hp_);
    w_ih_ = arena.take<T>(round_up(max_input, kPlainColumns<T>) * P_::kInputSlots * Hp_);
  }

  // Turns to layer l, direction d, whose outputs are `y` with gradients `d_y`. Every member does
  // so, also those that leave run() to others.
  void bind(int64_t l, int64_t d, Rows<const T> y, Rows<const T> d_y) {
    const int64_t index = l * f_.D + d;
    w_ = &f_.weights[index];
    reserve_ = f_.reserve + index * s_.N * reserve_slots(cell) * Hp_;
    y_ = y;
    y_.base += d * P_size_;
    d_y_ = d_y;
    if (d_y_) d_y_.base += d * P_size_;
    h_0_ = f_.h_0 ? f_.h_0 + index * s_.B * P_size_ : nullptr;
    c_0_ = cell == Cell::kLstm && f_.c_0 ? f_.c_0 + index * s_.B * H_ : nullptr;
  }

  // The recurrence.
  void run(int64_t l, int64_t d, const Member& member) {
    const int64_t index = l * f_.D + d;
    const Weights<const T>& w = f_.weights[index];
    const Walk walk(s_, d == 1);
    const OwnRows own(f_.plan, member);

    const auto states = member.share(states_.count());
    for (int64_t q = states.begin; q < states.end; ++q) {
      if (in_place(states_, q, P_size_)) continue;
      pack_gates(w.w_hh, P_size_, P_::kStateSlot, P_::kStateSlots, states_, q, w_hh_);
      if (kTwoPhases) pack_gates(w.w_hh, P_size_, 0, 1, states_, q, w_hn_);
    }
    if (projected_) {
      const auto units = member.share(units_.count());
      for (int64_t q = units.begin; q < units.end; ++q) {
        T* to = w_hr_ + q * units_.columns() * P_size_;
        for (int64_t k = 0; k < P_size_; ++k, to += units_.vectors_of(q) * W)
          copy_columns(w.w_hr + k * H_, H_, units_, q, to);
      }
    }
    const auto rows = member.share(s_.B);
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      const int64_t source = walk.source(b);
      fill_row(f_.d_h_n ? f_.d_h_n + (index * s_.B + source) * P_size_ : nullptr, P_size_,
               d_h_ + b * ldh_, ldh_);
      if (d_c_)
        fill_row(f_.d_c_n ? f_.d_c_n + (index * s_.B + source) * H_ : nullptr, H_, d_c_ + b * ldc_,
                 ldc_);
    }
    member.sync();

    const bool split = f_.plan.split == Split::kUnits;
    const Member::Range all_units{0, units_.count()}, all_states{0, states_.count()};
    const Work work{own, walk, member, split ? member.share(units_.count()) : all_units,
                    split ? states : all_states};
    for (int64_t step = s_.T - 1; step >= 0; --step) {
      const int64_t t = walk.time(step);
      retreat(work, t, own.count(s_.active[t]), step % 2 != 0);
    }
    member.sync();
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      const int64_t source = walk.source(b);
      std::copy(d_h_ + b * ldh_, d_h_ + b * ldh_ + P_size_,
                f_.d_h_0 + (index * s_.B + source) * P_size_);
      if (d_c_)
        std::copy(d_c_ + b * ldc_, d_c_ + b * ldc_ + H_, f_.d_c_0 + (index * s_.B + source) * H_);
    }
  }

  // This member's share of the weight gradients, once every member has left run().
  void weight_gradients(int64_t l, int64_t d, const LayerInput<T>& input, const Member& member,
                        T* scratch) const {
    const Weights<T>& dw = f_.d_weights[l * f_.D + d];
    const Walk walk(s_, d == 1);
    const auto x = [&](int64_t r) { return input.rows(r); };
    const auto inner = [&](int64_t r) { return inner_ + r * Hp_; };
    // The step of compact row r is found by walking along with it: rows come in order.
    int64_t t = 0;
    const auto h = [&](int64_t r) {
      if (t >= s_.T || r < s_.offset[t]) t = 0;
      while (r >= s_.offset[t] + s_.active[t]) ++t;
      return previous_h(walk, t, r - s_.offset[t], r);
    };
    // Only the n of GRU has different gradients for its two biases.
    constexpr bool kApart = cell == Cell::kGru;
    gate_gradients(0, P_::kInputSlots, input.size, x, input.mask, dw.w_ih, dw.b_ih,
                   kApart ? nullptr : dw.b_hh, member, scratch);
    gate_gradients(P_::kStateSlot, P_::kStateSlots, P_size_, h, {}, dw.w_hh,
                   kApart ? dw.b_hh : nullptr, nullptr, member, scratch);
    if (kTwoPhases)
      gate_gradients(0, 1, P_size_, inner, {}, dw.w_hh, nullptr, nullptr, member, scratch);
    if (projected_ && dw.w_hr) {
      const Member::Range share = member.share(P_size_);
      column_gradients(d_out_, ldh_, share.begin, share.end, H_, inner, {},
                       dw.w_hr + share.begin * H_, nullptr, scratch);
    }
  }

  void pack_input_weights(int64_t l, int64_t d, int64_t I, const Member& member) {
    const PlainPanels<T> inputs{I};
    const auto share = member.share(inputs.count());
    for (int64_t q = share.begin; q < share.end; ++q) {
      if (!in_place(inputs, q, I))
        pack_gates(f_.weights[l * f_.D + d].w_ih, I, 0, P_::kInputSlots, inputs, q, w_ih_);
    }
  }

  // Panel q of the input's gradient for `count` compact rows from r on: c = or += gate gradients
  // times W_ih.
  void input_gradient(int64_t q, int64_t r, int64_t count, int64_t I, bool accumulate, T* c,
                      int64_t ldc) const {
    gates_product(PlainPanels<T>{I}, q, 0, P_::kInputSlots, w_->w_ih, I, w_ih_, count, r, 1, c, ldc,
                  accumulate);
  }

 private:
  struct Work {
    OwnRows own;
    const Walk& walk;
    const Member& member;
    Member::Range units;   // plain panels of hidden units
    Member::Range states;  // plain panels of outputs
  };

  // Gradients of the rows of slots [slot0, slot0 + slots) of a weight matrix and of its biases, any
  // of them null. The padded columns of all slots are dealt out.
  template <typename Row>
  void gate_gradients(int slot0, int slots, int64_t features, const Row& row,
                      const Rows<const T>& mask, T* weight, T* bias, T* second_bias,
                      const Member& member, T* scratch) const {
    if (!weight && !bias) return;
    const Member::Range share = member.share(slots * Hp_ / kUnitPadding);
    const int64_t begin = share.begin * kUnitPadding, end = share.end * kUnitPadding;
    for (int slot = 0; slot < slots; ++slot) {
      const int64_t first = std::max(begin, slot * Hp_), last = std::min(end, slot * Hp_ + H_);
      if (first >= last) continue;
      const int64_t to = P_::kGate[slot0 + slot] * H_ + first - slot * Hp_;
      column_gradients(d_gates_ + slot0 * Hp_, ldg_, first, last, features, row, mask,
                       weight ? weight + to * features : nullptr, bias ? bias + to : nullptr,
                       scratch);
      if (second_bias) std::copy(bias + to, bias + to + last - first, second_bias + to);
    }
  }

  // The same for columns [begin, end) of d, whose gradients lie together.
  template <typename Row>
  void column_gradients(const T* d, int64_t ldd, int64_t begin, int64_t end, int64_t features,
                        const Row& row, const Rows<const T>& mask, T* dw, T* sums,
                        T* scratch) const {
    const T *rows[kGradientDepth], *factors[kGradientDepth];
    const GradientProduct<T> p{s_.N, d, ldd, features, rows, mask ? factors : nullptr};
    if (s_.N == 0) {
      if (dw) std::fill(dw, dw + (end - begin) * features, T(0));
      if (sums) std::fill(sums, sums + end - begin, T(0));
    }
    for (int64_t r = 0; r < s_.N; r += kGradientDepth) {
      const int64_t depth = std::min(kGradientDepth, s_.N - r);
      for (int64_t k = 0; k < depth; ++k) {
        rows[k] = row(r + k);
        if (mask) factors[k] = mask(r + k);
      }
      if (s_.N <= kFewRows) return outer_products(p, depth, begin, end - begin, dw, sums);
      for (int64_t c = begin; c < end; c += kGradientHeight) {
        gradient_block(p, r, depth, c, std::min(kGradientHeight, end - c),
                       dw ? dw + (c - begin) * features : nullptr,
                       sums ? sums + c - begin : nullptr, scratch);
      }
    }
  }

  static void fill_row(const T* from, int64_t count, T* to, int64_t size) {
    std::fill(to, to + size, T(0));
    if (from) std::copy(from, from + count, to);
  }

  // Columns of plain panel q of a row of `width`, zeros behind its end.
  static void copy_columns(const T* row, int64_t width, const PlainPanels<T>& panels, int64_t q,
                           T* to) {
    const int64_t first = q * panels.columns(), columns = panels.vectors_of(q) * W;
    const int64_t count = std::clamp<int64_t>(width - first, 0, columns);
    std::copy(row + first, row + first + count, to);
    std::fill(to + count, to + columns, T(0));
  }

  // Panels of the recurrence for rows of so many padded elements. Few steps are not cut further:
  // what is read in place must not depend on the number of threads.
  static PlainPanels<T> panels(const Backward<T>& f, int64_t width) {
    const bool cut = f.plan.split == Split::kUnits && f.sequence.N > kFewRows;
    return PlainPanels<T>::shared(width, cut ? smallest_group(f) : 1);
  }

  // Panel q of weights (G*H, width) as right-hand side of a product over gate gradients: the K rows
  // are (slot, padded unit), in the order in which d_gates has them.
  void pack_gates(const T* w, int64_t width, int slot0, int slots, const PlainPanels<T>& panels,
                  int64_t q, T* packed) const {
    T* to = packed + q * panels.columns() * slots * Hp_;
    for (int slot = slot0; slot < slot0 + slots; ++slot) {
      const T* rows = w + P_::kGate[slot] * H_ * width;
      for (int64_t u = 0; u < Hp_; ++u, to += panels.vectors_of(q) * W) {
        copy_columns(rows + std::min(u, H_ - 1) * width, u < H_ ? width : 0, panels, q, to);
      }
    }
  }

  // Whether panel q of weights `width` wide is read where it lies: few rows do not repay packing,
  // but a panel that reaches past the last column has to be padded.
  bool in_place(const PlainPanels<T>& panels, int64_t q, int64_t width) const {
    return s_.N <= kFewRows && (q + 1) * panels.columns() <= width;
  }

  // A product of plain panels. The unrolling is that of a full one, so that sums do not depend on
  // how wide the panels are.
  static void product(int64_t vectors, int64_t rows, bool few, const Tile<T>& tile) {
    constexpr int kUnrolling = k_unrolling(kPlainVectors);
    with_vectors(vectors, [&](auto v) {
      panel_product<T, v, Layout::kRows, T, kTileRows<v>, kUnrolling>(rows, few, tile);
    });
  }

  // c (rows, plain panel q) = gate gradients of slots [slot0, slot0 + slots) times weights, for
  // compact rows r, r + step, ...; added to c where asked for.
  void gates_product(const PlainPanels<T>& panels, int64_t q, int slot0, int slots, const T* w,
                     int64_t width, const T* packed, int64_t rows, int64_t r, int64_t step, T* c,
                     int64_t ldc, bool add) const {
    const int64_t vectors = panels.vectors_of(q), first = q * panels.columns();
    if (!in_place(panels, q, width)) {
      const int64_t K = slots * Hp_;
      product(vectors, rows, few_,
              {K, d_gate(r, slot0, 0), step * ldg_, packed + first * K, vectors * W, c, ldc,
               add ? c : nullptr, ldc});
      return;
    }
    for (int slot = slot0; slot < slot0 + slots; ++slot) {
      product(vectors, rows, few_,
              {H_, d_gate(r, slot, 0), step * ldg_, w + P_::kGate[slot] * H_ * width + first, width,
               c, ldc, add || slot > slot0 ? c : nullptr, ldc});
    }
  }

  const T* kept(int64_t r, int slot, int64_t unit) const {
    return reserve_ + (r * reserve_slots(cell) + slot) * Hp_ + unit;
  }
  T* d_gate(int64_t r, int slot, int64_t unit) const {
    return d_gates_ + r * ldg_ + slot * Hp_ + unit;
  }

  // The state that entered step (t, b) = r: null where it was zero.
  const T* previous_h(const Walk& walk, int64_t t, int64_t b, int64_t r) const {
    if (walk.resets(r)) return nullptr;
    if (walk.has_previous(t, b)) return y_(walk.previous(t, b));
    return h_0_ ? h_0_ + walk.source(b) * P_size_ : nullptr;
  }

  // All rows of one step, against the order of reading. Where `turned`, recurrent weights are gone
  // through from the last panel on: a cache that holds a part of them has the right one then.
  void retreat(const Work& work, int64_t t, int64_t rows, bool turned) const {
    if (rows == 0 && f_.plan.split != Split::kUnits) return;
    const int64_t first = work.own.first, step = work.own.step;
    const int64_t r0 = s_.offset[t] + first;
    const int64_t begin = work.units.begin * units_.columns(),
                  end = std::min(work.units.end * units_.columns(), Hp_);
    const int64_t state_begin = work.states.begin * states_.columns(),
                  state_end = work.states.end * states_.columns();
    if (projected_) {
      for (int64_t j = 0; j < rows; ++j) {
        const int64_t b = first + j * step, r = r0 + j * step;
        for (int64_t unit = state_begin; unit < state_end; unit += W)
          store(d_out_ + r * ldh_ + unit, output_gradient(b, r, unit));
      }
      sync(work);
      for (int64_t q = work.units.begin; q < work.units.end; ++q) {
        const int64_t column = q * units_.columns(), vectors = units_.vectors_of(q);
        product(vectors, rows, few_,
                {P_size_, d_out_ + r0 * ldh_, step * ldh_, w_hr_ + column * P_size_, vectors * W,
                 d_inner_ + first * ldc_ + column, step * ldc_, nullptr, 0});
      }
    }
    for (int64_t j = 0; j < rows; ++j) {
      const int64_t b = first + j * step;
      gates(work.walk, t, b, s_.offset[t] + b, begin, end);
    }
    sync(work);
    if constexpr (kTwoPhases) {
      for (int64_t q = work.units.begin; q < work.units.end; ++q) {
        gates_product(units_, q, 0, 1, w_->w_hh, P_size_, w_hn_, rows, r0, step,
                      d_inner_ + first * ldc_ + q * units_.columns(), step * ldc_, false);
      }
      for (int64_t j = 0; j < rows; ++j) {
        const int64_t b = first + j * step;
        reset_gate(work.walk, t, b, s_.offset[t] + b, begin, end);
      }
      sync(work);
    }
    // LSTM and RNN: dh = d_gates W_hh. GRU adds it to z dh, which gates() has left there.
    constexpr bool kAdd = cell == Cell::kGru || kTwoPhases;
    for (int64_t i = work.states.begin; i < work.states.end; ++i) {
      const int64_t q = turned ? work.states.begin + work.states.end - 1 - i : i;
      T* d_h = d_h_ + first * ldh_ + q * states_.columns();
      gates_product(states_, q, P_::kStateSlot, P_::kStateSlots, w_->w_hh, P_size_, w_hh_, rows, r0,
                    step, d_h, step * ldh_, kAdd);
    }
    if (s_.reset) {
      for (int64_t j = 0; j < rows; ++j) {
        if (!work.walk.resets(r0 + j * step)) continue;
        T* row = d_h_ + (first + j * step) * ldh_;
        std::fill(row + state_begin, row + state_end, T(0));
      }
    }
  }

  void sync(const Work& work) const {
    if (f_.plan.split == Split::kUnits) work.member.sync();
  }

  ISA_INLINE Vec<T> output_gradient(int64_t b, int64_t r, int64_t unit) const {
    const Vec<T> d_h = load(d_h_ + b * ldh_ + unit);
    return d_y_ ? d_h + load_first(d_y_(r) + unit, std::max<int64_t>(P_size_ - unit, 0)) : d_h;
  }

  // Gate gradients of units [begin, end) of row r, and what of dh and dc goes past the weights.
  void gates(const Walk& walk, int64_t t, int64_t b, int64_t r, int64_t begin, int64_t end) const {
    const bool reset = walk.resets(r);
    const bool inside = walk.has_previous(t, b);
    const T* h_prev = previous_h(walk, t, b, r);
    const T* c_prev = nullptr;
    if (cell == Cell::kLstm && !reset) {
      c_prev = inside ? kept(walk.previous(t, b), 4, 0)
               : c_0_ ? c_0_ + walk.source(b) * H_
                      : nullptr;
    }
    for (int64_t unit = begin; unit < end; unit += W) {
      const int64_t count = std::max<int64_t>(H_ - unit, 0);
      const Vec<T> d_h =
          projected_ ? load(d_inner_ + b * ldc_ + unit) : output_gradient(b, r, unit);
      if constexpr (cell == Cell::kLstm) {
        const Vec<T> i = load(kept(r, 0, unit)), f = load(kept(r, 1, unit)),
                     g = load(kept(r, 2, unit));
        const Vec<T> o = load(kept(r, 3, unit)), tanh_c = tanh<T>(load(kept(r, 4, unit)));
        const Vec<T> c = c_prev ? load_first(c_prev + unit, count) : Vec<T>{};
        T* carried = d_c_ + b * ldc_ + unit;
        const Vec<T> d_c = load(carried) + d_h * o * (T(1) - tanh_c * tanh_c);
        store(d_gate(r, 0, unit), d_c * g * i * (T(1) - i));
        store(d_gate(r, 1, unit), d_c * c * f * (T(1) - f));
        store(d_gate(r, 2, unit), d_c * i * (T(1) - g * g));
        store(d_gate(r, 3, unit), d_h * tanh_c * o * (T(1) - o));
        store(carried, reset ? Vec<T>{} : d_c * f);
        if (projected_) store(inner_ + r * Hp_ + unit, o * tanh_c);
      } else if constexpr (cell == Cell::kGru) {
        const Vec<T> r_ = load(kept(r, 0, unit)), z = load(kept(r, 1, unit));
        const Vec<T> n = load(kept(r, 2, unit)), n_h = load(kept(r, 3, unit));
        const Vec<T> h = h_prev ? load_first(h_prev + unit, count) : Vec<T>{};
        const Vec<T> d_n = d_h * (T(1) - z) * (T(1) - n * n);
        store(d_gate(r, 0, unit), d_n);
        store(d_gate(r, 1, unit), d_n * n_h * r_ * (T(1) - r_));
        store(d_gate(r, 2, unit), d_h * (h - n) * z * (T(1) - z));
        store(d_gate(r, 3, unit), d_n * r_);
        store(d_h_ + b * ldh_ + unit, d_h * z);
      } else if constexpr (kTwoPhases) {
        const Vec<T> r_ = load(kept(r, 0, unit)), z = load(kept(r, 1, unit)),
                     n = load(kept(r, 2, unit));
        const Vec<T> h = h_prev ? load_first(h_prev + unit, count) : Vec<T>{};
        store(d_gate(r, 0, unit), d_h * (T(1) - z) * (T(1) - n * n));
        store(d_gate(r, 2, unit), d_h * (h - n) * z * (T(1) - z));
        store(inner_ + r * Hp_ + unit, r_ * h);
        store(d_h_ + b * ldh_ + unit, d_h * z);
      } else {
        const Vec<T> h = load_first(y_(r) + unit, count);
        store(d_gate(r, 0, unit),
              cell == Cell::kRnnTanh ? d_h * (T(1) - h * h) : (h > T(0) ? d_h : Vec<T>{}));
      }
    }
  }

  // Reset before: from the gradient of r h (in d_inner) those of r and of h.
  void reset_gate(const Walk& walk, int64_t t, int64_t b, int64_t r, int64_t begin,
                  int64_t end) const {
    const T* h_prev = previous_h(walk, t, b, r);
    for (int64_t unit = begin; unit < end; unit += W) {
      const Vec<T> d_rh = load(d_inner_ + b * ldc_ + unit), r_ = load(kept(r, 0, unit));
      const Vec<T> h =
          h_prev ? load_first(h_prev + unit, std::max<int64_t>(H_ - unit, 0)) : Vec<T>{};
      store(d_gate(r, 1, unit), d_rh * h * r_ * (T(1) - r_));
      T* d_h = d_h_ + b * ldh_ + unit;
      store(d_h, load(d_h) + d_rh * r_);
    }
  }

  const Backward<T>& f_;
  const Sequence& s_;
  const int64_t H_, Hp_, P_size_;
  const bool projected_, few_;
  const PlainPanels<T> units_, states_;  // of padded hidden units, and of padded outputs
  const int64_t ldg_, ldh_, ldc_;
  T* d_gates_;        // (N, ldg): slots of padded units
  T* d_h_;            // (B, ldh) carried from step to step
  T* d_c_ = nullptr;  // (B, ldc)
  T* d_inner_ =
      nullptr;          // (B, ldc) of o tanh(c) before the projection, or of r h with reset before
  T* inner_ = nullptr;  // (N, Hp) o tanh(c), or r h
  T* d_out_ = nullptr;  // (N, ldh) of the projected output
  T* w_hr_ = nullptr;   // (unit panels, P, columns)
  T* w_hh_;             // (state panels, state slots * Hp, columns)
  T* w_hn_ = nullptr;   // (state panels, Hp, columns): reset before
  T* w_ih_;             // (input panels, input slots * Hp, columns)
  const Weights<const T>* w_;  // from here on: of the layer at hand
  const T* reserve_;
  Rows<const T> y_, d_y_;
  const T *h_0_, *c_0_;
};

// Blocks of rows that a panel of weights serves before the next: it stays in the second-level
// cache, the gate gradients of these rows in the third.
inline constexpr int64_t kInputBlocks = 8;

// This member's share of the gradient of a layer's input: pieces of a block of rows by a panel of
// features. `scratch` has room for one.
template <Cell cell, typename T>
static void input_gradients(const Backward<T>& f, LayerBackward<cell, T>* const* directions,
                            const LayerInput<T>& input, const Rows<T>& d_x, const Member& member,
                            T* scratch) {
  constexpr int64_t kColumns = kPlainColumns<T>;
  const int64_t N = f.sequence.N, I = input.size;
  const int64_t blocks = panels_of(N, kBlockRows), panels = PlainPanels<T>{I}.count();
  const auto share = member.share(blocks * panels);
  for (int64_t piece = share.begin; piece < share.end; ++piece) {
    const int64_t first = piece / (kInputBlocks * panels) * kInputBlocks;
    const int64_t group = std::min(kInputBlocks, blocks - first), place = piece - first * panels;
    const int64_t r = (first + place % group) * kBlockRows, column = place / group * kColumns;
    const int64_t count = std::min(kBlockRows, N - r), width = std::min(kColumns, I - column);
    const bool in_place = width == kColumns && !input.mask && !d_x.offset;
    T* const c = in_place ? d_x(r) + column : scratch;
    for (int64_t d = 0; d < f.D; ++d)
      directions[d]->input_gradient(place / group, r, count, I, d > 0, c,
                                    in_place ? d_x.stride : kColumns);
    for (int64_t m = 0; m < count && !in_place; ++m) {
      T* to = d_x(r + m) + column;
      const T* from = c + m * kColumns;
      const T* mask = input.mask ? input.mask(r + m) + column : nullptr;
      for (int64_t i = 0; i < width; ++i) to[i] = mask ? from[i] * mask[i] : from[i];
    }
  }
}

template <Cell cell, typename T>
static size_t backward_stack(const Backward<T>& f, const Member* member, void* workspace) {
  Arena arena(workspace);
  const Sequence& s = f.sequence;
  const int64_t max_input = largest_input(f);
  const int64_t width = f.D * f.P;
  LayerBackward<cell, T> direction0(f, arena, max_input);
  LayerBackward<cell, T> direction1 =
      f.D == 2 ? LayerBackward<cell, T>(f, arena, max_input) : direction0;
  LayerBackward<cell, T>* directions[2] = {&direction0, &direction1};
  // Gradients of the inner layers' outputs: the one read and the one written.
  T* inner[2] = {nullptr, nullptr};
  for (int64_t i = 0; i < std::min<int64_t>(f.L - 1, 2); ++i) inner[i] = arena.take<T>(s.N * width);
  const int64_t scratch_size = std::max(gradient_scratch<T>(), kBlockRows * kPlainColumns<T>);
  T* scratch = arena.take<T>(f.plan.threads * scratch_size);
  if (member == nullptr) return arena.used();
  scratch += member->rank * scratch_size;

  const T* kept = f.reserve + f.L * f.D * s.N * reserve_slots(cell) * padded_units(f.H);
  for (int64_t l = f.L - 1; l >= 0; --l) {
    const LayerInput<T> input = layer_input(f, l, l > 0 ? kept + (l - 1) * s.N * width : nullptr);
    const bool top = l == f.L - 1;
    const Rows<const T> y = top ? f.y : Rows<const T>{kept + l * s.N * width, nullptr, width};
    const Rows<const T> d_y = top ? f.d_y : Rows<const T>{inner[l % 2], nullptr, width};
    for (int64_t d = 0; d < f.D; ++d) {
      Member group;
      directions[d]->bind(l, d, y, d_y);
      if (join_direction(f.D, d, *member, group)) directions[d]->run(l, d, group);
    }
    const Rows<T> d_x = l == 0 ? f.d_x : Rows<T>{inner[(l - 1) % 2], nullptr, width};
    if (d_x)
      for (int64_t d = 0; d < f.D; ++d)
        directions[d]->pack_input_weights(l, d, input.size, *member);
    member->sync();
    for (int64_t d = 0; d < f.D; ++d)
      directions[d]->weight_gradients(l, d, input, *member, scratch);
    if (d_x) input_gradients(f, directions, input, d_x, *member, scratch);
    member->sync();
  }
  return arena.used();
}
