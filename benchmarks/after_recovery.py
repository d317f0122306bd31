"""Which reward predicts the score after recovery: deletion, linear skip adapters, or statistics of the full model.

    python -m benchmarks.after_recovery --out FILE                          the bundled SmolVLM-mini, 4 of 12 layers
    python -m benchmarks.after_recovery --checkpoint llava_mini --skip-num 8 --out FILE
    python -m benchmarks.after_recovery --task text --checkpoint DIR --data-root DIR --context 96 --skip-num 9 --out FILE
    python -m benchmarks.after_recovery ... --layers 3,4,5 3,12,13 --steps 70 --out FILE       given masks instead
    python -m benchmarks.after_recovery ... --other-data-root DIR --out FILE    losses on other data, too
    python -m benchmarks.after_recovery ... --layers 21,22,23 --recover last_layers --out FILE     a rival's recovery

Each of `--masks` masks is removed and recovered in the same ways. A third of the masks are random; the others are the best
of random ones, half by the loss after deletion and half by the loss with linear skip adapters, so that the masks that a
search would choose between are among them. Predictors are measured on the reward split, losses after recovery on the test
split. Printed are Spearman's correlation over masks with its 95 % bootstrap interval, and the regret: the loss after
recovery of the mask that a predictor prefers, less the least loss. With several `--steps`, also that of the best of the
five preferred masks after the fewest steps. For few masks, the losses are printed instead. FILE keeps every mask; the same
command continues it.
"""

import argparse
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from das_gym.adapt.methods import METHODS
from das_gym.adapt.methods.base import Method, register_method
from das_gym.adapt.shrinking.checks import as_vlm
from das_gym.adapt.shrinking.measuring import mean_loss
from das_gym.adapt.shrinking.recovery import Teacher, make_teacher, recover_student, temporarily_merged
from das_gym.adapt.shrinking.repairing import repaired_copy
from das_gym.adapt.shrinking.settings import LINEAR, REFIT, RecoveryConfig
from torch import nn

from benchmarks.fidelity import spearman_with_interval
from benchmarks.machine import describe_machine, make_parser
from das_gym.drawing.report import markdown_table
from das_gym.files import read_json, write_json
from das_gym.models.base import VLP
from das_gym.problem.budget import Budget
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_splits, shuffled
from das_gym.problem.mask_space import MaskSpace
from das_gym.problem.problem import Problem, build_problem
from das_gym.problem.statistic_inputs import measure_activity

BATCH = 8
POOL = 60
"""Random masks of which the best are taken."""

FINALISTS = 5
"""Masks with the best predictions, of which a short recovery chooses one."""

MIN_MASKS = 5
"""Correlations of as few masks are not printed."""

RECOVERIES = ("none", "lora", LINEAR, f"{LINEAR}+lora", REFIT, f"{REFIT}+lora")

TRAINED_LAYERS = 3
"""The last layers that `LastLayers` trains."""

PREDICTORS = ("deletion", "linear", "block_influence", "leave_one_out")


@dataclass(frozen=True)
class LastLayers(Method):
    """Train the output head and the last three layers that are left (Lu et al., arXiv 2411.15558)."""

    title: ClassVar[str] = "last layers"
    trains_weights: ClassVar[bool] = True
    recovery_rate: ClassVar[float] = 1e-4

    def insert(self, vlp: VLP) -> list[nn.Parameter]:
        """Insert nothing; return the parameters of the last layers and of the head."""
        layers = [vlp.skippable_layer(index).module_for(False) for index in range(len(vlp.layers))]
        head = vlp.language_head()
        assert head is not None
        return [p for module in (*layers[-TRAINED_LAYERS:], head) for p in module.parameters()]


