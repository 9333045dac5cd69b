// The kernels for AVX2 with FMA: sixteen 256-bit registers.
#include "isa_prelude.h"

#define ISA avx2
#define ISA_NAME "avx2"
#define ISA_VECTOR_BYTES 32
#define ISA_REGISTERS 16

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#include "isa.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const seq2seq_ext::Kernels seq2seq_ext::avx2::kernels = seq2seq_ext::avx2::kTable;
