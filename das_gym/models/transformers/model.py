"""Any vision-language model of transformers, its decoder layers skippable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from das_gym.config import check_names
from das_gym.models.adapters import Site
from das_gym.models.base import VLP, Forward, Kept, Layer, Mark, Memo, SkippableLayer, State, no_mark, no_memo
from das_gym.models.inputs import Prompt
from das_gym.models.macs import MacCounter, counted
from das_gym.models.transformers import features, stack
from das_gym.models.transformers.adapters import (
    ATTENTION_ADAPTER,
    MLP_ADAPTER,
    Gone,
    insert_adapters,
    sites_of,
    skip_unit,
    strip_adapters,
    what_lacks,
)
from das_gym.models.transformers.blocks import Block, join, make_block, plan
from das_gym.models.transformers.inputs import Encoding, PromptProcessor, batch_of, load_processor

UNITS = ("layers", "sublayers")
"""What may be skipped: whole decoder layers, or the attention and the MLP of each."""

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
    MLP of each. It is driven by its own forward, see `das_gym.models.transformers.stack`. All positions lie flat in one
    stream, `joint`; see `das_gym.models.transformers.blocks`.

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
        self.layers, self.places = _units(self.stack, units, traits.protected)
        self.modules_of = nn.ModuleList(
            SkippableLayer(self._part(index), nn.Identity()) for index in range(len(self.layers))
        )
        self.untrainable = self._untrainable()
        self.gone: frozenset[int] = frozenset()
        self.source_processor: Any = None
        self.feature_size = int(self.text_config.hidden_size)

    def _untrainable(self) -> str:
        if self.unit_kind != "layers":
            return "attention and MLP apart have no adapters: leave units out"
        return next((why for place in self.places if (why := what_lacks(self.stack.layers[place]))), "")

    def insert_adapters(self, bottleneck: int, skip_bottleneck: int, generator: torch.Generator | None = None) -> None:
        """Put adapters into every unit, and skip adapters in their places; see `das_gym.models.transformers.adapters`.

        Args:
            bottleneck: Width of those before attention and MLP, at least 1.
            skip_bottleneck: Width of skip adapters, at least 1.
            generator: Draws their weights.

        Raises:
            ValueError: a width below 1, units that are no whole layers, or layers without a place for them.
        """
        for name, width in (("bottleneck", bottleneck), ("skip_bottleneck", skip_bottleneck)):
            if width < 1:
                raise ValueError(f"{name}={width}: an adapter is at least 1 wide")
        if self.unit_kind != "layers":
            raise ValueError("adapters stand in whole layers: leave units out")
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

    def remove_adapters(self) -> None:
        """As `VLP.remove_adapters`; then `prune` deletes layers for good."""
        super().remove_adapters()
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

    def _part(self, index: int) -> nn.Module:
        """The module that a unit's parameters are counted by."""
        layer, kind = self.stack.layers[self.places[index]], self.layers[index].kind
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
        """What the vision tower and the projector make of the pictures of each prompt, and the MACs of that."""
        del stream, counter
        for key, prompt in items.items():
            yield key, *counted(partial(self.see, processor, prompt))

    def see(self, processor: PromptProcessor, prompt: Prompt) -> dict[str, Any]:
        """What the vision tower and the projector make of a prompt's pictures; see `features.seen`."""
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
        return features.seen(self.model, self.placed(encoding.pixels | encoding.sizes))

    def placed(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch on the model's device, in the type of its weights."""
        dtype = self.model.dtype
        return {n: t.to(self.device, dtype if t.is_floating_point() else t.dtype) for n, t in batch.items()}

    def sample(self, processor: Any, pairs: Sequence[Any], counter: MacCounter) -> tuple[State, int]:
        """The longest of the prompts, and the MACs of its pictures."""
        longest = max(pairs, key=lambda prompt: len(prompt.question) + len(prompt.answer))
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
        images = self.traits.keeps_images
        encodings = [processor.encode(prompt, pixels=not images and bool(prompt.images)) for prompt in pairs]
        wanted = {prompt.image_key: prompt for prompt in pairs if prompt.images} if images else {}
        seen = kept("image", wanted)
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
            return (self.model if whole else self.model.base_model)(**batch, use_cache=False)

    def count_without_content(self) -> None:
        """Experts as products whose shapes do not depend on what tokens hold: as many, each token by its own experts."""
        batch_experts(self.model)

    def embed(self, encoded: State) -> State:
        """The state before the first unit: protected layers before it have run."""
        return encoded.with_hidden({"joint": self._fixed(encoded, encoded.hidden["joint"], 0, self.places[0], False)})

    def skippable(self, index: int) -> SkippableLayer:
        """The module of unit `index`."""
        unit: SkippableLayer = self.modules_of[index]  # type: ignore[assignment]
        return unit

    def run_layer(self, index: int, state: State, skipped: bool, memo: Memo = no_memo, pooled_only: bool = False) -> Tensor:
        """New hidden vectors, (1, flat tokens, hidden_size); with `pooled_only` those from which answers are read alone."""
        del memo
        place, kind = self.places[index], self.layers[index].kind
        after = place + (index not in self.gone)
        end = self.places[index + 1] if index + 1 < len(self.places) else len(self.stack.layers)
        at_end = pooled_only and after == len(self.stack.layers)
        chosen, hidden = self.skippable(index).chosen(skipped), state.hidden["joint"]
        if skipped:
            hidden = self._each(state, hidden, lambda block, before, rows: self._pass(block, before, chosen(rows), at_end))
        else:
            layer = chosen if kind == WHOLE else self.stack.layers[place]
            with self._without(layer, kind):
                hidden = self._each(state, hidden, partial(self._run, layer, place, kind, at_end))
        return self._fixed(state, hidden, after, end, pooled_only)

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
    def _pass(block: Block, before: Tensor, rows: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        """What a skipped unit gives."""
        return (before[:, :0], block.part(rows, block.first, None)) if last else (before, rows)

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

    def pooled_tokens(self, state: State, stream: str) -> Tensor:
        """(rows,) int64: the token that the first token of the answer is predicted from."""
        del stream
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
        if self.tunable:
            for place in (place for place, skipped in zip(self.places, array, strict=True) if skipped):
                self.stack.layers[place] = Gone(self.stack.layers[place])
            return
        gone = [place for place, skipped in zip(self.places, array, strict=True) if skipped]
        self.model = delete_layers(self.model, gone)
        self.stack = stack.find_decoder(self.model)
        self.gone = frozenset(np.flatnonzero(array).tolist())
        self.places = tuple(place - sum(other < place for other in gone) for place in self.places)

    def to(self, *args: Any, **kwargs: Any) -> VLM:
        """As in torch; a model that was spread over devices by `device_map` stays where it is."""
        return self if getattr(self.model, "hf_device_map", None) else super().to(*args, **kwargs)


def _units(decoder: stack.Stack, units: str, protected: Mapping[int, str]) -> tuple[tuple[Layer, ...], tuple[int, ...]]:
    """The units and the position of each one's layer."""
    layers: list[Layer] = []
    places: list[int] = []
    for place, layer in enumerate(decoder.layers):
        if place in protected:
            continue
        kinds = (WHOLE,) if units == "layers" else (ATTENTION, MLP)
        if units == "sublayers" and not (stack.child(layer, stack.ATTENTION_NAMES) and stack.child(layer, stack.MLP_NAMES)):
            raise ValueError(f"decoder layer {place}, a {type(layer).__name__}, has no attention and MLP to skip apart")
        for kind in kinds:
            name = f"decoder.{place}" if kind == WHOLE else f"decoder.{place}.{kind}"
            layers.append(Layer(name, "joint", len(layers), kind))
            places.append(place)
    return tuple(layers), tuple(places)
