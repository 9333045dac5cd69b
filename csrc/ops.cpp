// Every operator of the extension. rnn runs a whole stack of recurrent layers, rnn_backward its
// gradient; the Python side adds shapes and documentation (seq2seq_ext/ops.py) and
// derivatives (autograd.py).
//
// cell: 0 lstm, 1 gru, 2 gru_reset_before, 3 rnn_tanh, 4 rnn_relu: a number, because a string costs
// a small call a tenth of its time.
// x: (T, B, I); or packed (N, I), with batch_sizes (T); or (B, I): one step of one layer. h_0
// (L*D, B, P), c_0 (L*D, B, H) for lstm; for one step without the first axis; None: zeros, but not
// with batch_sizes. weights: per layer and direction w_ih, w_hh[, b_ih, b_hh][, w_hr], as
// torch.nn.RNNBase lists them. lengths (B) int64; resets (T, B) or (N) bool; dropout_mask
// (L-1, T, B, D*P) or (L-1, N, D*P).
// y: like x with D*P features. h_n, c_n: like h_0 and c_0; h_n is empty for one step, where y is
// the same, and c_n where there is no c_0. reserve: what backward needs, empty where save is false;
// of no use to anything else. Gradients that are not wanted are empty.
//
// encoder_read: rnn, which keeps nothing for backward, over the embeddings (V, E) of tokens (B, T);
// int64 on the CPU. Rows end before the <pad> at their end, or as lengths (B) say; where
// eos_token_id is one, it is put behind them, and then a row may be turned around. y is (T, B,
// D*P), T counting that token and at least 1; lengths is how many steps each row took.
//
// prepack: the weights in the order in which the kernels read them, in their own dtype (None),
// bfloat16 or int8, as bytes for `packed` of rnn, where save must be false. rnn refuses it with a
// message that begins with "packed: " where the weights or the instruction set are no longer those
// that it was made of; csrc/cpu/fingerprint.h tells what is noticed when. turn: the number of steps
// that calls with this block have run before.
//
// prepack_tokens: for `table` of encoder_read, beside `packed`, which prepack made of the same
// layers: what the first of them makes of each row of the embedding. Empty where that would be too
// large.
//
// prepack_matrix: the same of one matrix w (N, K), for linear, y = x w^T + bias of x (rows, K) or
// (T, B, K), and for `packed` of recurrence. The first axis of x counts as its steps.
//
// allow_tf32: whether recurrent products of float32 on CUDA may round to TF32.
//
// recurrence: one direction of one layer with the variants of csrc/recurrence.h, from gates whose
// input part is known: x (T, B, G*H) or, with batch_sizes, (N, G*H). cell: also 5 coupled_lstm.
// w_hr (P, H) also of RNNs, and of GRUs with the reset gate after the product, which then have c.
// h_mask (B, P); peephole (3, H), coupled (2, H); norm_hh (G*H); norm_c, bias_c (H); seed (1)
// int64, None: expectations instead of noise. cells, and the six tensors of what backward reads,
// are empty where they are not wanted or not there; rows of them lie as those of x. packed: what
// prepack_matrix makes of w_hh, for the cell gru_reset_before of its first 2H rows and of the
// others, and then of w_hr. save must then be false.
// recurrence_backward: the gradients of x, of W_hh h (empty where that is d_x), of the normalized
// cell, of W_hr's product, and of the state; those of weights are products of these with what was
// kept. d_step and d_h_in are gradients of what was kept; with `save`, whole_h and whole_c are what
// a second derivative reads. recurrence_tangent: the derivative of recurrence in a direction that
// x, h_0, c_0 and t_sum, for W_hh h, give; of cells without variants. With whole_h also the
// gradient `second` of what was kept.
//
// attention_decoder: all steps of a decoder that attends while its cells run (csrc/decoder.h). x
// (T, B, G*H); weights: w_in and w_hh of each layer; bias (L, G*H), b_hn (L, H); states (L, B, H);
// keys (M, S, A), values (M, S, C); v makes the energies additive; memory (B) tells which of the M
// sequences a row attends to. z (T, B, H), alignments (T, B, heads, S); feed_n and coverage_n
// continue a sequence as feed_0 and coverage_0. What is not there is empty, as are the last six,
// which backward reads, where save is false. attention_decoder_backward: the gradients of the gates
// and of W_hh h (empty where they are the same), queries, products of queries and keys, the whole
// context, the sums of tanh; keys, v and w_coverage where additive, the latter two for each
// sequence; of the states. Those of weights and values are products of these.
//
// decoder_step, decoder_search: a step of a decoder from tokens to logits, and greedy or beam
// search, all its steps (csrc/decoding.h, csrc/search.h), with weights that prepack_decoder packs
// as prepack does; csrc/cpu/decoder_weights.h tells their order. checked: the number of steps for
// which the weights are looked at, 1024 for all of them. gates (rows, G*H) and pieces (rows, 2U):
// what is added to every step; keys (M, S, A), values (M, S, C). Of a step, tokens (N); h, c (L, N,
// H); feed (N, F); coverage (N, S); memory (N) as in attention_decoder; results that are not there
// are empty. Of a search, h_0, c_0 (L, M, H); early_stopping: 0 at once, 1 when no beam is better
// now, 2 when none can become better; sequences (M * returned, U), <pad> behind their lengths, U
// being the longest; scores (M * returned) and alignments (M * returned, U, S), empty where not
// wanted.
//
// translate: encoder_read, and decoder_search from its last states, both directions' side by side;
// for decoders that read nothing else of a source.
//
// Arguments that few calls have come last, with defaults: those that are not given cost nothing.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(seq2seq_ext, m) {
  m.def(
      "rnn(Tensor x, Tensor? h_0, Tensor? c_0, Tensor[] weights, int cell, int num_layers=1, "
      "bool bidirectional=False, bool save=False, Tensor? packed=None, int turn=0, "
      "Tensor? lengths=None, Tensor? batch_sizes=None, Tensor? resets=None, "
      "Tensor? dropout_mask=None, bool allow_tf32=False) "
      "-> (Tensor y, Tensor h_n, Tensor c_n, Tensor reserve)");
  m.def(
      "encoder_read(Tensor tokens, Tensor? lengths, Tensor embedding, Tensor[] weights, int cell, "
      "int num_layers, bool bidirectional, int pad_token_id, int? eos_token_id, bool reverse, "
      "Tensor? packed=None, Tensor? table=None, int turn=0) "
      "-> (Tensor y, Tensor h_n, Tensor c_n, Tensor lengths)");
  m.def(
      "prepack(Tensor[] weights, int cell, int num_layers=1, bool bidirectional=False, "
      "ScalarType? dtype=None) -> Tensor");
  m.def(
      "prepack_tokens(Tensor embedding, Tensor[] weights, Tensor packed, int cell, "
      "int num_layers=1, bool bidirectional=False) -> Tensor");
  m.def("prepack_matrix(Tensor w, ScalarType? dtype=None) -> Tensor");
  m.def("linear(Tensor x, Tensor w, Tensor? bias, Tensor packed, int turn=0) -> Tensor");
  m.def(
      "rnn_backward(Tensor? d_y, Tensor? d_h_n, Tensor? d_c_n, Tensor x, Tensor? h_0, Tensor? c_0, "
      "Tensor[] weights, Tensor y, Tensor reserve, int cell, int num_layers, bool bidirectional, "
      "bool input_grad, bool state_grad, bool weight_grad, Tensor? lengths=None, "
      "Tensor? batch_sizes=None, Tensor? resets=None, Tensor? dropout_mask=None, "
      "bool allow_tf32=False) -> (Tensor d_x, Tensor d_h_0, Tensor d_c_0, Tensor[] d_weights)");
  m.def(
      "recurrence(Tensor x, Tensor w_hh, Tensor? b_hn, Tensor? w_hr, Tensor? h_0, Tensor? c_0, "
      "Tensor? h_mask, Tensor? peephole, Tensor? norm_hh, Tensor? norm_c, Tensor? bias_c, "
      "Tensor? seed, Tensor? lengths, Tensor? batch_sizes, Tensor? resets, int cell, bool reverse, "
      "bool hard_sigmoid, float zoneout_h, float zoneout_c, float candidate_dropout, "
      "float cell_clip, float proj_clip, int stream, bool save, bool return_cells, "
      "Tensor[]? packed=None, int turn=0) "
      "-> (Tensor y, Tensor cells, Tensor h_n, Tensor c_n, Tensor step, Tensor h_in, Tensor inner, "
      "Tensor out, Tensor sums, Tensor moments)");
  m.def(
      "recurrence_backward(Tensor x, Tensor w_hh, Tensor? b_hn, Tensor? w_hr, Tensor? h_0, "
      "Tensor? c_0, Tensor? h_mask, Tensor? peephole, Tensor? norm_hh, Tensor? norm_c, "
      "Tensor? bias_c, Tensor? seed, Tensor? lengths, Tensor? batch_sizes, Tensor? resets, "
      "int cell, bool reverse, bool hard_sigmoid, float zoneout_h, float zoneout_c, "
      "float candidate_dropout, float cell_clip, float proj_clip, int stream, Tensor? d_y, "
      "Tensor? d_cells, Tensor? d_h_n, Tensor? d_c_n, Tensor? d_step, Tensor? d_h_in, "
      "Tensor step, Tensor h_in, Tensor inner, Tensor out, Tensor sums, Tensor moments, bool save) "
      "-> (Tensor d_x, Tensor d_sum, Tensor d_cell, Tensor d_out, Tensor d_h_0, Tensor d_c_0, "
      "Tensor whole_h, Tensor whole_c)");
  m.def(
      "recurrence_tangent(Tensor x, Tensor w_hh, Tensor? b_hn, Tensor? w_hr, Tensor? h_0, "
      "Tensor? c_0, Tensor? h_mask, Tensor? peephole, Tensor? norm_hh, Tensor? norm_c, "
      "Tensor? bias_c, Tensor? seed, Tensor? lengths, Tensor? batch_sizes, Tensor? resets, "
      "int cell, bool reverse, bool hard_sigmoid, float zoneout_h, float zoneout_c, "
      "float candidate_dropout, float cell_clip, float proj_clip, int stream, Tensor? t_sum, "
      "Tensor step, Tensor? whole_h, Tensor? whole_c, bool return_cells) "
      "-> (Tensor t_y, Tensor t_cells, Tensor t_h_n, Tensor t_c_n, Tensor t_h_in, Tensor second)");
  m.def(
      "attention_decoder(Tensor x, Tensor[] weights, Tensor? bias, Tensor? b_hn, Tensor? h_0, "
      "Tensor? c_0, Tensor? feed_0, Tensor? coverage_0, Tensor keys, Tensor values, "
      "Tensor? w_query, Tensor? v, Tensor? w_coverage, Tensor? w_out, Tensor? b_out, "
      "Tensor? dropout_mask, Tensor? lengths, Tensor? source_lengths, Tensor? memory, int cell, "
      "int num_layers, int heads, int residual, bool query_first, float scale, bool save) "
      "-> (Tensor z, Tensor context, Tensor alignments, Tensor attentional, Tensor h_n, "
      "Tensor c_n, Tensor feed_n, Tensor coverage_n, Tensor step, Tensor h_in, Tensor inner, "
      "Tensor below, Tensor query, Tensor coverage)");
  m.def(
      "attention_decoder_backward(Tensor x, Tensor[] weights, Tensor? bias, Tensor? b_hn, "
      "Tensor? h_0, Tensor? c_0, Tensor? feed_0, Tensor? coverage_0, Tensor keys, Tensor values, "
      "Tensor? w_query, Tensor? v, Tensor? w_coverage, Tensor? w_out, Tensor? b_out, "
      "Tensor? dropout_mask, Tensor? lengths, Tensor? source_lengths, Tensor? memory, int cell, "
      "int num_layers, int heads, int residual, bool query_first, float scale, Tensor? d_z, "
      "Tensor? d_context, Tensor? d_alignments, Tensor? d_attentional, Tensor? d_h_n, "
      "Tensor? d_c_n, Tensor? d_feed_n, Tensor? d_coverage_n, Tensor context, Tensor alignments, "
      "Tensor attentional, Tensor step, Tensor h_in, Tensor inner, Tensor below, Tensor query, "
      "Tensor coverage) -> (Tensor d_gates, Tensor d_sum, Tensor d_query, Tensor d_energy, "
      "Tensor whole_context, Tensor d_out, Tensor d_keys, Tensor d_v, Tensor d_w_coverage, "
      "Tensor d_h_0, Tensor d_c_0, Tensor d_feed_0, Tensor d_coverage_0)");
  m.def(
      "prepack_decoder(Tensor[] weights, int cell, int num_layers, int source_features, "
      "ScalarType? dtype=None) -> Tensor");
  m.def(
      "decoder_step(Tensor[] weights, Tensor packed, int turn, int checked, Tensor? gates, "
      "Tensor? pieces, Tensor? keys, Tensor? values, Tensor? source_lengths, int cell, "
      "int num_layers, int source_features, int heads, int residual, bool query_first, "
      "float scale, Tensor tokens, Tensor h, Tensor? c, Tensor? feed, Tensor? coverage, "
      "Tensor? memory) -> (Tensor logits, Tensor h_n, Tensor c_n, Tensor feed_n, "
      "Tensor coverage_n, Tensor alignments)");
  m.def(
      "decoder_search(Tensor[] weights, Tensor packed, int turn, int checked, Tensor? gates, "
      "Tensor? pieces, Tensor? keys, Tensor? values, Tensor? source_lengths, int cell, "
      "int num_layers, int source_features, int heads, int residual, bool query_first, "
      "float scale, Tensor h_0, Tensor? c_0, int num_beams, int num_return_sequences, "
      "int max_new_tokens, int min_new_tokens, int pad_token_id, int bos_token_id, "
      "int eos_token_id, float length_penalty, bool wu, int early_stopping, bool output_scores, "
      "bool return_attention) "
      "-> (Tensor sequences, Tensor lengths, Tensor scores, Tensor alignments)");
  m.def(
      "translate(Tensor tokens, Tensor? source_lengths, Tensor encoder_embedding, "
      "Tensor[] encoder_weights, int encoder_cell, int encoder_num_layers, bool bidirectional, "
      "int source_pad_token_id, int? source_eos_token_id, bool reverse, Tensor? encoder_packed, "
      "Tensor? encoder_table, int encoder_turn, Tensor[] weights, Tensor packed, int turn, int "
      "checked, int cell, "
      "int num_layers, int source_features, int heads, int residual, bool query_first, "
      "float scale, int num_beams, int num_return_sequences, int max_new_tokens, "
      "int min_new_tokens, int pad_token_id, int bos_token_id, int eos_token_id, "
      "float length_penalty, bool wu, int early_stopping, bool output_scores, "
      "bool return_attention) "
      "-> (Tensor sequences, Tensor lengths, Tensor scores, Tensor alignments)");
}
