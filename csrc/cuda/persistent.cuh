// The persistent kernels: one launch runs all steps of a layer, with the recurrent weights in
// registers and shared memory throughout.
//
// A block owns a few hidden units of one direction, for one group of sequences. In a step every
// warp waits for its slice of the vectors that all blocks wrote in the step before (h; backward:
// the gate gradients), multiplies it as it comes, and lays its partial sums in shared memory. After
// the one barrier of the pass a thread for each unit and sequence adds them up, does the gates with
// the state in its registers, and stores the result where the other blocks wait for it. 16
// sequences make a pass; while some warps do its gates, the others already wait for the next one's
// vectors. Partial sums alternate between two buffers, so that one barrier a pass is enough:
// whoever writes the same buffer two passes later has passed a barrier that its last reader had to
// reach first.
//
// Blocks of other groups and directions never meet. All blocks of a launch have to run at the same
// time, so the launch is cooperative, though no grid barrier is ever used.
#pragma once

#include "product.cuh"
#include "steps.cuh"

namespace seq2seq_ext::cuda {

constexpr int kMaxThreads = kWarps * kWarp;

// A warp's weights, and the product with vectors of K numbers.
template <typename Product, typename T, int G>
struct Recurrent {
  static constexpr int kHeld = Product::kHeld;
  static constexpr int kInFlight = 4;  // chunks that a lane has asked for before it multiplies
  static constexpr int kPer = kPerPiece<T>;

  Piece held[kHeld][G];
  Piece* further;  // (chunks - kHeld, G, lanes) in shared memory
  int slice, slices, chunks;
  int K, padded;  // of a vector, without and with what pads it to pieces

  // k of the first number in this lane's piece of the warp's i-th chunk.
  __device__ __forceinline__ int first_k(int i) const {
    return (slice + i * slices) * kPerChunk<T> + static_cast<int>(threadIdx.x % 4) * kPer;
  }

  // weight(g, k): of this lane's row; asked for k within [0, K) alone.
  template <typename WeightAt>
  __device__ __forceinline__ void load(const WeightAt& weight) {
    const auto piece = [&](int i, int g) {
      Piece p;
      T numbers[kPer];
      for (int e = 0; e < kPer; ++e) {
        const int k = first_k(i) + e;
        numbers[e] = k < K ? weight(g, k) : narrow<T>(0);
      }
      for (int w = 0; w < 4; ++w) {
        if constexpr (sizeof(T) == 2) {
          p.word[w] = static_cast<uint32_t>(bits_of(numbers[2 * w])) |
                      static_cast<uint32_t>(bits_of(numbers[2 * w + 1])) << 16;
        } else if constexpr (sizeof(T) == 4) {
          p.word[w] = bits_of(numbers[w]);
        } else {
          p.word[w] = static_cast<uint32_t>(bits_of(numbers[w / 2]) >> (32 * (w % 2)));
        }
      }
      return Product::prepare(p);
    };
#pragma unroll
    for (int i = 0; i < kHeld; ++i)
#pragma unroll
      for (int g = 0; g < G; ++g) held[i][g] = i < chunks ? piece(i, g) : Piece{};
    for (int i = kHeld; i < chunks; ++i)
      for (int g = 0; g < G; ++g)
        further[((i - kHeld) * G + g) * kWarp + threadIdx.x % kWarp] = piece(i, g);
  }

  // This lane's piece of the warp's i-th chunk of a vector, for which it may have to wait; no
  // vector: zeros.
  __device__ __forceinline__ Piece vector_piece(const T* vector, int i) const {
    const int k = first_k(i);
    return vector != nullptr && k < padded ? load_shared_piece<T>(vector + k) : Piece{};
  }

