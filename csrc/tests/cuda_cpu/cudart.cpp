// The CUDA runtime functions that launchers call, against a pretended device: the checks that the
// driver makes before a launch, limits and occupancy; memory is the host's.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "cuda_cpu.h"

namespace cuda_cpu {
namespace {

constexpr int kSharedPerBlock = 48 << 10;  // more only for a kernel that asked for it
constexpr int kThreadsPerBlock = 1024;

Device device;
thread_local cudaError_t last_error = cudaSuccess;

std::mutex kernels_mutex;
std::map<const void*, int> shared_limits;  // what kernels asked for

int shared_limit(const void* kernel) {
  const std::lock_guard<std::mutex> lock(kernels_mutex);
  const auto found = shared_limits.find(kernel);
  return found == shared_limits.end() ? kSharedPerBlock : found->second;
}

cudaError_t returned(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

int rounded_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

int reserved_shared() { return device.major >= 8 ? 1024 : 0; }  // of each block, by the system

// Blocks that a multiprocessor holds at a time, by the granularities in cuda_occupancy.h: warps,
// 256 registers of a warp, 128 bytes of shared memory.
int occupancy(int threads, size_t shared_bytes) {
  const int warps = (threads + 31) / 32;
  const int warp_registers = rounded_up(32 * device.registers_per_thread, 256);
  int blocks =
      std::min(device.blocks_per_multiprocessor, device.threads_per_multiprocessor / 32 / warps);
  blocks = std::min(blocks, device.registers_per_multiprocessor / warp_registers / warps);
  const int shared = rounded_up(static_cast<int>(shared_bytes) + reserved_shared(), 128);
  if (shared > 0) blocks = std::min(blocks, device.shared_per_multiprocessor / shared);
  return blocks;
}

bool within(dim3 size, unsigned x, unsigned y, unsigned z) {
  return size.x > 0 && size.y > 0 && size.z > 0 && size.x <= x && size.y <= y && size.z <= z;
}

}  // namespace

// The figures of NVIDIA's white papers and of the CUDA programming guide's table of compute
// capabilities.
Device a100() {
  Device d;
  d.name = "NVIDIA A100-SXM4-80GB";
  d.major = 8, d.minor = 0;
  d.multiprocessors = 108;
  d.threads_per_multiprocessor = 2048, d.blocks_per_multiprocessor = 32;
  d.shared_per_multiprocessor = 164 << 10, d.shared_per_block_opt_in = 163 << 10;
  d.l2_bytes = 40 << 20;
  d.clock_khz = 1'410'000;
  return d;
}

Device h100() {
  Device d;
  d.name = "NVIDIA H100 80GB HBM3";
  d.major = 9, d.minor = 0;
  d.multiprocessors = 132;
  d.threads_per_multiprocessor = 2048, d.blocks_per_multiprocessor = 32;
  d.shared_per_multiprocessor = 228 << 10, d.shared_per_block_opt_in = 227 << 10;
  d.l2_bytes = 50 << 20;
  d.clock_khz = 1'980'000;
  return d;
}

Device rtx4090() {
  Device d;
  d.name = "NVIDIA GeForce RTX 4090";
  d.major = 8, d.minor = 9;
  d.multiprocessors = 128;
  d.threads_per_multiprocessor = 1536, d.blocks_per_multiprocessor = 24;
  d.shared_per_multiprocessor = 100 << 10, d.shared_per_block_opt_in = 99 << 10;
  d.l2_bytes = 72 << 20;
  d.clock_khz = 2'520'000;
  return d;
}

void pretend(const Device& pretended_device) { device = pretended_device; }
Device pretended() { return device; }

cudaError_t launch(const cudaLaunchConfig_t* config, const void* kernel, Body body,
                   const void* arguments) {
  const dim3 grid = config->gridDim, threads = config->blockDim;
  bool cooperative = false;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    if (attribute.id == cudaLaunchAttributeCooperative) {
      cooperative = attribute.val.cooperative != 0;
    } else if (attribute.id != cudaLaunchAttributeIgnore) {
      return returned(cudaErrorNotSupported);  // here; a device may
    }
  }
  if (!within(grid, 0x7fffffffu, 65535, 65535) ||
      !within(threads, kThreadsPerBlock, kThreadsPerBlock, 64) ||
      threads.x * threads.y * threads.z > kThreadsPerBlock)
    return returned(cudaErrorInvalidConfiguration);
  const int count = static_cast<int>(threads.x * threads.y * threads.z);
  if (config->dynamicSmemBytes > static_cast<size_t>(shared_limit(kernel)))
    return returned(cudaErrorInvalidValue);
  const int blocks = occupancy(count, config->dynamicSmemBytes);
  if (blocks == 0) return returned(cudaErrorLaunchOutOfResources);
  if (cooperative) {
    if (!device.cooperative) return returned(cudaErrorNotSupported);
    const uint64_t all = uint64_t{grid.x} * grid.y * grid.z;
    const char* text = std::getenv("CUDA_CPU_OCCUPIED");
    const uint64_t room =
        static_cast<uint64_t>(blocks) * static_cast<uint64_t>(device.multiprocessors);
    const uint64_t occupied = text == nullptr ? 0 : std::strtoull(text, nullptr, 10);
    if (all > room - std::min(room, occupied)) return returned(cudaErrorCooperativeLaunchTooLarge);
  }
  run(grid, threads, config->dynamicSmemBytes, cooperative, body, arguments);
  return cudaSuccess;
}

}  // namespace cuda_cpu

