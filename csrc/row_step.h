// One step of one sequence of every cell with all its variants, forward and backward: the one place
// where they are described, for both devices.
//
// Included by csrc/cpu/isa.h inside the namespace of an instruction set, and by csrc/cuda inside
// its own, each with ROW_STEP as what its functions are declared with. `M` is the machine that goes
// through the units of a row: on a CPU vector after vector, on a GPU the threads of a block.
//   M::T, M::A        numbers as stored, and as calculated and carried from step to step
//   M::V              what one turn of units() calculates with: a vector of A, or an A
//   units(n, body)    body(u, left) for units u of n; `left` are those from u on, and every loop
//                     over the same n gives a unit to the same thread
//   load, store       at unit u, no more than `left` of them; load gives zeros behind
//   total(v)          the sum over all units of a row, to everyone
//   first(v, left)    v with zeros behind
//   sigmoid, tanh, hard_sigmoid
//   noise(...)        see Drawn
//
// Equations, papers and what is returned to Python: seq2seq_ext/reference.py.

constexpr double kNormEpsilon = 1e-5;

// Which step, and what is drawn in it: of every unit the share of the old value that it keeps, and
// what its candidate is multiplied by.
struct Place {
  int64_t row;
  int64_t t, b;
  bool reset;
};

template <class M>
struct Drawn {
  typename M::V keep_h, keep_c, candidate;
};

template <class M>
struct Moments {
  typename M::A mean, scale;
};

// ---- what several cells share -------------------------------------------------------------------

template <class M>
ROW_STEP typename M::V gate(const M&, bool hard, typename M::V sum) {
  return hard ? M::hard_sigmoid(sum) : M::sigmoid(sum);
}

// The derivative of a gate, from its value.
template <class M>
ROW_STEP typename M::V gate_slope(const M&, bool hard, typename M::V s) {
  using V = typename M::V;
  using A = typename M::A;
  if (!hard) return s * (A(1) - s);
  const V zero{}, one = zero + A(1), inside = s < one ? one / A(6) : zero;
  return s > zero ? inside : zero;
}

template <class M>
ROW_STEP typename M::V clipped(const M&, double limit, typename M::V v) {
  using V = typename M::V;
  if (limit == 0) return v;
  const V high = V{} + typename M::A(limit);
  v = v > high ? high : v;
  return v < -high ? -high : v;  // a NaN stays one
}

// The gradient of that, from the value behind it.
template <class M>
ROW_STEP typename M::V through_clip(const M&, double limit, typename M::V value,
                                    typename M::V gradient) {
  using V = typename M::V;
  if (limit == 0) return gradient;
  const V zero{}, high = zero + typename M::A(limit);
  gradient = value < high ? gradient : zero;
  return value > -high ? gradient : zero;
}

// Of gates [first, last) of a row of sums, H to a gate.
template <class M, typename Sums>
ROW_STEP Moments<M> moments_of(const M& m, const Sums* sums, int64_t H, int first, int last) {
  using V = typename M::V;
  using A = typename M::A;
  const A count = static_cast<A>((last - first) * H);
  V sum{};
  m.units(H, [&](int64_t u, int64_t left) {
    for (int g = first; g < last; ++g) sum += m.load(sums + g * H, u, left);
  });
  const A mean = m.total(sum) / count;
  V squares{};
  m.units(H, [&](int64_t u, int64_t left) {
    for (int g = first; g < last; ++g) {
      const V d = m.first(m.load(sums + g * H, u, left) - mean, left);
      squares += d * d;
    }
  });
  return {mean, M::inverse_root(m.total(squares) / count + A(kNormEpsilon))};
}

// Turns gradients of normalized and scaled sums, in `d`, into those of the sums, gates [first,
// last).
template <class M>
ROW_STEP void through_norm(const M& m, const typename M::T* gain, const typename M::T* normalized,
                           typename M::A scale, int64_t H, int first, int last, typename M::T* d) {
  using V = typename M::V;
  using A = typename M::A;
  V sum{}, product{};
  m.units(H, [&](int64_t u, int64_t left) {
    for (int g = first; g < last; ++g) {
      const V v = m.load(d + g * H, u, left) * m.load(gain + g * H, u, left);
      sum += v;
      product += v * m.load(normalized + g * H, u, left);
    }
  });
  const A count = static_cast<A>((last - first) * H);
  const A mean = m.total(sum) / count, along = m.total(product) / count;
  m.units(H, [&](int64_t u, int64_t left) {
    for (int g = first; g < last; ++g) {
      const V v = m.load(d + g * H, u, left) * m.load(gain + g * H, u, left);
      m.store(d + g * H, u, left, (v - mean - m.load(normalized + g * H, u, left) * along) * scale);
    }
  });
}

// ---- forward ------------------------------------------------------------------------------------

