"""A model of transformers with the adapters of DAS, some of its decoder layers gone.

    AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)

loads it from a folder that holds this file and adapters.py, with torch and transformers alone. The adapters are those of
"Parameter and Computation Efficient Transfer Learning for Vision-Language Pre-trained Models" (arXiv 2309.01479) in the form
that its authors gave them for LLaVA: a kept layer's attention and MLP read `x + A(x)` in the place of their normed input
`x`, and a layer that is gone has left `h + A(norm(h))` behind, with `A(x) = up(relu(down(x)))`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from das_gym.models.adapters import Adapter


class GoneLayer(nn.Module):
    """What a layer that is gone has left behind: `h + A(norm(h))`.

    Args:
        norm: Of the shape of the one before its attention; copied.
        hidden_size: Width of hidden vectors.
        bottleneck: Width of A.
    """

    def __init__(self, norm: nn.Module, hidden_size: int, bottleneck: int) -> None:
        super().__init__()
        self.norm = copy.deepcopy(norm)
        self.adapter = Adapter(hidden_size, bottleneck, norm=False, init="xavier_zero")

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., hidden_size) to the same shape."""
        return hidden + self.adapter(self.norm(hidden))


def add_adapters(model: Any, das: Mapping[str, Any]) -> Any:
    """Put adapters into a model that has its kept layers alone, and return it.

    Args:
        model: A model of transformers.
        das: `layers`: the name of its list of decoder layers; `norm`, `attention`, `mlp`: what a layer calls its parts;
            `hidden_size`, `bottleneck`, `skip_bottleneck`: widths; `gone_before`: how many layers are gone before each of
            the kept ones, and, last, behind them all.
    """
    layers = model.get_submodule(das["layers"])
    *before, behind = das["gone_before"]
    for layer, count in zip(layers, before, strict=True):
        for name in (das["attention"], das["mlp"]):
            part = getattr(layer, name)
            adapter = Adapter(das["hidden_size"], das["bottleneck"], norm=False, init="xavier_zero")
            part.das_adapter = adapter.to(next(layers.parameters()))
            part.register_forward_pre_hook(_read_more, with_kwargs=True)
        if count:
            layer.gone_before = _units(layer, count, das)
            layer.register_forward_pre_hook(_run_first, with_kwargs=True)
    if behind:
        layers[-1].gone_behind = _units(layers[-1], behind, das)
        layers[-1].register_forward_hook(_run_last)
    return model


def _units(layer: nn.Module, count: int, das: Mapping[str, Any]) -> nn.Sequential:
    units = (GoneLayer(getattr(layer, das["norm"]), das["hidden_size"], das["skip_bottleneck"]) for _ in range(count))
    return nn.Sequential(*units).to(next(layer.parameters()))


def _with_hidden(args: tuple[Any, ...], kwargs: Mapping[str, Any], change: Any) -> tuple[Any, Any]:
    """The arguments of a layer or a part of one, its hidden vectors changed."""
    if args:
        return (change(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}


def _read_more(part: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    return _with_hidden(args, kwargs, lambda x: x + part.das_adapter(x))


def _run_first(layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    return _with_hidden(args, kwargs, layer.gone_before)


def _run_last(layer: Any, args: tuple[Any, ...], output: Any) -> Any:
    return (layer.gone_behind(output[0]), *output[1:]) if isinstance(output, tuple) else layer.gone_behind(output)
