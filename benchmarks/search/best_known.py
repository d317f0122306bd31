"""Find the best known masks of LLaVA-mini where its table has none: with more than 4 of 24 layers skipped.

    python -m benchmarks.search.best_known 6 8        writes benchmarks/search/best_known.json

Several agents search long, with other seeds than the benchmark's, and then swaps improve the best mask of all until none
helps. Losses come from the engine, on the table's reward split.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.agents import Budget, MaskSpace, make_agent

from benchmarks.search.problems import Loss, Problem
from benchmarks.search.rivals import register_rivals
from das_gym.files import write_json
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_problem

FILE = Path(__file__).parent / "best_known.json"
SEARCHERS = ("bayes", "heat_kernel", "quadratic_regression", "greedy")
EVALUATIONS = 300
SEEDS = (90,)
RANDOM_MASKS = 100
EXAMPLES = 96
"""As many as the bundled table scored."""
LLAVA = ProblemConfig(model="VLM", task="answering", checkpoint="llava_mini", device="cpu", precision="float32")


@cache
def engine_losses() -> Loss:
    """Return the losses of LLaVA-mini's masks, each scored once."""
    problem, known = load_problem(LLAVA), dict[bytes, float]()

    def losses(masks: Masks) -> Floats:
        fresh = {mask.tobytes(): mask for mask in masks if mask.tobytes() not in known}
        if fresh:
            values = problem.evaluator.losses(np.array(list(fresh.values())), problem.splits.reward[:EXAMPLES])
            known.update(zip(fresh, values.tolist(), strict=True))
        return np.array([known[mask.tobytes()] for mask in masks])

    return losses


def llava(skip_num: int, evaluations: int = 120) -> Problem:
    """Return the problem of skipping `skip_num` of LLaVA-mini's 24 layers, scored by the engine."""
    record = json.loads(FILE.read_text())["counts"][str(skip_num)]
    space = MaskSpace(Budget(24, skip_num))
    return Problem(f"llava_mini, {skip_num} skipped", space, engine_losses(), record["loss"], record["random"], evaluations)


def find_best(skip_num: int) -> dict[str, Any]:
    """Return the best mask that long searches and swaps find, its loss, and the mean loss of random masks."""
    space, losses = MaskSpace(Budget(24, skip_num)), engine_losses()
    rng = np.random.default_rng(skip_num)
    random = float(losses(np.array([space.sample(rng) for _ in range(RANDOM_MASKS)])).mean())
    found: dict[str, float] = {}
    best, lowest = space.sample(rng), np.inf
    for name in SEARCHERS:
        for seed in SEEDS:
            agent = make_agent(name, space, seed)
            while len(agent.rewards) < EVALUATIONS and len(masks := agent.ask(3)):
                agent.tell(masks, np.exp(-losses(masks) / 2))
            loss = float(losses(agent.best()[None])[0])
            found[f"{name}, seed {seed}"] = loss
            best, lowest = (agent.best(), loss) if loss < lowest else (best, lowest)
    while True:
        around = space.neighbours(best)
        values = losses(around)
        if values.min() >= lowest - 1e-9:
            break
        best, lowest = around[values.argmin()], float(values.min())
    skipped = np.flatnonzero(best).tolist()
    return {"skipped": skipped, "loss": lowest, "random": random, "searches": found}


def main(words: Sequence[str]) -> None:
    """Write the best known masks."""
    register_rivals()
    counts = {word: find_best(int(word)) for word in words}
    write_json(FILE, {"command": f"python -m benchmarks.search.best_known {' '.join(words)}", "counts": counts})


if __name__ == "__main__":
    main(sys.argv[1:])
