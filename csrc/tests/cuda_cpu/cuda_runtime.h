// Stands in for the toolkit's cuda_runtime.h where the sources of kernels are compiled as C++: what
// a kernel calls, in terms of cuda_cpu.h, and launches. Types and the API's declarations are the
// toolkit's own.
#pragma once

#include <cuda_runtime_api.h>
#include <math.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "cuda_cpu.h"

// One block, one OS thread: what is local to the thread is shared by the block.
#undef __shared__
#define __shared__ static thread_local

#define __launch_bounds__(...)

// ---- collectives ------------------------------------------------------------------------------

inline void __syncthreads(cuda_cpu::Site site = cuda_cpu::Site::current()) {
  cuda_cpu::sync_threads("__syncthreads", 0, site);
}
inline int __syncthreads_count(int predicate, cuda_cpu::Site site = cuda_cpu::Site::current()) {
  return cuda_cpu::sync_threads("__syncthreads_count", predicate, site);
}
inline int __syncthreads_or(int predicate, cuda_cpu::Site site = cuda_cpu::Site::current()) {
  return cuda_cpu::sync_threads("__syncthreads_or", predicate, site) != 0;
}
inline int __syncthreads_and(int predicate, cuda_cpu::Site site = cuda_cpu::Site::current()) {
  return cuda_cpu::sync_threads("__syncthreads_and", !predicate, site) == 0;
}