  // Adds the products of chunks first .. first + kInFlight - 1 that the warp has; `weights(f)` are
  // those of the f-th of them.
  template <typename WeightsOf>
  __device__ __forceinline__ void add_chunks(Product& product,
                                             const T* const (&source)[Product::kColumnTiles],
                                             int first, int end, unsigned char* stage,
                                             const WeightsOf& weights) const {
    Piece v[kInFlight][Product::kColumnTiles];
#pragma unroll
    for (int f = 0; f < kInFlight; ++f)
#pragma unroll
      for (int n = 0; n < Product::kColumnTiles; ++n)
        v[f][n] = first + f < end ? vector_piece(source[n], first + f) : Piece{};
    while (true) {
      bool missing = false;
#pragma unroll
      for (int f = 0; f < kInFlight; ++f)
#pragma unroll
        for (int n = 0; n < Product::kColumnTiles; ++n) missing |= !has_come<T>(v[f][n]);
      // All lanes leave together, as the tensor cores want them.
      if (!__any_sync(kAllLanes, missing && wait_active(10))) break;
      pause_briefly();
#pragma unroll
      for (int f = 0; f < kInFlight; ++f)
#pragma unroll
        for (int n = 0; n < Product::kColumnTiles; ++n)
          if (!has_come<T>(v[f][n])) v[f][n] = vector_piece(source[n], first + f);
    }
#pragma unroll
    for (int f = 0; f < kInFlight; ++f)
      if (first + f < end) weights(f, [&](const Piece(&w)[G]) { product.add(w, v[f], stage); });
  }

  __device__ __forceinline__ void multiply(Product& product,
                                           const T* const (&source)[Product::kColumnTiles],
                                           unsigned char* stage) const {
#pragma unroll
    for (int i = 0; i < kHeld; i += kInFlight) {
      if (i >= chunks) break;
      add_chunks(product, source, i, min(chunks, kHeld), stage, [&](int f, const auto& use) {
        if (i + f < kHeld) use(held[i + f < kHeld ? i + f : 0]);
      });
    }
    for (int i = kHeld; i < chunks; i += kInFlight) {
      add_chunks(product, source, i, chunks, stage, [&](int f, const auto& use) {
        Piece w[G];
#pragma unroll
        for (int g = 0; g < G; ++g)
          w[g] = further[((i + f - kHeld) * G + g) * kWarp + threadIdx.x % kWarp];
        use(w);
      });
    }
  }
};

// A number for the other blocks, or for nobody: lanes of adjacent units come together, and two of
// them make a word in half precision. `features` is a multiple of a piece's; all lanes of a warp
// have to call it, and those with `row` null store nothing.
template <typename T>
__device__ __forceinline__ void publish(T* row, int u, int64_t features, Accumulator<T> value) {
  const auto bits = bits_of(narrow<T>(value));
  if constexpr (sizeof(T) == 2) {
    const uint32_t mine = bits, other = __shfl_xor_sync(kAllLanes, mine, 1);
    if (row != nullptr && u % 2 == 0 && u < features)
      store_shared_word(row + u, mine | other << 16);
  } else {
    if (row != nullptr && u < features) store_shared_word(row + u, bits);
  }
}

// Where a thread stands in its block, and a block in the launch.
struct Place {
  int warp, lane, tile, slice;
  int part, group, d;
  int units;        // of a block
  int first_row;    // sequence
  int rows;         // sequences of the group
  int pair_stride;  // pairs of a unit and a sequence in one pass

  __device__ __forceinline__ Place(const Layout& l, int64_t B) {
    warp = threadIdx.x / kWarp;
    lane = threadIdx.x % kWarp;
    tile = warp / l.slices;
    slice = warp % l.slices;
    part = blockIdx.x % l.parts;
    group = blockIdx.x / l.parts % l.groups;
    d = blockIdx.x / (l.parts * l.groups);
    units = l.tiles * kTileRows;
    first_row = static_cast<int>(l.first) + group * l.group_rows;
    rows = min(l.group_rows, static_cast<int>(B) - first_row);
    pair_stride = kColumns * units;
  }
  __device__ __forceinline__ int passes() const { return (rows + kColumns - 1) / kColumns; }
  __device__ __forceinline__ int unit() const { return part * units + threadIdx.x % units; }
};

// The pair of a unit and a sequence whose gates a thread does in pass p, if any; the same for all
// lanes of a warp but for the sequence's being there.
struct Pair {
  bool in_pass;  // the warp has pairs in this pass
  bool there;    // there is such a sequence
  int b;         // it
  int carried;   // which of the thread's states is the pair's