// Where one row of a step lies. What nobody keeps is null.
template <class M>
struct ForwardRow {
  using T = typename M::T;
  using A = typename M::A;
  const T* x;          // (G*H)
  const T* sum;        // (G*H) W_hh h_in; with reset before (2H)
  const T* candidate;  // (H) reset before only: W_hn (r h_in)
  const T* out;        // (P) W_hr inner
  A* h;                // (P) state
  A* c;                // (H) state, has_cell() only
  A* work;             // (H)
  T* h_in;             // (P) for the product
  T* inner;            // (H) for the second product
  T *y, *cells;
  T *kept_step, *kept_h_in, *kept_inner, *kept_out, *kept_sums, *kept_moments;
};

// The state that enters the step, and what W_hh multiplies.
template <class M>
ROW_STEP void row_enter(const M& m, const Recurrence<typename M::T>& a, const Place& at,
                        const ForwardRow<M>& r) {
  using V = typename M::V;
  m.units(a.P, [&](int64_t u, int64_t left) {
    V h = m.load(r.h, u, left);
    if (at.reset) m.store(r.h, u, left, h = V{});
    if (a.h_mask != nullptr) h = h * m.load(a.h_mask + at.b * a.P, u, left);
    m.store(r.h_in, u, left, h);
    if (r.kept_h_in != nullptr) m.store(r.kept_h_in, u, left, h);
  });
  if (at.reset && r.c != nullptr)
    m.units(a.H, [&](int64_t u, int64_t left) { m.store(r.c, u, left, V{}); });
}

// A unit's new h, or projected h: into the state and the output.
template <class M>
ROW_STEP void leave(const M& m, const Drawn<M>& drawn, const ForwardRow<M>& r, int64_t u,
                    int64_t left, typename M::V h) {
  using A = typename M::A;
  const typename M::V old = m.load(r.h, u, left);
  h = (A(1) - drawn.keep_h) * h + drawn.keep_h * old;  // exact where it is 0 or 1
  m.store(r.h, u, left, h);
  m.store(r.y, u, left, h);
}

// The same for a whole row of projected ones.
template <class M>
ROW_STEP void row_leave(const M& m, const Recurrence<typename M::T>& a, const Place& at,
                        const ForwardRow<M>& r) {
  m.units(a.P, [&](int64_t u, int64_t left) {
    const auto h = clipped(m, a.proj_clip, m.load(r.out, u, left));
    if (r.kept_out != nullptr) m.store(r.kept_out, u, left, h);
    leave(m, m.noise(a.noise, at.t, at.b, u), r, u, left, h);
  });
}

// Recurrent sums of a row as the gates take them.
template <class M>
struct Sums {
  using T = typename M::T;
  const Recurrence<T>& a;
  const ForwardRow<M>& r;
  Moments<M> moments;  // of gates below `apart`
  Moments<M> candidate;
  int apart;  // the gate whose product is its own, or the number of gates

  ROW_STEP Sums(const M& m, const Recurrence<T>& a, const ForwardRow<M>& r, int gates, int apart)
      : a(a), r(r), moments{0, 1}, candidate{0, 1}, apart(apart) {
    if (a.norm_hh != nullptr) {
      moments = moments_of(m, r.sum, a.H, 0, apart);
      if (gates > apart && r.candidate != nullptr)
        candidate = moments_of(m, r.candidate, a.H, 0, 1);
    }
    if (r.kept_moments == nullptr || !m.leads()) return;
    r.kept_moments[0] = M::narrowed(moments.scale);
    r.kept_moments[1] = M::narrowed(candidate.scale);
    r.kept_moments[2] = M::narrowed(0);  // until a cell has others
    r.kept_moments[3] = M::narrowed(1);
  }

  ROW_STEP typename M::V recurrent(const M& m, int g, int64_t u, int64_t left) const {
    auto v = g < apart ? m.load(r.sum + g * a.H, u, left) : m.load(r.candidate, u, left);
    if (a.norm_hh == nullptr) return v;
    const Moments<M>& by = g < apart ? moments : candidate;
    v = (v - by.mean) * by.scale;
    if (r.kept_sums != nullptr) m.store(r.kept_sums + g * a.H, u, left, v);
    return v * m.load(a.norm_hh + g * a.H, u, left);
  }
  ROW_STEP typename M::V whole(const M& m, int g, int64_t u, int64_t left) const {
    return m.load(r.x + g * a.H, u, left) + recurrent(m, g, u, left);
  }
};

template <class M>
ROW_STEP void keep(const M& m, const Recurrence<typename M::T>& a, const ForwardRow<M>& r, int slot,
                   int64_t u, int64_t left, typename M::V v) {
  if (r.kept_step != nullptr) m.store(r.kept_step + slot * a.H, u, left, v);
}

