"""A validation problem: a frozen model with its supernet, a task and its data, ready to be scored."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from das_gym.adaptation import Adaptation, fingerprint
from das_gym.costs import Costs, count_costs
from das_gym.data.processor import Processor, load_tokenizer
from das_gym.data.shapes import shapes_root
from das_gym.data.transforms import meter_transform
from das_gym.data.vqav2 import VQASplits, load_vqav2
from das_gym.evaluation.engine import Evaluator
from das_gym.tasks.vqa import VQATask
from das_gym.vlp.base import VLP
from das_gym.vlp.checkpoints import load_vlp
from das_gym.vlp.meter import METER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASSETS = Path(__file__).parent / "assets"
MINI = ASSETS / "meter_mini"
MINI_SUPERNET = MINI / "vqa_supernet.safetensors"
SIZES = ("mini", "base")

MAX_TEXT_LENGTH = 50
"""Longest question in tokens, METER's setting for VQA."""

COST_SAMPLE = 1000
"""The longest of this many reward questions is the text length at which MACs are counted."""


@dataclass(frozen=True)
class ProblemConfig:
    """What to load; every field left out stands for the bundled model or data.

    Attributes:
        size: `mini` (bundled) or `base` (needs `checkpoint`); None follows the checkpoint.
        checkpoint: Path of pre-trained weights: a folder of ours, or an official file.
        supernet: Path of the supernet's adaptation file.
        data_root: Folder in VQAv2's format.
        tokenizer: Folder of the tokenizer, where the checkpoint's folder holds none.
        device: `auto`, `cpu`, `cuda`, ...
        batch_size: Examples scored at a time.
    """

    size: str | None = None
    checkpoint: str | None = None
    supernet: str | None = None
    data_root: str | None = None
    tokenizer: str | None = None
    device: str = "auto"
    batch_size: int = 128

    def __post_init__(self) -> None:
        if self.size not in (None, *SIZES):
            raise ValueError(f"size={self.size!r} is unknown; choose one of {', '.join(SIZES)}")
        if self.size == "base" and self.checkpoint is None:
            raise ValueError(
                "size='base' has no bundled weights: pass checkpoint= (an official METER file or a folder of ours)"
            )
        for name in ("checkpoint", "supernet", "data_root", "tokenizer"):
            value = getattr(self, name)
            if value is None:
                continue
            object.__setattr__(self, name, str(Path(value).expanduser().absolute()))
            if not Path(getattr(self, name)).exists():
                raise FileNotFoundError(
                    f"{name}={value}: no such file or folder; check the path, or leave {name} out for the bundled one"
                )


@dataclass(frozen=True)
class Backbone:
    """A pre-trained model as loaded: frozen, with untrained adapters.

    Attributes:
        vlp: The model.
        processor: Makes its batches.
        base: Its fingerprint.
    """

    vlp: VLP
    processor: Processor
    base: str


@dataclass(frozen=True)
class AdaptedModel:
    """A model with trained adapters, a head and a task: a supernet, or a subnet once its model is settled.

    Attributes:
        backbone: The model.
        head: Its head.
        task: The task, with the head's answers.
    """

    backbone: Backbone
    head: nn.Module
    task: VQATask

    def adaptation(self, **info: object) -> Adaptation:
        """What training added to the frozen model."""
        fields = {"task": self.task.name, "answers": self.task.answers, "base": self.backbone.base, "info": info}
        return Adaptation.of(self.backbone.vlp, self.head, **fields)


@dataclass(frozen=True)
class Problem:
    """Everything that a score depends on.

    Attributes:
        backbone: Model, processor and fingerprint; the model holds the supernet's adapters.
        head: The supernet's head.
        task: The task, with the supernet's answers.
        splits: Train, reward and test examples.
        costs: MACs and parameters at the longest text of the data.
        evaluator: Scores masks of this model.
    """

    backbone: Backbone
    head: nn.Module
    task: VQATask
    splits: VQASplits
    costs: Costs
    evaluator: Evaluator

    @property
    def vlp(self) -> VLP:
        """The model."""
        return self.backbone.vlp

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the skippable layers, in mask order."""
        return tuple(layer.name for layer in self.vlp.layers)


def pick_device(device: str) -> torch.device:
    """`auto` is a GPU where there is one.

    Raises:
        ValueError: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={device!r} cannot be used here ({error}); use auto or cpu") from error


