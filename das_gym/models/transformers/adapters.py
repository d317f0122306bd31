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
from das_gym.models.transformers.modeling_das_adapters import SkippedLayer, put_before, run_adapter
from das_gym.models.transformers.stack import ATTENTION_NAMES, MLP_NAMES, child, child_name, first_input

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


def default_widths(hidden_size: int) -> tuple[int, int]:
    """Return the widths of the adapters before attention and MLP, and of skip adapters, where none are given.

    They are METER-base's shares in the paper, 96 and 288 of 768, so 1/8 and 3/8 of the hidden size, but at most LLaVA-1.5's:
    in a small model those would cost more than the layers that are skipped.
    """
    return max(1, min(BOTTLENECK, hidden_size // 8)), max(1, min(SKIP_BOTTLENECK, 3 * hidden_size // 8))


def input_adapter(hidden_size: int, bottleneck: int, generator: torch.Generator | None = None) -> Adapter:
    """Return the adapter `A(x) = up(relu(down(x)))`, which has no norm."""
    return Adapter(hidden_size, bottleneck, norm=False, init="xavier", generator=generator)


def sites_of(layer: nn.Module) -> tuple[Site, ...]:
    """Return attention and MLP of a decoder layer as places for fine-tuning; ValueError if they have no known names."""
    found = []
    for kind, names, out_names in (("attention", ATTENTION_NAMES, ATTENTION_OUT), ("mlp", MLP_NAMES, MLP_OUT)):
        part: Any = child(layer, names)
        out = None if part is None else child_name(part, out_names)
        projections = () if part is None or kind == "mlp" else tuple(n for n in QUERY_VALUE if child(part, (n,)))
        if out is None or not hasattr(getattr(part, out), "out_features") or (kind == "attention" and not projections):
            raise ValueError(f"A {type(layer).__name__} has no {kind} whose linear layers have known names.")
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


def insert_adapters(layer: nn.Module, hidden_size: int, bottleneck: int, generator: torch.Generator | None) -> None:
    """Insert adapters before attention and MLP of a layer."""
    for names in (ATTENTION_NAMES, MLP_NAMES):
        adapter = input_adapter(hidden_size, bottleneck, generator).to(next(layer.parameters()).device)
        put_before(child(layer, names), adapter)


def strip_adapters(layer: nn.Module) -> None:
    """Undo `insert_adapters`."""
    for part in layer.children():
        if hasattr(part, "das_adapter"):
            del part.das_adapter
            for key in [key for key, hook in part._forward_pre_hooks.items() if hook is run_adapter]:
                del part._forward_pre_hooks[key], part._forward_pre_hooks_with_kwargs[key]


def make_skip_unit(layer: nn.Module, hidden_size: int, bottleneck: int, generator: torch.Generator | None) -> SkippedLayer:
    """Make the module that replaces a skipped layer; the norm is a frozen copy of the layer's."""
    norm: Any = child(layer, INPUT_NORMS)
    unit = SkippedLayer(norm, input_adapter(hidden_size, bottleneck, generator).to(next(layer.parameters()).device))
    unit.norm.requires_grad_(False)
    return unit
