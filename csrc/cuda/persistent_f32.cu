// The persistent kernels of one stored type, apart so that types compile side by side.
#include "persistent.cuh"

namespace seq2seq_ext::cuda {

template cudaError_t persistent_forward(const Forward<float>&, const Layout&, bool, cudaStream_t);
template cudaError_t persistent_backward(const Backward<float>&, const Layout&, bool, cudaStream_t);

}  // namespace seq2seq_ext::cuda