// A unit's h before any projection.
template <class M>
ROW_STEP void put(const M& m, const Recurrence<typename M::T>& a, const Drawn<M>& drawn,
                  const ForwardRow<M>& r, int64_t u, int64_t left, typename M::V h) {
  if (a.w_hr == nullptr) return leave(m, drawn, r, u, left, h);
  m.store(r.inner, u, left, h);
  if (r.kept_inner != nullptr) m.store(r.kept_inner, u, left, h);
}

// A unit's new c: into the state, and where all of them are wanted.
template <class M>
ROW_STEP typename M::V carry(const M& m, const Drawn<M>& drawn, const ForwardRow<M>& r, int64_t u,
                             int64_t left, typename M::V c, typename M::V before) {
  c = (typename M::A(1) - drawn.keep_c) * c + drawn.keep_c * before;
  m.store(r.c, u, left, c);
  if (r.cells != nullptr) m.store(r.cells, u, left, c);
  return c;
}

// c~ = f c + i m g, clipped;  c' = c~ + keep (c - c~);  h = o tanh(norm(c~)).
template <class M, bool coupled>
ROW_STEP void lstm_forward(const M& m, const Recurrence<typename M::T>& a, const Place& at,
                           const ForwardRow<M>& r) {
  using V = typename M::V;
  using A = typename M::A;
  constexpr int kF = coupled ? 0 : 1, kG = kF + 1, kO = kF + 2, kC = kO + 1;  // slots too
  const Sums<M> sums(m, a, r, kO + 1, kO + 1);
  const bool hard = a.hard_sigmoid;
  const auto peephole = [&](int g, int64_t u, int64_t left) {
    return m.load(a.peephole + g * a.H, u, left);
  };
  const auto finish = [&](const Drawn<M>& drawn, int64_t u, int64_t left, V c, V seen) {
    V o = sums.whole(m, kO, u, left);
    if (a.peephole != nullptr) o += peephole(kF + 1, u, left) * c;
    o = gate(m, hard, o);
    keep(m, a, r, kO, u, left, o);
    put(m, a, drawn, r, u, left, o * M::tanh(seen));
  };
  m.units(a.H, [&](int64_t u, int64_t left) {
    const Drawn<M> drawn = m.noise(a.noise, at.t, at.b, u);
    const V before = m.load(r.c, u, left);
    V f = sums.whole(m, kF, u, left), i{};
    if (a.peephole != nullptr) f += peephole(kF, u, left) * before;
    f = gate(m, hard, f);
    if (coupled) {
      i = A(1) - f;
    } else {
      i = sums.whole(m, 0, u, left);
      if (a.peephole != nullptr) i += peephole(0, u, left) * before;
      i = gate(m, hard, i);
      keep(m, a, r, 0, u, left, i);
    }
    const V g = M::tanh(sums.whole(m, kG, u, left));
    const V c = clipped(m, a.cell_clip, f * before + i * (drawn.candidate * g));
    keep(m, a, r, kF, u, left, f);
    keep(m, a, r, kG, u, left, g);
    keep(m, a, r, kC, u, left, c);
    keep(m, a, r, kC + 1, u, left, before);
    carry(m, drawn, r, u, left, c, before);
    if (a.norm_c == nullptr) {
      finish(drawn, u, left, c, c);
    } else {
      m.store(r.work, u, left, c);
    }
  });
  if (a.norm_c == nullptr) return;
  const Moments<M> by = moments_of(m, r.work, a.H, 0, 1);
  if (r.kept_moments != nullptr && m.leads()) {
    r.kept_moments[2] = M::narrowed(by.mean);
    r.kept_moments[3] = M::narrowed(by.scale);
  }
  m.units(a.H, [&](int64_t u, int64_t left) {
    const V c = m.load(r.work, u, left);
    V seen = (c - by.mean) * by.scale * m.load(a.norm_c, u, left);
    if (a.bias_c != nullptr) seen += m.load(a.bias_c, u, left);
    finish(m.noise(a.noise, at.t, at.b, u), u, left, c, seen);
  });
}

// n = tanh(x + r (W_hn h + b_hn));  h' = m n + z (h - m n). With a projection h = W_hr c, and this
// is c'.
template <class M>
ROW_STEP void gru_forward(const M& m, const Recurrence<typename M::T>& a, const Place& at,
                          const ForwardRow<M>& r) {
  using V = typename M::V;
  const Sums<M> sums(m, a, r, 3, 3);
  m.units(a.H, [&](int64_t u, int64_t left) {
    const Drawn<M> drawn = m.noise(a.noise, at.t, at.b, u);
    const V before = m.load(r.c != nullptr ? r.c : r.h, u, left);
    const V reset = gate(m, a.hard_sigmoid, sums.whole(m, 0, u, left));
    const V z = gate(m, a.hard_sigmoid, sums.whole(m, 1, u, left));
    V recurrent = sums.recurrent(m, 2, u, left);
    if (a.b_hn != nullptr) recurrent += m.load(a.b_hn, u, left);
    const V n = M::tanh(m.load(r.x + 2 * a.H, u, left) + reset * recurrent);
    const V dropped = drawn.candidate * n;
    keep(m, a, r, 0, u, left, reset);
    keep(m, a, r, 1, u, left, z);
    keep(m, a, r, 2, u, left, n);
    keep(m, a, r, 3, u, left, recurrent);
    keep(m, a, r, 4, u, left, before);
    V after = dropped + z * (before - dropped);
    if (r.c != nullptr) after = carry(m, drawn, r, u, left, after, before);
    put(m, a, drawn, r, u, left, after);
  });
}

