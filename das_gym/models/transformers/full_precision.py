"""Weights of 16 bits that compute in 32 for a while: an examination tells more in these than rounding is worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

HALVES = (torch.float16, torch.bfloat16)


def has_halves(module: nn.Module) -> bool:
    """Whether a module has parameters of 16 bits of its own."""
    return any(parameter is not None and parameter.dtype in HALVES for parameter in module._parameters.values())


@contextmanager
def in_full(model: nn.Module) -> Iterator[None]:
    """Every module with parameters of 16 bits computes in 32, and gives 32; its weights are converted while it runs alone.

    So it takes the memory of one module's weights. A copy made of the model meanwhile (`shell`) does the same.
    """
    handles = []
    for module in model.modules():
        if has_halves(module):
            handles.append(module.register_forward_pre_hook(_widen, with_kwargs=True))
            handles.append(module.register_forward_hook(_restore, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _full(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALVES else value


def _widen(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    kept = dict(module._parameters)
    module.__dict__.setdefault("_das_halves", []).append(kept)
    for name, parameter in kept.items():
        module._parameters[name] = _full(parameter)
    return tree_map(_full, (args, dict(kwargs)))


def _restore(module: Any, args: Any, output: Any) -> None:
    del args, output
    for name, parameter in module._das_halves.pop().items():
        module._parameters[name] = parameter
