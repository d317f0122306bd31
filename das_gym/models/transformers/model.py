"""Any vision-language model of transformers, with skippable decoder layers and, if wanted, vision layers.

The model's own forward runs once a batch and is recorded (`VLM.gather`). Its layers are then run one by one along the tree
of masks, with the arguments of the record (`VLM.run_layer`); norm and head follow at the answers alone (`VLM.pool`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from das_gym.models.base import Forward, Kept, Mark, Memo, State, no_mark, no_memo, summarize_tokens
from das_gym.models.inputs import BLOCK, Prompt, to_device
from das_gym.models.macs import MacCounter, count_macs
from das_gym.models.transformers import driver, linear_skips
from das_gym.models.transformers.driver import Block, make_block, plan_blocks, run_blocks
from das_gym.models.transformers.inputs import Encoding, PromptProcessor, image_token_ids, load_processor, make_batch
from das_gym.models.transformers.stack import (
    IMAGE,
    JOINT,
    PART_NAMES,
    HostReads,
    Recording,
    cache_name,
    child,
    filled_cache,
    first_input,
    first_output,
    record,
    replace_forwards,
    run_layer,
    zero_forward,
)
from das_gym.models.transformers.tower import (
    ImageSlice,
    divide_images,
    image_features,
    join_images,
    padded_images,
    replace_image_features,
)
from das_gym.models.transformers.units import ATTENTION, DEFAULT_CAPABILITIES, LAYER, MLP, ModelCapabilities, UnitModel


@dataclass
class DecoderInputs:
    """Inputs of the decoder besides image features, kept until the vision layers have run.

    Attributes:
        processor: Makes the tokens of the prompts.
        prompts: The batch, one prompt a row.
        given: Pixels and sizes of a prompt's images, by `Prompt.image_key`.
        slices: Where a prompt's images lie in the vision tower's batch, by the same key.
        groups: The keys of images that run together outside of layers.
        tower_reads, decoder_reads: On a GPU, `HostReads` of vision tower and decoder, which are the same for each mask.
    """

    processor: PromptProcessor
    prompts: Sequence[Prompt]
    given: Mapping[Any, Mapping[str, Tensor]]
    slices: Mapping[Any, ImageSlice]
    groups: Sequence[Sequence[Any]]
    tower_reads: AbstractContextManager[Any]
    decoder_reads: AbstractContextManager[Any]


def image_form(encoding: Encoding, pixels: Mapping[str, Tensor]) -> Any:
    """Return what prompts have in common whose images can run together: sizes, and the shapes of their pixels."""
    sizes = tuple((name, tuple(t.flatten().tolist())) for name, t in encoding.sizes.items())
    return sizes, tuple((name, tuple(t.shape)) for name, t in pixels.items())


class LanguageHead(nn.Module):
    """Map final hidden states to logits: the model's output embeddings, with softcap and scale."""

    def __init__(self, projection: nn.Module, softcap: float | None = None, scale: float = 1.0) -> None:
        super().__init__()
        self.projection = projection
        self.softcap = softcap
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """Map (..., hidden_size) to (..., vocabulary)."""
        logits: Tensor = self.projection(features).to(features.device)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def batch_experts(model: Any) -> None:
    """Make a mixture of experts compute one batched product, which works in any dtype and does not depend on the routing."""
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("batched_mm")


def prepare_experts(model: Any) -> Any:
    """Return the model; a mixture of experts of float64 weights computes batched products, as grouped ones cannot."""
    if model.dtype == torch.float64:
        batch_experts(model)
    return model


