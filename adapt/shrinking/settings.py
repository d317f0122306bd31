"""Settings of `python -m adapt shrink`, and the files in the folder of a run."""

import dataclasses
import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from das_gym.adapt.finished_runs import SHRUNK
from das_gym.adapt.methods import METHODS
from das_gym.adapt.settings import SAVED_DTYPES, SHARED_SETTINGS, ChoosingSettings, SearchingSettings
from das_gym.agents.settings import SearchConfig

from das_gym.commands.settings import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seed,
    Settings,
    choice,
    nested,
)
from das_gym.files import expand_home
from das_gym.names import check_names
from das_gym.problem.budget import BUDGET_SETTINGS, BudgetSettings, check_budget
from das_gym.problem.config import ProblemConfig
from das_gym.registration import METRICS, MODELS

if TYPE_CHECKING:
    from das_gym.adapt.methods.base import Method

    from das_gym.models.transformers.model import VLM

RECORD = SHRUNK

CHECKPOINT, CONTROL_CHECKPOINT = "recovery.pt", "control.pt"

PENDING_RECORD = "shrink_pending.json"
"""The record before the model's folder is complete."""

TEACHER_ANSWERS = "teacher_answers.json"
"""The answers that the full model generated to train on."""

SCORED = "scored.json"
"""The answers and scores of models so far, for a run that is resumed."""

DEFAULT_MACS_SAVED = 0.2
"""Share of the MACs to save without a budget."""

LINEAR = "linear"
REFIT = "refit"
"""Repairs in closed form, without training: linear maps instead of removed layers (`models.transformers.linear_skips`), and
refitted MLPs before them (`models.transformers.refitting`)."""

ALIASES = {"adapters": "das", "linear+lora": "lora", "refit+lora": "lora"}
"""Methods of other names in `recover`."""

CHOICES = ("lora", "full", "adapters", LINEAR, "linear+lora", REFIT, "refit+lora", "none")

STEPS = 800
LARGE_MODEL_STEPS = 100
LARGE_MODEL_PARAMETERS = 50_000_000
"""Default numbers of training steps. The smaller one is for models with more parameters than this, on a CPU."""

RATE_HIDDEN_SIZE = 80
"""Hidden size of the bundled model, on which each method's `recovery_rate` is the best of a small grid
(`python -m benchmarks.recovery masks`). Rates fall with the root of the width, which leads to what is usual for billions of
parameters: Shortened LLaMA and Minitron take 1e-4 at 4,096."""


