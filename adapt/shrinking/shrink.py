"""Remove layers from a transformers model, repair and train what is left: `shrink` returns the smaller model in memory."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from das_gym.adapt.card import display_name, source_front_matter
from das_gym.adapt.settings import SAVED_DTYPES
from das_gym.adapt.shrinking.checks import (
    as_vlm,
    check_examples,
    check_recovery,
    check_verification_memory,
    processor_folder,
    weights_folder,
    why_not_removable,
)
from das_gym.adapt.shrinking.measuring import (
    CONTROL,
    FULL,
    RECOVERED,
    SHRUNK,
    Measured,
    Scored,
    measure,
    score_once,
)
from das_gym.adapt.shrinking.recovery import Teacher, make_teacher, merge_into_copies, recover_student, training_rows
from das_gym.adapt.shrinking.repairing import repaired_copy
from das_gym.adapt.shrinking.report import shrunk_card
from das_gym.adapt.shrinking.saving import new_folder, round_parameters, save, saved_dtype
from das_gym.adapt.shrinking.selecting import SELECTION_EXAMPLES, Selection, select
from das_gym.adapt.shrinking.settings import (
    CHECKPOINT,
    CONTROL_CHECKPOINT,
    LINEAR,
    SCORED,
    TEACHER_ANSWERS,
    RecoveryConfig,
)
from das_gym.adapt.shrinking.verifying import Probes, Verification, has_remote_code, verify
from das_gym.adapt.training import Log

from das_gym.commands.settings import build
from das_gym.files import claim_folder, write_text
from das_gym.models.random_states import kept_random_states
from das_gym.models.transformers.inserted_adapters import full_model_with_adapters, has_adapters
from das_gym.models.transformers.layer_removal import pruned_copy
from das_gym.models.transformers.loading import auto_class, source_dtype
from das_gym.models.transformers.model import VLM
from das_gym.names import check_names
from das_gym.problem.costs import Costs
from das_gym.problem.evaluation import Evaluation, evaluate_in_words
from das_gym.problem.loading import AdaptedModel, example_costs, shuffled
from das_gym.problem.mask_space import skipped_names
from das_gym.problem.problem import Problem
from das_gym.processes import run_on_main_process
from das_gym.summaries import Summary

COMPUTE_SETTINGS = (
    "save_every",
    "micro_batch_size",
    "gradient_checkpointing",
    "encoder_cache_gib",
    "dataloader_num_workers",
)
"""Settings of recovery that change its result by rounding only: a folder can be resumed with others."""


@dataclass(eq=False, repr=False)
class Shrunk(Summary):
    """A smaller model in memory, with what made it. Weights that did not change are shared with the full model.

    Attributes:
        vlm: The smaller model; `model` is that of transformers. Its parameters are rounded to what `dtype` stores.
        problem: The problem of the full model.
        mask: (n_units,) bool, True = removed.
        recovery: How it was recovered.
        dtype: Number format that it is saved in.
        trained_parameters: Number of parameters that training updated; 0 without training.
        selection: Why the model before or after its training was taken; None where nothing was trained.
        test: The test examples of `evaluate` and `measure`.
        metric: Score of generated answers, a key of `METRICS`; None is the task's own.
        folder: Keeps the scores of `measure`, and the checkpoint of its control. None keeps nothing.
        teacher: The full model's states, for a control; None without training.
        trained_alike: The settings of training, for a control; they differ from `recovery` if training did not help.
    """

    vlm: VLM
    problem: Problem
    mask: np.ndarray
    recovery: RecoveryConfig
    dtype: torch.dtype
    trained_parameters: int
    selection: Selection | None
    test: Sequence[Any]
    metric: str | None = None
    folder: Path | None = None
    teacher: Teacher | None = None
    trained_alike: RecoveryConfig | None = None

    @property
    def model(self) -> Any:
        """The smaller model of transformers."""
        return self.vlm.model

    @property
    def full(self) -> VLM:
        """The full model."""
        return as_vlm(self.problem)

    @property
    def source_dtype(self) -> torch.dtype:
        """Number format of the full model's weights, in their folder or in memory."""
        return weights_dtype(self.problem)

    @property
    def data(self) -> str:
        """The test examples in words."""
        config = self.problem.backbone.origin.config
        if config is None:
            return f"{len(self.test):,} test examples"
        what = "the bundled data" if config.data_root is None else Path(config.data_root).name
        return f"{len(self.test):,} test examples of {what}"

    def facts(self) -> dict[str, str]:
        """Return what is left and how it was recovered, in words, by name."""
        parameters, before = (sum(p.numel() for p in vlm.model.parameters()) for vlm in (self.vlm, self.full))
        return {
            "model": type(self.model).__name__,
            "removed": ", ".join(skipped_names(self.problem.layer_names, self.mask)) or "nothing",
            "parameters": f"{parameters:,} of {before:,}",
            "recovery": self.recovery.recover,
            "saved in": str(self.dtype).removeprefix("torch."),
        }

    def evaluate(self, rows: Any = None) -> Evaluation:
        """Return score with its 95 % interval, and loss, on the test rows of the problem, or on given `rows`.

        Args:
            rows: A `datasets.Dataset` or a list of dicts, as `Problem.from_model` takes them; None is the test rows.
        """
        examples = self.test if rows is None else self.problem.examples_of(rows)
        return cast(Evaluation, evaluate_in_words(self.vlm, self.problem.task, examples, "smaller model", self.metric))

    def measure(self, control: bool | None = False) -> Measured:
        """Measure quality, costs and latency of the full model, the one without repair, and this one, on the test rows.

        Args:
            control: Whether to train the full model in the same way, for a fair comparison. None does so if this model has a
                higher score or a lower loss than the full model.
        """
        shrunk = pruned_copy(self.full, self.mask)
        round_parameters(shrunk.model, self.dtype)  # as a folder would store it
        models = {FULL: self.full, SHRUNK: shrunk}
        if self.recovery.recover != "none":
            models[RECOVERED] = self.vlm
        scored = {name: self._score(vlm, f"{name} model") for name, vlm in models.items()}
        deleted = self.deleted_costs()
        costs = {FULL: deleted}
        if has_adapters(self.model):
            costs[RECOVERED] = self._costs_of(full_model_with_adapters(self.full, self.vlm, self.mask))
        formats = {name: self.source_dtype if name == FULL else self.dtype for name in models}
        measured = measure(models, scored, costs, self.mask, self.problem.task, self.test, formats, self.metric)
        if wants_control(control, measured, self.trained_alike):
            return cast(Measured, self.add_control(measured))
        return measured

    def add_control(self, measured: Measured | None) -> Measured | None:
        """Return results with those of the full model, trained alike. Every process trains; the main one has results."""
        assert self.trained_alike is not None
        control = pruned_copy(self.full, np.zeros(len(self.full.layers), bool))
        checkpoint = None if self.folder is None else self.folder / CONTROL_CHECKPOINT
        with kept_random_states(control.model):
            trained = recover_student(
                control, self.problem, self.trained_alike, checkpoint, self.teacher, title="training the control"
            )
        if measured is None:
            return None
        merge_into_copies(control, self.full, self.trained_alike, trained)
        round_parameters(control.model, self.dtype)
        scored = {FULL: measured.scored[FULL], CONTROL: self._score(control, CONTROL), **measured.scored}
        return replace(measured, scored=scored)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        measured: Measured | None = None,
        made_by: Sequence[str] = (),
        names_dtype: bool = False,
        on_verified: Callable[[Verification], None] | None = None,
    ) -> Verification:
        """Write a folder that `from_pretrained` of transformers loads, and verify it in a fresh process.

        Args:
            folder: A new folder. It gets its name last: an interrupted or failed save leaves nothing.
            measured: What `measure` returned, for the model card; None leaves the table out.
            made_by: Further paragraphs of the card, such as where the mask came from.
            names_dtype: Whether config.json names the saved number format, not the source's.
            on_verified: Called when the folder is complete, before it gets its name.

        Returns:
            How far the folder's model agrees with this one.

        Raises:
            VerificationError: What transformers loads computes something else.
            ValueError: The folder exists, or cannot be written.
        """
        shrunk = [] if measured is None else [self.full]
        with new_folder(Path(folder)) as part, source_folders(self.problem) as (source, processor):
            save(self.model, part, source, processor, self.dtype, has_remote_code(self.full), names_dtype)
            probes = Probes.from_examples(self.full, self.problem.task, self.test)
            verified = verify(part, self.vlm, self.mask, probes, self.dtype, shrunk)
            front = source_front_matter(source, auto_class(self.full.model.config).__name__, ("pruned",))
            card = shrunk_card(self, model_name(self.problem), front, verified, measured, made_by, self.data)
            write_text(part / "README.md", card)
            if on_verified is not None:
                on_verified(verified)
        return verified

    def deleted_costs(self) -> Costs:
        """Return the costs of masks whose units are deleted, whatever replaced them when they were searched."""
        if self.problem.scoring.skip != LINEAR:
            return self.problem.costs
        return self._costs_of(VLM(self.full.model, self.full.unit_kind, self.full.capabilities))

    def _costs_of(self, vlm: VLM) -> Costs:
        backbone = replace(self.problem.backbone, vlp=vlm)
        return example_costs(AdaptedModel(backbone, self.problem.head, self.problem.task), self.problem.splits)

    def _score(self, vlm: VLM, title: str) -> Scored:
        kept = None if self.folder is None else self.folder / SCORED
        return score_once(kept, vlm, self.problem.task, self.test, title, self.metric)


