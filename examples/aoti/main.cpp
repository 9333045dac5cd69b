// Runs what package.py made, without Python:
//
//   main model.pt2 T B library...
//
// The libraries are loaded first. That of this package, _C.*.so, defines its operators; it is also
// a module of Python, so libpython has to come before it, though no interpreter is started. Prints
// the values of each output on a line.
#include <ATen/ops/arange.h>
#include <ATen/ops/linspace.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <cstdlib>

int main(int argc, char** argv) {
  if (argc < 5) {
    std::fprintf(stderr, "usage: %s model.pt2 T B library...\n", argv[0]);
    return 2;
  }
  const int64_t T = std::atol(argv[2]), B = std::atol(argv[3]);
  for (int i = 4; i < argc; ++i) {
    if (dlopen(argv[i], RTLD_NOW | RTLD_GLOBAL) == nullptr) {
      std::fprintf(stderr, "%s\n", dlerror());
      return 1;
    }
  }

  const c10::InferenceMode guard;
  torch::inductor::AOTIModelPackageLoader loader(argv[1]);
  const at::Tensor x = at::linspace(-1, 1, T * B * 8).view({T, B, 8});
  const at::Tensor lengths = at::arange(B, at::kLong).remainder(T + 1);
  for (const at::Tensor& output : loader.run({x, lengths})) {
    const at::Tensor values = output.contiguous();
    for (int64_t i = 0; i < values.numel(); ++i)
      std::printf("%.9g ", values.const_data_ptr<float>()[i]);
    std::printf("\n");
  }
}
