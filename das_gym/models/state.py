"""Skippable layers of a model, and the state that is passed between their stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from das_gym.models.macs import meta_twin

Stream = tuple[Tensor, Tensor | None]
"""Hidden vectors (batch, tokens, hidden_size) and where to attend, (batch, 1, 1, tokens) bool or None = everywhere."""

Memo = Callable[[tuple, Callable[[], Any]], Any]
"""`memo(key, compute)` returns what `compute()` returned the first time `key` was seen."""

Kept = Callable[[str, Mapping[Any, Any]], dict[Any, Any]]
"""`kept(stream, items)` returns the output of `VLP.encode_items` for each item, by key, from a cache where it can."""

Forward = Callable[..., Tensor]
"""`forward(mask)` returns pooled features, (batch, feature_size), of some pairs under a mask; None = the full model."""

Mark = Callable[[int, Tensor], None]
"""`mark(index, hidden)` is called right before and right after unit `index` runs, with its input and its output."""


def no_mark(index: int, hidden: Tensor) -> None:
    """Do nothing: the no-op `Mark`."""


def no_memo(key: tuple, compute: Callable[[], Any]) -> Any:
    """Compute the value without caching: the no-op `Memo`."""
    del key
    return compute()


@dataclass(frozen=True)
class Layer:
    """One skippable unit: its name, the stream it updates, the stage it belongs to, and what kind of layer it is."""

    name: str
    stream: str
    stage: int
    kind: str = "layer"


@dataclass(frozen=True)
class State:
    """Hidden states and attention masks that are passed from stage to stage.

    Attributes:
        hidden: Per stream, (batch, tokens, hidden_size) float.
        attend: Per stream, bool, True = a token to attend to: (batch, 1, 1, tokens) if only padding is left out,
            (batch, 1, tokens, tokens) if a token sees only those before it; None = all.
        extras: Whatever else layers read and no stage changes: image types, positions, rotary embeddings. With prompt
            tuning `hidden` and `attend` are longer, by learned tokens at the end; `VLP.promptless` rules that out.
    """

    hidden: Mapping[str, Tensor]
    attend: Mapping[str, Tensor | None]
    extras: Mapping[str, Any] = field(default_factory=dict)

    def with_hidden(self, hidden: Mapping[str, Tensor]) -> State:
        """Return a copy of the state with other hidden vectors."""
        return replace(self, hidden=hidden)


def bytes_of(part: Any) -> int:
    """Return the bytes of the tensors of a `State`, or of any structure of tensors, each counted once."""
    tree = [dict(each) for each in (part.hidden, part.attend, part.extras)] if isinstance(part, State) else part
    tensors = {id(leaf): leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@dataclass(frozen=True)
class Site:
    """A sub-layer of a skippable layer, as methods of fine-tuning find it.

    Attributes:
        kind: `attention`, `cross` (attention to the other stream) or `mlp`.
        owner: The module that contains `out` and `projections`.
        out: Name in `owner` of the linear layer that gives the sub-layer's output, such as `dense` or `output.dense`.
        projections: Names of the linear layers of queries and values; empty for an MLP.
        put_beside: Inserts a module that reads the sub-layer's input and adds to its output.
    """

    kind: str
    owner: nn.Module
    out: str
    projections: tuple[str, ...]
    put_beside: Callable[[nn.Module], None]

    @property
    def last(self) -> Any:
        """The module that `out` names."""
        return self.owner.get_submodule(self.out)

    @property
    def width(self) -> int:
        """Width of hidden vectors."""
        return int(self.last.out_features)


class SkippableLayer(nn.Module):
    """A layer and the skip adapter that replaces it; `prune` keeps one of the two for good."""

    def __init__(self, layer: nn.Module, skip_adapter: nn.Module) -> None:
        super().__init__()
        self.layer: nn.Module | None = layer
        self.skip_adapter: nn.Module | None = skip_adapter
        self.removed: dict[str, nn.Module] = {}

    def prune(self, skipped: bool) -> None:
        """Remove the layer (skipped) or its skip adapter (kept); the other must be there."""
        self.module_for(skipped)
        name = "layer" if skipped else "skip_adapter"
        if getattr(self, name) is not None:
            self.removed = {name: meta_twin(getattr(self, name))}
            setattr(self, name, None)

    def put_back(self) -> None:
        """Insert the module that `prune` removed, without its weights, so that its cost can be counted."""
        for name, module in self.removed.items():
            setattr(self, name, module)

    def module_for(self, skipped: bool) -> nn.Module:
        """Return the module that runs; ValueError if `prune` removed it."""
        module = self.skip_adapter if skipped else self.layer
        if module is None:
            removed = "skip adapter" if skipped else "layer"
            raise ValueError(f"this {removed} was removed by prune(): use the mask that the model was pruned with")
        return module
