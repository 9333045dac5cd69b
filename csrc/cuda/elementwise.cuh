// Kernels of one thread for each number: how they are launched, and the number of a thread.
#pragma once

#include "device.cuh"

namespace seq2seq_ext::cuda {

constexpr int kThreads = 256;

// A sum for each thread. Few kernels ask for shared memory; the others do not notice it.
constexpr int kSharedBytes = kThreads * static_cast<int>(sizeof(double));

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t threads, cudaStream_t stream,
                   Arguments... arguments) {
  if (threads == 0) return cudaSuccess;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

__device__ __forceinline__ int64_t thread_number() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}

}  // namespace seq2seq_ext::cuda
