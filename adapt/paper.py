"""The settings of the paper's pipeline (DAS, arXiv 2309.01479), each with its source, and ours.

`python -m adapt paper` prints them (`das_gym.adapt.paper_command`), `python -m adapt das with paper` runs with them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from das_gym.commands.settings import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Range,
    Settings,
    build,
    choice,
)
from das_gym.names import check_names
from das_gym.problem.config import ProblemConfig
from das_gym.registration import MODELS, TASKS, find_class


@dataclass(frozen=True)
class DASSettings(Settings):
    """How layers are searched while adapters train, and how the found subnet is fine-tuned; by default METER's on VQA.

    Attributes:
        skip_num: Layers to skip.
        warmup_epochs: Epochs of training before the first turn.
        search_epochs: Epochs of training with search, warm-up included.
        finetune_epochs: Epochs of fine-tuning the found subnet.
        finetune_from: Where fine-tuning starts: `new` adapters and head, or those that the `search` has trained.
        steps_per_turn: Training steps between turns.
        masks_per_turn: Distinct masks that a turn scores.
        update_rate: Step size (eta) of the bandit's update.
        reward_examples: Examples that score a mask.
        reward_shuffled: Whether they are drawn at random from their split, once; else they are its first examples.
        reward_split: Split of the examples that score masks: `reward`, or `train`.
        train_on_reward: Whether training uses the reward split as well.
        reward_dropout: Whether dropout is on while masks are scored.
        dropout: Rate of dropout while training, 0..1.
        augment: Whether training images go through RandAugment(2, 9).
        bottleneck, skip_bottleneck: Widths of new adapters, for a checkpoint that has none; None is the model's own.
        image_size: Pixels, for a custom checkpoint; None is the checkpoint's.
        max_text_length: Tokens; None is the model's usual length.
        batch_size: Examples a step; at most as many as there are.
        learning_rate: Peak learning rate of token types and METER's first text token.
        finetune_learning_rate: `learning_rate` in fine-tuning; None = as in the search.
        projector_learning_rate: Peak learning rate of the projector before the decoder; 0 = it does not train.
        head_multiplier: The head's learning rate, as a multiple of `learning_rate`.
        fusion_multiplier: The learning rate of adapters and poolers, as a multiple of `learning_rate`.
        warmup: Share of the steps in which the learning rate rises.
        weight_decay: Weight decay of matrices; vectors have none.
        itm_weight: Weight of the image-text-matching loss that is added to retrieval's ranking loss. The checkpoint's
            frozen matching head computes it; in rewards, too, if `reward_dropout` is on.
        schedule: How the learning rate falls to 0: `linear` or `cosine`.
    """

    skip_num: NonNegativeInt = 4
    warmup_epochs: NonNegativeInt = 1
    search_epochs: PositiveInt = 3
    finetune_epochs: NonNegativeInt = 10
    finetune_from: str = choice("new", ("new", "search"))
    steps_per_turn: PositiveInt = 10
    masks_per_turn: Annotated[int, Range(2)] = 3
    update_rate: PositiveFloat = 1.0
    reward_examples: PositiveInt = 32
    reward_shuffled: bool = False
    reward_split: str = choice("reward", ("reward", "train"))
    train_on_reward: bool = True
    reward_dropout: bool = True
    dropout: Annotated[float, Range(0, 0.99)] = 0.1
    augment: bool = True
    bottleneck: NonNegativeInt | None = 96
    skip_bottleneck: NonNegativeInt | None = 288
    image_size: PositiveInt | None = 384
    max_text_length: PositiveInt | None = 50
    batch_size: PositiveInt = 512
    learning_rate: PositiveFloat = 2.5e-5
    finetune_learning_rate: PositiveFloat | None = None
    projector_learning_rate: NonNegativeFloat = 0.0
    head_multiplier: PositiveFloat = 50.0
    fusion_multiplier: PositiveFloat = 5.0
    warmup: Annotated[float, Range(0, 1)] = 0.1
    weight_decay: NonNegativeFloat = 0.01
    itm_weight: NonNegativeFloat = 0.0
    schedule: str = choice("linear", ("linear", "cosine"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.search_epochs <= self.warmup_epochs:  # the answer would be the first layers
            expected = f"more than the {self.warmup_epochs} of `das.warmup_epochs`, which score no mask"
            raise ValueError(f"`das.search_epochs` is too small: got {self.search_epochs}, expected {expected}.")


SOURCES = {
    "skip_num": "released scripts; ViLT's code defaults to 4 and its script says 1",
    "warmup_epochs": "code: no turn in the first epoch",
    "search_epochs": "paper, implementation details; scripts",
    "finetune_epochs": "paper, implementation details; scripts",
    "finetune_from": "code: the found layers are pasted into a command that trains from scratch",
    "steps_per_turn": "paper, implementation details; code",
    "masks_per_turn": "paper, implementation details; code",
    "update_rate": "code; for METER it also declares 0.1, which nothing uses",
    "reward_examples": "code: one batch of its validation loader",
    "reward_shuffled": "code: each turn creates the loader again, which never shuffles, so the batch is the same",
    "reward_split": "code: NLVR2 scores on train, the others on validation data",
    "train_on_reward": "code: METER's VQA and Flickr30k train on train + val and score on val",
    "reward_dropout": "code: the model stays in train mode",
    "dropout": "code",
    "augment": "scripts: image keys with randaug",
    "bottleneck": "paper, implementation details; code",
    "skip_bottleneck": "code: 3 x 96 for METER, 2 x 96 for ViLT",
    "image_size": "scripts; METER's VQA config says 576; LLaVA's processor decides",
    "max_text_length": "code's configs",
    "batch_size": "scripts",
    "learning_rate": "scripts; ViLT's VQA has 1e-4 with randaug and 5e-4 without",
    "finetune_learning_rate": "LLaVA's scripts: 6e-4, and 2e-4 in the search",
    "projector_learning_rate": "LLaVA's scripts; METER and ViLT have no projector",
    "head_multiplier": "scripts and code's configs",
    "fusion_multiplier": "code's configs; ViLT has none",
    "warmup": "code's configs",
    "weight_decay": "code's configs",
    "itm_weight": "code's configs of retrieval; 0 for other tasks",
    "schedule": "code's configs: polynomial decay of power 1; LLaVA's scripts: cosine",
}
"""Where the paper, its scripts or its code state each default of `DASSettings`."""

_VILT = DASSettings(skip_num=1, skip_bottleneck=192, max_text_length=40, fusion_multiplier=1.0, reward_examples=64)

_LLAVA = DASSettings(
    masks_per_turn=5,
    update_rate=0.1,
    search_epochs=20,
    finetune_epochs=20,
    reward_dropout=False,
    dropout=0.0,
    augment=False,
    bottleneck=64,
    skip_bottleneck=256,
    image_size=None,
    max_text_length=1536,
    batch_size=128,
    learning_rate=2e-4,
    finetune_learning_rate=6e-4,
    projector_learning_rate=2e-5,
    head_multiplier=1.0,
    fusion_multiplier=1.0,
    warmup=0.03,
    weight_decay=0.0,
    schedule="cosine",
)

PAPER: dict[tuple[str, str], DASSettings] = {
    ("METER", "vqa"): DASSettings(),
    ("METER", "nlvr2"): DASSettings(
        learning_rate=5e-5,
        head_multiplier=10.0,
        batch_size=256,
        image_size=288,
        reward_split="train",
        train_on_reward=False,
    ),
    ("METER", "retrieval"): DASSettings(
        learning_rate=5e-5, head_multiplier=5.0, max_text_length=40, reward_examples=2, itm_weight=0.5
    ),
    ("METER", "snli_ve"): DASSettings(
        learning_rate=2e-6, head_multiplier=10.0, batch_size=64, finetune_epochs=5, train_on_reward=False
    ),
    ("ViLT", "vqa"): replace(_VILT, learning_rate=1e-4, head_multiplier=10.0, batch_size=256, train_on_reward=False),
    ("ViLT", "nlvr2"): replace(
        _VILT, learning_rate=5e-4, head_multiplier=1.0, batch_size=128, reward_split="train", train_on_reward=False
    ),
    ("ViLT", "retrieval"): replace(
        _VILT, learning_rate=5e-4, head_multiplier=1.0, batch_size=256, reward_examples=4, itm_weight=0.5
    ),
    ("VLM", "answering"): _LLAVA,
}
"""The reference's settings by model and task; those of VLM are its scripts' for LLaVA-1.5-7B."""

SIZELESS_SETTINGS = DASSettings(bottleneck=None, skip_bottleneck=None, image_size=None, max_text_length=None)
"""METER's settings without its sizes, for a custom model."""

