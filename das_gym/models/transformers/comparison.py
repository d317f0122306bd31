"""Run a model on a few questions, by its own forward and layer by layer, and compare the logits."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from das_gym.data.images import NoiseImage
from das_gym.models.base import HALVES, State
from das_gym.models.inputs import Prompt, to_widest
from das_gym.models.macs import structure_key
from das_gym.models.transformers.inputs import Encoding, PromptProcessor
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.stack import (
    JOINT,
    Recording,
    Stack,
    note_layer_parts,
    record,
    replace_forwards,
    skip_forward,
)
from das_gym.models.transformers.tower import TowerCapabilities, VisionTower, image_features
from das_gym.models.transformers.units import ModelCapabilities
from das_gym.names import first_line

TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference of logits, as a share of their largest; parts of some models, such as routers, compute in float32."""

ROUNDING_TOLERANCES = {**TOLERANCES, torch.float64: 2e-5, torch.float32: 2e-5}
"""The same where another way to compute may change little, such as what attention sees: rounding alone changes 1e-6."""

LARGE_BYTES = 2**28
"""Bytes of weights from which on only few layers run while a model is probed, see `Comparison.with_few_layers`."""

LAYERS_PER_KIND = 4
"""How many of the layers that are built and called alike then run, if they are what is probed; otherwise one."""

COMMON_PREFIX = "Read the question with care, answer it in a few words, and say nothing else."
"""Of every question, so that questions have a prefix in common in text models, too."""

QUESTIONS = ("How many circles are there?", "What is this?", "Is anything else in it?")
ANSWERS = ("two", "a red square", "no")


