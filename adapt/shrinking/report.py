"""Report what shrinking did: the table of models, a conclusion, and the card of the saved folder."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from das_gym.adapt.card import TRUST_ARGUMENT, display_name, loading_example, model_card, source_front_matter
from das_gym.adapt.report import RELATIVE_NOTE, percent, results_table
from das_gym.adapt.shrinking.measuring import CONTROL, FULL, Measured, Quality, ShrunkModelResult
from das_gym.adapt.shrinking.settings import LINEAR, REFIT
from das_gym.adapt.shrinking.verifying import Verification, has_remote_code

from das_gym.drawing.architecture import Architecture
from das_gym.drawing.report import RunReport, Table
from das_gym.models.source_files import MAX_LEGAL_TEXT
from das_gym.models.transformers.loading import auto_class
from das_gym.models.transformers.stack import IMAGE
from das_gym.models.transformers.units import ATTENTION, MLP
from das_gym.names import escape_control_chars
from das_gym.problem.mask_space import skipped_names

if TYPE_CHECKING:
    from das_gym.adapt.shrinking.job import ShrinkJob

ADDED_CODE = (
    "The folder holds the code of its model, which is not one of transformers' own. Without `trust_remote_code=True`, "
    "loading fails on purpose (no file named model.safetensors): transformers' class would fill what it misses with noise."
)


def measured_table(measured: Measured, title: str = "") -> Table:
    """Return the table of all models, with the conclusion below it."""
    models = [{**row.record(), "metric_name": measured.metric} for row in measured.rows.values()]
    models[0]["name"] = "full model (baseline)"
    notes = [RELATIVE_NOTE]
    if measured.control is not None:
        models.insert(1, {"name": CONTROL, **asdict(measured.control)})
        notes.append("The control is the full model, trained like the recovered one.")
    return results_table(models, title, (*notes, conclusion(measured)))


def shrink_report(job: "ShrinkJob", measured: Measured) -> RunReport:
    """Return the report of a run that shrank a model."""
    removed = skipped_names(job.problem.layer_names, job.mask)
    references = f"full model {100 * measured.rows[FULL].score:.2f}"
    if measured.control is not None:
        references += f", {CONTROL} {100 * measured.control.score:.2f}"
    return RunReport(
        title=f"{job.source.name} shrunk: {len(removed)} of {len(job.mask)} units removed",
        facts={
            "skips": ", ".join(removed) or "nothing",
            f"{measured.metric.replace('_', ' ')} on test, %": f"{100 * measured.final.score:.2f} ({references})",
            "MACs saved, %": percent(measured.final.macs_saved),
            "out": str(job.out.absolute()),
        },
        architecture=Architecture.from_layers(job.full.layers, job.deleted.macs_cost),
        mask=job.mask.astype(int).tolist(),
        table=measured_table(measured, job.data),
    )


def print_left_out(paths: Sequence[Path]) -> None:
    """Print which files of a model's folder are not copied, if any."""
    if paths:
        names = ", ".join(escape_control_chars(str(path)) for path in paths)
        print(f"not copied: {names} (a link, or not a plain text of at most {MAX_LEGAL_TEXT // 1024} KB)")


def conclusion(measured: Measured) -> str:
    """Return a sentence on how the saved model's score compares, and how much of the loss recovery regained."""
    final = measured.final
    difference, low, high = (100 * value for value in measured.difference())
    against = f"the baseline's {_score(measured.rows[FULL])}"
    if measured.control is not None:
        against += f" and {_score(measured.control)} of the full model trained alike (the control)"
    # The better of baseline and control: a model that training alone improves as much was not helped by losing layers.
    than = "control" if measured.reference == CONTROL else "baseline"
    return (
        f"The {final.name} model scores {_score(final)} against {against}: {difference:+.1f} points compared with "
        f"the {than} (95 % interval {low:+.1f}..{high:+.1f}) on {len(measured.scored[FULL].scores):,} test examples"
        f"{_recovery(measured.loss_regained())}."
    )


def _score(model: Quality | ShrunkModelResult) -> str:
    perplexity = "" if model.perplexity is None else f" (perplexity {model.perplexity:,.2f})"
    return f"{percent(model.score)} %{perplexity}"


def _recovery(regained: float | None) -> str:
    if regained is None:
        return ""
    if regained < 0:
        return "; recovery increased the loss further"
    if regained > 1:
        return "; recovery removed the whole increase in loss, and the loss is below the baseline's"
    return f"; recovery removed {100 * regained:.0f} % of the increase in loss"


def shrunk_card(job: "ShrinkJob", measured: Measured, verified: Verification, parameters: int, command: str) -> str:
    """Return the text of the model card of a job that trained some parameters, 0 = none."""
    full = job.full
    recovery = job.recovery
    name = display_name(job.source)
    auto = auto_class(full.model.config).__name__
    layers = len(full.stack.layers)
    parts = full.removed_parts(job.mask)
    removed = [("decoder layers", full.removed_layers(job.mask), layers)]
    for kind, what in ((ATTENTION, "attentions"), (MLP, "MLPs")):
        removed.append((f"{what} of decoder layers", [place for place, part in parts.items() if part == kind], layers))
    if full.tower is not None:
        removed.append(("layers of its vision tower", full.removed_layers(job.mask, IMAGE), len(full.tower.stack.layers)))
    removed = [each for each in removed if each[1]]
    counts = ", ".join(f"{len(places)} of {count} {what}" for what, places, count in removed)
    which = ", ".join(f"{what} {', '.join(map(str, places))}" for what, places, _ in removed)
    adds_code = bool(parts) or recovery.adds_code
    trusted = TRUST_ARGUMENT if has_remote_code(full) else ""
    repair = {
        LINEAR: "Linear maps that were fitted in closed form replace them.",
        REFIT: "The MLPs before them were refitted in closed form.",
        None: "",
    }[recovery.closed_form]
    training = f"{repair} Nothing was trained.".strip()
    compared = f"full model with these layers {'skipped' if recovery.closed_form is None else 'repaired'}"
    if recovery.method is not None:
        examples = len(job.problem.splits.train)
        training = (
            f"{repair} Then {recovery.method.title} trained {parameters:,} parameters for {recovery.num_steps} steps of "
            f"{min(recovery.batch_size, examples)} examples, on {examples:,} training examples. The loss is "
            f"{recovery.distillation:g} KL(full || this) + {recovery.cross_entropy:g} cross-entropy."
        ).strip()
        compared = "recovered model in memory, run layer by layer"
    how = "with greedy decoding" if job.problem.task.generates else "by likelihood"
    return model_card(
        source_front_matter(job.source, auto, ("pruned",)),
        f"{name}, without {counts}",
        [
            f"Made from `{name}` by das_gym: {which} (counted from 0) were deleted ({job.origin}). {training}",
            *([job.selection.reason] if job.selection is not None else []),
            f"Command: `{command}`",
            *([ADDED_CODE] if adds_code else []),
        ],
        loading_example(auto, TRUST_ARGUMENT if adds_code else trusted, trusted),
        measured_table(measured),
        f"Scored on {job.data} {how}. Other abilities of the model were not measured. Checked when it was saved: "
        f"loaded by transformers alone, its logits equal those of the {compared} (relative difference "
        f"{verified.logits_difference:.2g} or less), and so does the text that it generates {', '.join(verified.ways)}.",
    )