class VLM(UnitModel):
    """A model of transformers that answers in words: `AutoModelForImageTextToText`, or a text model alone.

    Its decoder layers are the units, each a separate stage, or with `units="sublayers"` the attention and the MLP of each.
    Vision layers, if `capabilities.tower` is given, come after them in a mask and before them in the stages.

    Args:
        model: The model of transformers.
        units: One of `UNITS`.
        capabilities: How its layers can be run one by one; see `das_gym.models.transformers.probing.probe_capabilities`.

    Example:
        >>> from das_gym.models.transformers import load_vlm
        >>> from das_gym.registration import ASSETS
        >>> vlm = load_vlm(ASSETS / "llava_mini")
        >>> [layer.name for layer in vlm.layers][:2]
        ['decoder.0', 'decoder.1']
    """

    selects_rows = False  # prompts share the tokens of an image, and its layers' arguments are recorded for a batch

    def __init__(self, model: Any, units: str = "layers", capabilities: ModelCapabilities = DEFAULT_CAPABILITIES) -> None:
        super().__init__(model, units, capabilities)
        self.source_processor: Any = None
        self._image_macs: dict[Any, int] = {}
        self._enter_macs: dict[Any, int] = {}

    @property
    def device(self) -> torch.device:
        """The device of its inputs."""
        return self.model.get_input_embeddings().weight.device

    @property
    def is_spread(self) -> bool:
        """Whether `device_map` placed the model, so that accelerate moves what its layers read."""
        return hasattr(self.model, "hf_device_map")

    def to(self, *args: Any, **kwargs: Any) -> VLM:
        """Move the model as in torch, unless `device_map` placed it."""
        return self if self.is_spread else super().to(*args, **kwargs)

    def language_head(self) -> LanguageHead:
        capabilities = self.capabilities
        return LanguageHead(self.model.get_output_embeddings(), capabilities.logit_softcap, capabilities.logit_scale)

    def count_without_content(self) -> None:
        batch_experts(self.model)

    # ---- from prompts to the state before the first unit ----

    def make_processor(self, folder: Path, max_text_length: int | None = None) -> PromptProcessor:  # type: ignore[override]
        """Return the model's own processor, from the folder's files."""
        processor = load_processor(folder) if self.source_processor is None else self.source_processor
        return self.wrap_processor(processor, max_text_length)

    def wrap_processor(self, processor: Any, max_text_length: int | None = None) -> PromptProcessor:
        """Wrap a processor of transformers as das_gym uses it."""
        longest = getattr(self.text_config, "max_position_embeddings", None) or 2**20
        own = self.model.generation_config
        ends = self.text_config.eos_token_id if own is None or own.eos_token_id is None else own.eos_token_id
        if ends is None:
            ends = getattr(processor, "tokenizer", processor).eos_token_id
        ends = tuple(ends) if isinstance(ends, list) else (ends,)
        return PromptProcessor(processor, ends, min(max_text_length or longest, longest), self.capabilities.answer_type)

    def encode_items(
        self, processor: Any, stream: str, items: Mapping[Any, Prompt], counter: MacCounter | None
    ) -> Iterator[tuple[Any, Any, int]]:
        """Compute the image features of each prompt and their MACs; pixels and sizes if vision layers are units."""
        all_of = list(items)
        for start in range(0, len(all_of), BLOCK):
            encodings = {key: processor.encode(items[key], pixels=True) for key in all_of[start : start + BLOCK]}
            forms = {key: image_form(encoding, encoding.pixels) for key, encoding in encodings.items()}
            for keys in self._images_together(forms):
                shapes = self.trained_tower is None, forms[keys[0]]
                if counter is not None and shapes not in self._image_macs:
                    # counting uses other attention kernels, so that its output is not used
                    self._image_macs[shapes] = count_macs(partial(self._encode_images, [encodings[keys[0]]]))[1]
                with torch.no_grad():
                    features = self._encode_images([encodings[key] for key in keys])
                macs = 0 if counter is None else self._image_macs[shapes]
                yield from ((key, own, macs) for key, own in zip(keys, features, strict=True))

    def _images_together(self, forms: Mapping[Any, Any]) -> list[list[Any]]:
        """Return the keys of images that run together: on a GPU those of one form. On a CPU nothing would be gained."""
        alike: defaultdict[Any, list[Any]] = defaultdict(list)
        for key, form in forms.items():
            alike[key if self.device.type == "cpu" else form].append(key)
        return list(alike.values())

    def _encode_images(self, encodings: Sequence[Encoding]) -> list[dict[str, Any]]:
        given = [self.to_device(encoding.pixels | encoding.sizes) for encoding in encodings]
        if self.trained_tower is not None:
            return [self.trained_tower.read_outputs(one) for one in given]
        return given if self.tower is not None else divide_images(image_features(self.model, join_images(given)), len(given))

    def to_device(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Move a batch to the model's device, floating point values in the dtype of its weights."""
        dtype = self.model.dtype
        return {n: to_device(t.to(dtype) if t.is_floating_point() else t, self.device) for n, t in batch.items()}

    def gather(self, processor: Any, pairs: Sequence[Any], kept: Kept) -> State:
        """Return the state before the first unit; `kept` gives what `encode_items` computes, by key of the images."""
        wanted = {p.image_key: p for p in pairs if p.images} if self.capabilities.caches_images else {}
        features = kept("image", wanted)
        if self.tower is not None:
            given = {key: features[key] for key in wanted}
            forms = {key: image_form(processor.encode(wanted[key]), pixels) for key, pixels in given.items()}
            tower_reads, decoder_reads = (nullcontext() if self.device.type == "cpu" else HostReads() for _ in range(2))
            with tower_reads:
                hidden, batches, slices, groups = self.tower.record_images(given, self._images_together(forms))
            later = DecoderInputs(processor, pairs, given, slices, groups, tower_reads, decoder_reads)
            return State({IMAGE: hidden}, {IMAGE: None}, {"images": batches, "decoder_inputs": later})
        if self.trained_tower is not None:
            features = {key: self.trained_tower.finish_features(outputs) for key, outputs in features.items()}
        return self._begin_decoder(processor, pairs, features)

    def gather_uncached(
        self, processor: PromptProcessor, prompts: Sequence[Prompt], encodings: Mapping[Any, Encoding] | None = None
    ) -> State:
        """Return what `gather` returns, with all images encoded again, from `encodings` if these are given."""
        read = encodings or {}

        def encode(_: str, wanted: Mapping[Any, Prompt]) -> dict[Any, Any]:
            given = {key: read.get(key) or processor.encode(prompt, pixels=True) for key, prompt in wanted.items()}
            return {key: self._encode_images([encoding])[0] for key, encoding in given.items()}

        return self.gather(processor, prompts, encode)

    def _begin_decoder(self, processor: PromptProcessor, prompts: Sequence[Prompt], features: Mapping[Any, Any]) -> State:
        able = self.capabilities
        encodings = [processor.encode(p, pixels=not able.caches_images and bool(p.images)) for p in prompts]
        image_tokens = image_token_ids(self.model)
        blocks = []
        hidden = []
        read = []  # `read`: prompt and token of each answer, in the order of the blocks

        def record_part(rows: list[int], start: int, end: int) -> Recording:
            own = [encodings[row] for row in rows]
            given = [features[prompts[row].image_key] for row in rows if prompts[row].images] if able.caches_images else []
            return record(self.stack, partial(self.run, own, given, span=(start, end)), able.additive_layers)

        shared = image_tokens if able.shares_prefix else None
        launch_tokens = driver.count_launch_tokens(self.stack.layers[0], self.device)
        for plan in plan_blocks(prompts, encodings, shared, launch_tokens):
            own = [encodings[row] for row in plan.rows]
            # recorded in parts, the model has to be given the images with the first part, and at no great cost
            at_answers = able.supports_kv_only_last_layer and not own[0].pixels
            first = driver.first_answer(own)
            at_answers = at_answers and driver.images_end(own, image_tokens) <= first
            # the last layer is then called once more, for keys and values alone
            at_answers = at_answers and len(own) * (first - plan.prefix) >= launch_tokens
            block, flat = make_block(plan, own, record_part, at_answers)
            blocks.append(block)
            hidden.append(flat)
            read += [(row, place) for row, e in zip(plan.rows, own, strict=True) for place in range(e.answer, len(e.ids))]
        # Blocks take prompts out of order; features go back to it, since targets are in the order of the examples.
        order = to_device(torch.tensor(sorted(range(len(read)), key=read.__getitem__)), self.device)
        return State({JOINT: torch.cat(hidden, dim=1)}, {JOINT: None}, {"blocks": tuple(blocks), "order": order})

    def run(
        self,
        encodings: Sequence[Encoding],
        features: Sequence[Any] = (),
        with_head: bool = False,
        span: tuple[int, int] | None = None,
    ) -> Any:
        """Run the model's own forward on prompts padded at the right, with image features where these are kept.

        `span` are (start, end) of the tokens that run; those before `start` count as cached. Without `with_head`, the output
        has `last_hidden_state` and no logits.
        """
        batch: dict[str, Any] = make_batch(encodings, self.text_config.pad_token_id or 0)
        if span is not None:
            by_token = ("input_ids", "attention_mask", *encodings[0].types)
            batch = {name: t[:, slice(*span)] if name in by_token else t for name, t in batch.items()}
        if span is not None and span[0]:
            # The images lie before, and padding after, so that a causal mask is all that is needed. Qwen's rotary
            # positions would be computed of a whole attention mask.
            batch = {name: batch[name] for name in by_token if name != "attention_mask"}
            cache = filled_cache(len(encodings), span[0], len(self.stack.layers))
            batch |= {cache_name(type(self.model.base_model).forward): cache, "use_cache": True}
            features = ()
        else:
            batch |= {name: torch.cat([e.pixels[name] for e in encodings]) for name in encodings[0].pixels}
            batch["use_cache"] = False
        batch = {**batch, **self.to_device({name: t for name, t in batch.items() if isinstance(t, Tensor)})}
        with replace_image_features(self.model, features) if features else nullcontext():
            if features:
                batch["pixel_values"] = torch.zeros(len(features), device=self.device)
            return self.model(**batch) if with_head else self._run_without_head(batch)

    def _run_without_head(self, batch: Mapping[str, Any]) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        head = self.model.get_output_embeddings()
        if self.model.base_model is not self.model or head is None:
            return self.model.base_model(**batch)
        given: list[Tensor] = []  # Llama 4's text model is its own base model: take what its head is given

        def keep(hidden: Tensor) -> Tensor:
            given.append(hidden)
            return hidden

        with replace_forwards({head: keep}):
            self.model(**batch)
        return BaseModelOutput(last_hidden_state=given[0])

    def cost_example(self, processor: Any, pairs: Sequence[Any], counter: MacCounter) -> tuple[State, int]:
        """Return the state of the longest prompt, and the MACs of encoding its images."""
        longest = max(pairs, key=lambda prompt: prompt.length)
        if not (longest.images and self.capabilities.caches_images):
            return count_macs(lambda: self.gather(processor, [longest], lambda _, items: {}))
        (_, part, macs), *_ = self.encode_items(processor, "image", {0: longest}, counter)
        return self.gather(processor, [longest], lambda _, items: dict.fromkeys(items, part)), macs

    def state_bytes(self, encoded: State) -> int:
        if self.tower is None:
            return super().state_bytes(encoded)
        later = encoded.extras["decoder_inputs"]
        tokens = sum(len(later.processor.encode(prompt).ids) for prompt in later.prompts)
        images = len(self.tower.capabilities.reads) * super().state_bytes(encoded)
        return max(images, tokens * self.feature_size * self.model.dtype.itemsize)

    # ---- through the units ----

    def embed(self, encoded: State) -> State:
        if self.tower is not None:
            hidden = self._run_fixed_vision(encoded, encoded.hidden[IMAGE], 0, self.places[self.decoder_units])
            return encoded.with_hidden({IMAGE: hidden})
        return encoded.with_hidden({JOINT: self._run_fixed(encoded, encoded.hidden[JOINT], 0, self.places[0], False)})

    def enter_stage(self, state: State, stage: int) -> tuple[State, int]:
        """After the last vision unit, run everything up to the first unit of the decoder; return the state and its MACs."""
        if self.tower is None or stage != self.front:
            return state, 0
        tower = self.tower
        later = state.extras["decoder_inputs"]

        def enter_decoder() -> State:
            images = state.extras["images"]
            with later.tower_reads:
                features = tower.features(state.hidden[IMAGE], images, later.slices, later.given, later.groups)
            with later.decoder_reads:
                before = self._begin_decoder(later.processor, later.prompts, features)
            return before.with_hidden({JOINT: self._run_fixed(before, before.hidden[JOINT], 0, self.places[0], False)})

        encodings = [later.processor.encode(prompt) for prompt in later.prompts]
        lengths = [(p.image_key, len(e.ids), e.answer) for p, e in zip(later.prompts, encodings, strict=True)]
        key = (*(batch.shape for batch in state.extras["images"]), *lengths)
        if key not in self._enter_macs:  # counting uses other attention kernels, so that its output is not used
            self._enter_macs[key] = count_macs(enter_decoder)[1]
        return enter_decoder(), self._enter_macs[key]

    def run_layer(self, index: int, state: State, skipped: bool, memo: Memo = no_memo, pooled_only: bool = False) -> Tensor:
        """Return (1, flat tokens, hidden_size) hidden states; with `pooled_only`, only those that answers are read from."""
        return self.run_following_layers(index, state, self.run_unit(index, state, skipped, pooled_only), pooled_only)

    def run_unit(self, index: int, state: State, skipped: bool, pooled_only: bool = False) -> Tensor:
        """Return what `run_layer` returns, before the layers between this unit and the next, which no mask skips."""
        place = self.places[index]
        kind = self.layers[index].kind
        chosen = self.skippable_layer(index).module_for(skipped)
        is_last = pooled_only and place == len(self.stack.layers) - 1
        is_removed = skipped and isinstance(chosen, nn.Identity)
        if self.layers[index].stream == IMAGE:
            tower: Any = self.tower
            run_tower: Any = partial(run_layer, chosen) if not skipped else lambda part, call: chosen(part)
            return tower.step(state.hidden[IMAGE], state.extras["images"], place, None if is_removed else run_tower)
        layer = self.stack.layers[place]

        def run(block: Block, prefixes: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            if is_removed or (skipped and kind == LAYER):
                return (prefixes[:, :0], chosen(rows[:, block.first :])) if is_last else (chosen(prefixes), chosen(rows))
            if is_last:
                attends = kind == LAYER or (kind == ATTENTION and not skipped)
                return driver.run_at_answers(layer, place, block, prefixes, rows, attends)
            return driver.run_everywhere(layer, place, block, prefixes, rows)

        with replace_forwards(self._part_forwards(index, skipped)):
            return run_blocks(state.extras["blocks"], state.hidden[JOINT], run)

    def _part_forwards(self, index: int, skipped: bool) -> dict[nn.Module, Callable[..., Any]]:
        """Return forwards with which a layer runs its attention or MLP alone: the other half returns zeros."""
        kind = self.layers[index].kind
        if kind == LAYER:
            return {}
        other: Any = child(self.stack.layers[self.places[index]], PART_NAMES[MLP if kind == ATTENTION else ATTENTION])
        return {other: zero_forward(other), **({self.module_of(index): self.part_forward(index)} if skipped else {})}

    def run_following_layers(self, index: int, state: State, hidden: Tensor, pooled_only: bool = False) -> Tensor:
        """Run the layers between a unit, which gave `hidden`, and the next one; see `run_unit`."""
        start = self.places[index] + 1
        end = self._end(index)
        if self.layers[index].stream == IMAGE:
            return self._run_fixed_vision(state, hidden, start, end)
        return self._run_fixed(state, hidden, start, end, pooled_only)

    def _run_fixed(self, state: State, hidden: Tensor, start: int, end: int, pooled_only: bool) -> Tensor:
        """Run the layers between two units, which no mask skips; add what the model adds before each and before `end`."""
        blocks = state.extras["blocks"]
        for place in range(start, end + 1):
            if any(place in block.added for block in blocks):
                hidden = hidden + torch.cat([block.added[place] for block in blocks], dim=1)
            if place < end:
                is_last = pooled_only and place == len(self.stack.layers) - 1
                run = driver.run_at_answers if is_last else driver.run_everywhere
                hidden = run_blocks(blocks, hidden, partial(run, self.stack.layers[place], place))
        return hidden

    def _run_fixed_vision(self, state: State, hidden: Tensor, start: int, end: int) -> Tensor:
        tower: Any = self.tower
        for place in range(start, min(end, max(tower.capabilities.reads) + 1)):
            run = partial(run_layer, tower.stack.layers[place])
            hidden = tower.step(hidden, state.extras["images"], place, run)
        return hidden

    def pool(self, state: State) -> Tensor:
        """Return (tokens of all answers, feature_size): the final hidden states that predict the answers, in order."""
        read = driver.answer_states(state.extras["blocks"], state.hidden[JOINT])[state.extras["order"]]
        return self.stack.norm(read).to(read.device)  # `device_map` may put the norm on another

    def split_rows(self, state: State, stream: str, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        if stream == JOINT:
            rows, real = driver.padded_rows(state.extras["blocks"], hidden)
        else:
            later = state.extras["decoder_inputs"]
            slices = [later.slices.get(prompt.image_key) for prompt in later.prompts]
            rows, real = padded_images(hidden, state.extras["images"], slices)
        return rows, real[:, None, None]

    def summarize_rows(self, state: State, stream: str) -> Tensor:
        """Return the mean of the prompt and its last token, as they are before the answer is read; see `VLP`.

        Of a text that is predicted from its beginning, this is the first token.
        """
        if stream == IMAGE:
            return super().summarize_rows(state, stream)
        blocks = state.extras["blocks"]
        rows, real = driver.padded_rows(blocks, state.hidden[stream])
        last = torch.cat([torch.full_like(block.firsts, block.prefix + block.first) for block in blocks])
        seen = real & (torch.arange(rows.shape[1], device=rows.device) <= last[:, None])
        return summarize_tokens(rows, seen.to(rows), last)

    def pooled_tokens(self, state: State, stream: str) -> Tensor:
        if stream == IMAGE:
            return torch.zeros(len(state.extras["decoder_inputs"].prompts), dtype=torch.long, device=self.device)
        return torch.cat([block.firsts for block in state.extras["blocks"]])

    # ---- linear skip adapters ----

    def fit_skip_adapters(self, states: Sequence[State], rank: int | None = None) -> None:
        linear_skips.fit_skip_adapters(self, states, rank)

    def put_skip_adapters(self, tensors: Mapping[str, Tensor]) -> None:
        linear_skips.put_skip_adapters(self, tensors)

    # ---- plain forwards, for latency ----

    def make_forward(self, processor: Any, pairs: Sequence[Any], augment: tuple[int, int] | None = None) -> Forward:
        if augment is not None:
            raise ValueError("Images of prompts cannot be augmented. Leave out `augment`.")
        encodings = {p.image_key: processor.encode(p, pixels=True) for p in pairs if p.images}

        def forward(mask: Sequence[bool] | np.ndarray | None = None, mark: Mark = no_mark) -> Tensor:
            return self.forward_encoded(self.gather_uncached(processor, pairs, encodings), mask, mark)

        return forward

    def make_timed_forward(self, processor: Any, pairs: Sequence[Any]) -> Forward:
        """Like `VLP.make_timed_forward`: the model's own forward up to the first token, as transformers runs its folder.

        With adapters, which no folder of transformers has, it is that of `make_forward`.
        """
        if self.tunable:
            return super().make_timed_forward(processor, pairs)
        encodings = [processor.encode(prompt, pixels=True) for prompt in pairs]

        def marked(index: int, run: Callable[..., Any], mark: Mark) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                mark(index, first_input(args, kwargs))
                output = run(*args, **kwargs)
                mark(index, first_output(output))
                return output

            return forward

        def timed(mask: Sequence[bool] | np.ndarray | None = None, mark: Mark = no_mark) -> Tensor:
            skipped = self.skip_forwards(mask)
            modules = map(self.module_of, range(len(self.layers)))
            with replace_forwards({m: marked(n, skipped.get(m, m.forward), mark) for n, m in enumerate(modules)}):
                return self.run(encodings).last_hidden_state[:, -1]

        return timed
