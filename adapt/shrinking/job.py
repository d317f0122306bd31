"""Shrink one model: remove layers, recover, save, verify in a fresh process, measure, and write card and record."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.adapt.choosing import Choice
from das_gym.adapt.report import recorded_command, write_example_answers
from das_gym.adapt.shrinking.checks import as_vlm, processor_folder, weights_folder
from das_gym.adapt.shrinking.measuring import CONTROL, FULL, RECOVERED, SHRUNK, Measured, Scored, measure, score_once
from das_gym.adapt.shrinking.recovery import Teacher, make_teacher, recover, temporarily_merged
from das_gym.adapt.shrinking.repairing import repaired_copy
from das_gym.adapt.shrinking.report import measured_table, shrink_report, shrunk_card
from das_gym.adapt.shrinking.saving import describe_dtype, new_folder, round_parameters, save, saved_dtype
from das_gym.adapt.shrinking.selecting import SELECTION_EXAMPLES, Selection, select
from das_gym.adapt.shrinking.settings import (
    CHECKPOINT,
    CONTROL_CHECKPOINT,
    LINEAR,
    PENDING_RECORD,
    RECORD,
    SCORED,
    TEACHER_ANSWERS,
    ShrinkSettings,
)
from das_gym.adapt.shrinking.verifying import Probes, Verification, has_remote_code, verify
from das_gym.adapt.training import Log

from das_gym.commands.commandline import rerun_command
from das_gym.commands.runs import library_versions
from das_gym.commands.settings import settings_dict
from das_gym.files import write_json, write_text
from das_gym.models.transformers.inserted_adapters import full_model_with_adapters, has_adapters
from das_gym.models.transformers.layer_removal import draw_mask, pruned_copy
from das_gym.models.transformers.loading import source_dtype
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.stack import IMAGE
from das_gym.models.transformers.units import ATTENTION, MLP
from das_gym.names import escape_control_chars
from das_gym.problem.budget import BUDGET_SETTINGS
from das_gym.problem.config import recorded_settings, warn_at_chance
from das_gym.problem.costs import Costs
from das_gym.problem.loading import AdaptedModel, example_costs, shuffled
from das_gym.problem.problem import Problem
from das_gym.processes import is_main_process, run_on_main_process


class ShrinkJob:
    """The work of `python -m adapt shrink` after its search. A run that is stopped resumes the training."""

    def __init__(self, settings: ShrinkSettings, choice: Choice, problem: Problem, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.problem = problem
        self.choice = choice
        self.full: VLM = as_vlm(self.problem)
        self.deleted = problem.costs  # of the model whose skipped units are deleted
        if choice.problem.skip == LINEAR:
            self.deleted = self._costs_of(VLM(self.full.model, self.full.unit_kind, self.full.capabilities))
        self.mask = self.choice.mask
        self.source = weights_folder(choice.problem)
        self.source_dtype = source_dtype(self.source)
        self.dtype = saved_dtype(self.source_dtype, self.full.model.dtype, settings.save_dtype)
        self.out = settings.out_folder(folder)
        self.recovery = settings.train  # of the saved model: without training if that made it worse
        self.selection: Selection | None = None
        self.test = shuffled(self.problem.task, self.problem.splits.test, settings.test_examples)
        root = choice.problem.data_root
        self.data = f"{len(self.test):,} test examples of {'the bundled data' if root is None else Path(root).name}"

    def run(self, log: Log) -> Measured | None:
        """Run the whole job, and print the report. Other processes than the main one only train, and return None."""
        if self.choice.remark:
            print(escape_control_chars(self.choice.remark))
        task = self.problem.task
        splits = self.problem.splits
        mask = self.mask
        # Before hours of recovery, which cannot help a model that answers by chance.
        scored = {FULL: self._score(self.full, f"{FULL} model")}
        warn_at_chance(self.choice.problem, task, self.test, scored[FULL].quality.score, "test")
        shrunk = pruned_copy(self.full, mask)
        round_parameters(shrunk.model, self.dtype)  # as a folder would store it
        final = repaired_copy(self.problem, mask, self.recovery)
        teacher = make_teacher(self.full, task, splits.train, self.recovery, self.folder / TEACHER_ANSWERS)
        untrained = self._untrained(shrunk)
        before = None if untrained is None else self._score_reward(untrained, "before training")
        trained = recover(final, self.problem, self.recovery, self.folder / CHECKPOINT, teacher, log)
        if not is_main_process():
            return self._with_control(None, teacher)
        models: dict[str, VLM] = {FULL: self.full, SHRUNK: shrunk}
        # Before `temporarily_merged`, which changes weights that the full model shares with the recovered one.
        scored[SHRUNK] = self._score(shrunk, f"{SHRUNK} model")
        probes = Probes.from_examples(self.full, task, self.test)
        # Card and record are written while the folder has its hidden name: a model that exists has both.
        with new_folder(self.out) as part:
            with temporarily_merged(final, self.full, self.recovery, trained, self.folder):
                round_parameters(final.model, self.dtype)  # so that what is measured is what is saved
                if before is not None:
                    self.selection = select(before, self._score_reward(final, "after training"))
                    print(self.selection.reason)
                if self.selection is None or self.selection.trained_is_better:
                    verified, recovered = self._save(part, final, probes, [shrunk])
            if untrained is not None and self.selection is not None and not self.selection.trained_is_better:
                self.recovery = replace(self.recovery, recover=self.recovery.closed_form or "none")
                final = untrained
                trained = []
                verified, recovered = self._save(part, final, probes, [shrunk])
            if recovered is not None:
                models[RECOVERED] = final
                scored[RECOVERED] = recovered
            measured = self._measure(models, scored)
            parameters = sum(p.numel() for p in trained)
            del shrunk, final, untrained, trained  # the control takes their memory
            models.clear()
            measured = self._with_control(measured, teacher) or measured
            record = self._record(measured, verified)
            write_text(part / "README.md", shrunk_card(self, measured, verified, parameters, record["command"]))
            write_example_answers(self.folder, task, self.test, {name: each.texts for name, each in measured.scored.items()})
            write_json(self.folder / PENDING_RECORD, record)
        # Rename the record last: if the run stops before that, resuming it only renames.
        finish_saved(self.folder)
        measured_table(measured, self.data).print()
        drawn = draw_mask(self.full, mask)
        signs = " (A: attention alone is left, M: MLP alone)" if set(drawn) & {"A", "M"} else ""
        print(f"layers: {drawn}{signs}")
        weights = describe_dtype(self.source_dtype, self.full.model.dtype, self.settings.save_dtype, "save_dtype")
        print(f"weights: {weights}")
        return measured

    def _save(self, folder: Path, vlm: VLM, probes: Probes, others: Sequence[VLM]) -> tuple[Verification, Scored | None]:
        """Save and verify a model, and score it unless it is only shrunk; `others` leave the GPU meanwhile."""
        processor = processor_folder(self.choice.problem)
        names_dtype = self.settings.save_dtype != "auto"
        save(vlm.model, folder, self.source, processor, self.dtype, has_remote_code(self.full), names_dtype)
        verified = verify(folder, vlm, self.mask, probes, self.dtype, others)
        is_recovered = self.recovery.recover != "none"
        return verified, self._score(vlm, f"{RECOVERED} model") if is_recovered else None

    def _untrained(self, shrunk: VLM) -> VLM | None:
        """Return what is saved if training does not help: the repaired model, or the shrunk one; None without training."""
        if self.recovery.method is None or not len(self.problem.splits.reward):
            return None
        if self.recovery.closed_form is None:
            return shrunk
        repaired = repaired_copy(self.problem, self.mask, self.recovery)
        round_parameters(repaired.model, self.dtype)
        return repaired

    def _costs_of(self, vlm: VLM) -> Costs:
        """Return the costs of the full model with other skip adapters than those that scored the search, or without any."""
        backbone = replace(self.problem.backbone, vlp=vlm)
        return example_costs(AdaptedModel(backbone, self.problem.head, self.problem.task), self.problem.splits)

    def _score(self, vlm: VLM, title: str) -> Scored:
        return score_once(self.folder / SCORED, vlm, self.problem.task, self.test, title, self.settings.metric)

    def _score_reward(self, vlm: VLM, title: str) -> Scored:
        task = self.problem.task
        examples = shuffled(task, self.problem.splits.reward, SELECTION_EXAMPLES)
        return score_once(self.folder / SCORED, vlm, task, examples, f"reward examples, {title}", self.settings.metric)

    def _measure(self, models: dict[str, VLM], scored: dict[str, Scored]) -> Measured:
        costs: dict[str, Costs] = {FULL: self.deleted}
        final = models.get(RECOVERED)
        if final is not None and has_adapters(final.model):
            costs[RECOVERED] = self._costs_of(full_model_with_adapters(self.full, final, self.mask))
        return measure(self, models, costs, scored)

    def _wants_control(self, measured: Measured | None) -> bool:
        """Return True if the full model is to be trained, too: with `control`, or if that is None and recovery wins."""
        if measured is None or self.recovery.method is None or self.settings.control is not None:
            return bool(self.settings.control)
        full = measured.rows[FULL]
        wins = measured.final.score > full.score or measured.final.loss < full.loss
        if wins:
            print("The recovered model is better than the full one. The full model is trained alike, as a control.")
        return wins

    def _with_control(self, measured: Measured | None, teacher: Teacher | None) -> Measured | None:
        """Train the full model, too, if the main process asks for it; only that process scores it and has `measured`."""
        if not run_on_main_process(lambda: self._wants_control(measured)):
            return measured
        control = pruned_copy(self.full, np.zeros(len(self.full.layers), bool))
        checkpoint = self.folder / CONTROL_CHECKPOINT
        trained = recover(control, self.problem, self.settings.train, checkpoint, teacher, title="training the control")
        if measured is None:
            return None
        with temporarily_merged(control, self.full, self.settings.train, trained, self.folder):
            round_parameters(control.model, self.dtype)
            scored = self._score(control, "control")
        return replace(measured, scored={FULL: measured.scored[FULL], CONTROL: scored, **measured.scored})

    @property
    def origin(self) -> str:
        """Where the mask comes from."""
        settings = self.settings
        if settings.point is not None:
            return f"point {settings.point} of the front of run {settings.search_run}"
        if settings.mask is not None:
            return "a mask that was given"
        return "found by a search" if settings.search_run is None else f"found by search run {settings.search_run}"

    def _record(self, measured: Measured, verified: Verification) -> dict[str, Any]:
        task: Any = self.problem.task
        mask = self.mask
        bits = mask.astype(int).tolist()
        parts = self.full.removed_parts(mask).items()
        answers = []
        for number, example in enumerate(self.test):
            texts = {name: each.texts[number] for name, each in measured.scored.items()}
            answers.append({"key": example.key, "question": task.question(example), **texts})
        difference, low, high = measured.difference()
        return {
            "settings": recorded_command(self.settings),
            "problem": recorded_settings(asdict(self.choice.problem)),
            "source": str(self.source),
            "out": str(self.out.absolute()),
            "mask": bits,
            "layers": list(self.problem.layer_names),
            "deleted": self.full.removed_layers(mask),
            "without_attention": [place for place, kind in parts if kind == ATTENTION],
            "without_mlp": [place for place, kind in parts if kind == MLP],
            "deleted_of_vision": self.full.removed_layers(mask, IMAGE),
            "drawn": draw_mask(self.full, mask),
            "dtype": str(self.dtype).removeprefix("torch."),
            "metric": measured.metric,
            "models": [row.record() for row in measured.rows.values()],
            "control": measured.control and asdict(measured.control),
            "difference": {"score": difference, "low": low, "high": high, "reference": measured.reference},
            "loss_regained": measured.loss_regained(),
            "selection": self.selection and self.selection.record(),
            "verified": asdict(verified),
            "answers": answers,
            "left_out": len(self.problem.splits.left_out),
            "report": shrink_report(self, measured).record(),
            "command": repeat_command(self.folder, asdict(self.choice.problem), bits),
            "versions": library_versions(),
        }


def finish_saved(folder: Path) -> None:
    """Rename the record of a run whose model is saved to its final name, and remove the checkpoints."""
    if (folder / PENDING_RECORD).is_file():
        (folder / PENDING_RECORD).replace(folder / RECORD)
    for name in (CHECKPOINT, CONTROL_CHECKPOINT, SCORED, TEACHER_ANSWERS):
        (folder / name).unlink(missing_ok=True)


def repeat_command(folder: Path, problem: Mapping[str, Any], mask: Sequence[int]) -> str:
    """Return the command that repeats a run with its mask."""
    found_by = dict.fromkeys((*BUDGET_SETTINGS, "search_run", "point", "search"))
    changes = {"problem": dict(problem), **found_by, "mask": json.dumps(list(mask), separators=(",", ":"))}
    return rerun_command(folder, "adapt shrink", ShrinkSettings, settings_dict(ShrinkSettings()), **changes)
