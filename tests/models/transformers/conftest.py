from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from das_gym.data.images import NoiseImage
from das_gym.models.inputs import Prompt
from das_gym.models.transformers.inputs import PromptProcessor
from das_gym.models.transformers.loading import load_vlm
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.probing import add_tower
from das_gym.models.transformers.stack import replace_forwards, skip_forward, zero_forward
from tests.models.transformers import tiny

ASKED = (("how many circles are there", "2"), ("what colour is it", "red green"), ("is the square blue", "true"))


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint by its type, float64, made once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tiny.save(name, tmp_path_factory.mktemp(name), torch.float64)
        return made[name]

    return folder


class Driven:
    """A tiny model, its processor, and plain forwards of it as the reference."""

    def __init__(self, vlm: VLM, processor: PromptProcessor) -> None:
        self.vlm = vlm
        self.processor = processor
        self.head = vlm.language_head()

    @classmethod
    def load(cls, folder: Path, units: str = "layers") -> Driven:
        """Load it from a folder, without adapters."""
        vlm = load_vlm(folder, units=units)
        vlm.remove_adapters()
        return cls(vlm, vlm.make_processor(folder))

    def with_model(self, model: Any) -> Driven:
        """Return the same processor with another model of transformers."""
        return Driven(VLM(model), self.processor)

    def with_capabilities(self, capabilities: Any) -> Driven:
        """Return the same model, driven in another way."""
        return Driven(VLM(self.vlm.model, self.vlm.unit_kind, capabilities), self.processor)

    def with_vision(self, units: str = "layers") -> Driven:
        """Return the same with vision layers as units, or halves of them."""
        capabilities = add_tower(self.vlm.capabilities, self.vlm.model, self.processor)
        return Driven(VLM(self.vlm.model, units, capabilities), self.processor)

    def prompts(self) -> list[Prompt]:
        """Return three questions on each of two images of different widths, out of order; without images for text models."""
        images = [(NoiseImage(seed, *size),) for seed, size in enumerate(((32, 32), (64, 32)))]
        pairs = [(asked, image if self.processor.takes_images else ()) for asked in ASKED for image in images]
        return [Prompt(question, image, answer) for (question, answer), image in pairs]

    @torch.no_grad()
    def logits(self, prompts: Sequence[Prompt], mask: Sequence[int] | np.ndarray) -> Tensor:
        """Return what the VLM gives under a mask, all prompts together."""
        state = self.vlm.gather_uncached(self.processor, prompts)
        return self.head(self.vlm.forward_encoded(state, np.asarray(mask, dtype=bool)))

    @torch.no_grad()
    def plain(self, prompts: Sequence[Prompt], mask: Sequence[int] | np.ndarray | None = None) -> Tensor:
        """Run the model's own forward prompt by prompt, with skipped units replaced in place."""
        found = []
        skipped = np.flatnonzero(np.zeros(0) if mask is None else mask).tolist()
        modules = {self.vlm.module_of(n): self.vlm.layers[n].kind for n in skipped}
        with replace_forwards({m: skip_forward(m) if kind == "layer" else zero_forward(m) for m, kind in modules.items()}):
            for prompt in prompts:
                encoding = self.processor.encode(prompt, pixels=True)
                found.append(self.vlm.run([encoding], with_head=True).logits[0, encoding.answer - 1 :])
        return torch.cat([logits[:-1] if len(logits) > 1 else logits for logits in found])


@pytest.fixture(scope="session")
def driven(folder_of) -> Callable[..., Driven]:
    """A tiny model by its type and kind of units, loaded once: do not change it."""
    loaded: dict[tuple[str, str, bool], Driven] = {}

    def load(name: str, units: str = "layers", vision: bool = False) -> Driven:
        if (name, units, vision) not in loaded:
            loaded[name, units, vision] = load(name).with_vision(units) if vision else Driven.load(folder_of(name), units)
        return loaded[name, units, vision]

    return load


def copied(model: Driven) -> Driven:
    """Return a copy that may be changed."""
    return copy.deepcopy(model)