  __device__ __forceinline__ Pair(const Place& place, int p) {
    const int first = p * place.pair_stride;
    const int threads = blockDim.x;
    const int mine = static_cast<int>(threadIdx.x) - first % threads;
    in_pass = mine >= 0 && mine < place.pair_stride;
    const int row = p * kColumns + (in_pass ? mine / place.units : 0);
    there = in_pass && row < place.rows;
    b = place.first_row + row;
    carried = first / threads;
  }
};

// kCarried numbers in registers, of which one at a time is taken by its number.
template <typename A>
struct Carried {
  A value[kCarried];

  __device__ __forceinline__ A get(int i) const {
    A found = value[0];
#pragma unroll
    for (int k = 1; k < kCarried; ++k) found = i == k ? value[k] : found;
    return found;
  }
  __device__ __forceinline__ void set(int i, A x) {
#pragma unroll
    for (int k = 0; k < kCarried; ++k) value[k] = i == k ? x : value[k];
  }
};

// Shared memory of a block: partial sums, twice; the warps' further weights; their stages.
template <typename Product, int G>
struct Shared {
  using Sum = typename Product::Sum;
  Sum* partial;  // (2, tiles, slices, G * 8, kPartialLead)
  int partial_size;
  Piece* weights;
  unsigned char* stage;

