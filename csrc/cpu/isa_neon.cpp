// The kernels for 64-bit Arm: Advanced SIMD, thirty-two 128-bit registers, fused multiply-add.
#include "isa_prelude.h"

#define ISA neon
#define ISA_NAME "neon"
#define ISA_VECTOR_BYTES 16
#define ISA_REGISTERS 32

#include "isa.h"

const seq2seq_ext::Kernels seq2seq_ext::neon::kernels = seq2seq_ext::neon::kTable;