PUBLISHED_LAYERS = {"llava_slake": (21, 24, 25, 26), "llava_aid20": (7, 17, 23, 29), "llava_aid50": (7, 8, 17, 23)}
"""Decoder layers of LLaVA-1.5-7B, of 32, that its scripts skip, by named config: `python -m adapt paper` prints them."""

RECIPE_CHANGES: dict[str, tuple[Any, str]] = {
    "update_rate": (20.0, "1 is for thousands of turns; a search on a table has 80"),
    "reward_examples": (500, "one small batch ranks masks by noise; 64 for retrieval"),
    "reward_shuffled": (True, "as above: the first examples of a file are of few images"),
    "reward_split": ("reward", "the reward split is disjoint from what trains and what is reported"),
    "train_on_reward": (False, "as above"),
    "reward_dropout": (False, "rewards are deterministic"),
    "dropout": (0.0, "the bundled models are small and were trained without"),
    "augment": (False, "colours mean something in the bundled data, and encoder outputs can be kept"),
    "batch_size": (64, "the bundled data are small; for NLVR2 32, for retrieval 4: as many pairs of text and image"),
    "learning_rate": (1e-3, "the bundled models are 64 wide; official checkpoints want the paper's rates"),
    "finetune_learning_rate": (None, "as above"),
    "head_multiplier": (1.0, "as above"),
    "fusion_multiplier": (1.0, "as above"),
    "itm_weight": (0.0, "the bundled supernets and tables were made without it"),
}
"""Where our defaults differ from the paper's: the value and why."""

