"""Policies of sb3-contrib whose sequences are one call: the numbers of its own loop over time."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.env_util import make_vec_env
from torch import Tensor, nn

import seq2seq_ext as s2s
from seq2seq_ext.integrations.sb3 import process_sequence, use_resets

EXAMPLE = Path(__file__).parents[1] / "examples" / "recurrent_ppo.py"

STARTS: dict[str, Callable[[int, int], Tensor]] = {
    "never": lambda B, T: torch.zeros(B, T),
    "first": lambda B, T: (torch.arange(T) == 0).float().expand(B, T),
    "sometimes": lambda B, T: (torch.rand(B, T) < 0.2).float(),
    "always": lambda B, T: torch.ones(B, T),
}
each_starts = pytest.mark.parametrize("starts", STARTS.values(), ids=STARTS)

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "two LSTMs": {},
    "shared": {"shared_lstm": True, "enable_critic_lstm": False},
    "actor's": {"enable_critic_lstm": False},
    "two layers": {"n_lstm_layers": 2, "lstm_hidden_size": 24},
}


class Positions(gym.ObservationWrapper):
    """CartPole without its velocities, which a policy has to find out from what it remembers."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        space = self.env.observation_space
        self.observation_space = gym.spaces.Box(space.low[::2], space.high[::2])

    def observation(self, observation: Any) -> Any:
        return observation[::2]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Policies this small gain nothing from more, and lose much on a machine that is busy."""
    torch.set_num_threads(1)


def ppo(**policy: Any) -> RecurrentPPO:
    """A small learner; the same arguments give the same weights."""
    return RecurrentPPO(
        "MlpLstmPolicy",
        make_vec_env("CartPole-v1", n_envs=3, seed=0, wrapper_class=Positions),
        n_steps=48,
        batch_size=72,
        n_epochs=2,
        seed=0,
        device="cpu",
        policy_kwargs={"lstm_hidden_size": 32, **policy},
    )


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@each_starts
@pytest.mark.parametrize("T", [1, 17])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_sequence_is_that_of_the_loop(
    starts: Callable[[int, int], Tensor], T: int, num_layers: int, dtype: torch.dtype
) -> None:
    B, I, H = 5, 6, 11
    theirs = nn.LSTM(I, H, num_layers, dtype=dtype)
    ours = s2s.replace_modules(copy.deepcopy(theirs))
    features, episode_starts = torch.randn(B * T, I, dtype=dtype), starts(B, T).flatten()
    h_0, c_0 = torch.randn(2, num_layers, B, H, dtype=dtype)

    def run(process: Callable[..., Any], lstm: nn.LSTM) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (features, h_0, c_0)]
        y, states = process(leaves[0], (leaves[1], leaves[2]), episode_starts, lstm)
        loss = sum(t.sin().sum() for t in (y, *states))
        return [y, *states, *torch.autograd.grad(loss, [*leaves, *lstm.parameters()])]

    found = run(process_sequence, ours)
    expected = run(RecurrentActorCriticPolicy._process_sequence, theirs)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@each_starts
@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_a_policy_has_the_same_outputs_and_gradients(
    architecture: dict[str, Any], starts: Callable[[int, int], Tensor]
) -> None:
    B, T = 4, 9
    theirs = ppo(**architecture).policy
    ours = use_resets(copy.deepcopy(theirs))
    observations, actions = torch.randn(B * T, 2), torch.randint(2, (B * T,))
    layers, _, H = theirs.lstm_hidden_state_shape
    h_pi, c_pi, h_vf, c_vf = torch.randn(4, layers, B, H)
    states, episode_starts = RNNStates((h_pi, c_pi), (h_vf, c_vf)), starts(B, T).flatten()

    def learn(policy: RecurrentActorCriticPolicy) -> list[Tensor]:
        outputs = policy.evaluate_actions(observations, actions, states, episode_starts)
        loss = sum(output.sin().sum() for output in outputs)
        gradients = torch.autograd.grad(loss, policy.parameters(), allow_unused=True)
        return [*outputs, *(g for g in gradients if g is not None)]

    def act(policy: RecurrentActorCriticPolicy) -> list[Tensor]:
        step = (observations[::T], states, episode_starts[::T])
        actions, values, log_prob, (pi, vf) = policy(*step, deterministic=True)
        return [actions, values, log_prob, *pi, *vf]

    assert_same(learn(ours), learn(theirs))
    assert_same(act(ours), act(theirs))


def test_a_run_has_the_same_losses_and_ends_with_the_same_weights() -> None:
    def run(change: Callable[[RecurrentActorCriticPolicy], object]) -> list[Tensor]:
        model, losses = ppo(), []
        change(model.policy)
        for _ in range(3):
            model.learn(3 * 48, reset_num_timesteps=False)
            values = model.logger.name_to_value
            losses += [values[f"train/{name}"] for name in ("loss", "value_loss", "entropy_loss")]
        return [torch.tensor(losses), *model.policy.parameters()]

    assert_same(run(use_resets), run(lambda policy: None))


def test_a_saved_model_is_one_of_sb3(tmp_path: Path) -> None:
    model = ppo()
    use_resets(model.policy)
    model.learn(3 * 48)
    model.save(tmp_path / "model")
    loaded = RecurrentPPO.load(tmp_path / "model", device="cpu")
    assert type(loaded.policy.lstm_actor) is nn.LSTM
    x = torch.randn(7, 2).numpy()
    expected, _ = model.predict(x, deterministic=True)
    for policy in (
        loaded.policy,
        use_resets(loaded.policy),
        copy.deepcopy(model.policy),
        pickle.loads(pickle.dumps(model.policy)),
    ):
        assert policy.predict(x, deterministic=True)[0].tolist() == expected.tolist()


def test_other_policies_of_the_class_keep_their_loop() -> None:
    ours, theirs = use_resets(ppo().policy), ppo().policy
    assert ours._process_sequence is process_sequence
    assert theirs._process_sequence is RecurrentActorCriticPolicy._process_sequence
    assert type(theirs.lstm_actor) is nn.LSTM


def test_twice_is_once() -> None:
    policy = use_resets(use_resets(ppo().policy))
    assert type(policy.lstm_actor) is type(policy.lstm_critic) is s2s.LSTM


def test_what_cannot_be_done_is_named() -> None:
    class Halving(nn.LSTM):
        pass

    with pytest.raises(
        TypeError, match=r"must be a RecurrentActorCriticPolicy .* got RecurrentPPO"
    ):
        use_resets(ppo())
    policy = ppo().policy
    policy.lstm_critic = Halving(2, 32)
    with pytest.raises(ValueError, match=r"policy: expected LSTMs .* but .*Halving is a subclass"):
        use_resets(policy)


@pytest.mark.skipif(not EXAMPLE.exists(), reason="the examples are not beside the tests")
def test_the_example_runs() -> None:
    command = [sys.executable, EXAMPLE, "--steps", "256", "--horizon", "32", "--hidden-size", "16"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "steps a second" in result.stdout