// What W_hn multiplies: r h.
template <class M>
ROW_STEP void row_reset(const M& m, const Recurrence<typename M::T>& a, const ForwardRow<M>& r) {
  using V = typename M::V;
  const Sums<M> sums(m, a, r, 2, 2);
  m.units(a.H, [&](int64_t u, int64_t left) {
    const V reset = gate(m, a.hard_sigmoid, sums.whole(m, 0, u, left));
    const V inner = reset * m.load(r.h_in, u, left);
    keep(m, a, r, 0, u, left, reset);
    m.store(r.inner, u, left, inner);
    if (r.kept_inner != nullptr) m.store(r.kept_inner, u, left, inner);
  });
}

// n = tanh(x + W_hn (r h));  h' = m n + z (h - m n).
template <class M>
ROW_STEP void gru_reset_before_forward(const M& m, const Recurrence<typename M::T>& a,
                                       const Place& at, const ForwardRow<M>& r) {
  using V = typename M::V;
  const Sums<M> sums(m, a, r, 3, 2);
  m.units(a.H, [&](int64_t u, int64_t left) {
    const Drawn<M> drawn = m.noise(a.noise, at.t, at.b, u);
    const V before = m.load(r.h, u, left);
    const V z = gate(m, a.hard_sigmoid, sums.whole(m, 1, u, left));
    const V n = M::tanh(sums.whole(m, 2, u, left));
    const V dropped = drawn.candidate * n;
    keep(m, a, r, 1, u, left, z);
    keep(m, a, r, 2, u, left, n);
    keep(m, a, r, 3, u, left, before);
    leave(m, drawn, r, u, left, dropped + z * (before - dropped));
  });
}

template <class M, bool relu>
ROW_STEP void rnn_forward(const M& m, const Recurrence<typename M::T>& a, const Place& at,
                          const ForwardRow<M>& r) {
  using V = typename M::V;
  const Sums<M> sums(m, a, r, 1, 1);
  m.units(a.H, [&](int64_t u, int64_t left) {
    const V sum = sums.whole(m, 0, u, left), zero{};
    const V h = relu ? (sum < zero ? zero : sum) : M::tanh(sum);
    keep(m, a, r, 0, u, left, h);
    put(m, a, m.noise(a.noise, at.t, at.b, u), r, u, left, h);
  });
}

template <class M, Cell cell>
ROW_STEP void row_forward(const M& m, const Recurrence<typename M::T>& a, const Place& at,
                          const ForwardRow<M>& r) {
  if constexpr (cell == Cell::kLstm || cell == Cell::kCoupledLstm) {
    lstm_forward<M, cell == Cell::kCoupledLstm>(m, a, at, r);
  } else if constexpr (cell == Cell::kGru) {
    gru_forward(m, a, at, r);
  } else if constexpr (cell == Cell::kGruResetBefore) {
    gru_reset_before_forward(m, a, at, r);
  } else {
    rnn_forward<M, cell == Cell::kRnnRelu>(m, a, at, r);
  }
}

// ---- the derivative in a direction
// ---------------------------------------------------------------

// What a row has beside ForwardRow, whose x, h, c and y are here those of the direction.
template <class M>
struct TangentRow {
  using T = typename M::T;
  const T *sum, *step, *whole_h, *whole_c;
  T* second;
};

// The direction of the sum of gate g, but for what W_hh h has for itself.
template <class M>
ROW_STEP typename M::V tangent_sum(const M& m, const Recurrence<typename M::T>& a,
                                   const ForwardRow<M>& r, const TangentRow<M>& t, int g, int64_t u,
                                   int64_t left) {
  const auto v = m.load(r.sum + g * a.H, u, left);
  return t.sum != nullptr ? v + m.load(t.sum + g * a.H, u, left) : v;
}

