"""Fine-tune the subnet that a search found, and compare it with the full model with adapters and the baseline.

python -m adapt                                        searches first, with the bundled model and data
python -m adapt with vilt_nlvr2 bandit                 another model and task, another agent
python -m adapt with train.steps=1000                  longer fine-tuning
python -m adapt with search_run=3                      the mask, model and data of that search
python -m adapt with search_run=5 point=3              a point of the front that `python -m agents pareto` found
python -m adapt with mask=[0,1,0,0,0,1,0,0,1,0,0,1]    a custom mask
python -m adapt with resume=4                          continue run 4, which was stopped
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from das_gym.adapt.choosing import (
    ChoosingSettings,
    choose,
    named_configs,
    search_first,
    search_values,
)
from das_gym.adapt.estimate import adapt_parts, search_first_parts
from das_gym.adapt.evaluate import RANKED_IMAGES
from das_gym.adapt.finetune import cut, finetune, load_base_model, load_reference
from das_gym.adapt.report import BASELINE, FULL_MODEL, IN_WORDS, SUBNET, finish_run, limit_test
from das_gym.adapt.step_loss import check_training, resolve_defaults
from das_gym.adapt.subnets import RECORD
from das_gym.adapt.training import Log, TrainingConfig, add_prefix, check_ranges

from das_gym.commands.commandline import format_command
from das_gym.commands.recorded import RecordedCommand, Run, required_folder
from das_gym.commands.runs import EstimatedSettings, runs_dir_words
from das_gym.commands.settings import nested
from das_gym.data.bad_examples import require_readable
from das_gym.data.splits import Splits
from das_gym.engine.encoder_cache import EncoderCache
from das_gym.models.adapters import parallel_adapters
from das_gym.problem.config import ProblemConfig, ProblemSettings
from das_gym.problem.estimate import Part, print_estimate
from das_gym.problem.loading import AdaptedModel, check_problem, check_prompts
from das_gym.processes import is_main_process
from das_gym.tasks.base import Task
from das_gym.text import escape_control_chars

FULL_MODEL_FILE = "full_model_adapter.safetensors"

LOGGED = ("macs", "macs_saved", "latency_ms", "speedup", "trainable_parameters")
"""Numbers of a model's record that the run logs, besides those of its evaluation."""

EVALUATIONS, FEW_LAYERS = 80, 12
"""Masks that `bayes` scores when it searches first, and the most layers of a model to which this number applies. On
problems of up to 12 layers, half of it finds the best mask in more than 90 % of the searches (LEADERBOARD.md)."""


@dataclass(frozen=True)
class AdaptSettings(EstimatedSettings, ProblemSettings, ChoosingSettings):
    """The settings of `python -m adapt`. A search run brings its own model and data.

    Attributes:
        seed: Random seed of the search and of fine-tuning.
        train: Settings of fine-tuning.
        test_examples: Number of test examples to evaluate on, at least 1. None evaluates on all.
        rank_images: Number of test images that retrieval ranks, with all of their texts. None ranks all.
        references: Whether to train and evaluate the full model with adapters and the baseline as well. Each takes as long
            as the subnet, unless the package contains its trained weights, as it does for the default settings. Without
            references, the table has the subnet and the costs of the baseline.
    """

    group: ClassVar[str] = "Evaluation"

    seed: int = 0
    train: TrainingConfig = nested(TrainingConfig, without=("seed",))
    test_examples: int | None = None
    rank_images: int | None = RANKED_IMAGES
    references: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice()
        check_ranges(self, test_examples=(1, math.inf), rank_images=(1, math.inf), seed=(0, 2**32 - 1))

    @property
    def training(self) -> TrainingConfig:
        """The settings of fine-tuning, with the seed."""
        return dataclasses.replace(self.train, seed=self.seed)