class Comparison:
    """A model of transformers on three questions, two of them about the same image of noise.

    `dtype` is that of the model's parameters as it was loaded, also while `in_float32` widens them.
    """

    def __init__(self, model: Any, processor: PromptProcessor) -> None:
        self.model = model
        self.processor = processor
        self.name = type(model).__name__
        self.dtype = next(model.parameters()).dtype
        self.is_large = sum(p.numel() * p.element_size() for p in model.parameters()) > LARGE_BYTES
        self.idle: set[nn.Module] = set()

    @contextmanager
    def with_few_layers(self, vision: bool = False) -> Iterator[None]:
        """Let few of the layers run that are built and called alike, if the model is large.

        The others return their input, so that nothing that depends on positions of layers changes. `vision`: vision layers
        are probed, too.
        """
        if not self.is_large:
            yield
            return
        encodings = self.encodings(self.prompts(1))
        with ExitStack() as stack:
            try:
                tower = VisionTower(self.model, TowerCapabilities(()))
                pixels = self.pixels()
                note_layer_parts(tower.stack, lambda: image_features(self.model, pixels))
                idle = idle_layers(tower.stack, tower.record(pixels), LAYERS_PER_KIND if vision else 1)
                stack.enter_context(replace_forwards({layer: skip_forward(layer) for layer in idle}))
            except Exception:  # whatever transformers raises: it has no such tower, or all layers of it run
                idle = []
            plain = VLM(self.model)
            with self.reject_on_error("its layers cannot be recorded"):
                more = idle_layers(plain.stack, record(plain.stack, lambda: plain.run(encodings)), LAYERS_PER_KIND)
            stack.enter_context(replace_forwards({layer: skip_forward(layer) for layer in more}))
            self.idle = {*idle, *more}
            try:
                yield
            finally:
                self.idle = set()

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Compute in 32 bits if the weights have 16 and the model can: rounding to 16 would hide small differences."""
        with ExitStack() as stack:
            stack.enter_context(self._widened())
            try:
                is_float32 = self.own_logits(self.model, self.encodings(self.prompts(1))).dtype not in HALVES
            except Exception:  # whatever torch raises where dtypes are mixed
                is_float32 = False
            if not is_float32:
                stack.close()
            yield

    @contextmanager
    def _widened(self) -> Iterator[None]:
        idle = {part for layer in self.idle for part in layer.modules()}
        before: list[tuple[dict[str, Any], dict[str, Any]]] = []
        widened: dict[int, Tensor] = {}  # tied parameters stay tied
        for module in self.model.modules():
            if module in idle:
                continue
            before.append((module._parameters, dict(module._parameters)))
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter.dtype in HALVES:
                    if id(parameter) not in widened:
                        widened[id(parameter)] = parameter.float()
                    module._parameters[name] = widened[id(parameter)]
        try:
            yield
        finally:
            for parameters, own in before:
                parameters.update(own)

    def unsupported(self, reason: str) -> ValueError:
        """Return the error for a model whose layers cannot be skipped."""
        return ValueError(f"{self.name} is not supported: {reason}")

    @contextmanager
    def reject_on_error(self, problem: str) -> Iterator[None]:
        """Turn whatever transformers raises into a ValueError of one line."""
        try:
            yield
        except Exception as error:
            raise self.unsupported(f"{problem} ({type(error).__name__}: {first_line(error)})") from error

    def prompts(self, count: int) -> list[Prompt]:
        """Return questions about images of noise, two about the first."""
        found = []
        for number in range(count):
            images = (NoiseImage(max(number - 1, 0)),) if self.processor.takes_images else ()
            found.append(Prompt(f"{COMMON_PREFIX} {QUESTIONS[number]}", images, ANSWERS[number]))
        return found

    def encodings(self, prompts: Sequence[Prompt]) -> list[Encoding]:
        """Return the tokens and pixels of prompts."""
        with self.reject_on_error(
            f"its processor does not read a question{' about an image' if self.processor.takes_images else ''}"
        ):
            return [self.processor.encode(prompt, pixels=True) for prompt in prompts]

    def own_logits(self, model: Any, encodings: Sequence[Encoding], tokens: int | None = None) -> Tensor:
        """Return (answer tokens, vocabulary) logits of the model's own forward, of the first `tokens` of each answer."""
        vlm = VLM(model)
        head = model.get_output_embeddings()
        found = []
        project: Any = None if head is None else head.forward

        def project_answer(start: int, hidden: Tensor) -> Tensor:
            """Compute logits from a position on, and zeros before: those of a vocabulary are as much work as some layers."""
            return nn.functional.pad(project(hidden[:, start:]), (0, 0, start, 0))

        for encoding in encodings:
            forwards = {} if head is None else {head: partial(project_answer, encoding.answer - 1)}
            with self.reject_on_error("its own forward fails on the output of its processor"), replace_forwards(forwards):
                output = vlm.run([encoding], with_head=True).logits[0]
            found.append(output[encoding.answer - 1 : -1][:tokens])
        return torch.cat(found)

    def initial_state(self, vlm: VLM, count: int = 3) -> State:
        """Return the state of prompts before the first layer."""
        with self.reject_on_error("its layers do not run one by one"):
            return vlm.gather_uncached(self.processor, self.prompts(count))

    def layerwise_logits(self, vlm: VLM, removed: Sequence[int] = (), state: State | None = None) -> Tensor:
        """Return (answer tokens, vocabulary) logits, run layer by layer without the `removed` decoder layers."""
        return vlm.language_head()(self.layerwise_features(vlm, removed, state))

    def layerwise_features(self, vlm: VLM, removed: Sequence[int] = (), state: State | None = None) -> Tensor:
        """Return the hidden states from which the head computes `layerwise_logits`."""
        state = self.initial_state(vlm) if state is None else state
        mask = [unit.stream == JOINT and place in removed for place, unit in zip(vlm.places, vlm.layers, strict=True)]
        with self.reject_on_error("its layers do not run one by one"):
            return vlm.forward_encoded(state, mask)

    def with_capabilities(self, capabilities: ModelCapabilities) -> VLM:
        """Return the model, run layer by layer with these capabilities."""
        return VLM(self.model, capabilities=capabilities)

    def pixels(self) -> dict[str, Tensor]:
        """Return pixels and sizes of the first image."""
        (encoding,) = self.encodings(self.prompts(1))
        return VLM(self.model).to_device(encoding.pixels | encoding.sizes)

    def same(self, one: Any, other: Any, tolerances: Mapping[torch.dtype, float] = TOLERANCES) -> bool:
        """Return True if two structures of tensors are equal up to rounding, and neither has a NaN."""
        ones = tree_leaves(one)
        others = tree_leaves(other)
        if len(ones) != len(others):
            return False
        tolerance = tolerances.get(next(self.model.parameters()).dtype, 0.1)
        for mine, its in zip(ones, others, strict=True):
            if not isinstance(mine, Tensor):
                continue
            if not isinstance(its, Tensor) or mine.shape != its.shape:
                return False
            mine = to_widest(mine)
            its = to_widest(its)
            differences = torch.where(mine == its, 0.0, mine - its)  # infinite where both forbid a token
            largest = its[its.isfinite()].abs().max() if its.isfinite().any() else its.new_zeros(())
            if its.numel() and not float(differences.abs().max()) <= tolerance * (float(largest) + 1e-6):  # false for NaN
                return False
        return True


def idle_layers(stack: Stack, recording: Recording, running: int) -> list[nn.Module]:
    """Return all layers but the first and last few of those that are built and called alike: `running` of each kind."""
    kinds = defaultdict(list)
    for place, (layer, call) in enumerate(zip(stack.layers, recording.calls, strict=True)):
        given = [leaf if isinstance(leaf, int | float | str) else id(leaf) for leaf in tree_leaves((call.args, call.kwargs))]
        kinds[structure_key(layer), tuple(given), call.made, place in recording.added].append(layer)
    first = (running + 1) // 2
    last = running // 2
    return [layer for alike in kinds.values() for layer in alike[first : max(first, len(alike) - last)]]