// In what follows t_ is before the direction of a quantity, and `second` receives the derivatives
// of <gradients, t_ of what backward returned> by what was kept: those of backward's own equations.
template <class M>
ROW_STEP void lstm_tangent(const M& m, const Recurrence<typename M::T>& a, const ForwardRow<M>& r,
                           const TangentRow<M>& t) {
  using V = typename M::V;
  using A = typename M::A;
  const int64_t H = a.H;
  m.units(H, [&](int64_t u, int64_t left) {
    const auto kept = [&](int slot) { return m.load(t.step + slot * H, u, left); };
    const auto put = [&](int slot, V v) { m.store(t.second + slot * H, u, left, v); };
    const auto sum = [&](int g) {
      return m.load(r.x + g * H, u, left) + tangent_sum(m, a, r, t, g, u, left);
    };
    const V i = kept(0), f = kept(1), g = kept(2), o = kept(3), before = kept(5);
    const V tanh_c = M::tanh(kept(4)), slope_c = A(1) - tanh_c * tanh_c, slope_g = A(1) - g * g;
    const V t_i = sum(0), t_f = sum(1), t_g = sum(2), t_o = sum(3), t_before = m.load(r.c, u, left);
    const V t_c =
        f * t_before + before * f * (A(1) - f) * t_f + i * slope_g * t_g + g * i * (A(1) - i) * t_i;
    const V t_h = o * slope_c * t_c + tanh_c * o * (A(1) - o) * t_o;
    m.store(r.h, u, left, t_h);
    m.store(r.y, u, left, t_h);
    m.store(r.c, u, left, t_c);
    if (r.cells != nullptr) m.store(r.cells, u, left, t_c);
    if (t.second == nullptr) return;
    const V d_h = m.load(t.whole_h, u, left), d_c = m.load(t.whole_c, u, left);
    put(0, d_c * (slope_g * t_g + g * (A(1) - i - i) * t_i));
    put(1, d_c * (before * (A(1) - f - f) * t_f + t_before));
    put(2, d_c * i * ((A(1) - i) * t_i - (g + g) * t_g));
    put(3, d_h * (tanh_c * (A(1) - o - o) * t_o + slope_c * t_c));
    put(4, d_h * o * slope_c * ((A(1) - o) * t_o - (tanh_c + tanh_c) * t_c));
    put(5, d_c * f * (A(1) - f) * t_f);
  });
}

template <class M>
ROW_STEP void gru_tangent(const M& m, const Recurrence<typename M::T>& a, const ForwardRow<M>& r,
                          const TangentRow<M>& t) {
  using V = typename M::V;
  using A = typename M::A;
  const int64_t H = a.H;
  m.units(H, [&](int64_t u, int64_t left) {
    const auto kept = [&](int slot) { return m.load(t.step + slot * H, u, left); };
    const auto put = [&](int slot, V v) { m.store(t.second + slot * H, u, left, v); };
    const auto x = [&](int g) { return m.load(r.x + g * H, u, left); };
    const auto sum = [&](int g) { return tangent_sum(m, a, r, t, g, u, left); };
    const V reset = kept(0), z = kept(1), n = kept(2), recurrent = kept(3), past = kept(4) - n;
    const V t_r = x(0) + sum(0), t_z = x(1) + sum(1), t_sum = sum(2), t_old = m.load(r.h, u, left);
    const V slope_r = reset * (A(1) - reset), slope_z = z * (A(1) - z), slope_n = A(1) - n * n;
    const V t_n = x(2) + reset * t_sum + recurrent * slope_r * t_r;  // before its tanh
    const V t_h = (A(1) - z) * slope_n * t_n + z * t_old + past * slope_z * t_z;
    m.store(r.h, u, left, t_h);
    m.store(r.y, u, left, t_h);
    if (t.second == nullptr) return;
    const V d = m.load(t.whole_h, u, left), d_n = d * (A(1) - z) * slope_n;
    put(0, d_n * (t_sum + recurrent * (A(1) - reset - reset) * t_r));
    put(1, d * (past * (A(1) - z - z) * t_z + t_old - slope_n * t_n));
    put(2, -d * (A(1) - z) * ((n + n) * t_n + z * t_z));
    put(3, d_n * slope_r * t_r);
    put(4, d * slope_z * t_z);
  });
}

template <class M, bool relu>
ROW_STEP void rnn_tangent(const M& m, const Recurrence<typename M::T>& a, const ForwardRow<M>& r,
                          const TangentRow<M>& t) {
  using V = typename M::V;
  using A = typename M::A;
  m.units(a.H, [&](int64_t u, int64_t left) {
    const V h = m.load(t.step, u, left), zero{};
    const V t_sum = m.load(r.x, u, left) + tangent_sum(m, a, r, t, 0, u, left);
    const V t_h = relu ? (h > zero ? t_sum : zero) : (A(1) - h * h) * t_sum;
    m.store(r.h, u, left, t_h);
    m.store(r.y, u, left, t_h);
    if (t.second == nullptr) return;
    const V d = m.load(t.whole_h, u, left);
    m.store(t.second, u, left, relu ? zero : -(h + h) * t_sum * d);
  });
}

