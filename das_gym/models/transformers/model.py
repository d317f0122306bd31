"""Any vision-language model of transformers, its decoder layers skippable, and those of its vision tower where asked for."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from das_gym.config import check_names
from das_gym.models.base import VLP, Forward, Kept, Layer, Mark, Memo, Site, SkippableLayer, State, no_mark, no_memo
from das_gym.models.inputs import Prompt
from das_gym.models.macs import MacCounter, counted, structure
from das_gym.models.transformers import features, stack
from das_gym.models.transformers.adapters import (
    ATTENTION_ADAPTER,
    MLP_ADAPTER,
    Gone,
    insert_adapters,
    sites_of,
    skip_unit,
    strip_adapters,
    usual_widths,
    what_lacks,
)
from das_gym.models.transformers.blocks import Block, join, make_block, plan
from das_gym.models.transformers.inputs import Encoding, PromptProcessor, batch_of, load_processor
from das_gym.models.transformers.tower import Pictures, Place, Tower, TowerTraits

UNITS = ("layers", "sublayers")
"""What may be skipped: whole decoder layers, or the attention and the MLP of each."""

JOINT, IMAGE = "joint", "image"
"""Streams: what the decoder's layers update, and what those of the vision tower do."""

WHOLE, ATTENTION, MLP = "layer", "attention", "mlp"
"""Kinds of units."""

ADAPTERS = (ATTENTION_ADAPTER, MLP_ADAPTER, "skip_adapter.adapter")
"""Parts of the names of what trains."""


@dataclass(frozen=True)
class Traits:
    """What a self-check found out about a model; the defaults are those of a plain causal decoder.

    Attributes:
        axes: Which axes of the arguments of its layers count rows and tokens.
        adds: Before which decoder layers the model adds something to the hidden vectors.
        protected: Positions of layers that are never skipped, with the reason.
        keeps_images: Whether what its vision tower puts out can be kept and given to it again.
        shares_prefix: Whether questions on the same pictures can share what they begin with.
        keys_only: Whether its last layer gives keys and values without computing anything else.
        answer_type: The token type of answers; None = that of the token before them.
        logit_scale: What products with the output embeddings are multiplied by.
        softcap: Logits are `softcap * tanh(logits / softcap)` where it is given.
        tower: What is particular about its vision tower; None = no layer of that is a unit.
    """

    axes: Mapping[str, stack.Axes] = field(default_factory=dict)
    adds: tuple[int, ...] = ()
    protected: Mapping[int, str] = field(default_factory=dict)
    keeps_images: bool = True
    shares_prefix: bool = True
    keys_only: bool = True
    answer_type: int | None = None
    logit_scale: float = 1.0
    softcap: float | None = None
    tower: TowerTraits | None = None


@dataclass
class Entry:
    """What the decoder needs to begin, besides what the layers of a vision tower give.

    Attributes:
        processor: The model's `PromptProcessor`.
        pairs: The prompts.
        keys: Of their pictures, each once, in the order in which they lie.
        places: Where those lie.
        given: Their pixels and sizes.
    """

    processor: PromptProcessor
    pairs: Sequence[Prompt]
    keys: tuple[Any, ...]
    places: list[Place]
    given: list[Mapping[str, Tensor]]

    def places_of_pairs(self) -> list[Place | None]:
        """Where the pictures of each prompt lie; None = it has none."""
        known = dict(zip(self.keys, self.places, strict=True))
        return [known.get(pair.image_key) if pair.images else None for pair in self.pairs]


class LanguageHead(nn.Module):
    """From final hidden vectors to logits over the vocabulary.

    Args:
        projection: The model's own output embeddings.
        softcap: Logits are `softcap * tanh(logits / softcap)` where it is given.
        scale: What they are multiplied by.
    """

    def __init__(self, projection: nn.Module, softcap: float | None = None, scale: float = 1.0) -> None:
        super().__init__()
        self.projection = projection
        self.softcap = softcap
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """(..., hidden_size) to (..., vocabulary)."""
        logits: Tensor = self.projection(features)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def batch_experts(model: Any) -> None:
    """Have a model with experts compute them as one batched product, in any type and without a look at the routing."""
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("batched_mm")


