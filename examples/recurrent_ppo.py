"""RecurrentPPO on a CartPole that hides its velocities: sb3-contrib's loop, then one call.

Trains the same policy twice from the same seed, with the policy's own loop over time and with
``use_resets``, and prints how both learn and how fast.

    pip install 'seq2seq_ext[rl]'
    python examples/recurrent_ppo.py --steps 20000
"""

from __future__ import annotations

import argparse
import time

import gymnasium as gym
import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env

from seq2seq_ext.integrations.sb3 import use_resets


class Positions(gym.ObservationWrapper):
    """CartPole's position and angle without their velocities, which the policy must remember."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        space = env.observation_space
        self.observation_space = gym.spaces.Box(space.low[::2], space.high[::2])

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[::2]


def train(arguments: argparse.Namespace, *, resets: bool) -> None:
    """Train one policy, and print its return and the steps a second."""
    env = make_vec_env("CartPole-v1", arguments.environments, seed=0, wrapper_class=Positions)
    model = RecurrentPPO(
        "MlpLstmPolicy",
        env,
        n_steps=arguments.horizon,
        batch_size=arguments.horizon * arguments.environments // 2,
        learning_rate=1e-3,
        seed=0,
        device="cpu",
        policy_kwargs={"lstm_hidden_size": arguments.hidden_size},
    )
    if resets:
        use_resets(model.policy)
    start = time.perf_counter()
    model.learn(arguments.steps)
    rate = model.num_timesteps / (time.perf_counter() - start)
    returns = [episode["r"] for episode in model.ep_info_buffer]
    name = "with resets=" if resets else "sb3-contrib's loop"
    print(
        f"{name:18} {rate:6.0f} steps a second; "
        f"the last {len(returns)} episodes returned {np.mean(returns):.1f} on average",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20_000, help="of all environments together")
    parser.add_argument("--environments", type=int, default=8)
    parser.add_argument("--horizon", type=int, default=128, help="steps between two updates")
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for resets in (False, True):
        train(arguments, resets=resets)


if __name__ == "__main__":
    main()