template <class M, Cell cell>
ROW_STEP void row_tangent(const M& m, const Recurrence<typename M::T>& a, const ForwardRow<M>& r,
                          const TangentRow<M>& t) {
  if constexpr (cell == Cell::kLstm) {
    lstm_tangent(m, a, r, t);
  } else if constexpr (cell == Cell::kGru) {
    gru_tangent(m, a, r, t);
  } else if constexpr (has_tangent(cell)) {
    rnn_tangent<M, cell == Cell::kRnnRelu>(m, a, r, t);
  }
}

// ---- backward -----------------------------------------------------------------------------------

template <class M>
struct BackwardRow {
  using T = typename M::T;
  using A = typename M::A;
  A* d_h;              // (P) gradient of the state: after the step, then before it
  A* d_c;              // (H) the same of c
  A* work;             // (H) gradient of h as it leaves the cell, unless d_inner has it
  const T* d_inner;    // (H) d_out W_hr, with a projection only
  const T* d_reset_h;  // (H) reset before only: gradient of what W_hn multiplied
  const T* d_h_in;     // (P) gradient of what W_hh multiplied
  const T *d_y, *d_cells, *d_kept_step, *d_kept_h_in;
  T *d_x, *d_sum, *d_cell, *d_out, *whole_h, *whole_c;
  const T *kept_step, *kept_h_in, *kept_out, *kept_sums, *kept_moments;
};

// Takes the gradient of h after the step apart: what zoneout passes to the old h stays in d_h, the
// rest goes to the cell, or to the projection.
template <class M>
ROW_STEP void row_return(const M& m, const Recurrence<typename M::T>& a, const Place& at,
                         const BackwardRow<M>& r) {
  using V = typename M::V;
  m.units(a.P, [&](int64_t u, int64_t left) {
    V d = m.load(r.d_h, u, left);
    if (r.d_y != nullptr) d += m.load(r.d_y, u, left);
    const V kept = m.noise(a.noise, at.t, at.b, u).keep_h * d;
    m.store(r.d_h, u, left, kept);
    if (a.w_hr == nullptr) {
      m.store(r.work, u, left, d - kept);
    } else {
      m.store(r.d_out, u, left,
              through_clip(m, a.proj_clip, m.load(r.kept_out, u, left), d - kept));
    }
  });
}

template <class M>
ROW_STEP typename M::V leaving_gradient(const M& m, const BackwardRow<M>& r, int64_t u,
                                        int64_t left) {
  return r.d_inner != nullptr ? m.load(r.d_inner, u, left) : m.load(r.work, u, left);
}

// The gradient of a slot of what was kept.
template <class M>
ROW_STEP typename M::V kept_gradient(const M& m, const Recurrence<typename M::T>& a,
                                     const BackwardRow<M>& r, int slot, int64_t u, int64_t left) {
  using V = typename M::V;
  return r.d_kept_step != nullptr ? m.load(r.d_kept_step + slot * a.H, u, left) : V{};
}

// The gradient of c after the step.
template <class M>
ROW_STEP typename M::V carried_gradient(const M& m, const BackwardRow<M>& r, int64_t u,
                                        int64_t left) {
  const auto d = m.load(r.d_c, u, left);
  return r.d_cells != nullptr ? d + m.load(r.d_cells, u, left) : d;
}

// For a second derivative.
template <class M>
ROW_STEP void keep_whole(const M& m, typename M::T* whole, int64_t u, int64_t left,
                         typename M::V d) {
  if (whole != nullptr) m.store(whole, u, left, d);
}