def shrink(
    problem: Problem,
    mask: Any,
    recover: str = "lora",
    *,
    save_dtype: str = "auto",
    test_examples: int | None = None,
    metric: str | None = None,
    folder: str | Path | None = None,
    log: Log | None = None,
    **settings: Any,
) -> Shrunk:
    """Remove the layers of a mask from a transformers model, and recover what is left. The problem stays as it is.

    With training, the trained model is compared with the one before its training on reward examples, and the better of the
    two is returned; see `Shrunk.selection`.

    Args:
        problem: Of a transformers model.
        mask: (n_units,) bool or 0 and 1, True = removed, as a search finds it.
        recover: How to recover: `lora`, `full`, `adapters`, `linear`, `linear+lora`, `refit`, `refit+lora`, `none`, or
            another method of `das_gym.adapt.methods`.
        save_dtype: Number format that the model will be saved in: `float32`, `bfloat16`, `float16`, or `auto`, that of the
            full model's weights.
        test_examples: Number of test examples of `Shrunk.evaluate` and `measure`; None is all.
        metric: Score of generated answers, see `das_gym.register_metric`. None is the task's own.
        folder: Keeps checkpoints, from which a call with the same arguments continues. None keeps nothing.
        log: Called with name, value and step of each metric of the training.
        settings: Further fields of `das_gym.adapt.shrinking.settings.RecoveryConfig`: `steps`, `seed`, `batch_size`,
            `learning_rate`, `rank`, ...

    Returns:
        The smaller model.

    Raises:
        ValueError: A setting is not allowed, the model cannot generate without these layers, or `folder` holds the work of
            another model, mask or setting.
        TypeError: The problem is not of a transformers model.

    Example:
        >>> import das_gym
        >>> problem = das_gym.Problem.from_pretrained("VLM", task="answering")
        >>> small = shrink(problem, [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], recover="none")
        >>> small.model.config.text_config.num_hidden_layers
        11
    """
    full = as_vlm(problem)
    problem.backbone.origin.check_unchanged()
    config = build(RecoveryConfig, {"recover": recover, **settings}).for_model(full)
    check_names([save_dtype], SAVED_DTYPES, "save_dtype", own=True)
    removed = full.check_mask(mask)
    check_recovery(config, full)
    check_verification_memory(full)
    train = problem.splits.train
    if config.recover != "none" and len(train):
        check_examples(problem.task, [train[row] for row in training_rows(len(train), config)])
    if reason := why_not_removable(problem, removed):
        raise ValueError(reason)
    kept = None if folder is None else Path(folder)
    if kept is not None:
        own = {name: value for name, value in asdict(config).items() if name not in COMPUTE_SETTINGS}
        mask_bits = removed.astype(int).tolist()
        claim_folder(kept, "shrink", {"model": problem.backbone.base, "mask": mask_bits, "save_dtype": save_dtype, **own})
    dtype = saved_dtype(weights_dtype(problem), full.model.dtype, save_dtype)
    test = shuffled(problem.task, problem.splits.test, test_examples)
    with kept_random_states(full.model):
        return recovered(problem, removed, config, dtype, test, metric, kept, log)


