// What runs once over all steps, before the first or after the last: lengths and offsets of rows,
// masks, the states that entered the steps, and sums over all rows.
#include "elementwise.cuh"
#include "steps.cuh"

namespace seq2seq_ext::cuda {
namespace {

constexpr int kUploadCount = 512;

struct Upload {
  int32_t length[kUploadCount];
};

__global__ void upload_kernel(const Upload upload, int64_t first, int64_t B, int32_t* device) {
  const int64_t b = first + thread_number();
  if (thread_number() < kUploadCount && b < B) device[b] = upload.length[thread_number()];
}

__global__ void take_lengths_kernel(const int64_t* given, int64_t B, int64_t T, int32_t* device) {
  const int64_t b = thread_number();
  if (b < B) device[b] = static_cast<int32_t>(given[b] < 0 ? 0 : given[b] > T ? T : given[b]);
}

__global__ void offsets_kernel(const int32_t* length, int64_t B, int64_t T, int64_t* offset) {
  const int64_t t = thread_number();
  if (t >= T) return;
  int64_t sum = 0;
  for (int64_t b = 0; b < B; ++b) sum += length[b] < t ? length[b] : t;
  offset[t] = sum;
}

template <typename T>
__global__ void pad_states_kernel(const T* states, int64_t rows, int64_t features, int64_t padded,
                                  T* out) {
  const int64_t i = thread_number(), row = i / padded, u = i % padded;
  if (row >= rows) return;
  const T value = u < features ? states[row * features + u] : narrow<T>(0);
  const bool is_nan = widen(value) != widen(value);
  out[i] = from_bits<T>(bits_of(narrow<T>(is_nan ? Accumulator<T>(NAN) : widen(value))));
}

// A number of a matrix of rows that lie where the sequence's steps do.
struct Entry {
  int64_t row, column;
  bool there;
  int t, b;