template <class M, bool coupled>
ROW_STEP void lstm_backward(const M& m, const Recurrence<typename M::T>& a, const Place& at,
                            const BackwardRow<M>& r) {
  using V = typename M::V;
  using A = typename M::A;
  constexpr int kF = coupled ? 0 : 1, kG = kF + 1, kO = kF + 2, kC = kO + 1;
  const int64_t H = a.H;
  const bool hard = a.hard_sigmoid;
  const A mean = a.norm_c != nullptr ? M::widened(r.kept_moments[2]) : A(0);
  const A scale = a.norm_c != nullptr ? M::widened(r.kept_moments[3]) : A(1);
  const auto kept = [&](int slot, int64_t u, int64_t left) {
    return m.load(r.kept_step + slot * H, u, left);
  };
  const auto of_kept = [&](int slot, int64_t u, int64_t left) {
    return kept_gradient(m, a, r, slot, u, left);
  };
  const auto seen = [&](V c, int64_t u, int64_t left) {
    V v = (c - mean) * scale * m.load(a.norm_c, u, left);
    if (a.bias_c != nullptr) v += m.load(a.bias_c, u, left);
    return v;
  };
  A even = 0, along = 0;  // what the normalization takes off the gradient
  if (a.norm_c != nullptr) {
    V sum{}, product{};
    m.units(H, [&](int64_t u, int64_t left) {
      const V c = kept(kC, u, left), tanh_c = M::tanh(seen(c, u, left));
      const V d = leaving_gradient(m, r, u, left) * kept(kO, u, left) * (A(1) - tanh_c * tanh_c);
      m.store(r.d_cell, u, left, d);
      const V v = d * m.load(a.norm_c, u, left);  // 0 behind the last unit
      sum += v;
      product += v * (c - mean) * scale;
    });
    even = m.total(sum) / static_cast<A>(H);
    along = m.total(product) / static_cast<A>(H);
  }
  m.units(H, [&](int64_t u, int64_t left) {
    const Drawn<M> drawn = m.noise(a.noise, at.t, at.b, u);
    const V d_h = leaving_gradient(m, r, u, left);
    const V f = kept(kF, u, left), g = kept(kG, u, left), o = kept(kO, u, left);
    const V c = kept(kC, u, left), before = kept(kC + 1, u, left);
    const V i = coupled ? A(1) - f : kept(0, u, left);
    const V tanh_c = M::tanh(a.norm_c != nullptr ? seen(c, u, left) : c);
    const V d_o = (d_h * tanh_c + of_kept(kO, u, left)) * gate_slope(m, hard, o);
    V d_c = d_h * o * (A(1) - tanh_c * tanh_c);
    if (a.norm_c != nullptr)
      d_c = (d_c * m.load(a.norm_c, u, left) - even - (c - mean) * scale * along) * scale;
    if (a.peephole != nullptr) d_c += d_o * m.load(a.peephole + (kF + 1) * H, u, left);
    d_c += of_kept(kC, u, left);
    const V d_after = carried_gradient(m, r, u, left);
    const V past = drawn.keep_c * d_after;
    d_c = through_clip(m, a.cell_clip, c, d_c + d_after - past);
    keep_whole(m, r.whole_h, u, left, d_h);
    keep_whole(m, r.whole_c, u, left, d_c);
    const V candidate = drawn.candidate * g;
    const V d_f = (d_c * (coupled ? before - candidate : before) + of_kept(kF, u, left)) *
                  gate_slope(m, hard, f);
    const V d_g = (d_c * i * drawn.candidate + of_kept(kG, u, left)) * (A(1) - g * g);
    V d_before = past + d_c * f + of_kept(kC + 1, u, left);
    if (a.peephole != nullptr) d_before += d_f * m.load(a.peephole + kF * H, u, left);
    if (!coupled) {
      const V d_i = (d_c * candidate + of_kept(0, u, left)) * gate_slope(m, hard, i);
      if (a.peephole != nullptr) d_before += d_i * m.load(a.peephole, u, left);
      m.store(r.d_x, u, left, d_i);
    }
    m.store(r.d_x + kF * H, u, left, d_f);
    m.store(r.d_x + kG * H, u, left, d_g);
    m.store(r.d_x + kO * H, u, left, d_o);
    m.store(r.d_c, u, left, d_before);
  });
}

template <class M>
ROW_STEP void gru_backward(const M& m, const Recurrence<typename M::T>& a, const Place& at,
                           const BackwardRow<M>& r) {
  using V = typename M::V;
  using A = typename M::A;
  const int64_t H = a.H;
  const bool hard = a.hard_sigmoid;
  m.units(H, [&](int64_t u, int64_t left) {
    const auto kept = [&](int slot) { return m.load(r.kept_step + slot * H, u, left); };
    const auto of_kept = [&](int slot) { return kept_gradient(m, a, r, slot, u, left); };
    const Drawn<M> drawn = m.noise(a.noise, at.t, at.b, u);
    const V by = drawn.candidate;
    V d = leaving_gradient(m, r, u, left), past{};
    if (r.d_c != nullptr) {
      d += carried_gradient(m, r, u, left);
      past = drawn.keep_c * d;
      d -= past;
    } else {
      past = m.load(r.d_h, u, left);
    }
    keep_whole(m, r.whole_h, u, left, d);
    const V reset = kept(0), z = kept(1), n = kept(2);
    const V d_n = (d * (A(1) - z) * by + of_kept(2)) * (A(1) - n * n);
    const V d_z = (d * (kept(4) - by * n) + of_kept(1)) * gate_slope(m, hard, z);
    const V d_r = (d_n * kept(3) + of_kept(0)) * gate_slope(m, hard, reset);
    m.store(r.d_x, u, left, d_r);
    m.store(r.d_x + H, u, left, d_z);
    m.store(r.d_x + 2 * H, u, left, d_n);
    m.store(r.d_sum, u, left, d_r);
    m.store(r.d_sum + H, u, left, d_z);
    m.store(r.d_sum + 2 * H, u, left, d_n * reset + of_kept(3));
    m.store(r.d_c != nullptr ? r.d_c : r.d_h, u, left, past + d * z + of_kept(4));
  });
}