def recovered(
    problem: Problem,
    mask: np.ndarray,
    config: RecoveryConfig,
    dtype: torch.dtype,
    test: Sequence[Any],
    metric: str | None,
    folder: Path | None,
    log: Log | None,
) -> Shrunk:
    """Repair and train a model without the layers of a mask; see `shrink`. Every process of a distributed run calls it."""
    full = as_vlm(problem)
    task = problem.task
    untrained = repaired_copy(problem, mask, config)
    if config.method is None or not len(problem.splits.train):
        round_parameters(untrained.model, dtype)
        return Shrunk(untrained, problem, mask, config, dtype, 0, None, test, metric, folder)
    vlm = repaired_copy(problem, mask, config)
    round_parameters(untrained.model, dtype)
    reward = shuffled(task, problem.splits.reward, SELECTION_EXAMPLES)
    scores = None if folder is None else folder / SCORED
    before = score_once(scores, untrained, task, reward, "reward examples, before training", metric)
    teacher = make_teacher(full, task, problem.splits.train, config, folder and folder / TEACHER_ANSWERS)
    trained = recover_student(vlm, problem, config, folder and folder / CHECKPOINT, teacher, log)
    merge_into_copies(vlm, full, config, trained)
    round_parameters(vlm.model, dtype)  # so that what is measured is what is saved
    after = run_on_main_process(lambda: score_once(scores, vlm, task, reward, "reward examples, after training", metric))
    selection = select(before, after)
    count = sum(p.numel() for p in trained)
    small = Shrunk(vlm, problem, mask, config, dtype, count, selection, test, metric, folder, teacher, config)
    if selection.trained_is_better:
        return small
    without = replace(config, recover=config.closed_form or "none")
    return replace(small, vlm=untrained, recovery=without, trained_parameters=0)


