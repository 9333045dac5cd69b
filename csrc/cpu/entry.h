// The table of one instruction set: run-time cell to template, nothing else.

template <typename T, typename Call>
static auto with_cell(Cell cell, const Call& call) {
  switch (cell) {
    case Cell::kLstm:
      return call(std::integral_constant<Cell, Cell::kLstm>{});
    case Cell::kGru:
      return call(std::integral_constant<Cell, Cell::kGru>{});
    case Cell::kGruResetBefore:
      return call(std::integral_constant<Cell, Cell::kGruResetBefore>{});
    case Cell::kRnnTanh:
      return call(std::integral_constant<Cell, Cell::kRnnTanh>{});
    case Cell::kRnnRelu:
    case Cell::kCoupledLstm:  // with variants only
      break;
  }
  return call(std::integral_constant<Cell, Cell::kRnnRelu>{});
}

// Calls with the cell and the storage of packed weights as types.
template <typename T, typename Call>
static auto with_storage(Cell cell, WeightType type, const Call& call) {
  return with_cell<T>(
      cell, [&](auto c) { return with_type<T>(type, [&](auto s) { return call(c, s); }); });
}

template <typename T>
static WeightType storage_of(const Forward<T>& f) {
  return f.packed ? f.packed_type : WeightType::kFull;
}

template <typename T>
static size_t packed_size(const Stack<T>& stack, WeightType type) {
  return with_storage<T>(stack.cell, type, [&](auto cell, auto storage) {
    return packed_size<cell.value, T, decltype(storage)>(stack);
  });
}

template <typename T>
static void pack(const Stack<T>& stack, WeightType type, void* packed) {
  with_storage<T>(stack.cell, type, [&](auto cell, auto storage) {
    pack_stack<cell.value, T, decltype(storage)>(stack, packed);
  });
}

template <typename T>
static int64_t token_gates_width(const Stack<T>& stack) {
  return with_cell<T>(stack.cell, [&](auto cell) { return token_gates_width<cell.value>(stack); });
}

template <typename T>
static size_t run_token_gates(const TokenGates<T>& g, void* workspace) {
  return with_storage<T>(g.cell, g.packed_type, [&](auto cell, auto storage) {
    return token_gates<cell.value, T, decltype(storage)>(g, workspace);
  });
}

template <typename T>
static size_t token_gates_workspace(const TokenGates<T>& g) {
  return run_token_gates(g, nullptr);
}

template <typename T>
static void token_gates(const TokenGates<T>& g, void* workspace) {
  run_token_gates(g, workspace);
}

template <typename T>
static size_t run_forward(const Forward<T>& f, const Member* member, void* workspace) {
  return with_storage<T>(f.cell, storage_of(f), [&](auto cell, auto storage) {
    return f.plan.split == Split::kLayers
               ? forward_wavefront<cell.value, T, decltype(storage)>(f, member, workspace)
               : forward_stack<cell.value, T, decltype(storage)>(f, member, workspace);
  });
}

template <typename T>
static size_t forward_workspace(const Forward<T>& f) {
  return run_forward<T>(f, nullptr, nullptr);
}

template <typename T>
static size_t backward_workspace(const Backward<T>& f) {
  return with_cell<T>(
      f.cell, [&](auto cell) { return backward_stack<cell.value, T>(f, nullptr, nullptr); });
}

template <typename T>
static void forward(const Forward<T>& f, const Member& member, void* workspace) {
  run_forward<T>(f, &member, workspace);
}

template <typename T>
static void backward(const Backward<T>& f, const Member& member, void* workspace) {
  with_cell<T>(f.cell,
               [&](auto cell) { return backward_stack<cell.value, T>(f, &member, workspace); });
}

// Calls with the cell as a type, among those that have variants.
template <typename T, typename Call>
static auto with_any_cell(Cell cell, const Call& call) {
  if (cell == Cell::kCoupledLstm) return call(std::integral_constant<Cell, Cell::kCoupledLstm>{});
  return with_cell<T>(cell, call);
}

template <typename T>
static size_t run_recurrence(const Planned<RecurrenceForward<T>>& f, const Member* member,
                             void* workspace) {
  return with_any_cell<T>(
      f.cell, [&](auto cell) { return recurrence_forward<cell.value, T>(f, member, workspace); });
}

template <typename T>
static size_t run_recurrence(const Planned<RecurrenceTangent<T>>& f, const Member* member,
                             void* workspace) {
  return with_cell<T>(
      f.cell, [&](auto cell) { return recurrence_forward<cell.value, T>(f, member, workspace); });
}

template <typename T>
static size_t run_recurrence(const Planned<RecurrenceBackward<T>>& f, const Member* member,
                             void* workspace) {
  return with_any_cell<T>(
      f.cell, [&](auto cell) { return recurrence_backward<cell.value, T>(f, member, workspace); });
}

template <typename Call>
static size_t recurrence_workspace(const Planned<Call>& f) {
  return run_recurrence(f, nullptr, nullptr);
}

template <typename Call>
static void recurrence(const Planned<Call>& f, const Member& member, void* workspace) {
  run_recurrence(f, &member, workspace);
}

template <typename T>
static size_t linear_workspace(const Linear<T>& f) {
  return linear<T>(f, nullptr, nullptr);
}

