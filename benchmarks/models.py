"""The models that are measured: METER-mini as bundled, and METER-base with random weights."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from das_gym.models.base import VLP, State
from das_gym.models.inputs import Processor, load_tokenizer
from das_gym.models.meter.inputs import meter_transform
from das_gym.models.meter.model import METER
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_problem
from das_gym.registration import ASSETS
from das_gym.tasks.base import Task
from das_gym.tasks.vqa.task import VQATask
from das_gym.tasks.vqa.vqav2 import VQAExample

SIZES = ("mini", "base")
EXAMPLES = {"mini": 64, "base": 2}
"""Examples that are scored, in one batch, unless told otherwise."""

TURN, FOUR, ALL = "turn", "four", "all"
SETS = {TURN: "a turn of 3", FOUR: "all of k = 4", ALL: "all masks"}
"""Sets of masks to score, in words."""

BASE_TEXT, BASE_ANSWERS = 40, 3129
"""METER-base on VQA 2.0: tokens of a question, and answers."""

DAS = ("text.1", "text.3", "image.1", "image.3")
"""What DAS skips of METER here: two text and two image layers, none of the last stage, in which a layer computes little."""


@dataclass(frozen=True)
class Noise:
    """A image of random pixels."""

    seed: int

    @property
    def key(self) -> str:
        """Its seed."""
        return f"noise {self.seed}"

    def stamp(self) -> str:
        """It never changes."""
        return ""

    def open(self) -> Image.Image:
        """(384, 384), RGB."""
        return Image.fromarray(np.random.default_rng(self.seed).integers(0, 256, (384, 384, 3), dtype=np.uint8))


@dataclass(frozen=True)
class Subject:
    """A model, its head and task, and examples."""

    vlp: VLP
    head: nn.Module
    task: Task
    examples: Sequence[Any]

    def batch(self) -> dict[str, Tensor]:
        """Examples that the model encodes."""
        return self.task.processor(self.task.pairs(self.examples))

    def logits(self, encoded: State, mask: np.ndarray) -> Tensor:
        """A plain forward of the masked part: nothing is shared, every token is a query in the last stage too."""
        state = self.vlp.embed(encoded)
        for stage in self.vlp.stages:
            new = {self.vlp.layers[i].stream: self.vlp.run_layer(i, state, bool(mask[i])) for i in stage}
            state = state.with_hidden({**state.hidden, **new})
        return self.head(self.task.group_features(self.vlp.pool(state)))


def load_subject(size: str, examples: int | None = None) -> Subject:
    """METER of a size, on the CPU, and its first examples."""
    count = examples or EXAMPLES[size]
    if size == "mini":
        problem = load_problem(ProblemConfig(device="cpu"))
        return Subject(problem.vlp, problem.head, problem.task, problem.splits.reward[:count])
    torch.manual_seed(0)
    vlp = METER()
    vlp.freeze()
    tokenizer = load_tokenizer(ASSETS / "meter_mini")
    config = vlp.config
    processor = Processor(tokenizer, meter_transform, config.image_size, config.patch_size, max_text_length=BASE_TEXT)
    task = VQATask(processor, [str(answer) for answer in range(BASE_ANSWERS)])
    head = task.build_head(vlp.feature_size).eval().requires_grad_(False)
    return Subject(vlp, head, task, [_base_example(number) for number in range(count)])


def _base_example(number: int) -> VQAExample:
    """A question that is longer than `BASE_TEXT` tokens, and so is cut to that."""
    question = f"{number} " + "what is left of the red circle " * 10
    return VQAExample(number, number, Noise(number), question, "", "other", str(number), (str(number),) * 10)


def mask_sets(name: str, n_layers: int, turns: int) -> list[np.ndarray]:
    """The sets of a name: one, or `turns` random ones of k = 4."""
    every = np.array(list(itertools.product((False, True), repeat=n_layers)))
    four = every[every.sum(axis=1) == 4]
    if name == TURN:
        rng = np.random.default_rng(0)
        return [four[rng.choice(len(four), 3, replace=False)] for _ in range(turns)]
    return [four if name == FOUR else every]
