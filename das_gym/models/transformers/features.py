"""What a model makes of pictures: computed once, kept, and given to its forward again."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

BULKY = ("last_hidden_state", "hidden_states", "attentions")
"""What a vision tower returns besides, and nobody reads behind it."""


def owner_of(model: Any) -> Any:
    """The module whose forward asks for the features of pictures."""
    return model.base_model if hasattr(model.base_model, "get_image_features") else model


def seen(model: Any, given: Mapping[str, Tensor]) -> dict[str, Any]:
    """The features of some pictures, by the name under which the model returns them.

    Args:
        model: The model of transformers.
        given: Pixels and sizes, by name.
    """
    function = owner_of(model).get_image_features
    known = inspect.signature(function).parameters
    output = function(**{name: value for name, value in given.items() if name in known or "pixel" in name})
    if not hasattr(output, "items"):
        return {"": _plain(output)}
    return {name: _plain(value) for name, value in output.items() if name not in BULKY and value is not None}


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


@contextmanager
def instead(model: Any, given: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """The model with features in the place of its vision tower.

    Args:
        model: The model of transformers.
        given: What `seen` gave for each row with pictures, in the order of the batch.
    """
    owner = owner_of(model)
    before = owner.__dict__.get("get_image_features")
    together = {name: _together([one[name] for one in given]) for name in given[0]}

    def features(*args: Any, **kwargs: Any) -> Any:
        del args, kwargs
        return together.get("", _Features(together))

    owner.get_image_features = features
    try:
        yield
    finally:
        if before is None:
            del owner.get_image_features
        else:
            owner.get_image_features = before


class _Features(dict[str, Any]):
    """Features as transformers' outputs hand them out: by name, by attribute, or by number."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


def _together(parts: Sequence[Any]) -> Any:
    """Features of several rows as those of one batch."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    if parts[0] and isinstance(parts[0][0], list):
        return [_together(same) for same in zip(*parts, strict=True)]
    return [part for row in parts for part in row]
