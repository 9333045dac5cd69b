// The types of numbers that the kernels are compiled for, by their dtypes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "../glue/tensors.h"

namespace seq2seq_ext::cuda {

// Calls body(T()) with the type of the call's numbers.
template <typename Body>
auto with_number(int32_t dtype, const Body& body) {
  if (dtype == aoti_torch_dtype_float16()) return body(__half());
  if (dtype == aoti_torch_dtype_bfloat16()) return body(__nv_bfloat16());
  if (dtype == aoti_torch_dtype_float32()) return body(float());
  return body(double());
}

}  // namespace seq2seq_ext::cuda
