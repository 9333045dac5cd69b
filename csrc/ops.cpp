// Every operator of the extension. rnn runs a whole stack of recurrent layers, rnn_backward its
// gradient; the Python side (seq2seq_ext/ops.py) adds shapes, autograd and documentation.
//
// cell: lstm | gru | gru_reset_before | rnn_tanh | rnn_relu
// x (T, B, I), or packed (N, I) with batch_sizes (T); h_0 (L*D, B, P); c_0 (L*D, B, H) for lstm.
// weights: per layer and direction w_ih, w_hh[, b_ih, b_hh][, w_hr], as torch.nn.RNNBase lists
// them. lengths (B) int64; resets (T, B) or (N) bool; dropout_mask (L-1, T, B, D*P) or (L-1, N,
// D*P). reserve: what backward needs, empty where save is false; of no use to anything else.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(seq2seq_ext, m) {
  m.def(
      "rnn(Tensor x, Tensor h_0, Tensor? c_0, Tensor[] weights, Tensor? lengths, Tensor? "
      "batch_sizes, "
      "Tensor? resets, Tensor? dropout_mask, str cell, int num_layers, bool bidirectional, bool "
      "save) "
      "-> (Tensor y, Tensor h_n, Tensor c_n, Tensor reserve)");
  m.def(
      "rnn_backward(Tensor? d_y, Tensor? d_h_n, Tensor? d_c_n, Tensor x, Tensor h_0, Tensor? c_0, "
      "Tensor[] weights, Tensor? lengths, Tensor? batch_sizes, Tensor? resets, Tensor? "
      "dropout_mask, "
      "Tensor y, Tensor reserve, str cell, int num_layers, bool bidirectional, bool input_grad, "
      "bool weight_grad) -> (Tensor d_x, Tensor d_h_0, Tensor d_c_0, Tensor[] d_weights)");
}
