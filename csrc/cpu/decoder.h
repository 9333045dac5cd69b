// All steps of a decoder that attends while its cells run (csrc/decoder.h). As in recurrence.h, a
// member of the team carries rows of its own through all steps and waits for nobody.

// The matrices that a step multiplies by, or their transposes, of which backward reads the rows.
template <Cell cell, typename T>
struct DecoderMatrices {
  static constexpr bool kTwoPhases = cell == Cell::kGruResetBefore;
  static constexpr int64_t G = num_gates(cell);

  struct Layer {
    PackedMatrix<T> w_in, w_hh, w_hn;
  };
  std::vector<Layer> layers;
  PackedMatrix<T> w_query, w_out;

  // Takes their memory.
  DecoderMatrices(const Decoder<T>& d, Arena& arena, bool backward,
                  WeightType type = WeightType::kFull) {
    // For products with weights (N, K): of rows of K features forward, of N backward.
    const auto matrix = [&](int64_t K, int64_t N) {
      return backward ? PackedMatrix<T>(arena, N, K, type) : PackedMatrix<T>(arena, K, N, type);
    };
    for (int64_t l = 0; l < d.L; ++l) {
      Layer layer;
      if (l > 0 || d.feeds()) layer.w_in = matrix(l == 0 ? d.F : d.H, G * d.H);
      layer.w_hh = matrix(d.H, (kTwoPhases ? 2 : G) * d.H);
      if (kTwoPhases) layer.w_hn = matrix(d.H, d.H);
      layers.push_back(layer);
    }
    if (d.projects()) w_query = matrix(d.H, d.A);
    if (d.combines()) w_out = matrix(d.C + d.H, d.O);
  }

  // Calls with each, the weights that it holds, and how far apart their rows are.
  template <typename Call>
  void each(const Decoder<T>& d, const Call& call) {
    for (int64_t l = 0; l < d.L; ++l) {
      if (l > 0 || d.feeds()) call(layers[l].w_in, d.w_in[l], l == 0 ? d.ld_feed : d.H);
      call(layers[l].w_hh, d.w_hh[l], d.H);
      if (kTwoPhases) call(layers[l].w_hn, d.w_hh[l] + 2 * d.H * d.H, d.H);
    }
    if (d.projects()) call(w_query, d.w_query, d.H);
    if (d.combines()) call(w_out, d.w_out, d.C + d.H);
  }

  // Scratch, in elements, for products of so many rows.
  int64_t scratch_size(int64_t rows) const {
    int64_t most = std::max(w_query.scratch_size(rows), w_out.scratch_size(rows));
    for (const Layer& layer : layers)
      for (const PackedMatrix<T>* matrix : {&layer.w_in, &layer.w_hh, &layer.w_hn})
        most = std::max(most, matrix->scratch_size(rows));
    return most;
  }
};

// The state that a layer carries, or its gradient: (B, ld).
template <typename T>
struct DecoderLayer {
  T *h, *c;
};

// What forward and backward, whose matrices are the transposes, have alike.
template <Cell cell, typename T, bool backward>
class DecoderSteps {
 public:
  using Units = VectorUnits<T>;
  static constexpr bool kLstm = cell == Cell::kLstm;
  static constexpr bool kTwoPhases = cell == Cell::kGruResetBefore;
  static constexpr int64_t G = num_gates(cell), kSlots = kept_slots(cell);

 protected:
  // With the matrices that were packed before, or null: those of `d` are packed in the call.
  DecoderSteps(const Decoder<T>& d, const Plan& plan, const Member* member, void* workspace,
               const DecoderMatrices<cell, T>* packed)
      : d_(d),
        plan_(plan),
        member_(member),
        arena_(workspace),
        most_(panels_of(d.B, plan.threads)),
        few_(d.B <= kFewTileRows),
        matrices_(packed ? *packed : DecoderMatrices<cell, T>(d, arena_, backward)) {
    cells_.cell = cell;
    cells_.T_ = d.T_, cells_.B = d.B, cells_.H = d.H, cells_.P = d.H, cells_.N = d.T_ * d.B;
    cells_.length = d.length;
    for (int64_t l = 0; l < d.L; ++l)
      layers_.push_back({all_rows(d.H), kLstm ? all_rows(d.H) : nullptr});
    scratch_ = per_member(matrices_.scratch_size(most_));
  }

