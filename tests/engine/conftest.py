"""Worlds to score in: a tiny random METER or ViLT with a random supernet, and a few random images with questions."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from das_gym.data.images import NoiseImage
from das_gym.engine.evaluator import Evaluator
from das_gym.models.base import VLP
from das_gym.models.inputs import Processor, load_tokenizer
from das_gym.models.meter.inputs import meter_transform
from das_gym.models.meter.model import METER
from das_gym.models.meter.network import METERConfig
from das_gym.models.vilt.inputs import vilt_transform
from das_gym.models.vilt.model import ViLT
from das_gym.models.vilt.network import ViLTConfig
from das_gym.tasks.vqa.files import VQAExample
from das_gym.tasks.vqa.task import VQATask
from tests.models.golden_cases import run_full

PATCH = 16
LABELS = ("red", "blue", "two", "yes", "no")
QUESTIONS = ("What?", "What color is the small circle above the square to the left of the large red triangle?", "How many?")


@dataclass(frozen=True, eq=False, repr=False)
class World:
    """The parts of an evaluator, and examples."""

    vlp: VLP
    head: nn.Module
    task: VQATask
    examples: tuple[VQAExample, ...]

    def evaluator(self, **settings) -> Evaluator:
        return Evaluator(self.vlp, self.head, self.task, **settings)

    @torch.inference_mode()
    def plain_logits(self, mask: np.ndarray, examples: tuple[VQAExample, ...]) -> torch.Tensor:
        """A separate forward: nothing kept, nothing shared, every token a query in the last stage too."""
        state = self.vlp.embed(self.vlp.encode(self.task.processor(self.task.pairs(examples))))
        state = run_full(self.vlp, state, mask.tolist())[-1]
        return self.head(self.task.group_features(self.vlp.pool(state)))

    def plain(self, masks: np.ndarray, examples: tuple[VQAExample, ...]) -> np.ndarray:
        """(3, m) losses, metrics and divergences by a plain forward per mask."""
        targets = self.task.targets(examples)
        full = self.plain_logits(np.zeros(12, dtype=bool), examples)
        means = []
        for mask in masks:
            logits = self.plain_logits(mask, examples)
            columns = (
                self.task.losses(logits, targets),
                self.task.metrics(logits, targets),
                self.task.divergences(logits.double(), full.double(), targets),
            )
            means.append([float(column.double().mean()) for column in columns])
        return np.array(means, dtype=np.float64).reshape(len(masks), 3).T


def random_examples(sizes: list[tuple[int, int]]) -> tuple[VQAExample, ...]:
    """Two questions about each image of those widths and heights."""
    rng = np.random.default_rng(0)
    rows = []
    for number, (width, height) in enumerate(sizes):
        for question in (QUESTIONS[number % 3], QUESTIONS[(number + 1) % 3]):
            answers = tuple(rng.choice(LABELS, 10).tolist())
            image = NoiseImage(number, width, height)
            rows.append(VQAExample(len(rows), number, image, question, "", "other", answers[0], answers))
    return tuple(rows)


def make_world(model: str, dtype: torch.dtype, tokenizer_folder: Path) -> World:
    """A world whose adapters and head are random and large, so that masks differ a lot; images differ in size."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(tokenizer_folder)
    words = len(tokenizer)
    vlp: VLP
    if model == "METER":
        vlp = METER(METERConfig(32, PATCH, 32, 4, 6, 64, 2, 4, 48, 2, 4, words, 34, bottleneck=8, skip_bottleneck=24))
        transform, sizes = meter_transform, [(40, 40), (50, 32), (32, 64)]
    else:
        vlp = ViLT(ViLTConfig(32, PATCH, 2, 32, 4, 12, words, 32, bottleneck=8, skip_bottleneck=16))
        transform, sizes = vilt_transform, [(32, 32), (50, 32), (40, 64)]
    vlp.freeze()
    processor = Processor(
        tokenizer, lambda *args: transform(*args).to(dtype), image_size=32, patch_size=PATCH, max_text_length=32
    )
    task = VQATask(processor, LABELS)
    head = task.build_head(vlp.feature_size).eval().requires_grad_(False)
    for parameter in [*vlp.tunable_state().values(), *head.parameters()]:
        nn.init.normal_(parameter, std=0.5)
    return World(vlp.to(dtype), head.to(dtype), task, random_examples(sizes))


@pytest.fixture
def new_world(mini_folder) -> Callable[..., World]:
    """Makes worlds that a test may train or break."""
    return lambda model="METER", dtype=torch.float32: make_world(model, dtype, mini_folder)


@pytest.fixture(scope="session")
def worlds(mini_folder) -> dict[tuple[str, torch.dtype], World]:
    """By model and precision; do not train them."""
    pairs = itertools.product(("METER", "ViLT"), (torch.float32, torch.float64))
    return {(model, dtype): make_world(model, dtype, mini_folder) for model, dtype in pairs}


@pytest.fixture(scope="session")
def meter(worlds) -> World:
    """METER in float32; do not train it."""
    return worlds["METER", torch.float32]
