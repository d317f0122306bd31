"""Run a model on a few questions, by its own forward and layer by layer, and compare the logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from das_gym.models.base import HALVES, State
from das_gym.models.inputs import Prompt
from das_gym.models.transformers.inputs import Encoding, PromptProcessor
from das_gym.models.transformers.model import JOINT, VLM, ModelCapabilities
from das_gym.wording import first_line

TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference of logits, as a share of their largest; parts of some models, such as routers, compute in float32."""

BEGINNING = "Read the question with care, answer it in a few words, and say nothing else."
"""Of every question, so that questions have a prefix in common in text models, too."""

QUESTIONS = ("How many circles are there?", "What is this?", "Is anything else in it?")
ANSWERS = ("two", "a red square", "no")


@dataclass(frozen=True)
class NoiseImage:
    """An image of noise, the same for the same seed."""

    seed: int
    width: int = 64
    height: int = 48

    @property
    def key(self) -> str:
        """Its seed."""
        return f"noise {self.seed}"

    def stamp(self) -> str:
        """Return an empty stamp: the image never changes."""
        return ""

    def open(self) -> Any:
        """Return the image."""
        from PIL import Image

        values = np.random.default_rng(self.seed).integers(0, 256, (self.height, self.width, 3), dtype=np.uint8)
        return Image.fromarray(values)


class Comparison:
    """A model of transformers on three questions, two of them about the same image of noise.

    Args:
        model: The model, in eval mode.
        processor: Its own, as das_gym uses it.
    """

    def __init__(self, model: Any, processor: PromptProcessor) -> None:
        self.model = model
        self.processor = processor
        self.name = type(model).__name__
        self.tolerance = TOLERANCES.get(next(model.parameters()).dtype, 0.1)
        self.is_float32 = False

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Compute in 32 bits if the weights have 16 and the model can: rounding to 16 would hide differences.

        An answer's token that sees a later one, or an image's part that depends on the question, may change less than that.
        """
        before = self.tolerance, self.is_float32
        if not self.is_float32 and any(_has_16_bits(module) for module in self.model.modules()):
            encodings = self.encodings(self.prompts(1))
            try:
                with computing_in_float32(self.model):
                    logits = VLM(self.model).run(encodings, with_head=True).logits
                self.is_float32 = logits.dtype == torch.float32
            except Exception:  # whatever torch raises where dtypes are mixed
                self.is_float32 = False
        if self.is_float32:
            self.tolerance = TOLERANCES[torch.float32]
        try:
            with computing_in_float32(self.model) if self.is_float32 and not before[1] else nullcontext():
                yield
        finally:
            self.tolerance, self.is_float32 = before

    @contextmanager
    def rejecting(self, problem: str) -> Iterator[None]:
        """Turn whatever transformers raises into a ValueError of one line."""
        try:
            yield
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise ValueError(f"{self.name} is not supported: {problem} ({reason})") from error

    def prompts(self, count: int) -> list[Prompt]:
        """Return questions about images of noise, two about the first."""
        found = []
        for number in range(count):
            images = (NoiseImage(max(number - 1, 0)),) if self.processor.sees else ()
            found.append(Prompt(f"{BEGINNING} {QUESTIONS[number]}", images, ANSWERS[number]))
        return found

    def encodings(self, prompts: Sequence[Prompt]) -> list[Encoding]:
        """Return the tokens and pixels of prompts."""
        with self.rejecting(f"its processor does not read a question{' about an image' if self.processor.sees else ''}"):
            return [self.processor.encode(prompt, pixels=True) for prompt in prompts]

    def own_logits(self, model: Any, encodings: Sequence[Encoding], tokens: int | None = None) -> Tensor:
        """Return (answer tokens, vocabulary) logits of the model's own forward, one prompt at a time.

        With `tokens`, only those of the first `tokens` tokens of each answer.
        """
        vlm, found = VLM(model), []
        with computing_in_float32(model) if self.is_float32 and model is not self.model else nullcontext():
            for encoding in encodings:
                with self.rejecting("its own forward fails on the output of its processor"):
                    output = vlm.run([encoding], with_head=True).logits[0]
                found.append(output[encoding.answer - 1 : -1][:tokens])
        return torch.cat(found)

    def begin(self, vlm: VLM, count: int = 3) -> State:
        """Return the state of prompts before the first layer."""
        with self.rejecting("its layers do not run one by one"):
            return vlm.gather_uncached(self.processor, self.prompts(count))

    def driven_logits(self, vlm: VLM, removed: Sequence[int] = (), state: State | None = None) -> Tensor:
        """Return (answer tokens, vocabulary) logits, run layer by layer without the `removed` decoder layers."""
        logits: Tensor = vlm.own_head()(self.driven_features(vlm, removed, state))
        return logits

    def driven_features(self, vlm: VLM, removed: Sequence[int] = (), state: State | None = None) -> Tensor:
        """Return the hidden states from which the head computes `driven_logits`."""
        state = self.begin(vlm) if state is None else state
        with self.rejecting("its layers do not run one by one"):
            units = zip(vlm.places, vlm.layers, strict=True)
            features: Tensor = vlm.forward_encoded(state, [u.stream == JOINT and p in removed for p, u in units])
        return features

    def with_capabilities(self, capabilities: ModelCapabilities) -> VLM:
        """Return the model, run layer by layer with these capabilities."""
        return VLM(self.model, capabilities=capabilities)

    def pixels(self) -> dict[str, Tensor]:
        """Return pixels and sizes of the first image."""
        (encoding,) = self.encodings(self.prompts(1))
        return VLM(self.model).to_device(encoding.pixels | encoding.sizes)

    def same(self, one: Any, other: Any) -> bool:
        """Compare two structures of tensors, up to rounding."""
        ones, others = tree_leaves(one), tree_leaves(other)
        if len(ones) != len(others):
            return False
        for mine, its in zip(ones, others, strict=True):
            if not isinstance(mine, Tensor):
                continue
            if not isinstance(its, Tensor) or mine.shape != its.shape:
                return False
            mine, its = mine.double(), its.double()
            if its.numel() and not float((mine - its).abs().max()) <= self.tolerance * (float(its.abs().max()) + 1e-6):
                return False
        return True


def _has_16_bits(module: nn.Module) -> bool:
    return any(parameter is not None and parameter.dtype in HALVES for parameter in module._parameters.values())


@contextmanager
def computing_in_float32(model: nn.Module) -> Iterator[None]:
    """Make every module with 16-bit parameters compute in float32.

    Only the weights of the module that runs are converted, which saves memory. A `share_copy` of the model does the same.
    """
    handles = []
    for module in model.modules():
        if _has_16_bits(module):
            handles.append(module.register_forward_pre_hook(_widen, with_kwargs=True))
            handles.append(module.register_forward_hook(_restore, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _to_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALVES else value


def _widen(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    kept = dict(module._parameters)
    module.__dict__.setdefault("_das_halves", []).append(kept)
    for name, parameter in kept.items():
        module._parameters[name] = _to_float32(parameter)
    return tree_map(_to_float32, (args, dict(kwargs)))


def _restore(module: Any, args: Any, output: Any) -> None:
    del args, output
    for name, parameter in module._das_halves.pop().items():
        module._parameters[name] = parameter
