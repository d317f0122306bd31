"""The units of a model of transformers: which of its layers they are, their adapters, and what a mask removes.

The adapters of DAS have the form that its authors gave them for LLaVA. A kept layer reads `x + A(x)` instead of the normed
input `x` of its attention, and of its MLP; a skipped layer is `h + A(norm(h))`, with `A(x) = up(relu(down(x)))`.
"""

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from das_gym.models.adapters import Adapter
from das_gym.models.base import VLP, Layer, Site, SkippableLayer
from das_gym.models.macs import structure_key
from das_gym.models.transformers.modeling_das_adapters import SkippedLayer, put_before, run_adapter
from das_gym.models.transformers.stack import (
    ATTENTION_NAMES,
    IMAGE,
    JOINT,
    MLP_NAMES,
    PART_NAMES,
    Stack,
    child,
    child_name,
    find_decoder,
    first_input,
    skip_forward,
    zero_forward,
)
from das_gym.models.transformers.tower import TowerCapabilities, VisionTower, compute_in_float32, find_projectors
from das_gym.names import check_names

UNITS = ("layers", "sublayers")
"""What may be skipped: whole layers, or the attention and the MLP of each decoder layer."""

LAYER, ATTENTION, MLP = "layer", "attention", "mlp"

INPUT_NORMS = ("input_layernorm", "self_attn_layer_norm", "attention_norm", "ln_1", "norm1")
"""Names of the norm before a layer's attention."""

ATTENTION_OUT = ("o_proj", "out_proj", "dense", "wo", "proj")
MLP_OUT = ("down_proj", "fc2", "dense_4h_to_h", "w2", "c_proj")
QUERY_VALUE = ("q_proj", "v_proj", "qkv_proj", "query_key_value", "Wqkv", "wqkv")
"""Names of the linear layers of attention and MLP."""

TUNABLE = ("das_adapter", "skip_adapter.adapter")
"""Parts of the names of the parameters that train."""

BOTTLENECK = 64
SKIP_BOTTLENECK = 256
"""Widths of the adapters before attention and MLP, and of skip adapters, of LLaVA-1.5 in the paper's code."""


@dataclass(frozen=True)
class ModelCapabilities:
    """How the layers of a model can be run one by one.

    Attributes:
        additive_layers: Positions of decoder layers before which the model adds something to the hidden states.
        protected: Positions of layers that are never skipped, with the reason.
        caches_images: Whether image features can be kept and given to the model again.
        shares_prefix: Whether prompts on the same images can share their common prefix (`driver.run_with_prefixes`).
        supports_kv_only_last_layer: Whether the last layer can compute keys and values alone (`driver.run_at_answers`).
        answer_type: The token type of answers; None = that of the token before them.
        logit_scale: Factor of the products with the output embeddings.
        logit_softcap: If not None, logits are `logit_softcap * tanh(logits / logit_softcap)`.
        tower: How vision layers can be skipped; None = they are no units.
    """

    additive_layers: tuple[int, ...] = ()
    protected: Mapping[int, str] = field(default_factory=dict)
    caches_images: bool = True
    shares_prefix: bool = True
    supports_kv_only_last_layer: bool = True
    answer_type: int | None = None
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    tower: TowerCapabilities | None = None


DEFAULT_CAPABILITIES = ModelCapabilities()