VLM_RECIPE_CHANGES: dict[str, tuple[Any, str]] = {
    name: (None, f"models of transformers have {share} of the hidden size, at most LLaVA's {getattr(_LLAVA, name)}")
    for name, share in (("bottleneck", "1/8"), ("skip_bottleneck", "3/8"))
}
"""Further differences from the paper's defaults, for models of transformers only."""

DIFFERENCES = (
    (
        "itm_weight",
        "the configs say 0.5; METER's code takes it for a switch and adds the whole loss (das.itm_weight=1), ViLT's code "
        "adds none (das.itm_weight=0); there a pair of each example is drawn, here all 16 count as they would on average",
    ),
    (
        "SNLI-VE",
        "METER's code has a config of it, 5 epochs, and no script: what it leaves open is VQA's; ViLT's has none. "
        "das_gym has no such task",
    ),
    ("preferences", "the code's printed labels of METER's text and image layers are swapped; the update is not"),
    ("MACs", "the abstract has -11.97 %, counting gives -12.00 % (two text and two image layers skipped)"),
    ("found layers", "the code prints them to be pasted into the fine-tuning command, whose default skips layers 0-3"),
    ("distinct masks", "the code loops forever if fewer distinct masks exist than a turn needs; here a turn takes fewer"),
)
"""Where the paper, its scripts and its code differ besides what the sources of the settings say, and what is done here."""

RECIPES = ("das_gym", "paper")


def das_settings(model: str, task: str, recipe: str = "das_gym", **changes: Any) -> DASSettings:
    """Return the settings of a recipe, `paper` or `das_gym` (the same with `RECIPE_CHANGES`), with changes.

    A task that `PAPER` lacks gets the model's VQA's settings, another model `SIZELESS_SETTINGS`.
    """
    check_names([recipe], RECIPES, "recipe")
    paper = PAPER.get((model, task)) or PAPER.get((model, "vqa"), SIZELESS_SETTINGS)
    if recipe == "paper":
        return replace(paper, **changes)
    ours = {name: value for name, (value, _) in recipe_changes(model).items()}
    cls = find_class(TASKS[task].task)
    ours |= {"reward_examples": cls.reward_examples, "batch_size": cls.examples_for_pairs(ours["batch_size"])}
    return replace(paper, **{**ours, **changes})


def pipeline_settings(model: str, task: str, recipe: str, changes: Mapping[str, Any]) -> DASSettings:
    """Return the settings of a recipe with changes, which are checked.

    Adapter widths that are not given are left to a checkpoint that may have some.

    Args:
        model: A key of `MODELS`.
        task: A key of `TASKS`.
        recipe: `das_gym` or `paper`.
        changes: Fields of `DASSettings` that differ.
    """
    own = {} if MODELS[model].reads_prompts else {"bottleneck": None, "skip_bottleneck": None}
    return build(DASSettings, changes, "setting of das,", das_settings(model, task, recipe, **own))


def recipe_problem(problem: ProblemConfig, pipeline: DASSettings) -> ProblemConfig:
    """Return model and data with the lengths of the recipe; its image size is for a checkpoint that is given."""
    return replace(
        problem,
        max_text_length=problem.max_text_length or pipeline.max_text_length,
        image_size=problem.image_size or (pipeline.image_size if problem.checkpoint else None),
    )


def recipe_changes(model: str) -> dict[str, tuple[Any, str]]:
    """Return `RECIPE_CHANGES` with the entries that apply to this model only."""
    return {**RECIPE_CHANGES, **(VLM_RECIPE_CHANGES if model == "VLM" else {})}