  __device__ __forceinline__ Entry(const Steps& steps, int64_t features) {
    const int64_t i = thread_number(), step = i / features;
    column = i % features;
    t = static_cast<int>(step / steps.B);
    b = static_cast<int>(step % steps.B);
    there = t < steps.T && (steps.offset == nullptr || t < length_of(steps, b));
    row = there ? row_of(steps, t, b) : 0;
  }
};

template <typename T>
__global__ void entering_kernel(const Backward<T> a, int d, T* out, T* inner) {
  const int64_t features = inner == nullptr || a.cell == Cell::kGruResetBefore ? a.P : a.H;
  const Entry e(a.steps, features);
  if (!e.there) return;
  const int u = static_cast<int>(e.column);
  const Position at = position(a.steps, e.t, e.b, d);
  const int64_t to = d * a.steps.rows + e.row;
  if (u < a.P) {
    T h = narrow<T>(0);
    if (at.active && !at.reset) {
      if (at.index > 0) {
        h = a.y[row_of(a.steps, d == 0 ? e.t - 1 : e.t + 1, e.b) * a.D * a.P + d * a.P + u];
      } else if (a.h_0 != nullptr) {
        h = a.h_0[(d * a.steps.B + e.b) * a.P + u];
      }
    }
    out[to * a.P + u] = h;
    if (a.cell == Cell::kGruResetBefore)
      inner[to * a.H + u] =
          at.active
              ? narrow<T>(widen(*saved_at(a.reserve, a.steps, 3, a.H, e.row, u, d)) * widen(h))
              : narrow<T>(0);
  }
  if (inner != nullptr && a.cell == Cell::kLstm) {
    const T* slot = saved_at(a.reserve, a.steps, 5, a.H, e.row, u, d);
    inner[to * a.H + u] = at.active
                              ? narrow<T>(widen(slot[3 * padded_units(a.H)]) *
                                          Functions<T>::tanh(widen(slot[4 * padded_units(a.H)])))
                              : narrow<T>(0);
  }
}

template <typename T>
__global__ void clean_kernel(const Steps steps, const T* x, const T* mask, int64_t features,
                             T* out) {
  const Entry e(steps, features);
  if (!e.there) return;
  const int64_t i = e.row * features + e.column;
  T value = narrow<T>(0);
  if (e.t < length_of(steps, e.b))
    value = mask == nullptr ? x[i] : narrow<T>(widen(x[i]) * widen(mask[i]));
  out[i] = value;
}

constexpr int kSumColumns = kWarp, kSumRows = kThreads / kWarp;

template <typename T>
__global__ void sum_kernel(const T* x, int64_t rows, int64_t columns, int64_t stride, T* out,
                           T* again) {
  SEQ2SEQ_EXT_DYNAMIC_SHARED(memory);
  auto* sums = reinterpret_cast<Accumulator<T>*>(memory);  // (kSumRows, kSumColumns)
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kSumColumns + threadIdx.x % kSumColumns;
  const int first = threadIdx.x / kSumColumns;
  Accumulator<T> sum = 0;
  if (column < columns)
    for (int64_t r = first; r < rows; r += kSumRows) sum += widen(x[r * stride + column]);
  sums[threadIdx.x] = sum;
  SEQ2SEQ_EXT_SYNC_THREADS(5);
  if (first != 0 || column >= columns) return;
  for (int i = 1; i < kSumRows; ++i) sum += sums[i * kSumColumns + threadIdx.x];
  out[column] = narrow<T>(sum);
  if (again != nullptr) again[column] = narrow<T>(sum);
}

}  // namespace

// ---- launches -----------------------------------------------------------------------------------

template <typename T>
cudaError_t pad_states(const T* states, int64_t rows, int64_t features, T* out,
                       cudaStream_t stream) {
  const int64_t padded = padded_to_pieces<T>(features);
  return launch(pad_states_kernel<T>, rows * padded, stream, states, rows, features, padded, out);
}

template <typename T>
cudaError_t entering_states(const Backward<T>& a, T* out, T* inner, cudaStream_t stream) {
  const bool projected = a.cell == Cell::kLstm && inner != nullptr;
  for (int d = 0; d < a.D; ++d) {
    const cudaError_t error =
        launch(entering_kernel<T>, a.steps.T * a.steps.B * (projected ? a.H : a.P), stream, a, d,
               out, inner);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <typename T>
cudaError_t clean_rows(const Steps& steps, const T* x, const T* mask, int64_t features, T* out,
                       cudaStream_t stream) {
  return launch(clean_kernel<T>, steps.T * steps.B * features, stream, steps, x, mask, features,
                out);
}

template <typename T>
cudaError_t sum_rows(const T* x, int64_t rows, int64_t columns, int64_t stride, T* out, T* again,
                     cudaStream_t stream) {
  const int64_t blocks = (columns + kSumColumns - 1) / kSumColumns;
  return launch(sum_kernel<T>, blocks * kThreads, stream, x, rows, columns, stride, out, again);
}

cudaError_t upload_lengths(const int64_t* host, int64_t B, int32_t* device, cudaStream_t stream) {
  for (int64_t first = 0; first < B; first += kUploadCount) {
    Upload upload{};
    for (int64_t i = 0; i < kUploadCount && first + i < B; ++i)
      upload.length[i] = static_cast<int32_t>(host[first + i]);
    const cudaError_t error = launch(upload_kernel, kUploadCount, stream, upload, first, B, device);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t take_lengths(const int64_t* given, int64_t B, int64_t T, int32_t* device,
                         cudaStream_t stream) {
  return launch(take_lengths_kernel, B, stream, given, B, T, device);
}

cudaError_t packed_offsets(const int32_t* length, int64_t B, int64_t T, int64_t* offset,
                           cudaStream_t stream) {
  return launch(offsets_kernel, T, stream, length, B, T, offset);
}

#define INSTANTIATE(T)                                                                      \
  template cudaError_t pad_states(const T*, int64_t, int64_t, T*, cudaStream_t);            \
  template cudaError_t sum_rows(const T*, int64_t, int64_t, int64_t, T*, T*, cudaStream_t); \
  template cudaError_t entering_states(const Backward<T>&, T*, T*, cudaStream_t);           \
  template cudaError_t clean_rows(const Steps&, const T*, const T*, int64_t, T*, cudaStream_t)
INSTANTIATE(__half);
INSTANTIATE(__nv_bfloat16);
INSTANTIATE(float);
INSTANTIATE(double);
#undef INSTANTIATE

}  // namespace seq2seq_ext::cuda