  // This member's part of packing all matrices.
  void pack_all() {
    matrices_.each(d_, [&](PackedMatrix<T>& matrix, const T* w, int64_t ld) {
      if (backward) return matrix.pack(w, *member_);
      const auto share = member_->share(matrix.panels());
      matrix.pack_transpose(w, share.begin, share.end, ld);
    });
  }

  // Every other step goes through the panels of its matrices from the last on: a cache that holds a
  // part of them has the right one then.
  void turn() { turned_ = !turned_; }

  // c (rows of the step, ldc) = a times a matrix, or c plus that.
  void multiply(const PackedMatrix<T>& by, const T* a, int64_t lda, T* c, int64_t ldc) const {
    form({&by, count_, few_, a, lda, c, ldc, turned_, nullptr, 0}, scratch_);
  }
  void accumulate(const PackedMatrix<T>& by, const T* a, int64_t lda, T* c, int64_t ldc) const {
    form({&by, count_, few_, a, lda, c, ldc, turned_, c, ldc}, scratch_);
  }
  void form(const SharedProduct<T>& product, T* scratch) const {
    if (helpers_ != nullptr) return helpers_->form(product, scratch);
    product.form({0, product.by->panels()}, scratch);
  }

  template <typename N = T>
  N* per_member(int64_t count) {
    return own_part<N>(arena_, plan_, member_, count);
  }
  // A row for each of the member's, and one for each sequence.
  T* own_rows(int64_t columns) { return per_member(most_ * row_stride(columns)); }
  T* all_rows(int64_t columns) { return arena_.template take<T>(d_.B * row_stride(columns)); }

  // What the step's cells are to layer l.
  Recurrence<T> cells_of(int64_t l) const {
    Recurrence<T> cells = cells_;
    cells.b_hn = row_of(d_.b_hn, l, d_.H);
    return cells;
  }

  // Step t of layer l in an array (L, N, width).
  template <typename N>
  N* layer_row(N* matrix, int64_t l, const RunningRow& running, int64_t width) const {
    return row_of(matrix, l * cells_.N + running.at.row, width);
  }

  Attention<T> attention_of(const RunningRow& running, const T* query, const T* coverage) const {
    const int64_t b = running.at.b, m = d_.memory ? d_.memory[b] : b;
    return {d_,
            d_.source ? d_.source[m] : d_.S,
            query,
            d_.keys + m * d_.S * d_.A,
            d_.values + m * d_.S * d_.C,
            coverage};
  }

  template <typename Body>
  void own_sequences(const Body& body) const {
    for (int64_t b = member_->rank; b < d_.B; b += member_->size) body(b);
  }

  template <typename Body>
  void each(const Body& body) const {
    for (int64_t j = 0; j < count_; ++j) body(rows_[j]);
  }

  const Decoder<T>& d_;
  const Plan& plan_;
  const Member* const member_;
  Arena arena_;
  const int64_t most_;  // rows of a member
  bool few_;
  DecoderMatrices<cell, T> matrices_;
  Recurrence<T> cells_{};
  std::vector<DecoderLayer<T>> layers_;
  T* scratch_;
  const Helpers<T>* helpers_ = nullptr;
  RunningRow* rows_ = nullptr;
  int64_t count_ = 0;  // of the step
  bool turned_ = false;
  Units units_;
};

// ---- forward ------------------------------------------------------------------------------------

