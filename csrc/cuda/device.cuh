// The few things that the kernels ask of a GPU beside plain CUDA C++, in one place: numbers as they
// are stored and as they are added up, memory through which blocks hand each other values while
// they run, the tensor cores' instruction, barriers, and dynamic shared memory.
//
// Without nvcc the same sources are compiled as C++ against the headers in csrc/tests/cuda_cpu,
// which run every thread of a launch as a fiber; what is inline PTX here has a twin for them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "kernels.h"

#ifndef __CUDACC__
#include <cstring>

#include "cuda_cpu.h"
#endif

namespace seq2seq_ext::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// ---- barriers -------------------------------------------------------------------------------

// Every barrier has a number, so that a test can take one out at a time and see that it is missed.
#ifdef __CUDACC__
#define SEQ2SEQ_EXT_SYNC_THREADS(number) __syncthreads()
#define SEQ2SEQ_EXT_SYNC_WARP(number) __syncwarp()
#define SEQ2SEQ_EXT_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#else
#define SEQ2SEQ_EXT_SYNC_THREADS(number) \
  if (cuda_cpu::barrier_active(number)) __syncthreads()
#define SEQ2SEQ_EXT_SYNC_WARP(number) \
  if (cuda_cpu::barrier_active(number)) __syncwarp()
#define SEQ2SEQ_EXT_DYNAMIC_SHARED(name) unsigned char* const name = cuda_cpu::dynamic_shared()
#endif

// Whether a wait for another block's values is in force; a test takes out these too.
__device__ __forceinline__ bool wait_active([[maybe_unused]] int number) {
#ifdef __CUDACC__
  return true;
#else
  return cuda_cpu::barrier_active(number);
#endif
}

// ---- numbers --------------------------------------------------------------------------------

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T narrow(Accumulator<T> x) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

// The stored number's bits. There is one NaN, so that the bits are never all ones: that pattern
// tells that a number has not come yet (see Piece).
template <typename T>
__device__ __forceinline__ auto bits_of(T x) {
  if constexpr (sizeof(T) == 2) {
    if constexpr (std::is_same_v<T, __half>) {
      return __half_as_ushort(x);
    } else {
      return __bfloat16_as_ushort(x);
    }
  } else if constexpr (sizeof(T) == 4) {
    return x == x ? __float_as_uint(x) : 0x7fc00000u;
  } else {
    return static_cast<unsigned long long>(x == x ? __double_as_longlong(x) : 0x7ff8000000000000ll);
  }
}

// The number with the same bits, for those of bits_of.
template <typename T, typename Bits>
__device__ __forceinline__ T from_bits(Bits bits) {
  if constexpr (std::is_same_v<T, __half>) {
    return __ushort_as_half(bits);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __ushort_as_bfloat16(bits);
  } else if constexpr (std::is_same_v<T, float>) {
    return __uint_as_float(bits);
  } else {
    return __longlong_as_double(static_cast<long long>(bits));
  }
}

// ---- values that other blocks wait for --------------------------------------------------------

// 16 adjacent bytes, as one lane loads them: the unit in which h and gate gradients travel.
//
// Memory for them is filled with ones beforehand, the bits of a NaN that no cell writes (bits_of).
// So every word tells by itself whether it has come, and nothing else has to be ordered: blocks
// store and load single words, relaxed, and need neither flags nor fences. A word is 32 bits, two
// half-precision numbers stored at once, or 64 bits for double.
struct alignas(16) Piece {
  uint32_t word[4];
};

template <typename T>
constexpr int kPerPiece = 16 / sizeof(T);

template <typename T>
__device__ __forceinline__ bool has_come(const Piece& p) {
  if constexpr (sizeof(T) == 8) {
    return (p.word[0] & p.word[1]) != ~0u && (p.word[2] & p.word[3]) != ~0u;
  } else {
    return p.word[0] != ~0u && p.word[1] != ~0u && p.word[2] != ~0u && p.word[3] != ~0u;
  }
}

// Loads a piece that other blocks may be writing, at an address aligned to 16 bytes.
template <typename T>
__device__ __forceinline__ Piece load_shared_piece(const void* address) {
  Piece p;
#ifdef __CUDACC__
  if constexpr (sizeof(T) == 8) {
    unsigned long long a, b;
    asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];"
                 : "=l"(a), "=l"(b)
                 : "l"(address)
                 : "memory");
    p.word[0] = static_cast<uint32_t>(a);
    p.word[1] = static_cast<uint32_t>(a >> 32);
    p.word[2] = static_cast<uint32_t>(b);
    p.word[3] = static_cast<uint32_t>(b >> 32);
  } else {
    asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(p.word[0]), "=r"(p.word[1]), "=r"(p.word[2]), "=r"(p.word[3])
                 : "l"(address)
                 : "memory");
  }
