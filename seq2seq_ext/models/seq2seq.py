"""The encoder-decoder: reads one sequence, writes another, and knows how wrong it was.

The target is given as its tokens followed by ``</s>``; the decoder's inputs are the same tokens one
step later, behind ``<s>``. Nothing that stands in the padding of either side reaches a result.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from seq2seq_ext.generation import GenerationMixin, GenerationOptions, GenerationOutput
from seq2seq_ext.models import decoding, translation
from seq2seq_ext.models.bridge import Bridge
from seq2seq_ext.models.config import Seq2SeqConfig
from seq2seq_ext.models.decoder import Decoder
from seq2seq_ext.models.encoder import Encoder, EncoderOutput
from seq2seq_ext.models.layers import one_draw
from seq2seq_ext.models.state import (
    DecoderState,
    Memory,
    check_tokens,
    padding_mask,
    resolve_lengths,
    with_eos,
)


class Seq2SeqOutput(NamedTuple):
    """What a forward pass gives.

    Args:
        loss: mean cross entropy over the target's tokens, padding left out, and what `forward` was
            asked to add; a scalar, in nats.
        logits: scores of every next token, ``(B, U, target_vocab_size)``; of a model that copies
            log-probabilities, of the sources' unknown tokens too.
        labels: int64 ``(B, U)``, the target with ``<pad>`` everywhere past its end.
    """

    loss: Tensor
    logits: Tensor
    labels: Tensor


# nn.Module first: FSDP gives a sharded module another class, whose layout must be a module's.
class Seq2Seq(nn.Module, GenerationMixin[DecoderState]):
    """Encoder, bridge and decoder, with attention or without.

    After Sutskever et al. 2014 (arXiv 1409.3215), Cho et al. 2014 (1406.1078), Bahdanau et al. 2015
    (1409.0473) and Luong et al. 2015 (1508.04025); `Seq2SeqConfig` has each as a preset.

    Args:
        config: shape and wiring.

    Example:
        >>> config = Seq2SeqConfig(source_vocab_size=9, target_vocab_size=9)
        >>> model = Seq2Seq(config)
        >>> source = torch.tensor([[4, 5, 6], [7, 8, 0]])
        >>> target = torch.tensor([[4, 5, 6, 3], [7, 8, 3, 0]])
        >>> model(source, target).logits.shape
        torch.Size([2, 4, 9])
        >>> model.eval().generate(source, max_new_tokens=5).shape[0]
        2
    """

    config: Seq2SeqConfig

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.bridge = Bridge(config)
        self.decoder = Decoder(config)
        if config.tie_embeddings == "all":
            self.encoder.embedding.weight = self.decoder.embedding.weight

    @property
    def tied_weights(self) -> dict[str, str]:
        """Names in the ``state_dict`` whose tensor another name has too, and that name.

        Example:
            >>> config = Seq2SeqConfig(
            ...     source_vocab_size=9, target_vocab_size=9, tie_embeddings="decoder",
            ...     target_embedding_size=256)
            >>> Seq2Seq(config).tied_weights
            {'decoder.output.weight': 'decoder.embedding.weight'}
        """
        if self.config.tie_embeddings == "none":
            return {}
        kept = "decoder.embedding.weight"
        last = "output" if self.config.output_rank is None else "output.1"
        tied = {f"decoder.{last}.weight": kept}
        return tied | (
            {"encoder.embedding.weight": kept} if self.config.tie_embeddings == "all" else {}
        )

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        source_lengths: Tensor | None = None,
        target_lengths: Tensor | None = None,
        *,
        teacher_forcing_ratio: float = 1.0,
        label_smoothing: float = 0.0,
        coverage_loss: float = 0.0,
    ) -> Seq2SeqOutput:
        """Score the targets and compute the loss.

        Args:
            source: int64 ``(B, T)``; of a model that copies, unknown tokens have ids from
                ``source_vocab_size`` on, see `seq2seq_ext.models.copying`.
            target: int64 ``(B, U)``, each row ending with ``</s>``; likewise.
            source_lengths: int64 ``(B,)``; None takes rows up to their last token not ``<pad>``.
            target_lengths: int64 ``(B,)``, ``</s>`` counted; None likewise.
            teacher_forcing_ratio: probability, drawn for every token of every row, that the
                decoder is fed the target's token and not its own best guess (scheduled sampling,
                Bengio et al. 2015, arXiv 1506.03099). 1 runs all steps in one fused call.
            label_smoothing: share of each label's probability spread over the vocabulary.
            coverage_loss: what the coverage loss is multiplied by before it is added to the loss:
                the sum over the source's positions i of the smaller of a_ti and the sum of a_t'i
                over t' < t, of the alignments a; a mean over the target's tokens (See, Liu &
                Manning 2017, arXiv 1704.04368, equation 12).

        Raises:
            TypeError, ValueError: if an argument has another dtype, rank, size or range.
        """
        if not 0.0 <= teacher_forcing_ratio <= 1.0:
            raise ValueError(
                f"teacher_forcing_ratio must be in [0, 1], got {teacher_forcing_ratio}"
            )
        if coverage_loss and self.config.attention == "none":
            raise ValueError(f"coverage_loss must be 0 without attention, got {coverage_loss}")
        size = self.config.target_vocab_size
        check_tokens("target", target, size + (source.size(-1) if self.config.copy else 0))
        if source.dim() == 2 and source.size(0) != target.size(0):
            raise ValueError(
                f"target must have source's batch size {source.size(0)}, got {target.size(0)}"
            )
        pad = self.config.pad_token_id
        lengths = resolve_lengths("target_lengths", target_lengths, target, pad)
        mask = padding_mask(lengths.to(target.device), target.size(1))
        labels = target.masked_fill(mask, pad)
        inputs = torch.cat(
            (labels.new_full((labels.size(0), 1), self.config.bos_token_id), labels[:, :-1]), dim=1
        )[:, : target.size(1)]

        state = self.start(source, source_lengths)
        if teacher_forcing_ratio == 1.0:
            keep = bool(coverage_loss)
            logits, state = self.decoder(inputs, state, lengths, keep_alignments=keep)
            alignments = state.alignments
        else:
            with one_draw(self.decoder, inputs.size(0)):
                logits, alignments = self._sample_schedule(inputs, state, teacher_forcing_ratio)
        loss = self._loss(logits, labels, mask, label_smoothing)
        if coverage_loss and alignments is not None:
            loss = loss + coverage_loss * _coverage_loss(alignments, mask)
        return Seq2SeqOutput(loss, logits, labels)

    def start(self, source: Tensor, source_lengths: Tensor | None = None) -> DecoderState:
        """Read the source: the decoder's state before its first token."""
        known = source
        if self.config.copy:
            size = self.config.source_vocab_size
            check_tokens("source", source, size + source.size(-1))
            known = source.masked_fill(source >= size, self.config.unk_token_id)
        encoded: EncoderOutput = self.encoder(known, source_lengths)
        state: DecoderState = self.bridge(encoded)
        attention = self.decoder.attention
        if attention is None:
            return state
        memory = attention.remember(encoded)
        if self.config.copy:
            memory = self._with_tokens(memory, source, encoded.lengths)
        return state._replace(memory=memory)

    def step(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """One decoder step: int64 ``(B,)`` -> logits ``(B, target_vocab_size)`` and new state."""
        made = decoding.step(self.decoder, tokens, state)
        return self.decoder.step(tokens, state) if made is None else made

    def _with_tokens(self, memory: Memory, source: Tensor, lengths: Tensor) -> Memory:
        """The memory with what can be copied from it."""
        if self.config.source_eos:
            source, _ = with_eos(source, lengths - 1, self.config)
        behind = padding_mask(lengths.to(source.device), source.size(1))
        tokens = source.masked_fill(behind, self.config.pad_token_id)
        size = self.config.source_vocab_size
        if tokens.numel():
            size = max(size, int(tokens.max()) + 1)
        # The encoder has one step at least.
        missing = memory.keys.size(1) - tokens.size(1)
        tokens = functional.pad(tokens, (0, missing), value=self.config.pad_token_id)
        return memory._replace(tokens=tokens, extended_size=size)

    def translate(
        self, source: Tensor, source_lengths: Tensor | None, options: GenerationOptions
    ) -> GenerationOutput | None:
        """From source to target in one call; see `seq2seq_ext.models.translation`."""
        own = type(self)
        if (own.start, own.step, own.search) != (Seq2Seq.start, Seq2Seq.step, Seq2Seq.search):
            return None
        return translation.translate(self, source, source_lengths, options)

    def search(self, state: DecoderState, options: GenerationOptions) -> GenerationOutput | None:
        """All steps in one call, where that can be; see `seq2seq_ext.models.decoding`."""
        if type(self).step is not Seq2Seq.step:
            return None
        return decoding.search(self.decoder, state, options)

    def _sample_schedule(
        self, inputs: Tensor, state: DecoderState, ratio: float
    ) -> tuple[Tensor, Tensor | None]:
        """Logits (B, U, V), each input token the target's with probability `ratio`, and the
        alignments (U, B, S)."""
        from_target = torch.rand(inputs.shape, device=inputs.device) < ratio
        steps: list[Tensor] = []
        alignments: list[Tensor] = []
        for t in range(inputs.size(1)):
            tokens = inputs[:, t]
            if t > 0:
                tokens = torch.where(from_target[:, t], tokens, steps[-1].argmax(-1))
            logits, state = self.decoder.step(tokens, state)
            steps.append(logits)
            if state.alignments is not None:
                alignments.append(state.alignments)
        # Stacked time-major, as the fused call leaves its logits.
        return torch.stack(steps).transpose(0, 1), torch.stack(alignments) if alignments else None

    def _loss(self, logits: Tensor, labels: Tensor, mask: Tensor, label_smoothing: float) -> Tensor:
        # Masked by position, not by value: a <pad> inside a target is a token like any other.
        ignore = -100
        if self.config.copy and label_smoothing:
            return self._smoothed_loss(logits, labels, mask, label_smoothing)
        by_time = labels.masked_fill(mask, ignore).t().reshape(-1)
        total = functional.cross_entropy(
            logits.transpose(0, 1).flatten(0, 1),
            by_time,
            ignore_index=ignore,
            label_smoothing=label_smoothing,
            reduction="sum",
        )
        return total / (~mask).sum().clamp(min=1)

    def _smoothed_loss(
        self, logits: Tensor, labels: Tensor, mask: Tensor, label_smoothing: float
    ) -> Tensor:
        """The loss where unknown tokens of other sources, which cannot come, are among the classes:
        what is spread goes to the vocabulary's tokens alone."""
        scores = logits.log_softmax(-1)
        chosen = scores.gather(2, labels[..., None])[..., 0]
        spread = scores[..., : self.config.target_vocab_size].mean(-1)
        losses = -torch.lerp(chosen, spread, label_smoothing)
        return losses.masked_fill(mask, 0).sum() / (~mask).sum().clamp(min=1)


def _coverage_loss(alignments: Tensor, mask: Tensor) -> Tensor:
    """Of alignments (U, B, S), and a mask (B, U) of what lies behind the targets' ends."""
    before = alignments.cumsum(0) - alignments
    overlap = torch.minimum(alignments, before).sum(-1).t()
    return overlap.masked_fill(mask, 0).sum() / (~mask).sum().clamp(min=1)
