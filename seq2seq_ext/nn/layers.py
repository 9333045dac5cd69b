"""``LSTM``, ``GRU`` and ``RNN``: the parameters of ``torch.nn``, the computation of the fused op.

The layers derive from :class:`torch.nn.RNNBase`, whose parameters, initialisation, state dict and
repr they keep.  They do not derive from ``nn.LSTM`` and so on, because ``torch.compile`` refuses
every instance of those three classes; but programs that ask ``isinstance(layer, nn.LSTM)``, for
example to know that the state is a pair, are answered yes (see :class:`_Layer`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from typing_extensions import Unpack

from seq2seq_ext import functional, ops
from seq2seq_ext.nn import layouts, variant_layers
from seq2seq_ext.nn.variant_layers import CommonVariants, LSTMVariants
from seq2seq_ext.variants import Variant

__all__ = ["GRU", "LSTM", "RNN"]

Layer = TypeVar("Layer", bound="_Layer")

# What ``object`` does to read and set ``__class__``; :class:`_Layer` has a property of that name.
_actual_class = object.__dict__["__class__"]


def _plain(size: Any) -> Any:
    """A 0-d tensor of integers as the int that it holds; anything else unchanged."""
    if isinstance(size, Tensor) and size.dim() == 0 and not size.is_floating_point():
        return size.item()
    return size


class _Layer(nn.RNNBase):
    """What the three layers share: how they are made, and what they say that they are.

    ``layer.__class__`` answers a class that derives from both the layer's own class and its
    counterpart in ``torch.nn``, so ``isinstance`` finds either; ``type(layer)`` remains the class
    itself.  While torch compiles, ``__class__`` is the plain truth: a model's ``forward`` that is
    compiled and tells an LSTM by ``isinstance`` must ask for the class of this package, or for
    ``layer.mode == "LSTM"``.
    """

    torch_class: ClassVar[type[nn.RNNBase]]
    _answered_class: ClassVar[type[nn.RNNBase]]
    _packed: ops.PackedLayers | None = None  # see seq2seq_ext.prepack
    # None in a plain layer, as in those that began as torch.nn's.
    _variant: Variant | None = None
    _sizes: tuple[int, ...] | None = None  # of the layers, where they were listed
    save: str = "gates"  # what is kept for backward
    __prepare_scriptable__ = functional.refuse_script

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not issubclass(cls, cls.torch_class):
            namespace = {
                "__doc__": cls.__doc__,
                "__module__": cls.__module__,
                "__qualname__": cls.__qualname__,
                "__new__": _new_of(cls),
                "_layer_class": cls,
            }
            cls._answered_class = cast(
                "type[nn.RNNBase]", type(cls.__name__, (cls, cls.torch_class), namespace)
            )
        else:
            # ``cls`` is such an answer itself, or torch.nn.utils.parametrize derived it from one.
            cls._answered_class = cls

    @property  # type: ignore[override]
    def __class__(self) -> type[nn.RNNBase]:
        return type(self) if _compiling() else type(self)._answered_class

    @__class__.setter
    def __class__(self, value: type[Any]) -> None:
        # Parametrizations give the layer a class derived from the answer above, and, when the last
        # of them is removed, the answer itself: then the layer's own class is what is meant.
        _actual_class.__set__(self, value.__dict__.get("_layer_class", value))

    def __reduce__(self) -> tuple[Any, ...]:
        # pickle and copy would otherwise find that __class__ is not the type they are to rebuild.
        return object.__new__, (type(self),), self.__getstate__()  # type: ignore[no-untyped-call]

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int,
        device: torch.device | str | int | None,
        dtype: torch.dtype | None,
        save: str,
        variants: LSTMVariants | CommonVariants,
    ) -> None:
        if save not in functional.SAVE:
            raise ValueError(f"save must be one of {', '.join(functional.SAVE)}, got {save!r}")
        variant = Variant(**variants)
        variant.check(self.torch_class.__name__, bool(bias), bool(proj_size))
        hidden_size, num_layers, sizes = variant_layers.hidden_sizes(hidden_size, num_layers)
        # By name, not by super(): the answered class has nn.LSTM in between.
        nn.RNNBase.__init__(
            self,
            mode,
            _plain(input_size),
            _plain(hidden_size),
            _plain(num_layers),
            bias,
            batch_first,
            _plain(dropout),
            bidirectional,
            _plain(proj_size),
            device,
            dtype,
        )
        if save != self.save:
            self.save = save
        if sizes is not None:
            self.hidden_size, self._sizes = cast("int", sizes), sizes
        # torch.nn has projected LSTMs, and no others.
        if sizes is not None or variant != Variant() or (self.proj_size and mode != "LSTM"):
            self._variant = variant
            variant_layers.add_parameters(self, device, dtype)
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start all parameters anew."""
        if self._variant is None:
            nn.RNNBase.reset_parameters(self)
        else:
            variant_layers.reset_parameters(self)

    @classmethod
    def from_weights(
        cls: type[Layer],
        weights: Any,
        layout: str,
        *,
        reset_after: bool | None = None,
        **options: Any,
    ) -> Layer:
        """Make a layer of the weights of another library (docs/other-weights.md has a table).

        Args:
            weights: one layer's arrays of NumPy or tensors, in the order of the layout or in a
                mapping by its names; or a list of such layers, which are stacked. All of one
                floating dtype, on one device; the layer's parameters are copies in that dtype,
                there.
            layout: ``"keras"``: kernel (I, G*H), recurrent_kernel (H, G*H), bias, as
                ``get_weights`` gives them; a Bidirectional's second direction follows.
                ``"haste"``: the same arrays, and a GRU's recurrent_bias; after them gamma (2, G*H)
                and, of an LSTM, gamma_h and beta_h (H,), where the layer normalizes.
                ``"onnx"``: W (D, G*H, I), R (D, G*H, H), B (D, 2*G*H).
                G is the number of gates. Biases may be missing.
            reset_after: of a GRU: Keras' argument of that name, the operator's
                ``linear_before_reset`` in ONNX. It must be given where the arrays do not tell:
                for ``"onnx"``, and for ``"keras"`` without biases.
            **options: further arguments of the class: ``batch_first``, ``dropout``,
                ``nonlinearity``, ``zoneout``, ``weight_drop``.

        Returns:
            The layer; sizes, ``num_layers``, ``bias``, ``bidirectional`` and dtype are those of
            ``weights``.

        Raises:
            ValueError: if ``layout`` is unknown or has no such layer, arrays are missing, too many,
                or of a wrong shape, dtype or device, or ``reset_after`` must be given.

        >>> kernel, recurrent_kernel, bias = torch.ones(3, 8), torch.ones(2, 8), torch.zeros(8)
        >>> LSTM.from_weights([kernel, recurrent_kernel, bias], "keras", batch_first=True)
        LSTM(3, 2, batch_first=True)
        """
        mode = cls.torch_class.__name__
        arguments, state = layouts.to_torch(weights, layout, mode, reset_after)
        layer = cls(**arguments, **options, device="meta")
        layer.load_state_dict(state, assign=True)
        return layer

    def to_weights(self, layout: str) -> list[list[Tensor]]:
        """The weights as another library has them: what :meth:`from_weights` reads.

        Args:
            layout: as for :meth:`from_weights`.

        Returns:
            For each layer a list of its arrays, copies. Where a layout has one bias, it is the sum
            of both.

        Raises:
            ValueError: if ``layout`` is unknown, or has no such layer: haste has ``layer_norm``,
                ``zoneout`` of h and ``weight_drop``, and no layout any other variant.

        >>> [[kernel, recurrent_kernel, bias]] = LSTM(3, 2).to_weights("keras")
        >>> kernel.shape, recurrent_kernel.shape, bias.shape
        (torch.Size([3, 8]), torch.Size([2, 8]), torch.Size([8]))
        """
        if self._sizes is not None:
            raise ValueError(
                f"layout {layout!r} has layers of one size, got hidden_size={self._sizes}"
            )
        if self.proj_size:
            raise ValueError(f"layout {layout!r} has no projection, got proj_size={self.proj_size}")
        return layouts.from_torch(
            variant_layers.directions_of(self),
            layout,
            self.torch_class.__name__,
            getattr(self, "reset_after", None),
            2 if self.bidirectional else 1,
            self._variant,
        )

    @property
    def _cell(self) -> str:
        """What the operators call this layer's cell."""
        raise NotImplementedError

    def _run(
        self, input: Any, hx: Any, lengths: Tensor | None, resets: Tensor | None
    ) -> tuple[Any, Any, Any, Any]:
        """``output, h_n, c_n, cells``."""
        stack = None if self._variant is None else variant_layers.stack_of(self)
        sizes = stack.sizes if stack is not None else None
        if sizes is not None and hx is not None:
            hx = self._joined(hx, sizes)
        output, h_n, c_n, cells = functional.run(
            self._cell,
            input,
            hx,
            self._current_weights(),
            self.num_layers,
            self.batch_first,
            self.dropout if self.training else 0.0,
            self.bidirectional,
            lengths,
            resets,
            self._packed,
            stack,
            self.save,
        )
        if sizes is not None:
            P, H = zip(*sizes, strict=True)
            h_n = h_n.split(P, dim=-1)  # type: ignore[no-untyped-call]
            if c_n is not None:
                c_n = c_n.split(H, dim=-1)  # type: ignore[no-untyped-call]
        return output, h_n, c_n, cells

    def _joined(self, hx: Any, sizes: Sequence[tuple[int, int]]) -> Any:
        """A state of layers of unequal sizes as one: what was given for each, side by side."""
        P, H = zip(*sizes, strict=True)
        if self.mode != "LSTM":
            return variant_layers.joined(hx, "hx", P)
        if not isinstance(hx, (tuple, list)) or len(hx) != 2:
            raise RuntimeError("lstm expects two hidden states")
        return tuple(
            variant_layers.joined(states, f"hx[{i}]", features)
            for i, (states, features) in enumerate(zip(hx, (P, H), strict=True))
        )

    def extra_repr(self) -> str:
        described = [] if self._variant is None else self._variant.described()
        if self.save != "gates":
            described = [f"save={self.save!r}", *described]
        return ", ".join([nn.RNNBase.extra_repr(self), *described])

    def _current_weights(self) -> list[Tensor]:
        """The weights as attributes have them now, in the order of the operator.

        Parametrized, pruned and swapped-in weights (``torch.func.functional_call``) are found
        where they are; the dictionary of parameters is merely the short way to the usual ones.
        """
        parameters = self._parameters
        return [
            cast("Tensor", parameters[name] if name in parameters else getattr(self, name))
            for name in self._flat_weights_names
        ]

    @property
    def _flat_weights(self) -> list[Tensor | None]:
        # torch.nn caches this list; here it is made when asked for, and so is never stale.
        return [getattr(self, name, None) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, value: list[Tensor | None]) -> None:
        """What nn.RNNBase would cache.  The attributes are the truth, so there is nothing to do."""

    def flatten_parameters(self) -> None:
        """Do nothing: the layer needs no common buffer of weights.  Kept for its callers."""