class VLM(VLP):
    """A model of transformers that answers in words: `AutoModelForImageTextToText`, or a text model alone.

    Its decoder layers are the skippable units, each a stage of its own, or with `units="sublayers"` the attention and the
    MLP of each. Behind them in a mask, and before them in the stages, come those of its vision tower where `traits` has one.
    It is driven by its own forward, see `das_gym.models.transformers.stack`. All positions lie flat in one stream, `joint`,
    see `das_gym.models.transformers.blocks`; pictures in the tower in another, `image`, see
    `das_gym.models.transformers.tower`.

    Args:
        model: The model of transformers.
        units: One of `UNITS`.
        traits: What is particular about it; `das_gym.models.transformers.checks.find_traits` finds out.

    Raises:
        ValueError: layers that cannot be found, or have no attention or MLP to skip apart.
    """

    tunable: tuple[str, ...] = ()  # until there are adapters
    promptless = "all positions of a batch lie flat in one stream"

    def __init__(self, model: Any, units: str = "layers", traits: Traits = Traits()) -> None:
        super().__init__()
        check_names([units], UNITS, "units")
        self.model = model.eval()
        self.stack = stack.find_decoder(model)
        self.traits = traits
        self.unit_kind = units
        self.tower = None if traits.tower is None else Tower(model, traits.tower)
        self.layers, self.places = _units(self.stack, units, traits.protected, self.tower)
        self.front = sum(layer.stream == IMAGE for layer in self.layers)
        self._entry_macs: dict[Any, int] = {}
        self._seen_macs: dict[Any, int] = {}
        self.modules_of = nn.ModuleList(
            SkippableLayer(self._part(index), nn.Identity()) for index in range(len(self.layers))
        )
        self.untrainable = self._untrainable()
        self.watched: Tower | None = None
        self.gone: frozenset[int] = frozenset()
        self.source_processor: Any = None
        self.feature_size = int(self.text_config.hidden_size)

    def _untrainable(self) -> str:
        if self.unit_kind != "layers":
            return "attention and MLP apart have no adapters: leave units out"
        if self.tower is not None:
            return "layers of the vision tower have no adapters: leave vision out"
        return next((why for place in self.places if (why := what_lacks(self.stack.layers[place]))), "")

    def insert_adapters(
        self, bottleneck: int | None, skip_bottleneck: int | None, generator: torch.Generator | None = None
    ) -> None:
        """Put adapters into every unit, and skip adapters in their places; see `das_gym.models.transformers.adapters`.

        Args:
            bottleneck: Width of those before attention and MLP, at least 1; None = that of `usual_widths`.
            skip_bottleneck: Width of skip adapters, likewise.
            generator: Draws their weights.

        Raises:
            ValueError: a width below 1, units that are no whole layers, or layers without a place for them.
        """
        usual = usual_widths(self.feature_size)
        bottleneck, skip_bottleneck = (
            own if width is None else width for width, own in zip((bottleneck, skip_bottleneck), usual, strict=True)
        )
        for name, width in (("bottleneck", bottleneck), ("skip_bottleneck", skip_bottleneck)):
            if width < 1:
                raise ValueError(f"{name}={width}: an adapter is at least 1 wide")
        if self.untrainable:
            raise ValueError(self.untrainable)
        for index, place in enumerate(self.places):
            layer, size = self.stack.layers[place], self.feature_size
            self.skippable(index).skip_adapter = skip_unit(layer, size, skip_bottleneck, generator)
            insert_adapters(layer, size, bottleneck, generator)
        self.tunable = ADAPTERS

    def sites(self, index: int) -> tuple[Site, ...]:
        """Attention and MLP of a whole decoder layer; see `VLP.sites`."""
        if self.unit_kind != "layers":
            raise ValueError("methods of fine-tuning go into whole layers: leave units out")
        return sites_of(self.stack.layers[self.places[index]])

    def open_projector(self, reads: tuple[int, ...]) -> None:
        """Have what lies between vision tower and decoder train with the adapters, in 32 bits at least.

        What the tower gives is kept, once a picture, and what the projector makes of it is computed anew each time.

        Args:
            reads: Positions of the tower's layers that are read, as `TowerTraits.reads`.

        Raises:
            ValueError: there is no projector under a known name.
        """
        found = features.projector_of(self.model)
        if not found:
            raise ValueError(
                f"{type(self.model).__name__} has nothing between vision tower and decoder under a known name: leave its "
                "projector frozen, with projector_learning_rate=0"
            )
        for module in found.values():
            features.compute_in_full(module)
        self.watched = Tower(self.model, TowerTraits(reads))
        self.projector = tuple(f"model.{name}." for name in found)
        self.tunable = (*self.tunable, *self.projector)

    def remove_adapters(self) -> None:
        """As `VLP.remove_adapters`; then `prune` deletes layers for good. A projector that would train does not."""
        super().remove_adapters()
        self.watched, self.projector = None, ()
        for layer in self.stack.layers:
            strip_adapters(layer)
        self.tunable = ()

    @property
    def text_config(self) -> Any:
        """The configuration of its decoder."""
        return self.model.config.get_text_config(decoder=True)

    @property
    def causal_by_itself(self) -> bool:
        """Whether its attention is causal where it is given no mask: scaled dot product attention is."""
        return bool(self.text_config._attn_implementation == "sdpa")

    @property
    def decoder_units(self) -> int:
        """How many of the units are the decoder's: they come first in a mask."""
        return len(self.layers) - self.front

    def stack_of(self, index: int) -> stack.Stack:
        """The layers that a unit is one of, or half of one."""
        return self.stack if self.tower is None or index < self.decoder_units else self.tower.stack

    def gone_of(self, mask: Sequence[bool] | np.ndarray, stream: str = JOINT) -> list[int]:
        """Positions of the layers of decoder (`joint`) or vision tower (`image`) that a mask skips."""
        array = self.check_mask(mask)
        return [p for p, unit, bit in zip(self.places, self.layers, array, strict=True) if bit and unit.stream == stream]

    def _part(self, index: int) -> nn.Module:
        """The module that a unit's parameters are counted by."""
        layer, kind = self.stack_of(index).layers[self.places[index]], self.layers[index].kind
        if kind == WHOLE:
            return layer
        names = stack.ATTENTION_NAMES if kind == ATTENTION else stack.MLP_NAMES
        part: nn.Module = getattr(layer, stack.child(layer, names) or "")
        return part

    def inputs(self, folder: Path, max_text_length: int | None = None) -> PromptProcessor:  # type: ignore[override]
        """Its own processor, from the folder's files."""
        processor = load_processor(folder) if self.source_processor is None else self.source_processor
        return self.processor_of(processor, max_text_length)

    def processor_of(self, processor: Any, max_text_length: int | None = None) -> PromptProcessor:
        """A processor of transformers as das_gym uses it."""
        longest = getattr(self.text_config, "max_position_embeddings", None) or 2**20
        ends = self.model.generation_config.eos_token_id if self.model.generation_config is not None else None
        ends = self.text_config.eos_token_id if ends is None else ends
        ends = tuple(ends) if isinstance(ends, list) else (ends,)
        if ends == (None,):
            ends = (getattr(processor, "tokenizer", processor).eos_token_id,)
        return PromptProcessor(processor, ends, min(max_text_length or longest, longest), self.traits.answer_type)

    def own_head(self) -> LanguageHead:
        """Its own way from hidden vectors to logits."""
        return LanguageHead(self.model.get_output_embeddings(), self.traits.softcap, self.traits.logit_scale)

    def encode_items(
        self, processor: Any, stream: str, items: Mapping[Any, Prompt], counter: MacCounter
    ) -> Iterator[tuple[Any, Any, int]]:
        """What the vision tower and the projector make of the pictures of each prompt, and the MACs of that.

        Where layers of the tower are units, what it reads, at no cost: a mask decides what comes of that.
        """
        del stream, counter
        for key, prompt in items.items():
            encoding = processor.encode(prompt, pixels=True)
            sizes = tuple((name, tuple(t.flatten().tolist())) for name, t in encoding.sizes.items())
            shapes = self.watched is None, sizes, tuple((name, t.shape) for name, t in encoding.pixels.items())
            if shapes not in self._seen_macs:  # counting runs attention in another way, so its output is not used
                self._seen_macs[shapes] = counted(partial(self._see, encoding))[1]
            with torch.no_grad():
                seen = self._see(encoding)
            yield key, seen, self._seen_macs[shapes]

    def see(self, processor: PromptProcessor, prompt: Prompt) -> dict[str, Any]:
        """What the vision tower and the projector make of a prompt's pictures, see `features.seen`; see `encode_items`."""
        return self._see(processor.encode(prompt, pixels=True))

    def ready(self, processor: Any, pairs: Sequence[Any], augment: tuple[int, int] | None = None) -> Forward:
        """As `VLP.ready`: vision tower, decoder, and all between.

        Raises:
            ValueError: augmentation, which prompts have none of.
        """
        if augment is not None:
            raise ValueError("pictures of prompts are not augmented: leave augment out")
        encodings = {p.image_key: processor.encode(p, pixels=True) for p in pairs if p.images}

        def forward(mask: Sequence[bool] | np.ndarray | None = None) -> Tensor:
            state = self.gather(processor, pairs, lambda _, items: {key: self._see(encodings[key]) for key in items})
            return self.forward_encoded(state, mask)

        return forward

    def served(self, processor: Any, pairs: Sequence[Any]) -> Callable[..., Tensor]:
        """As `VLP.served`: its own forward up to the first token, every position in every layer, as others run its folder.

        With adapters, which no folder of transformers has, as `ready` runs it.
        """
        if self.tunable:
            return super().served(processor, pairs)
        encodings = [processor.encode(prompt, pixels=True) for prompt in pairs]

        def timed(mask: Sequence[bool] | np.ndarray | None = None, mark: Mark = no_mark) -> Tensor:
            skips = self._skips(mask)
            parts = {self._part(i): self._marked(i, skips[i], mark) for i in range(len(self.layers)) if i not in self.gone}
            with stack.replaced(parts):
                return self.run(encodings).last_hidden_state[:, -1]

        return timed

    def _marked(self, index: int, skipped: bool, mark: Mark) -> Callable[..., Any]:
        """The forward of a unit's module, or what stands for it where it is skipped, between two marks."""
        module = self._part(index)
        run = module.forward
        if skipped:
            run = stack.passing(module) if self.layers[index].kind == WHOLE else stack.zeros(module)

        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            mark(index, hidden)
            output = run(*args, **kwargs)
            mark(index, output[0] if isinstance(output, tuple) else output)
            return output

        return forward

    def _see(self, encoding: Encoding) -> dict[str, Any]:
        given = self.placed(encoding.pixels | encoding.sizes)
        if self.watched is not None:
            return self.watched.watch(given)
        return given if self.tower is not None else features.seen(self.model, given)

    def placed(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch on the model's device, in the type of its weights."""
        dtype = self.model.dtype
        return {n: t.to(self.device, dtype if t.is_floating_point() else t.dtype) for n, t in batch.items()}

    def sample(self, processor: Any, pairs: Sequence[Any], counter: MacCounter) -> tuple[State, int]:
        """The longest of the prompts, and the MACs of its pictures."""
        longest = max(pairs, key=lambda prompt: len(prompt.question) + len(prompt.answer or ""))
        if not (longest.images and self.traits.keeps_images):
            return counted(lambda: self.gather(processor, [longest], lambda _, items: {}))
        (_, part, macs), *_ = self.encode_items(processor, "image", {0: longest}, counter)
        return self.gather(processor, [longest], lambda _, items: dict.fromkeys(items, part)), macs

    def gather(self, processor: Any, pairs: Sequence[Any], kept: Kept) -> State:
        """The state before everything that a mask touches.

        Args:
            processor: Its `PromptProcessor`.
            pairs: `Prompt`s, at least one.
            kept: Gives what `encode_items` made of pictures, by their key, from memory where it can.
        """
        wanted = {p.image_key: p for p in pairs if p.images} if self.traits.keeps_images else {}
        seen = kept("image", wanted)
        if self.watched is not None:
            seen = {key: self.watched.read(part) for key, part in seen.items()}
        if self.tower is None:
            return self._before_decoder(processor, pairs, seen)
        given = [seen[key] for key in wanted]
        hidden, pictures, places = self.tower.begin(given)
        entry = Entry(processor, pairs, tuple(wanted), places, given)
        return State({IMAGE: hidden}, {IMAGE: None}, {"pictures": pictures, "entry": entry})

    def _before_decoder(self, processor: PromptProcessor, pairs: Sequence[Prompt], seen: Mapping[Any, Any]) -> State:
        """The state before the first decoder layer, from what the model makes of pictures, by their key."""
        images = self.traits.keeps_images
        encodings = [processor.encode(prompt, pixels=not images and bool(prompt.images)) for prompt in pairs]
        blocks, hidden, order = [], [], []
        for chosen in plan(pairs, encodings, self.traits.shares_prefix):
            own = [encodings[row] for row in chosen.rows]
            given = [seen[pairs[row].image_key] for row in chosen.rows if pairs[row].images] if images else []
            recording = stack.record(self.stack, partial(self.run, own, given), self.traits.adds)
            block, flat = make_block(chosen, own, recording, self.traits.axes, self.causal_by_itself)
            blocks.append(block)
            hidden.append(flat)
            order += [(row, place) for row, e in zip(chosen.rows, own, strict=True) for place in range(e.answer, len(e.ids))]
        back = torch.tensor(sorted(range(len(order)), key=order.__getitem__), device=self.device)
        return State({"joint": torch.cat(hidden, dim=1)}, {"joint": None}, {"blocks": tuple(blocks), "order": back})

    def run(self, encodings: Sequence[Encoding], given: Sequence[Any] = (), whole: bool = False, extra: int = 0) -> Any:
        """The model's own forward on a batch of prompts.

        Args:
            encodings: Theirs.
            given: What `see` made of their pictures, where it is kept.
            whole: With its head.
            extra: Tokens of padding behind the longest.
        """
        pad = self.text_config.pad_token_id or 0
        batch = batch_of(encodings, pad, extra)
        batch |= {name: torch.cat([e.pixels[name] for e in encodings]) for name in encodings[0].pixels}
        batch = self.placed(batch)
        with features.instead(self.model, given) if given else nullcontext():
            if given:
                batch["pixel_values"] = torch.zeros(len(given), device=self.device)
            return self.model(**batch, use_cache=False) if whole else self._headless(batch)

    def _headless(self, batch: Mapping[str, Tensor]) -> Any:
        """Its own forward up to `last_hidden_state`; where it has no part without the head, what the head is given."""
        from transformers.modeling_outputs import BaseModelOutput

        head = self.model.get_output_embeddings()
        if self.model.base_model is not self.model or head is None:
            return self.model.base_model(**batch, use_cache=False)
        given: list[Tensor] = []

        def keep(hidden: Tensor) -> Tensor:
            given.append(hidden)
            return hidden

        with stack.replaced({head: keep}):
            self.model(**batch, use_cache=False)
        return BaseModelOutput(last_hidden_state=given[0])

    def count_without_content(self) -> None:
        """Experts as products whose shapes do not depend on what tokens hold: as many, each token by its own experts."""
        batch_experts(self.model)

    def embed(self, encoded: State) -> State:
        """The state before the first unit: protected layers before it have run."""
        if self.tower is not None:
            first = self.places[self.decoder_units]
            return encoded.with_hidden({IMAGE: self._fixed_in_tower(encoded, encoded.hidden[IMAGE], 0, first)})
        return encoded.with_hidden({"joint": self._fixed(encoded, encoded.hidden["joint"], 0, self.places[0], False)})

    def enter(self, state: State, stage: int) -> tuple[State, int]:
        """Behind the last unit of the vision tower: all that runs up to the first unit of the decoder."""
        if self.tower is None or stage != self.front:
            return state, 0
        tower, entry = self.tower, state.extras["entry"]

        def begun() -> State:
            seen = tower.features(state.hidden[IMAGE], state.extras["pictures"], entry.places, entry.given)
            before = self._before_decoder(entry.processor, entry.pairs, dict(zip(entry.keys, seen, strict=True)))
            return before.with_hidden({JOINT: self._fixed(before, before.hidden[JOINT], 0, self.places[0], False)})

        shapes = tuple(block.shape for block in state.extras["pictures"])
        encodings = [entry.processor.encode(pair) for pair in entry.pairs]
        key = shapes, tuple((pair.image_key, len(e.ids), e.answer) for pair, e in zip(entry.pairs, encodings, strict=True))
        if key not in self._entry_macs:  # counting runs attention in another way: what is scored does not depend on it
            self._entry_macs[key] = counted(begun)[1]
        return begun(), self._entry_macs[key]

    def skippable(self, index: int) -> SkippableLayer:
        """The module of unit `index`."""
        unit: SkippableLayer = self.modules_of[index]  # type: ignore[assignment]
        return unit

    def alike(self, index: int) -> Hashable:
        """As `VLP.alike`: decoder layers that are built the same, with the same layers up to the next unit."""
        if self.gone or self.layers[index].stream == IMAGE:
            return index
        end = self.places[index + 1] if index + 1 < self.decoder_units else len(self.stack.layers)
        layers = tuple(structure(layer) for layer in self.stack.layers[self.places[index] : end])
        at_end = end == len(self.stack.layers)
        return self.layers[index].kind, layers, structure(self.skippable(index)), at_end

    def run_layer(self, index: int, state: State, skipped: bool, memo: Memo = no_memo, pooled_only: bool = False) -> Tensor:
        """New hidden vectors, (1, flat tokens, hidden_size); with `pooled_only` those from which answers are read alone."""
        del memo
        if self.layers[index].stream == IMAGE:
            return self._run_in_tower(index, state, skipped)
        place, kind = self.places[index], self.layers[index].kind
        after = place + (index not in self.gone)
        end = self.places[index + 1] if index + 1 < self.decoder_units else len(self.stack.layers)
        at_end = pooled_only and after == len(self.stack.layers)
        chosen, hidden = self.skippable(index).chosen(skipped), state.hidden["joint"]
        if skipped:
            hidden = self._each(state, hidden, partial(self._pass, chosen, at_end))
        else:
            layer = chosen if kind == WHOLE else self.stack.layers[place]
            with self._without(layer, kind):
                hidden = self._each(state, hidden, partial(self._run, layer, place, kind, at_end))
        return self._fixed(state, hidden, after, end, pooled_only)

    def _run_in_tower(self, index: int, state: State, skipped: bool) -> Tensor:
        """New hidden vectors of the stream `image`, see `das_gym.models.transformers.tower`."""
        tower: Any = self.tower
        place, kind = self.places[index], self.layers[index].kind
        end = self.places[index + 1] if index + 1 < len(self.places) else len(tower.stack.layers)
        chosen, hidden = self.skippable(index).chosen(skipped), state.hidden[IMAGE]
        if skipped and index in self.gone:
            return self._fixed_in_tower(state, hidden, place, end)
        layer = chosen if kind == WHOLE else tower.stack.layers[place]
        run = None if skipped else partial(stack.run_layer, layer)
        with self._without(layer, WHOLE if skipped else kind):
            hidden = tower.step(hidden, state.extras["pictures"], place, run, kind == MLP)
        return self._fixed_in_tower(state, hidden, place + (index not in self.gone), end)

    def _fixed_in_tower(self, state: State, hidden: Tensor, start: int, end: int) -> Tensor:
        """Run the layers of the vision tower between two units, as far as anybody reads them."""
        tower: Any = self.tower
        for place in range(start, min(end, max(tower.traits.reads) + 1)):
            hidden = tower.step(hidden, state.extras["pictures"], place, partial(stack.run_layer, tower.stack.layers[place]))
        return hidden

    def _without(self, layer: nn.Module, kind: str) -> Any:
        """The layer with its other half giving zeros."""
        if kind == WHOLE:
            return nullcontext()
        other = stack.child(layer, stack.MLP_NAMES if kind == ATTENTION else stack.ATTENTION_NAMES)
        module = getattr(layer, other or "")
        return stack.replaced({module: stack.zeros(module)})

    def _fixed(self, state: State, hidden: Tensor, start: int, end: int, pooled_only: bool) -> Tensor:
        """Run the layers between two units, which no mask skips, and what the model adds before each, and before `end`."""
        for place in range(start, end + 1):
            if any(place in block.added for block in state.extras["blocks"]):
                added = [block.added[place] for block in state.extras["blocks"]]
                hidden = hidden + torch.cat(added, dim=1)
            if place < end:
                last = pooled_only and place == len(self.stack.layers) - 1
                hidden = self._each(state, hidden, partial(self._run, self.stack.layers[place], place, WHOLE, last))
        return hidden

    def _each(self, state: State, hidden: Tensor, run: Callable[[Block, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        """`run` on the prefixes and rows of every block, flat again."""
        blocks: tuple[Block, ...] = state.extras["blocks"]
        parts = hidden.split([block.flat for block in blocks], dim=1)
        return torch.cat([join(*run(block, *block.split(part))) for block, part in zip(blocks, parts, strict=True)], dim=1)

    @staticmethod
    def _pass(unit: nn.Module, last: bool, block: Block, before: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What stands in a skipped layer's place makes of prefixes and rows; `last`: only what answers are read from."""
        return (before[:, :0], unit(block.part(rows, block.first, None))) if last else (unit(before), unit(rows))

    def _run(
        self, layer: nn.Module, place: int, kind: str, last: bool, block: Block, before: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A layer, or half of it, on prefixes and rows; `last`: only what answers are read from."""
        place = min(place, len(block.calls) - 1)  # a layer that prune() removed is still counted
        shared, prefix = before[:, :0], block.packing.prefix
        if kind == MLP:
            if last:
                return shared, stack.run_layer(layer, block.part(rows, block.first, None), block.last[1])
            shared = stack.run_layer(layer, before, block.before[place]) if prefix else before
            return shared, stack.run_layer(layer, rows, block.calls[place])
        if last:
            return shared, self._answers(layer, block, before, rows)
        if not prefix:
            return before, stack.run_layer(layer, rows, block.calls[place])
        cache = stack.LayerCache()
        shared = stack.run_layer(layer, before, block.before[place], cache)
        return shared, stack.run_layer(layer, rows, block.calls[place], stack.LayerCache(cache.keys, cache.values))

    def _answers(self, layer: nn.Module, block: Block, before: Tensor, rows: Tensor) -> Tensor:
        """The last layer at the positions from which answers are read; of the others only keys and values are computed."""
        place = len(self.stack.layers) - 1
        if not block.last[1].made:
            return block.part(rows, block.first, None)
        if not self.traits.keys_only:
            return block.part(self._run(layer, place, WHOLE, False, block, before, rows)[1], block.first, None)
        known = stack.LayerCache()
        if block.packing.prefix:
            known = stack.keys_and_values(layer, before, block.before[place])
        if block.first:
            middle = stack.keys_and_values(layer, block.part(rows, 0, block.first), block.last[0])
            known = stack.LayerCache(*known.update(middle.keys, middle.values))  # type: ignore[arg-type]
        asking = block.part(rows, block.first, None)
        return stack.run_layer(layer, asking, block.last[1], known if known.is_initialized else None)

    def pool(self, state: State) -> Tensor:
        """(tokens of all answers, feature_size): the final hidden vectors that the answers' tokens are predicted from.

        Prompt by prompt, and in each token by token.
        """
        blocks: tuple[Block, ...] = state.extras["blocks"]
        hidden = state.hidden["joint"]
        short = [block.rows * (block.packing.tokens - block.first) for block in blocks]
        whole = hidden.shape[1] != sum(short)
        parts = hidden.split([block.flat for block in blocks] if whole else short, dim=1)
        read = []
        for block, part in zip(blocks, parts, strict=True):
            read.append(block.answers(block.part(block.split(part)[1], block.first, None) if whole else part))
        features: Tensor = self.stack.norm(torch.cat(read)[state.extras["order"]])
        return features

    def rows_of(self, state: State, stream: str, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """(rows, tokens, hidden_size), each row behind its prefix, and which tokens are there."""
        if stream == IMAGE:
            return self._rows_of_pictures(state, hidden)
        blocks: tuple[Block, ...] = state.extras["blocks"]
        longest = max(block.packing.prefix + block.packing.tokens for block in blocks)
        rows, there = [], []
        for block, part in zip(blocks, hidden.split([block.flat for block in blocks], dim=1), strict=True):
            before, own = block.split(part)
            own = own.reshape(block.rows, -1, own.shape[-1])
            whole = torch.cat((before.repeat_interleave(block.packing.each, dim=0), own), dim=1)
            rows.append(nn.functional.pad(whole, (0, 0, 0, longest - whole.shape[1])))
            ends = torch.zeros(block.rows, dtype=torch.long, device=hidden.device)
            ends = ends.scatter_reduce(0, block.read[0], block.read[1] + 2 + block.packing.prefix, "amax")
            there.append(torch.arange(longest, device=hidden.device) < ends[:, None])
        return torch.cat(rows), torch.cat(there)[:, None, None]

    def _rows_of_pictures(self, state: State, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(prompts, tokens, hidden_size) pictures of each, and which tokens are there; a prompt without has none."""
        pictures: tuple[Pictures, ...] = state.extras["pictures"]
        total = sum(block.tokens for block in pictures)
        parts = hidden[:, hidden.shape[1] - total :].split([block.tokens for block in pictures], dim=1)
        rows = []
        for place in state.extras["entry"].places_of_pairs():
            if place is None:
                rows.append(hidden.new_ones(1, hidden.shape[-1]))
                continue
            part = parts[place.block].view(*pictures[place.block].shape[:-1], -1)
            rows.append((part if place.rows is None else part[place.rows]).reshape(-1, part.shape[-1]))
        seen = [place is not None for place in state.extras["entry"].places_of_pairs()]
        there = [torch.full((len(row),), sees, device=hidden.device) for row, sees in zip(rows, seen, strict=True)]
        padded = [nn.utils.rnn.pad_sequence(each, batch_first=True) for each in (rows, there)]
        return padded[0], padded[1][:, None, None]

    def state_bytes(self, encoded: State) -> int:
        """As `VLP.state_bytes`: of pictures in the vision tower, or of prompts in the decoder."""
        if self.tower is None:
            return super().state_bytes(encoded)
        entry = encoded.extras["entry"]
        tokens = sum(len(entry.processor.encode(pair).ids) for pair in entry.pairs)
        pictures = len(self.tower.traits.reads) * super().state_bytes(encoded)
        return max(pictures, tokens * self.feature_size * self.model.dtype.itemsize)

    def pooled_tokens(self, state: State, stream: str) -> Tensor:
        """(rows,) int64: the token that the first token of the answer is predicted from; the first of pictures."""
        if stream == IMAGE:
            return torch.zeros(len(state.extras["entry"].pairs), dtype=torch.long, device=self.device)
        firsts = []
        for block in state.extras["blocks"]:
            far = torch.full((block.rows,), 2**62, dtype=torch.long, device=block.read[0].device)
            firsts.append(far.scatter_reduce(0, block.read[0], block.read[1] + block.packing.prefix, "amin"))
        return torch.cat(firsts)

    @property
    def device(self) -> torch.device:
        """Where its inputs go."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    def prune(self, mask: Sequence[bool] | np.ndarray) -> None:
        """Delete the skipped layers for good; see `das_gym.models.transformers.pruning.delete_layers`.

        Where there are adapters, a skipped layer's place stays, and its skip adapter runs there.
        """
        from das_gym.models.transformers.pruning import delete_layers

        array = self.check_mask(mask)
        if self.unit_kind != "layers":
            raise ValueError("attention and MLP apart cannot be deleted from a model of transformers; search units=layers")
        super().prune(array)
        gone = {stream: self.gone_of(array, stream) for stream in (JOINT, IMAGE)}
        if self.tunable:
            for place in gone[JOINT]:
                self.stack.layers[place] = Gone(self.stack.layers[place])
            return
        self.model = delete_layers(self.model, gone[JOINT], gone[IMAGE])
        self.stack = stack.find_decoder(self.model)
        if self.tower is not None:
            self.tower = Tower(self.model, self.tower.traits.without(gone[IMAGE]))
        self.gone = frozenset(np.flatnonzero(array).tolist())
        pairs = zip(self.places, self.layers, strict=True)
        self.places = tuple(place - sum(other < place for other in gone[unit.stream]) for place, unit in pairs)

    def to(self, *args: Any, **kwargs: Any) -> VLM:
        """As in torch; a model that was spread over devices by `device_map` stays where it is."""
        return self if getattr(self.model, "hf_device_map", None) else super().to(*args, **kwargs)


def _units(
    decoder: stack.Stack, units: str, protected: Mapping[int, str], tower: Tower | None
) -> tuple[tuple[Layer, ...], tuple[int, ...]]:
    """The units and the position of each one's layer: the decoder's, then those of the tower, which runs before."""
    found = _units_of(decoder, units, protected, "decoder", JOINT)
    seen = [] if tower is None else _units_of(tower.stack, units, tower.traits.protected, "vision", IMAGE)
    placed = [(replace(unit, stage=len(seen) + n), place) for n, (unit, place) in enumerate(found)]
    placed += [(replace(unit, stage=n), place) for n, (unit, place) in enumerate(seen)]
    return tuple(unit for unit, _ in placed), tuple(place for _, place in placed)


def _units_of(
    layers: stack.Stack, units: str, protected: Mapping[int, str], name: str, stream: str
) -> list[tuple[Layer, int]]:
    """The units of one list of layers, and the position of each one's layer."""
    found = []
    for place, layer in enumerate(layers.layers):
        if place in protected:
            continue
        if units == "sublayers" and not (stack.child(layer, stack.ATTENTION_NAMES) and stack.child(layer, stack.MLP_NAMES)):
            raise ValueError(f"{name} layer {place}, a {type(layer).__name__}, has no attention and MLP to skip apart")
        for kind in (WHOLE,) if units == "layers" else (ATTENTION, MLP):
            unit = f"{name}.{place}" if kind == WHOLE else f"{name}.{place}.{kind}"
            found.append((Layer(unit, stream, 0, kind), place))
    return found
