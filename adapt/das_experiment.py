"""The paper's pipeline in one run: search while adapters train, fine-tune the found subnet, evaluate it.

python -m adapt das                                  METER-mini on Shapes-VQA, with our settings
python -m adapt das with meter_nlvr2 paper           with the paper's settings for that model and task
python -m adapt das with paper checkpoint=meter_clip16_288_roberta_pretrain.ckpt data_root=/data/vqa tokenizer=...
python -m adapt das with resume=7                    go on with run 7, which was stopped
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from das_gym.adapt.das import Chooser, JointTurn, Training, finetune_subnet, joint_search, new_backbone, new_model
from das_gym.adapt.evaluate import RANKED_IMAGES, check_rank_images
from das_gym.adapt.hardware import Hardware
from das_gym.adapt.paper import PUBLISHED_LAYERS, RECIPES, DASSettings, das_settings
from das_gym.adapt.report import BASELINE, FULL_MODEL, SUBNET, baseline_of, compare, print_report, write_answers
from das_gym.adapt.subnets import JOINT_RECORD, SUBNET_FILE, save
from das_gym.adapt.training import Log, add_prefix, check_ranges

from das_gym.commandline import typed, used
from das_gym.config import build, choice
from das_gym.data.splits import Splits
from das_gym.drawing.architecture import Architecture
from das_gym.experiment import RunsExperiment, required_folder
from das_gym.files import damage_named, read_json, write_json
from das_gym.models.base import VLP
from das_gym.models.checkpoints import ADAPTER_FIELDS
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import ProblemConfig, ProblemSettings, problem_words
from das_gym.problem.loading import AdaptedModel, check_prompts, load_splits, shuffled, task_class
from das_gym.problem.mask_space import skipped_names
from das_gym.processes import is_first, of_first
from das_gym.registration import MODELS, named_environments
from das_gym.wording import counted

FOUND = "found.json"
SUPERNET_FILE = "supernet.safetensors"
"""The model that trained while masks were searched, as `python -m adapt supernet` writes one."""

LOGGED = {SUBNET: "finetune", FULL_MODEL: "finetune_full_model"}
"""Under which name the training of each model is logged, and its checkpoint kept."""

NewChooser = Callable[[int, int, int, float], Chooser]
"""From number of layers, layers to skip, seed and update rate to the chooser."""


@dataclass(frozen=True)
class JointSearchSettings(Hardware, ProblemSettings):
    """The settings of `python -m adapt das`.

    Attributes:
        recipe: Defaults of the pipeline: ours, or those of the paper (the named config `paper`).
        das: Settings of the pipeline that differ from the recipe, as in `das.skip_num=4`, `das.search_epochs=1`. `python
            -m adapt paper` prints them.
        references: Whether to fine-tune and evaluate the full model with adapters as well. This takes as long again as the
            subnet.
        seed: Random seed, 0..2^32 - 1.
        test_examples: Number of test examples to evaluate on, at least 1. None evaluates on all.
        rank_images: Number of test images that retrieval ranks, with all of their texts. None ranks all, as in the paper.
        save_every: Steps between checkpoints.
        published: Layers that the paper's authors skip, printed for comparison. The named configs `llava_slake`,
            `llava_aid20` and `llava_aid50` set them.
    """

    group: ClassVar[str] = "Pipeline"

    recipe: str = choice(RECIPES[0], RECIPES)
    das: dict[str, Any] = dataclasses.field(default_factory=dict)
    references: bool = True
    seed: int = 0
    test_examples: int | None = None
    rank_images: int | None = RANKED_IMAGES
    save_every: int = 100
    published: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        Hardware.__post_init__(self)
        ProblemSettings.__post_init__(self)
        check_rank_images(self.rank_images)
        check_ranges(self, seed=(0, 2**32 - 1), save_every=(1, math.inf), test_examples=(1, math.inf))
        self.pipeline()

    def pipeline(self) -> DASSettings:
        """The settings of the pipeline; widths of adapters that nobody typed are left to a file that may hold some."""
        whole = das_settings(self.model, self.task, self.recipe)
        own = {} if MODELS[self.model].reads == "prompts" else dict.fromkeys(ADAPTER_FIELDS)
        return build(DASSettings, {**dataclasses.asdict(whole), **own, **self.das}, "setting das.")

    def told_widths(self, vlp: VLP) -> str:
        """A line about adapters of other widths than the recipe's, where nobody typed them; else empty."""
        recipe, asked = das_settings(self.model, self.task, self.recipe), self.pipeline()
        left = [name for name in ADAPTER_FIELDS if getattr(asked, name) is None and getattr(recipe, name) is not None]
        found = {name: getattr(cast(Any, vlp).config, name) for name in left}
        other = [
            f"{name}={width}, the recipe has {getattr(recipe, name)}"
            for name, width in found.items()
            if width != getattr(recipe, name)
        ]
        return f"adapters as wide as the checkpoint has them: {'; '.join(other)}" if other else ""

    def problem(self) -> ProblemConfig:
        """Model and data; the recipe's image size is for a checkpoint of one's own."""
        das = self.pipeline()
        return dataclasses.replace(
            super().problem(),
            max_text_length=self.max_text_length or das.max_text_length,
            image_size=self.image_size or (das.image_size if self.checkpoint else None),
        )