template <Cell cell, typename T>
class DecoderForwardSteps : protected DecoderSteps<cell, T, false> {
  using Base = DecoderSteps<cell, T, false>;
  using Base::G, Base::kSlots, Base::kLstm, Base::kTwoPhases;
  using Base::member_, Base::cells_, Base::units_, Base::most_, Base::matrices_;
  using Units = typename Base::Units;

 protected:
  using Base::arena_, Base::few_, Base::layers_, Base::rows_, Base::count_;

 public:
  DecoderForwardSteps(const Planned<DecoderForward<T>>& f, const Member* member, void* workspace,
                      const DecoderMatrices<cell, T>* packed = nullptr)
      : Base(f, f.plan, member, workspace, packed), f_(f) {
    feed_ = this->all_rows(f.F);
    top_ = this->all_rows(f.H);
    coverage_ = f.covers() ? this->all_rows(f.S) : nullptr;
    gates_ = this->own_rows(G * f.H), sums_ = this->own_rows(G * f.H);
    h_in_ = this->own_rows(f.H), z_ = this->own_rows(f.H);
    own_feed_ = this->own_rows(f.F);
    inner_ = kTwoPhases ? this->own_rows(f.H) : nullptr;
    candidate_ = kTwoPhases ? this->own_rows(f.H) : nullptr;
    query_ = f.projects() ? this->own_rows(f.A) : nullptr;
    joined_ = this->own_rows(f.C + f.H);
    out_ = f.combines() ? this->own_rows(f.O) : nullptr;
    rows_ = this->template per_member<RunningRow>(most_);
  }

  size_t workspace() const { return arena_.used(); }

  void run() {
    begin();
    for (int64_t t = 0; t < f_.T_; ++t) {
      count_ = running_rows(cells_, *member_, t, rows_, [&](int64_t row) { clear(row); });
      run_step();
    }
    end();
  }

 protected:
  // All of a step, of the rows at hand.
  void run_step() {
    this->turn();
    if (f_.attends() && f_.query_first) attend_all();
    for (int64_t l = 0; l < f_.L; ++l) step(l);
    this->each([&](const RunningRow& r) {
      const T* z = z_ + r.j * ld_h_;
      std::copy_n(z, f_.H, top_ + r.at.b * ld_h_);
      if (f_.z != nullptr) std::copy_n(z, f_.H, f_.z + r.at.row * f_.H);
    });
    if (f_.attends() && !f_.query_first) attend_all();
    combine();
  }

 private:
  void begin() {
    this->pack_all();
    for (int64_t l = 0; l < f_.L; ++l) {
      const DecoderLayer<T>& layer = layers_[l];
      this->own_sequences([&](int64_t b) {
        fill_state(row_of(f_.h_0, l, f_.B * f_.H), b, f_.H, layer.h + b * ld_h_);
        if (kLstm) fill_state(row_of(f_.c_0, l, f_.B * f_.H), b, f_.H, layer.c + b * ld_h_);
      });
    }
    this->own_sequences([&](int64_t b) {
      fill_state(f_.feed_0, b, f_.F, feed_ + b * ld_f_);
      fill_state(row_of(f_.h_0, f_.L - 1, f_.B * f_.H), b, f_.H, top_ + b * ld_h_);
      if (f_.covers()) fill_state(f_.coverage_0, b, f_.S, coverage_ + b * ld_s_);
    });
    member_->sync();
  }

  void end() {
    this->own_sequences([&](int64_t b) {
      for (int64_t l = 0; l < f_.L; ++l) {
        std::copy_n(layers_[l].h + b * ld_h_, f_.H, f_.h_n + (l * f_.B + b) * f_.H);
        if (kLstm) std::copy_n(layers_[l].c + b * ld_h_, f_.H, f_.c_n + (l * f_.B + b) * f_.H);
      }
      std::copy_n(feed_ + b * ld_f_, f_.F, f_.feed_n + b * f_.F);
      if (f_.covers()) std::copy_n(coverage_ + b * ld_s_, f_.S, f_.coverage_n + b * f_.S);
    });
  }

