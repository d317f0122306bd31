"""Fine-tuning one subnet: it is cut from the full model, and its adapters, poolers, token types and head train.

The package has trained weights of the full model with adapters and of the baseline. Neither depends on the mask, so that
`python -m adapt` with default settings only evaluates them. `python -m benchmarks.bundled references` makes the files.
"""

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from das_gym.adapt.methods.base import Method
from das_gym.adapt.settings import Hardware, TrainingConfig
from das_gym.adapt.step_loss import make_loss_and_trainer
from das_gym.adapt.training import Log

from das_gym.data.splits import Splits
from das_gym.engine.caches import EncoderCache
from das_gym.models.macs import without_adapters
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import COMPUTE_SETTINGS, ProblemConfig
from das_gym.problem.loading import (
    AdaptedModel,
    Backbone,
    load_backbone,
    load_splits,
    new_head,
    task_class,
    training_free_model,
)
from das_gym.problem.problem import Problem, load_problem, problem_from_model
from das_gym.registration import MODELS

WITHOUT_EFFECT = (
    *COMPUTE_SETTINGS,
    *(field.name for field in dataclasses.fields(Hardware) if field.name != "mixed_precision"),
    "save_every",
)
"""Settings that do not change what fine-tuning learns, except for rounding."""


@dataclass(frozen=True)
class Start:
    """What fine-tuning starts from, loaded once.

    Attributes:
        model: The full model. `without_layers` makes copies; it is not trained itself.
        problem: Scores masks for a search; None if it was not asked for.
    """

    model: AdaptedModel
    splits: Splits[Any]
    problem: Problem | None = None


def load_start(config: ProblemConfig, searches: bool = False) -> Start:
    """Load model and data for fine-tuning, with `searches` for a search as well.

    With a supernet, both use its parameters. Without one, fine-tuning starts from new adapters and the model's own head, and
    a search skips layers of the model as it is; frozen weights are shared.
    """
    if config.supernet_path is not None:
        problem = load_problem(config)
        return Start(AdaptedModel(problem.backbone, problem.head, problem.task), problem.splits, problem)
    splits = load_splits(config)
    backbone = load_backbone(config)
    torch.manual_seed(0)  # the head of every copy starts from the same values
    model = with_new_head(backbone, config.task, splits)
    scored = None
    if searches:
        scored = problem_from_model(training_free_model(copy_model(model).backbone, config.task, splits), splits, config)
    return Start(model, splits, scored)


def with_new_head(backbone: Backbone, task: str, splits: Splits[Any]) -> AdaptedModel:
    """Return a model with a new head for the labels of the data, or with its own head if it brings one."""
    kind = task_class(task)
    labelled = kind(backbone.processor, kind.choose_labels(splits))
    return AdaptedModel(backbone, new_head(backbone, labelled), labelled)


def without_layers(base: AdaptedModel, mask: np.ndarray, adapters: bool = True) -> AdaptedModel:
    """Return a copy of a model without the layers of a (n_layers,) bool mask, ready to be fine-tuned.

    Frozen weights are shared. Without `adapters`, kept layers have no parallel adapters.
    """
    subnet = copy_model(base)
    if base.backbone.vlp.language_head() is None:
        subnet.head.train().requires_grad_(True)  # `load_problem` freezes it
    subnet.backbone.vlp.prune(mask)
    if not adapters:
        without_adapters(subnet.backbone.vlp)
    return subnet


def new_subnet(problem: ProblemConfig, mask: np.ndarray, adapters: bool = True) -> AdaptedModel:
    """Return a new subnet of a mask, ready to be fine-tuned: `without_layers` of the model of `load_start`."""
    return without_layers(load_start(problem).model, mask, adapters)


def copy_model(model: AdaptedModel) -> AdaptedModel:
    """Return a copy of a model that can be trained; frozen weights, which no training changes, are shared."""
    vlp = model.backbone.vlp
    # `deepcopy` keeps what its memo holds by id.
    shared: dict[int, Any] = {id(parameter): parameter for parameter in vlp.parameters() if not parameter.requires_grad}
    copied, head = copy.deepcopy((vlp, model.head), shared)  # together: a head may be a part of the model
    return AdaptedModel(dataclasses.replace(model.backbone, vlp=copied), head, model.task)


def full_model(problem: Problem) -> AdaptedModel:
    """Return the full model that fine-tuning of a problem starts from, as `load_start` loads it."""
    config = problem.backbone.origin.config
    if config is not None and config.supernet_path is not None:
        return AdaptedModel(problem.backbone, problem.head, problem.task)
    return new_full_model(problem)


