"""Search among many layers, where masks cannot be listed: how good the answers are, and how long a suggestion takes.

    python -m benchmarks.large                                  24, 36, 72 and 100 layers, five seeds each
    python -m benchmarks.large --layers 36 --agents bayes heat_kernel optuna --seeds 10 --json large.json
    python -m benchmarks.large --layers 36 --evaluations 300 --agents bayes --seeds 10
    python -m benchmarks.large --layers 36 --kind groups

Losses are planted, from the seed, as those of LEADERBOARD.md (`benchmarks.leaderboard.planted`): effects of single layers
and of pairs; with `--kind groups`, of layers that stand in for each other, which no sum of pairs tells. A third of the
layers is skipped. Regret 0 is the best mask known, 1 the mean of random masks. `optuna` is its TPE sampler over one number
a layer, of which the largest are skipped (needs optuna).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.adapt.shrink.scores import bootstrap
from das_gym.agents import make_agent

import benchmarks.leaderboard.regression  # noqa: F401 - registers two of the agents
from benchmarks.leaderboard.optuna_tpe import OPTUNA, TreeParzen
from benchmarks.leaderboard.planted import EVALUATIONS, LOSSES, PlantedOracle
from benchmarks.machine import describe_machine
from das_gym.files import write_json

AGENTS = ("bayes", "quadratic_regression", "heat_kernel", "linear_regression", "evolution", "cross_entropy", "random")
NEAR = 0.01
"""A regret below this is near the best mask known."""

MASKS_PER_TURN = 3


def search(oracle: PlantedOracle, name: str, seed: int, evaluations: int) -> dict[str, float]:
    """Regret of the answer, and milliseconds a suggestion, which is `MASKS_PER_TURN` masks: the longest and the mean."""
    agent = make_agent(name, oracle.space, seed)
    used, times = 0, []
    while used < evaluations:
        started = time.perf_counter()
        masks = agent.ask(min(MASKS_PER_TURN, evaluations - used))
        times.append(time.perf_counter() - started)
        if not len(masks):
            break
        agent.tell(masks, oracle.rewards(masks))
        used += len(masks)
    regret = oracle.loss_regrets(oracle.losses(agent.best()[None]))[0]
    return {"regret": float(regret), "ms": 1e3 * float(np.mean(times)), "longest_ms": 1e3 * max(times)}


def optuna_search(oracle: PlantedOracle, name: str, seed: int, evaluations: int) -> dict[str, float]:
    """As `search`, by Optuna's tree-structured Parzen estimator."""
    del name
    sampler, masks, times = TreeParzen(oracle.space, seed), [], []
    for _ in range(evaluations):
        started = time.perf_counter()
        masks.append(sampler.ask())
        times.append(time.perf_counter() - started)
        sampler.tell(float(oracle.rewards(masks[-1][None])[0]))
    regret = oracle.loss_regrets(oracle.losses(np.array(masks))).min()
    ms, longest = (1e3 * MASKS_PER_TURN * seconds for seconds in (float(np.mean(times)), max(times)))
    return {"regret": float(regret), "ms": ms, "longest_ms": longest}


def line(name: str, found: list[dict[str, float]]) -> str:
    """One agent's results in words."""
    regrets = np.array([each["regret"] for each in found])
    low, high = bootstrap(regrets)
    best, near = np.mean(regrets < 1e-9), np.mean(regrets < NEAR)
    ms, longest = np.mean([each["ms"] for each in found]), max(each["longest_ms"] for each in found)
    shares = f"{100 * best:7.0f} {100 * near:7.0f}"
    return f"  {name:21} {regrets.mean():7.4f} [{low:6.4f}, {high:6.4f}] {shares} {ms:8.1f} {longest:8.1f}"


def main(arguments: list[str] | None = None) -> None:
    """Measure and print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.large", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, nargs="+", choices=EVALUATIONS, default=list(EVALUATIONS))
    parser.add_argument("--agents", nargs="+", default=list(AGENTS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--evaluations", type=int, help=f"of each search; by number of layers {EVALUATIONS}")
    parser.add_argument("--kind", choices=LOSSES, default="pairs", help="of losses")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    record: dict[str, Any] = {"machine": describe_machine(), "kind": options.kind, "layers": {}}
    for n_layers in options.layers:
        evaluations = options.evaluations or EVALUATIONS[n_layers]
        oracles = [PlantedOracle(n_layers, seed, options.kind) for seed in range(options.seeds)]
        print(f"{n_layers} layers, {n_layers // 3} skipped, {evaluations} evaluations")
        print(f"  {'agent':21} {'regret':>7} {'95 %':^16} {'found %':>7} {'near %':>7} {'ms':>8} {'longest':>8}")
        for name in options.agents:
            run: Callable[..., dict[str, float]] = optuna_search if name == OPTUNA else search
            found = [run(each, name, seed, evaluations) for seed, each in enumerate(oracles)]
            record["layers"].setdefault(str(n_layers), {})[name] = found
            print(line(name, found), flush=True)
    if options.json is not None:
        write_json(options.json, record)


if __name__ == "__main__":
    main()
