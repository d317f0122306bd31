"""The bottleneck adapters of DAS."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
        return self.up(torch.relu(self.down(self.norm(x))))


class SkipAdapter(Adapter):
    """An adapter plus its input: what runs in the place of a skipped layer."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden_size) to the same shape."""
        return x + super().forward(x)


class NoAdapter(nn.Module):
    """Adds nothing: what a model built with bottleneck 0 has in the place of parallel adapters."""

    def forward(self, x: Tensor) -> Tensor:
        """A zero that broadcasts."""
        return x.new_zeros(())


def skip_adapter(hidden_size: int, bottleneck: int) -> nn.Module:
    """A skip adapter, or nothing where the bottleneck is 0: a skipped layer's input passes on."""
    return SkipAdapter(hidden_size, bottleneck) if bottleneck else nn.Identity()


def parallel_adapter(hidden_size: int, bottleneck: int) -> nn.Module:
    """An adapter, or nothing where the bottleneck is 0."""
    return Adapter(hidden_size, bottleneck) if bottleneck else NoAdapter()