def _new_of(layer_class: type[_Layer]) -> Callable[..., Any]:
    """``__new__`` of an answered class: calling it makes a layer of ``layer_class``."""

    def __new__(cls: type[_Layer], *args: Any, **kwargs: Any) -> Any:
        if cls.__dict__.get("_layer_class") is layer_class:
            return layer_class(*args, **kwargs)
        return object.__new__(cls)

    return __new__


def _compiling() -> bool:
    """Whether dynamo or export is looking at the program."""
    return (
        torch.compiler.is_compiling()
        or torch._guards.TracingContext.try_get() is not None
        or torch._guards.CompileContext.try_get() is not None
    )


class LSTM(_Layer):
    r"""Long short-term memory; takes the place of :class:`torch.nn.LSTM`.

    For every step of every layer (Hochreiter & Schmidhuber 1997; Gers, Schmidhuber & Cummins
    2000):

    .. math::
        \begin{aligned}
        i_t &= \sigma(W_{ii} x_t + b_{ii} + W_{hi} h_{t-1} + b_{hi}) \\
        f_t &= \sigma(W_{if} x_t + b_{if} + W_{hf} h_{t-1} + b_{hf}) \\
        g_t &= \tanh(W_{ig} x_t + b_{ig} + W_{hg} h_{t-1} + b_{hg}) \\
        o_t &= \sigma(W_{io} x_t + b_{io} + W_{ho} h_{t-1} + b_{ho}) \\
        c_t &= f_t \odot c_{t-1} + i_t \odot g_t \\
        h_t &= o_t \odot \tanh(c_t)
        \end{aligned}

    and :math:`h_t \leftarrow W_{hr} h_t` with ``proj_size`` (Sak, Senior & Beaufays 2014).

    Args:
        input_size: features I of the input.
        hidden_size: hidden units H.
        num_layers: layers L; each reads the output of the one before.
        bias: whether ``b_ih`` and ``b_hh`` exist.
        batch_first: whether input and output are (B, T, ...) instead of (T, B, ...).
        dropout: probability of zeroing an element of the output of every layer but the last,
            while training.
        bidirectional: whether a second direction reads each sequence from its end (D = 2).
        proj_size: size P < H that the hidden state is projected to; 0 for none, then P = H.
        device: where the parameters live.
        dtype: of the parameters: float32, float64, float16 or bfloat16 (docs/low-precision.md).
        save: what a call keeps for backward: ``"gates"``, or ``"states"``, the call's arguments and
            results, of which backward computes the gates anew: less memory, more time
            (docs/autograd.md).

    Attributes:
        weight_ih_l[k], weight_hh_l[k]: (4H, I or D*P) and (4H, P); rows of i, f, g, o.
        bias_ih_l[k], bias_hh_l[k]: (4H,).
        weight_hr_l[k]: (P, H), with ``proj_size``.  The reverse direction's names end in
            ``_reverse``.  All start uniform in :math:`\pm 1/\sqrt{H}`.

    >>> lstm = LSTM(10, 20, num_layers=2, bidirectional=True)
    >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 10), lengths=torch.tensor([5, 0, 2]))
    >>> output.shape, h_n.shape, c_n.shape
    (torch.Size([5, 3, 40]), torch.Size([4, 3, 20]), torch.Size([4, 3, 20]))
    >>> isinstance(lstm, torch.nn.LSTM)
    True
    """

    torch_class = nn.LSTM

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        save: str = "gates",
        **variants: Unpack[LSTMVariants],
    ) -> None:
        _Layer.__init__(
            self,
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
            save,
            variants,
        )

    @property
    def _cell(self) -> str:
        return "coupled_lstm" if self._variant is not None and self._variant.coupled else "lstm"

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Sequence[Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> Any:
        """Run over whole sequences.

        Args:
            input: (T, B, I), (B, T, I) with ``batch_first``, (T, I) for one sequence, or a
                PackedSequence; dtype and device of the parameters.
            hx: ``(h_0, c_0)`` of sizes (L*D, B, P) and (L*D, B, H), without B for one sequence;
                zeros if None.
            lengths: integers (B,), the steps of each sequence, 0 to T, in any order.
            resets: bool, (T, B) or as ``input`` is laid out; where true, the state is zeroed
                before that step.

        Returns:
            ``output, (h_n, c_n)``: as ``input`` with D*P features, 0 past a sequence's length;
            and the state after each sequence's last step, sized like ``hx``.  With
            ``return_cells`` a third: c of every step of the last layer, as ``output`` with D*H
            features.

        Raises:
            TypeError, ValueError, RuntimeError: see :func:`seq2seq_ext.functional.lstm`.
        """
        output, h_n, c_n, cells = self._run(input, hx, lengths, resets)
        return (output, (h_n, c_n)) if cells is None else (output, (h_n, c_n), cells)


class GRU(_Layer):
    r"""Gated recurrent unit (Cho et al. 2014); takes the place of :class:`torch.nn.GRU`.

    For every step of every layer:

    .. math::
        \begin{aligned}
        r_t &= \sigma(W_{ir} x_t + b_{ir} + W_{hr} h_{t-1} + b_{hr}) \\
        z_t &= \sigma(W_{iz} x_t + b_{iz} + W_{hz} h_{t-1} + b_{hz}) \\
        n_t &= \tanh(W_{in} x_t + b_{in} + r_t \odot (W_{hn} h_{t-1} + b_{hn})) \\
        h_t &= (1 - z_t) \odot n_t + z_t \odot h_{t-1}
        \end{aligned}

    With ``reset_after=False`` the candidate is the paper's,
    :math:`n_t = \tanh(W_{in} x_t + b_{in} + W_{hn} (r_t \odot h_{t-1}) + b_{hn})`.

    With ``proj_size`` the gates read :math:`p_{t-1} = W_{hr} h_{t-1}` in the place of
    :math:`h_{t-1}`, and :math:`p_t` is the layer's output; the state that
    :math:`z_t` keeps a part of remains :math:`h_t` (Cheng et al. 2018; the projected GRU of Kaldi,
    with the reset gate after the product). So output and state differ in size: output has P
    features, ``hx`` and ``h_n`` have H. Zoneout acts on :math:`h_t`.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device,
            dtype, save: as for :class:`LSTM`.
        proj_size: size P < H of the output and of what the gates read; 0 for none, then P = H. Not
            with ``reset_after=False``.
        reset_after: keyword only; whether the reset gate follows the recurrent product.

    Attributes:
        weight_ih_l[k], weight_hh_l[k]: (3H, I or D*P) and (3H, P); rows of r, z, n.
        bias_ih_l[k], bias_hh_l[k]: (3H,).
        weight_hr_l[k]: (P, H), with ``proj_size``.

    >>> gru = GRU(10, 20, batch_first=True, reset_after=False)
    >>> output, h_n = gru(torch.randn(3, 5, 10))
    >>> output.shape, h_n.shape
    (torch.Size([3, 5, 20]), torch.Size([1, 3, 20]))
    >>> output, h_n = GRU(10, 20, proj_size=8)(torch.randn(5, 3, 10))
    >>> output.shape, h_n.shape
    (torch.Size([5, 3, 8]), torch.Size([1, 3, 20]))
    """

    torch_class = nn.GRU
    reset_after: bool = True  # on the class too, for layers that began as an nn.GRU

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        save: str = "gates",
        **variants: Unpack[CommonVariants],
    ) -> None:
        self.__dict__["reset_after"] = bool(reset_after)  # before there is a module to set it on
        variant_layers.check_projection(self, proj_size)
        _Layer.__init__(
            self,
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
            save,
            variants,
        )

    def extra_repr(self) -> str:
        return _Layer.extra_repr(self) + ("" if self.reset_after else ", reset_after=False")

    @property
    def _cell(self) -> str:
        return "gru" if self.reset_after else "gru_reset_before"

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Any, Tensor]:
        """Run over whole sequences: as :meth:`LSTM.forward`, with ``hx`` and h_n (L*D, B, H)."""
        output, h_n, _, _ = self._run(input, hx, lengths, resets)
        return output, h_n


