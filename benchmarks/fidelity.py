"""How well the reward of a mask predicts the score of its subnet after fine-tuning, compared with every layer statistic.

    python -m benchmarks.fidelity                         METER on VQA, 40 masks, from the supernet and from new adapters
    python -m benchmarks.fidelity --env vilt_vqa --start new --steps 600 --seeds 2
    python -m benchmarks.fidelity --out fidelity.json     keeps every training there, and resumes from it
    python -m benchmarks.fidelity --run runs/3 --masks 16 on the model, data and task of run 3 of
                                                          `python -m agents table with ... supernet=FILE`

Half of the masks are of the best tenth by reward, half of the rest, all with `--skip-num` layers skipped. Each is
fine-tuned on the train split with the settings of `python -m adapt`, and its metric is that of the test split. `supernet`
starts from the supernet's adapters and head, `new` from adapters and a head that are untrained; without `--start`
both, where there is a supernet.

Predictors are the table's reward (exp(-loss) on the reward split) and metric, and for each layer statistic minus its sum
over the skipped layers: a large one means that a layer matters. rho is Spearman's, over all masks and within the best tenth,
with 95 % of 2,000 bootstrap samples of masks. `shortfall`: the best metric of all less that of the mask that the predictor
likes best. With several seeds, `between seeds` is what a training with another seed predicts; nothing can beat that by much.
`--short 15 30` adds predictors: a few steps from the supernet, or from new adapters where there is none, by the loss on the
reward split then, as `refine` has them.
The last line states the consequence for a search.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from das_gym.adapt.compare.trials import ComparisonContext
from das_gym.adapt.evaluate import evaluate
from das_gym.adapt.finetune import cut_subnet, with_new_head
from das_gym.adapt.step_loss import set_up
from das_gym.adapt.training import TrainingConfig
from das_gym.agents.table_experiment import TableSettings

from benchmarks.machine import describe_machine
from das_gym.config import build
from das_gym.drawing.table import markdown_table
from das_gym.files import read_json, write_json
from das_gym.intervals import bootstrap_interval
from das_gym.plugins import import_plugins
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, find_supernet, load_backbone, load_splits
from das_gym.problem.mask_space import every_mask
from das_gym.progress import progress
from das_gym.registration import named_environments
from das_gym.runs import read_config
from das_gym.tables.table import SubnetTable
from das_gym.trust import trusted_settings

STARTS = ("supernet", "new")
SHORT, SHORT_SEED = "short", 1000
"""What short trainings are kept under, and their seed: none of the others'."""

AIM, AIM_IN_TENTH = 0.8, 0.6
"""Rho of the reward over all masks, and in the best tenth, from which on it is trusted."""

ENOUGH = 10
"""Smaller numbers of masks do not determine an order."""


def drawn_masks(table: SubnetTable, skip_num: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, n_layers) bool masks, those of the best tenth by reward first, and (count,) bool which those are."""
    masks = every_mask(table.n_layers, skip_num)
    order = np.argsort(-table.values("exp_neg_loss")[table.index(masks)], kind="stable")
    rng, tenth = np.random.default_rng(0), len(masks) // 10
    top = order[np.sort(rng.permutation(tenth)[: count // 2])]
    rest = order[tenth + np.sort(rng.permutation(len(masks) - tenth)[: count - len(top)])]
    return masks[np.concatenate((top, rest))], np.arange(count) < len(top)


def predictors(table: SubnetTable, masks: np.ndarray) -> dict[str, np.ndarray]:
    """(m,) scores of (m, n_layers) masks by each predictor, higher is better."""
    rows = table.index(masks)
    found = {"reward": table.values("exp_neg_loss")[rows], "metric on the reward split": table.values("metric")[rows]}
    return found | {name: -sums for name, sums in statistic_sums(table, masks).items()}


def statistic_sums(table: SubnetTable, masks: np.ndarray) -> dict[str, np.ndarray]:
    """(m,) sums of each layer statistic over what (m, n_layers) masks skip."""
    sums = masks.astype(float) @ table.statistics.astype(float)
    return {f"sum of {name}": sums[:, column] for column, name in enumerate(table.meta.statistics)}


def fine_tuned(course: ComparisonContext, mask: np.ndarray, start: str, config: TrainingConfig) -> AdaptedModel:
    """A mask's subnet, fine-tuned."""
    problem, splits = course.problem, course.splits
    if start == "supernet":
        subnet = cut_subnet(problem, mask)
    else:
        backbone = load_backbone(problem)
        torch.manual_seed(config.seed)
        subnet = with_new_head(backbone, problem.task, splits)
        subnet.backbone.vlp.prune(mask)
    torch.manual_seed(config.seed)
    step_loss, trainer = set_up(subnet, splits.train, config, None, course.encoder, held_out=splits.reward)
    trainer.run(step_loss.parts, "fine-tuning")
    return subnet


