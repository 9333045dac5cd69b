// The kernels for every x86-64: SSE2, sixteen 128-bit registers, no fused multiply-add.
#include "isa_prelude.h"

#define ISA baseline
#define ISA_NAME "baseline"
#define ISA_VECTOR_BYTES 16
#define ISA_REGISTERS 16

#include "isa.h"

const seq2seq_ext::Kernels seq2seq_ext::baseline::kernels = seq2seq_ext::baseline::kTable;
