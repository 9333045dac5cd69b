#include "runtime.h"

#include <torch/csrc/stable/version.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <stdexcept>
#include <string>

namespace seq2seq_ext::cuda {
namespace {

// Calls an operator of torch with an out argument.
void call_out(const char* name, std::initializer_list<Handle*> arguments) {
  std::array<StableIValue, 3> stack;
  size_t i = 0;
  for (Handle* argument : arguments) stack[i++] = result(std::move(*argument));
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "out", stack.data(), TORCH_ABI_VERSION));
  const Handle out(torch::stable::detail::to<AtenTensorHandle>(stack[0]));  // `out` once more
}

int attribute(cudaDeviceAttr name, int device) {
  int value;
  check(cudaDeviceGetAttribute(&value, name, device));
  return value;
}

Properties ask(int device) {
  Properties p{};
  p.capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
                 attribute(cudaDevAttrComputeCapabilityMinor, device);
  p.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
  p.registers_per_multiprocessor = attribute(cudaDevAttrMaxRegistersPerMultiprocessor, device);
  p.shared_per_multiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  p.shared_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  p.threads_per_multiprocessor = attribute(cudaDevAttrMaxThreadsPerMultiProcessor, device);
  p.cooperative = attribute(cudaDevAttrCooperativeLaunch, device) != 0;
  return p;
}

}  // namespace

void check(cudaError_t error) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("CUDA error: ") + cudaGetErrorString(error));
}

const Properties& properties_of(int32_t device_index) {
  // Never let go: a call in another thread may hold a reference.
  static std::mutex mutex;
  static std::vector<const Properties*> known;
  const std::lock_guard lock(mutex);
  const auto index = static_cast<size_t>(std::max<int32_t>(device_index, 0));
  if (known.size() <= index) known.resize(index + 1, nullptr);
  if (known[index] == nullptr) known[index] = new Properties(ask(static_cast<int>(index)));
  return *known[index];
}

Runtime::Runtime(Device device, int32_t dtype)
    : device_(device), dtype_(dtype), properties_(properties_of(device.index)) {
#ifndef SEQ2SEQ_EXT_CUDA_ON_CPU
  TORCH_ERROR_CODE_CHECK(aoti_torch_create_device_guard(device.index, &guard_));
  void* stream;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device.index, &stream));
  stream_ = static_cast<cudaStream_t>(stream);
#endif
}

Runtime::~Runtime() {
  memory_.clear();
  if (guard_ != nullptr) aoti_torch_delete_device_guard(guard_);
}

void* Runtime::take_bytes(int64_t bytes) {
  memory_.push_back(empty({{std::max<int64_t>(bytes, 1)}, 1}, aoti_torch_dtype_uint8(), device_));
  return data_of(memory_.back());
}

void Runtime::fill(void* memory, int64_t bytes, int byte) const {
  if (bytes > 0) check(cudaMemsetAsync(memory, byte, static_cast<size_t>(bytes), stream_));
}

void Runtime::copy(void* to, const void* from, int64_t bytes) const {
  if (bytes > 0)
    check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream_));
}

Handle Runtime::tensor(const Matrix& m) const {
  int64_t size[3] = {m.batch, m.rows, m.columns}, stride[3] = {m.batch_stride, m.stride, 1};
  if (m.turned) {
    std::swap(size[1], size[2]);
    std::swap(stride[1], stride[2]);
  }
  const int64_t skip = m.batch == 0 ? 1 : 0;
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(m.data, 3 - skip, size + skip,
                                                            stride + skip, 0, dtype_, device_.type,
                                                            device_.index, &handle));
  return Handle(handle);
}

void Runtime::multiply(const Matrix& out, const Matrix& a, const Matrix& b) const {
  if (out.rows == 0 || out.columns == 0) return;
  Handle first = tensor(a), second = tensor(b), target = tensor(out);
  call_out(out.batch == 0 ? "aten::mm" : "aten::bmm", {&first, &second, &target});
}

}  // namespace seq2seq_ext::cuda