  // What a step leaves where no step is.
  void clear(int64_t row) {
    clear_row(f_.z, row, f_.H);
    clear_row(f_.context, row, f_.C);
    clear_row(f_.alignments, row, f_.heads * f_.S);
    clear_row(f_.attentional, row, f_.O);
    clear_row(f_.kept.query, row, f_.A);
    clear_row(f_.kept.coverage, row, f_.S);
    for (int64_t l = 0; l < f_.L; ++l) {
      const int64_t at = l * cells_.N + row;
      clear_row(f_.kept.step, at, kSlots * f_.H);
      clear_row(f_.kept.h_in, at, f_.H);
      clear_row(f_.kept.inner, at, f_.H);
      if (l + 1 < f_.L) clear_row(f_.kept.below, at, f_.H);
    }
  }

  // Layer l: from z_, or the feed, to z_.
  void step(int64_t l) {
    const int64_t H = f_.H, width = G * H;
    const DecoderLayer<T>& layer = layers_[l];
    const auto& by = matrices_.layers[l];
    const Recurrence<T> cells = this->cells_of(l);
    const T* const bias = row_of(f_.bias, l, width);
    this->each([&](const RunningRow& r) {
      T* const gates = gates_ + r.j * ld_g_;
      if (l == 0) {
        std::copy_n(feed_ + r.at.b * ld_f_, f_.F, own_feed_ + r.j * ld_f_);
        add_rows(width, f_.x + r.at.row * width, bias, gates);
      } else {
        T* const z = z_ + r.j * ld_h_;
        if (f_.dropout_mask != nullptr)
          multiply_rows(H, this->layer_row(f_.dropout_mask, l - 1, r, H), z);
        if (f_.kept.below != nullptr)
          std::copy_n(z, H, this->layer_row(f_.kept.below, l - 1, r, H));
        add_rows(width, bias, static_cast<const T*>(nullptr), gates);
      }
    });
    if (l > 0) {
      this->accumulate(by.w_in, z_, ld_h_, gates_, ld_g_);
    } else if (f_.feeds()) {
      this->accumulate(by.w_in, own_feed_, ld_f_, gates_, ld_g_);
    }
    const auto row_at = [&](const RunningRow& r) {
      ForwardRow<Units> row{};
      row.x = gates_ + r.j * ld_g_;
      row.sum = sums_ + r.j * ld_g_;
      row.candidate = row_of(candidate_, r.j, ld_h_);
      row.h = layer.h + r.at.b * ld_h_;
      row.c = row_of(layer.c, r.at.b, ld_h_);
      row.h_in = h_in_ + r.j * ld_h_;
      row.inner = row_of(inner_, r.j, ld_h_);
      row.y = top_ + r.at.b * ld_h_;  // until it is added to what is below
      row.kept_step = this->layer_row(f_.kept.step, l, r, kSlots * H);
      row.kept_h_in = this->layer_row(f_.kept.h_in, l, r, H);
      row.kept_inner = this->layer_row(f_.kept.inner, l, r, H);
      return row;
    };
    this->each([&](const RunningRow& r) { row_enter(units_, cells, r.at, row_at(r)); });
    this->multiply(by.w_hh, h_in_, ld_h_, sums_, ld_g_);
    if constexpr (kTwoPhases) {
      this->each([&](const RunningRow& r) { row_reset(units_, cells, row_at(r)); });
      this->multiply(by.w_hn, inner_, ld_h_, candidate_, ld_h_);
    }
    const bool adds = f_.residual > 0 && l >= f_.residual;
    this->each([&](const RunningRow& r) {
      const ForwardRow<Units> row = row_at(r);
      row_forward<Units, cell>(units_, cells, r.at, row);
      T* const z = z_ + r.j * ld_h_;
      add_rows(H, static_cast<const T*>(row.y), adds ? z : nullptr, z);
    });
  }

