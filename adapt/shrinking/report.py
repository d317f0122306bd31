"""Report what shrinking did: the table of models, a conclusion, and the card of the saved folder."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from das_gym.adapt.card import TRUST_ARGUMENT, loading_example, model_card
from das_gym.adapt.report import RELATIVE_NOTE, percent, results_table
from das_gym.adapt.shrinking.measuring import CONTROL, FULL, Measured, Quality, ShrunkModelResult
from das_gym.adapt.shrinking.settings import LINEAR, REFIT
from das_gym.adapt.shrinking.verifying import Verification, has_remote_code

from das_gym.drawing.architecture import Architecture
from das_gym.drawing.report import RunReport, Table
from das_gym.models.source_files import MAX_LEGAL_TEXT
from das_gym.models.transformers.layer_removal import draw_mask
from das_gym.models.transformers.loading import auto_class
from das_gym.models.transformers.stack import IMAGE
from das_gym.models.transformers.units import ATTENTION, MLP
from das_gym.names import escape_control_chars
from das_gym.problem.mask_space import skipped_names

if TYPE_CHECKING:
    from das_gym.adapt.shrinking.shrink import Shrunk

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


def shrink_report(small: "Shrunk", measured: Measured, source: Path, out: Path, data: str) -> RunReport:
    """Return the report of a run that shrank the model in `source`, saved in `out`, scored on `data` in words."""
    removed = skipped_names(small.problem.layer_names, small.mask)
    references = f"full model {100 * measured.rows[FULL].score:.2f}"
    if measured.control is not None:
        references += f", {CONTROL} {100 * measured.control.score:.2f}"
    return RunReport(
        title=f"{source.name} shrunk: {len(removed)} of {len(small.mask)} units removed",
        facts={
            "skips": ", ".join(removed) or "nothing",
            f"{measured.metric.replace('_', ' ')} on test, %": f"{100 * measured.final.score:.2f} ({references})",
            "MACs saved, %": percent(measured.final.macs_saved),
            "out": str(out.absolute()),
        },
        architecture=Architecture.from_layers(small.full.layers, small.deleted_costs().macs_cost),
        mask=small.mask.astype(int).tolist(),
        table=measured_table(measured, data),
    )


def print_left_out(paths: Sequence[Path]) -> None:
    """Print which files of a model's folder are not copied, if any."""
    if paths:
        names = ", ".join(escape_control_chars(str(path)) for path in paths)
        print(f"not copied: {names} (a link, or not a plain text of at most {MAX_LEGAL_TEXT // 1024} KB)")


def describe_layers(small: "Shrunk") -> str:
    """Return a line that draws which layers are left, with its signs."""
    drawn = draw_mask(small.full, small.mask)
    return drawn + (" (A: attention alone is left, M: MLP alone)" if set(drawn) & {"A", "M"} else "")


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


def shrunk_card(
    small: "Shrunk",
    name: str,
    front: str,
    verified: Verification,
    measured: Measured | None,
    made_by: Sequence[str],
    data: str,
) -> str:
    """Return the text of the model card of a smaller model.

    Args:
        small: The smaller model.
        name: That of the full model.
        front: The first lines of the card, of `source_front_matter`.
        verified: How it was verified.
        measured: Results of the table; None leaves it out.
        made_by: Paragraphs on how it was made, such as the command.
        data: What it was scored on, in words.
    """
    full = small.full
    recovery = small.recovery
    auto = auto_class(full.model.config).__name__
    layers = len(full.stack.layers)
    parts = full.removed_parts(small.mask)
    removed = [("decoder layers", full.removed_layers(small.mask), layers)]
    for kind, what in ((ATTENTION, "attentions"), (MLP, "MLPs")):
        removed.append((f"{what} of decoder layers", [place for place, part in parts.items() if part == kind], layers))
    if full.tower is not None:
        tower_layers = len(full.tower.stack.layers)
        removed.append(("layers of its vision tower", full.removed_layers(small.mask, IMAGE), tower_layers))
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
        examples = len(small.problem.splits.train)
        training = (
            f"{repair} Then {recovery.method.title} trained {small.trained_parameters:,} parameters for "
            f"{recovery.num_steps} steps of {min(recovery.batch_size, examples)} examples, on {examples:,} training "
            f"examples. The loss is {recovery.distillation:g} KL(full || this) + {recovery.cross_entropy:g} cross-entropy."
        ).strip()
        compared = "recovered model in memory, run layer by layer"
    how = "with greedy decoding" if small.problem.task.generates else "by likelihood"
    scored = "" if measured is None else f"Scored on {data} {how}. Other abilities of the model were not measured. "
    return model_card(
        front,
        f"{name}, without {counts}",
        [
            f"Made from `{name}` by das_gym: {which} (counted from 0) were deleted. {training}",
            *([small.selection.reason] if small.selection is not None else []),
            *made_by,
            *([ADDED_CODE] if adds_code else []),
        ],
        loading_example(auto, TRUST_ARGUMENT if adds_code else trusted, trusted),
        None if measured is None else measured_table(measured),
        f"{scored}Checked when it was saved: loaded by transformers alone, its logits equal those of the {compared} "
        f"(relative difference {verified.logits_difference:.2g} or less), and so does the text that it generates "
        f"{', '.join(verified.ways)}.",
    )
