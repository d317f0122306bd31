"""python -m tests.load: a million steps of a tabular vector environment and 2,000 live ones, and what they leave behind."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import time

import gymnasium
import numpy as np

import das_gym  # noqa: F401  (registers the environments)
from tests.load.growth import Growth, growth_of

NUM_ENVS = 16
MOST = {"tabular": 2.0, "live": 2000.0, "made and closed": 50_000.0}
"""Bytes of the process that a step, or an environment, may leave behind: by far less than its own arrays take."""


def tabular(steps: int) -> Growth:
    """Steps of 16 environments that a table answers, actions drawn before."""
    env = gymnasium.make_vec("DAS-METER-VQA-Tabular-v0", num_envs=NUM_ENVS, action="sequence", skip_num=4)
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(64)]
    return growth_of(lambda number: env.step(actions[number % 64]), steps // NUM_ENVS, NUM_ENVS)


def live(steps: int) -> Growth:
    """Steps of an environment that runs the bundled model, on other examples every time."""
    env = gymnasium.make("DAS-METER-VQA-v0", skip_num=4, reward_examples=8, reward_batches="cycle")
    rng = np.random.default_rng(0)

    def step(number: int) -> None:
        env.reset(seed=number)
        mask = np.zeros(12, np.int8)
        mask[rng.choice(12, 4, replace=False)] = 1
        env.step(mask)

    return growth_of(step, steps)


def closed(count: int) -> Growth:
    """Environments that are made, stepped and closed."""

    def once(number: int) -> None:
        env = gymnasium.make("DAS-METER-VQA-v0", skip_num=4, reward_examples=8, render_mode="rgb_array")
        env.reset(seed=number)
        env.step(np.repeat(np.int8([1, 0]), [4, 8]))
        env.render()
        env.close()

    return growth_of(once, count)


def main() -> int:
    """Run them; 1 if one grows."""
    grows = 0
    for name, run, steps in (("tabular", tabular, 1_000_000), ("live", live, 2000), ("made and closed", closed, 100)):
        began = time.monotonic()
        found = run(steps)
        wrong = found.resident > MOST[name] or found.handles > 0 or found.threads > 0
        grows += wrong
        print(f"{name}, {steps:,} in {time.monotonic() - began:.0f} s: {found}{': too much' * wrong}", flush=True)
    return int(bool(grows))


if __name__ == "__main__":
    sys.exit(main())