@dataclass(frozen=True)
class RecoveryConfig(Settings, group="Recovery"):
    """Settings of the training that follows a deletion.

    Attributes:
        recover: How to recover: LoRA in the remaining layers, training all parameters of the decoder and projector, the
            adapters of DAS, another method of `python -m adapt compare`, or nothing. Without training: `linear` replaces
            removed layers by linear maps, `refit` changes the MLPs before them. LoRA may follow (`linear+lora`).
        share_maps: Whether one linear map replaces consecutive decoder layers, so that fewer MACs are added.
        seed: Random seed of the order of examples and of new parameters.
        steps: Number of training steps. None means 800, or 100 on a CPU for a model of more than 50 million parameters:
            more take most of a day there.
        batch_size: Examples per step.
        learning_rate: Peak learning rate. None chooses it by `recover` and the hidden size of the decoder.
        rank: Rank of LoRA.
        distillation: Weight of the KL divergence from the full model's answers.
        cross_entropy: Weight of the cross-entropy with the reference answers.
        targets: Answers to train on: the reference answers, or those that the full model generates (`teacher`), which are
            closer to what it knows (arXiv 2602.01997). References then only replace answers that are empty.
        save_every: Steps between checkpoints.
        micro_batch_size: Examples per forward pass; gradients are accumulated. None takes as many as fit in memory.
        gradient_checkpointing: Whether to recompute activations in the backward pass: less memory, more time. None does so
            where the step would not fit otherwise.
        encoder_cache_gib: Memory for outputs of the frozen vision tower, in GiB. 0 keeps none. None is 2 on a CPU, a quarter
            of a GPU's free memory.
        dataloader_num_workers: Processes that read images ahead. 0 reads them in the training process.
    """

    recover: str = choice("lora", CHOICES, others=True)
    share_maps: bool = False
    seed: Seed = 0
    steps: PositiveInt | None = None
    batch_size: PositiveInt = 16
    learning_rate: PositiveFloat | None = None
    rank: PositiveInt = 16
    distillation: NonNegativeFloat = 1.0
    cross_entropy: NonNegativeFloat = 0.5
    targets: str = choice("reference", ("reference", "teacher"))
    save_every: PositiveInt = 100
    micro_batch_size: PositiveInt | None = None
    gradient_checkpointing: bool | None = None
    encoder_cache_gib: NonNegativeFloat | None = None
    dataloader_num_workers: NonNegativeInt = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names([self.recover], ("none", LINEAR, REFIT, *ALIASES, *METHODS), "recover", own=True)
        if self.share_maps and self.closed_form != LINEAR:
            raise ValueError(f"`share_maps` is for linear maps: got True with recover={self.recover}. Leave it out.")
        if not (self.distillation or self.cross_entropy):
            raise ValueError("the loss is off: got 0 for `distillation` and `cross_entropy`. Give one of them above 0.")

    @property
    def num_steps(self) -> int:
        """The number of training steps: `steps`, or 800. `for_model` sets fewer for a large model on a CPU."""
        return self.steps or STEPS

    def for_model(self, vlm: "VLM") -> "RecoveryConfig":
        """Return the settings with the number of steps for a model on its device."""
        is_slow = vlm.device.type == "cpu" and sum(each.numel() for each in vlm.parameters()) > LARGE_MODEL_PARAMETERS
        return replace(self, steps=self.steps or (LARGE_MODEL_STEPS if is_slow else STEPS))

    @property
    def closed_form(self) -> str | None:
        """The repair in closed form, `LINEAR` or `REFIT`; None for none."""
        first = self.recover.partition("+")[0]
        return first if first in (LINEAR, REFIT) else None

    @property
    def adds_code(self) -> bool:
        """Whether a folder of the recovered model needs das_gym's code to load."""
        return self.closed_form == LINEAR or (self.method is not None and self.method.adds_code)

    @property
    def method(self) -> "Method | None":
        """The method that trains; None for no training."""
        if self.recover in ("none", LINEAR, REFIT):
            return None
        from das_gym.adapt.methods.base import make_method, method_class

        name = ALIASES.get(self.recover, self.recover)
        has_rank = any(each.name == "rank" for each in dataclasses.fields(method_class(name)))
        return make_method(name, {"rank": self.rank} if has_rank else {})

    def peak_rate(self, hidden_size: int) -> float:
        """Return the peak learning rate of a decoder of that width."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 0.0 if self.method is None else self.method.recovery_rate * math.sqrt(RATE_HIDDEN_SIZE / hidden_size)


@dataclass(frozen=True)
class AnsweringSettings(SearchingSettings, BudgetSettings, group="Search and evaluation"):
    """What `python -m adapt shrink` and a comparison of removals have in common: model, budget and recovery.

    Attributes:
        skip_num: Exactly how many layers to delete. If no budget is given, at least 20 % of the MACs are saved.
        seed: Random seed of search and recovery.
        train: Settings of recovery.
        metric: Score of generated answers: the task's, or one of `register_metric`. None means the task's.
    """

    problem: ProblemConfig = nested(ProblemConfig, default=partial(ProblemConfig, model="VLM", task="answering"))
    skip_num: PositiveInt | None = None
    train: RecoveryConfig = nested(RecoveryConfig, shared=("seed",))
    search: SearchConfig = nested(SearchConfig, shared=SHARED_SETTINGS, without=BUDGET_SETTINGS, listed=False)
    metric: str | None = choice(None, METRICS, own=True)
    test_examples: PositiveInt | None = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        model = self.problem.model
        if not MODELS[model].reads_prompts:
            others = [name for name, entry in MODELS.items() if entry.reads_prompts]
            raise ValueError(f"`model` must answer in words: got {model}, expected {', '.join(others)}. See `adapt`.")
        check_budget(self.given_budget)
        # A search scores masks with linear maps, too. A given mask needs none but its own, which are fitted later.
        if self.scores_masks and self.train.closed_form == LINEAR and self.problem.skip is None:
            object.__setattr__(self, "problem", replace(self.problem, skip=LINEAR))
        object.__setattr__(self, "search", replace(self.search, problem=self.problem, **self.budget))

    @property
    def scores_masks(self) -> bool:
        """Whether the command scores masks."""
        return True

    @property
    def given_budget(self) -> dict[str, Any]:
        """The budget that was given; empty without one."""
        return {name: getattr(self, name) for name in BUDGET_SETTINGS if getattr(self, name) is not None}

    @property
    def budget(self) -> dict[str, Any]:
        """The budget of the search."""
        return self.given_budget or {"macs_saved": DEFAULT_MACS_SAVED}


@dataclass(frozen=True)
class ShrinkSettings(AnsweringSettings, ChoosingSettings, group="Output"):
    """The settings of `python -m adapt shrink`. A search run brings its own model, data and budget.

    Attributes:
        out: Folder to write the smaller model to. None is `model` in the run's folder.
        save_dtype: Number format of the saved weights. `auto` is the source's, or that of the computation if it has fewer
            bits.
        control: Whether to train the full model in the same way, for a fair comparison. None does so if the recovered
            model has a higher score or a lower loss than the full model.
    """

    out: str | None = None
    save_dtype: str = choice("auto", SAVED_DTYPES)
    control: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.given_budget and not self.needs_search:
            raise ValueError(
                f"`{next(iter(self.given_budget))}` is the budget of a search: leave it out with `mask` or `search_run`"
            )
        if self.mask is not None and not any(self.mask):
            raise ValueError("`mask` skips nothing. Give one with a 1, or a budget such as macs_saved=0.2.")
        if self.control and self.train.method is None:
            raise ValueError(
                f"`control` is trained like the recovered model: got True with recover={self.train.recover}. Leave it out."
            )

    @property
    def scores_masks(self) -> bool:
        """Whether the command scores masks."""
        return self.needs_search

    def out_folder(self, run_folder: Path) -> Path:
        """Return the folder of the smaller model: `out`, or `model` in the run's folder."""
        return run_folder / "model" if self.out is None else expand_home(self.out)

    def is_saved(self, run_folder: Path) -> bool:
        """Return True if a run was stopped after its model was saved. Its record may still be `PENDING_RECORD`."""
        has_record = any((run_folder / name).is_file() for name in (PENDING_RECORD, RECORD))
        return has_record and self.out_folder(run_folder).exists()
