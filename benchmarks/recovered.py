"""Whether the loss that deletion leaves predicts the loss that recovery leaves: on the bundled answering model.

    python -m benchmarks.recovered                                  24 masks without 4 of 12 layers, 100 and 200 steps
    python -m benchmarks.recovered --masks 40 --steps 800 --out recovered.json     keeps every training, goes on from there

Trained are the `--best` masks of least loss on the reward split, what each rule of `--rules` picks, and for the rest masks
drawn as by `benchmarks.fidelity`, half of them of the best tenth. Each is recovered by LoRA as `adapt shrink` does it, and
its loss taken on the reward split and on the test split, in nats.

Predictors of the test loss after the longest training: the loss before it on either split, the sum of each layer
statistic, and the reward split's loss after each length. rho is Spearman's, over all masks and within the best tenth of
the table, with 95 % of 2,000 bootstrap samples of masks. `shortfall`: how much worse than the best of all the predictor's
first choice is, after the longest training, on the test split.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from das_gym.adapt.shrink.checks import as_vlm
from das_gym.adapt.shrink.recovery import Recovery, RecoveryConfig, ask
from das_gym.adapt.shrink.report import loss_of
from das_gym.agents.compare.comparison import run_agent
from das_gym.agents.compare.oracle import TableOracle

from benchmarks.fidelity import drawn_masks, known, spearman, statistic_sums, told
from benchmarks.machine import describe_machine
from benchmarks.recovery import BATCH
from das_gym.drawing.markdown import markdown_table
from das_gym.files import write_json
from das_gym.models.transformers.cutting import cut
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_problem, shuffled
from das_gym.progress import progress
from das_gym.tables.table import SubnetTable

ENVIRONMENT = "DAS-VLM-Answering-Tabular-v0"
RULES = ("block_influence", "angular", "leave_one_out", "interlace", "greedy")
EVALUATIONS, MASKS_PER_TURN = 120, 3

TIE = 1e-6
"""Sums that differ by less are equal."""

Losses = dict[str, dict[str, float]]
"""Loss of each split, by what a training is kept under."""


@dataclass(frozen=True)
class Candidates:
    """Masks to train.

    Attributes:
        masks: (m, n_layers) bool.
        top: (m,) bool: of the best tenth of the table by loss on the reward split.
        picks: Row of what each method picks; the best mask of the table is that of `bayes`, which finds it.
    """

    masks: np.ndarray
    top: np.ndarray
    picks: dict[str, int]


def candidates(oracle: TableOracle, skip_num: int, best: int, rules: Sequence[str], count: int) -> Candidates:
    """What to train, the best by loss on the reward split first."""
    table = oracle.table
    drawn, _ = drawn_masks(table, skip_num, count)
    order = oracle.space.masks[np.argsort(-oracle.rewards(oracle.space.masks), kind="stable")]
    picked = {rule: run_agent(oracle, rule, [0], EVALUATIONS, MASKS_PER_TURN, {}).answers[0] for rule in rules}
    wanted = np.concatenate((order[:best], *([mask[None] for mask in picked.values()]), drawn))
    _, first = np.unique(wanted, axis=0, return_index=True)
    masks = wanted[np.sort(first)][:count]
    place = {tuple(mask): row for row, mask in enumerate(masks.tolist())}
    tenth = {tuple(mask) for mask in order[: len(order) // 10].tolist()}
    top = np.array([mask in tenth for mask in place])
    return Candidates(masks, top, {"bayes": 0, **{rule: place[tuple(mask.tolist())] for rule, mask in picked.items()}})


def train_all(masks: np.ndarray, options: argparse.Namespace) -> Losses:
    """Losses on both splits by `key`, those of before among them; the file has each as soon as it is known."""
    settings = {name: getattr(options, name) for name in ("skip_num", "examples")}
    trained: Losses = known(options.out, settings)  # type: ignore[assignment]
    todo = [(mask, steps) for steps in sorted(options.steps) for mask in masks if key(mask, steps) not in trained]
    if not todo:
        return trained
    problem = load_problem(ProblemConfig(model="VLM", task="answering"))
    whole, task, train = as_vlm(problem), problem.task, problem.splits.train
    splits = {"reward": problem.splits.reward, "test": problem.splits.test}
    held_out = {name: task.open_ended(shuffled(task, split, options.examples)) for name, split in splits.items()}
    teacher = ask(whole, task, train, RecoveryConfig(steps=max(options.steps)), ())
    with progress(len(todo), "recovering masks", unit="mask") as bar:
        for mask, steps in todo:
            student = cut(whole, mask)
            Recovery(student, whole, task, train, RecoveryConfig(steps=steps), teacher=teacher).run()
            trained[key(mask, steps)] = {name: loss_of(student, task, e, BATCH, name) for name, e in held_out.items()}
            if options.out is not None:
                write_json(options.out, {"machine": describe_machine(), "settings": settings, "trained": trained})
            bar.update()
    return trained


def key(mask: np.ndarray, steps: int) -> str:
    """What a training is kept under."""
    return f"{steps} {''.join(str(int(bit)) for bit in mask)}"


def predictors(table: SubnetTable, masks: np.ndarray) -> dict[str, np.ndarray]:
    """(m,) what is known before any training: the less, the better the mask should become."""
    rows = table.index(masks)
    found = {f"loss before, {split} split": table.values("loss", split)[rows] for split in ("reward", "test")}
    found |= statistic_sums(table, masks)
    return {name: values for name, values in found.items() if np.ptp(values) > TIE}


def report(table: SubnetTable, chosen: Candidates, trained: Losses, lengths: Sequence[int]) -> str:
    """Two Markdown tables: predictors, and what each method's pick came to."""
    masks = chosen.masks

    def after(steps: int, split: str) -> np.ndarray:
        return np.array([trained[key(mask, steps)][split] for mask in masks])

    result, longest = after(max(lengths), "test"), max(lengths)
    foretold = predictors(table, masks)
    foretold |= {f"loss after {steps} steps, reward split": after(steps, "reward") for steps in lengths}
    cells = []
    for name, values in sorted(foretold.items(), key=lambda row: -float(spearman(row[1], result))):
        short = result[values.argmin()] - result.min()
        cells.append((name, told(values, result), told(values[chosen.top], result[chosen.top]), f"{short:.4f}"))
    heads = ("predictor", "rho, all", "rho, best tenth", "shortfall, nats")
    ends = f"{np.median(result):.4f} in the median, {result.min():.4f} at best"
    head = f"{len(masks)} masks, test loss after {longest} steps {ends}"
    before = table.values("loss", "test")[table.index(masks)]
    refined = {f"least reward loss after {min(lengths)} steps": int(after(min(lengths), "reward").argmin())}
    picks = [
        (name, f"{before[row]:.4f}", *(f"{after(steps, 'test')[row]:.4f}" for steps in lengths))
        for name, row in (chosen.picks | refined).items()
    ]
    columns = ("pick of", "test loss before", *(f"after {steps} steps" for steps in lengths))
    tables = (markdown_table(heads, cells, words=(0, 1, 2)), markdown_table(columns, picks, words=(0,)))
    return "\n".join([head, "", *tables[0], "", *tables[1]])


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print what predicts."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recovered", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--skip-num", type=int, default=4)
    parser.add_argument("--masks", type=int, default=24)
    parser.add_argument("--best", type=int, default=8)
    parser.add_argument("--rules", nargs="*", default=list(RULES))
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 200])
    parser.add_argument("--examples", type=int, default=400, help="most examples of the reward split, and of the test split")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    oracle = TableOracle(ENVIRONMENT, {"skip_num": options.skip_num})
    chosen = candidates(oracle, options.skip_num, options.best, options.rules, options.masks)
    trained = train_all(chosen.masks, options)
    print(f"\n{options.skip_num} layers deleted: {report(oracle.table, chosen, trained, sorted(options.steps))}")


if __name__ == "__main__":
    main()
