"""How well the reward of a mask predicts the score of its subnet after fine-tuning, compared with layer statistics.

    python -m benchmarks.fidelity                          METER on VQA, 40 masks, from the supernet and with new adapters
    python -m benchmarks.fidelity --env vilt_vqa --start new --steps 600 --seeds 2
    python -m benchmarks.fidelity --out fidelity.json      saves each training there, and resumes from it

Half of the masks are from the best tenth by reward and half from the rest, all with four layers skipped. Each subnet
is fine-tuned with the settings of `python -m adapt`, and evaluated on the test split. `supernet` starts from the supernet's
adapters and head, `new` from untrained ones.

Predictors are the table's reward and metric on the reward split, and the sum of each layer statistic over the skipped
layers, negated. rho is Spearman's, over all masks and within the best tenth, with 95 % bootstrap intervals over masks.
`shortfall` is the best metric less that of the mask which the predictor prefers. With several seeds, `another seed` is what
a second training predicts. `--short 15 30` adds predictors: the loss on the reward split after so many steps of fine-tuning.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from das_gym.adapt.compare.training import TrainingRows
from das_gym.adapt.evaluate import evaluate
from das_gym.adapt.finetuning import new_subnet, with_new_head
from das_gym.adapt.settings import TrainingConfig
from das_gym.adapt.step_loss import make_loss_and_trainer

from benchmarks.harness import make_parser
from das_gym.commands.progress import progress
from das_gym.drawing.report import markdown_table
from das_gym.files import read_json, write_json
from das_gym.intervals import bootstrap_interval, spearman
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, load_backbone, load_splits
from das_gym.problem.mask_space import every_mask
from das_gym.registration import named_environments
from das_gym.tables.table import SubnetTable

STARTS = ("supernet", "new")
SKIPPED = 4
SHORT = "short"
SHORT_SEED = 1000
"""Key of short trainings, and their seed."""


def choose_masks(table: SubnetTable, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (count, n_layers) masks, and (count,) bool whether each is of the best tenth by reward."""
    masks = every_mask(table.n_layers, SKIPPED)
    order = np.argsort(-table.values("exp_neg_loss")[table.index(masks)], kind="stable")
    rng = np.random.default_rng(0)
    tenth = len(masks) // 10
    top = order[np.sort(rng.permutation(tenth)[: count // 2])]
    rest = order[tenth + np.sort(rng.permutation(len(masks) - tenth)[: count - len(top)])]
    return masks[np.concatenate((top, rest))], np.arange(count) < len(top)


def predictors(table: SubnetTable, masks: np.ndarray) -> dict[str, np.ndarray]:
    """Return (m,) predictions for (m, n_layers) masks by predictor; higher is better."""
    rows = table.index(masks)
    sums = masks.astype(float) @ table.statistics.astype(float)
    found = {"reward": table.values("exp_neg_loss")[rows], "metric on the reward split": table.values("metric")[rows]}
    return found | {f"sum of {name}": -sums[:, column] for column, name in enumerate(table.meta.statistics)}


def fine_tuned(context: TrainingRows, mask: np.ndarray, start: str, config: TrainingConfig) -> AdaptedModel:
    """Fine-tune the subnet of a mask."""
    problem = context.base.backbone.origin.config
    assert problem is not None
    if start == "supernet":
        subnet = new_subnet(problem, mask)
    else:
        backbone = load_backbone(problem)
        torch.manual_seed(config.seed)
        subnet = with_new_head(backbone, problem.task, context.splits)
        subnet.backbone.vlp.prune(mask)
    torch.manual_seed(config.seed)
    step_loss, trainer = make_loss_and_trainer(subnet, context.splits.train, config, None, context.encoder_cache)
    trainer.run(step_loss.parts, "fine-tuning")
    return subnet


def spearman_with_interval(a: np.ndarray, b: np.ndarray) -> str:
    """Return Spearman's rho of two arrays with its bootstrap interval, as text."""
    rho = spearman(a, b)
    if not np.isfinite(rho):
        return "-"
    low, high = bootstrap_interval(lambda rows: np.array([spearman(a[r], b[r]) for r in rows]), len(a))
    return f"{rho:.2f} [{low:.2f}, {high:.2f}]"


def report(
    table: SubnetTable, masks: np.ndarray, top: np.ndarray, metrics: np.ndarray, short: Mapping[int, np.ndarray]
) -> str:
    """Return a Markdown table of the predictors.

    Args:
        table: Table of the problem.
        masks: (m, n_layers) masks that were trained.
        top: (m,) bool, whether a mask is of the best tenth.
        metrics: (m, seeds) metrics after fine-tuning, 0..1.
        short: (m,) predictions of short trainings, by number of steps.
    """
    results = metrics.mean(axis=1)
    rows = {name: (values, results) for name, values in predictors(table, masks).items()}
    rows |= {f"{steps} steps of fine-tuning": (values, results) for steps, values in short.items()}
    ends = {"median": np.median(results), "lowest": results.min(), "highest": results.max()}
    words = ", ".join(f"{name} {100 * value:.1f} %" for name, value in ends.items())
    words += f", lowest of the best tenth {100 * results[top].min():.1f} %"
    if metrics.shape[1] > 1:
        rows["another seed"] = (metrics[:, 0], metrics[:, 1:].mean(axis=1))
        words += f"; standard deviation between seeds {100 * np.sqrt(metrics[top].var(axis=1, ddof=1).mean()):.2f} points"
    cells = []
    for name, (values, result) in sorted(rows.items(), key=lambda row: -np.nan_to_num(spearman(*row[1]), nan=-2.0)):
        shortfall = 100 * (result.max() - result[values.argmax()])
        cells.append(
            (
                name,
                spearman_with_interval(values, result),
                spearman_with_interval(values[top], result[top]),
                f"{shortfall:.1f}",
            )
        )
    heads = ("predictor", "rho, all", "rho, best tenth", "shortfall, points")
    lines = markdown_table(heads, cells, text_columns=(0, 1, 2))
    return "\n".join([f"{len(masks)} masks, {metrics.shape[1]} seeds; metric after fine-tuning: {words}", "", *lines])


def train_all(context: TrainingRows, masks: np.ndarray, options: argparse.Namespace) -> dict[str, float]:
    """Train every mask that the file has no result of, saving after each; return all results by `key`."""
    settings = {name: getattr(options, name) for name in ("env", "steps", "test_examples")}
    record = {"settings": settings, "trained": {}} if not (options.out and options.out.is_file()) else read_json(options.out)
    if record["settings"] != settings:
        raise ValueError(f"{options.out} was made with {record['settings']}, not {settings}: give another file")
    trained: dict[str, float] = record["trained"]
    every = [(start, seed, mask) for seed in range(options.seeds) for mask in masks for start in options.start]
    every += [(f"{SHORT} {steps}", SHORT_SEED, mask) for steps in options.short for mask in masks]
    todo = [each for each in every if key(*each) not in trained]
    with progress(len(todo), "fine-tuning masks", unit="mask") as bar:
        for start, seed, mask in todo:
            trained[key(start, seed, mask)] = result(context, start, mask, TrainingConfig(steps=options.steps, seed=seed))
            if options.out is not None:
                write_json(options.out, {"settings": settings, "trained": trained})
            bar.update()
    return trained


def result(context: TrainingRows, start: str, mask: np.ndarray, config: TrainingConfig) -> float:
    """Return the test metric of a fine-tuned subnet, or the negative loss on the reward split after a short training."""
    if not start.startswith(SHORT):
        return evaluate(fine_tuned(context, mask, start, config), context.test_examples, "test", rank_images=1).metric
    config = dataclasses.replace(config, steps=int(start.removeprefix(SHORT)))
    subnet = fine_tuned(context, mask, "supernet", config)
    return -evaluate(subnet, context.splits.reward, "reward split", rank_images=1).loss


def key(start: str, seed: int, mask: np.ndarray) -> str:
    """Return the key under which a training is stored."""
    return f"{start} {seed} {''.join(str(int(bit)) for bit in mask)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print the predictors."""
    parser = make_parser("fidelity", __doc__)
    environments = {name: entry for name, entry in named_environments().items() if entry.table}
    parser.add_argument("--env", default="meter_vqa", choices=environments)
    parser.add_argument("--start", nargs="+", choices=list(STARTS))
    parser.add_argument("--masks", type=int, default=40)
    parser.add_argument("--steps", type=int, default=TrainingConfig.steps)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--short", nargs="+", type=int, default=[], metavar="STEPS")
    parser.add_argument("--test-examples", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    entry = environments[options.env]
    problem = ProblemConfig(model=entry.model, task=entry.task)
    table = SubnetTable.load(entry.table)
    masks, top = choose_masks(table, options.masks)
    starts = STARTS if problem.supernet_path else ("new",)
    options.start = options.start or list(starts)
    if not set(options.start) <= set(starts):
        parser.error(f"{options.env} has no supernet: --start new alone")
    splits = load_splits(problem)
    base = with_new_head(load_backbone(problem), problem.task, splits)
    context = TrainingRows(base, splits, TrainingConfig(steps=options.steps), [], [], [], Path(), options.test_examples)
    trained = train_all(context, masks, options)
    short = {
        steps: np.array([trained[key(f"{SHORT} {steps}", SHORT_SEED, mask)] for mask in masks]) for steps in options.short
    }
    for start in options.start:
        metrics = np.array([[trained[key(start, seed, mask)] for seed in range(options.seeds)] for mask in masks])
        print(f"\n{options.env}, {SKIPPED} layers skipped, {options.steps} steps, adapters: {start}\n")
        print(report(table, masks, top, metrics, short))


if __name__ == "__main__":
    main()
