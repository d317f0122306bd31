"""The record of a run that shrank a model, and the files in its folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from das_gym.adapt.report import recorded_command
from das_gym.adapt.shrinking.measuring import Measured
from das_gym.adapt.shrinking.settings import (
    CHECKPOINT,
    CONTROL_CHECKPOINT,
    PENDING_RECORD,
    RECORD,
    SCORED,
    TEACHER_ANSWERS,
    ShrinkSettings,
)
from das_gym.adapt.shrinking.shrink import Shrunk
from das_gym.adapt.shrinking.verifying import Verification

from das_gym.commands.commandline import rerun_command
from das_gym.commands.runs import library_versions
from das_gym.commands.settings import settings_dict
from das_gym.drawing.report import RunReport
from das_gym.files import INPUTS
from das_gym.models.transformers.layer_removal import draw_mask
from das_gym.models.transformers.stack import IMAGE
from das_gym.models.transformers.units import ATTENTION, MLP
from das_gym.problem.budget import BUDGET_SETTINGS
from das_gym.problem.config import ProblemConfig, recorded_settings


def shrink_record(
    small: Shrunk,
    measured: Measured,
    verified: Verification,
    report: RunReport,
    settings: ShrinkSettings,
    problem: ProblemConfig,
    source: Path,
    out: Path,
    command: str,
) -> dict[str, Any]:
    """Return the record of a run, as JSON values.

    Args:
        small: The smaller model.
        measured: Its results.
        verified: How its folder was verified.
        report: What `adapt report` shows of the run.
        settings: Those of the command.
        problem: Model and data; a search run brings its own.
        source: The folder of the full model.
        out: The folder of the smaller model.
        command: What repeats the run, see `repeat_command`.
    """
    full = small.full
    task: Any = small.problem.task
    parts = full.removed_parts(small.mask).items()
    answers = []
    for number, example in enumerate(small.test):
        texts = {name: each.texts[number] for name, each in measured.scored.items()}
        answers.append({"key": example.key, "question": task.question(example), **texts})
    difference, low, high = measured.difference()
    return {
        "settings": recorded_command(settings),
        "problem": recorded_settings(asdict(problem)),
        "model": small.problem.backbone.base,
        "source": str(source),
        "out": str(out.absolute()),
        "mask": small.mask.astype(int).tolist(),
        "layers": list(small.problem.layer_names),
        "deleted": full.removed_layers(small.mask),
        "without_attention": [place for place, kind in parts if kind == ATTENTION],
        "without_mlp": [place for place, kind in parts if kind == MLP],
        "deleted_of_vision": full.removed_layers(small.mask, IMAGE),
        "drawn": draw_mask(full, small.mask),
        "dtype": str(small.dtype).removeprefix("torch."),
        "metric": measured.metric,
        "models": [row.record() for row in measured.rows.values()],
        "control": measured.control and asdict(measured.control),
        "difference": {"score": difference, "low": low, "high": high, "reference": measured.reference},
        "loss_regained": measured.loss_regained(),
        "selection": small.selection and small.selection.record(),
        "verified": asdict(verified),
        "answers": answers,
        "left_out": len(small.problem.splits.left_out),
        "report": report.record(),
        "command": command,
        "versions": library_versions(),
    }


def finish_saved(folder: Path) -> None:
    """Rename the record of a run whose model is saved to its final name, and remove the checkpoints."""
    if (folder / PENDING_RECORD).is_file():
        (folder / PENDING_RECORD).replace(folder / RECORD)
    for name in (CHECKPOINT, CONTROL_CHECKPOINT, SCORED, TEACHER_ANSWERS, INPUTS):
        (folder / name).unlink(missing_ok=True)


def repeat_command(folder: Path, problem: Mapping[str, Any], mask: Sequence[int]) -> str:
    """Return the command that repeats a run with its mask."""
    found_by = dict.fromkeys((*BUDGET_SETTINGS, "search_run", "point", "search"))
    changes = {"problem": dict(problem), **found_by, "mask": json.dumps(list(mask), separators=(",", ":"))}
    return rerun_command(folder, "adapt shrink", ShrinkSettings, settings_dict(ShrinkSettings()), **changes)
