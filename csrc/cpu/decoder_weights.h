// The weights of a decoder for decoding (csrc/decoding.h), checked, from a list of tensors.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "../decoding.h"
#include "../glue/arguments.h"

namespace seq2seq_ext {

// The list has the embedding; w_ih, w_hh, b_ih and b_hh of each layer; then these, by whose names
// they are called. Empty tensors stand for what is not there.
enum class DecoderRole {
  kQuery,
  kV,
  kGain,
  kCoverage,
  kOut,
  kOutBias,
  kState,
  kStateBias,
  kToken,
  kContext,
  kRank,
  kVocab,
  kVocabBias
};
inline constexpr const char* kDecoderRoles[] = {
    "w_query", "v",       "gain",      "w_coverage", "w_out",   "b_out",  "w_state",
    "b_state", "w_token", "w_context", "w_rank",     "w_vocab", "b_vocab"};

struct DecoderTensors : Common {
  Cell cell;
  int64_t L, H, V, E, X, F, A, C, O, U, R;
  std::vector<View> weights;

  // Throws std::runtime_error naming the argument that is wrong. Keeps pointers into `given`.
  DecoderTensors(const std::vector<Handle>& given, int64_t cell, int64_t num_layers,
                 int64_t source_features);

  std::string name(int64_t i) const;
  const void* array(int64_t i) const { return present(i) ? weights[i].data() : nullptr; }
  size_t bytes(int64_t i) const {
    return static_cast<size_t>(weights[i].numel() * element_size(dtype));
  }
  bool has(DecoderRole role) const { return present(index(role)); }

  template <typename T>
  DecoderWeights<T> view() const {
    const auto layers = [](const std::vector<const void*>& arrays) {
      return reinterpret_cast<const T* const*>(arrays.data());
    };
    using Role = DecoderRole;
    const auto of = [&](Role role) { return static_cast<const T*>(array(index(role))); };
    DecoderWeights<T> w{};
    w.cell = cell;
    w.L = L, w.H = H, w.V = V, w.E = E, w.X = X, w.F = F, w.A = A, w.C = C, w.O = O;
    w.U = U, w.R = R;
    w.embedding = static_cast<const T*>(array(0));
    w.w_ih = layers(w_ih_), w.w_in = layers(w_in_), w.w_hh = layers(w_hh_);
    w.b_ih = layers(b_ih_), w.b_hh = layers(b_hh_);
    w.w_query = of(Role::kQuery), w.v = of(Role::kV), w.gain = of(Role::kGain);
    w.w_coverage = of(Role::kCoverage), w.w_out = of(Role::kOut), w.b_out = of(Role::kOutBias);
    w.w_state = of(Role::kState), w.b_state = of(Role::kStateBias);
    w.w_token = of(Role::kToken), w.w_context = of(Role::kContext), w.w_rank = of(Role::kRank);
    w.w_vocab = of(Role::kVocab), w.b_vocab = of(Role::kVocabBias);
    return w;
  }

 private:
  bool present(int64_t i) const { return weights[i].numel() > 0; }
  int64_t index(DecoderRole role) const { return 1 + 4 * L + static_cast<int64_t>(role); }
  const View& of(DecoderRole role) const { return weights[index(role)]; }
  void check_head();

  std::vector<const void*> w_ih_, w_in_, w_hh_, b_ih_, b_hh_;
};

}  // namespace seq2seq_ext
