#include "tensors.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "../cpu/scratch.h"

namespace seq2seq_ext {
namespace {

// The C library hands smaller blocks out again and again, but maps larger ones anew each time
// (M_MMAP_THRESHOLD, at most 32 MiB). A training step of a layer that keeps 64 MB for backward took
// 10 % longer by the faults of small pages.
constexpr size_t kMappedAnew = size_t{32} << 20;

}  // namespace

Handle empty(const Shape& shape, int32_t dtype, Device device) {
  int64_t stride[4], elements = 1;
  bool fits = true;
  for (int64_t i = shape.dim - 1; i >= 0; --i) {
    stride[i] = elements;
    fits &= !__builtin_mul_overflow(elements, std::max<int64_t>(shape.size[i], 1), &elements);
  }
  AtenTensorHandle handle;
  if (!fits || aoti_torch_empty_strided(shape.dim, shape.size, stride, dtype, device.type,
                                        device.index, &handle) != TORCH_SUCCESS) {
    std::string sizes;
    for (int64_t i = 0; i < shape.dim; ++i)
      sizes += (i ? ", " : "") + std::to_string(shape.size[i]);
    throw std::runtime_error("not enough memory for a tensor of shape (" + sizes + ")");
  }
  Handle tensor(handle);
  if (device.type == aoti_torch_device_type_cpu()) {
    const auto bytes = static_cast<size_t>(elements * element_size(dtype));
    if (bytes >= kMappedAnew) advise_huge_pages(data_of(tensor), bytes);
  }
  return tensor;
}

Handle alias(AtenTensorHandle handle) {
  AtenTensorHandle same;
  TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(handle, &same));
  return Handle(same);
}

Handle in_dtype(Handle tensor, int32_t dtype) {
  int32_t given;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &given));
  if (given == dtype) return tensor;
  const torch::stable::Tensor converted = torch::stable::to(
      torch::stable::Tensor(tensor.release()), static_cast<torch::headeronly::ScalarType>(dtype));
  return alias(converted.get());
}

StableIValue result(std::vector<Handle> tensors) {
  StableListHandle list;
  TORCH_ERROR_CODE_CHECK(torch_new_list_reserve_size(tensors.size(), &list));
  for (Handle& tensor : tensors)
    TORCH_ERROR_CODE_CHECK(torch_list_push_back(list, result(std::move(tensor))));
  return torch::stable::detail::from(list);
}

}  // namespace seq2seq_ext