template <class M>
ROW_STEP void gru_reset_before_backward(const M& m, const Recurrence<typename M::T>& a,
                                        const Place& at, const BackwardRow<M>& r) {
  using V = typename M::V;
  using A = typename M::A;
  const int64_t H = a.H;
  m.units(H, [&](int64_t u, int64_t left) {
    const auto kept = [&](int slot) { return m.load(r.kept_step + slot * H, u, left); };
    const V d = leaving_gradient(m, r, u, left), by = m.noise(a.noise, at.t, at.b, u).candidate;
    const V z = kept(1), n = kept(2);
    m.store(r.d_x + 2 * H, u, left, d * (A(1) - z) * by * (A(1) - n * n));
    m.store(r.d_x + H, u, left, d * (kept(3) - by * n) * gate_slope(m, a.hard_sigmoid, z));
    m.store(r.d_h, u, left, m.load(r.d_h, u, left) + d * z);
  });
}

template <class M, bool relu>
ROW_STEP void rnn_backward(const M& m, const Recurrence<typename M::T>& a,
                           const BackwardRow<M>& r) {
  using V = typename M::V;
  using A = typename M::A;
  m.units(a.H, [&](int64_t u, int64_t left) {
    const V h = m.load(r.kept_step, u, left), zero{};
    const V d = leaving_gradient(m, r, u, left) + kept_gradient(m, a, r, 0, u, left);
    keep_whole(m, r.whole_h, u, left, d);
    m.store(r.d_x, u, left, relu ? (h > zero ? d : zero) : d * (A(1) - h * h));
  });
}

// Gradients of the sums of gates [first, last) as W_hh sees them, from those of the gates.
template <class M>
ROW_STEP void row_sums_backward(const M& m, const Recurrence<typename M::T>& a,
                                const BackwardRow<M>& r, bool copy, int first, int last,
                                int moment) {
  if (r.d_sum == nullptr) return;
  if (copy)
    m.units(a.H, [&](int64_t u, int64_t left) {
      for (int g = first; g < last; ++g)
        m.store(r.d_sum + g * a.H, u, left, m.load(r.d_x + g * a.H, u, left));
    });
  if (a.norm_hh != nullptr)
    through_norm(m, a.norm_hh, r.kept_sums, M::widened(r.kept_moments[moment]), a.H, first, last,
                 r.d_sum);
}

// From the gradient of h, in `work` or d_inner, to those of the sums. With reset before those of
// r are still missing, and come by row_reset_backward.
template <class M, Cell cell>
ROW_STEP void row_backward(const M& m, const Recurrence<typename M::T>& a, const Place& at,
                           const BackwardRow<M>& r) {
  if constexpr (cell == Cell::kLstm || cell == Cell::kCoupledLstm) {
    lstm_backward<M, cell == Cell::kCoupledLstm>(m, a, at, r);
  } else if constexpr (cell == Cell::kGru) {
    gru_backward(m, a, at, r);
  } else if constexpr (cell == Cell::kGruResetBefore) {
    gru_reset_before_backward(m, a, at, r);
    return row_sums_backward(m, a, r, true, 2, 3, 1);
  } else {
    rnn_backward<M, cell == Cell::kRnnRelu>(m, a, r);
  }
  row_sums_backward(m, a, r, cell != Cell::kGru, 0, num_gates(cell), 0);
}

template <class M>
ROW_STEP void row_reset_backward(const M& m, const Recurrence<typename M::T>& a,
                                 const BackwardRow<M>& r) {
  m.units(a.H, [&](int64_t u, int64_t left) {
    const auto reset = m.load(r.kept_step, u, left);
    m.store(r.d_x, u, left,
            m.load(r.d_reset_h, u, left) * m.load(r.kept_h_in, u, left) *
                gate_slope(m, a.hard_sigmoid, reset));
  });
  row_sums_backward(m, a, r, true, 0, 2, 0);
}

// The gradient of the state before the step.
template <class M>
ROW_STEP void row_enter_backward(const M& m, const Recurrence<typename M::T>& a, const Place& at,
                                 const BackwardRow<M>& r) {
  using V = typename M::V;
  m.units(a.P, [&](int64_t u, int64_t left) {
    V d = m.load(r.d_h_in, u, left);
    if (r.d_kept_h_in != nullptr) d += m.load(r.d_kept_h_in, u, left);
    if (r.d_reset_h != nullptr) d += m.load(r.d_reset_h, u, left) * m.load(r.kept_step, u, left);
    if (a.h_mask != nullptr) d = d * m.load(a.h_mask + at.b * a.P, u, left);
    m.store(r.d_h, u, left, at.reset ? V{} : m.load(r.d_h, u, left) + d);
  });
  if (at.reset && r.d_c != nullptr)
    m.units(a.H, [&](int64_t u, int64_t left) { m.store(r.d_c, u, left, V{}); });
}
