"""The paper's pipeline in memory: `das` searches while adapters train, and fine-tunes the found subnet."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from das_gym.adapt.finetuning import copy_model, with_new_head
from das_gym.adapt.joint_search import JointTurn, Training, finetune_subnet, joint_search, new_model
from das_gym.adapt.paper import RECIPES, DASSettings, pipeline_settings, recipe_problem
from das_gym.adapt.settings import Hardware, TrainingConfig
from das_gym.adapt.step_loss import check_training
from das_gym.adapt.training import Log, add_prefix
from das_gym.adapt.tuned import HASHED_EXAMPLES, Tuned, count_trained
from das_gym.agents.ask_tell.bandit import Bandit
from torch import Tensor

from das_gym.commands.progress import show_progress
from das_gym.commands.settings import build
from das_gym.data.splits import Splits
from das_gym.files import claim_folder, write_json
from das_gym.models.random_states import accelerators_of, kept_random_states, random_states, restore_random_states
from das_gym.names import brief, check_names
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.budget import Budget
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, check_prompts
from das_gym.problem.mask_space import MaskSpace, skipped_names
from das_gym.problem.problem import Problem
from das_gym.processes import is_main_process, run_on_main_process
from das_gym.registration import MODELS
from das_gym.summaries import Summary
from das_gym.tables.build import data_hash

SEARCH_RECORD = "found.json"
"""The found mask, the layers that it skips, and the turns of the search."""

SUPERNET_FILE = "supernet.safetensors"
"""The model that trained while masks were searched, as `python -m adapt supernet` writes one."""

SEARCH_CHECKPOINT = "search.pt"

FINETUNE = "finetune"
"""Under which name the training of the subnet is logged, and its checkpoint kept."""

SAVE_EVERY = 100
"""Steps between checkpoints."""


@dataclass(frozen=True)
class UntrainedModel:
    """The untrained model, its data, and the random states from which its copies are trained (`random_states`)."""

    model: AdaptedModel
    splits: Splits[Any]
    random_states: list[Tensor]

    @classmethod
    def load(cls, problem: ProblemConfig, splits: Splits[Any], pipeline: DASSettings, seed: int) -> Self:
        """Load the model of a configuration, see `of_model`."""
        return cls.of_model(new_model(problem, splits, pipeline, seed), splits, pipeline)

    @classmethod
    def of_live(cls, problem: Problem, pipeline: DASSettings, seed: int) -> Self:
        """Return the model in memory of a problem, with new adapters, see `of_model`."""
        if pipeline.projector_learning_rate or pipeline.dropout:
            name = "projector_learning_rate" if pipeline.projector_learning_rate else "dropout"
            raise ValueError(f"`{name}` is for models in folders: got {getattr(pipeline, name)}. Give 0 for one in memory")
        backbone = copy_model(AdaptedModel(problem.backbone, problem.head, problem.task)).backbone
        vlp: Any = backbone.vlp
        vlp.insert_adapters(pipeline.bottleneck, pipeline.skip_bottleneck, torch.Generator().manual_seed(0))
        vlp.freeze()
        length = problem.scoring.max_text_length or pipeline.max_text_length
        backbone = replace(backbone, processor=vlp.make_processor(Path(), length))
        torch.manual_seed(seed)
        return cls.of_model(with_new_head(backbone, problem.task.name, problem.splits), problem.splits, pipeline)

    @classmethod
    def of_model(cls, model: AdaptedModel, splits: Splits[Any], pipeline: DASSettings) -> Self:
        """Return what copies are trained from; ValueError where the model does not suit the pipeline."""
        states = random_states(accelerators_of([model.backbone.vlp]))
        n_layers = len(model.backbone.vlp.layers)
        if pipeline.skip_num > n_layers:
            raise ValueError(
                f"`das.skip_num` is out of range: got {pipeline.skip_num}, expected 0..{n_layers}, the layers of the model"
            )
        if pipeline.itm_weight:
            model.task.matching_loss(model.backbone.heads)
        check_prompts(model, splits)
        return cls(model, splits, states)

    def copy(self) -> AdaptedModel:
        """Return a copy of the model, and restore the random states."""
        # Each training draws the random numbers that it would draw if it had loaded the model itself.
        restore_random_states(accelerators_of([self.model.backbone.vlp]), self.random_states)
        return copy_model(self.model)


@dataclass(frozen=True, eq=False, repr=False)
class JointResult(Summary):
    """What was found while adapters trained.

    Attributes:
        mask: (n_layers,) bool, True = skipped.
        skipped_layers: Names of the skipped layers.
        history: Every turn.
        supernet: The adapters and the head that the search has trained.
    """

    mask: np.ndarray
    skipped_layers: list[str]
    history: list[JointTurn]
    supernet: Adaptation

    def record(self) -> dict[str, Any]:
        """Return mask, skipped layers and turns as JSON values: the content of `SEARCH_RECORD`."""
        turns = [vars(turn) for turn in self.history]
        return {"mask": self.mask.astype(int).tolist(), "skipped_layers": self.skipped_layers, "turns": turns}

    def facts(self) -> dict[str, str]:
        """Return what was found, by name."""
        return {"skips": ", ".join(self.skipped_layers) or "nothing", "turns": f"{len(self.history):,}"}


@dataclass(frozen=True)
class Pipeline:
    """The two trainings of the pipeline, each on a new copy of one untrained model.

    Attributes:
        untrained: The model and its data.
        settings: Settings of search and fine-tuning.
        seed: Random seed.
        hardware: What training runs on.
        save_every: Steps between checkpoints.
        folder: Keeps checkpoints, the supernet and what was found. None keeps nothing.
        log: Called with name, value and step of each metric.
    """

    untrained: UntrainedModel
    settings: DASSettings
    seed: int
    hardware: Hardware
    save_every: int = SAVE_EVERY
    folder: Path | None = None
    log: Log | None = None

    def training(self, model: AdaptedModel) -> Training:
        """Return the training of a copy of the model."""
        return Training(model, self.untrained.splits, self.settings, self.seed, self.hardware)

    def search(self, on_turn: Callable[[JointTurn], Any] | None = None) -> JointResult:
        """Search while adapters train; a search that had ended in the folder is logged again.

        Args:
            on_turn: Called with each turn.
        """
        model = self.untrained.copy()
        names = tuple(layer.name for layer in model.backbone.vlp.layers)
        space = MaskSpace(Budget(len(names), self.settings.skip_num))
        mask, turns = joint_search(
            self.training(model),
            self.untrained.splits,
            Bandit(space, self.seed, learning_rate=self.settings.update_rate),
            self.folder and self.folder / SEARCH_CHECKPOINT,
            add_prefix("search", self.log),
            on_turn,
            self.save_every,
        )
        supernet = model.adaptation(kind="supernet", **asdict(self.settings))
        # All processes train the same mask.
        mask = run_on_main_process(lambda: mask)
        found = JointResult(mask, skipped_names(names, mask), turns, supernet)
        if self.folder is not None and is_main_process():
            supernet.save(self.folder / SUPERNET_FILE)
            write_json(self.folder / SEARCH_RECORD, found.record())
        return found

    def finetune(self, mask: np.ndarray, supernet: Adaptation, name: str = FINETUNE, title: str = "subnet") -> AdaptedModel:
        """Return a new model without the layers of a mask, trained; a stopped training continues.

        Args:
            mask: (n_layers,) bool, True = removed.
            supernet: What the search has trained, from which `finetune_from="search"` starts.
            name: Name of the checkpoint, and of what is logged.
            title: Names the model in the progress bar.
        """
        model = self.untrained.copy()
        if self.settings.finetune_from == "search":
            supernet.apply(model.backbone.vlp, model.head, model.backbone.base)
        model.backbone.vlp.prune(mask)
        checkpoint = self.folder and self.folder / f"{name}.pt"
        finetune_subnet(self.training(model), checkpoint, add_prefix(name, self.log), self.save_every, title)
        model.backbone.vlp.freeze()
        return model


def das(
    problem: Problem,
    *,
    recipe: str = RECIPES[0],
    seed: int = 0,
    folder: str | Path | None = None,
    log: Log | None = None,
    on_turn: Callable[[JointTurn], Any] | None = None,
    progress: bool = True,
    **settings: Any,
) -> tuple[JointResult, Tuned]:
    """Search for a mask while adapters train, and fine-tune the found subnet, as `python -m adapt das` does.

    The problem stays as it is; both trainings start from its pre-trained weights with new adapters and a new head. The
    projector of a model in memory, which shares its weights with the caller's, does not train. Source: DAS (arXiv
    2309.01479).

    Args:
        problem: Its model is trained on its train split, and masks are scored on its reward split.
        recipe: Default settings: those of `das_gym`, or of the `paper`.
        seed: Random seed.
        folder: Keeps checkpoints, from which a call with the same arguments continues, and the supernet. None keeps nothing.
        log: Called with name, value and step of each metric of the trainings.
        on_turn: Called with each turn of the search.
        progress: Whether to show progress.
        settings: Settings of `das_gym.adapt.paper.DASSettings` that differ from the recipe, such as `skip_num=4` and
            `search_epochs=5`; of `das_gym.adapt.settings.Hardware`, such as `micro_batch_size`; and `save_every`.

    Returns:
        What was found (`mask`, `history`), and the trained subnet.

    Raises:
        TypeError: An argument is of another type.
        ValueError: A setting is unknown or not allowed, the model cannot be trained, or `folder` holds the work of another
            model or setting.
        FloatingPointError: The training diverged.

    Example:
        `found, tuned = das_gym.adapt.das(problem, skip_num=4)`
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"`problem` is not a Problem: got {brief(problem)}, expected das_gym.Problem.from_model(...)")
    of_hardware, of_pipeline = ({each.name for each in fields(cls)} for cls in (Hardware, DASSettings))
    check_names(settings, (*sorted(of_pipeline), *sorted(of_hardware), "save_every"), "setting")
    hardware = build(Hardware, {name: value for name, value in settings.items() if name in of_hardware})
    given = {"seed": seed, **{name: value for name, value in settings.items() if name == "save_every"}}
    checked = build(TrainingConfig, given)
    changes = {name: value for name, value in settings.items() if name in of_pipeline}
    origin = problem.backbone.origin
    origin.check_unchanged()
    live = next(name for name, entry in MODELS.items() if entry.wrap is not None)
    config = origin.config
    if config is None:
        pipeline = pipeline_settings(live, problem.task.name, recipe, {"projector_learning_rate": 0.0, **changes})
    else:
        pipeline = pipeline_settings(config.model, problem.task.name, recipe, changes)
    check_training(problem.backbone, problem.task, hardware, 0.0)
    with kept_random_states(problem.vlp), show_progress(progress):
        if config is None:
            untrained = UntrainedModel.of_live(problem, pipeline, checked.seed)
        else:
            untrained = UntrainedModel.load(recipe_problem(config, pipeline), problem.splits, pipeline, checked.seed)
        if folder is not None:
            claim_folder(Path(folder), "das", _inputs(problem, pipeline, checked.seed, hardware))
        run = Pipeline(
            untrained, pipeline, checked.seed, hardware, checked.save_every, None if folder is None else Path(folder), log
        )
        found = run.search(on_turn)
        subnet = run.finetune(found.mask, found.supernet)
        subnet.head.eval()
        return found, Tuned(subnet, problem, "das", asdict(pipeline), None, count_trained(subnet))


def _inputs(problem: Problem, pipeline: DASSettings, seed: int, hardware: Hardware) -> Mapping[str, Any]:
    """Return what the result depends on, as JSON values by name."""
    parts = {"train": problem.splits.train, "reward": problem.splits.reward}
    data = [f"{len(part)} {name}, {data_hash(problem.task, part[:HASHED_EXAMPLES])}" for name, part in parts.items()]
    own = {"seed": seed, "mixed_precision": hardware.mixed_precision}
    return {"model": problem.backbone.base, "task": problem.task.name, "data": data, **own, **asdict(pipeline)}
