// exp, tanh and sigmoid of every instruction set that this CPU runs, against the C library in a
// wider type: errors in units in the last place, special values, and every length of the last
// vector.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/kernels.h"

using namespace seq2seq_ext;

namespace {

int failures = 0;

void expect(bool ok, const char* isa, const char* what, double x, double got, double wanted) {
  if (ok) return;
  if (++failures <= 20)
    std::printf("%s: %s(%.9g) = %.17g, expected %.17g\n", isa, what, x, got, wanted);
}

constexpr const char* kNames[] = {"exp", "tanh", "sigmoid"};

template <typename Wide>
Wide exact(int function, Wide x) {
  return function == 0 ? std::exp(x) : function == 1 ? std::tanh(x) : 1 / (1 + std::exp(-x));
}

template <typename T>
void map(const Kernels& kernels, int function, const std::vector<T>& x, std::vector<T>& y) {
  if constexpr (std::is_same_v<T, float>) {
    kernels.map_f32(function, static_cast<int64_t>(x.size()), x.data(), y.data());
  } else {
    kernels.map_f64(function, static_cast<int64_t>(x.size()), x.data(), y.data());
  }
}

// Wide is double for float and long double for double.
template <typename T, typename Wide>
void check(const Kernels& kernels) {
  std::vector<T> x;
  const T limit = sizeof(T) == 4 ? T(85) : T(700);
  for (T a = T(1e-30); a < limit; a *= T(1.0009765625)) {
    x.push_back(a);
    x.push_back(-a);
  }
  for (int function = 0; function < 3; ++function) {
    std::vector<T> y(x.size());
    map(kernels, function, x, y);
    double worst = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const Wide wanted = exact<Wide>(function, x[i]);
      const T rounded = static_cast<T>(wanted);
      const T ulp = std::nextafter(std::fabs(rounded), std::numeric_limits<T>::infinity()) -
                    std::fabs(rounded);
      const double error = static_cast<double>(std::fabs(static_cast<Wide>(y[i]) - wanted) / ulp);
      worst = std::max(worst, error);
      expect(error <= 3, kernels.name, kNames[function], x[i], y[i], static_cast<double>(wanted));
    }
    std::printf("%-8s %s %s: %.2f ulp over %zu values\n", kernels.name,
                sizeof(T) == 4 ? "f32" : "f64", kNames[function], worst, x.size());

    const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
    const std::vector<T> special{inf,   -inf,   nan,     T(0),
                                 -T(0), T(1e6), T(-1e6), std::numeric_limits<T>::denorm_min()};
    std::vector<T> out(special.size());
    map(kernels, function, special, out);
    for (size_t i = 0; i < special.size(); ++i) {
      const T wanted = exact<T>(function, special[i]);
      if (std::isnan(special[i])) {
        expect(std::isnan(out[i]), kernels.name, kNames[function], special[i], out[i], wanted);
      } else if (function != 0 || special[i] <= 0) {
        // exp is only ever used where a clamp at its limits does no harm: not tested for overflow.
        const bool tiny = function == 0 && std::fabs(out[i] - wanted) < T(1e-30);
        expect(tiny || out[i] == wanted, kernels.name, kNames[function], special[i], out[i],
               wanted);
      }
    }
    expect(std::signbit(out[4]) == std::signbit(exact<T>(function, -T(0))), kernels.name,
           kNames[function], -0.0, out[4], exact<T>(function, -T(0)));
  }
  // Every length up to several vectors; the vectors are exact, so that a sanitizer sees any
  // overrun.
  for (size_t n = 1; n < 70; ++n) {
    std::vector<T> a(n, T(0.5)), b(n, T(-1));
    map(kernels, 2, a, b);
    for (size_t i = 0; i < n; ++i) {
      expect(std::fabs(b[i] - T(0.6224593312018546)) < 1e-6, kernels.name, "sigmoid", a[i], b[i],
             0.6224593312018546);
    }
  }
}

}  // namespace

int main() {
  for (const std::string& name : available_cpu_isas()) {
    check<float, double>(kernels_for(name));
    check<double, long double>(kernels_for(name));
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
