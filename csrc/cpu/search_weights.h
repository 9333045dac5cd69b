// The weights of a decoder for the search, checked, from a list of tensors.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "../glue/arguments.h"
#include "../search.h"

namespace seq2seq_ext {

// The list has the embedding; w_ih, w_hh, b_ih and b_hh of each layer; then those of kSearchWeights.
// Empty tensors stand for what is not there.
inline constexpr const char* kSearchWeights[] = {
    "w_query", "v",       "gain",      "w_coverage", "w_out",   "b_out",  "w_state",
    "b_state", "w_token", "w_context", "w_rank",     "w_vocab", "b_vocab"};

struct SearchWeights : Common {
  Cell cell;
  int64_t L, H, V, E, X, F, A, C, O, U, R;
  std::vector<View> weights;

  // Throws std::runtime_error naming the argument that is wrong. Keeps pointers into `given`.
  SearchWeights(const std::vector<Handle>& given, int64_t cell, int64_t num_layers,
                int64_t source_features);

  std::string name(int64_t i) const;
  const void* array(int64_t i) const { return present(i) ? weights[i].data() : nullptr; }
  size_t bytes(int64_t i) const {
    return static_cast<size_t>(weights[i].numel() * element_size(dtype));
  }
  bool has(const char* name) const { return present(index(name)); }

  template <typename T>
  DecoderWeights<T> view() const {
    const auto layers = [](const std::vector<const void*>& arrays) {
      return reinterpret_cast<const T* const*>(arrays.data());
    };
    const auto of = [&](const char* name) { return static_cast<const T*>(array(index(name))); };
    DecoderWeights<T> w{};
    w.cell = cell;
    w.L = L, w.H = H, w.V = V, w.E = E, w.X = X, w.F = F, w.A = A, w.C = C, w.O = O;
    w.U = U, w.R = R;
    w.embedding = static_cast<const T*>(array(0));
    w.w_ih = layers(w_ih_), w.w_in = layers(w_in_), w.w_hh = layers(w_hh_);
    w.b_ih = layers(b_ih_), w.b_hh = layers(b_hh_);
    w.w_query = of("w_query"), w.v = of("v"), w.gain = of("gain");
    w.w_coverage = of("w_coverage"), w.w_out = of("w_out"), w.b_out = of("b_out");
    w.w_state = of("w_state"), w.b_state = of("b_state"), w.w_token = of("w_token");
    w.w_context = of("w_context"), w.w_rank = of("w_rank");
    w.w_vocab = of("w_vocab"), w.b_vocab = of("b_vocab");
    return w;
  }

 private:
  bool present(int64_t i) const { return weights[i].numel() > 0; }
  int64_t index(const char* name) const;
  const View& named(const char* name) const { return weights[index(name)]; }
  void check_head();

  std::vector<const void*> w_ih_, w_in_, w_hh_, b_ih_, b_hh_;
};

}  // namespace seq2seq_ext
