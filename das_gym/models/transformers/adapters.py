"""The adapters of DAS in a model of transformers, in the form that its authors gave them for LLaVA.

A kept layer reads `x + A(x)` instead of the normed input `x` of its attention, and of its MLP; a skipped layer is
`h + A(norm(h))` with the norm before its attention. `A(x) = up(relu(down(x)))` does not normalize `x`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from das_gym.models.adapters import Adapter
from das_gym.models.base import Site
from das_gym.models.transformers.modeling_das_adapters import SkippedLayer, change_hidden
from das_gym.models.transformers.stack import ATTENTION_NAMES, MLP_NAMES, child, child_name, first_input, in_output_form

INPUT_NORMS = ("input_layernorm", "self_attn_layer_norm", "attention_norm", "ln_1", "norm1")
"""Names of the norm before a layer's attention."""

ATTENTION_OUT = ("o_proj", "out_proj", "dense", "wo", "proj")
MLP_OUT = ("down_proj", "fc2", "dense_4h_to_h", "w2", "c_proj")
QUERY_VALUE = ("q_proj", "v_proj", "qkv_proj", "query_key_value", "Wqkv", "wqkv")
"""Names of the linear layers of attention and MLP."""

ATTENTION_ADAPTER, MLP_ADAPTER = "attention_adapter", "mlp_adapter"

TUNABLE = (ATTENTION_ADAPTER, MLP_ADAPTER, "skip_adapter.adapter")
"""Parts of the names of the parameters that train."""

BOTTLENECK, SKIP_BOTTLENECK = 64, 256
"""Widths of the adapters before attention and MLP, and of skip adapters, of LLaVA-1.5 in the paper's code."""


def default_widths(hidden_size: int) -> tuple[int, int]:
    """Return the widths of the adapters before attention and MLP, and of skip adapters, where none are given.

    They are METER-base's shares in the paper, 96 and 288 of 768, so 1/8 and 3/8 of the hidden size, but at most LLaVA-1.5's:
    in a small model those would cost more than the layers that are skipped.
    """
    return max(1, min(BOTTLENECK, hidden_size // 8)), max(1, min(SKIP_BOTTLENECK, 3 * hidden_size // 8))


def input_adapter(hidden_size: int, bottleneck: int, generator: torch.Generator | None = None) -> Adapter:
    """Return the adapter `A(x) = up(relu(down(x)))`, which has no norm."""
    return Adapter(hidden_size, bottleneck, norm=False, init="xavier", generator=generator)


def empty_layer(layer: nn.Module) -> None:
    """Delete the weights of a layer, which then passes its input on.

    The object stays, since transformers has hooks on it that record its outputs (`vision_feature_layer`).
    """
    for parts in (layer._modules, layer._parameters, layer._buffers):
        parts.clear()
    layer.forward = functools.partial(_pass_on, layer)


def _pass_on(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return in_output_form(layer, first_input(args, kwargs))


class _AdapterHook:
    """A hook that finds its adapter by name when it is called, so that a copy of the layer runs its own adapter."""

    def __init__(self, layer: nn.Module, name: str) -> None:
        self.layer = layer
        self.name = name

    def __call__(self, part: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *output: Any) -> Any:
        del part
        adapter = getattr(self.layer, self.name)
        if not output:  # before the part: it reads its input plus the output of the adapter
            return change_hidden(args, kwargs, lambda x: x + adapter(x))
        added = adapter(first_input(args, kwargs))
        return (output[0][0] + added, *output[0][1:]) if isinstance(output[0], tuple) else output[0] + added


def sites_of(layer: nn.Module) -> tuple[Site, ...]:
    """Return attention and MLP of a decoder layer as places for methods of fine-tuning.

    Raises:
        ValueError: A part has no known name.
    """
    found = []
    for kind, names, out_names in (("attention", ATTENTION_NAMES, ATTENTION_OUT), ("mlp", MLP_NAMES, MLP_OUT)):
        part: Any = child(layer, names)
        out = None if part is None else child_name(part, out_names)
        projections = () if part is None or kind == "mlp" else tuple(n for n in QUERY_VALUE if child(part, (n,)))
        if out is None or not hasattr(getattr(part, out), "out_features") or (kind == "attention" and not projections):
            raise ValueError(f"A {type(layer).__name__} has no {kind} whose linear layers have known names.")

        def beside(adapter: nn.Module, part: Any = part, name: str = f"{kind}_beside") -> None:
            setattr(layer, name, adapter)
            part.register_forward_hook(_AdapterHook(layer, name), with_kwargs=True)

        found.append(Site(kind, part, out, projections, beside))
    return tuple(found)


def missing_parts(layer: nn.Module) -> str | None:
    """Return a message with the parts for adapters that a layer does not have under a known name; None = it has all."""
    parts = (("attention", ATTENTION_NAMES), ("MLP", MLP_NAMES), ("norm before its attention", INPUT_NORMS))
    missing = [part for part, names in parts if child(layer, names) is None]
    return f"A {type(layer).__name__} has no {', no '.join(missing)} under a known name for adapters." if missing else None


def insert_adapters(layer: nn.Module, hidden_size: int, bottleneck: int, generator: torch.Generator | None) -> None:
    """Insert adapters before attention and MLP of a layer."""
    for names, name in ((ATTENTION_NAMES, ATTENTION_ADAPTER), (MLP_NAMES, MLP_ADAPTER)):
        setattr(layer, name, input_adapter(hidden_size, bottleneck, generator).to(next(layer.parameters()).device))
        child(layer, names).register_forward_pre_hook(_AdapterHook(layer, name), with_kwargs=True)  # type: ignore[union-attr]


def strip_adapters(layer: nn.Module) -> None:
    """Undo `insert_adapters`."""
    for names, name in ((ATTENTION_NAMES, ATTENTION_ADAPTER), (MLP_NAMES, MLP_ADAPTER)):
        if hasattr(layer, name):
            delattr(layer, name)
            part: Any = child(layer, names)
            for key in [key for key, hook in part._forward_pre_hooks.items() if isinstance(hook, _AdapterHook)]:
                del part._forward_pre_hooks[key]
                part._forward_pre_hooks_with_kwargs.pop(key, None)


def make_skip_unit(layer: nn.Module, hidden_size: int, bottleneck: int, generator: torch.Generator | None) -> SkippedLayer:
    """Make the module that replaces a skipped layer; the norm is a frozen copy of the layer's."""
    norm: Any = child(layer, INPUT_NORMS)
    unit = SkippedLayer(norm, input_adapter(hidden_size, bottleneck, generator).to(next(layer.parameters()).device))
    unit.norm.requires_grad_(False)
    return unit