  void attend_all() {
    const int64_t ld_q = f_.projects() ? row_stride(f_.A) : ld_h_;
    if (f_.query_first)
      this->each(
          [&](const RunningRow& r) { std::copy_n(top_ + r.at.b * ld_h_, f_.H, z_ + r.j * ld_h_); });
    T* const query = f_.projects() ? query_ : z_;
    if (f_.projects()) this->multiply(matrices_.w_query, z_, ld_h_, query_, ld_q);
    this->each([&](const RunningRow& r) {
      const int64_t row = r.at.row;
      const T* const own = query + r.j * ld_q;
      T* const coverage = row_of(coverage_, r.at.b, ld_s_);
      T* const alignments = f_.alignments + row * f_.heads * f_.S;
      T* const context = f_.context + row * f_.C;
      if (f_.kept.query != nullptr) std::copy_n(own, f_.A, f_.kept.query + row * f_.A);
      if (f_.kept.coverage != nullptr && f_.covers())
        std::copy_n(coverage, f_.S, f_.kept.coverage + row * f_.S);
      attend(this->attention_of(r, own, coverage), alignments, context);
      if (f_.covers()) add_rows(f_.S, static_cast<const T*>(coverage), alignments, coverage);
      if (f_.feeds_context()) std::copy_n(context, f_.C, feed_ + r.at.b * ld_f_);
    });
  }

  void combine() {
    if (!f_.combines()) return;
    const int64_t ld = row_stride(f_.C + f_.H), ld_o = row_stride(f_.O);
    this->each([&](const RunningRow& r) {
      T* const joined = joined_ + r.j * ld;
      std::copy_n(f_.context + r.at.row * f_.C, f_.C, joined);
      std::copy_n(z_ + r.j * ld_h_, f_.H, joined + f_.C);
      add_rows(f_.O, f_.b_out, static_cast<const T*>(nullptr), out_ + r.j * ld_o);
    });
    this->accumulate(matrices_.w_out, joined_, ld, out_, ld_o);
    this->each([&](const RunningRow& r) {
      T* const attentional = f_.attentional + r.at.row * f_.O;
      units_.units(f_.O, [&](int64_t u, int64_t left) {
        units_.store(attentional, u, left, tanh<T>(units_.load(out_ + r.j * ld_o, u, left)));
      });
      if (!f_.feeds_context()) std::copy_n(attentional, f_.O, feed_ + r.at.b * ld_f_);
    });
  }

  const Planned<DecoderForward<T>>& f_;
  T *h_in_, *own_feed_, *inner_, *candidate_;  // of the member's rows, as all below
  T *query_, *joined_, *out_;

 protected:
  T *feed_, *top_, *coverage_;  // of all sequences
  T *gates_, *sums_, *z_;       // of the member's rows
  const int64_t ld_h_ = row_stride(f_.H), ld_f_ = row_stride(f_.F), ld_s_ = row_stride(f_.S);
  const int64_t ld_g_ = row_stride(G * f_.H);
};

// ---- backward -----------------------------------------------------------------------------------

template <Cell cell, typename T>
class DecoderBackwardSteps : DecoderSteps<cell, T, true> {
  using Base = DecoderSteps<cell, T, true>;
  using Base::G, Base::kSlots, Base::kLstm, Base::kTwoPhases;
  using Base::member_, Base::arena_, Base::layers_, Base::rows_, Base::count_;
  using Base::units_, Base::cells_, Base::most_, Base::matrices_;
  using Units = typename Base::Units;

