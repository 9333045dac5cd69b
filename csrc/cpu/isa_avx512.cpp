// The kernels for AVX-512 (F, BW, DQ, VL): thirty-two 512-bit registers.
#include "isa_prelude.h"

#define ISA avx512
#define ISA_NAME "avx512"
#define ISA_VECTOR_BYTES 64
#define ISA_REGISTERS 32

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#include "isa.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const seq2seq_ext::Kernels seq2seq_ext::avx512::kernels = seq2seq_ext::avx512::kTable;
