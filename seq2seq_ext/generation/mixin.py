"""`generate` and `stream`, for any model that can start from a source and make a step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, Literal, overload

import torch
from torch import Tensor

from seq2seq_ext.generation.beam import beam_search
from seq2seq_ext.generation.graphs import search_by_graphs
from seq2seq_ext.generation.greedy import TokenStep, greedy_search, most_probable, search_tokens
from seq2seq_ext.generation.options import GenerationOptions
from seq2seq_ext.generation.output import GenerationOutput
from seq2seq_ext.generation.processors import ForcedPrefix, GenerationTokens, SpecialTokens
from seq2seq_ext.generation.sampling import Sampler, repeated, sample
from seq2seq_ext.generation.state import StateT


class GenerationMixin(Generic[StateT]):
    """Adds `generate` and `stream` to a model with ``config``, ``start`` and ``step``."""

    config: GenerationTokens

    def start(self, source: Tensor, source_lengths: Tensor | None = None) -> StateT:
        """Read the source: the state of every row before its first token."""
        raise NotImplementedError

    def step(self, tokens: Tensor, state: StateT) -> tuple[Tensor, StateT]:
        """One step: int64 ``(N,)`` -> logits ``(N, V)``, a fresh tensor, and the new state."""
        raise NotImplementedError

    def translate(
        self, source: Tensor, source_lengths: Tensor | None, options: GenerationOptions
    ) -> GenerationOutput | None:
        """What `search` finds from the state of `start` on, or None: as `search`."""
        return None

    def search(self, state: StateT, options: GenerationOptions) -> GenerationOutput | None:
        """What a search of the model's own finds from `state` on.

        Must be what the searches of this package find by `step`. None, as here, leaves it to them.
        """
        return None

    @overload
    def generate(
        self,
        source: Tensor,
        source_lengths: Tensor | None = ...,
        options: GenerationOptions | None = ...,
        *,
        decoder_input_ids: Tensor | None = ...,
        return_dict_in_generate: Literal[False] = ...,
        **changes: Any,
    ) -> Tensor: ...

    @overload
    def generate(
        self,
        source: Tensor,
        source_lengths: Tensor | None = ...,
        options: GenerationOptions | None = ...,
        *,
        decoder_input_ids: Tensor | None = ...,
        return_dict_in_generate: Literal[True],
        **changes: Any,
    ) -> GenerationOutput: ...

    @torch.no_grad()
    def generate(
        self,
        source: Tensor,
        source_lengths: Tensor | None = None,
        options: GenerationOptions | None = None,
        *,
        decoder_input_ids: Tensor | None = None,
        return_dict_in_generate: bool = False,
        **changes: Any,
    ) -> Tensor | GenerationOutput:
        """Write targets for every source: greedily, by beam search or by sampling.

        The arguments carry Hugging Face's names. The model stays in its mode: call ``eval()``
        first, or dropout acts on the search.

        Args:
            source: int64 ``(B, T)``.
            source_lengths: int64 ``(B,)``; None takes rows up to their last token not ``<pad>``.
            options: how to search; None stands for the defaults, a greedy search.
            decoder_input_ids: int64 ``(B, P)``, tokens with which the outputs begin, ``<pad>``
                behind short rows; a leading ``<s>`` of all rows is left out. They are part of the
                output, of its length and of its score.
            return_dict_in_generate: whether to return a `GenerationOutput` and not the sequences
                alone.
            **changes: options by name, over those of `options`: ``max_new_tokens=20``,
                ``num_beams=5``; all are described at `GenerationOptions`.

        Returns:
            int64 ``(B * num_return_sequences, U)``: the tokens after ``<s>``, ``</s>`` included
            where it came, ``<pad>`` after it. U is the length of the longest row.

        Raises:
            TypeError: if an argument has another type or dtype, or no option has its name.
            ValueError: if an argument is out of range, options contradict each other, or one needs
                attention that the model does not have.

        Example:
            >>> from seq2seq_ext import Seq2Seq, Seq2SeqConfig
            >>> config = Seq2SeqConfig(source_vocab_size=9, target_vocab_size=9)
            >>> model = Seq2Seq(config).eval()
            >>> source = torch.tensor([[4, 5, 6], [7, 8, 0]])
            >>> best = model.generate(source, num_beams=4, num_return_sequences=2, max_new_tokens=5)
            >>> best.shape[0]
            4
            >>> model.generate(source, num_beam=4)
            Traceback (most recent call last):
            TypeError: unknown options ['num_beam'], known are ['max_new_tokens', ...]
        """
        options = GenerationOptions.of(options, changes)
        output = state = None
        if options.cuda_graph:
            output = self._search_by_graphs(source, source_lengths, options, decoder_input_ids)
        elif decoder_input_ids is None:
            output = self.translate(source, source_lengths, options)
        if output is None:
            state = self.start(source, source_lengths)
            if decoder_input_ids is None:
                output = self.search(state, options)
        if output is not None:
            return output if return_dict_in_generate else output.sequences
        assert state is not None
        arguments: dict[str, Any] = {
            **SpecialTokens.of(self.config)._asdict(),
            "decoder_input_ids": decoder_input_ids,
            "device": source.device,
        }
        batch_size = source.size(0)
        if options.num_beams > 1:
            if options.coverage_penalty:
                arguments["source_lengths"] = _real_positions(
                    source, source_lengths, self.config.pad_token_id
                )
            output = beam_search(self.step, state, batch_size, options, **arguments)
        elif options.do_sample:
            output = sample(self.step, state, batch_size, options, **arguments)
        else:
            output = greedy_search(self.step, state, batch_size, options, **arguments)
        return output if return_dict_in_generate else output.sequences

    def stream(
        self,
        source: Tensor,
        source_lengths: Tensor | None = None,
        options: GenerationOptions | None = None,
        *,
        decoder_input_ids: Tensor | None = None,
        **changes: Any,
    ) -> Iterator[Tensor]:
        """Write targets as `generate` does, and hand out every token as soon as it is chosen.

        Args: those of `generate`. Beams are refused: which tokens stay is known at the end only.

        Returns:
            An iterator over the columns of what `generate` returns: int64
            ``(B * num_return_sequences,)``, ``<pad>`` for rows that have ended.

        Raises:
            TypeError, ValueError: as `generate`, and if ``num_beams`` is above 1.

        Example:
            >>> from seq2seq_ext import Seq2Seq, Seq2SeqConfig
            >>> config = Seq2SeqConfig(source_vocab_size=9, target_vocab_size=9)
            >>> model = Seq2Seq(config).eval()
            >>> for tokens in model.stream(torch.tensor([[4, 5, 6]]), max_new_tokens=1):
            ...     print(tokens.shape)
            torch.Size([1])
        """
        options = GenerationOptions.of(options, changes)
        if options.num_beams > 1:
            raise ValueError(f"num_beams must be 1 to stream tokens, got {options.num_beams}")
        if options.cuda_graph:
            raise ValueError("cuda_graph must be False to stream tokens, got True")
        batch_size, device, special = source.size(0), source.device, SpecialTokens.of(self.config)
        prefix = ForcedPrefix.read(decoder_input_ids, batch_size, special, device)
        times = options.num_return_sequences
        with torch.no_grad():
            state = repeated(self.start(source, source_lengths), batch_size, times, device)
        choose = Sampler(options, device) if options.do_sample else most_probable
        steps = search_tokens(
            self.step, state, batch_size * times, options, special, prefix, choose, device
        )
        return _columns(steps, batch_size * times, special.pad_token_id, device)

    def _search_by_graphs(
        self,
        source: Tensor,
        source_lengths: Tensor | None,
        options: GenerationOptions,
        decoder_input_ids: Tensor | None,
    ) -> GenerationOutput | None:
        """What `search_by_graphs` finds; None where there is nothing to search for."""
        if not source.is_cuda:
            raise ValueError(f"cuda_graph=True needs source on a GPU, got {source.device}")
        if decoder_input_ids is not None:
            raise ValueError("decoder_input_ids must be None with cuda_graph=True, got a tensor")
        if source.dim() != 2 or not source.numel():
            return None
        with torch.cuda.device(source.device):
            return search_by_graphs(
                self, source, source_lengths, options, SpecialTokens.of(self.config)
            )


def _real_positions(source: Tensor, source_lengths: Tensor | None, pad_token_id: int) -> Tensor:
    """How many positions of each row ``start`` reads: int64 ``(B,)``."""
    if source_lengths is not None:
        return source_lengths
    position = torch.arange(1, source.size(1) + 1, device=source.device)
    filled = (source != pad_token_id) * position
    return filled.amax(1) if source.size(1) else filled.sum(1)


@torch.no_grad()
def _columns(
    steps: Iterator[TokenStep], num_rows: int, pad_token_id: int, device: torch.device
) -> Iterator[Tensor]:
    for written in steps:
        column = torch.full((num_rows,), pad_token_id, device=device)
        column[written.rows] = written.tokens
        yield column
