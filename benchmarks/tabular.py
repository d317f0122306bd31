"""Steps per second of tabular environments, and of the live environment, in one run.

    python -m benchmarks.tabular                            METER-VQA's bundled table
    python -m benchmarks.tabular --no-live                  without loading a model

One step of n environments counts as n, as in Stable-Baselines3. Actions are random and sampled beforehand. `single` is one
environment with its resets, `vector` is `gymnasium.make_vec`, `sb3` is `das_gym.make_sb3_vec_env` with its monitor, and
`dummy` is Stable-Baselines3's DummyVecEnv without one, which copies each observation and `info`. The live environment
evaluates new masks on 500 examples with cached encoder outputs.
"""

import time
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

import das_gym
from benchmarks.harness import make_parser

ACTIONS = ("mask", "sequence", "scores")
NUM_ENVS = (1, 16, 256, 1024)
SB3_ENVS = 16
LIVE_ENVS = 16
BATCHES = 64
"""Different batches of actions in a measurement."""


def steps_per_second(env: Any, seconds: float, n_envs: int = 1) -> float:
    """Return the steps per second of an environment or a vector of `n_envs`, over at least `seconds` of wall-clock time."""
    env.reset()
    env.action_space.seed(0)
    sample = env.action_space.sample  # of one environment in Stable-Baselines3's vectors, of all in Gymnasium's
    actions = [sample() for _ in range(BATCHES)]
    if isinstance(env, VecEnv):
        actions = [np.stack([sample() for _ in range(n_envs)]) for _ in range(BATCHES)]
    steps = 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        for action in actions:
            result = env.step(action)
            if isinstance(env, gymnasium.Env) and (result[2] or result[3]):
                env.reset()
        steps += BATCHES
    return steps * n_envs / (time.perf_counter() - started)


def live_steps_per_second(env_id: str, num_envs: int) -> float:
    """Return the masks per second of the live environment, new ones at every step."""
    env = gymnasium.make_vec(env_id, num_envs=num_envs, skip_num=None)
    env.reset(seed=0)
    order = np.random.default_rng(0).permutation(2**env.single_action_space.n)[: 2 * num_envs]
    masks = (order[:, None] >> np.arange(env.single_action_space.n)) & 1
    env.step(masks[:num_envs])  # encodes
    started = time.perf_counter()
    env.step(masks[num_envs:])
    return num_envs / (time.perf_counter() - started)


def main() -> None:
    """Measure and print."""
    parser = make_parser("tabular", __doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="how long to measure each")
    parser.add_argument("--no-live", action="store_true", help="do not compare with the live environment")
    options = parser.parse_args()
    entry = das_gym.ENVIRONMENTS["DAS-METER-VQA-v0"]
    live = None if options.no_live else live_steps_per_second(entry.id, LIVE_ENVS)
    if live is not None:
        print(f"{entry.id}, {LIVE_ENVS} environments: {live:,.1f} steps per second", flush=True)
    for action in ACTIONS:
        settings = {"action": action}
        envs: list[tuple[str, int, Any]] = [("single", 1, gymnasium.make(entry.tabular_id, **settings))]
        envs += [("vector", n, gymnasium.make_vec(entry.tabular_id, num_envs=n, **settings)) for n in NUM_ENVS]
        envs.append(("sb3", SB3_ENVS, das_gym.make_sb3_vec_env(entry.tabular_id, n_envs=SB3_ENVS, **settings)))
        for n in (1, SB3_ENVS):
            envs.append(("dummy", n, DummyVecEnv([partial(gymnasium.make, entry.tabular_id, **settings)] * n)))
        for form, n, env in envs:
            rate = steps_per_second(env, options.seconds, n)
            compared = "" if live is None else f", {rate / live:,.0f} times the live environment"
            print(f"{entry.tabular_id}, {action}, {form} {n}: {rate:,.0f} steps per second{compared}", flush=True)


if __name__ == "__main__":
    main()