class UnitModel(VLP):
    """A transformers model as a list of units, which the subclass `VLM` runs; see `VLM` for the arguments."""

    tunable: tuple[str, ...] = ()  # until there are adapters

    def __init__(self, model: Any, units: str = "layers", capabilities: ModelCapabilities = DEFAULT_CAPABILITIES) -> None:
        super().__init__()
        check_names([units], UNITS, "units")
        self.model = model.eval()
        self.stack = find_decoder(model)
        self.capabilities = capabilities
        self.unit_kind = units
        self.tower = None if capabilities.tower is None else VisionTower(model, capabilities.tower)
        vision_units = []
        if self.tower is not None:
            vision_units = find_units(self.tower.stack, UNITS[0], self.tower.capabilities.protected, "vision", IMAGE, 0)
        self.front = len(vision_units)  # the decoder's state depends on their bits: the engine keeps one for each of these
        decoder_units = find_units(self.stack, units, capabilities.protected, "decoder", JOINT, self.front)
        self.decoder_units = len(decoder_units)  # they come first in a mask, and vision layers run first
        self.layers = tuple(unit for unit, _ in (*decoder_units, *vision_units))
        self.places = tuple(place for _, place in (*decoder_units, *vision_units))
        self.modules_of = nn.ModuleList(SkippableLayer(self.module_of(n), nn.Identity()) for n in range(len(self.layers)))
        if units != "layers":
            self.untrainable = "Sublayers have no adapters. Leave out `units`."
        elif self.tower is not None:
            self.untrainable = "Vision layers have no adapters. Leave out `vision`."
        else:
            reasons = [missing_parts(self.stack.layers[place]) for place in self.places]
            self.untrainable = next((reason for reason in reasons if reason), "")
        self.feature_size = int(self.text_config.hidden_size)
        self.trained_tower: VisionTower | None = None  # whose outputs are kept, since the projector after it trains

    @property
    def text_config(self) -> Any:
        """The configuration of its decoder."""
        return self.model.config.get_text_config(decoder=True)

    def stack_of(self, index: int) -> Stack:
        """Return the list of layers that a unit belongs to."""
        return self.stack if self.tower is None or index < self.decoder_units else self.tower.stack

    def skippable_layer(self, index: int) -> SkippableLayer:
        """See the base class."""
        unit: SkippableLayer = self.modules_of[index]  # type: ignore[assignment]
        return unit

    def module_of(self, index: int) -> nn.Module:
        """Return the module of the model that unit `index` stands for: a layer, its attention or its MLP."""
        layer = self.stack_of(index).layers[self.places[index]]
        if self.layers[index].kind == LAYER:
            return layer
        return child(layer, PART_NAMES[self.layers[index].kind])  # type: ignore[return-value]

    def _end(self, index: int) -> int:
        follows = index + 1 < len(self.places) and self.layers[index + 1].stream == self.layers[index].stream
        return self.places[index + 1] if follows else len(self.stack_of(index).layers)

    def cost_key(self, index: int) -> Hashable:
        """Return a key that is equal for identically built decoder layers, with the same layers up to the next unit."""
        if self.layers[index].stream == IMAGE:
            return index
        end = self._end(index)
        layers = tuple(structure_key(layer) for layer in self.stack.layers[self.places[index] : end])
        return self.layers[index].kind, layers, structure_key(self.skippable_layer(index)), end == len(self.stack.layers)

    def insert_adapters(
        self, bottleneck: int | None, skip_bottleneck: int | None, generator: torch.Generator | None = None
    ) -> None:
        """Insert adapters of these widths into every unit, None = `default_widths`; ValueError if units take none."""
        for name, width in (("bottleneck", bottleneck), ("skip_bottleneck", skip_bottleneck)):
            if width is not None and width < 1:
                raise ValueError(f"Invalid `{name}`: got {width}, expected at least 1.")
        if self.untrainable:
            raise ValueError(self.untrainable)
        inside, skipped = default_widths(self.feature_size)
        for index, place in enumerate(self.places):
            layer = self.stack.layers[place]
            norm: Any = child(layer, INPUT_NORMS)
            adapter = input_adapter(self.feature_size, skip_bottleneck or skipped, generator)
            unit = SkippedLayer(norm, adapter.to(next(layer.parameters()).device))
            unit.norm.requires_grad_(False)  # a copy of the layer's
            self.skippable_layer(index).skip_adapter = unit
            insert_layer_adapters(layer, self.feature_size, bottleneck or inside, generator)
        self.tunable = TUNABLE

    def sites(self, index: int) -> tuple[Site, ...]:
        """See the base class."""
        if self.unit_kind != "layers":
            raise ValueError(f"`units` cannot be fine-tuned: got {self.unit_kind}, expected layers. Leave out `units`.")
        return decoder_sites(self.stack.layers[self.places[index]])

    def open_projector(self, reads: tuple[int, ...]) -> None:
        """Train the projector with the adapters, in float32 at least; ValueError if it has no known name.

        The tower's outputs (of the layers in `reads`, as in `TowerCapabilities`) are cached; the projector runs each time.
        """
        found = find_projectors(self.model)
        if not found:
            name = type(self.model).__name__
            raise ValueError(f"{name} has no projector under a known name. Freeze it with `projector_learning_rate=0`.")
        for module in found.values():
            compute_in_float32(module)
        self.trained_tower = VisionTower(self.model, TowerCapabilities(reads))
        self.projector = tuple(f"model.{name}." for name in found)
        self.tunable = (*self.tunable, *self.projector)

    def remove_adapters(self) -> None:
        """See the base class; also freezes the projector. `prune` then deletes layers for good."""
        super().remove_adapters()
        self.trained_tower = None
        self.projector = ()
        self.tunable = ()
        for layer in self.stack.layers:
            strip_adapters(layer)

    def prune(self, mask: Sequence[bool] | np.ndarray) -> None:
        """Delete the weights of skipped layers, not their positions, where skip adapters run; ValueError for sublayers."""
        if self.unit_kind != "layers":
            raise ValueError(f"only `adapt shrink` removes {self.unit_kind}: expected layers. Search with units=layers.")
        super().prune(mask)
        for index in np.flatnonzero(self.check_mask(mask)).tolist():
            layer: Any = self.module_of(index)
            for parts in (layer._modules, layer._parameters, layer._buffers):
                parts.clear()  # the object stays: transformers has hooks on it that record its outputs
            layer.forward = skip_forward(layer)

    def put_back(self) -> None:
        """See the base class. A layer is run from its place in the model, where `prune` left one without weights."""
        super().put_back()
        for index in np.flatnonzero(self.check_mask(None)).tolist():
            layer: Any = self.skippable_layer(index).layer
            self.stack_of(index).layers[self.places[index]] = layer

    def skipped_kinds(self, mask: Sequence[bool] | np.ndarray, stream: str) -> dict[int, str]:
        """Return what a mask skips of each layer that it changes, `layer`, `attention` or `mlp`, by position."""
        found: dict[int, str] = {}
        for place, unit, skipped in zip(self.places, self.layers, self.check_mask(mask), strict=True):
            if skipped and unit.stream == stream:
                found[place] = LAYER if place in found else unit.kind  # attention and MLP are the whole layer
        return found

    def removed_layers(self, mask: Sequence[bool] | np.ndarray, stream: str = JOINT) -> list[int]:
        """Return the positions of the layers of decoder (`joint`) or vision tower (`image`) that a mask skips entirely."""
        return [place for place, kind in self.skipped_kinds(mask, stream).items() if kind == LAYER]

    def removed_parts(self, mask: Sequence[bool] | np.ndarray) -> dict[int, str]:
        """Return what a mask skips of decoder layers that it does not skip entirely, `attention` or `mlp`, by position."""
        return {place: kind for place, kind in self.skipped_kinds(mask, JOINT).items() if kind != LAYER}

    def skip_forwards(self, mask: Sequence[bool] | np.ndarray | None) -> dict[nn.Module, Callable[..., Any]]:
        """Return forwards that skip units in the model's own forward, for `stack.replace_forwards`."""
        found: dict[nn.Module, Callable[..., Any]] = {}
        for index in np.flatnonzero(self.check_mask(mask)).tolist():
            module = self.module_of(index)
            if self.layers[index].kind == LAYER:
                found[module] = skip_forward(module, self.skippable_layer(index).module_for(True))
            else:
                found[module] = self.part_forward(index)
        return found

    def part_forward(self, index: int) -> Callable[..., Any]:
        """Return the forward of a skipped attention or MLP: zeros, or its skip adapter, which reads what the part reads."""
        module = self.module_of(index)
        adapter = self.skippable_layer(index).module_for(True)
        return zero_forward(module) if isinstance(adapter, nn.Identity) else skip_forward(module, adapter)


