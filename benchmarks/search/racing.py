"""What racing saves: the cost and processor time of `bayes` with and without it.

    python -m benchmarks.search.racing race --cache FOLDER --seeds 60   on tables of all masks of 4 of 12 units, by example
    python -m benchmarks.search.racing live --cache FOLDER --seeds 5    searches of models, with their processor time
    python -m benchmarks.search.racing live --problems llava smolvlm_sublayers --seeds 3

A search scores 120 masks. Costs are in masks scored on all reward examples. On tables, each seed has its own order of the
examples; on models it is the task's. `to the optimum` is until the best mask was scored on all examples; where it is unknown
(24 units), until the best mask of that search and the one without racing.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.agents.ask_tell.base import ask
from das_gym.agents.searching.loop import make_search_agent, run_turn
from das_gym.agents.searching.racing import STAGES, STANDARD_ERRORS, Race
from das_gym.agents.settings import SearchConfig

from benchmarks.harness import keep_arrays, make_parser
from das_gym.drawing.architecture import Architecture
from das_gym.drawing.report import markdown_table
from das_gym.engine.scores import Scores
from das_gym.envs.engine_scoring import EngineScorer
from das_gym.envs.scoring import Scorer
from das_gym.problem.budget import Budget, Floats, MaskCost, Masks
from das_gym.problem.config import ProblemConfig
from das_gym.problem.mask_space import MaskSpace, every_mask
from das_gym.problem.problem import Problem, load_problem
from das_gym.problem.rewards import Objective, find_reward

MASKS = 120
MASKS_PER_TURN = 3
SKIPPED = 4
SEEDS = range(700, 760)
"""Stages and z of racing were chosen on seeds 400 to 429."""

PROBLEMS: dict[str, dict[str, Any]] = {
    "meter_vqa": {"model": "METER", "task": "vqa"},
    "meter_nlvr2": {"model": "METER", "task": "nlvr2"},
    "meter_retrieval": {"model": "METER", "task": "retrieval"},
    "vilt_vqa": {"model": "ViLT", "task": "vqa"},
    "vilt_nlvr2": {"model": "ViLT", "task": "nlvr2"},
    "vilt_retrieval": {"model": "ViLT", "task": "retrieval"},
}
ANSWERING: dict[str, dict[str, Any]] = {
    "llava": {"model": "VLM", "task": "answering", "checkpoint": "llava_mini"},
    "smolvlm_sublayers": {"model": "VLM", "task": "answering", "units": "sublayers"},
}

VARIANTS = {"none": False, f"{', '.join(str(Fraction(share)) for share in STAGES)}; z = {STANDARD_ERRORS:g}": True}
"""Whether a search races, by the stages that its row names."""


class LossTable(Scorer):
    """Scores masks by a table of their losses on each example; the reward is exp(-loss).

    Args:
        masks: (m, n_layers) bool.
        losses: (m, n_examples) of each example.
    """

    metric_name = "none"
    fingerprint = ""

    def __init__(self, masks: Masks, losses: Floats) -> None:
        self.losses = losses
        self.batch_size = losses.shape[1]
        self._rows = {mask.tobytes(): row for row, mask in enumerate(masks)}
        n_layers = masks.shape[1]
        macs = MaskCost(n_layers, n_layers, np.ones(n_layers))
        names = tuple(f"unit.{index}" for index in range(n_layers))
        super().__init__(names, Objective(Budget(n_layers), find_reward("exp_neg_loss"), macs), "depth")

    def data_hash(self) -> str:
        """Return nothing: the losses are in memory."""
        return ""

    def measure(self, masks: Masks, rng: np.random.Generator) -> Scores:
        return self.measure_fixed(masks)

    def measure_fixed(self, masks: Masks) -> Scores:
        return Scores(self.losses[self.rows(masks)].mean(axis=1), np.zeros(len(masks)))

    def score_examples(self, masks: Masks, start: int, stop: int) -> Scores:
        losses = self.losses[self.rows(masks), start:stop]
        return Scores(losses, np.zeros_like(losses))

    def rows(self, masks: Masks) -> list[int]:
        """Return the rows of masks in the table."""
        return [self._rows[mask.tobytes()] for mask in masks]

    def cost_of(self, setting: str) -> MaskCost:
        raise ValueError(f"`{setting}` is not supported by a table of losses")

    def statistic(self, name: str) -> np.ndarray:
        return np.zeros(self.n_layers, np.float32)  # `bayes` reads none

    def architecture(self) -> Architecture:
        return Architecture.from_names(self.layer_names)


@dataclass(frozen=True)
class Searched:
    """A search: after each turn the masks so far, their cost, processor seconds, and the lowest loss on all examples."""

    masks: Floats
    costs: Floats
    seconds: Floats
    best: Floats

    def at(self, loss: float) -> int | None:
        """Return the first turn after which a mask of this loss, or a lower one, was scored on all examples."""
        reached = np.flatnonzero(self.best <= loss + 1e-6)
        return int(reached[0]) if len(reached) else None


def run_search(scorer: Scorer, racing: bool, seed: int) -> Searched:
    """Search with `bayes` for `MASKS` masks, with or without racing."""
    space = MaskSpace(Budget(len(scorer.layer_names), SKIPPED))
    agent = make_search_agent(SearchConfig(agent="bayes", seed=seed), space, scorer.layer_statistics)
    race = Race(scorer, space) if racing else None
    rows = []
    best = np.inf
    masks = 0
    cost = 0.0
    started = time.process_time()
    while masks < MASKS:
        turn = run_turn(agent, scorer, race, ask(agent, "bayes", MASKS_PER_TURN))
        masks += len(turn.masks)
        cost += turn.cost
        best = min([best, *(row["loss"] for row in turn.complete_rows)])
        rows.append((masks, cost, time.process_time() - started, best))
    return Searched(*np.array(rows).T)


def example_losses(problem: Problem) -> dict[str, np.ndarray]:
    """Return all `masks` of `SKIPPED` units, and their `losses` on each reward example."""
    masks = every_mask(len(problem.layer_names), SKIPPED)
    examples = EngineScorer(problem, {"skip_num": SKIPPED}).fixed_examples
    losses = problem.evaluator.evaluate_each(masks, examples, block=(0, len(examples))).losses
    return {"masks": masks, "losses": losses.astype(np.float32)}


def load_table(folder: Path, name: str) -> tuple[Masks, Floats]:
    """Return masks and losses of a problem from a folder, or compute and store them."""
    stored = keep_arrays(folder / f"{name}.npz", lambda: example_losses(load_problem(ProblemConfig(**PROBLEMS[name]))))
    return stored["masks"], stored["losses"].astype(np.float64)


def race_tables(folder: Path, names: Iterable[str], seeds: Sequence[int]) -> list[list[str]]:
    """Return two rows for each problem, without and with racing: searches on tables."""
    rows = []
    for name in names:
        masks, losses = load_table(folder, name)
        optimum = float(losses.mean(axis=1).min())
        for variant, racing in VARIANTS.items():
            found = []
            for seed in seeds:
                order = np.random.default_rng(seed).permutation(losses.shape[1])
                found.append(run_search(LossTable(masks, losses[:, order]), racing, seed))
            rows.append(table_row(name, variant, found, [optimum] * len(found), False))
            print(rows[-1], flush=True)
    return rows


def race_live(folder: Path | None, names: Iterable[str], seeds: Sequence[int]) -> list[list[str]]:
    """Return two rows for each problem, without and with racing: searches of the model, one after the other."""
    rows = []
    for name in names:
        problem = load_problem(ProblemConfig(**{**PROBLEMS, **ANSWERING}[name]))
        known = None if name in ANSWERING or folder is None else float(load_table(folder, name)[1].mean(axis=1).min())
        found: dict[str, list[Searched]] = {variant: [] for variant in VARIANTS}
        for seed in seeds:
            for variant, searches in found.items():
                problem.evaluator.forget()  # nothing that one search has scored helps another; encoder outputs stay
                scorer = EngineScorer(problem, {"skip_num": SKIPPED})
                searches.append(run_search(scorer, VARIANTS[variant], seed))
        ends = np.array([[each.best[-1] for each in searches] for searches in found.values()])
        targets = ends.max(axis=0).tolist() if known is None else [known] * len(seeds)
        for variant, searches in found.items():
            rows.append(table_row(name, variant, searches, targets, True))
            print(rows[-1], flush=True)
    return rows


def table_row(name: str, variant: str, found: Sequence[Searched], targets: Sequence[float], timed: bool) -> list[str]:
    """Return a row of the table; `targets` are the losses that count as the optimum, by search."""
    turns = [each.at(target) for each, target in zip(found, targets, strict=True)]
    reached = [(each, turn) for each, turn in zip(found, turns, strict=True) if turn is not None]
    regret = np.mean([each.best[-1] - target for each, target in zip(found, targets, strict=True)])
    row = [name, variant, f"{len(reached)} of {len(found)}", f"{regret:.5f}"]
    row.append(f"{np.median([each.costs[turn] for each, turn in reached]):.1f}" if reached else "-")
    row.append(f"{np.mean([each.costs[-1] for each in found]):.1f}")
    if timed:
        row.append(f"{np.median([each.seconds[turn] for each, turn in reached]):.1f}" if reached else "-")
        row.append(f"{np.mean([each.seconds[-1] for each in found]):.1f}")
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for, and print a table."""
    parser = make_parser("search.racing", __doc__)
    parser.add_argument("what", choices=("race", "live"))
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=60)
    given = parser.parse_args(arguments)
    if given.what != "live" and given.cache is None:
        parser.error("--cache is needed")
    head = ["problem", "stages", "optimum", "mean regret", "median cost to it", "cost of 120 masks"]
    seeds = SEEDS[: given.seeds]
    if given.what == "race":
        print(*markdown_table(head, race_tables(given.cache, given.problems, seeds)), sep="\n")
    else:
        head += ["median seconds to it", "seconds of 120 masks"]
        print(*markdown_table(head, race_live(given.cache, given.problems, seeds)), sep="\n")


if __name__ == "__main__":
    main()
