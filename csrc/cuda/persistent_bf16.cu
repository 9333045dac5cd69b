// The persistent kernels of one stored type, apart so that types compile side by side.
#include "persistent.cuh"

namespace seq2seq_ext::cuda {

template cudaError_t persistent_forward(const Forward<__nv_bfloat16>&, const Layout&, bool,
                                        cudaStream_t);
template cudaError_t persistent_backward(const Backward<__nv_bfloat16>&, const Layout&, bool,
                                         cudaStream_t);

}  // namespace seq2seq_ext::cuda
