"""What is particular about a model of transformers, found out by trying it; what cannot be driven is refused, and why."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from das_gym.models.base import State
from das_gym.models.inputs import Prompt
from das_gym.models.macs import MacCounter
from das_gym.models.quiet import quiet_loading
from das_gym.models.transformers import stack
from das_gym.models.transformers.full_precision import has_halves, in_full
from das_gym.models.transformers.inputs import Encoding, PromptProcessor
from das_gym.models.transformers.model import JOINT, VLM, LanguageHead, Traits, batch_experts
from das_gym.models.transformers.pruning import apart, delete_layers, shell, what_differs
from das_gym.models.transformers.tower_check import TowerCheck
from das_gym.processes import is_first

REFUSED = {
    "blip-2": "its query transformer counts layers by `cross_attention_frequency`, which a smaller configuration changes",
    "blip_2": "its query transformer counts layers by `cross_attention_frequency`, which a smaller configuration changes",
    "instructblip": "its query transformer counts layers by `cross_attention_frequency`, as BLIP-2's does",
    "gemma3n": "its last layers take keys and values from earlier ones, which a layer by itself cannot",
    "gemma3n_text": "its last layers take keys and values from earlier ones, which a layer by itself cannot",
}
"""Types of models that are known not to work, and why."""

SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""What configurations call the bound of logits."""

RELOADED_BYTES = 2**28
"""Models of up to this size are saved without a layer and loaded again; larger ones are compared without content."""

TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""How far logits may be apart, as a share of their largest; parts of some models, such as routers, compute in float32."""

BEGINNING = "Read the question with care, answer it in a few words, and say nothing else."
"""Of every question, so that what questions have in common is shared in models without pictures too."""

QUESTIONS = tuple(
    f"{BEGINNING} {end}" for end in ("How many circles are there?", "What is this?", "Is anything else in it?")
)
ANSWERS = ("two", "a red square", "no")


@dataclass(frozen=True)
class NoiseImage:
    """A picture of noise, the same for the same seed."""

    seed: int
    width: int = 64
    height: int = 48

    @property
    def key(self) -> str:
        """Its seed."""
        return f"noise {self.seed}"

    def stamp(self) -> str:
        """It never changes."""
        return ""

    def open(self) -> Any:
        """The picture."""
        from PIL import Image

        values = np.random.default_rng(self.seed).integers(0, 256, (self.height, self.width, 3), dtype=np.uint8)
        return Image.fromarray(values)


def in_double(model: Any) -> Any:
    """The model; with experts, their products batched where weights are double: the grouped product knows none such."""
    if model.dtype == torch.float64:
        batch_experts(model)
    return model


def find_traits(model: Any, processor: PromptProcessor) -> Traits:
    """What the skipping of layers has to know about a model, from runs of it on two pictures of noise.

    Args:
        model: The model of transformers, in eval mode.
        processor: Its own, as das_gym uses it.

    Raises:
        ValueError: a model whose layers cannot be skipped, with the reason.
    """
    return _Check(model, processor).traits()


def with_tower(traits: Traits, model: Any, processor: PromptProcessor) -> Traits:
    """The traits of a model with those of its vision tower, so that layers of that can be skipped, too.

    Raises:
        ValueError: they cannot, with the reason.
    """
    return _Check(model, processor.with_answer_type(traits.answer_type)).with_tower(traits)


def check_sublayers(vlm: VLM, processor: PromptProcessor) -> None:
    """Refuse a model whose layers are more than their attention and then their MLP.

    Raises:
        ValueError: a layer is not the one after the other.
    """
    check = _Check(vlm.model, processor)
    with torch.no_grad(), check.precisely():
        whole, halves = (check.driven(VLM(vlm.model, units, vlm.traits)) for units in ("layers", "sublayers"))
    if not check.same(halves, whole):
        raise ValueError(
            f"{check.name} computes attention and MLP side by side, or more than these: they cannot be skipped apart; "
            "leave units out"
        )


def tower_reads(traits: Traits, model: Any, processor: PromptProcessor) -> tuple[int, ...]:
    """Which layers of its vision tower a model reads.

    Raises:
        ValueError: that cannot be told, with the reason.
    """
    return _Check(model, processor.with_answer_type(traits.answer_type)).tower_reads(traits)


class _Check:
    """One model under examination."""

    def __init__(self, model: Any, processor: PromptProcessor) -> None:
        self.model = model
        self.processor = processor
        self.name = type(model).__name__
        kind = model.config.model_type
        if kind in REFUSED:
            raise ValueError(f"{self.name} ({kind}) is refused: {REFUSED[kind]}")
        config = model.config.get_text_config(decoder=True)
        sharing = getattr(config, "num_kv_shared_layers", None)
        if sharing:
            raise ValueError(
                f"{self.name} ({kind}) is refused: its last {sharing} layers (num_kv_shared_layers) take keys and values "
                "from earlier ones, which a layer by itself cannot"
            )
        sources = getattr(config, "kv_source_layers", None)
        if sources is not None and list(sources) != list(range(len(sources))):
            raise ValueError(
                f"{self.name} ({kind}) is refused: some of its layers (kv_source_layers) take keys and values from earlier "
                "ones, which a layer by itself cannot"
            )
        self.tolerance = TOLERANCES.get(next(model.parameters()).dtype, 0.1)
        self.full = False

    @contextmanager
    def precisely(self) -> Iterator[None]:
        """Compute in 32 bits where the weights have 16, if the model can: what rounding hides is seen then.

        An answer's tokens that see each other, or a picture's part that depends on the question, may be less than it.
        """
        before = self.tolerance, self.full
        self.full = not self.full and any(has_halves(module) for module in self.model.modules()) and self._runs_in_full()
        if self.full:
            self.tolerance = TOLERANCES[torch.float32]
        try:
            with in_full(self.model) if self.full else nullcontext():
                yield
        finally:
            self.tolerance, self.full = before

    def _runs_in_full(self) -> bool:
        """Whether it is a model that minds no other type of its hidden vectors than that of its weights."""
        encodings = self._encodings(self._prompts(1))
        try:
            with in_full(self.model):
                return VLM(self.model).run(encodings, whole=True).logits.dtype == torch.float32
        except Exception:  # whatever torch raises where types are mixed
            return False

    @torch.no_grad()
    def traits(self) -> Traits:
        """The examination."""
        small = sum(p.numel() * p.element_size() for p in self.model.parameters()) <= RELOADED_BYTES
        with self.precisely():
            traits = self._ways()
            if small:
                self._check_deletion(traits)
        if not small:
            self._check_deletion(traits)
        self._check_counting(traits)
        return traits

    def _ways(self) -> Traits:
        """How it is driven, step by step: each needs what those before it found."""
        plain = VLM(self.model)
        self._note(plain)
        traits = replace(Traits(), keeps_images=False, shares_prefix=False, keys_only=False)
        recordings = [self._record(plain, self._prompts(rows), extra) for rows, extra in ((2, 3), (3, 8))]
        traits = replace(traits, axes=stack.learn_axes(recordings), adds=tuple(sorted(recordings[0].added)))
        traits = replace(traits, answer_type=self._answer_type(plain))
        self.processor = self.processor.with_answer_type(traits.answer_type)
        reach = max(traits.adds, default=0)
        why = "the model adds features of the picture behind it"
        traits = replace(traits, protected=dict.fromkeys(range(reach), why))
        traits = plainest = self._with_head(traits)
        traits = replace(traits, protected={**self._ends_that_stay(), **traits.protected})
        for feature in ("keeps_images", "shares_prefix", "keys_only"):
            richer: Traits = replace(traits, **{feature: True})  # type: ignore[arg-type]
            traits = richer if self._agrees(richer, plainest) else traits
        return traits

    def _prompts(self, count: int) -> list[Prompt]:
        """Questions on pictures of noise, two on the first."""
        images = [(NoiseImage(max(n - 1, 0)),) if self.processor.sees else () for n in range(count)]
        return [Prompt(QUESTIONS[n], image, ANSWERS[n]) for n, image in enumerate(images)]

    @contextmanager
    def _or_refuse(self, what: str) -> Iterator[None]:
        """Whatever transformers raises, as one line that says whose fault it is."""
        try:
            yield
        except Exception as error:
            first = next(iter(str(error).strip().splitlines()), "")
            raise ValueError(f"{self.name} cannot be driven: {what} ({type(error).__name__}: {first})") from error

    def _encodings(self, prompts: Sequence[Prompt]) -> list[Encoding]:
        pictures = " about a picture" if self.processor.sees else ""
        with self._or_refuse(f"its processor does not read a question{pictures}"):
            return [self.processor.encode(prompt, pixels=True) for prompt in prompts]

    def _run(self, vlm: VLM, encodings: Sequence[Encoding], **how: Any) -> Any:
        with self._or_refuse("its own forward fails on what its processor made of a question"):
            return vlm.run(encodings, **how)

    def _note(self, vlm: VLM) -> None:
        encodings = self._encodings(self._prompts(1))
        stack.note_outputs(vlm.stack, lambda: self._run(vlm, encodings))

    def _record(self, vlm: VLM, prompts: Sequence[Prompt], extra: int) -> stack.Recording:
        """Of a batch with padding, so that the model has to say what may be attended to."""
        encodings = self._encodings(prompts)
        if len({tuple(t.shape[1:] for t in e.pixels.values()) for e in encodings}) > 1:
            raise ValueError(f"{self.name} gives pictures of one size different forms: it cannot be driven")
        with self._or_refuse("its layers cannot be watched"):
            return stack.record(vlm.stack, lambda: vlm.run(encodings, extra=extra))

    def _answer_type(self, vlm: VLM) -> int | None:
        """The token type under which an answer's tokens see only those before them."""
        encoding = self._encodings(self._prompts(1))[0]
        if not encoding.types:
            return None
        for candidate in (None, 1, 0):
            processor = self.processor.with_answer_type(candidate)
            prompt = self._prompts(1)[0]
            longer = replace(prompt, answer=f"{prompt.answer} {ANSWERS[1]}")
            firsts = [self._logits(vlm, [processor.encode(p, pixels=True)], 1) for p in (prompt, longer)]
            if self.same(*firsts):
                return candidate
        raise ValueError(f"{self.name} lets the first word of an answer see those behind it: it cannot be scored")

    def _logits(self, vlm: VLM, encodings: Sequence[Encoding], tokens: int | None = None) -> Tensor:
        """(answer tokens, vocabulary) of the model's own forward, each prompt by itself."""
        found = []
        with in_full(vlm.model) if self.full else nullcontext():  # it may be another model than the one examined
            for encoding in encodings:
                output = self._run(vlm, [encoding], whole=True).logits[0]
                found.append(output[encoding.answer - 1 : -1][:tokens])
        return torch.cat(found)

    def same(self, one: Tensor, other: Tensor) -> bool:
        """Whether two are equal up to rounding."""
        scale = float(other.abs().max()) + 1e-6
        return one.shape == other.shape and float((one - other).abs().max()) <= self.tolerance * scale

    def _driven(self, traits: Traits, skipped: Sequence[int] = ()) -> Tensor:
        return self.driven(VLM(self.model, traits=traits), skipped)

    def driven(self, vlm: VLM, skipped: Sequence[int] = ()) -> Tensor:
        """Logits of the layers run one by one, without those at some places."""
        logits: Tensor = vlm.own_head()(self._features(vlm, skipped))
        return logits

    def _features(self, vlm: VLM, skipped: Sequence[int] = ()) -> Tensor:
        return self._replayed(vlm, self._state(vlm, 3), skipped)

    def _state(self, vlm: VLM, count: int) -> State:
        prompts = self._prompts(count)
        with self._or_refuse("its layers do not run one by one"):
            return vlm.gather(
                self.processor, prompts, lambda _, items: {key: vlm.see(self.processor, one) for key, one in items.items()}
            )

    def _replayed(self, vlm: VLM, state: State, skipped: Sequence[int]) -> Tensor:
        with self._or_refuse("its layers do not run one by one"):
            places = [p if unit.stream == JOINT else None for p, unit in zip(vlm.places, vlm.layers, strict=True)]
            features: Tensor = vlm.forward_encoded(state, [place in skipped for place in places])
        return features

    def _with_head(self, traits: Traits) -> Traits:
        """How the model's logits follow from the layers run one by one.

        Pictures of several prompts go in together, or, where they are told apart by numbers in their batch (Molmo 2), what
        the model makes of each is given to it.

        Raises:
            ValueError: they do not.
        """
        projection = self.model.get_output_embeddings()
        if projection is None:
            raise ValueError(f"{self.name} cannot be driven: it names no output embeddings, so no logits can be computed")
        own = self._logits(VLM(self.model), self._encodings(self._prompts(3)))
        own = own if self.full else own.to(projection.weight.dtype)
        for keeps in (False, True) if self.processor.sees else (False,):
            vlm = VLM(self.model, traits=replace(traits, keeps_images=keeps))
            try:
                features = self._features(vlm)
            except ValueError:
                if not keeps:
                    raise
                break
            plain = projection(features)
            for softcap in dict.fromkeys((None, *(getattr(vlm.text_config, name, None) for name in SOFTCAPS))):
                scale = _neat(_scale(plain.double(), own.double(), softcap), vlm.text_config)
                if self.same(LanguageHead(projection, softcap, scale)(features), own):
                    return replace(vlm.traits, logit_scale=scale, softcap=softcap)
        raise ValueError(
            f"{self.name} cannot be driven: its layers one by one do not give what its own forward gives, so it does "
            "more between its layers, or behind them, than can be replayed"
        )

    def _ends_that_stay(self) -> dict[int, str]:
        """The first and the last layer, where a configuration always makes them of one kind."""
        last = len(stack.find_decoder(self.model).layers) - 1
        why = "without it the model would not load again as it was"
        return {at: why for at in (0, last) if what_differs(delete_layers(shell(self.model), [at])) is not None}

    def _check_deletion(self, traits: Traits) -> None:
        """One layer deleted for real against its replay, and what comes back when that is saved and loaded."""
        vlm = VLM(self.model, traits=traits)
        if len(vlm.places) < 2:
            raise ValueError(f"{self.name} has {len(vlm.places)} decoder layers that could be skipped: there is no choice")
        gone = [vlm.places[len(vlm.places) // 2]]
        skipped = self._driven(traits, gone)
        smaller = delete_layers(shell(self.model), gone)
        encodings = self._encodings(self._prompts(3))
        difference = what_differs(smaller)
        if difference is not None:
            raise ValueError(f"{self.name} without layer {gone[0]} would not load again as it was: {difference}")
        if not self.same(skipped, self._logits(VLM(smaller, traits=Traits()), encodings)):
            raise ValueError(
                f"{self.name} without layer {gone[0]} is not the same as with that layer skipped: its layers are tied to "
                "their numbers in a way that das_gym does not know"
            )
        self._check_deletions(vlm, encodings[:1])
        if sum(p.numel() * p.element_size() for p in smaller.parameters()) <= RELOADED_BYTES:
            self._check_reloading(smaller, gone[0], skipped, encodings)

    def _check_deletions(self, vlm: VLM, encodings: Sequence[Encoding]) -> None:
        """As `_check_deletion`, for several layers at a time: of any two, one goes and the other stays in some of them.

        So a layer that reads anything of another one is found out, also what an earlier mask left behind.
        """
        state = self._state(vlm, len(encodings))
        for gone in apart(vlm.places):
            smaller = delete_layers(shell(self.model), gone)
            self._replayed(vlm, state, ())
            skipped = vlm.own_head()(self._replayed(vlm, state, gone))
            with self._or_refuse(f"without its layers {gone} its own forward fails"):
                deleted = self._logits(VLM(smaller, traits=Traits()), encodings)
            if not self.same(skipped, deleted):
                raise ValueError(
                    f"{self.name} without its layers {gone} is not the same as with them skipped: some layers read what "
                    "others computed, or are tied to their numbers in a way that das_gym does not know"
                )

    def _check_reloading(self, smaller: Any, gone: int, skipped: Tensor, encodings: Sequence[Encoding]) -> None:
        if not is_first():  # of several that train together: `save_pretrained` writes nothing there
            return
        with tempfile.TemporaryDirectory() as folder:
            dtype = next(smaller.parameters()).dtype
            with quiet_loading():
                smaller.save_pretrained(folder)
                again = type(smaller).from_pretrained(folder, dtype=dtype, local_files_only=True)
            again = in_double(again.to(smaller.device).eval())
        if not self.same(skipped, self._logits(VLM(again), encodings)):
            raise ValueError(f"{self.name} saved without layer {gone} gives other logits when it is loaded again")

    @torch.no_grad()
    def with_tower(self, traits: Traits) -> Traits:
        """The same with what is particular about the vision tower.

        Raises:
            ValueError: its layers cannot be skipped, with the reason.
        """
        if not self.processor.sees:
            raise ValueError(f"{self.name} reads text alone, so that vision=True has nothing to skip: leave it out")
        if not traits.keeps_images:
            raise ValueError(f"{self.name} makes more of pictures than can be kept and given to it again: leave vision out")
        given = VLM(self.model, traits=traits).placed(self._pixels())
        with self.precisely():
            with self._or_refuse("the layers of its vision tower cannot be skipped, so leave vision out"):
                found = TowerCheck(self.model, self.tolerance).traits(given)
            richer = replace(traits, tower=found)
            agrees = self.same(self._driven(richer), self._driven(traits))
        if not agrees:
            raise ValueError(
                f"{self.name} does more between the layers of its vision tower than can be replayed: leave vision out"
            )
        self._check_counting(richer)
        return richer

    @torch.no_grad()
    def tower_reads(self, traits: Traits) -> tuple[int, ...]:
        """Positions of the layers of its vision tower that are read."""
        with self._or_refuse("the layers of its vision tower cannot be watched, so its projector cannot train"):
            return TowerCheck(self.model, self.tolerance).reads(VLM(self.model, traits=traits).placed(self._pixels()))

    def _pixels(self) -> dict[str, Tensor]:
        (encoding,) = self._encodings(self._prompts(1))
        return encoding.pixels | encoding.sizes

    def _check_counting(self, traits: Traits) -> None:
        """Its MACs are counted without content, which experts that are chosen one by one cannot do without."""
        vlm = VLM(self.model, traits=traits)
        with self._or_refuse("the MACs of its layers cannot be counted without computing them"):
            counter = MacCounter(vlm)
            state, _ = counter.embed(vlm.sample(self.processor, self._prompts(1), counter)[0])
            for number, indices in enumerate(vlm.stages):
                state, _ = vlm.enter(state, number)
                for index in indices:
                    hidden, _ = counter.run_layer(index, state, False, False)
                    state = state.with_hidden({vlm.layers[index].stream: hidden})

    def _agrees(self, richer: Traits, plainest: Traits) -> bool:
        """Whether a shorter way gives the same; what it cannot do it may say in any way."""
        plain = replace(richer, keeps_images=plainest.keeps_images, shares_prefix=False, keys_only=False)
        try:
            return self.same(self._driven(richer), self._driven(plain))
        except Exception:
            return False


def _scale(plain: Tensor, own: Tensor, softcap: float | None) -> float:
    """What products with the output embeddings are multiplied by to give the model's logits."""
    if plain.shape != own.shape:
        return 1.0
    if softcap is not None:
        clear = own.abs() < 0.9 * softcap  # where a rounded logit still says what was capped
        plain, own = plain[clear], softcap * torch.atanh(own[clear] / softcap)
    scale = float((plain * own).sum() / (plain * plain).sum())
    return scale if np.isfinite(scale) else 1.0


def _neat(scale: float, config: Any) -> float:
    """A measured scale as the configuration has it, where a number of it, or one divided by it, is as large."""
    numbers = [float(value) for value in vars(config).values() if isinstance(value, int | float) and value > 0]
    known = [1.0, *numbers, *(1 / number for number in numbers)]
    nearest = min(known, key=lambda number: abs(number - scale))
    return nearest if abs(nearest - scale) <= 0.01 * abs(scale) else scale