def predictors(problem: Problem, linear: Problem, masks: np.ndarray, examples: Any) -> dict[str, np.ndarray]:
    """Return (m,) predictions for (m, n_layers) masks by predictor; lower is better."""
    alone = np.eye(masks.shape[1], dtype=bool)
    losses = problem.evaluator.losses(np.concatenate((~alone[:1] & alone[:1], alone, masks)), examples)
    effects = losses[1 : len(alone) + 1] - losses[0]
    influence = measure_activity(problem.evaluator, examples).block_influence_tokens
    return {
        "deletion": losses[len(alone) + 1 :],
        "linear": linear.evaluator.losses(masks, examples),
        "block_influence": masks @ influence,
        "leave_one_out": masks @ effects,
    }


def choose_masks(problem: Problem, linear: Problem, count: int, skip_num: int, examples: Any) -> np.ndarray:
    """Return (count, n_layers) masks: a third random, the others the best of `POOL` by either loss."""
    space = MaskSpace(Budget(len(problem.layer_names), skip_num))
    rng = np.random.default_rng(0)
    pool = np.unique(np.stack([space.sample(rng) for _ in range(POOL)]), axis=0)
    pool = pool[rng.permutation(len(pool))]
    few = examples[: max(1, len(examples) // 4)]
    orders = [np.argsort(each.evaluator.losses(pool, few)).tolist() for each in (problem, linear)]
    chosen = list(range(count // 3))
    while len(chosen) < count:
        order = orders[len(chosen) % 2]
        chosen.append(next(row for row in order if row not in chosen))
    return pool[chosen]


def recovered_losses(
    problem: Problem, mask: np.ndarray, config: RecoveryConfig, teacher: Teacher, tests: list[Any]
) -> list[float]:
    """Return the loss on each list of test examples of the model without the layers of a mask, recovered."""
    full = as_vlm(problem)
    student = repaired_copy(problem, mask, config)
    trained = recover_student(student, problem, config, teacher=teacher)
    with temporarily_merged(student, full, config, trained):
        return [mean_loss(student, problem.task, test, BATCH, "loss") for test in tests]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every mask, and keep the results in a file."""
    path = Path(options.out)
    given = {name: getattr(options, name) for name in ("checkpoint", "data_root", "context") if getattr(options, name)}
    config = ProblemConfig(model="VLM", task=options.task, **given)
    problem = build_problem(config)
    linear = build_problem(dataclasses.replace(config, skip="linear"))
    task = problem.task
    splits = problem.splits
    reward = shuffled(task, splits.reward, options.examples)
    tests = [task.open_ended(shuffled(task, splits.test, options.examples))]
    if options.other_data_root:
        other = load_splits(dataclasses.replace(config, data_root=options.other_data_root))
        tests.append(task.open_ended(shuffled(task, other.test, options.examples)))
    ways = {}
    for name in options.recover:
        for count in [0] if name in ("none", LINEAR, REFIT) else options.steps:
            settings = {"recover": name, "batch_size": options.batch_size, "seed": options.seed}
            settings["share_maps"] = options.share_maps and name.startswith(LINEAR)
            label = f"{name}, {count} steps" if count else name
            ways[label] = RecoveryConfig(**settings, **({"steps": count} if count else {}))
    if options.layers:
        every = np.arange(len(problem.layer_names))
        masks = np.stack([np.isin(every, [int(layer) for layer in layers.split(",")]) for layers in options.layers])
    else:
        masks = choose_masks(problem, linear, options.masks, options.skip_num, reward)
    scores = predictors(problem, linear, masks, reward)
    longest = max(ways.values(), key=lambda each: each.num_steps if each.method else 0)
    teacher = make_teacher(as_vlm(problem), task, splits.train, longest)
    record: dict[str, Any] = {"settings": vars(options), "machine": describe_machine(), "rows": []}
    if path.is_file():
        record = read_json(path)
    for mask in masks[len(record["rows"]) :]:
        found = {}
        for name, way in ways.items():
            started = time.process_time()
            losses = recovered_losses(problem, mask, way, teacher, tests)
            found[name] = {"loss": losses[0], "losses": losses, "seconds": time.process_time() - started}
        record["rows"].append({"mask": mask.astype(int).tolist(), "recovered": found})
        write_json(path, record)
        shown = {name: round(each["loss"], 4) for name, each in found.items()}
        print(len(record["rows"]), mask.nonzero()[0].tolist(), shown, flush=True)
    full = [mean_loss(as_vlm(problem), task, test, BATCH, "loss") for test in tests]
    predicted = {name: values.tolist() for name, values in scores.items()}
    record |= {"full": full[0], "full_losses": full, "predictors": predicted}
    write_json(path, record)
    return record


def table(record: dict[str, Any]) -> str:
    """Return the correlations and regrets as Markdown."""
    ways = list(record["rows"][0]["recovered"])
    losses = {way: np.array([row["recovered"][way]["loss"] for row in record["rows"]]) for way in ways}
    rows = []
    for way in ways:
        found = losses[way]
        shorter = next(other for other in ways if other.partition(",")[0] == way.partition(",")[0])
        for name in PREDICTORS:
            values = np.array(record["predictors"][name])
            regret = found[values.argmin()] - found.min()
            rows.append([way, name, spearman_with_interval(values, found), f"{regret:.4f}"])
            if shorter != way:
                best = np.argsort(values)[:FINALISTS]
                regret = found[best[losses[shorter][best].argmin()]] - found.min()
                rows.append([way, f"{name}, {FINALISTS} finalists: {shorter}", "", f"{regret:.4f}"])
    return "\n".join(markdown_table(("recovery", "predictor", "Spearman", "regret, nats"), rows, (0, 1)))


def loss_table(record: dict[str, Any]) -> str:
    """Return the losses of each mask after each recovery, on the test split and the other data, and seconds, as Markdown."""
    ways = list(record["rows"][0]["recovered"])
    rows = [["full model", " / ".join(f"{loss:.4f}" for loss in record["full_losses"]), *[""] * (len(ways) - 1)]]
    for row in record["rows"]:
        layers = " ".join(str(layer) for layer in np.flatnonzero(row["mask"]))
        found = [row["recovered"][way] for way in ways]
        cells = [f"{' / '.join(f'{loss:.4f}' for loss in each['losses'])} ({each['seconds']:.0f} s)" for each in found]
        rows.append([layers, *cells])
    return "\n".join(markdown_table(("skipped", *ways), rows, (0,)))


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and print; return the record."""
    if "last_layers" not in METHODS:
        register_method("last_layers", LastLayers)
    parser = make_parser("after_recovery", __doc__)
    parser.add_argument("--out", required=True, help="file of the results")
    parser.add_argument("--task", default="answering")
    parser.add_argument("--checkpoint", help="folder of a model of transformers; default: the bundled SmolVLM-mini")
    parser.add_argument("--data-root")
    parser.add_argument("--other-data-root", help="data of the same task whose test split is measured, too")
    parser.add_argument("--context", type=int, help="tokens of a window of text")
    parser.add_argument("--masks", type=int, default=30)
    parser.add_argument("--layers", nargs="+", help="masks: layers to skip, from 0 on, separated by commas")
    parser.add_argument("--skip-num", type=int, default=4)
    parser.add_argument("--steps", type=int, nargs="*", default=[70, 300], help="of a recovery that trains")
    parser.add_argument("--recover", nargs="+", default=list(RECOVERIES), help="ways of recovery; also `last_layers`")
    parser.add_argument("--share-maps", action="store_true", help="one linear map for consecutive layers")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--examples", type=int, default=500, help="largest number of examples of the reward and test split")
    parser.add_argument("--seed", type=int, default=0)
    record = measure(parser.parse_args(arguments))
    print(f"full model: loss {record['full']:.4f}")
    print(table(record) if len(record["rows"]) > MIN_MASKS else loss_table(record))
    return record


if __name__ == "__main__":
    main()