def prepare(settings: AdaptSettings) -> AdaptSettings:
    """Load the model, reject settings that cannot be fine-tuned, and search if no mask is given."""
    choice = None if settings.needs_search else choose(settings)
    config = settings.problem_config if choice is None else choice.problem
    check_problem(config)
    base, splits = load_base_model(config)
    check_training(base.backbone, base.task, settings.training, settings.train.itm_weight)
    if choice is not None:
        check_prompts(base.backbone, config)
        base.backbone.vlp.check_mask(choice.mask)
        print_estimate(settings, lambda: adapt_parts(settings, base, splits, choice.mask))
        return settings
    check_test_images(base.task, splits.test)
    values = search_values(settings, settings.search)
    if values.get("agent", "bayes") == "bayes" and len(base.backbone.vlp.layers) <= FEW_LAYERS:
        values.setdefault("evaluations", EVALUATIONS)

    def parts() -> list[Part]:
        searching, mask = search_first_parts(values)
        return [*searching, *adapt_parts(settings, base, splits, mask)]

    print_estimate(settings, parts)
    return dataclasses.replace(settings, search_run=search_first(values))


def adapt(settings: AdaptSettings, run: Run) -> float:
    """Fine-tune, evaluate and save; the test metric of the subnet is the result."""
    choice, folder = choose(settings), required_folder(run)
    if choice.remark:
        print(escape_control_chars(choice.remark))
    base, splits = load_base_model(choice.problem)
    splits = limit_test(splits, base.task, settings.test_examples)
    check_test_images(base.task, splits.test)
    mask, nothing = choice.mask, np.zeros_like(choice.mask)
    models = {SUBNET: cut(base, mask)}
    if settings.references and parallel_adapters(models[SUBNET].backbone.vlp):  # else the full model is the baseline
        models[FULL_MODEL] = cut(base, nothing)
    models[BASELINE] = cut(base, nothing, adapters=False)
    config, description = resolve_defaults(settings.training, models[SUBNET])
    print(description)
    untrained = () if settings.references else (BASELINE,)
    trained = {name: model for name, model in models.items() if name not in untrained}
    bundled = train(trained, choice.problem, splits, config, folder, run.log_scalar)
    if not is_main_process():
        return 0.0
    info = dataclasses.asdict(config)
    artifacts = []
    if FULL_MODEL in models:
        models[FULL_MODEL].adaptation(**info).save(folder / FULL_MODEL_FILE)
        artifacts = [FULL_MODEL_FILE]
    parts = run, folder, settings, models, choice.problem, splits, info, RECORD, "fine-tuned"
    rows = finish_run(*parts, untrained, bundled, artifacts)
    for row in rows.values():
        record = row.record()
        numbers = {f"test.{name}": value for name, value in (row.evaluation.numbers if row.evaluation else {}).items()}
        numbers |= {name: record[name] for name in LOGGED if record[name] is not None}
        for name, value in numbers.items():
            run.log_scalar(f"{row.name}.{name}", float(value))
    print(f"Next: {format_command('adapt export', f'run={folder.name}', 'out=DIR', runs_dir_words(folder))}")
    return rows[SUBNET].metric


def train(
    models: Mapping[str, AdaptedModel],
    problem: ProblemConfig,
    splits: Splits[Any],
    config: TrainingConfig,
    folder: Path,
    log: Log,
) -> list[str]:
    """Fine-tune models in place, with encoder outputs that are computed once for all of them.

    Return the names of those whose trained weights are bundled with das_gym.
    """
    first = next(iter(models.values()))
    encoder = EncoderCache(first.backbone.vlp, first.task.processor, int(config.encoder_cache_gib * 2**30))
    bundled = []
    for name, model in models.items():
        if name != SUBNET and load_reference(model, problem, config, name):
            bundled.append(name)
            continue
        title, checkpoint = f"fine-tuning, {IN_WORDS[name]}", folder / f"{name}.pt"
        finetune(model, splits, config, title, checkpoint, add_prefix(name, log), encoder)
    return bundled


def check_test_images(task: Task, test: Sequence[Any]) -> None:
    """Open every test image once, so that a damaged one is reported before anything is trained."""
    require_readable(image for pair in task.pairs(test) for image in pair.images)


ex = RecordedCommand("adapt", AdaptSettings, adapt, named_configs, prepare=prepare)
"""`python -m adapt`."""
