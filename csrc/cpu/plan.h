// How many threads a call gets and how its work is laid on them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels.h"

namespace seq2seq_ext {

struct Problem {
  Cell cell;
  bool backward;
  std::optional<WeightType> packed;  // forward with weights that are packed already, and as what
  int64_t T, B, N, I, H, P, L, D;
  size_t element_size;
  int vector_bytes;
  bool rows_only = false;  // a recurrence with variants
};

// Every layout that can run `problem` on at most `max_threads` threads, each with the time that the
// cost model expects (plan.cpp).
std::vector<Plan> possible_plans(const Problem& problem, int max_threads);

// The one of them that is expected to be the fastest; or, where the environment variable
// SEQ2SEQ_EXT_PLAN or set_plan forces one, the one nearest to that.
Plan make_plan(const Problem& problem, int max_threads);

// Forces a layout from the next call on: "threads=2,split=units", or either alone; split is rows,
// units or layers. An empty text forces nothing. Throws std::invalid_argument for any other text.
void set_plan(const std::string& text);

// A product of `rows` rows with packed weights (N, K): on as many threads as pay.
struct LinearProblem {
  int64_t rows, K, N;
  WeightType packed;
  size_t element_size;
  int vector_bytes;
};
Plan make_plan(const LinearProblem& problem, int max_threads);

// Steps of a decoder: `rows` are all of them, in so many shares that may have an owner each. What
// a row's step multiplies by are so many weights, in so many products.
struct DecodingProblem {
  Problem rows;
  int64_t shares;
  double weights;
  int products;
};
Plan make_plan(const DecodingProblem& problem, int max_threads);

const char* split_name(Split split);

}  // namespace seq2seq_ext