inline void __syncwarp(unsigned mask = 0xffffffffu,
                       cuda_cpu::Site site = cuda_cpu::Site::current()) {
  cuda_cpu::sync_warp(mask, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              cuda_cpu::Site site = cuda_cpu::Site::current()) {
  return cuda_cpu::vote("__ballot_sync", mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate,
                      cuda_cpu::Site site = cuda_cpu::Site::current()) {
  return cuda_cpu::vote("__any_sync", mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate,
                      cuda_cpu::Site site = cuda_cpu::Site::current()) {
  return cuda_cpu::vote("__all_sync", mask, predicate != 0, site) == mask;
}

namespace cuda_cpu {

template <typename T>
T shuffle_value(const char* name, unsigned mask, T value, unsigned source, Site site) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof value);
  word = shuffle(name, mask, word, source, site);
  std::memcpy(&value, &word, sizeof value);
  return value;
}

}  // namespace cuda_cpu

// `width` splits the warp into segments; a source outside of them is the lane itself.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              cuda_cpu::Site site = cuda_cpu::Site::current()) {
  const unsigned lane = cuda_cpu::lane(), last = static_cast<unsigned>(width) - 1;
  return cuda_cpu::shuffle_value("__shfl_sync", mask, value,
                                 (lane & ~last) | (static_cast<unsigned>(source) & last), site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  cuda_cpu::Site site = cuda_cpu::Site::current()) {
  const unsigned lane = cuda_cpu::lane(), last = static_cast<unsigned>(width) - 1;
  const unsigned source = lane ^ static_cast<unsigned>(lane_mask);
  return cuda_cpu::shuffle_value("__shfl_xor_sync", mask, value,
                                 source > (lane | last) ? lane : source, site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   cuda_cpu::Site site = cuda_cpu::Site::current()) {
  const unsigned lane = cuda_cpu::lane(), last = static_cast<unsigned>(width) - 1;
  return cuda_cpu::shuffle_value("__shfl_down_sync", mask, value,
                                 (lane & last) + delta > last ? lane : lane + delta, site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 cuda_cpu::Site site = cuda_cpu::Site::current()) {
  const unsigned lane = cuda_cpu::lane(), last = static_cast<unsigned>(width) - 1;
  return cuda_cpu::shuffle_value("__shfl_up_sync", mask, value,
                                 (lane & last) < delta ? lane : lane - delta, site);
}

// ---- waiting and memory -----------------------------------------------------------------------

inline void __nanosleep(unsigned, cuda_cpu::Site site = cuda_cpu::Site::current()) {
  cuda_cpu::sleep(site);
}
inline void __threadfence() { cuda_cpu::fence(); }
inline void __threadfence_block() { cuda_cpu::fence(); }
[[noreturn]] inline void __trap(cuda_cpu::Site site = cuda_cpu::Site::current()) {
  cuda_cpu::trap(site);
}
inline long long clock64() { return cuda_cpu::clock(); }

template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcg(const T* address) {
  return *address;
}
template <typename T>
T __ldcs(const T* address) {
  return *address;
}
template <typename T>
void __stcg(T* address, T value) {
  *address = value;
}
template <typename T>
void __stcs(T* address, T value) {
  *address = value;
}

// Integers only: adding floats up in the order in which threads come is not deterministic.
template <typename T>
requires std::is_integral_v<T> T atomicAdd(T* address, std::type_identity_t<T> value) {
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
template <typename T>
requires std::is_integral_v<T> T atomicExch(T* address, std::type_identity_t<T> value) {
  return __atomic_exchange_n(address, value, __ATOMIC_RELAXED);
}
template <typename T>
requires std::is_integral_v<T> T atomicCAS(T* address, std::type_identity_t<T> expected,
                                           std::type_identity_t<T> value) {
  __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}

// ---- arithmetic -------------------------------------------------------------------------------

inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }

// The fast functions are the exact ones here. glibc declares some of the names, hence extern "C".
extern "C" {
inline float __expf(float x) noexcept { return expf(x); }
inline float __logf(float x) noexcept { return logf(x); }
inline float __log2f(float x) noexcept { return log2f(x); }
inline float __powf(float x, float y) noexcept { return powf(x, y); }
inline float __sinf(float x) noexcept { return sinf(x); }
inline float __cosf(float x) noexcept { return cosf(x); }
}
inline float __fdividef(float x, float y) {
  // As documented: 0 for a divisor beyond 2^126, NaN if the dividend is infinite as well.
  if (fabsf(y) > 0x1p126f && !isnan(y)) return isinf(x) ? NAN : isnan(x) ? x : 0.f;
  return x / y;
}
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __frcp_rn(float x) { return 1.f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return static_cast<float>(1. / sqrt(static_cast<double>(x))); }
inline float __saturatef(float x) { return x > 0.f ? (x < 1.f ? x : 1.f) : 0.f; }
inline float rsqrtf(float x) { return __frsqrt_rn(x); }
inline double rsqrt(double x) { return 1. / sqrt(x); }
inline int __float2int_rn(float x) { return static_cast<int>(rintf(x)); }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }

template <typename T>
requires std::is_integral_v<T> constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
requires std::is_integral_v<T> constexpr T max(T a, T b) {
  return a < b ? b : a;
}
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

// ---- launches and the API's C++ half ------------------------------------------------------------

template <typename... Expected, typename... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...),
                               Actual&&... arguments) {
  using Arguments = std::tuple<void (*)(Expected...), std::decay_t<Expected>...>;
  const Arguments all(kernel, std::forward<Actual>(arguments)...);
  const cuda_cpu::Body body = [](const void* memory) {
    const auto call = [](void (*function)(Expected...), const auto&... mine) { function(mine...); };
    std::apply(call, *static_cast<const Arguments*>(memory));
  };
  return cuda_cpu::launch(config, reinterpret_cast<const void*>(kernel), body, &all);
}

template <typename... T>
cudaError_t cudaFuncSetAttribute(void (*kernel)(T...), cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <typename... T>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*kernel)(T...)) {
  return cudaFuncGetAttributes(attributes, reinterpret_cast<const void*>(kernel));
}
template <typename... T>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*kernel)(T...),
                                                          int threads, size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      blocks, reinterpret_cast<const void*>(kernel), threads, shared);
}
template <typename T>
cudaError_t cudaMalloc(T** memory, size_t bytes) {
  return cudaMalloc(reinterpret_cast<void**>(memory), bytes);
}
