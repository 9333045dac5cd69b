// Tensors as the glue sees them: handles of torch's stable ABI, and what the kernels want to know
// of one, read once. A torch::stable::Tensor would put a shared pointer around each handle and look
// every size up by a call of its own, which for the smallest layers is a tenth of the time.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/stableivalue_conversions.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace seq2seq_ext {

// Owns a handle, or holds none.
class Handle {
 public:
  Handle() = default;
  explicit Handle(AtenTensorHandle handle) : handle_(handle) {}
  Handle(Handle&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Handle() {
    if (handle_ != nullptr) aoti_torch_delete_tensor_object(handle_);
  }

  AtenTensorHandle get() const { return handle_; }
  AtenTensorHandle release() { return std::exchange(handle_, nullptr); }
  explicit operator bool() const { return handle_ != nullptr; }

 private:
  AtenTensorHandle handle_ = nullptr;
};

struct Device {
  int32_t type = 0;   // as aoti_torch_device_type_cpu() and so on
  int32_t index = 0;  // 0 for the CPU
};

// Bytes of a number; 1 for bool and bytes.
inline int64_t element_size(int32_t dtype) {
  if (dtype == aoti_torch_dtype_float64() || dtype == aoti_torch_dtype_int64()) return 8;
  if (dtype == aoti_torch_dtype_float32() || dtype == aoti_torch_dtype_int32()) return 4;
  return dtype == aoti_torch_dtype_float16() || dtype == aoti_torch_dtype_bfloat16() ? 2 : 1;
}

// What a tensor is; borrows from a Handle, which must outlive it.
struct View {
  AtenTensorHandle handle = nullptr;
  int64_t dim = 0;
  const int64_t* size = nullptr;    // (dim)
  const int64_t* stride = nullptr;  // (dim)
  int32_t dtype = 0;                // as aoti_torch_dtype_float32() and so on
  Device device;

  View() = default;
  explicit View(const Handle& tensor) : handle(tensor.get()) {
    if (handle == nullptr) return;
    int64_t *sizes, *strides;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(handle, &dim));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(handle, &sizes));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(handle, &strides));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(handle, &dtype));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(handle, &device.type));
    if (device.type != aoti_torch_device_type_cpu())
      TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(handle, &device.index));
    size = sizes;
    stride = strides;
  }
  explicit operator bool() const { return handle != nullptr; }

  int64_t numel() const {
    int64_t n = 1;
    for (int64_t i = 0; i < dim; ++i) n *= size[i];
    return n;
  }
  // Null where there is no tensor.
  const void* data() const {
    if (handle == nullptr) return nullptr;
    const void* pointer;
    TORCH_ERROR_CODE_CHECK(torch_get_const_data_ptr(handle, &pointer));
    return pointer;
  }
};

inline bool is_contiguous(const View& view) {
  bool contiguous;
  TORCH_ERROR_CODE_CHECK(aoti_torch_is_contiguous(view.handle, &contiguous));
  return contiguous;
}

// A shape to compare with or to allocate: no more than four sizes.
struct Shape {
  int64_t size[4];
  int64_t dim;
};

// Another handle of the same tensor.
Handle alias(AtenTensorHandle handle);

// The tensor, or a copy of it where that dtype is another; strides stay.
Handle in_dtype(Handle tensor, int32_t dtype);

// A new tensor, uninitialized and contiguous. Throws where there is no memory for it.
Handle empty(const Shape& shape, int32_t dtype, Device device = {});

inline void* data_of(const Handle& tensor) {
  void* pointer;
  TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(tensor.get(), &pointer));
  return pointer;
}

// The numbers of a tensor, or null where it has none.
template <typename T>
T* at(const Handle& tensor) {
  return tensor && View(tensor).numel() > 0 ? static_cast<T*>(data_of(tensor)) : nullptr;
}

// The arguments of a boxed operator, taken one by one. Who takes one owns it.
class ArgumentReader {
 public:
  explicit ArgumentReader(const StableIValue* stack) : next_(stack) {}

  Handle tensor() { return Handle(torch::stable::detail::to<AtenTensorHandle>(*next_++)); }
  Handle optional_tensor() {
    return Handle(
        torch::stable::detail::to<std::optional<AtenTensorHandle>>(*next_++).value_or(nullptr));
  }
  int64_t integer() { return torch::stable::detail::to<int64_t>(*next_++); }
  std::optional<int64_t> optional_integer() {
    return torch::stable::detail::to<std::optional<int64_t>>(*next_++);
  }
  double number() { return torch::stable::detail::to<double>(*next_++); }
  bool boolean() { return torch::stable::detail::to<bool>(*next_++); }
  std::optional<torch::headeronly::ScalarType> optional_dtype() {
    return torch::stable::detail::to<std::optional<torch::headeronly::ScalarType>>(*next_++);
  }
  std::vector<Handle> tensors() {
    return taken(torch::stable::detail::to<StableListHandle>(*next_++));
  }
  // None where there is no list.
  std::vector<Handle> optional_tensors() {
    const auto list = torch::stable::detail::to<std::optional<StableListHandle>>(*next_++);
    return list ? taken(*list) : std::vector<Handle>();
  }

 private:
  static std::vector<Handle> taken(StableListHandle list) {
    size_t size = 0;
    TORCH_ERROR_CODE_CHECK(torch_list_size(list, &size));
    std::vector<Handle> tensors;
    tensors.reserve(size);
    for (size_t i = 0; i < size; ++i) {
      StableIValue item;
      TORCH_ERROR_CODE_CHECK(torch_list_get_item(list, i, &item));
      tensors.emplace_back(torch::stable::detail::to<AtenTensorHandle>(item));
    }
    TORCH_ERROR_CODE_CHECK(torch_delete_list(list));
    return tensors;
  }

  const StableIValue* next_;
};

// The results of a boxed operator, put in the place of its arguments.
inline StableIValue result(Handle tensor) { return torch::stable::detail::from(tensor.release()); }
StableIValue result(std::vector<Handle> tensors);

}  // namespace seq2seq_ext