def find_units(
    stack: Stack, units: str, protected: Mapping[int, str], name: str, stream: str, stage: int
) -> list[tuple[Layer, int]]:
    """Return the units of a list of layers, the first in `stage`, and the positions of their layers; ValueError for none."""
    found: list[tuple[Layer, int]] = []
    for place, layer in enumerate(stack.layers):
        kinds = [LAYER] if units == "layers" else [ATTENTION, MLP]
        if place in protected:
            continue
        if units != "layers" and any(child(layer, names) is None for names in PART_NAMES.values()):
            raise ValueError(
                f"{name} layer {place}, a {type(layer).__name__}, has no attention and MLP that can be skipped separately. "
                "Leave out `units`."
            )
        for kind in kinds:
            full_name = f"{name}.{place}" if kind == LAYER else f"{name}.{place}.{kind}"
            found.append((Layer(full_name, stream, stage + len(found), kind), place))
    return found


def default_widths(hidden_size: int) -> tuple[int, int]:
    """Return the widths of the adapters before attention and MLP, and of skip adapters, where none are given.

    They are METER-base's shares in the paper, 96 and 288 of 768, so 1/8 and 3/8 of the hidden size, but at most LLaVA-1.5's.
    """
    return max(1, min(BOTTLENECK, hidden_size // 8)), max(1, min(SKIP_BOTTLENECK, 3 * hidden_size // 8))


def input_adapter(hidden_size: int, bottleneck: int, generator: torch.Generator | None = None) -> Adapter:
    """Return the adapter `A(x) = up(relu(down(x)))`, which has no norm."""
    return Adapter(hidden_size, bottleneck, norm=False, init="xavier", generator=generator)


def decoder_sites(layer: nn.Module) -> tuple[Site, ...]:
    """Return attention and MLP of a decoder layer as places for fine-tuning; ValueError if they have no known names."""
    found = []
    for kind, names, out_names in (("attention", ATTENTION_NAMES, ATTENTION_OUT), ("mlp", MLP_NAMES, MLP_OUT)):
        part: Any = child(layer, names)
        out = None if part is None else child_name(part, out_names)
        projections = () if part is None or kind == "mlp" else tuple(n for n in QUERY_VALUE if child(part, (n,)))
        if out is None or not hasattr(getattr(part, out), "out_features") or (kind == "attention" and not projections):
            raise ValueError(f"A {type(layer).__name__} has no {kind} whose linear layers have known names. Use `full`.")
        found.append(Site(kind, part, out, projections, functools.partial(_put_beside, part)))
    return tuple(found)


def _put_beside(part: Any, adapter: nn.Module) -> None:
    part.adapter_beside = adapter
    part.register_forward_hook(_run_beside, with_kwargs=True)


def _run_beside(part: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
    """Add the output of the adapter, found by its name, so that a copy of the part runs its own."""
    added = part.adapter_beside(first_input(args, kwargs))
    return (output[0] + added, *output[1:]) if isinstance(output, tuple) else output + added


def missing_parts(layer: nn.Module) -> str | None:
    """Return a message with the parts for adapters that a layer does not have under a known name; None = it has all."""
    parts = (("attention", ATTENTION_NAMES), ("MLP", MLP_NAMES), ("norm before its attention", INPUT_NORMS))
    missing = [part for part, names in parts if child(layer, names) is None]
    return f"A {type(layer).__name__} has no {', no '.join(missing)} under a known name for adapters." if missing else None


def insert_layer_adapters(layer: nn.Module, hidden_size: int, bottleneck: int, generator: torch.Generator | None) -> None:
    """Insert adapters before attention and MLP of a layer."""
    for names in (ATTENTION_NAMES, MLP_NAMES):
        adapter = input_adapter(hidden_size, bottleneck, generator).to(next(layer.parameters()).device)
        put_before(child(layer, names), adapter)


def strip_adapters(layer: nn.Module) -> None:
    """Undo `insert_layer_adapters`."""
    for part in layer.children():
        if hasattr(part, "das_adapter"):
            del part.das_adapter
            for key in [key for key, hook in part._forward_pre_hooks.items() if hook is run_adapter]:
                del part._forward_pre_hooks[key], part._forward_pre_hooks_with_kwargs[key]