def new_full_model(problem: Problem) -> AdaptedModel:
    """Return the model of a problem with new adapters and a new head, also where the problem has a supernet.

    A model in memory shares its frozen weights; that of a folder is loaded again, since a problem without a supernet has no
    adapters any more.
    """
    origin = problem.backbone.origin
    if origin.config is not None:
        backbone = load_backbone(origin.config, **origin.settings)
    else:
        backbone = copy_model(AdaptedModel(problem.backbone, problem.head, problem.task)).backbone
        vlp: Any = backbone.vlp
        vlp.insert_adapters(None, None, torch.Generator().manual_seed(0))
        vlp.freeze()
    torch.manual_seed(0)  # the head of every copy starts from the same values
    return with_new_head(backbone, problem.task.name, problem.splits)


def with_method(base: AdaptedModel, method: Method, seed: int) -> tuple[AdaptedModel, int]:
    """Prepare a full copy of a model, with a new head, for training by a method.

    Args:
        base: The full model with new adapters, as it was loaded.
        method: See `das_gym.adapt.methods`.
        seed: Draws the head and what the method inserts.

    Returns:
        The copy, and the number of parameters of the model that the method updates.
    """
    # A full copy: some methods train what others leave frozen.
    backbone = dataclasses.replace(base.backbone, vlp=copy.deepcopy(base.backbone.vlp))
    torch.manual_seed(seed)
    model = AdaptedModel(backbone, new_head(backbone, base.task), base.task)
    return model, method.apply(model, seed)


def train_subnet(
    subnet: AdaptedModel,
    splits: Splits[Any],
    config: TrainingConfig,
    title: str,
    checkpoint: Path | None = None,
    log: Log | None = None,
    encoder_cache: EncoderCache | None = None,
) -> None:
    """Train a pruned model in place on the train split.

    Args:
        subnet: What trains is what requires a gradient; nothing may.
        splits: The train split is trained on.
        config: Settings; those that are None are filled in.
        title: Title of the progress bar.
        checkpoint: File to save to and to resume from. None saves nothing.
        log: Called with name, value and step of each metric.
        encoder_cache: Cache of the same frozen encoders and images. None makes a new one.
    """
    if not any(p.requires_grad for p in (*subnet.backbone.vlp.parameters(), *subnet.head.parameters())):
        return  # the baseline of a model that brings its head
    # Whatever was trained before in this process, the same seed gives the same model.
    torch.manual_seed(config.seed)
    step_loss, trainer = make_loss_and_trainer(subnet, splits.train, config, checkpoint, encoder_cache)
    trainer.run(step_loss.parts, title, log, step_loss.describe_step)


def relevant_settings(problem: ProblemConfig, config: TrainingConfig) -> dict[str, Any]:
    """Return the settings on which fine-tuned weights depend, as plain JSON values."""
    both = {**dataclasses.asdict(problem), **dataclasses.asdict(config)}
    return {name: value for name, value in both.items() if name not in WITHOUT_EFFECT}


def reference_file(problem: ProblemConfig, name: str) -> Path | None:
    """Return the path of the bundled weights of a model of the table; None if nothing is bundled for the model."""
    folder = MODELS[problem.model].assets
    return None if folder is None else folder / f"{problem.task}_{name}.safetensors"


def find_reference(
    problem: ProblemConfig, config: TrainingConfig, name: str, labels: tuple[str, ...] | None
) -> Adaptation | None:
    """Return the bundled weights of a model of the table if they were trained with these settings, else None."""
    path = reference_file(problem, name)
    if path is None or not path.is_file():
        return None
    adaptation = Adaptation.load(path)
    # A setting that the file does not know had its default. It may know settings that are constants today.
    recorded = {**relevant_settings(ProblemConfig(), TrainingConfig()), **adaptation.info.get("settings", {})}
    settings = relevant_settings(problem, config)
    # Other settings give other weights.
    is_other = any(recorded.get(each) != value for each, value in settings.items()) or adaptation.answers != labels
    return None if is_other else adaptation


def load_reference(model: AdaptedModel, problem: ProblemConfig, config: TrainingConfig, name: str) -> bool:
    """Load the bundled weights into a model if they were trained with these settings; return whether they were."""
    adaptation = find_reference(problem, config, name, model.task.labels)
    if adaptation is None:
        return False
    adaptation.apply(model.backbone.vlp, model.head, model.backbone.base)
    return True
