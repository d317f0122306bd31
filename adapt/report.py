"""The end of a run that fine-tuned: evaluate and measure its models, save the subnet, report table, conclusion, answers."""

import base64
import dataclasses
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.adapt.evaluate import Evaluation, evaluate
from das_gym.adapt.finished_runs import SUBNET_FILE
from das_gym.adapt.settings import RANKED_IMAGES
from das_gym.adapt.subnets import save

from das_gym.commands.settings import build, settings_dict, tuples_to_lists
from das_gym.commands.trust import imported_plugins
from das_gym.data.images import ImageSource
from das_gym.data.splits import Splits
from das_gym.drawing.architecture import Architecture
from das_gym.drawing.report import Answers, Question, RunReport, Table
from das_gym.engine.caches import EncoderCache
from das_gym.files import explain_damage, read_json, write_json
from das_gym.intervals import difference_interval
from das_gym.models.macs import share_copy, without_adapters
from das_gym.problem.config import ProblemConfig, warn_at_chance
from das_gym.problem.latency import Speedup, Spread, measure_latency, speedup
from das_gym.problem.loading import AdaptedModel, example_costs, shuffled
from das_gym.problem.mask_space import skipped_names
from das_gym.tasks.base import Task

EXAMPLES_FILE = "examples.json"

THUMBNAIL_SIDE = 160
"""Pixels of the longer side of an image."""

HEADLINE_NUMBERS = ("consistency", *(f"{way}_r{level}" for way in ("tr", "ir") for level in (1, 5, 10)))
"""Numbers shown next to the metric if the task reports them."""

BASELINE = "baseline"
FULL_MODEL = "full_model"
SUBNET = "subnet"
MODEL_TITLES = {BASELINE: "baseline", FULL_MODEL: "full model with adapters", SUBNET: "subnet"}
"""The models of a run in the order of the table's columns."""


@dataclass(frozen=True)
class ModelResult:
    """The measurements of one model, as records hold them; `adapt shrink` adds its own.

    Attributes:
        name: `BASELINE`, `FULL_MODEL` or `SUBNET`; of `adapt shrink` its own names.
        parameters: All parameters of the model after removal of skipped layers.
        macs: Of one example.
        macs_saved: Share of the baseline's MACs.
    """

    name: str
    parameters: int
    macs: int
    macs_saved: float

    def record(self) -> dict[str, Any]:
        """Return the measurements by field, as JSON values."""
        return tuples_to_lists(vars(self))


@dataclass(frozen=True)
class TunedModelResult(ModelResult):
    """The measurements of a fine-tuned model, or of its baseline.

    Attributes:
        mask: 0 or 1 per layer, 1 = skipped.
        trainable_parameters: 0 if nothing was trained.
        evaluation: On the test split. None for a baseline that was not trained.
        latency_ms: Of one example.
        speedup: Relative to the baseline. None for the baseline itself.
        from_package: Whether its trained weights came with das_gym.
    """

    mask: tuple[int, ...]
    skipped_layers: tuple[str, ...]
    trainable_parameters: int
    evaluation: Evaluation | None
    latency_ms: Spread
    speedup: Speedup | None = None
    from_package: bool = False

    @property
    def metric(self) -> float:
        """The metric on the test split, 0..1."""
        assert self.evaluation is not None
        return self.evaluation.metric

    def record(self) -> dict[str, Any]:
        """Return JSON values, without the per-example results of the evaluation."""
        record = super().record()
        if self.evaluation is not None:
            names = ("metric", "metric_name", "loss", "numbers", "examples")
            record["evaluation"] = {name: getattr(self.evaluation, name) for name in names}
        return record