template <typename T>
static void run_linear(const Linear<T>& f, const Member& member, void* workspace) {
  linear<T>(f, &member, workspace);
}

template <typename T>
static size_t run_decoder(const Planned<DecoderForward<T>>& f, const Member* member, void* memory) {
  return with_cell<T>(f.cell, [&](auto cell) {
    return run_steps<DecoderForwardSteps<cell.value, T>>(f, member, memory);
  });
}

template <typename T>
static size_t run_decoder(const Planned<DecoderBackward<T>>& f, const Member* member,
                          void* memory) {
  return with_cell<T>(f.cell, [&](auto cell) {
    return run_steps<DecoderBackwardSteps<cell.value, T>>(f, member, memory);
  });
}

template <typename Call>
static size_t decoder_workspace(const Planned<Call>& f) {
  return run_decoder(f, nullptr, nullptr);
}

template <typename Call>
static void decoder(const Planned<Call>& f, const Member& member, void* workspace) {
  run_decoder(f, &member, workspace);
}

template <typename T>
static size_t decoder_size(const DecoderWeights<T>& w, WeightType type) {
  return with_cell<T>(w.cell, [&](auto cell) { return packed_decoder_size<cell.value>(w, type); });
}

template <typename T>
static void pack_decoder(const DecoderWeights<T>& w, WeightType type, void* packed) {
  with_cell<T>(w.cell, [&](auto cell) { pack_decoder<cell.value>(w, type, packed); });
}

template <typename T>
static size_t run_decoding(const PlannedDecoding<DecodingStep<T>>& f, const Member* member,
                           void* memory) {
  return with_cell<T>(f.w.cell, [&](auto cell) {
    return decode_step<cell.value>(f, member, static_cast<char*>(memory));
  });
}

template <typename T>
static size_t run_decoding(const PlannedDecoding<Search<T>>& f, const Member* member,
                           void* memory) {
  return with_cell<T>(f.w.cell, [&](auto cell) {
    return search<cell.value>(f, member, static_cast<char*>(memory));
  });
}

template <typename Call>
static size_t decoding_workspace(const PlannedDecoding<Call>& f) {
  return run_decoding(f, nullptr, nullptr);
}

template <typename Call>
static void decoding(const PlannedDecoding<Call>& f, const Member& member, void* workspace) {
  run_decoding(f, &member, workspace);
}

template <typename T>
static void map(int function, int64_t n, const T* x, T* y) {
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const Vec<T> v = load_first(x + i, n - i);
    store_first(y + i,
                function == 0   ? exp<T>(v)
                : function == 1 ? tanh<T>(v)
                                : sigmoid<T>(v),
                n - i);
  }
}

static constexpr Kernels kTable{ISA_NAME,
                                ISA_VECTOR_BYTES,
                                &forward_workspace<float>,
                                &forward_workspace<double>,
                                &backward_workspace<float>,
                                &backward_workspace<double>,
                                &packed_size<float>,
                                &packed_size<double>,
                                &pack<float>,
                                &pack<double>,
                                &token_gates_width<float>,
                                &token_gates_width<double>,
                                &token_gates_workspace<float>,
                                &token_gates_workspace<double>,
                                &token_gates<float>,
                                &token_gates<double>,
                                &matrix_size<float>,
                                &matrix_size<double>,
                                &pack_matrix<float>,
                                &pack_matrix<double>,
                                &linear_workspace<float>,
                                &linear_workspace<double>,
                                &run_linear<float>,
                                &run_linear<double>,
                                &forward<float>,
                                &forward<double>,
                                &backward<float>,
                                &backward<double>,
                                &recurrence_workspace<RecurrenceForward<float>>,
                                &recurrence_workspace<RecurrenceForward<double>>,
                                &recurrence_workspace<RecurrenceBackward<float>>,
                                &recurrence_workspace<RecurrenceBackward<double>>,
                                &recurrence_workspace<RecurrenceTangent<float>>,
                                &recurrence_workspace<RecurrenceTangent<double>>,
                                &recurrence<RecurrenceForward<float>>,
                                &recurrence<RecurrenceForward<double>>,
                                &recurrence<RecurrenceBackward<float>>,
                                &recurrence<RecurrenceBackward<double>>,
                                &recurrence<RecurrenceTangent<float>>,
                                &recurrence<RecurrenceTangent<double>>,
                                &decoder_workspace<DecoderForward<float>>,
                                &decoder_workspace<DecoderForward<double>>,
                                &decoder_workspace<DecoderBackward<float>>,
                                &decoder_workspace<DecoderBackward<double>>,
                                &decoder<DecoderForward<float>>,
                                &decoder<DecoderForward<double>>,
                                &decoder<DecoderBackward<float>>,
                                &decoder<DecoderBackward<double>>,
                                &decoder_size<float>,
                                &decoder_size<double>,
                                &pack_decoder<float>,
                                &pack_decoder<double>,
                                &decoding_workspace<DecodingStep<float>>,
                                &decoding_workspace<DecodingStep<double>>,
                                &decoding<DecodingStep<float>>,
                                &decoding<DecodingStep<double>>,
                                &decoding_workspace<Search<float>>,
                                &decoding_workspace<Search<double>>,
                                &decoding<Search<float>>,
                                &decoding<Search<double>>,
                                &map<float>,
                                &map<double>,
                                &multiply_add,
                                &read_all};
