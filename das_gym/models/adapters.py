"""The bottleneck adapters of DAS, and others that methods of fine-tuning put into a layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def add_to(x: Tensor, *others: Tensor) -> Tensor:
    """`x` plus others, in this order: written over `x`, which nobody else reads, unless the sum has another type or shape.

    A sum in a tensor of its own costs fresh memory, which at these sizes takes longer than to add.
    """
    for other in others:
        alike = other.dtype == x.dtype and other.shape in (x.shape, ())
        x = x.add_(other) if alike else x + other
    return x


class Adapter(nn.Module):
    """`up(relu(down(LayerNorm(x))))`, used as a parallel adapter beside a sub-layer.

    Source: DAS (arXiv 2309.01479), section 3; weights N(0, 0.02), biases 0, as in its code.
    """

    def __init__(self, hidden_size: int, bottleneck: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.down = nn.Linear(hidden_size, bottleneck)
        self.up = nn.Linear(bottleneck, hidden_size)
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden_size) to the same shape."""
        return self.up(torch.relu_(self.down(self.norm(x))))


class ScaledAdapter(Adapter):
    """`scale * up(relu(down(x)))` without a LayerNorm; it begins as zero.

    It computes in its own type of numbers, and gives back its input's.

    Source: the scaled parallel adapter of He et al. (arXiv 2110.04366), which begins as LoRA does.
    """

    def __init__(self, hidden_size: int, bottleneck: int, scale: float = 1.0) -> None:
        super().__init__(hidden_size, bottleneck)
        self.norm = nn.Identity()  # type: ignore[assignment]
        self.scale = scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden_size) to the same shape."""
        return self.scale * super().forward(x.to(self.down.weight.dtype)).to(x.dtype)


class Behind(nn.Module):
    """A linear layer and an adapter that reads what it gives, and adds to that.

    Args:
        base_layer: The layer; so peft, too, calls what it puts something around.
        adapter: From (..., out_features) to the same shape.
    """

    def __init__(self, base_layer: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.adapter = adapter

    def forward(self, x: Tensor) -> Tensor:
        """As the layer."""
        y: Tensor = self.base_layer(x)
        return y + self.adapter(y)


@dataclass(frozen=True)
class Site:
    """A sub-layer of a skippable layer, as methods of fine-tuning find it.

    Attributes:
        kind: `attention`, `cross` (attention to the other stream) or `mlp`.
        owner: The module that `out` and `projections` lie in, by their names there, such as `dense` or `output.dense`.
        out: The linear layer that gives the sub-layer's output.
        projections: The linear layers of queries and values; empty in an MLP.
        put_beside: Has a module read what the sub-layer reads, and adds what it gives to what the sub-layer gives.
    """

    kind: str
    owner: nn.Module
    out: str
    projections: tuple[str, ...]
    put_beside: Callable[[nn.Module], None]

    @property
    def last(self) -> Any:
        """What `out` names."""
        return self.owner.get_submodule(self.out)

    @property
    def width(self) -> int:
        """Of hidden vectors."""
        return int(self.last.out_features)


class SkipAdapter(Adapter):
    """An adapter plus its input: what runs in the place of a skipped layer."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden_size) to the same shape."""
        return add_to(super().forward(x), x)


class NoAdapter(nn.Module):
    """Adds nothing: what a model built with bottleneck 0 has in the place of parallel adapters."""

    def forward(self, x: Tensor) -> Tensor:
        """A zero that broadcasts."""
        return x.new_zeros(())


def has_adapters(module: nn.Module) -> bool:
    """Whether there are parallel adapters in a model."""
    return any(isinstance(part, Adapter) and not isinstance(part, SkipAdapter) for part in module.modules())


def skip_adapter(hidden_size: int, bottleneck: int) -> nn.Module:
    """A skip adapter, or nothing where the bottleneck is 0: a skipped layer's input passes on."""
    return SkipAdapter(hidden_size, bottleneck) if bottleneck else nn.Identity()


def parallel_adapter(hidden_size: int, bottleneck: int) -> nn.Module:
    """An adapter, or nothing where the bottleneck is 0."""
    return Adapter(hidden_size, bottleneck) if bottleneck else NoAdapter()
