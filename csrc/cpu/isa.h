// The kernels for one instruction set. Each isa_*.cpp defines ISA (a namespace), ISA_NAME,
// ISA_VECTOR_BYTES and ISA_REGISTERS, sets the compiler's target, and includes this. Everything
// from the standard library is included by isa_prelude.h before the target is set: an inline
// function of the library compiled for AVX-512 here could otherwise be the copy that the linker
// keeps for all.

namespace seq2seq_ext {
namespace ISA {

#define ISA_INLINE inline __attribute__((always_inline))

#include "vec.h"
// needs vec.h
#include "math.h"
// needs vec.h
#include "storage.h"
// needs storage.h
#include "gemm.h"
// need gemm.h
#include "engine.h"
#include "gradients.h"
#include "operand.h"
// need operand.h
#include "packed_matrix.h"
#include "panels.h"
// needs packed_matrix.h
#include "shared_product.h"
// need all of the above
#include "backward.h"
#include "forward.h"
// needs engine.h
#define ROW_STEP ISA_INLINE
#include "../row_step.h"
#undef ROW_STEP
// needs row_step.h and packed_matrix.h
#include "recurrence.h"
// needs recurrence.h
#include "attention.h"
// needs attention.h
#include "decoder.h"
// needs decoder.h
#include "decoding.h"
// needs decoding.h
#include "search.h"
// needs vec.h
#include "limits_loops.h"
// needs forward.h, backward.h, recurrence.h, decoder.h, search.h and limits_loops.h
#include "entry.h"

#undef ISA_INLINE

}  // namespace ISA

}  // namespace seq2seq_ext
