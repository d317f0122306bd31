"""What a model makes of pictures: computed once, kept, and given to its forward again."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

BULKY = ("last_hidden_state", "hidden_states", "attentions")
"""What a vision tower returns besides, and nobody reads behind it."""


PROJECTORS = (
    *("multi_modal_projector", "connector", "merger", "deepstack_merger_list"),
    *("projector", "aligner", "embed_vision"),
)
"""What models of transformers call the module between vision tower and decoder."""


def projector_of(model: Any) -> dict[str, nn.Module]:
    """The modules between vision tower and decoder, by name; empty where there is none under a known name."""
    found = {n: m for n, m in model.named_modules() if n.rpartition(".")[2] in PROJECTORS}
    return {n: m for n, m in found.items() if not any(n.startswith(f"{other}.") for other in found)}


def compute_in_full(module: nn.Module) -> None:
    """Have a module compute in 32 bits at least, and give back its input's type: small steps are lost in 16."""
    if isinstance(module, nn.ModuleList):
        for part in module:
            compute_in_full(part)
        return
    if not any(p.dtype in (torch.float16, torch.bfloat16) for p in module.parameters()):
        return
    module.float()
    kinds: list[torch.dtype] = []

    def widen(part: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        del part
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.is_floating_point()]
        kinds.append(tensors[0].dtype if tensors else torch.float32)
        return tree_map(lambda v: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v, (args, dict(kwargs)))

    def narrow(part: nn.Module, args: Any, output: Any) -> Any:
        del part, args
        kind = kinds.pop()
        return tree_map(lambda v: v.to(kind) if isinstance(v, Tensor) and v.is_floating_point() else v, output)

    module.register_forward_pre_hook(widen, with_kwargs=True)
    module.register_forward_hook(narrow)


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
    kept = {name: _plain(value) for name, value in output.items() if name not in BULKY and value is not None}
    return kept or {BULKY[0]: _plain(output[BULKY[0]])}  # Llama 4's projector reads that itself


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