class RNN(_Layer):
    r"""Simple recurrent network (Elman 1990); takes the place of :class:`torch.nn.RNN`.

    For every step of every layer:

    .. math:: h_t = \phi(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})

    and :math:`h_t \leftarrow W_{hr} h_t` with ``proj_size``, as in :class:`LSTM`.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device,
            dtype, save: as for :class:`LSTM`.
        nonlinearity: :math:`\phi`, ``"tanh"`` or ``"relu"``.
        proj_size: size P < H that the hidden state is projected to; 0 for none, then P = H.

    Attributes:
        weight_ih_l[k], weight_hh_l[k]: (H, I or D*P) and (H, P).
        bias_ih_l[k], bias_hh_l[k]: (H,).
        weight_hr_l[k]: (P, H), with ``proj_size``.

    >>> rnn = RNN(10, 20, nonlinearity="relu")
    >>> output, h_n = rnn(torch.randn(5, 10))
    >>> output.shape, h_n.shape
    (torch.Size([5, 20]), torch.Size([1, 20]))
    """

    torch_class = nn.RNN
    nonlinearity: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        save: str = "gates",
        **variants: Unpack[CommonVariants],
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        self.__dict__["nonlinearity"] = nonlinearity  # before there is a module to set it on
        _Layer.__init__(
            self,
            "RNN_TANH" if nonlinearity == "tanh" else "RNN_RELU",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
            save,
            variants,
        )

    @property
    def _cell(self) -> str:
        return "rnn_tanh" if self.nonlinearity == "tanh" else "rnn_relu"

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Any, Tensor]:
        """Run over whole sequences: as :meth:`LSTM.forward`, with ``hx`` and h_n (L*D, B, P)."""
        output, h_n, _, _ = self._run(input, hx, lengths, resets)
        return output, h_n
