"""Recurrent policies of sb3-contrib that pass over a whole sequence in one call.

RecurrentPPO learns from sequences that begin at the starts of episodes.  Wherever a state is to be
zeroed, be it before the first step, its policies loop over time in Python; ``resets=`` does the
same inside the kernel.  Needs the extra ``[rl]``.
"""

from __future__ import annotations

from typing import TypeVar

from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from torch import Tensor

from seq2seq_ext.nn import LSTM, NotReplaced, replace_modules

__all__ = ["process_sequence", "use_resets"]

Policy = TypeVar("Policy", bound=RecurrentActorCriticPolicy)


def use_resets(policy: Policy) -> Policy:
    """Let a recurrent policy of sb3-contrib compute its sequences with ``resets=``.

    Its LSTMs become this package's by :func:`seq2seq_ext.replace_modules`, so parameters, optimiser
    and ``state_dict`` stay, and :func:`process_sequence` takes the place of the policy's own loop.
    A model that is saved is a file of sb3's; call this again on what is loaded from it.

    Args:
        policy: of any subclass of sb3-contrib's RecurrentActorCriticPolicy, before or after
            training.

    Returns:
        ``policy``.

    Raises:
        TypeError: if ``policy`` is something else.
        ValueError: if an LSTM of it cannot be replaced, for example a subclass of ``nn.LSTM``.

    >>> from sb3_contrib import RecurrentPPO
    >>> model = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=16, n_epochs=1)
    >>> use_resets(model.policy).lstm_actor
    LSTM(4, 256)
    >>> model.learn(16).num_timesteps
    16
    """
    if not isinstance(policy, RecurrentActorCriticPolicy):
        raise TypeError(
            "policy must be a RecurrentActorCriticPolicy of sb3-contrib, "
            f"got {type(policy).__name__}"
        )
    left: list[NotReplaced] = []
    for lstm in (policy.lstm_actor, policy.lstm_critic):
        if lstm is not None:
            replace_modules(lstm, report=left)
    if left:
        raise ValueError(f"policy: expected LSTMs that can be replaced, but {left[0].reason}")
    # On the object, not its class: other policies of that class go on as they were.
    policy._process_sequence = process_sequence  # type: ignore[assignment, method-assign]
    return policy


def process_sequence(
    features: Tensor, lstm_states: tuple[Tensor, Tensor], episode_starts: Tensor, lstm: LSTM
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run an LSTM over sequences as sb3-contrib lays them out.

    Args:
        features: (B*T, I), a sequence's steps one after another; float32 or float64, as all but
            ``episode_starts``.
        lstm_states: h_0 and c_0, (L, B, H).
        episode_starts: (B*T,) of any dtype; where not zero, the state is zeroed before that step.
        lstm: of one direction and time first.

    Returns:
        The outputs (B*T, H), and the states after the last step, (L, B, H).

    Raises:
        TypeError, ValueError, RuntimeError: see :func:`seq2seq_ext.functional.lstm`.

    >>> import torch
    >>> state, starts = torch.zeros(1, 4, 8), torch.zeros(4 * 10)
    >>> y, (h_n, c_n) = process_sequence(torch.randn(4 * 10, 3), (state, state), starts, LSTM(3, 8))
    >>> y.shape, h_n.shape
    (torch.Size([40, 8]), torch.Size([1, 4, 8]))
    """
    B = lstm_states[0].size(1)
    x = features.reshape(B, -1, lstm.input_size).transpose(0, 1)
    resets = episode_starts.reshape(B, -1).transpose(0, 1) != 0
    y, states = lstm(x, lstm_states, resets=resets)
    return y.transpose(0, 1).flatten(0, 1), states
