"""The settings of `python -m adapt shrink`, what a search is told of them, and what lies where in a run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from das_gym.adapt.adapt_experiment import Choice, ChoosingSettings, fronted, searched, told_to_any_search
from das_gym.adapt.shrink.recovery import RecoveryConfig

from das_gym.config import part_of
from das_gym.files import at_home
from das_gym.problem.budget import BUDGET_SETTINGS, BudgetSettings, check_budget
from das_gym.problem.config import ProblemSettings, changed_settings
from das_gym.registration import MODELS

RECORD = "shrink.json"

CHECKPOINT = "recovery.pt"

PENDING = "shrink_pending.json"
"""The record, until the model is in its place."""

SHARE = 0.2
"""Share of the MACs to save where nobody says how much."""

IN_ENV_KWARGS = ("units", "vision", "dtype", "device_map", "trust_remote_code")
"""Settings that a search takes as its environment's alone."""


@dataclass(frozen=True)
class ShrinkSettings(RecoveryConfig, ProblemSettings, BudgetSettings, ChoosingSettings):
    """The settings of `python -m adapt shrink`. A search run brings its own model and data, a given mask keeps the budget.

    Attributes:
        out: Folder to write the smaller model to. None is `model` in the run's folder.
        skip_num: Exactly how many layers to delete. If no budget is given, at least 20 % of the MACs are saved.
        mask: Mask to use, as in [0,1,0,0]: one number per layer, 1 = deleted.
        test_examples: Number of test examples to evaluate on, at least 1. None evaluates on all.
        generate_batch_size: Prompts that are answered at a time.
        latency_blocks: Number of timed blocks of each model.
        peak_memory: Whether to measure the full model's peak memory too, in a separate process.
    """

    group: ClassVar[str] = "Output and evaluation"

    model: str = "VLM"
    task: str = "answering"
    out: str | None = None
    skip_num: int | None = None
    test_examples: int | None = 500
    generate_batch_size: int = 8
    latency_blocks: int = 9
    peak_memory: bool = True

    def __post_init__(self) -> None:
        RecoveryConfig.__post_init__(self)
        if self.model in MODELS and MODELS[self.model].reads != "prompts":
            others = [name for name, entry in MODELS.items() if entry.reads == "prompts"]
            raise ValueError(
                f"model={self.model} does not answer in words: shrink is for {', '.join(others)}; see `adapt` itself"
            )
        ProblemSettings.__post_init__(self)
        check_budget(self.asked)
        for name in ("test_examples", "generate_batch_size", "latency_blocks"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed; use 1 or more")
        self.check_chosen(one="delete")
        if self.refine > 1 and self.recover == "none":
            raise ValueError(f"refine={self.refine} judges masks by what recovery leaves: leave it out, or recover=none")

    @property
    def asked(self) -> dict[str, Any]:
        """The budget that a person gave; empty where none was."""
        return {name: getattr(self, name) for name in BUDGET_SETTINGS if getattr(self, name) is not None}

    @property
    def budget(self) -> dict[str, Any]:
        """The budget as a search takes it."""
        return self.asked or {"macs_saved": SHARE}

    def recovery(self) -> RecoveryConfig:
        """The settings of recovery alone."""
        return part_of(RecoveryConfig, self)

    def choice(self) -> Choice | None:
        """What to delete, and from what; None while it is not searched yet.

        Raises:
            ValueError: a search of another kind of model.
            FileNotFoundError: no such search.
        """
        if self.mask is not None:
            return Choice(np.array(self.mask, dtype=bool), self.problem())
        own = {name: value for name, value in changed_settings(self).items() if name not in ("model", "task")}
        if self.front is not None and self.point is not None:
            choice = fronted(self.runs_dir, self.front, self.point, own)
        elif self.search_run is not None:
            choice = searched(self.runs_dir, self.search_run, own)
        else:
            return None
        if MODELS[choice.problem.model].reads != "prompts":
            run = self.search_run if self.front is None else self.front
            raise ValueError(f"run {run} searched {choice.problem.model}, which answers in no words: shrink cannot")
        return choice


def told_to_search(settings: Any, more: Mapping[str, Any]) -> dict[str, Any]:
    """What a search for something to delete is told.

    Args:
        settings: A command's, with a `budget`.
        more: Settings of `python -m agents` that come before those.
    """
    told = told_to_any_search(settings)
    env_kwargs = {name: told.pop(name) for name in IN_ENV_KWARGS if name in told}
    asked = {**told, **settings.budget, **more}
    if env_kwargs or "env_kwargs" in more:
        asked["env_kwargs"] = {**env_kwargs, **more.get("env_kwargs", {})}
    return asked


def place_of(settings: ShrinkSettings, folder: Path) -> Path:
    """Where the model goes."""
    return folder / "model" if settings.out is None else at_home(settings.out)


def is_saved(settings: ShrinkSettings, folder: Path) -> bool:
    """Whether a run was stopped when its model was in its place: its record may wait to be, too."""
    return record_of(folder).is_file() and place_of(settings, folder).exists()


def record_of(folder: Path) -> Path:
    """The record, or where it waits until the model is in its place."""
    return folder / PENDING if (folder / PENDING).is_file() else folder / RECORD
