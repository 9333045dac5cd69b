"""What an encoder-decoder is made of, as plain numbers and names.

A `Seq2SeqConfig` describes a model completely: two models built from equal configs have the same
parameters, so a config and a file of weights are all that a run needs to keep. Every field is
checked when the config is made, before any weight exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from seq2seq_ext.models.cells import CellConfig

BRIDGES = ("copy", "dense", "context", "zeros")
BRIDGE_NONLINEARITIES = ("tanh", "relu", "none")
OUTPUTS = ("linear", "maxout")
ATTENTIONS = (
    "none",
    "dot",
    "general",
    "additive",
    "normalized_additive",
    "multi_head",
    "local_p",
)
ATTENTIONAL_NONLINEARITIES = ("tanh", "none")
QUERIES = ("current", "previous", "first_layer")
TIES = ("none", "decoder", "all")


@dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig(CellConfig):
    """Shape and wiring of a `Seq2Seq` model.

    Args:
        source_vocab_size: number of source tokens, special ones included.
        target_vocab_size: number of target tokens, special ones included.
        cell: ``"rnn"``, ``"lstm"`` or ``"gru"``, for the encoder and the decoder.
        source_embedding_size: width of a source token's vector.
        target_embedding_size: width of a target token's vector.
        encoder_hidden_size: width of the encoder's state, per direction.
        decoder_hidden_size: width of the decoder's state.
        encoder_num_layers: depth of the encoder's stack.
        decoder_num_layers: depth of the decoder's stack.
        bidirectional: whether the encoder also reads from the end to the start.
        bidirectional_layers: how many of the lowest layers of a bidirectional encoder do so; None
            lets all. The encoder's final states are then those of the layers above alone.
        residual: the first layer of a stack, counted from 0, whose input is added to its output
            (GNMT, Wu et al. 2016, arXiv 1609.08144, section 3.1); 0 adds nothing. It holds for
            both stacks, and for one that is less deep it adds nothing.
        reverse_source: whether the encoder reads the source from its last token to its first,
            which brings the first source and first target tokens close (Sutskever et al. 2014,
            arXiv 1409.3215, section 3.3).
        source_eos: whether the model puts ``</s>`` behind every source before it reads it; callers
            give sources without.
        nonlinearity: ``"tanh"`` or ``"relu"``; read where ``cell="rnn"``.
        reset_after: where the GRU's reset gate acts: after the recurrent product (True, the order
            of cuDNN and `torch.nn.GRU`) or on the state before it (False, Cho et al. 2014).
        layer_norm: whether the sums of the gates are normalized, and an LSTM's cell. This and the
            fields up to `coupled` are `seq2seq_ext.variants.Variant`'s, for the encoder and the
            decoder.
        zoneout: probability that a unit of h keeps its old value.
        cell_zoneout: that one of an LSTM's c does.
        recurrent_dropout: probability of dropping units of h on the way to the gates, or
            candidates:
        recurrent_dropout_kind: ``"state"`` or ``"candidate"``.
        weight_drop: probability of dropping a recurrent weight.
        hard_sigmoid: whether gates are of straight lines.
        peephole: whether an LSTM's gates see its cell.
        cell_clip: largest magnitude of an LSTM's cell.
        coupled: whether an LSTM's input gate is 1 - f.
        forget_bias: where the biases of an LSTM's forget gate begin.
        learn_initial_state: whether the encoder's first state is a parameter, and not zeros.
        dropout: probability of dropping an element of the embeddings, of the outputs between
            layers and of the input of the output layer, in training.
        context_size: if given, the context vector is ``c = tanh(V h)`` of this size; if None, it
            is ``h`` itself, the last layer's final state with its directions side by side.
        context_every_step: whether the decoder reads the context vector beside every token, and
            not only as its initial state.
        bridge: how the encoder's state becomes the decoder's: ``"copy"`` hands every layer's state
            over (the shapes must agree), ``"dense"`` maps the states of all encoder layers
            together to those of all decoder layers, ``"context"`` maps the context vector. A
            ``"zeros"`` hands nothing over. None takes ``"copy"`` where it fits and ``"dense"``
            where it does not.
        bridge_nonlinearity: what a mapped state passes through: ``"tanh"``, ``h_0`` alone, while
            an LSTM's cell state, which has no bound, stays linear; ``"relu"``, both; ``"none"``.
        output: ``"linear"`` reads the decoder's state, with attention the attentional vector
            ``tanh(W [c_t; z_t] + b)`` (Luong et al. 2015); ``"maxout"`` reads state, previous
            token and context through a layer of maxout units (Cho et al. 2014).
        maxout_size: number of maxout units; None takes half of ``decoder_hidden_size``.
        output_rank: if given, the matrix onto the vocabulary is a product of two of this rank,
            which keeps a large vocabulary affordable.
        tie_embeddings: ``"decoder"``: the matrix onto the vocabulary is that of the target's
            embedding (Press & Wolf 2017, arXiv 1608.05859); what the output layer reads, or
            ``output_rank`` where it is given, must have ``target_embedding_size`` features.
            ``"all"``: the source's embedding is the same matrix too, over one vocabulary.
        attention: how the decoder's steps weigh the encoder's outputs, see
            `seq2seq_ext.models.attention`; ``"none"`` leaves it with the context vector.
        attention_size: features of queries and keys where the kind has maps for them (all heads
            together); None takes ``decoder_hidden_size``.
        attention_heads: of ``"multi_head"``.
        attention_window: of ``"local_p"``: positions further than this from the predicted one have
            no weight, and half of it is the deviation of the Gaussian around that.
        attention_query: ``"current"`` attends by the state of the step (Luong et al. 2015),
            ``"previous"`` by the one before it, and the step reads the context (Bahdanau et al.
            2015), ``"first_layer"`` by the first layer's state of the step, and all layers above
            read the context beside what is below them (NVIDIA's GNMT v2).
        input_feeding: whether a step with the query ``"current"`` reads what the step before ended
            with: the attentional vector, with ``output="maxout"`` the context.
        attentional_nonlinearity: ``"tanh"``, or ``"none"``, of the attentional vector.
        coverage: whether energies see the sum of all alignments so far (See et al. 2017); with
            additive energies.
        copy: whether the decoder also copies tokens of the source, those outside the vocabulary too
            (the pointer-generator of See et al. 2017; `seq2seq_ext.models.copying`); needs
            attention, and one vocabulary for source and target.
        pad_token_id: id of ``<pad>``, which fills a row past its end.
        unk_token_id: id of ``<unk>``, any token outside the vocabulary.
        bos_token_id: id of ``<s>``, the decoder's first input.
        eos_token_id: id of ``</s>``, the last token of every target.

    Raises:
        TypeError: if a field is of another type than its default.
        ValueError: if a field is out of range, or two fields contradict each other.

    Example:
        >>> config = Seq2SeqConfig(source_vocab_size=30, target_vocab_size=30, bidirectional=True)
        >>> config.resolved_bridge
        'dense'
        >>> Seq2SeqConfig.from_dict(config.to_dict()) == config
        True
    """

    source_vocab_size: int
    target_vocab_size: int
    source_embedding_size: int = 64
    target_embedding_size: int = 64
    encoder_hidden_size: int = 256
    decoder_hidden_size: int = 256
    encoder_num_layers: int = 1
    decoder_num_layers: int = 1
    bidirectional: bool = False
    bidirectional_layers: int | None = None
    residual: int = 0
    reverse_source: bool = False
    source_eos: bool = False
    dropout: float = 0.0
    context_size: int | None = None
    context_every_step: bool = False
    bridge: str | None = None
    bridge_nonlinearity: str = "tanh"
    output: str = "linear"
    maxout_size: int | None = None
    output_rank: int | None = None
    tie_embeddings: str = "none"
    attention: str = "none"
    attention_size: int | None = None
    attention_heads: int = 1
    attention_window: int = 10
    attention_query: str = "current"
    input_feeding: bool = False
    attentional_nonlinearity: str = "tanh"
    coverage: bool = False
    copy: bool = False
    pad_token_id: int = 0
    unk_token_id: int = 1
    bos_token_id: int = 2
    eos_token_id: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            "source_vocab_size",
            "target_vocab_size",
            "source_embedding_size",
            "target_embedding_size",
            "encoder_hidden_size",
            "decoder_hidden_size",
            "encoder_num_layers",
            "decoder_num_layers",
            "attention_heads",
            "attention_window",
        ):
            self._check_positive(name)
        for name in (
            "context_size",
            "maxout_size",
            "output_rank",
            "attention_size",
            "bidirectional_layers",
        ):
            if getattr(self, name) is not None:
                self._check_positive(name)
        self._check_choice("output", OUTPUTS)
        self._check_choice("attention", ATTENTIONS)
        self._check_choice("attention_query", QUERIES)
        self._check_choice("tie_embeddings", TIES)
        self._check_choice("attentional_nonlinearity", ATTENTIONAL_NONLINEARITIES)
        self._check_choice("bridge_nonlinearity", BRIDGE_NONLINEARITIES)
        if self.bridge is not None:
            self._check_choice("bridge", BRIDGES)
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        self._check_special_tokens()
        self._check_layers()
        self._check_ties()
        if self.bridge == "copy" and not self._copy_fits:
            raise ValueError(
                "bridge='copy' needs an encoder state of the decoder's shape (layers, size), got "
                f"({self.encoder_state_layers}, {self.encoder_state_size}) for the encoder and "
                f"({self.decoder_num_layers}, {self.decoder_hidden_size}) for the decoder"
            )
        if self.bridge_nonlinearity != "tanh" and self.resolved_bridge not in ("dense", "context"):
            raise ValueError(
                f"bridge_nonlinearity={self.bridge_nonlinearity!r} needs bridge='dense' or "
                f"'context', got {self.resolved_bridge!r}"
            )
        if self.maxout_size is not None and self.output != "maxout":
            raise ValueError(f"maxout_size={self.maxout_size} needs output='maxout'")
        self._check_attention()

    def _check_layers(self) -> None:
        layers = self.bidirectional_layers
        if layers is not None and not self.bidirectional:
            raise ValueError(f"bidirectional_layers={layers} needs bidirectional=True, got False")
        if layers is not None and layers > self.encoder_num_layers:
            raise ValueError(
                f"bidirectional_layers must be at most encoder_num_layers="
                f"{self.encoder_num_layers}, got {layers}"
            )
        if isinstance(self.residual, bool) or not isinstance(self.residual, int):
            raise TypeError(f"residual must be an int, got {self.residual!r}")
        if self.residual < 0:
            raise ValueError(f"residual must be at least 0, got {self.residual}")
        if self.attention_query == "previous" and 0 < self.residual < self.decoder_num_layers:
            raise ValueError(
                f"residual={self.residual} needs attention_query='current' or 'first_layer' in a "
                f"decoder of {self.decoder_num_layers} layers, got 'previous'"
            )
        if self.attention_query == "first_layer" and self.decoder_num_layers < 2:
            raise ValueError(
                "attention_query='first_layer' needs decoder_num_layers of at least 2, got "
                f"{self.decoder_num_layers}"
            )

    def _check_ties(self) -> None:
        if self.tie_embeddings == "none":
            return
        features = self.output_rank or self.output_features
        if features != self.target_embedding_size:
            raise ValueError(
                f"tie_embeddings={self.tie_embeddings!r} needs target_embedding_size={features}, "
                f"the features that the output layer reads, got {self.target_embedding_size}; "
                "output_rank can map them"
            )
        source = (self.source_vocab_size, self.source_embedding_size)
        target = (self.target_vocab_size, self.target_embedding_size)
        if self.tie_embeddings == "all" and source != target:
            raise ValueError(
                "tie_embeddings='all' needs one vocabulary and embedding size for source and "
                f"target, got {source} and {target}"
            )

    def _check_attention(self) -> None:
        kind = self.attention
        additive = kind in ("additive", "normalized_additive")
        needs = {
            f"attention_query={self.attention_query!r}": (
                self.attention_query == "current" or kind != "none",
                "attention",
            ),
            "input_feeding=True": (
                not self.input_feeding or (kind != "none" and self.attention_query == "current"),
                "attention with attention_query='current'",
            ),
            "coverage=True": (
                not self.coverage or (additive and self.feeds_back),
                "additive energies, and input_feeding or attention_query='previous'",
            ),
            f"attention_heads={self.attention_heads}": (
                self.attention_heads == 1 or kind == "multi_head",
                "attention='multi_head'",
            ),
            f"attentional_nonlinearity={self.attentional_nonlinearity!r}": (
                self.attentional_nonlinearity == "tanh" or self.has_attentional_vector,
                "attention, output='linear' and another attention_query than 'first_layer'",
            ),
            "copy=True": (
                not self.copy or kind not in ("none", "local_p"),
                "attention whose alignments sum up to 1",
            ),
            f"attention_size={self.attention_size}": (
                self.attention_size is None or additive or kind == "multi_head",
                "additive or multi_head attention",
            ),
        }
        for what, (fits, wanted) in needs.items():
            if not fits:
                raise ValueError(f"{what} needs {wanted}, got attention={kind!r}")
        if self.copy and self.source_vocab_size != self.target_vocab_size:
            raise ValueError(
                "copy=True needs one vocabulary for source and target, got sizes "
                f"{self.source_vocab_size} and {self.target_vocab_size}"
            )
        if kind == "dot" and self.encoder_state_size != self.decoder_hidden_size:
            raise ValueError(
                "attention='dot' needs encoder outputs of the decoder's size "
                f"{self.decoder_hidden_size}, got {self.encoder_state_size}; 'general' maps them"
            )
        if self.resolved_attention_size % self.attention_heads:
            raise ValueError(
                f"attention_heads must divide the attention's size {self.resolved_attention_size}, "
                f"got {self.attention_heads}"
            )

    @classmethod
    def cho2014(
        cls, source_vocab_size: int, target_vocab_size: int, **changes: Any
    ) -> Seq2SeqConfig:
        """The RNN encoder-decoder of Cho et al. 2014 (arXiv 1406.1078, sections 2, 3.1 and A).

        Gated hidden units with the reset gate on the state, a context ``c = tanh(V h)``, an initial
        state ``h_0' = tanh(V' c)``, the context at every step of the decoder, 500 maxout units over
        state, previous token and context, and an output matrix of rank 100. The paper's decoder
        lets the reset gate act on the context's part of the candidate too; here, as in Bahdanau et
        al. 2015 (arXiv 1409.0473, appendix A.2.2), the context enters beside the token, ungated.

        Args:
            source_vocab_size: number of source tokens, special ones included.
            target_vocab_size: number of target tokens, special ones included.
            **changes: fields to set otherwise, for instance smaller sizes.

        Example:
            >>> config = Seq2SeqConfig.cho2014(30, 30, encoder_hidden_size=128)
            >>> config.reset_after, config.output, config.encoder_hidden_size
            (False, 'maxout', 128)
        """
        settings: dict[str, Any] = {
            "cell": "gru",
            "reset_after": False,
            "source_embedding_size": 100,
            "target_embedding_size": 100,
            "encoder_hidden_size": 1000,
            "decoder_hidden_size": 1000,
            "context_size": 1000,
            "context_every_step": True,
            "bridge": "context",
            "output": "maxout",
            "maxout_size": 500,
            "output_rank": 100,
        }
        return cls._preset(source_vocab_size, target_vocab_size, settings | changes)

    @classmethod
    def sutskever2014(
        cls, source_vocab_size: int, target_vocab_size: int, **changes: Any
    ) -> Seq2SeqConfig:
        """The deep LSTMs of Sutskever, Vinyals & Le 2014 (arXiv 1409.3215, section 3.4).

        Four layers of 1,000 units, the source read backwards, no attention. Arguments as for
        `cho2014`.

        Example:
            >>> Seq2SeqConfig.sutskever2014(30, 30).encoder_num_layers
            4
        """
        settings: dict[str, Any] = {
            "cell": "lstm",
            "source_embedding_size": 1000,
            "target_embedding_size": 1000,
            "encoder_hidden_size": 1000,
            "decoder_hidden_size": 1000,
            "encoder_num_layers": 4,
            "decoder_num_layers": 4,
            "reverse_source": True,
        }
        return cls._preset(source_vocab_size, target_vocab_size, settings | changes)

    @classmethod
    def bahdanau2015(
        cls, source_vocab_size: int, target_vocab_size: int, **changes: Any
    ) -> Seq2SeqConfig:
        """RNNsearch of Bahdanau, Cho & Bengio 2015 (arXiv 1409.0473, appendices A and B).

        A bidirectional encoder, additive attention by the state of the step before, 500 maxout
        units. The paper's first state comes of the backward direction alone; here of both.
        Arguments as for `cho2014`.

        Example:
            >>> Seq2SeqConfig.bahdanau2015(30, 30).attended_size
            2000
        """
        settings: dict[str, Any] = {
            "cell": "gru",
            "reset_after": False,
            "source_embedding_size": 620,
            "target_embedding_size": 620,
            "encoder_hidden_size": 1000,
            "decoder_hidden_size": 1000,
            "bidirectional": True,
            "bridge": "dense",
            "attention": "additive",
            "attention_query": "previous",
            "output": "maxout",
            "maxout_size": 500,
        }
        return cls._preset(source_vocab_size, target_vocab_size, settings | changes)

    @classmethod
    def luong2015(
        cls, source_vocab_size: int, target_vocab_size: int, **changes: Any
    ) -> Seq2SeqConfig:
        """The global attention of Luong, Pham & Manning 2015 (arXiv 1508.04025, section 4.1).

        The LSTMs of `sutskever2014` with general attention, input feeding and dropout of 0.2.
        Arguments as for `cho2014`.

        Example:
            >>> Seq2SeqConfig.luong2015(30, 30).feed_size
            1000
        """
        settings = {"dropout": 0.2, "attention": "general", "input_feeding": True}
        return cls.sutskever2014(source_vocab_size, target_vocab_size, **(settings | changes))

    @classmethod
    def gnmt(cls, source_vocab_size: int, target_vocab_size: int, **changes: Any) -> Seq2SeqConfig:
        """Google's NMT (Wu et al. 2016, arXiv 1609.08144), in the form of NVIDIA's GNMT v2.

        Four layers of 1,024 LSTM units on both sides, the encoder's first in both directions,
        residual connections from the third on, normalised additive attention by the decoder's first
        layer, whose context all layers above read, a decoder that starts from zeros, dropout of
        0.2. The paper has eight layers and attends by the step before. GNMT v2 shares the embedding
        of source and target, but not the output layer's matrix: ``tie_embeddings`` has "all" or
        "decoder". Arguments as for `cho2014`.

        Example:
            >>> config = Seq2SeqConfig.gnmt(30, 30, encoder_num_layers=8, decoder_num_layers=8)
            >>> config.encoder_state_size, config.encoder_state_layers
            (1024, 7)
        """
        settings: dict[str, Any] = {
            "cell": "lstm",
            "source_embedding_size": 1024,
            "target_embedding_size": 1024,
            "encoder_hidden_size": 1024,
            "decoder_hidden_size": 1024,
            "encoder_num_layers": 4,
            "decoder_num_layers": 4,
            "bidirectional": True,
            "bidirectional_layers": 1,
            "residual": 2,
            "bridge": "zeros",
            "attention": "normalized_additive",
            "attention_query": "first_layer",
            "dropout": 0.2,
        }
        return cls._preset(source_vocab_size, target_vocab_size, settings | changes)

    @classmethod
    def _preset(
        cls, source_vocab_size: int, target_vocab_size: int, settings: dict[str, Any]
    ) -> Seq2SeqConfig:
        sizes = {"source_vocab_size": source_vocab_size, "target_vocab_size": target_vocab_size}
        return cls(**(sizes | settings))

    @property
    def resolved_bidirectional_layers(self) -> int:
        """How many of the encoder's layers read both ways."""
        if not self.bidirectional:
            return 0
        layers = self.bidirectional_layers
        return self.encoder_num_layers if layers is None else layers

    @property
    def encoder_state_layers(self) -> int:
        """Layers of the encoder's final states: all, or those above the bidirectional ones."""
        above = self.encoder_num_layers - self.resolved_bidirectional_layers
        return above or self.encoder_num_layers

    @property
    def encoder_state_size(self) -> int:
        """Width of the last encoder layer's states, its directions side by side."""
        both = self.resolved_bidirectional_layers == self.encoder_num_layers
        return self.encoder_hidden_size * (2 if both else 1)

    @property
    def resolved_context_size(self) -> int:
        """Width of the context vector."""
        return self.encoder_state_size if self.context_size is None else self.context_size

    @property
    def resolved_attention_size(self) -> int:
        """Features of queries and keys: ``attention_size``, or what None stands for."""
        return self.decoder_hidden_size if self.attention_size is None else self.attention_size

    @property
    def attended_size(self) -> int:
        """Features of what attention gives each step."""
        multi_head = self.attention == "multi_head"
        return self.resolved_attention_size if multi_head else self.encoder_state_size

    @property
    def feeds_back(self) -> bool:
        """Whether a step reads what attention gave, so that steps follow one another."""
        return self.input_feeding or self.attention_query == "previous"

    @property
    def has_attentional_vector(self) -> bool:
        """Whether the output layer reads ``tanh(W [c_t; z_t] + b)``."""
        attends = self.attention != "none" and self.attention_query != "first_layer"
        return attends and self.output == "linear"

    @property
    def steps_are_fused(self) -> bool:
        """Whether steps that follow one another are those of the fused decoder.

        `seq2seq_ext.decoder.attention_decoder` has no window and no attentional vector without
        tanh, and its cells are plain; other steps go through `seq2seq_ext.models.stepwise`.
        """
        special = self.attention == "local_p" or self.attentional_nonlinearity != "tanh"
        return self.feeds_back and not special and not self.variants

    @property
    def decoding_is_fused(self) -> bool:
        """Whether ``csrc/decoding.h`` knows all that a step of the decoder does."""
        known_attention = self.attention != "local_p" and self.attention_query != "first_layer"
        plain = self.attentional_nonlinearity == "tanh" and not self.copy and not self.variants
        return known_attention and plain

    @property
    def feed_size(self) -> int:
        """Features of what attention gives the next step's, or this step's, cells; 0: nothing."""
        if not self.feeds_back:
            return 0
        combined = self.output == "linear" and self.attention_query == "current"
        return self.decoder_hidden_size if combined else self.attended_size

    @property
    def resolved_bridge(self) -> str:
        """The bridge in use: ``bridge``, or what None stands for."""
        if self.bridge is not None:
            return self.bridge
        return "copy" if self._copy_fits else "dense"

    @property
    def output_features(self) -> int:
        """Features that the map onto the vocabulary reads."""
        return self.resolved_maxout_size if self.output == "maxout" else self.decoder_hidden_size

    @property
    def resolved_maxout_size(self) -> int:
        """Number of maxout units in use: ``maxout_size``, or what None stands for."""
        return max(1, self.decoder_hidden_size // 2) if not self.maxout_size else self.maxout_size

    def to_dict(self) -> dict[str, Any]:
        """All fields as a dict that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Seq2SeqConfig:
        """The config that `to_dict` described.

        Raises:
            ValueError: if a required field is missing or a name is no field.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown Seq2SeqConfig fields {unknown}, known are {sorted(known)}")
        missing = sorted({"source_vocab_size", "target_vocab_size"} - set(values))
        if missing:
            raise ValueError(f"Seq2SeqConfig fields {missing} are missing")
        return cls(**values)

    @property
    def _copy_fits(self) -> bool:
        return (self.encoder_state_layers, self.encoder_state_size) == (
            self.decoder_num_layers,
            self.decoder_hidden_size,
        )

    def _check_positive(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")

    def _check_special_tokens(self) -> None:
        names = ("pad_token_id", "unk_token_id", "bos_token_id", "eos_token_id")
        vocab_size = min(self.source_vocab_size, self.target_vocab_size)
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {value!r}")
            if not 0 <= value < vocab_size:
                raise ValueError(
                    f"{name} must be in [0, {vocab_size}), the smaller vocabulary, got {value}"
                )
        ids = [getattr(self, name) for name in names]
        if len(set(ids)) != len(ids):
            raise ValueError(f"{', '.join(names)} must differ, got {ids}")