using cuda_cpu::device;
using cuda_cpu::returned;

extern "C" {

// ---- errors -----------------------------------------------------------------------------------

cudaError_t cudaGetLastError() {
  const cudaError_t error = cuda_cpu::last_error;
  cuda_cpu::last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() { return cuda_cpu::last_error; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorLaunchOutOfResources:
      return "cudaErrorLaunchOutOfResources";
    case cudaErrorCooperativeLaunchTooLarge:
      return "cudaErrorCooperativeLaunchTooLarge";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
    default:
      return "unrecognized error code";
  }
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorLaunchOutOfResources:
      return "too many resources requested for launch";
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
    case cudaErrorNotSupported:
      return "operation not supported";
    default:
      return "unrecognized error code";
  }
}

// ---- the device -------------------------------------------------------------------------------

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* number) {
  *number = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int number) {
  return returned(number == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int number) {
  if (number != 0) return returned(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
      *value = cuda_cpu::kThreadsPerBlock;
      break;
    case cudaDevAttrMaxBlockDimZ:
      *value = 64;
      break;
    case cudaDevAttrMaxGridDimX:
      *value = 0x7fffffff;
      break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      *value = 65535;
      break;
    case cudaDevAttrWarpSize:
      *value = 32;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = device.multiprocessors;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = device.threads_per_multiprocessor;
      break;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      *value = device.blocks_per_multiprocessor;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = cuda_cpu::kSharedPerBlock;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = device.shared_per_block_opt_in;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = device.shared_per_multiprocessor;
      break;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      *value = cuda_cpu::reserved_shared();
      break;
    case cudaDevAttrMaxRegistersPerBlock:
      *value = 65536;
      break;
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      *value = device.registers_per_multiprocessor;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = device.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = device.minor;
      break;
    case cudaDevAttrCooperativeLaunch:
      *value = device.cooperative;
      break;
    case cudaDevAttrL2CacheSize:
      *value = device.l2_bytes;
      break;
    case cudaDevAttrClockRate:
      *value = device.clock_khz;
      break;
    default:
      return returned(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

// ---- kernels ----------------------------------------------------------------------------------

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      value > device.shared_per_block_opt_in)
    return returned(cudaErrorInvalidValue);
  const std::lock_guard<std::mutex> lock(cuda_cpu::kernels_mutex);
  cuda_cpu::shared_limits[kernel] = value;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  *attributes = {};
  attributes->maxThreadsPerBlock = cuda_cpu::kThreadsPerBlock;
  attributes->numRegs = device.registers_per_thread;
  attributes->ptxVersion = attributes->binaryVersion = 10 * device.major + device.minor;
  attributes->maxDynamicSharedSizeBytes = cuda_cpu::shared_limit(kernel);
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel,
                                                          int threads, size_t shared_bytes) {
  if (threads <= 0) return returned(cudaErrorInvalidValue);
  *blocks = 0;
  if (threads <= cuda_cpu::kThreadsPerBlock &&
      shared_bytes <= static_cast<size_t>(cuda_cpu::shared_limit(kernel)))
    *blocks = cuda_cpu::occupancy(threads, shared_bytes);
  return cudaSuccess;
}

// ---- memory and streams: all is done when a call returns ----------------------------------------

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  if (posix_memalign(memory, 256, bytes) != 0) return returned(cudaErrorMemoryAllocation);
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
  if (bytes > 0) std::memset(memory, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(memory, value, bytes);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}

cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

}  // extern "C"
