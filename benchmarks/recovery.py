"""What recovers removed layers, and which reward predicts the score after recovery.

    python -m benchmarks.recovery masks --out FILE                          the bundled SmolVLM-mini, 4 of 12 layers
    python -m benchmarks.recovery masks --checkpoint llava_mini --skip-num 8 --out FILE
    python -m benchmarks.recovery masks --task text --checkpoint DIR --data-root DIR --context 96 --skip-num 9 --out FILE
    python -m benchmarks.recovery masks ... --layers 3,4,5 3,12,13 --steps 70 --out FILE       given masks instead
    python -m benchmarks.recovery masks ... --other-data-root DIR --out FILE    losses on other data, too
    python -m benchmarks.recovery masks ... --layers 21,22,23 --recover last_layers --out FILE     a rival's recovery
    python -m benchmarks.recovery masks --layers 5,7,10 --recover lora full --learning-rates 1e-4 1e-3 --scores --out FILE
    python -m benchmarks.recovery forms --checkpoint DIR --data-root DIR --layers 3,12,13,14,15,16,17,25,26
    python -m benchmarks.recovery supernet [--model ViLT] [--seeds 2]       linear maps for METER-mini or ViLT-mini

`masks`: each mask is removed and recovered in the same ways. A third of `--masks` masks are random; the others are the best
of random ones, half by the loss after deletion and half by the loss with linear skip adapters, so that the masks that a
search would choose between are among them. Predictors are measured on the reward split, losses after recovery on the test
split. Printed are Spearman's correlation over masks with its 95 % bootstrap interval, and the regret: the loss after
recovery of the mask that a predictor prefers, less the least loss. With several `--steps`, also that of the best of the five
preferred masks after the fewest steps. For few masks, the losses are printed instead: on the test split, on other data, and
on the reward split. FILE keeps every mask; the same command continues it.

`forms`: modules instead of removed layers, fitted in order on the same hidden states: each reads those of the shortened
model and predicts those of the full model. `bottleneck` is the paper's skip adapter, trained by AdamW on the squared error.
With half the model's width inside, it costs as much as a linear map. `linear + bottleneck` trains one on what a map leaves.

`supernet`: a linear map for each layer of the fine-tuned baseline scores all masks of 4 layers, as do the layers left out
and the bundled supernet. With `--seeds`, the mask that each prefers is fine-tuned.
"""

import argparse
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from das_gym.adapt.evaluate import evaluate
from das_gym.adapt.finetuning import load_reference, load_start, new_subnet, train_subnet, with_new_head, without_layers
from das_gym.adapt.methods import METHODS
from das_gym.adapt.methods.base import Method, register_method
from das_gym.adapt.settings import TrainingConfig
from das_gym.adapt.shrinking.checks import as_vlm
from das_gym.adapt.shrinking.measuring import mean_loss, score_model
from das_gym.adapt.shrinking.recovery import Teacher, make_teacher, recover_student, temporarily_merged
from das_gym.adapt.shrinking.repairing import repaired_copy
from das_gym.adapt.shrinking.settings import LINEAR, REFIT, RecoveryConfig
from das_gym.adapt.step_loss import resolve_defaults
from torch import Tensor, nn

from benchmarks.fidelity import spearman_with_interval
from benchmarks.harness import describe_machine, make_parser
from das_gym.data.splits import Splits
from das_gym.drawing.report import markdown_table
from das_gym.engine.evaluator import Evaluator
from das_gym.files import read_json, write_json
from das_gym.models.adapters import LinearSkipAdapter, SkipAdapter, rms_norm
from das_gym.models.base import VLP, State
from das_gym.models.transformers.linear_skips import Ridge, fit_ridge, fit_skip_adapters, stream_tokens
from das_gym.models.transformers.model import VLM
from das_gym.problem.budget import Budget
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, load_backbone, load_splits, shuffled
from das_gym.problem.mask_space import MaskSpace, every_mask
from das_gym.problem.problem import Problem, build_problem, load_problem, problem_from_model
from das_gym.problem.skip_adapters import calibration_examples, calibration_states
from das_gym.problem.statistic_inputs import measure_activity

BATCH = 8
POOL = 60
"""Random masks of which the best are taken."""

FINALISTS = 5
"""Masks with the best predictions, of which a short recovery chooses one."""

MIN_MASKS = 5
"""Correlations of as few masks are not printed."""