 public:
  DecoderBackwardSteps(const Planned<DecoderBackward<T>>& f, const Member* member, void* workspace)
      : Base(f, f.plan, member, workspace, nullptr), f_(f) {
    d_feed_ = this->all_rows(f.F);
    d_top_ = this->all_rows(f.H);
    d_coverage_ = f.covers() ? this->all_rows(f.S) : nullptr;
    d_gates_ = this->own_rows(G * f.H);
    d_z_ = this->own_rows(f.H), d_h_in_ = this->own_rows(f.H), work_ = this->own_rows(f.H);
    d_below_ = this->own_rows(f.H > f.F ? f.H : f.F);
    d_reset_ = kTwoPhases ? this->own_rows(f.H) : nullptr;
    d_query_ = f.projects() ? this->own_rows(f.A) : nullptr;
    d_joined_ = f.combines() ? this->own_rows(f.C + f.H) : nullptr;
    d_out_ = f.combines() ? this->own_rows(f.O) : nullptr;
    energy_ = f.additive ? this->template per_member<T>(f.S) : nullptr;
    rows_ = this->template per_member<RunningRow>(most_);
  }

  size_t workspace() const { return arena_.used(); }

  void run() {
    begin();
    for (int64_t t = f_.T_ - 1; t >= 0; --t) {
      this->turn();
      count_ = running_rows(cells_, *member_, t, rows_, [&](int64_t row) { clear(row); });
      // What comes to z of the last layer from outside, and from the query of the step after.
      this->each([&](const RunningRow& r) {
        T* const d_top = d_top_ + r.at.b * ld_h_;
        add_rows(f_.H, static_cast<const T*>(d_top), row_of(f_.d_z, r.at.row, f_.H),
                 d_z_ + r.j * ld_h_);
        std::fill_n(d_top, f_.H, T(0));
      });
      if (!f_.query_first) {
        uncombine();
        unattend();
      }
      for (int64_t l = f_.L - 1; l >= 0; --l) unstep(l);
      if (f_.query_first) unattend();
    }
    end();
  }

 private:
  void begin() {
    this->pack_all();
    for (int64_t l = 0; l < f_.L; ++l) {
      const DecoderLayer<T>& layer = layers_[l];
      this->own_sequences([&](int64_t b) {
        fill_state(row_of(f_.d_h_n, l, f_.B * f_.H), b, f_.H, layer.h + b * ld_h_);
        if (kLstm) fill_state(row_of(f_.d_c_n, l, f_.B * f_.H), b, f_.H, layer.c + b * ld_h_);
      });
    }
    this->own_sequences([&](int64_t b) {
      fill_state(f_.d_feed_n, b, f_.F, d_feed_ + b * ld_f_);
      std::fill_n(d_top_ + b * ld_h_, f_.H, T(0));
      if (f_.covers()) fill_state(f_.d_coverage_n, b, f_.S, d_coverage_ + b * ld_s_);
      clear_row(f_.d_keys, b, f_.S * f_.A);
      clear_row(f_.d_v, b, f_.A);
      clear_row(f_.d_w_coverage, b, f_.A);
    });
    member_->sync();
  }

  void end() {
    this->own_sequences([&](int64_t b) {
      for (int64_t l = 0; l < f_.L; ++l) {
        T* const d_h = f_.d_h_0 + (l * f_.B + b) * f_.H;
        const T* const d_top = l + 1 == f_.L ? d_top_ + b * ld_h_ : nullptr;
        add_rows(f_.H, static_cast<const T*>(layers_[l].h + b * ld_h_), d_top, d_h);
        if (kLstm) std::copy_n(layers_[l].c + b * ld_h_, f_.H, f_.d_c_0 + (l * f_.B + b) * f_.H);
      }
      std::copy_n(d_feed_ + b * ld_f_, f_.F, f_.d_feed_0 + b * f_.F);
      if (f_.covers()) std::copy_n(d_coverage_ + b * ld_s_, f_.S, f_.d_coverage_0 + b * f_.S);
    });
  }