def wants_control(control: bool | None, measured: Measured | None, trained_alike: RecoveryConfig | None) -> bool:
    """Return True if the full model is to be trained, too: with `control`, or if that is None and recovery wins."""

    def wins() -> bool:
        if measured is None or trained_alike is None or control is not None:
            return bool(control)
        full = measured.rows[FULL]
        return measured.final.score > full.score or measured.final.loss < full.loss

    return run_on_main_process(wins)


def weights_dtype(problem: Problem) -> torch.dtype:
    """Return the number format of a problem's weights: of their folder, or in memory."""
    folder = problem.backbone.origin.folder
    return as_vlm(problem).model.dtype if folder is None else source_dtype(folder)


def model_name(problem: Problem) -> str:
    """Return the name of a problem's model, for cards: that of its folder, or what a live model was loaded from."""
    config = problem.backbone.origin.config
    if config is not None:
        return display_name(weights_folder(config))
    model = as_vlm(problem).model
    return display_name(Path(model.config._name_or_path or type(model).__name__))


@contextmanager
def source_folders(problem: Problem) -> Iterator[tuple[Path, Path]]:
    """Yield the folders of configuration and processor: those of a problem's model, or one with copies of live objects."""
    config = problem.backbone.origin.config
    if config is not None:
        yield weights_folder(config), processor_folder(config)
        return
    full = as_vlm(problem)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        full.model.config.save_pretrained(folder)
        if full.model.generation_config is not None:
            full.model.generation_config.save_pretrained(folder)
        full.source_processor.save_pretrained(folder)
        yield folder, folder
