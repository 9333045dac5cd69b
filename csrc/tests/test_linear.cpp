// The product with a matrix that stays packed, on every instruction set and in every type, against
// sums in double: sizes around those of vectors, panels and blocks, arrays of exactly their size,
// and the same bits from teams of every size.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "random.h"
#include "rounded.h"
#include "run_kernel.h"

using namespace seq2seq_ext;

namespace {

using Values = std::vector<double>;

int checks = 0, failures = 0;

Values random_values(Random& random, int64_t count) {
  Values values(count);
  for (double& value : values) value = 2 * random.uniform() - 1;
  return values;
}

struct Case {
  int64_t rows, K, N;
  WeightType type;
  Values x, w, bias;  // no bias: empty
};

template <typename T>
std::vector<T> run(const Case& c, const Kernels& kernels, int threads) {
  constexpr bool kFloat = std::is_same_v<T, float>;
  const auto of_type = [](auto f32, auto f64) {
    if constexpr (kFloat)
      return f32;
    else
      return f64;
  };
  const std::vector<T> x(c.x.begin(), c.x.end()), w(c.w.begin(), c.w.end()),
      bias(c.bias.begin(), c.bias.end());
  const Block packed(of_type(kernels.matrix_size_f32, kernels.matrix_size_f64)(c.K, c.N, c.type));
  of_type(kernels.pack_matrix_f32, kernels.pack_matrix_f64)(w.data(), c.K, c.N, c.type,
                                                            packed.data());
  std::vector<T> y(c.rows * c.N, std::numeric_limits<T>::quiet_NaN());
  Linear<T> call{
      c.rows,   c.K, c.N, x.data(), {packed.data(), c.type}, bias.empty() ? nullptr : bias.data(),
      y.data(), {}};
  call.plan.threads = threads;
  run_kernel(call, of_type(kernels.linear_workspace_f32, kernels.linear_workspace_f64),
             of_type(kernels.linear_f32, kernels.linear_f64));
  return y;
}

// `error`: of a sum relative to those of the weights' magnitudes times the largest of the row.
template <typename T>
void check(const Case& c, const Kernels& kernels, double error) {
  Values w = c.w;
  for (double& value : w) value = static_cast<T>(value);
  round_matrix(w, c.N, c.type);
  const std::vector<T> alone = run<T>(c, kernels, 1);
  const auto tell = [&](const char* what, int64_t i, double got, double wanted) {
    if (++failures <= 20)
      std::printf(
          "%s, %d bytes a number, type %d, rows %d K %d N %d: %s, number %d is %.9g, not %.9g\n",
          kernels.name, int(sizeof(T)), int(c.type), int(c.rows), int(c.K), int(c.N), what, int(i),
          got, wanted);
  };
  for (int64_t m = 0; m < c.rows; ++m) {
    double largest = 0;
    for (int64_t k = 0; k < c.K; ++k) largest = std::max(largest, std::fabs(c.x[m * c.K + k]));
    for (int64_t n = 0; n < c.N; ++n) {
      double wanted = c.bias.empty() ? 0 : double(static_cast<T>(c.bias[n]));
      double size = std::fabs(wanted);
      for (int64_t k = 0; k < c.K; ++k) {
        wanted += double(static_cast<T>(c.x[m * c.K + k])) * w[n * c.K + k];
        size += largest * std::fabs(w[n * c.K + k]);
      }
      ++checks;
      const double got = alone[m * c.N + n];
      if (!(std::fabs(got - wanted) <= error * size)) tell("sum", m * c.N + n, got, wanted);
    }
  }
  for (const int threads : {2, 3}) {
    const std::vector<T> together = run<T>(c, kernels, threads);
    ++checks;
    for (size_t i = 0; i < alone.size(); ++i) {
      if (together[i] == alone[i]) continue;
      tell("in a team", int64_t(i), together[i], alone[i]);
      break;
    }
  }
}

}  // namespace

int main() {
  Random random(1);
  for (const std::string& isa : available_cpu_isas()) {
    const Kernels& kernels = kernels_for(isa);
    for (const int64_t rows : {1, 2, 5, 96, 97, 300}) {
      for (const int64_t K : {1, 4, 33, 130}) {
        for (const int64_t N : {1, 16, 31, 64, 65, 132, 200}) {
          const Values bias = random_values(random, (rows + K + N) % 2 ? N : 0);
          Case c{rows,
                 K,
                 N,
                 WeightType::kFull,
                 random_values(random, rows * K),
                 random_values(random, N * K),
                 bias};
          check<double>(c, kernels, 1e-14);
          check<float>(c, kernels, 1e-6);
          c.type = WeightType::kBf16;
          check<float>(c, kernels, 1.2e-5);  // of 16 bits of x, see narrow_product.h
          c.type = WeightType::kInt8;
          check<float>(c, kernels, 1.7e-5);  // half of 1 / 32639
        }
      }
    }
  }
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures > 0;
}