def ranks(values: np.ndarray) -> np.ndarray:
    """(..., n) places of (..., n) values from the lowest on, equal ones sharing the mean of theirs."""
    one, other = values[..., :, None], values[..., None, :]
    places: np.ndarray = (other < one).sum(axis=-1) + ((other == one).sum(axis=-1) + 1) / 2
    return places


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(...) Spearman's rho of (..., n) values; NaN where all of one are the same."""
    x, y = (each - each.mean(axis=-1, keepdims=True) for each in (ranks(a), ranks(b)))
    with np.errstate(invalid="ignore", divide="ignore"):
        rho: np.ndarray = (x * y).sum(axis=-1) / np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
    return rho


def interval(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """95 % of rho over bootstrap samples of pairs."""
    return bootstrap_interval(lambda rows: spearman(a[rows], b[rows]), len(a))


def told(a: np.ndarray, b: np.ndarray) -> str:
    """Rho and its interval in words."""
    rho = float(spearman(a, b))
    if not np.isfinite(rho):
        return "-"
    low, high = interval(a, b)
    return f"{rho:.2f} [{low:.2f}, {high:.2f}]"


def report(
    table: SubnetTable,
    masks: np.ndarray,
    top: np.ndarray,
    metrics: np.ndarray,
    short: Mapping[int, np.ndarray] | None = None,
) -> str:
    """A Markdown table of predictors, of (masks, seeds) metrics after fine-tuning.

    Args:
        table: Has what the predictors say.
        masks: (m, n_layers) those that were trained.
        top: (m,) bool, those of the best tenth.
        metrics: (m, seeds) 0..1.
        short: (m,) what short trainings predict, by their steps.
    """
    results = metrics.mean(axis=1)
    said = predictors(table, masks) | {f"{steps} steps of fine-tuning": values for steps, values in (short or {}).items()}
    rows = {name: (values, results) for name, values in said.items()}
    if metrics.shape[1] > 1:
        rows["between seeds"] = (metrics[:, 0], metrics[:, 1:].mean(axis=1))
    cells = []
    for name, (values, result) in sorted(rows.items(), key=lambda row: -float(np.nan_to_num(spearman(*row[1]), nan=-2.0))):
        missed = 100 * (result.max() - result[values.argmax()])
        cells.append((name, told(values, result), told(values[top], result[top]), f"{missed:.1f}"))
    middle, best = np.median(results), results.max()
    ends = f"{len(masks)} masks, {metrics.shape[1]} seeds: metric after fine-tuning {100 * middle:.1f} % in the median, "
    worst, least = results.min(), results[top].min()
    among = [f"between {100 * worst:.1f} and {100 * best:.1f} %, in the best tenth from {100 * least:.1f} % on"]
    if metrics.shape[1] > 1:
        scatter = np.sqrt(metrics[top].var(axis=1, ddof=1).mean())
        among.append(f"where seeds of one mask scatter by {100 * scatter:.2f} points (standard deviation)")
    heads = ("predictor", "rho, all", "rho, best tenth", "shortfall, points")
    lines = markdown_table(heads, cells, text_columns=(0, 1, 2))
    rewards = table.values("exp_neg_loss")[table.index(masks)]
    worth = float(spearman(rewards, results)), float(spearman(rewards[top], results[top]))
    return "\n".join([f"{ends}{100 * best:.1f} % at best", ", ".join(among), "", *lines, "", advice(*worth, int(top.sum()))])


def advice(over_all: float, in_tenth: float, count: int) -> str:
    """Return advice for a reward with these rank correlations."""
    if not over_all >= AIM:
        return (
            f"the reward does not separate good masks from bad ones (rho {over_all:.2f}, below {AIM}): train the "
            "supernet longer, or search with what stands above it"
        )
    good = f"the reward separates good masks from bad ones (rho {over_all:.2f})"
    if not in_tenth >= AIM_IN_TENTH:
        few = f", of {count} masks, which say little: take more by --masks" if count < ENOUGH else ""
        return (
            f"{good}, but does not order the best (rho {in_tenth:.2f}, below {AIM_IN_TENTH}{few}): "
            "`python -m adapt with refine=8` tries several of them"
        )
    return f"{good}, and orders the best (rho {in_tenth:.2f}): trust it"


def known(path: Path | None, settings: dict[str, Any]) -> dict[str, float]:
    """What was trained before, with the same settings.

    Raises:
        ValueError: the file's are others.
    """
    if path is None or not path.is_file():
        return {}
    record = read_json(path)
    if record["settings"] != settings:
        raise ValueError(f"{path} was made with {record['settings']}, not {settings}: give another file")
    return dict(record["trained"])


def train_all(course: ComparisonContext, masks: np.ndarray, options: argparse.Namespace) -> dict[str, float]:
    """Results by `key`, those of before among them; the file has each as soon as it is known."""
    settings = {name: getattr(options, name) for name in ("env", "steps", "learning_rate", "skip_num", "test_examples")}
    trained = known(options.out, settings)
    every = [(start, seed, mask) for seed in range(options.seeds) for mask in masks for start in options.start]
    every += [(f"{SHORT} {steps}", SHORT_SEED, mask) for steps in options.short for mask in masks]
    todo = [each for each in every if key(*each) not in trained]
    with progress(len(todo), "fine-tuning masks", unit="mask") as bar:
        for start, seed, mask in todo:
            trained[key(start, seed, mask)] = result(course, start, seed, mask, options)
            if options.out is not None:
                write_json(options.out, {"machine": describe_machine(), "settings": settings, "trained": trained})
            bar.update()
    return trained


def result(course: ComparisonContext, start: str, seed: int, mask: np.ndarray, options: argparse.Namespace) -> float:
    """The metric on the test split of a mask's subnet, fine-tuned; of a short training -loss on the reward split."""
    rate = options.learning_rate
    config = TrainingConfig(steps=options.steps, seed=seed, learning_rate=rate, head_learning_rate=rate)
    if not start.startswith(SHORT):
        return evaluate(fine_tuned(course, mask, start, config), course.test_examples, "test", rank_images=1).metric
    config = dataclasses.replace(config, steps=int(start.removeprefix(SHORT)))
    return -evaluate(fine_tuned(course, mask, "supernet", config), course.splits.reward, "reward split", rank_images=1).loss


def key(start: str, seed: int, mask: np.ndarray) -> str:
    """Return the key under which a training is stored."""
    return f"{start} {seed} {''.join(str(int(bit)) for bit in mask)}"


def bundled(name: str) -> tuple[ProblemConfig, SubnetTable]:
    """A bundled problem by its named config, and its table."""
    entry = named_environments()[name]
    return ProblemConfig(model=entry.model, task=entry.task), SubnetTable.load(entry.table)


def own(folder: Path) -> tuple[ProblemConfig, SubnetTable]:
    """The problem of a run of `python -m agents table` in a folder, and its table.

    Raises:
        FileNotFoundError, ValueError: the run does not exist or is incomplete, or it names modules that are not imported.
    """
    recorded = read_config(folder)
    recorded = {**trusted_settings(folder, recorded.get("plugins") or (), recorded), "out": recorded.get("out")}
    names = {field.name for field in dataclasses.fields(TableSettings)} & recorded.keys()
    settings = build(TableSettings, {name: recorded[name] for name in names})
    return settings.problem_config, SubnetTable.load(settings.file(folder))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print what predicts."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fidelity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    environments = named_environments()
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--env", default="meter_vqa", choices=[name for name, e in environments.items() if e.table])
    which.add_argument("--run", type=Path, help="folder of a run of `python -m agents table`, instead of --env")
    parser.add_argument("--plugins", default=None, help="modules that --run was given, to import first")
    parser.add_argument("--start", nargs="+", choices=list(STARTS))
    parser.add_argument("--masks", type=int, default=40)
    parser.add_argument("--skip-num", type=int, default=4)
    parser.add_argument("--steps", type=int, default=TrainingConfig.steps)
    parser.add_argument("--learning-rate", type=float, help="of adapters and head; that of `python -m adapt` otherwise")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--short", nargs="+", type=int, default=[], metavar="STEPS")
    parser.add_argument("--test-examples", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if options.run is not None:
        options.env = str(options.run)
    try:
        import_plugins(options.plugins)  # first: they may register the run's model and task
        problem, table = bundled(options.env) if options.run is None else own(options.run)
        masks, top = drawn_masks(table, options.skip_num, options.masks)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    starts = STARTS if find_supernet(problem) else ("new",)
    options.start = options.start or list(starts)
    if not set(options.start) <= set(starts):
        parser.error(f"{options.env} has no supernet: --start new alone")
    splits = load_splits(problem)
    course = ComparisonContext(problem, splits, TrainingConfig(steps=options.steps), Path(), options.test_examples)
    trained = train_all(course, masks, options)
    short = {
        steps: np.array([trained[key(f"{SHORT} {steps}", SHORT_SEED, mask)] for mask in masks]) for steps in options.short
    }
    for start in options.start:
        metrics = np.array([[trained[key(start, seed, mask)] for seed in range(options.seeds)] for mask in masks])
        print(f"\n{options.env}, {options.skip_num} layers skipped, {options.steps} steps, adapters: {start}\n")
        print(report(table, masks, top, metrics, short))


if __name__ == "__main__":
    main()