def load_backbone(config: ProblemConfig) -> Backbone:
    """The frozen model of a configuration, in memory of its own."""
    checkpoint = Path(config.checkpoint) if config.checkpoint else MINI
    vlp = load_vlp(checkpoint, generator=torch.Generator().manual_seed(0))
    if not isinstance(vlp, METER):
        raise ValueError(f"{checkpoint} holds a {type(vlp).__name__}; this environment needs a METER checkpoint")
    if config.size is not None and (vlp.config.hidden_size == 768) != (config.size == "base"):
        raise ValueError(f"size={config.size!r}, but {checkpoint} has hidden size {vlp.config.hidden_size}; leave size out")
    vlp.freeze()
    processor = Processor(
        tokenizer=_find_tokenizer(config, checkpoint, vlp.config.vocab_size),
        transform=meter_transform,
        image_size=vlp.config.image_size,
        max_text_length=min(MAX_TEXT_LENGTH, vlp.config.max_positions - 2),
    )
    base = fingerprint(vlp)
    return Backbone(vlp.to(pick_device(config.device)), processor, base)


def _find_tokenizer(config: ProblemConfig, checkpoint: Path, vocab_size: int) -> PreTrainedTokenizerBase:
    folder = Path(config.tokenizer) if config.tokenizer else checkpoint if checkpoint.is_dir() else checkpoint.parent
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, the model {vocab_size}: they do not belong together"
        )
    return tokenizer


def load_splits(config: ProblemConfig) -> VQASplits:
    """The examples of a configuration."""
    return load_vqav2(config.data_root if config.data_root else shapes_root())


def text_tokens(processor: Processor, splits: VQASplits) -> int:
    """Longest of the first reward questions, in tokens: the text length at which MACs are counted."""
    return int(processor.texts([e.question for e in splits.reward[:COST_SAMPLE]])["attention_mask"].sum(1).max())


def load_supernet(config: ProblemConfig, splits: VQASplits) -> AdaptedModel:
    """Model, head and task with a supernet's parameters, in memory of their own.

    Raises:
        ValueError: parts that do not belong together; the text says which.
        FileNotFoundError: a path that does not exist.
    """
    if config.supernet is None and config.checkpoint is not None:
        raise ValueError(
            f"checkpoint={config.checkpoint} comes without a supernet: train one with `python -m adapt supernet with "
            f"checkpoint={config.checkpoint}` (and data_root=... for your data), then pass supernet=<the file it writes>"
        )
    supernet_path = config.supernet or MINI_SUPERNET
    supernet = Adaptation.load(supernet_path)
    if supernet.mask is not None:
        raise ValueError(
            f"{supernet_path} holds the adapters of one mask, not a supernet: train one with `python -m adapt supernet`"
        )
    backbone = load_backbone(config)
    task = VQATask(backbone.processor, supernet.answers)
    if task.answerable(splits.reward) < 0.5:
        raise ValueError(
            f"fewer than half of the reward questions in {config.data_root or 'the bundled data'} have an answer that "
            f"{supernet_path} knows: train a supernet on this data with `python -m adapt supernet with "
            f"data_root={config.data_root}`, then pass supernet=<the file it writes>"
        )
    head = new_head(backbone, task)
    supernet.apply(backbone.vlp, head, backbone.base)
    return AdaptedModel(backbone, head, task)


def new_head(backbone: Backbone, task: VQATask) -> nn.Module:
    """An untrained head for the model, where the model lies."""
    return task.build_head(backbone.vlp.feature_size).to(backbone.vlp.device)


def build_problem(config: ProblemConfig) -> Problem:
    """Load everything anew, sharing nothing with other problems; raises what `load_supernet` raises."""
    splits = load_splits(config)
    supernet = load_supernet(config, splits)
    backbone, head, task = supernet.backbone, supernet.head, supernet.task
    head.eval().requires_grad_(False)
    costs = count_costs(backbone.vlp, text_tokens(backbone.processor, splits), head)
    evaluator = Evaluator(backbone.vlp, head, task, batch_size=config.batch_size)
    return Problem(backbone, head, task, splits, costs, evaluator)


@lru_cache(maxsize=4)
def _load_problem(config: ProblemConfig, stamps: tuple[int, ...]) -> Problem:
    del stamps  # part of the cache's key: a supernet trained anew is loaded anew
    return build_problem(config)


def load_problem(config: ProblemConfig) -> Problem:
    """The problem of a configuration, from a process-wide cache: do not train it.

    Files are known by path and time of change; data or a checkpoint edited inside its folder wants a new process.
    """
    paths = (config.checkpoint, config.supernet, config.data_root, config.tokenizer)
    return _load_problem(config, tuple(Path(path).stat().st_mtime_ns for path in paths if path is not None))


def shuffled(examples: tuple, seed: int = 0) -> tuple:
    """The examples in an order that is the same on every machine."""
    return tuple(examples[i] for i in np.random.default_rng(seed).permutation(len(examples)))