def compare_models(
    models: Mapping[str, AdaptedModel],
    splits: Splits[Any],
    rank_images: int | None = RANKED_IMAGES,
    untrained: Collection[str] = (),
    from_package: Collection[str] = (),
) -> dict[str, TunedModelResult]:
    """Evaluate models on the test split, but not those that are `untrained`, and measure costs and latency of all.

    Warn where the full model, or the subnet if that is evaluated alone, is no better than chance. `from_package` names those
    whose trained weights came with das_gym.
    """
    # All models in turn, block by block: whatever slows the machine down for a while slows all of them down.
    first = models[SUBNET]
    forwards = {name: example_forward(model, splits) for name, model in models.items()}
    times = measure_latency(forwards, first.backbone.vlp.device)
    costs = example_costs(first, splits)  # of any mask, although the subnet is pruned
    encoder_cache = EncoderCache(first.backbone.vlp, first.task.processor)
    results = {}
    for name, model in models.items():
        evaluation = None
        if name not in untrained:
            title = f"evaluating, {MODEL_TITLES[name]}"
            shared = None if model.backbone.vlp.encoders_train else encoder_cache
            evaluation = evaluate(model, splits.test, title, rank_images, shared)
        vlp = model.backbone.vlp
        is_baseline = name == BASELINE
        mask = vlp.check_mask(None)  # the mask of a pruned model; nothing skipped in others
        parameters = {*vlp.parameters(), *model.head.parameters()}  # a set: a head may be part of the model
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        results[name] = TunedModelResult(
            name=name,
            mask=tuple(mask.astype(int).tolist()),
            skipped_layers=tuple(skipped_names((layer.name for layer in vlp.layers), mask)),
            trainable_parameters=0 if evaluation is None else trained,
            parameters=sum(p.numel() for p in parameters),
            macs=costs.macs_full if is_baseline else costs.macs(mask),
            macs_saved=0.0 if is_baseline else costs.macs_saved(mask),
            evaluation=evaluation,
            latency_ms=Spread.from_values(times[name]),
            speedup=None if is_baseline else speedup(times[name], times[BASELINE]),
            from_package=name in from_package,
        )
    reference = next(results[name] for name in (FULL_MODEL, BASELINE, SUBNET) if name in results and name not in untrained)
    warn_at_chance(None, first.task, splits.test, reference.metric, "test", MODEL_TITLES[reference.name])
    return results


def baseline_model(full: AdaptedModel) -> AdaptedModel:
    """Return the full model without its adapters, which shares all other parameters with it."""
    backbone = dataclasses.replace(full.backbone, vlp=without_adapters(share_copy(full.backbone.vlp)))
    return dataclasses.replace(full, backbone=backbone)


def example_forward(subnet: AdaptedModel, splits: Splits[Any]) -> Callable[[], Any]:
    """Return a function that runs the first test example, whose images are already decoded."""
    task = subnet.task
    forward = subnet.backbone.vlp.make_forward(task.processor, task.pairs(splits.test[:1]))
    return lambda: subnet.head(task.group_features(forward()))


def write_answers(folder: Path, rows: Mapping[str, TunedModelResult], task: Task, test: Sequence[Any]) -> None:
    """Write the answers of each evaluated model, `answers_<name>.json`, and the examples that reports show."""
    answers = {}
    for name, row in rows.items():
        if row.evaluation is None:
            continue
        write_json(folder / f"answers_{name}.json", row.evaluation.predictions)
        if name != BASELINE:
            pairs = zip(test, row.evaluation.predictions, strict=True)
            answers[name] = [task.format_prediction(example, prediction) for example, prediction in pairs]
    ordered = {MODEL_TITLES[name]: answers[name] for name in (FULL_MODEL, SUBNET) if name in answers}
    write_example_answers(folder, task, test, ordered)


def write_example_answers(folder: Path, task: Task, examples: Sequence[Any], answers: Mapping[str, Sequence[str]]) -> None:
    """Write `examples.json`: test examples on which the models' answers differ, then others; the full model is the first."""
    by_example = list(zip(*answers.values(), strict=True))
    questions = []
    for row in Answers.rows_to_show(by_example):
        example = examples[row]
        images = {image.key: image for pair in task.pairs([example]) for image in pair.images}
        thumbnails = [_thumbnail_url(image) for image in images.values()]
        questions.append(Question(task.question(example), task.reference(example), thumbnails))
    write_json(folder / EXAMPLES_FILE, dataclasses.asdict(Answers.from_models(list(answers), questions, by_example)))


def read_example_answers(folder: Path) -> Answers | None:
    """Return what `write_example_answers` wrote, None without a file."""
    path = folder / EXAMPLES_FILE
    if not path.is_file():
        return None
    record = read_json(path)
    with explain_damage(path, "remove it for a report without examples"):
        return build(Answers, record)