  void clear(int64_t row) {
    clear_row(f_.d_query, row, f_.A);
    clear_row(f_.d_energy, row, f_.heads * f_.S);
    clear_row(f_.whole_context, row, f_.C);
    clear_row(f_.d_out, row, f_.O);
    for (int64_t l = 0; l < f_.L; ++l) {
      clear_row(f_.d_gates, l * cells_.N + row, G * f_.H);
      clear_row(f_.d_sum, l * cells_.N + row, G * f_.H);
    }
  }

  // To d_z_ from the attentional vector, and to whole_context, which the feed's then joins.
  void uncombine() {
    if (!f_.combines()) return;
    const int64_t ld = row_stride(f_.C + f_.H), ld_o = row_stride(f_.O);
    this->each([&](const RunningRow& r) {
      const T* const value = f_.attentional + r.at.row * f_.O;
      const T* const from = row_of(f_.d_attentional, r.at.row, f_.O);
      T* const d_feed = d_feed_ + r.at.b * ld_f_;
      units_.units(f_.O, [&](int64_t u, int64_t left) {
        const Vec<T> s = units_.load(value, u, left);
        Vec<T> d = units_.load(d_feed, u, left);
        if (from != nullptr) d += units_.load(from, u, left);
        d = d * (T(1) - s * s);
        units_.store(d_out_ + r.j * ld_o, u, left, d);
        units_.store(f_.d_out + r.at.row * f_.O, u, left, d);
      });
      std::fill_n(d_feed, f_.F, T(0));
    });
    this->multiply(matrices_.w_out, d_out_, ld_o, d_joined_, ld);
    this->each([&](const RunningRow& r) {
      T* const d_z = d_z_ + r.j * ld_h_;
      add_rows(f_.H, static_cast<const T*>(d_joined_ + r.j * ld + f_.C), d_z, d_z);
    });
  }

  // To d_z_, or d_top_ with the query first.
  void unattend() {
    const int64_t ld_q = f_.projects() ? row_stride(f_.A) : ld_h_;
    this->each([&](const RunningRow& r) {
      const int64_t row = r.at.row, b = r.at.b;
      T* const context = f_.whole_context + row * f_.C;
      const T* const given = row_of(f_.d_context, row, f_.C);
      if (f_.combines()) {
        add_rows(f_.C, static_cast<const T*>(d_joined_ + r.j * row_stride(f_.C + f_.H)), given,
                 context);
      } else {
        T* const d_feed = d_feed_ + b * ld_f_;
        add_rows(f_.C, static_cast<const T*>(d_feed), given, context);
        std::fill_n(d_feed, f_.F, T(0));
      }
      T* const query = f_.d_query + row * f_.A;
      const AttentionGradients<T> g{context,
                                    row_of(f_.d_alignments, row, f_.heads * f_.S),
                                    row_of(d_coverage_, b, ld_s_),
                                    query,
                                    f_.additive ? energy_ : f_.d_energy + row * f_.heads * f_.S,
                                    row_of(f_.d_keys, b, f_.S * f_.A),
                                    row_of(f_.d_v, b, f_.A),
                                    row_of(f_.d_w_coverage, b, f_.A)};
      attend_backward(this->attention_of(r, f_.kept.query + row * f_.A,
                                         f_.covers() ? f_.kept.coverage + row * f_.S : nullptr),
                      f_.alignments + row * f_.heads * f_.S, g);
      if (f_.projects()) std::copy_n(query, f_.A, d_query_ + r.j * ld_q);
    });
    if (f_.projects()) this->multiply(matrices_.w_query, d_query_, ld_q, work_, ld_h_);
    this->each([&](const RunningRow& r) {
      T* const to = f_.query_first ? d_top_ + r.at.b * ld_h_ : d_z_ + r.j * ld_h_;
      const T* const from = f_.projects() ? work_ + r.j * ld_h_ : f_.d_query + r.at.row * f_.A;
      add_rows(f_.H, from, to, to);
    });
  }

