"""The settings of `python -m adapt shrink`, those of its search, and the files in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from das_gym.adapt.adapt_experiment import Choice, ChoosingSettings, fronted, searched, told_to_any_search
from das_gym.adapt.shrink.recovery import RecoveryConfig
from das_gym.adapt.training import POSITIVE, check_ranges

from das_gym.config import part_of
from das_gym.drawing.command import rerun_command
from das_gym.files import at_home
from das_gym.problem.budget import BUDGET_SETTINGS, BudgetSettings, check_budget
from das_gym.problem.config import ProblemConfig, ProblemSettings, changed_settings
from das_gym.registration import MODELS

RECORD = "shrink.json"

CHECKPOINT = "recovery.pt"

PENDING = "shrink_pending.json"
"""The record before the model's folder is complete."""

DEFAULT_SHARE = 0.2
"""Share of the MACs to save without a budget."""

ENV_SETTINGS = ("units", "vision", "dtype", "device_map", "trust_remote_code")
"""Settings that a search takes in `env_kwargs`."""


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
            raise ValueError(f"`model` must answer in words: got {self.model}, expected {', '.join(others)}. See `adapt`.")
        ProblemSettings.__post_init__(self)
        check_budget(self.asked)
        check_ranges(self, test_examples=POSITIVE, generate_batch_size=POSITIVE, latency_blocks=POSITIVE)
        self.check_chosen(one="delete")
        if self.refine > 1 and self.recover == "none":
            raise ValueError(f"`refine` compares masks after recovery: got {self.refine} with recover=none.")

    @property
    def asked(self) -> dict[str, Any]:
        """The budget that was given; empty without one."""
        return {name: getattr(self, name) for name in BUDGET_SETTINGS if getattr(self, name) is not None}

    @property
    def budget(self) -> dict[str, Any]:
        """The budget of the search."""
        return self.asked or {"macs_saved": DEFAULT_SHARE}

    def recovery(self) -> RecoveryConfig:
        """The settings of recovery."""
        return part_of(RecoveryConfig, self)

    def choice(self) -> Choice | None:
        """Return the layers to remove and the model, None before the search.

        Raises:
            ValueError: the search was of another kind of model.
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
            raise ValueError(f"run {run} searched {choice.problem.model}, which does not answer in words.")
        return choice

    def out_folder(self, run_folder: Path) -> Path:
        """Return the folder of the smaller model."""
        return run_folder / "model" if self.out is None else at_home(self.out)

    def is_saved(self, run_folder: Path) -> bool:
        """Return whether a run was stopped after its model was saved. Its record may still be `PENDING`."""
        has_record = any((run_folder / name).is_file() for name in (PENDING, RECORD))
        return has_record and self.out_folder(run_folder).exists()


def search_settings(settings: Any, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of `python -m agents` for a search of layers to remove.

    Args:
        settings: A command's, with a `budget`.
        more: Settings of `python -m agents` that take precedence.
    """
    shared = told_to_any_search(settings)
    env_kwargs = {name: shared.pop(name) for name in ENV_SETTINGS if name in shared}
    result = {**shared, **settings.budget, **more}
    if env_kwargs or "env_kwargs" in more:
        result["env_kwargs"] = {**env_kwargs, **more.get("env_kwargs", {})}
    return result


def command_of(folder: Path, problem: Mapping[str, Any], mask: Sequence[int]) -> str:
    """Return the command that repeats a run with its mask.

    Args:
        folder: Of the run.
        problem: Model and data.
        mask: 0 or 1 per layer, 1 = removed.
    """
    found_by = dict.fromkeys((*BUDGET_SETTINGS, "search_run", "search", "refine", "front", "point"))
    own = {name: value for name, value in problem.items() if name in ProblemConfig.__dataclass_fields__}
    words = json.dumps(list(mask), separators=(",", ":"))
    return rerun_command(folder, "adapt shrink", asdict(ShrinkSettings()), **own, **found_by, mask=words)
