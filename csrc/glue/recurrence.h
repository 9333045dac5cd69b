// The operators recurrence, recurrence_backward and recurrence_tangent on whatever device: their
// arguments, checked, as the kernels read them (csrc/recurrence.h), and their results.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "../recurrence.h"
#include "arguments.h"

namespace seq2seq_ext {

// What all of them begin with, in the order of ops.cpp.
struct RecurrenceGiven {
  Handle x, w_hh, b_hn, w_hr, h_0, c_0, h_mask, peephole, norm_hh, norm_c, bias_c, seed;
  Handle lengths, batch_sizes, resets;
  int64_t cell;
  bool reverse, hard_sigmoid;
  double zoneout_h, zoneout_c, candidate_dropout, cell_clip, proj_clip;
  int64_t stream;

  explicit RecurrenceGiven(ArgumentReader& read);
};

// What recurrence gets beside them.
struct RecurrenceForwardGiven : RecurrenceGiven {
  bool save, return_cells;
  std::vector<Handle> packed;
  int64_t turn;

  explicit RecurrenceForwardGiven(ArgumentReader& read);
};

struct RecurrenceArguments : Common, Batch {
  Cell cell;
  int64_t H, P;
  bool projected;
  View w_hh, w_hr;

  // Throws std::runtime_error naming the argument that is wrong. Keeps pointers into `given`. Where
  // the weights are `packed`, w_hh and w_hr stay as they are given.
  explicit RecurrenceArguments(const RecurrenceGiven& given, bool packed = false);

  bool has_cell() const { return seq2seq_ext::has_cell(cell, projected); }
  int64_t gates() const { return num_gates(cell) * H; }  // of a row
  // Whether W_hh h has other gradients than x.
  bool sums_apart() const { return cell == Cell::kGru || norm_hh; }
  bool cell_normalized() const { return bool(norm_c); }
  bool sums_normalized() const { return bool(norm_hh); }
  // Throws where the call has a variant, or a cell, whose tangent the kernels do not know.
  void check_tangent() const;

  // All but lengths and offsets, which a device may want to have itself.
  template <typename T>
  void fill(Recurrence<T>& call) const {
    const auto at = [](const View& view) { return static_cast<const T*>(view.data()); };
    call.cell = cell;
    call.T_ = Batch::T, call.B = B, call.H = H, call.P = P, call.N = user_rows;
    call.reverse = reverse;
    call.reset = static_cast<const uint8_t*>(resets.data());
    call.x = at(x), call.w_hh = at(w_hh), call.b_hn = at(b_hn), call.w_hr = at(w_hr);
    call.h_0 = at(h_0), call.c_0 = at(c_0), call.h_mask = at(h_mask), call.peephole = at(peephole);
    call.norm_hh = at(norm_hh), call.norm_c = at(norm_c), call.bias_c = at(bias_c);
    call.noise = noise;
    call.noise.seed = static_cast<const int64_t*>(seed.data());
    call.hard_sigmoid = hard_sigmoid;
    call.cell_clip = cell_clip, call.proj_clip = proj_clip;
  }

 private:
  RecurrenceArguments(const RecurrenceGiven& given, const View& x_given, bool packed);
  void check_seed(const View& view) const;

  View b_hn, h_0, c_0, h_mask, peephole, norm_hh, norm_c, bias_c, seed;
  bool reverse, hard_sigmoid;
  double cell_clip, proj_clip;
  Noise noise;
};

// Results of recurrence, in the order of ops.cpp. `put` rounds y, cells, h_n and c_n to the dtype
// of x; the rest is kept in the dtype that was calculated in.
struct RecurrenceOutputs {
  int32_t dtype;
  Handle y, cells, h_n, c_n, step, h_in, inner, out, sums, moments;

  RecurrenceOutputs(const RecurrenceArguments& a, bool save, bool return_cells);
  template <typename T>
  void fill(RecurrenceForward<T>& call) const {
    call.y = at<T>(y), call.cells = at<T>(cells), call.h_n = at<T>(h_n), call.c_n = at<T>(c_n);
    call.kept = {at<T>(step), at<T>(h_in), at<T>(inner), at<T>(out), at<T>(sums), at<T>(moments)};
  }
  void put(StableIValue* stack) &&;
};

// What recurrence_backward gets beside the arguments of recurrence.
struct RecurrenceCotangents {
  Handle given_y, given_cells, given_h_n, given_c_n, given_step, given_h_in;
  Handle step, h_in, inner, out, sums, moments;
  bool save;                                // whether a second derivative may follow
  View y, cells, h_n, c_n, d_step, d_h_in;  // contiguous, or none: zero

  explicit RecurrenceCotangents(ArgumentReader& read);
  void check(RecurrenceArguments& a);
  template <typename T>
  void fill(RecurrenceBackward<T>& call) const {
    const auto rows = [](const View& view) { return static_cast<const T*>(view.data()); };
    call.d_y = rows(y), call.d_cells = rows(cells), call.d_h_n = rows(h_n), call.d_c_n = rows(c_n);
    call.d_step = rows(d_step), call.d_h_in = rows(d_h_in);
    call.kept = {at<T>(step), at<T>(h_in), at<T>(inner), at<T>(out), at<T>(sums), at<T>(moments)};
  }
};

// In the dtype that was calculated in: what is made of them is rounded once.
struct RecurrenceGradients {
  Handle x, sum, cell, out, h_0, c_0, whole_h, whole_c;

  RecurrenceGradients(const RecurrenceArguments& a, bool save);
  template <typename T>
  void fill(RecurrenceBackward<T>& call) const {
    call.d_x = at<T>(x), call.d_sum = at<T>(sum), call.d_cell = at<T>(cell);
    call.d_out = at<T>(out), call.d_h_0 = at<T>(h_0), call.d_c_0 = at<T>(c_0);
    call.whole_h = at<T>(whole_h), call.whole_c = at<T>(whole_c);
  }
  void put(StableIValue* stack) &&;
};

// What recurrence_tangent gets beside the arguments of recurrence, and its results.
struct TangentGiven {
  Handle given_sum, step, whole_h, whole_c;
  bool return_cells;
  View sum;  // contiguous, or none: zero

  explicit TangentGiven(ArgumentReader& read);
  void check(RecurrenceArguments& a);
  template <typename T>
  void fill(RecurrenceTangent<T>& call) const {
    call.sum = static_cast<const T*>(sum.data());
    call.step = at<T>(step), call.whole_h = at<T>(whole_h), call.whole_c = at<T>(whole_c);
  }
};

struct TangentOutputs {
  Handle y, cells, h_n, c_n, h_in, second;

  TangentOutputs(const RecurrenceArguments& a, const TangentGiven& given);
  template <typename T>
  void fill(RecurrenceTangent<T>& call) const {
    call.y = at<T>(y), call.cells = at<T>(cells), call.h_n = at<T>(h_n), call.c_n = at<T>(c_n);
    call.kept.h_in = at<T>(h_in), call.second = at<T>(second);
  }
  void put(StableIValue* stack) &&;
};

}  // namespace seq2seq_ext