  // Layer l: from d_z_ to that of the layer below, or to d_feed_.
  void unstep(int64_t l) {
    const int64_t H = f_.H, width = G * H;
    const DecoderLayer<T>& layer = layers_[l];
    const auto& by = matrices_.layers[l];
    const Recurrence<T> cells = this->cells_of(l);
    T* const d_sum = f_.d_sum != nullptr ? f_.d_sum : f_.d_gates;
    const auto row_at = [&](const RunningRow& r) {
      BackwardRow<Units> row{};
      row.d_h = layer.h + r.at.b * ld_h_;
      row.d_c = row_of(layer.c, r.at.b, ld_h_);
      row.work = work_ + r.j * ld_h_;
      row.d_reset_h = row_of(d_reset_, r.j, ld_h_);
      row.d_h_in = d_h_in_ + r.j * ld_h_;
      row.d_y = d_z_ + r.j * ld_h_;
      row.d_x = this->layer_row(f_.d_gates, l, r, width);
      row.d_sum = this->layer_row(f_.d_sum, l, r, width);
      row.kept_step = this->layer_row(f_.kept.step, l, r, kSlots * H);
      row.kept_h_in = this->layer_row(f_.kept.h_in, l, r, H);
      return row;
    };
    const auto gather = [&](const T* matrix, int64_t from, int64_t columns) {
      this->each([&](const RunningRow& r) {
        std::copy_n(this->layer_row(matrix, l, r, width) + from, columns, d_gates_ + r.j * ld_g_);
      });
    };
    this->each([&](const RunningRow& r) {
      row_return(units_, cells, r.at, row_at(r));
      row_backward<Units, cell>(units_, cells, r.at, row_at(r));
    });
    if constexpr (kTwoPhases) {
      gather(d_sum, 2 * H, H);
      this->multiply(by.w_hn, d_gates_, ld_g_, d_reset_, ld_h_);
      this->each([&](const RunningRow& r) { row_reset_backward(units_, cells, row_at(r)); });
    }
    gather(d_sum, 0, kTwoPhases ? 2 * H : width);
    this->multiply(by.w_hh, d_gates_, ld_g_, d_h_in_, ld_h_);
    this->each([&](const RunningRow& r) { row_enter_backward(units_, cells, r.at, row_at(r)); });
    gather(f_.d_gates, 0, width);
    const int64_t ld = row_stride(H > f_.F ? H : f_.F);
    this->multiply(by.w_in, d_gates_, ld_g_, d_below_, ld);
    const bool adds = f_.residual > 0 && l >= f_.residual;
    this->each([&](const RunningRow& r) {
      const T* const d_below = d_below_ + r.j * ld;
      if (l == 0) {
        T* const d_feed = d_feed_ + r.at.b * ld_f_;
        add_rows(f_.F, d_below, d_feed, d_feed);
        return;
      }
      T* const d_z = d_z_ + r.j * ld_h_;
      add_rows(H, d_below, adds ? d_z : nullptr, d_z);
      if (f_.dropout_mask != nullptr)
        multiply_rows(H, this->layer_row(f_.dropout_mask, l - 1, r, H), d_z);
    });
  }

  const Planned<DecoderBackward<T>>& f_;
  T *d_feed_, *d_top_, *d_coverage_;                           // of all sequences
  T *d_gates_, *d_z_, *d_h_in_, *work_, *d_below_, *d_reset_;  // of the member's rows
  T *d_query_, *d_joined_, *d_out_, *energy_;
  const int64_t ld_h_ = row_stride(f_.H), ld_f_ = row_stride(f_.F), ld_s_ = row_stride(f_.S);
  const int64_t ld_g_ = row_stride(G * f_.H);
};

// The bytes of workspace that a call needs; runs it where there is a member to do so.
template <class Steps, typename Call>
static size_t run_steps(const Call& f, const Member* member, void* workspace) {
  Steps steps(f, member, workspace);
  if (member != nullptr) steps.run();
  return steps.workspace();
}
