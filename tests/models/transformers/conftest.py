from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from das_gym.models.inputs import Prompt
from das_gym.models.transformers import stack
from das_gym.models.transformers.checks import NoiseImage, with_tower
from das_gym.models.transformers.inputs import PromptProcessor
from das_gym.models.transformers.loading import load_vlm
from das_gym.models.transformers.model import VLM
from tests.models.transformers import tiny

ASKED = (("how many circles are there", "2"), ("what colour is it", "red green"), ("is the square blue", "true"))


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint by its type, float64, made once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tiny.save(name, tmp_path_factory.mktemp(name), torch.float64)
        return made[name]

    return folder


class Driven:
    """A tiny model, its processor, and plain forwards of it as the witness."""

    def __init__(self, folder: Path, units: str = "layers") -> None:
        self.vlm: VLM = load_vlm(folder, units=units)
        self.vlm.remove_adapters()
        self.processor: PromptProcessor = self.vlm.inputs(folder)
        self.head = self.vlm.own_head()

    def seeing(self, units: str = "layers") -> Driven:
        """The same with layers of its vision tower as units, or halves of them."""
        other = copy.copy(self)
        other.vlm = VLM(self.vlm.model, units, with_tower(self.vlm.traits, self.vlm.model, self.processor))
        return other

    def prompts(self) -> list[Prompt]:
        """Three questions on each of two pictures of different widths, out of order; without pictures where it sees none."""
        sees = self.processor.sees
        sizes = ((32, 32), (64, 32))
        pictures = [(NoiseImage(seed, *size),) if sees else () for seed, size in enumerate(sizes)]
        return [Prompt(question, picture, answer) for question, answer in ASKED for picture in pictures]

    @torch.no_grad()
    def logits(self, prompts: Sequence[Prompt], mask: Sequence[int] | np.ndarray) -> Tensor:
        """What the VLM gives under a mask, all prompts together."""
        seen = lambda _, items: {key: self.vlm.see(self.processor, one) for key, one in items.items()}  # noqa: E731
        state = self.vlm.gather(self.processor, prompts, seen)
        return self.head(self.vlm.forward_encoded(state, np.asarray(mask, dtype=bool)))

    @torch.no_grad()
    def plain(self, prompts: Sequence[Prompt], mask: Sequence[int] | np.ndarray) -> Tensor:
        """The model's own forward, prompt by prompt, with the skipped parts replaced in place."""
        found = []
        with stack.replaced(dict(self._skips(mask))):
            for prompt in prompts:
                encoding = self.processor.encode(prompt, pixels=True)
                found.append(self.vlm.run([encoding], whole=True).logits[0, encoding.answer - 1 : -1])
        return torch.cat(found)

    def last(self, prompt: Prompt, mask: Sequence[int] | np.ndarray) -> Tensor:
        """(1, vocabulary) logits of the last token of one prompt, by the same forward."""
        with stack.replaced(dict(self._skips(mask))):
            return self.vlm.run([self.processor.encode(prompt, pixels=True)], whole=True).logits[:, -1]

    def _skips(self, mask: Sequence[int] | np.ndarray):
        for index, (unit, place, skipped) in enumerate(zip(self.vlm.layers, self.vlm.places, mask, strict=True)):
            layer = self.vlm.stack_of(index).layers[place]
            if skipped and unit.kind == "layer":
                yield layer, lambda hidden, *_, layer=layer, **__: (hidden,) if stack.gives_tuple(layer) else hidden
            elif skipped:
                names = stack.ATTENTION_NAMES if unit.kind == "attention" else stack.MLP_NAMES
                part = getattr(layer, stack.child(layer, names))
                yield part, stack.zeros(part)


@pytest.fixture(scope="session")
def driven(folder_of: Callable[[str], Path]) -> Callable[..., Driven]:
    """A tiny model by its type and kind of units, loaded once: do not change it."""
    loaded: dict[tuple[str, str, bool], Driven] = {}

    def load(name: str, units: str = "layers", vision: bool = False) -> Driven:
        if (name, units, vision) not in loaded:
            loaded[name, units, vision] = load(name).seeing(units) if vision else Driven(folder_of(name), units)
        return loaded[name, units, vision]

    return load
