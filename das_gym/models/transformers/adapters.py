"""The adapters of DAS in a model of transformers, in the form that its authors gave them for LLaVA.

A kept layer reads `x + A(x)` in the place of the normed input `x` of its attention, and of its MLP; a skipped layer is
`h + A(norm(h))` with the norm before its attention. `A(x) = up(relu(down(x)))` has no norm of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from das_gym.models.adapters import Adapter
from das_gym.models.base import Site
from das_gym.models.transformers.stack import ATTENTION_NAMES, MLP_NAMES, child

INPUT_NORMS = ("input_layernorm", "self_attn_layer_norm", "attention_norm", "ln_1", "norm1")
"""What the norm before a layer's attention may be called."""

ATTENTION_OUT = ("o_proj", "out_proj", "dense", "wo", "proj")
MLP_OUT = ("down_proj", "fc2", "dense_4h_to_h", "w2", "c_proj")
QUERY_VALUE = ("q_proj", "v_proj", "qkv_proj", "query_key_value", "Wqkv", "wqkv")
"""What the linear layers of attention and MLP may be called."""

ATTENTION_ADAPTER, MLP_ADAPTER = "attention_adapter", "mlp_adapter"

BOTTLENECK, SKIP_BOTTLENECK = 64, 256
"""Widths of the adapters before attention and MLP, and of skip adapters, of LLaVA-1.5 in the paper's code."""


def usual_widths(hidden_size: int) -> tuple[int, int]:
    """Widths of the adapters before attention and MLP, and of skip adapters, where none are given.

    METER-base's shares in the paper, 96 and 288 of 768, so 1/8 and 3/8 of the hidden size, but no more than LLaVA-1.5's,
    which decoders of 683 and more have: in a small one those would cost more than the layers that are skipped.
    """
    return max(1, min(BOTTLENECK, hidden_size // 8)), max(1, min(SKIP_BOTTLENECK, 3 * hidden_size // 8))


def input_adapter(hidden_size: int, bottleneck: int, generator: torch.Generator | None = None) -> Adapter:
    """Return `A(x) = up(relu(down(x)))` without a norm of its own."""
    return Adapter(hidden_size, bottleneck, norm=False, init="xavier", generator=generator)


class SkipUnit(nn.Module):
    """What runs in the place of a skipped layer: `h + A(norm(h))`.

    Args:
        norm: The layer's own; copied, and frozen.
        adapter: A.
    """

    def __init__(self, norm: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.norm = copy.deepcopy(norm).requires_grad_(False)
        self.adapter = adapter

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden_size) to the same shape."""
        return x + self.adapter(self.norm(x))


class Gone(nn.Module):
    """Stands where a layer was removed, so that the model around it runs as before; its settings stay, its weights go."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name, value in vars(layer).items():
            if isinstance(value, int | float | str | bool) and name not in vars(self):
                setattr(self, name, value)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Its input."""
        del args, kwargs
        return hidden_states


class _Before:
    """A hook: a part of a layer reads its input plus what an adapter makes of it."""

    def __init__(self, layer: nn.Module, name: str) -> None:
        self.layer = layer
        self.name = name

    def __call__(self, part: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        del part
        adapter = getattr(self.layer, self.name)
        if args:
            return (args[0] + adapter(args[0]), *args[1:]), kwargs
        hidden = kwargs["hidden_states"]
        return args, {**kwargs, "hidden_states": hidden + adapter(hidden)}


class _Beside:
    """A hook: an adapter of a layer reads what a part of it reads, and adds to what that gives."""

    def __init__(self, layer: nn.Module, name: str) -> None:
        self.layer = layer
        self.name = name

    def __call__(self, part: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        del part
        added = getattr(self.layer, self.name)(args[0] if args else kwargs["hidden_states"])
        return (output[0] + added, *output[1:]) if isinstance(output, tuple) else output + added


def sites_of(layer: nn.Module) -> tuple[Site, ...]:
    """Attention and MLP of a decoder layer, where the parts of both are found by a known name.

    Raises:
        ValueError: the part that is not.
    """
    found = []
    for kind, names, outs in (("attention", ATTENTION_NAMES, ATTENTION_OUT), ("mlp", MLP_NAMES, MLP_OUT)):
        part: Any = getattr(layer, child(layer, names) or "", None)
        out = None if part is None else child(part, outs)
        projections = () if part is None or kind == "mlp" else tuple(n for n in QUERY_VALUE if child(part, (n,)))
        if out is None or not hasattr(getattr(part, out), "out_features") or (kind == "attention" and not projections):
            raise ValueError(f"a {type(layer).__name__} has no {kind} whose linear layers have a known name")

        def beside(adapter: nn.Module, part: Any = part, name: str = f"{kind}_beside") -> None:
            setattr(layer, name, adapter)
            part.register_forward_hook(_Beside(layer, name), with_kwargs=True)

        found.append(Site(kind, part, out, projections, beside))
    return tuple(found)


def what_lacks(layer: nn.Module) -> str | None:
    """Why a layer has no place for adapters; None = it has."""
    parts = (("attention", ATTENTION_NAMES), ("MLP", MLP_NAMES), ("norm before its attention", INPUT_NORMS))
    lacking = [part for part, names in parts if child(layer, names) is None]
    return f"a {type(layer).__name__} has no {' and no '.join(lacking)} for adapters by a known name" if lacking else None


def insert_adapters(layer: nn.Module, hidden_size: int, bottleneck: int, generator: torch.Generator | None) -> None:
    """Put adapters before attention and MLP of a layer that lacks neither."""
    for names, name in ((ATTENTION_NAMES, ATTENTION_ADAPTER), (MLP_NAMES, MLP_ADAPTER)):
        setattr(layer, name, input_adapter(hidden_size, bottleneck, generator))
        getattr(layer, child(layer, names) or "").register_forward_pre_hook(_Before(layer, name), with_kwargs=True)


def strip_adapters(layer: nn.Module) -> None:
    """Take what `insert_adapters` put into a layer out of it again: nothing is left of it."""
    for names, name in ((ATTENTION_NAMES, ATTENTION_ADAPTER), (MLP_NAMES, MLP_ADAPTER)):
        if not hasattr(layer, name):
            continue
        delattr(layer, name)
        part = getattr(layer, child(layer, names) or "")
        for key in [key for key, hook in part._forward_pre_hooks.items() if isinstance(hook, _Before)]:
            del part._forward_pre_hooks[key]
            part._forward_pre_hooks_with_kwargs.pop(key, None)


def skip_unit(layer: nn.Module, hidden_size: int, bottleneck: int, generator: torch.Generator | None) -> SkipUnit:
    """What runs in the place of a layer that has a norm before its attention."""
    return SkipUnit(getattr(layer, child(layer, INPUT_NORMS) or ""), input_adapter(hidden_size, bottleneck, generator))
