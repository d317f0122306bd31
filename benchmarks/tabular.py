"""How many steps a second the tabular environment makes, and how that compares with the engine, in one run.

    python -m benchmarks.tabular                            METER-VQA's bundled table
    python -m benchmarks.tabular --table FILE --json tabular.json
    python -m benchmarks.tabular --no-live                  without loading a model

Steps are counted as Stable-Baselines3 counts them: one step of n environments is n. Actions are random and drawn before.
Alone, an environment is reset wherever an episode ends. `sb3` is `das_gym.make_sb3_vec_env`, with its monitor; `dummy` is
Stable-Baselines3's own DummyVecEnv, without one: it copies every observation and `info`, whatever the environment.
The live environment scores masks that it has not seen, on 500 examples, with its encoder outputs kept.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

import das_gym
from benchmarks.machine import describe_machine
from das_gym.files import write_json

ACTIONS = ("mask", "sequence", "scores")
SB3_ENVS = 16
BATCHES = 64
"""How many different batches of actions a measurement goes through."""


def steps_per_second(env: gymnasium.vector.VectorEnv, seconds: float) -> float:
    """Steps a second of a vector environment, over at least `seconds` of wall-clock time."""
    env.reset(seed=0)
    env.action_space.seed(0)
    batches = [env.action_space.sample() for _ in range(BATCHES)]
    env.step(batches[0])
    steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        env.step(batches[steps % BATCHES])
        steps += 1
    return steps * env.num_envs / (time.perf_counter() - started)


def steps_per_second_alone(env: gymnasium.Env, seconds: float) -> float:
    """Steps a second of one environment, the resets between its episodes included."""
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(BATCHES)]
    steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        steps += BATCHES
    return steps / (time.perf_counter() - started)


def steps_per_second_sb3(env: VecEnv, seconds: float) -> float:
    """Steps a second of a vector environment of Stable-Baselines3's kind."""
    env.reset()
    env.action_space.seed(0)
    batches = [np.stack([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(BATCHES)]
    env.step(batches[0])
    steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        env.step(batches[steps % BATCHES])
        steps += 1
    return steps * env.num_envs / (time.perf_counter() - started)


def live_steps_per_second(entry: das_gym.registration.EnvEntry, num_envs: int) -> float:
    """Masks a second of the live environment, new ones at every step."""
    env = gymnasium.make_vec(entry.id, num_envs=num_envs, skip_num=None)
    env.reset(seed=0)
    order = np.random.default_rng(0).permutation(2**env.single_action_space.n)[: 2 * num_envs]
    masks = (order[:, None] >> np.arange(env.single_action_space.n)) & 1
    env.step(masks[:num_envs])  # encodes
    started = time.perf_counter()
    env.step(masks[num_envs:])
    return num_envs / (time.perf_counter() - started)


def measure(entry: das_gym.registration.EnvEntry, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One record per action space and number of environments."""
    live = None if arguments.no_live else live_steps_per_second(entry, arguments.live_envs)
    if live is not None:
        print(f"{entry.id}, {arguments.live_envs} environments: {live:,.1f} steps a second", flush=True)
    records = []

    def keep(action: str, form: str, num_envs: int, rate: float) -> None:
        ratio = None if live is None else rate / live
        record = {"action": action, "form": form, "num_envs": num_envs, "steps_per_second": rate, "ratio_to_live": ratio}
        records.append(record)
        told = "" if ratio is None else f", {ratio:,.0f} times the live environment"
        print(f"{entry.tabular_id}, {action}, {form} {num_envs}: {rate:,.0f} steps a second{told}", flush=True)

    for action in ACTIONS:
        settings = {"table": arguments.table, "action": action}
        alone = gymnasium.make(entry.tabular_id, **settings)
        keep(action, "alone", 1, steps_per_second_alone(alone, arguments.seconds))
        for num_envs in arguments.num_envs:
            env = gymnasium.make_vec(entry.tabular_id, num_envs=num_envs, **settings)
            keep(action, "vector", num_envs, steps_per_second(env, arguments.seconds))
        sb3 = das_gym.make_sb3_vec_env(entry.tabular_id, n_envs=SB3_ENVS, **settings)
        keep(action, "sb3", SB3_ENVS, steps_per_second_sb3(sb3, arguments.seconds))
        for num_envs in (1, SB3_ENVS):
            dummy = DummyVecEnv([partial(gymnasium.make, entry.tabular_id, **settings)] * num_envs)
            keep(action, "dummy", num_envs, steps_per_second_sb3(dummy, arguments.seconds))
    return records


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    entries = {entry.short: entry for entry in das_gym.ENVIRONMENTS.values()}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=entries, default="meter_vqa")
    parser.add_argument("--table", help="a table; the bundled one by default")
    parser.add_argument("--num-envs", type=int, nargs="+", default=[1, 16, 256, 1024])
    parser.add_argument("--seconds", type=float, default=2.0, help="how long to measure each")
    parser.add_argument("--no-live", action="store_true", help="do not compare with the live environment")
    parser.add_argument("--live-envs", type=int, default=16, help="masks a step of the live environment")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    records = measure(entries[arguments.problem], arguments)
    if arguments.json:
        write_json(arguments.json, {"problem": arguments.problem, "machine": describe_machine(), "records": records})


if __name__ == "__main__":
    main()