def _thumbnail_url(source: ImageSource) -> str:
    """Return a small image as a `data:` URL, since a report is one file, which can be sent."""
    image = source.open()
    buffer = io.BytesIO()
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    image.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def percent(share: float) -> str:
    """Return a share, 0..1, in percent: 0.123 becomes `12.3`."""
    return f"{100 * share:.1f}"


def _milliseconds(spread: Sequence[float]) -> str:
    return "{} ({}..{})".format(*(f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in spread))


def _ratio(values: Sequence[float]) -> str:
    return "{:.2f} ({:.2f}..{:.2f})".format(*values)


def _value_at(record: Any, field: str) -> Any:
    """Return a field such as `loss` or `numbers.recall`; None if the record does not have it."""
    for name in field.split("."):
        record = record.get(name) if isinstance(record, Mapping) else None
    return record


NOT_MEASURED = "-"

TABLE_LINES: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("{metric} on test, %", "score", percent),
    ("  its 95 % interval", "interval", lambda bounds: "..".join(map(percent, bounds))),
    *((f"{name}{{among}}, %", f"numbers.{name}", percent) for name in HEADLINE_NUMBERS),
    ("acc norm, %", "others.acc_norm", percent),
    ("loss, nats", "loss", "{:.4f}".format),
    ("perplexity", "perplexity", "{:,.2f}".format),
    ("trainable parameters", "trainable_parameters", lambda count: f"{count:,}" if count else NOT_MEASURED),
    ("parameters", "parameters", "{:,}".format),
    ("bytes of the weights", "weight_bytes", "{:,}".format),
    ("MACs an example, M", "macs", lambda macs: f"{macs / 1e6:,.3f}"),
    ("MACs saved, %", "macs_saved", lambda share: f"{100 * share:.2f}"),
    ("KV cache, bytes a token", "kv_bytes", "{:,}".format),
    ("latency, ms", "latency_ms", _milliseconds),
    ("times as fast", "speedup", _ratio),
    ("first token, ms", "prefill_ms", _milliseconds),
    ("  first token, times as fast", "prefill_speedup", _ratio),
    ("further tokens, ms", "decode_ms", _milliseconds),
    ("  further tokens, times as fast", "decode_speedup", _ratio),
    ("skipped layers", "skipped_layers", lambda names: ", ".join(names) or "none"),
)
"""Heading, field of a model's record, and format of each line of a table. Lines that no record has are left out."""

RELATIVE_NOTE = (
    "MACs saved and times as fast (ratio of the median times) are relative to the baseline. In brackets: quartiles of "
    "times, 95 % interval of times as fast. Models of the same layers are timed once."
)


def results_table(models: Sequence[Mapping[str, Any]], title: str = "", notes: Sequence[str] = ()) -> Table:
    """Return the table of models, given as the records of any command hold them."""
    flat: list[dict[str, Any]] = []
    for model in models:
        evaluation = model.get("evaluation") or model
        evaluated = {"score": evaluation.get("metric")} | {name: evaluation.get(name) for name in ("metric_name", "numbers")}
        shown = {**evaluated, **model}
        shown["perplexity"] = shown.get("perplexity") or _value_at(shown, "numbers.perplexity")
        shown["interval"] = (model["low"], model["high"]) if "low" in model else None
        flat.append(shown)
    numbers: dict[str, float] = next((model["numbers"] for model in flat if model.get("numbers")), {})
    metric = next((model["metric_name"] for model in flat if model.get("metric_name")), "metric").replace("_", " ")
    among = f" among {numbers['ranked_images']:.0f} images" if "ranked_images" in numbers else ""
    rows = []
    for heading, field, text in TABLE_LINES:
        values = [_value_at(model, field) for model in flat]
        cells = [NOT_MEASURED if value is None else text(value) for value in values]
        if any(cell != NOT_MEASURED for cell in cells):
            rows.append((heading.format(metric=metric, among=among), *cells))
    return Table(("", *(MODEL_TITLES.get(model["name"], model["name"]) for model in flat)), tuple(rows), title, tuple(notes))


