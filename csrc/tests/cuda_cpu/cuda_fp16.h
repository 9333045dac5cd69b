// The toolkit's cuda_fp16.h, and of the functions that it has for the device only, the fused
// multiply-add.
#pragma once

#include_next <cuda_fp16.h>

// In double the product is exact and the sum as good as, so that one rounding remains.
inline __half __hfma(__half a, __half b, __half c) {
  const auto wide = [](__half x) { return static_cast<double>(__half2float(x)); };
  return __double2half(wide(a) * wide(b) + wide(c));
}

inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  return __halves2half2(__hfma(__low2half(a), __low2half(b), __low2half(c)),
                        __hfma(__high2half(a), __high2half(b), __high2half(c)));
}