RECOVERIES = ("none", "lora", LINEAR, f"{LINEAR}+lora", REFIT, f"{REFIT}+lora")
PREDICTORS = ("deletion", "linear", "block_influence", "leave_one_out")

TRAINED_LAYERS = 3
"""The last layers that `LastLayers` trains."""

TOKENS = 1024
"""Of a training step of a bottleneck."""

RATES = (1e-3, 3e-3)
"""Learning rates of a bottleneck; the one with the smallest error on held-out tokens is taken."""

SKIPPED = 4
"""Layers that the masks of `supernet` skip."""

Pair = tuple[Tensor, Tensor]
"""Hidden states before a layer, of the shortened model, and after it, of the full model: (tokens, width) each."""


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


def measure_recovery(
    problem: Problem, mask: np.ndarray, config: RecoveryConfig, teacher: Teacher | None, parts: list[Any], scores: bool
) -> dict[str, Any]:
    """Recover the model without the layers of a mask; return its loss on each list of examples, and a score on the first."""
    full = as_vlm(problem)
    started = time.process_time()
    student = repaired_copy(problem, mask, config)
    trained = recover_student(student, problem, config, teacher=teacher)
    with temporarily_merged(student, full, config, trained):
        losses = [mean_loss(student, problem.task, part, BATCH, "loss") for part in parts]
        found = {"loss": losses[0], "losses": losses, "seconds": time.process_time() - started}
        if scores:
            found["score"] = score_model(student, problem.task, parts[0], "")[0].score
    return found


def measure_masks(options: argparse.Namespace) -> dict[str, Any]:
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
    tests.append(task.open_ended(reward))
    ways = {}
    for name in options.recover:
        trains = name not in ("none", LINEAR, REFIT)
        for count, rate in itertools.product(options.steps, options.learning_rates) if trains else [(None, None)]:
            label = name if count is None else f"{name}, {count} steps" + (f", {rate:g}" if rate else "")
            settings = {"batch_size": options.batch_size, "seed": options.seed, "steps": count, "learning_rate": rate}
            shared = options.share_maps and name.startswith(LINEAR)
            ways[label] = RecoveryConfig(recover=name, share_maps=shared, **settings)
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
            found[name] = measure_recovery(problem, mask, way, teacher, tests, options.scores)
        record["rows"].append({"mask": mask.astype(int).tolist(), "recovered": found})
        write_json(path, record)
        shown = {name: round(each["loss"], 4) for name, each in found.items()}
        print(len(record["rows"]), mask.nonzero()[0].tolist(), shown, flush=True)
    full = [mean_loss(as_vlm(problem), task, test, BATCH, "loss") for test in tests]
    predicted = {name: values.tolist() for name, values in scores.items()}
    record |= {"full": full[0], "full_losses": full, "predictors": predicted}
    write_json(path, record)
    return record


def table_of_predictors(record: dict[str, Any]) -> str:
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


def table_of_losses(record: dict[str, Any]) -> str:
    """Return the losses of each mask after each recovery, seconds and scores, as Markdown."""
    ways = list(record["rows"][0]["recovered"])
    rows = [["full model", " / ".join(f"{loss:.4f}" for loss in record["full_losses"]), *[""] * (len(ways) - 1)]]
    for row in record["rows"]:
        layers = " ".join(str(layer) for layer in np.flatnonzero(row["mask"]))
        found = [row["recovered"][way] for way in ways]
        cells = [f"{' / '.join(f'{loss:.4f}' for loss in each['losses'])} ({each['seconds']:.0f} s)" for each in found]
        scored = [f", {100 * each['score']:.1f} %" if "score" in each else "" for each in found]
        rows.append([layers, *(cell + score for cell, score in zip(cells, scored, strict=True))])
    return "\n".join(markdown_table(("skipped", *ways), rows, (0,)))


