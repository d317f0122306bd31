"""The settings of `python -m adapt shrink`, those of its search, and the files in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from das_gym.adapt.choosing import Choice, ChoosingSettings, choose
from das_gym.adapt.shrink.recovery import CHOICES, LINEAR, RecoveryConfig
from das_gym.adapt.shrink.saving import SAVED_DTYPES
from das_gym.agents.run_report import rerun_command

from das_gym.commands.runs import ResumableSettings
from das_gym.commands.settings import PositiveInt, Seed, choice, nested, settings_dict
from das_gym.files import at_home
from das_gym.problem.budget import check_budget
from das_gym.problem.config import ProblemConfig
from das_gym.problem.mask_cost import BUDGET_SETTINGS, BudgetSettings
from das_gym.registration import MODELS
from das_gym.tasks.metrics import METRICS

RECORD = "shrink.json"

CHECKPOINT, CONTROL_CHECKPOINT = "recovery.pt", "control.pt"

PENDING = "shrink_pending.json"
"""The record before the model's folder is complete."""

DEFAULT_SHARE = 0.2
"""Share of the MACs to save without a budget."""


def answering_problem() -> ProblemConfig:
    """Return the default problem: the bundled model that answers questions."""
    return ProblemConfig(model="VLM", task="answering")


@dataclass(frozen=True)
class AnsweringSettings(ResumableSettings, BudgetSettings):
    """What `python -m adapt shrink` and `shrink compare` have in common: model, budget and recovery.

    Attributes:
        problem: Model and data.
        skip_num: Exactly how many layers to delete. If no budget is given, at least 20 % of the MACs are saved.
        seed: Random seed of search and recovery.
        recover: How to recover: LoRA in the remaining layers, training all parameters of the decoder and projector, the
            adapters of DAS, another method of `python -m adapt compare`, or nothing. Without training: `linear` puts
            linear maps in the removed layers' positions, `refit` changes the MLPs before them. Either with LoRA after it.
        train: Further settings of recovery.
        metric: Score of generated answers: the task's, or one of `register_metric`. None means the task's.
        test_examples: Number of test examples to evaluate on, at least 1. None evaluates on all.
    """

    group: ClassVar[str] = "Recovery"

    problem: ProblemConfig = nested(ProblemConfig, default=answering_problem)
    skip_num: int | None = None
    seed: Seed = 0
    recover: str = choice("lora", CHOICES, others=True)
    train: RecoveryConfig = nested(RecoveryConfig, without=("seed", "recover"))
    metric: str | None = choice(None, METRICS, own=True)
    test_examples: PositiveInt | None = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        model = self.problem.model
        if not MODELS[model].reads_prompts:
            others = [name for name, entry in MODELS.items() if entry.reads_prompts]
            raise ValueError(f"`model` must answer in words: got {model}, expected {', '.join(others)}. See `adapt`.")
        check_budget(self.asked)
        # A search scores masks with linear maps, too. A given mask needs none but its own, which are fitted later.
        if self.searches and self.recovery().closed_form == LINEAR and self.problem.skip is None:
            object.__setattr__(self, "problem", replace(self.problem, skip=LINEAR))

    @property
    def searches(self) -> bool:
        """Whether the command scores masks."""
        return True

    @property
    def latency_batch(self) -> int:
        """Number of prompts at a time whose latency counts for a budget by latency."""
        return 1

    @property
    def asked(self) -> dict[str, Any]:
        """The budget that was given; empty without one."""
        return {name: getattr(self, name) for name in BUDGET_SETTINGS if getattr(self, name) is not None}

    @property
    def budget(self) -> dict[str, Any]:
        """The budget of the search."""
        return self.asked or {"macs_saved": DEFAULT_SHARE}

    def recovery(self) -> RecoveryConfig:
        """Return the settings of recovery, with the seed."""
        return replace(self.train, seed=self.seed, recover=self.recover)


@dataclass(frozen=True)
class ShrinkSettings(AnsweringSettings, ChoosingSettings):
    """The settings of `python -m adapt shrink`. A search run brings its own model, data and budget.

    Attributes:
        out: Folder to write the smaller model to. None is `model` in the run's folder.
        save_dtype: Number format of the saved weights. `auto` is the source's, or that of the computation if it has fewer
            bits.
        control: Whether to train the full model alike, for a fair comparison. None does so if the recovered model has a
            higher score or a lower loss than the full one.
    """

    group: ClassVar[str] = "Output"

    out: str | None = None
    save_dtype: str = choice("auto", SAVED_DTYPES)
    control: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice()
        if self.asked and not self.needs_search:
            raise ValueError(
                f"`{next(iter(self.asked))}` is the budget of a search: leave it out with `mask` or `search_run`"
            )
        if self.control and self.recovery().method is None:
            raise ValueError(
                f"`control` is trained like the recovered model: got True with recover={self.recover}. Leave it out."
            )

    @property
    def searches(self) -> bool:
        """Whether the command scores masks."""
        return self.needs_search

    @property
    def latency_batch(self) -> int:
        """Number of prompts at a time whose latency counts for a budget by latency."""
        return int(self.search.get("latency_batch", 1))

    def choice(self) -> Choice | None:
        """Return the layers to remove and the model, None before the search."""
        choice = choose(self)
        if choice is not None and not MODELS[choice.problem.model].reads_prompts:
            raise ValueError(f"run {self.search_run} searched {choice.problem.model}, which does not answer in words.")
        return choice

    def out_folder(self, run_folder: Path) -> Path:
        """Return the folder of the smaller model."""
        return run_folder / "model" if self.out is None else at_home(self.out)

    def is_saved(self, run_folder: Path) -> bool:
        """Return whether a run was stopped after its model was saved. Its record may still be `PENDING`."""
        has_record = any((run_folder / name).is_file() for name in (PENDING, RECORD))
        return has_record and self.out_folder(run_folder).exists()


def command_of(folder: Path, problem: Mapping[str, Any], mask: Sequence[int]) -> str:
    """Return the command that repeats a run with its mask."""
    found_by = dict.fromkeys((*BUDGET_SETTINGS, "search_run", "point", "search"))
    changes = {"problem": dict(problem), **found_by, "mask": json.dumps(list(mask), separators=(",", ":"))}
    return rerun_command(folder, "adapt shrink", ShrinkSettings, settings_dict(ShrinkSettings()), **changes)