  __device__ __forceinline__ Shared(unsigned char* base, const Place& place, const Layout& l,
                                    int further_chunks) {
    const int warps = l.tiles * l.slices;
    partial = reinterpret_cast<Sum*>(base);
    partial_size = warps * G * kTileRows * kPartialLead;
    unsigned char* next = base + 2 * partial_size * sizeof(Sum);
    weights = reinterpret_cast<Piece*>(next + place.warp * further_chunks * weight_chunk_bytes(G));
    next += warps * further_chunks * weight_chunk_bytes(G);
    stage = next + place.warp * Product::kStageBytes;
  }
  // A warp's sums of one buffer.
  __device__ __forceinline__ Sum* mine(int buffer, const Place& place) const {
    return partial + buffer * partial_size + place.warp * G * kTileRows * kPartialLead;
  }
  // The sum over all slices for a unit of the block and a column of the pass.
  __device__ __forceinline__ Sum total(int buffer, const Layout& l, int unit, int g,
                                       int column) const {
    const Sum* at =
        partial + buffer * partial_size +
        (unit / kTileRows * l.slices * G * kTileRows + g * kTileRows + unit % kTileRows) *
            kPartialLead +
        column;
    Sum sum = 0;
    for (int i = 0; i < l.slices; ++i) sum += at[i * G * kTileRows * kPartialLead];
    return sum;
  }
};

// Chunks of a vector of `padded` numbers that the warp with this slice multiplies.
template <typename T>
__device__ __forceinline__ int chunks_of(int padded, int slice, int slices) {
  const int all = (padded + kPerChunk<T> - 1) / kPerChunk<T>;
  return slice < all ? (all - slice + slices - 1) / slices : 0;
}

// ---- forward ----------------------------------------------------------------------------------

template <typename C, typename Product, typename T>
__global__ void __launch_bounds__(kMaxThreads, 1)
    persistent_forward_kernel(const Forward<T> a, const Layout l) {
  using A = Accumulator<T>;
  constexpr int G = C::kGates;
  SEQ2SEQ_EXT_DYNAMIC_SHARED(memory);
  const Place place(l, a.steps.B);
  const int d = place.d, T_ = static_cast<int>(a.steps.T), u = place.unit();
  const int64_t H = a.H, B = a.steps.B;
  const int padded = static_cast<int>(padded_to_pieces<T>(H));
  const int most = max(0, chunks_of<T>(padded, 0, l.slices) - Product::kHeld);
  const Shared<Product, G> shared(memory, place, l, most);

  Recurrent<Product, T, G> recurrent;
  recurrent.further = shared.weights;
  recurrent.slice = place.slice, recurrent.slices = l.slices;
  recurrent.chunks = chunks_of<T>(padded, place.slice, l.slices);
  recurrent.K = static_cast<int>(H), recurrent.padded = padded;
  const int weight_row = place.part * place.units + place.tile * kTileRows + place.lane / 4;
  recurrent.load([&](int g, int k) {
    return weight_row < H ? a.w_hh[d][(g * H + weight_row) * H + k] : narrow<T>(0);
  });

  Biases<C, T> bias{};
  if (u < H) bias = biases_of<C>(a, u, d);
  Carried<A> carry{};
  for (int p = 0; p < place.passes(); ++p) {  // empty sequences end where they start
    const Pair pair(place, p);
    if (!pair.there || u >= H || length_of(a.steps, pair.b) > 0) continue;
    const int64_t at = (d * B + pair.b) * H + u;
    a.h_n[at] = a.h_0 == nullptr ? narrow<T>(0) : a.h_0[at];
    if (C::kCarriesCell) a.c_n[at] = a.c_0 == nullptr ? narrow<T>(0) : a.c_0[at];
  }

  int buffer = 0;
  for (int s = 0; s < T_; ++s) {
    const int t = d == 0 ? s : T_ - 1 - s, before = d == 0 ? t - 1 : t + 1;
    for (int p = 0; p < place.passes(); ++p, buffer ^= 1) {
      // Asked for before the wait: the input of the step, and the memory of the next one's.
      const Pair pair(place, p);
      Position at{};
      A x[G] = {};
      if (pair.there && u < H) {
        at = position(a.steps, t, pair.b, d);
        if (at.active) load_inputs<C>(a, bias, at, u, d, x);
        const Position next = position(a.steps, d == 0 ? t + 1 : t - 1, pair.b, d);
        if (next.active && u % 8 == 0)
          for (int g = 0; g < G; ++g) prefetch(a.x + ((next.row * a.D + d) * G + g) * H + u);
      }

#pragma unroll 1
      for (int n0 = 0; n0 < kColumns / 8; n0 += Product::kColumnTiles) {
        const T* source[Product::kColumnTiles] = {};
#pragma unroll
        for (int n = 0; n < Product::kColumnTiles; ++n) {
          const int row = p * kColumns + 8 * (n0 + n) + place.lane / 4, b = place.first_row + row;
          if (row >= place.rows) continue;
          const Position to = position(a.steps, t, b, d);
          if (!to.active || to.reset) continue;
          if (to.index > 0) {
            source[n] = a.h.base + row_of(a.steps, before, b) * a.h.stride + d * a.h.direction;
          } else if (a.h_start != nullptr) {
            source[n] = a.h_start + (d * B + b) * padded;
          }
        }
        Product product;
        product.clear();
        recurrent.multiply(product, source, shared.stage);
        product.store(shared.mine(buffer, place) + 8 * n0);
      }
      SEQ2SEQ_EXT_SYNC_THREADS(3);

      if (!pair.in_pass) continue;
      A h = 0;
      if (at.active) {
        A sums[G];
        const int column = pair.b - place.first_row - p * kColumns;
#pragma unroll
        for (int g = 0; g < G; ++g)
          sums[g] = shared.total(buffer, l, threadIdx.x % place.units, g, column);
        A state = carry.get(pair.carried);
        h = forward_unit<C>(a, bias, at, pair.b, u, d, x, sums, state);
        carry.set(pair.carried, state);
        if (at.index == at.length - 1) a.h_n[(d * B + pair.b) * H + u] = narrow<T>(h);
      }
      // Units that only pad a piece take part; rows that a packed batch does not have do not.
      const bool exists =
          pair.there && (a.steps.offset == nullptr || t < length_of(a.steps, pair.b));
      const int64_t row = exists ? row_of(a.steps, t, pair.b) : 0;
      publish<T>(exists ? a.h.base + row * a.h.stride + d * a.h.direction : nullptr, u, padded, h);
      if (exists && a.h.base != a.y && u < H) a.y[row * a.D * H + d * H + u] = narrow<T>(h);
    }
  }
}

// ---- backward ---------------------------------------------------------------------------------

template <typename C, typename Product, typename T>
__global__ void __launch_bounds__(kMaxThreads, 1)
    persistent_backward_kernel(const Backward<T> a, const Layout l) {
  using A = Accumulator<T>;
  constexpr int G = C::kGates;
  SEQ2SEQ_EXT_DYNAMIC_SHARED(memory);
  const Place place(l, a.steps.B);
  const int d = place.d, T_ = static_cast<int>(a.steps.T), u = place.unit();
  const int64_t H = a.H, B = a.steps.B;
  const int padded = static_cast<int>(padded_to_pieces<T>(H));
  const int most = max(0, chunks_of<T>(G * padded, 0, l.slices) - Product::kHeld);
  const Shared<Product, 1> shared(memory, place, l, most);

  Recurrent<Product, T, 1> recurrent;  // of W_hh transposed
  recurrent.further = shared.weights;
  recurrent.slice = place.slice, recurrent.slices = l.slices;
  recurrent.chunks = chunks_of<T>(G * padded, place.slice, l.slices);
  recurrent.K = recurrent.padded = G * padded;
  const int weight_row = place.part * place.units + place.tile * kTileRows + place.lane / 4;
  recurrent.load([&](int, int k) {
    const int g = k / padded, j = k % padded;
    return weight_row < H && j < H ? a.w_hh[d][(g * H + j) * H + weight_row] : narrow<T>(0);
  });

  Carried<A> carry{};
  for (int p = 0; p < place.passes(); ++p) {
    const Pair pair(place, p);
    if (!pair.there || u >= H || length_of(a.steps, pair.b) > 0) continue;
    const int64_t at = (d * B + pair.b) * H + u;
    a.d_h_0[at] = a.d_h_n == nullptr ? narrow<T>(0) : a.d_h_n[at];
    if (C::kCarriesCell) a.d_c_0[at] = a.d_c_n == nullptr ? narrow<T>(0) : a.d_c_n[at];
  }

  int buffer = 0;
  for (int s = 0; s <= T_; ++s) {  // the last step is the one before the first: d_h_0
    const int t = d == 0 ? T_ - 1 - s : s, after = d == 0 ? t + 1 : t - 1;
    for (int p = 0; p < place.passes(); ++p, buffer ^= 1) {
      const Pair pair(place, p);
      Position at{};
      StepRecord<C, T> record{};
      if (pair.there && u < H) {
        at = position(a.steps, t, pair.b, d);
        if (at.active) record = load_record<C>(a, at, t, pair.b, u, d);
        const Position next = position(a.steps, d == 0 ? t - 1 : t + 1, pair.b, d);
        if (next.active && u % 8 == 0) {
          if constexpr (C::kSlots > 0)
            for (int k = 0; k < C::kSlots; ++k)
              prefetch(saved_at(a.reserve, a.steps, C::kSlots, H, next.row, u, d) +
                       k * padded_units(H));
          if (a.d_y != nullptr) prefetch(a.d_y + next.row * a.D * H + d * H + u);
        }
      }

#pragma unroll 1
      for (int n0 = 0; n0 < kColumns / 8; n0 += Product::kColumnTiles) {
        const T* source[Product::kColumnTiles] = {};
#pragma unroll
        for (int n = 0; n < Product::kColumnTiles; ++n) {
          const int row = p * kColumns + 8 * (n0 + n) + place.lane / 4, b = place.first_row + row;
          if (row >= place.rows) continue;
          const Position from = position(a.steps, after, b, d);
          if (from.active && !from.reset)
            source[n] = a.d_sum.base + from.row * a.d_sum.stride + d * a.d_sum.direction;
        }
        Product product;
        product.clear();
        recurrent.multiply(product, source, shared.stage);
        product.store(shared.mine(buffer, place) + 8 * n0);
      }
      SEQ2SEQ_EXT_SYNC_THREADS(4);

      if (!pair.in_pass) continue;
      A d_x[G] = {}, d_sum[G] = {};
      const bool entering = pair.there && u < H && at.length > 0 && at.index == -1;
      if (at.active || entering) {
        const int column = pair.b - place.first_row - p * kColumns;
        const A recurrent_part = shared.total(buffer, l, threadIdx.x % place.units, 0, column);
        A state = carry.get(pair.carried);
        if (at.active) {
          A d_h = record.d_y + recurrent_part;
          if (at.index == at.length - 1) {
            d_h += final_gradient(a.d_h_n, a.steps, H, pair.b, u, d);
            state = C::kCarriesCell ? final_gradient(a.d_c_n, a.steps, H, pair.b, u, d) : 0;
          }
          backward_unit<C>(a, at, record, d_h, state, d_x, d_sum);
          carry.set(pair.carried, state);
        } else {
          const int64_t to = (d * B + pair.b) * H + u;
          a.d_h_0[to] = narrow<T>(recurrent_part + (C::kCarriesCell ? A(0) : state));
          if (C::kCarriesCell) a.d_c_0[to] = narrow<T>(state);
        }
      }
      const bool exists = pair.there && t >= 0 && t < T_ &&
                          (a.steps.offset == nullptr || t < length_of(a.steps, pair.b));
      const int64_t row = exists ? row_of(a.steps, t, pair.b) : 0;
      T* shared_row =
          exists ? a.d_sum.base + row * a.d_sum.stride + d * a.d_sum.direction : nullptr;
#pragma unroll
      for (int g = 0; g < G; ++g) {
        publish<T>(exists ? shared_row + g * padded : nullptr, u, padded, d_sum[g]);
        if (!exists || u >= H) continue;
        const int64_t to = ((row * a.D + d) * G + g) * H + u;
        if (a.d_h != nullptr) a.d_h[to] = narrow<T>(d_sum[g]);
        if (a.d_x != nullptr) a.d_x[to] = narrow<T>(d_x[g]);
      }
    }
  }
}

// ---- launches -----------------------------------------------------------------------------------

template <typename Kernel, typename Arguments>
cudaError_t launch_persistent(Kernel* kernel, const Arguments& arguments, const Layout& l,
                              cudaStream_t stream) {
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, l.shared_bytes);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(l.blocks());
  config.blockDim = dim3(l.threads());
  config.dynamicSmemBytes = l.shared_bytes;
  config.stream = stream;
  config.attrs = &cooperative;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, arguments, l);
}