#else
  if constexpr (sizeof(T) == 8) {
    for (int i = 0; i < 2; ++i) {
      const uint64_t v =
          __atomic_load_n(static_cast<const uint64_t*>(address) + i, __ATOMIC_RELAXED);
      std::memcpy(p.word + 2 * i, &v, 8);
    }
  } else {
    for (int i = 0; i < 4; ++i)
      p.word[i] = __atomic_load_n(static_cast<const uint32_t*>(address) + i, __ATOMIC_RELAXED);
  }
#endif
  return p;
}

template <typename Word>
__device__ __forceinline__ void store_shared_word(void* address, Word value) {
  static_assert(sizeof(Word) == 4 || sizeof(Word) == 8);
#ifdef __CUDACC__
  if constexpr (sizeof(Word) == 4) {
    asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
  } else {
    asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
  }
#else
  __atomic_store_n(static_cast<Word*>(address), value, __ATOMIC_RELAXED);
#endif
}

// Lets the other warps of the multiprocessor go on between two looks at memory.
__device__ __forceinline__ void pause_briefly() { __nanosleep(20); }

// Asks for a line that will be read later: as a rule one step ahead.
__device__ __forceinline__ void prefetch([[maybe_unused]] const void* address) {
#ifdef __CUDACC__
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#endif
}

// ---- tensor cores -----------------------------------------------------------------------------

// Rounds a stored word to what the tensor cores read: TF32 keeps 10 bits of a float's fraction,
// rounded to the nearest; half and bfloat16 are read as they are.
template <typename T>
__device__ __forceinline__ uint32_t tensor_word(uint32_t word) {
  if constexpr (std::is_same_v<T, float>) {
#if !defined(__CUDACC__)
    return (word & 0x7f800000u) == 0x7f800000u ? word : (word + 0x1000u) & ~0x1fffu;
#elif __CUDA_ARCH__ >= 800
    uint32_t rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(word)));
    return rounded;
#else
    return word;
#endif
  } else {
    return word;
  }
}

#ifndef __CUDACC__
template <typename T>
float tensor_value(const uint32_t* words, int k) {
  if constexpr (std::is_same_v<T, float>) {
    return __uint_as_float(words[k]);
  } else {
    T value;
    std::memcpy(&value, reinterpret_cast<const char*>(words) + 2 * k, 2);
    return widen(value);
  }
}
#endif

// c += A B with A of 16 rows, B of 8 columns, and as many k as 4 lanes hold in 2 words each: 16 in
// half precision, 8 in TF32. A whole warp calls it; lane = 4 r + q holds
//   a[0], a[1]: row r, a[2], a[3]: row r + 8, of A;  b[0], b[1]: column r of B;
//   c[0], c[1]: row r, columns 2q and 2q + 1;  c[2], c[3]: row r + 8.
// Which k lie in a lane's words is the caller's choice, as long as it is the same in A and B.
template <typename T>
__device__ __forceinline__ void multiply_tile(float (&c)[4], const uint32_t (&a)[4],
                                              const uint32_t (&b)[2]) {
#if !defined(__CUDACC__)
  struct Mine {
    uint32_t a[4], b[2];
  } mine;
  std::memcpy(mine.a, a, sizeof a);
  std::memcpy(mine.b, b, sizeof b);
  const char* all = static_cast<const char*>(cuda_cpu::gather(&mine, sizeof mine));
  const auto lane_of = [&](int lane) { return reinterpret_cast<const Mine*>(all + 64 * lane); };
  const int lane = static_cast<int>(threadIdx.x % kWarp), row = lane / 4, column = 2 * (lane % 4);
  constexpr int kPerPair = std::is_same_v<T, float> ? 2 : 4;
  for (int q = 0; q < 4; ++q) {
    const Mine* rows = lane_of(4 * row + q);
    const Mine* columns[2] = {lane_of(4 * column + q), lane_of(4 * (column + 1) + q)};
    for (int k = 0; k < kPerPair; ++k) {
      for (int j = 0; j < 2; ++j) {
        const float value = tensor_value<T>(columns[j]->b, k);
        c[j] += tensor_value<T>(rows->a, k) * value;
        c[2 + j] += tensor_value<T>(rows->a + 2, k) * value;
      }
    }
  }
#elif __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[2]), "r"(a[1]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[2]), "r"(a[1]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[2]), "r"(a[1]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#elif __CUDA_ARCH__ >= 750
  if constexpr (std::is_same_v<T, __half>) {
    // Turing multiplies 8 k at a time.
    for (int k = 0; k < 2; ++k) {
      asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
          "{%0,%1,%2,%3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[k]), "r"(a[2 + k]), "r"(b[k]));
    }
  } else {
    __trap();  // plan.cpp never sends these types here
  }
#else
  __trap();
#endif
}

}  // namespace seq2seq_ext::cuda
