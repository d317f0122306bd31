"""Search among many layers, where masks cannot be listed: how good the answers are, and how long a suggestion takes.

    python -m benchmarks.large                                  24, 36, 72 and 100 layers, five seeds each
    python -m benchmarks.large --layers 36 --agents bayes heat_kernel optuna --seeds 10 --json large.json
    python -m benchmarks.large --layers 36 --evaluations 300 --agents bayes --seeds 10

Landscapes are planted, from the seed: the loss is a sum of effects of single layers, log-normal, so that few matter much,
and of pairs, normal, half as large as the geometric mean of their layers' effects. A third of the layers is skipped. The
best mask is the best of 200 climbs on the loss itself, which agents cannot see. Regret 0 is that mask, 1 the mean
of random masks. `optuna` is its TPE sampler over one number a layer, of which the largest are skipped (needs optuna).
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

from benchmarks.machine import describe_machine
from das_gym.files import write_json
from das_gym.problem.budget import Budget, Floats, Masks
from das_gym.problem.mask_space import MaskSpace

AGENTS = ("bayes", "quadratic_regression", "heat_kernel", "linear_regression", "evolution", "cross_entropy", "random")
EVALUATIONS = {24: 120, 36: 180, 72: 240, 100: 240}
NEAR = 0.01
"""A regret below this is near the best mask known."""

MASKS_PER_TURN = 3
PAIRS = 0.5


class Landscape:
    """A planted loss.

    Args:
        n_layers: How many layers; a third of them is skipped.
        seed: Draws the effects.
    """

    def __init__(self, n_layers: int, seed: int) -> None:
        rng = np.random.default_rng((n_layers, seed))
        self.space = MaskSpace(Budget(n_layers, n_layers // 3))
        self.single = rng.lognormal(-2.5, 1.0, n_layers)
        upper = np.triu(rng.normal(0.0, PAIRS, (n_layers, n_layers)), 1) * np.sqrt(np.outer(self.single, self.single))
        self.pairs = upper + upper.T
        self.random = float(self.losses(np.array([self.space.sample(rng) for _ in range(500)])).mean())
        self.best = min(self._climb(self.space.sample(rng)) for _ in range(200))

    def losses(self, masks: Masks) -> Floats:
        """(m,) losses of (m, n_layers) masks."""
        x = masks.astype(float)
        return x @ self.single + 0.5 * ((x @ self.pairs) * x).sum(axis=1)

    def regret(self, loss: float) -> float:
        """0 = the best mask known, 1 = the mean of random ones."""
        return (loss - self.best) / (self.random - self.best)

    def _climb(self, mask: Masks) -> float:
        """The loss where no swap of two layers helps any more."""
        while True:
            losses = self.losses(around := self.space.neighbours(mask))
            if losses.min() >= self.losses(mask[None])[0] - 1e-12:
                return float(self.losses(mask[None])[0])
            mask = around[losses.argmin()]


def search(landscape: Landscape, name: str, seed: int, evaluations: int) -> dict[str, float]:
    """Regret of the answer, and milliseconds a suggestion, which is `MASKS_PER_TURN` masks: the longest and the mean."""
    agent = make_agent(name, landscape.space, seed)
    used, times = 0, []
    while used < evaluations:
        started = time.perf_counter()
        masks = agent.ask(min(MASKS_PER_TURN, evaluations - used))
        times.append(time.perf_counter() - started)
        if not len(masks):
            break
        agent.tell(masks, np.exp(-landscape.losses(masks) / 2))
        used += len(masks)
    regret = landscape.regret(float(landscape.losses(agent.best()[None])[0]))
    return {"regret": regret, "ms": 1e3 * float(np.mean(times)), "longest_ms": 1e3 * max(times)}


def optuna_search(landscape: Landscape, name: str, seed: int, evaluations: int) -> dict[str, float]:
    """As `search`, by Optuna's tree-structured Parzen estimator."""
    del name
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True))
    times = []
    for _ in range(evaluations):
        started = time.perf_counter()
        trial = study.ask()
        scores = np.array([trial.suggest_float(str(layer), 0, 1) for layer in range(landscape.space.n_layers)])
        times.append(time.perf_counter() - started)
        study.tell(trial, float(landscape.losses(landscape.space.top(scores)[None])[0]))
    ms = 1e3 * MASKS_PER_TURN * float(np.mean(times))
    return {"regret": landscape.regret(study.best_value), "ms": ms, "longest_ms": 1e3 * MASKS_PER_TURN * max(times)}


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
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    record: dict[str, Any] = {"machine": describe_machine(), "layers": {}}
    for n_layers in options.layers:
        evaluations = options.evaluations or EVALUATIONS[n_layers]
        landscapes = [Landscape(n_layers, seed) for seed in range(options.seeds)]
        print(f"{n_layers} layers, {n_layers // 3} skipped, {evaluations} evaluations")
        print(f"  {'agent':21} {'regret':>7} {'95 %':^16} {'found %':>7} {'near %':>7} {'ms':>8} {'longest':>8}")
        for name in options.agents:
            run: Callable[..., dict[str, float]] = optuna_search if name == "optuna" else search
            found = [run(each, name, seed, evaluations) for seed, each in enumerate(landscapes)]
            record["layers"].setdefault(str(n_layers), {})[name] = found
            print(line(name, found), flush=True)
    if options.json is not None:
        write_json(options.json, record)


if __name__ == "__main__":
    main()