def subnet_report(
    rows: Mapping[str, TunedModelResult], problem: ProblemConfig, done: str, subnet: AdaptedModel
) -> RunReport:
    """Return the report of a run that fine-tuned, with its conclusion below the table."""
    tested = rows[SUBNET]
    evaluation = rows[SUBNET].evaluation
    assert evaluation is not None
    notes = [RELATIVE_NOTE]
    shipped = " and ".join(MODEL_TITLES[name] for name in MODEL_TITLES if name in rows and rows[name].from_package)
    if shipped:
        notes.append(f"{shipped.capitalize()}: trained weights from the package.")
    title = f"{evaluation.examples:,} test examples of {problem.task}, {problem.data_root or 'bundled data'}"
    ordered = [rows[name].record() for name in MODEL_TITLES if name in rows]
    return RunReport(
        title=f"{problem.model} on {problem.task}, {done}",
        facts={
            "skips": ", ".join(tested.skipped_layers) or "nothing",
            f"{evaluation.metric_name.replace('_', ' ')} on test, %": f"{100 * evaluation.metric:.2f}",
            "MACs saved, %": percent(tested.macs_saved),
        },
        architecture=Architecture.from_layers(subnet.backbone.vlp.layers),
        mask=list(tested.mask),
        table=results_table(ordered, title, (*notes, conclusion(rows))),
    )


def conclusion(rows: Mapping[str, TunedModelResult]) -> str:
    """Return a sentence with the skipped layers, MACs saved, speed-up and score."""
    subnet = rows[SUBNET]
    evaluation = subnet.evaluation
    saved = 100 * subnet.macs_saved
    assert evaluation is not None
    what = f"Skipping {', '.join(subnet.skipped_layers) or 'nothing'}"
    # A skipped layer that is smaller than the adapters of the others saves nothing.
    what += f" saves {saved:.2f} %" if saved >= 0 else f" adds {-saved:.2f} %"
    what += " of the baseline's MACs"
    if subnet.speedup is not None:
        numbers = "{:.2f} ({:.2f} to {:.2f})".format(*subnet.speedup)
        if subnet.speedup.is_measurable:
            what += f" and runs {numbers} times as fast as the baseline"
        else:
            what += f" and is not measurably faster than the baseline: {numbers} times as fast"
    what += f"; it scores {100 * evaluation.metric:.1f} % {evaluation.metric_name.replace('_', ' ')} on test"
    reference = next((rows[name] for name in (FULL_MODEL, BASELINE) if name in rows and rows[name].evaluation), None)
    if reference is not None and reference.evaluation is not None:
        differences = np.array(evaluation.metrics) - np.array(reference.evaluation.metrics)
        low, high = (100 * value for value in difference_interval(differences))
        what += f" against {100 * reference.metric:.1f} % for the {MODEL_TITLES[reference.name]} "
        what += f"(95 % interval of the difference: {low:+.1f} to {high:+.1f} points)"
    return f"{what}."


def recorded_command(settings: Any) -> dict[str, Any]:
    """Return the settings of a command as its record keeps them: with every module that was imported."""
    return {**settings_dict(settings), "plugins": list(imported_plugins())}


def limit_test(splits: Splits[Any], task: Task, count: int | None) -> Splits[Any]:
    """Return the splits with some of the test examples only; None keeps all."""
    return splits if count is None else dataclasses.replace(splits, test=shuffled(task, splits.test, count))


def command_record(
    settings: Any, rows: Mapping[str, TunedModelResult], splits: Splits[Any], report: RunReport
) -> dict[str, Any]:
    """Return the record of a command that fine-tuned, as JSON values."""
    return {
        "settings": recorded_command(settings),
        "models": [row.record() for row in rows.values()],
        "left_out": len(splits.left_out),
        "report": report.record(),
    }


def finish_subnet_run(
    run: Any,
    folder: Path,
    subnet: AdaptedModel,
    info: Mapping[str, Any],
    record: Mapping[str, Any],
    name: str,
    artifacts: Sequence[str] = (),
) -> None:
    """Save the subnet and the record `name`, remove the checkpoints, and add the files and `artifacts` to Sacred's run.

    `info` are JSON values that describe how the subnet was made; `record` is what `command_record` returns.
    """
    path = save(subnet, folder, info, record, name)  # the record last: a run with a record is complete
    for checkpoint in folder.glob("*.pt"):  # of trainings, for `resume`
        checkpoint.unlink()
    for each in (SUBNET_FILE, *artifacts, name):
        run.add_artifact(folder / each)
    print(f"record: {path}, adapters: {folder / SUBNET_FILE}")