template <typename C, typename T>
cudaError_t launch_forward(const Forward<T>& a, const Layout& l, [[maybe_unused]] bool tensor,
                           cudaStream_t stream) {
  if constexpr (sizeof(T) < 8) {
    if (sizeof(T) == 2 || tensor)
      return launch_persistent(&persistent_forward_kernel<C, TensorProduct<T, C::kGates>, T>, a, l,
                               stream);
  }
  if constexpr (sizeof(T) > 2)
    return launch_persistent(&persistent_forward_kernel<C, ScalarProduct<T, C::kGates>, T>, a, l,
                             stream);
  return cudaErrorInvalidValue;
}

template <typename C, typename T>
cudaError_t launch_backward(const Backward<T>& a, const Layout& l, [[maybe_unused]] bool tensor,
                            cudaStream_t stream) {
  if constexpr (sizeof(T) < 8) {
    if (sizeof(T) == 2 || tensor)
      return launch_persistent(&persistent_backward_kernel<C, TensorProduct<T, 1>, T>, a, l,
                               stream);
  }
  if constexpr (sizeof(T) > 2)
    return launch_persistent(&persistent_backward_kernel<C, ScalarProduct<T, 1>, T>, a, l, stream);
  return cudaErrorInvalidValue;
}

template <typename T>
cudaError_t persistent_forward(const Forward<T>& a, const Layout& l, bool tensor,
                               cudaStream_t stream) {
  return with_cell<T>(
      a.cell, [&](auto cell) { return launch_forward<decltype(cell)>(a, l, tensor, stream); });
}

template <typename T>
cudaError_t persistent_backward(const Backward<T>& a, const Layout& l, bool tensor,
                                cudaStream_t stream) {
  return with_cell<T>(
      a.cell, [&](auto cell) { return launch_backward<decltype(cell)>(a, l, tensor, stream); });
}

}  // namespace seq2seq_ext::cuda