class DASExperiment(RunsExperiment):
    """`python -m adapt das`.

    Args:
        new_chooser: Makes who chooses masks, since this package knows nothing of agents.
    """

    def __init__(self, new_chooser: NewChooser) -> None:
        super().__init__("adapt das", save_git_info=False)
        self.add_settings(JointSearchSettings, _check)
        self.add_named_configs(_published)
        self.add_problems()
        self.add_named_config(RECIPES[1], {"recipe": RECIPES[1], "rank_images": None})

        @self.main
        def main(_run: Any, _config: Mapping[str, Any], das: Any) -> float:
            """Search, fine-tune, evaluate and save; the test metric of the subnet is the result."""
            del das  # named so that Sacred lets it hold keys of its own
            return run_pipeline(build(JointSearchSettings, _config), new_chooser, _run)


@dataclass(frozen=True)
class Found:
    """What a search has found, as its file says.

    Attributes:
        mask: 0 or 1 a layer.
        skipped_layers: Names of those that are 1.
        turns: As `JointTurn`.

    Raises:
        ValueError: these do not go together.
    """

    mask: tuple[int, ...]
    skipped_layers: tuple[str, ...]
    turns: tuple[dict[str, Any], ...]

    def __post_init__(self) -> None:
        masks: list[Sequence[int]] = [self.mask]
        for turn in self.turns:
            masks += build(JointTurn, turn).masks
        if any(len(mask) != len(self.mask) or not set(mask) <= {0, 1} for mask in masks):
            raise ValueError(f"its masks are not 0 (keep) or 1 (skip) for each of {len(self.mask)} layers")
        if sum(self.mask) != len(self.skipped_layers):
            raise ValueError(f"its mask skips {sum(self.mask)} layers, and {len(self.skipped_layers)} are named")


def read_found(path: Path, skip_num: int) -> Found:
    """What a search that skips so many layers has found.

    Raises:
        ValueError: the file is damaged, or of another search.
    """
    with damage_named(path, "remove it to search anew"):
        found = build(Found, read_json(path))
        if sum(found.mask) != skip_num:
            raise ValueError(f"it skips {sum(found.mask)} layers, not {skip_num}")
    return found


def _check(settings: JointSearchSettings) -> None:
    """Load the model, and refuse to skip more layers than it has, or a loss that it has no head for."""
    pipeline = settings.pipeline()
    backbone = new_backbone(settings.problem(), pipeline)
    n_layers = len(backbone.vlp.layers)
    if pipeline.skip_num > n_layers:
        raise ValueError(f"das.skip_num={pipeline.skip_num}: the model has {n_layers} layers; use 0..{n_layers}")
    if pipeline.itm_weight:
        task_class(settings.task)(backbone.processor).matching_loss(backbone.heads)
    check_prompts(backbone, settings.problem())


def _published() -> dict[str, dict[str, Any]]:
    """The named configs of the data sets for which layers are published."""
    entries = named_environments()
    return {
        name: {"model": entries[name].model, "task": entries[name].task, "published": list(layers)}
        for name, layers in PUBLISHED_LAYERS.items()
    }


