// Weights as narrow types keep them, said anew: what products with packed weights are compared
// with.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/kernels.h"

namespace seq2seq_ext {

// A matrix of so many rows.
inline void round_matrix(std::vector<double>& w, int64_t rows, WeightType type) {
  if (type == WeightType::kFull || w.empty()) return;
  const int64_t width = static_cast<int64_t>(w.size()) / rows;
  for (int64_t row = 0; row < rows; ++row) {
    float largest = 0;
    for (int64_t k = 0; k < width; ++k)
      largest = std::max(largest, std::fabs(static_cast<float>(w[row * width + k])));
    for (int64_t k = 0; k < width; ++k) {
      double& value = w[row * width + k];
      const auto single = static_cast<float>(value);
      if (type == WeightType::kBf16) {
        // 8 significant bits.
        int exponent;
        const double fraction = std::frexp(double(single), &exponent);
        value = std::ldexp(std::nearbyint(std::ldexp(fraction, 8)), exponent - 8);
      } else {
        value = std::nearbyint(single * (127 / largest)) * double(largest) / 127;
      }
    }
  }
}

}  // namespace seq2seq_ext