class Both(nn.Module):
    """A linear map and a bottleneck that reads the same hidden states and corrects it."""

    def __init__(self, linear: nn.Module, bottleneck: nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.bottleneck = bottleneck

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., width) to the same shape."""
        return self.linear(x) + self.bottleneck(x) - x


def linear(pairs: Sequence[Pair]) -> LinearSkipAdapter:
    """Return a linear skip adapter, by ridge regression."""
    return adapter_of(fit_ridge([(rms_norm(before), after - before) for before, after in pairs]))


def adapter_of(ridge: Ridge) -> LinearSkipAdapter:
    """Return the linear skip adapter of a map of full rank."""
    adapter = LinearSkipAdapter(*ridge.up.shape)
    adapter.load_state_dict({"up.weight": ridge.up.T.float(), "up.bias": ridge.bias.float()})
    return adapter


def bottleneck(pairs: Sequence[Pair], width: int, steps: int) -> nn.Module:
    """Return the paper's skip adapter, trained; an eighth of the batches is held out to choose the learning rate."""
    held_out = pairs[7::8]
    before = torch.cat([pair[0] for number, pair in enumerate(pairs) if number % 8 != 7])
    after = torch.cat([pair[1] for number, pair in enumerate(pairs) if number % 8 != 7])
    found = []
    for rate in RATES:
        torch.manual_seed(0)
        adapter = SkipAdapter(before.shape[1], width)
        optimizer = torch.optim.AdamW(adapter.parameters(), rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
        with torch.enable_grad():
            for _ in range(steps):
                rows = torch.randint(len(before), (TOKENS,))
                optimizer.zero_grad()
                error = (adapter(before[rows].clone()) - after[rows]).pow(2).sum(dim=1).mean()
                error.backward()
                optimizer.step()
                schedule.step()
        errors = [float((adapter(x.clone()) - y).pow(2).sum(dim=1).mean()) for x, y in held_out]
        found.append((sum(errors), adapter))
    return min(found, key=lambda pair: pair[0])[1]


def linear_and_bottleneck(pairs: Sequence[Pair], width: int, steps: int) -> nn.Module:
    """Return a linear map, and a bottleneck trained on what it leaves."""
    map_ = linear(pairs)
    return Both(map_, bottleneck([(before, before + after - map_(before)) for before, after in pairs], width, steps))


@torch.no_grad()
def replace_layers(vlm: VLM, states: Sequence[State], mask: np.ndarray, fit: Callable[[Sequence[Pair]], nn.Module]) -> None:
    """Give each layer of a mask the skip adapter that `fit` returns, in order."""
    full = short = list(states)
    for index, layer in enumerate(vlm.layers):
        before = [stream_tokens(state, layer.stream, state.hidden[layer.stream]) for state in short]
        full = [state.with_hidden({layer.stream: vlm.run_layer(index, state, False)}) for state in full]
        if mask[index]:
            after = [stream_tokens(state, layer.stream, state.hidden[layer.stream]) for state in full]
            vlm.skippable_layer(index).skip_adapter = fit(list(zip(before, after, strict=True))).requires_grad_(False)
        short = [state.with_hidden({layer.stream: vlm.run_layer(index, state, bool(mask[index]))}) for state in short]


def measure_forms(options: argparse.Namespace) -> list[list[str]]:
    """Return the rows of the table: form, MACs, perplexity, processor time."""
    given = {name: getattr(options, name) for name in ("checkpoint", "data_root", "context")}
    problem = build_problem(ProblemConfig(model="VLM", task="text", **given))
    vlm = as_vlm(problem)
    layers = [int(layer) for layer in options.layers.split(",")]
    mask = np.isin(np.arange(len(vlm.layers)), layers)
    count = options.examples or len(problem.splits.train)
    states = calibration_states(problem.evaluator, calibration_examples(problem.evaluator, problem.splits.train, count))
    width = vlm.feature_size
    steps = options.steps
    forms: dict[str, Callable[[], Any]] = {
        "removed": lambda: replace_layers(vlm, states, mask, lambda pairs: nn.Identity()),
        "linear": lambda: fit_skip_adapters(vlm, states, mask=mask),
        f"linear, rank {width // 8}": lambda: fit_skip_adapters(vlm, states, width // 8, mask),
        "linear, one for a run": lambda: fit_skip_adapters(vlm, states, mask=mask, share=True),
    }
    for inside in (width // 2, width // 8):
        fit = partial(bottleneck, width=inside, steps=steps)
        forms[f"bottleneck {inside}"] = partial(replace_layers, vlm, states, mask, fit)
    both = partial(linear_and_bottleneck, width=width // 8, steps=steps)
    forms[f"linear + bottleneck {width // 8}"] = partial(replace_layers, vlm, states, mask, both)
    rows = []
    for name, replace in forms.items():
        started = time.process_time()
        replace()
        seconds = time.process_time() - started
        adapters = [vlm.skippable_layer(layer).skip_adapter for layer in layers]
        parts = [part for adapter in adapters if adapter is not None for part in adapter.modules()]
        macs = sum(part.weight.numel() for part in parts if isinstance(part, nn.Linear))
        evaluator = Evaluator(vlm, problem.head, problem.task)  # the problem's remembers the losses of masks
        loss = float(evaluator.losses(mask[None], problem.splits.test)[0])
        rows.append([name, f"{macs / 1e6:.2f}", f"{math.exp(loss):.1f}", f"{seconds:.0f}"])
        print(rows[-1], flush=True)
    return rows


def train_baseline(config: ProblemConfig, steps: int) -> AdaptedModel:
    """Return the fine-tuned baseline: bundled if its settings are the defaults, else trained."""
    start = load_start(config)
    baseline = without_layers(start.model, np.zeros(len(start.model.backbone.vlp.layers), dtype=bool), adapters=False)
    training, _ = resolve_defaults(TrainingConfig(steps=steps), baseline)
    if not load_reference(baseline, config, training, "baseline"):
        train_subnet(baseline, start.splits, training, "fine-tuning the baseline")
    baseline.backbone.vlp.freeze()
    return baseline


@torch.no_grad()
def fit_maps(model: AdaptedModel, examples: Sequence[object]) -> list[Ridge]:
    """Return the map of each layer, fitted on the hidden states of the full model."""
    vlp = model.backbone.vlp
    kept = np.zeros(len(vlp.layers), dtype=bool)
    pairs: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in vlp.layers]
    for first in range(0, len(examples), 4 * BATCH):
        batch = model.backbone.processor(model.task.pairs(examples[first : first + 4 * BATCH]), None)
        state = vlp.embed(vlp.encode(batch))
        for stage, indices in enumerate(vlp.stages):
            for index in indices:
                stream = vlp.layers[index].stream
                before = state.hidden[stream]
                after = vlp.run_layer(index, state, skipped=False)
                rows, real = vlp.split_rows(state, stream, torch.cat((rms_norm(before), after - before), dim=-1))
                tokens = rows.flatten(0, 1) if real is None else rows[real[:, 0, -1].bool()]
                pairs[index].append(tuple(tokens.chunk(2, dim=-1)))  # type: ignore[arg-type]
            if stage < len(vlp.stages) - 1:
                state = vlp.advance(state, stage, kept)
    return [fit_ridge(each, what=layer.name) for each, layer in zip(pairs, vlp.layers, strict=True)]


def put_maps(vlp: VLP, maps: Sequence[Ridge] | None) -> None:
    """Let skipped layers run these maps; None leaves the layers out."""
    for index in range(len(vlp.layers)):
        layer = vlp.skippable_layer(index)
        adapter: nn.Module = nn.Identity() if maps is None else adapter_of(maps[index])
        layer.skip_adapter = adapter.requires_grad_(False)
        layer.removed = {}
    vlp.pruned_mask = None


def compare_with_supernet(options: argparse.Namespace) -> None:
    """Score all masks in three ways, and print the tables."""
    torch.set_num_threads(1)
    config = ProblemConfig(model=options.model, task=options.task)
    baseline = train_baseline(config, options.steps)
    supernet = load_problem(config)
    splits = supernet.splits
    began = time.process_time()
    maps = fit_maps(baseline, shuffled(baseline.task, splits.train, options.calibration_examples))
    print(f"{len(maps)} maps fitted in {time.process_time() - began:.1f} s of processor time")
    masks = np.concatenate((np.zeros((1, len(maps)), dtype=bool), every_mask(len(maps), SKIPPED)))
    losses = {"supernet": supernet.evaluator.losses(masks, shuffled(supernet.task, splits.reward, options.examples))}
    reward = shuffled(baseline.task, splits.reward, options.examples)
    for name, given in (("linear maps", maps), ("left out", None)):
        put_maps(baseline.backbone.vlp, given)
        losses[name] = problem_from_model(baseline, splits, config).evaluator.losses(masks, reward)
    rows = []
    for name, found in losses.items():
        preferred = 1 + found[1:].argmin()
        best = masks[preferred]
        regret = losses["supernet"][preferred] - losses["supernet"][1:].min()
        tuned = tuned_scores(config, splits, best, options)
        skipped = " ".join(map(str, np.flatnonzero(best)))
        agreement = spearman_with_interval(found[1:], losses["supernet"][1:])
        rows.append([name, f"{found[0]:.4f}", f"{found[preferred]:.4f}", skipped, agreement, f"{regret:.4f}", tuned])
    head = ("skipped layers", "full model", "best mask", "it skips", "Spearman", "regret in the supernet", "fine-tuned, %")
    print(*markdown_table(head, rows, (0, 3)), sep="\n")


def tuned_scores(config: ProblemConfig, splits: Splits[Any], mask: np.ndarray, options: argparse.Namespace) -> str:
    """Return test metrics, in %, of the subnet of a mask that is fine-tuned, for each seed."""
    found = []
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        if options.start == "supernet":
            subnet = new_subnet(config, mask)
        else:
            subnet = with_new_head(load_backbone(config), config.task, splits)
            subnet.backbone.vlp.prune(mask)
        training, _ = resolve_defaults(TrainingConfig(steps=options.steps, seed=seed), subnet)
        train_subnet(subnet, splits, training, "fine-tuning a subnet")
        found.append(f"{100 * evaluate(subnet, splits.test, 'evaluating').metric:.1f}")
    return ", ".join(found)


def main(arguments: list[str] | None = None) -> Any:
    """Measure and print; return the record of `masks` or the rows of `forms`."""
    if "last_layers" not in METHODS:
        register_method("last_layers", LastLayers)
    parser = make_parser("recovery", __doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    masks, forms, supernet = (commands.add_parser(name) for name in ("masks", "forms", "supernet"))
    masks.add_argument("--out", required=True, help="file of the results")
    masks.add_argument("--task", default="answering")
    for each in (masks, forms):
        each.add_argument("--checkpoint", help="folder of a model of transformers; default: the bundled SmolVLM-mini")
        each.add_argument("--data-root")
        each.add_argument("--context", type=int, help="tokens of a window of text")
    masks.add_argument("--other-data-root", help="data of the same task whose test split is measured, too")
    masks.add_argument("--masks", type=int, default=30)
    masks.add_argument("--layers", nargs="+", help="masks: layers to skip, from 0 on, separated by commas")
    masks.add_argument("--skip-num", type=int, default=4)
    masks.add_argument("--steps", type=int, nargs="*", default=[70, 300], help="of a recovery that trains")
    masks.add_argument("--learning-rates", type=float, nargs="*", default=[None], help="of it; default: of the method")
    masks.add_argument("--recover", nargs="+", default=list(RECOVERIES), help="ways of recovery; also `last_layers`")
    masks.add_argument("--share-maps", action="store_true", help="one linear map for consecutive layers")
    masks.add_argument("--scores", action="store_true", help="score generated answers, too")
    masks.add_argument("--batch-size", type=int, default=16)
    masks.add_argument("--examples", type=int, default=500, help="largest number of examples of the reward and test split")
    masks.add_argument("--seed", type=int, default=0)
    forms.add_argument("--layers", required=True, help="that are replaced, separated by commas")
    forms.add_argument("--steps", type=int, default=600, help="of training an adapter, at each learning rate")
    forms.add_argument("--examples", type=int, help="of calibration; all of the train split by default")
    supernet.add_argument("--model", default="METER", choices=("METER", "ViLT"))
    supernet.add_argument("--task", default="vqa", choices=("vqa", "nlvr2"))
    supernet.add_argument("--steps", type=int, default=300, help="of fine-tuning")
    supernet.add_argument("--calibration-examples", type=int, default=512)
    supernet.add_argument("--examples", type=int, default=500, help="of the reward split")
    supernet.add_argument("--seeds", type=int, default=0, help="fine-tunings of the mask that each reward prefers")
    supernet.add_argument("--start", default="new", choices=("new", "supernet"), help="adapters before fine-tuning")
    options = parser.parse_args(arguments)
    if options.what == "supernet":
        return compare_with_supernet(options)
    if options.what == "forms":
        rows = measure_forms(options)
        print(*markdown_table(("replacement", "M MACs a token", "perplexity", "s"), rows, (0,)), sep="\n")
        return rows
    record = measure_masks(options)
    print(f"full model: loss {record['full']:.4f}")
    print(table_of_predictors(record) if len(record["rows"]) > MIN_MASKS else table_of_losses(record))
    return record


if __name__ == "__main__":
    main()