def run_pipeline(settings: JointSearchSettings, new_chooser: NewChooser, run: Any) -> float:
    """The whole pipeline in the folder of a Sacred run; returns the test metric of the subnet."""
    folder, problem = required_folder(run), settings.problem()
    splits = load_splits(problem)
    mask = _search(settings, new_chooser, splits, folder, run.log_scalar)
    nothing = np.zeros_like(mask)
    masks = {SUBNET: mask} | ({FULL_MODEL: nothing} if settings.references else {})
    models = {name: _finetuned(settings, name, chosen, splits, folder, run.log_scalar) for name, chosen in masks.items()}
    if not is_first():
        return 0.0
    subnet, full = models[SUBNET], models.get(FULL_MODEL)
    if settings.test_examples is not None:
        splits = dataclasses.replace(splits, test=shuffled(subnet.task, splits.test, settings.test_examples))
    if full is None:
        full = new_model(problem, splits, settings.pipeline(), settings.seed)
        full.backbone.vlp.prune(nothing)
        full.backbone.vlp.freeze()
    rows = compare({**models, BASELINE: baseline_of(full)}, splits, settings.rank_images, untrained=[BASELINE])
    write_answers(folder, rows, subnet.task, splits.test)
    record = {
        "format": "das_gym das 1",
        "settings": json.loads(json.dumps({**dataclasses.asdict(settings), "use": used()})),
        "pipeline": dataclasses.asdict(settings.pipeline()),
        "search": read_json(folder / FOUND),
        "models": [row.record() for row in rows.values()],
        "left_out": splits.left_out_count,
        "units": Architecture.of_layers(subnet.backbone.vlp.layers).record(),
    }
    path = save(subnet, folder, dataclasses.asdict(settings.pipeline()), record, JOINT_RECORD)
    for name in ("search.pt", *map(_checkpoint, models)):
        (folder / name).unlink(missing_ok=True)
    for artifact in (folder / SUBNET_FILE, path):
        run.add_artifact(artifact)
    print_report(rows, f"{len(splits.test):,} test examples of {problem.task}, {problem.data_root or 'bundled data'}")
    if settings.published:
        print(f"the paper's authors skip the layers {', '.join(map(str, settings.published))} of LLaVA-1.5-7B")
    print(f"record: {path}, adapters: {folder / SUBNET_FILE}")
    if not settings.pipeline().projector_learning_rate:  # a supernet has none of its own
        words = "bayes", f"skip_num={settings.pipeline().skip_num}", shlex.quote(f"supernet={folder / SUPERNET_FILE}")
        print(f"a longer search on what trained: {typed('agents', problem_words(problem, *words))}")
    return rows[SUBNET].metric


def _finetuned(
    settings: JointSearchSettings, name: str, mask: np.ndarray, splits: Splits[Any], folder: Path, log: Log
) -> AdaptedModel:
    """A model without what the mask skips, trained as the settings say; a stopped training goes on."""
    model = new_model(settings.problem(), splits, settings.pipeline(), settings.seed)
    if settings.pipeline().finetune_from == "search":
        Adaptation.load(folder / SUPERNET_FILE).apply(model.backbone.vlp, model.head, model.backbone.base)
    model.backbone.vlp.prune(mask)
    training = Training(model, splits, settings.pipeline(), settings.seed, settings)
    finetune_subnet(training, folder / _checkpoint(name), add_prefix(LOGGED[name], log), settings.save_every, name)
    model.backbone.vlp.freeze()
    return model


def _checkpoint(name: str) -> str:
    return f"{LOGGED[name]}.pt"


def _search(
    settings: JointSearchSettings, new_chooser: NewChooser, splits: Splits[Any], folder: Path, log: Log
) -> np.ndarray:
    """The found mask, from this run's file if it was found before the run was stopped."""
    das = settings.pipeline()
    if not of_first((folder / FOUND).is_file):
        model = new_model(settings.problem(), splits, das, settings.seed)
        if told := settings.told_widths(model.backbone.vlp):
            print(told)
        training = Training(model, splits, das, settings.seed, settings)
        layers = training.model.backbone.vlp.layers
        chooser = new_chooser(len(layers), das.skip_num, settings.seed, das.update_rate)
        every = tuple(layer.name for layer in layers)
        mask, turns = joint_search(
            training,
            splits,
            chooser,
            folder / "search.pt",
            add_prefix("search", log),
            partial(_print_turn, every),
            settings.save_every,
        )
        names = skipped_names(every, mask)
        found = {"mask": mask.astype(int).tolist(), "skipped_layers": names, "turns": [vars(turn) for turn in turns]}
        if is_first():
            model.adaptation(kind="supernet", **dataclasses.asdict(das)).save(folder / SUPERNET_FILE)
            write_json(folder / FOUND, found)
    known = of_first(lambda: read_found(folder / FOUND, das.skip_num))
    print(f"found after {counted(len(known.turns), 'turn')}: skip {', '.join(known.skipped_layers) or 'nothing'}")
    return np.array(known.mask, dtype=bool)


def _print_turn(names: Sequence[str], turn: JointTurn) -> None:
    print(f"step {turn.step}")
    for mask, loss in sorted(zip(turn.masks, turn.losses, strict=True), key=lambda scored: scored[1]):
        print(f"  loss {loss:.4f} without {', '.join(skipped_names(names, np.array(mask, bool))) or 'nothing'}")
