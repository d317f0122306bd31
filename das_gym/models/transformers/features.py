"""Image features of a model: computed once, kept, and given to its forward again."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from das_gym.models.base import HALVES

UNUSED = ("last_hidden_state", "hidden_states", "attentions")
"""Outputs of a vision tower that the decoder does not read."""

PROJECTORS = (
    *("multi_modal_projector", "connector", "merger", "deepstack_merger_list"),
    *("projector", "aligner", "embed_vision"),
)
"""Names of the module between vision tower and decoder."""


def find_projectors(model: Any) -> dict[str, nn.Module]:
    """Return the modules between vision tower and decoder by name; empty if none has a known name."""
    found = {n: m for n, m in model.named_modules() if n.rpartition(".")[2] in PROJECTORS}
    return {n: m for n, m in found.items() if not any(n.startswith(f"{other}.") for other in found)}


def compute_in_float32(module: nn.Module) -> None:
    """Make a 16-bit module compute in float32 and return its input's dtype: 16 bits would lose small training steps."""
    if isinstance(module, nn.ModuleList):
        for part in module:
            compute_in_float32(part)
        return
    if not any(p.dtype in HALVES for p in module.parameters()):
        return
    module.float()
    dtypes: list[torch.dtype] = []  # of calls under way: a module may be called again within its own call

    def cast(value: Any, dtype: torch.dtype) -> Any:
        return tree_map(lambda v: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v, value)

    def widen(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.is_floating_point()]
        dtypes.append(tensors[0].dtype if tensors else torch.float32)
        return cast((args, dict(kwargs)), torch.float32)

    module.register_forward_pre_hook(widen, with_kwargs=True)
    module.register_forward_hook(lambda _, __, output: cast(output, dtypes.pop()))


def _owner(model: Any) -> Any:
    """Return the module whose forward calls `get_image_features`."""
    return model.base_model if hasattr(model.base_model, "get_image_features") else model


def image_features(model: Any, given: Mapping[str, Tensor]) -> dict[str, Any]:
    """Compute the features of images, given as pixels and sizes by name, by the name under which the model returns them."""
    function = _owner(model).get_image_features
    known = inspect.signature(function).parameters
    output = function(**{name: value for name, value in given.items() if name in known or "pixel" in name})
    if not hasattr(output, "items"):
        return {"": _as_lists(output)}
    kept = {name: _as_lists(value) for name, value in output.items() if name not in UNUSED and value is not None}
    return kept or {UNUSED[0]: _as_lists(output[UNUSED[0]])}  # Llama 4's projector reads that itself


def _as_lists(value: Any) -> Any:
    return [_as_lists(part) for part in value] if isinstance(value, list | tuple) else value


@contextmanager
def use_features(model: Any, given: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Make the model use image features within the block, instead of running its vision tower.

    They are what `image_features` returned for each row with images, in the order of the batch.
    """
    owner = _owner(model)
    before = owner.__dict__.get("get_image_features")
    together = {name: _concatenate([one[name] for one in given]) for name in given[0]}
    owner.get_image_features = lambda *args, **kwargs: together.get("", _Features(together))
    try:
        yield
    finally:
        if before is None:
            del owner.get_image_features
        else:
            owner.get_image_features = before


class _Features(dict[str, Any]):
    """Features as transformers' outputs return them: by name, by attribute, or by number."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


def _concatenate(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    if parts[0] and isinstance(parts[0][0], list):
        return [_concatenate(same) for same in zip(*parts, strict=True)]
    return [part for row in parts for part in row]
