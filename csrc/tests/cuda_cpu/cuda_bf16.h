// The toolkit's cuda_bf16.h, and of the functions that it has for the device only, the fused
// multiply-add.
#pragma once

#include_next <cuda_bf16.h>
#include <cuda_fp16.h>

// In double the product is exact and the sum as good as, so that one rounding remains.
inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
  const auto wide = [](__nv_bfloat16 x) { return static_cast<double>(__bfloat162float(x)); };
  return __double2bfloat16(wide(a) * wide(b) + wide(c));
}

inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
  return __halves2bfloat162(__hfma(__low2bfloat16(a), __low2bfloat16(b), __low2bfloat16(c)),
                            __hfma(__high2bfloat16(a), __high2bfloat16(b), __high2bfloat16(c)));
}
