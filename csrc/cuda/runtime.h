// The device that a call runs on: made current, its stream as torch has it, its properties, memory
// and matrix products from torch. A build for tests stands on CPU tensors instead
// (SEQ2SEQ_EXT_CUDA_ON_CPU), with the kernels on fibers.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "../glue/tensors.h"
#include "plan.h"

namespace seq2seq_ext::cuda {

// Throws std::runtime_error with CUDA's own words.
void check(cudaError_t error);

const Properties& properties_of(int32_t device_index);

// A matrix, or with `batch` as many of them, in memory that somebody else owns.
struct Matrix {
  void* data;
  int64_t rows, columns;
  int64_t stride;            // numbers from row to row
  int64_t batch = 0;         // 0: one matrix without that axis
  int64_t batch_stride = 0;  // numbers from matrix to matrix

  bool turned = false;
  Matrix transposed() const {
    Matrix m = *this;
    m.turned = !turned;
    return m;
  }
};

class Runtime {
 public:
  Runtime(Device device, int32_t dtype);
  ~Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  cudaStream_t stream() const { return stream_; }
  const Properties& properties() const { return properties_; }

  // Memory from torch's allocator, which hands it out again in the order of the stream, so that it
  // may go back while kernels still use it: at the end of the call.
  template <typename T>
  T* take(int64_t count) {
    return static_cast<T*>(take_bytes(count * static_cast<int64_t>(sizeof(T))));
  }
  // The same full of a byte.
  template <typename T>
  T* filled(int64_t count, int byte) {
    T* memory = take<T>(count);
    fill(memory, count * static_cast<int64_t>(sizeof(T)), byte);
    return memory;
  }
  void fill(void* memory, int64_t bytes, int byte) const;
  void copy(void* to, const void* from, int64_t bytes) const;

  // out = a b, one matrix or a batch of them, by torch's product.
  void multiply(const Matrix& out, const Matrix& a, const Matrix& b) const;

 private:
  void* take_bytes(int64_t bytes);
  Handle tensor(const Matrix& m) const;

  Device device_;
  int32_t dtype_;
  const Properties& properties_;
  cudaStream_t stream_ = nullptr;
  DeviceGuardHandle guard_ = nullptr;
  std::vector<Handle> memory_;
};

}  // namespace seq2seq_ext::cuda
