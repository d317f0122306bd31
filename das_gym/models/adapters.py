"""The bottleneck adapter that DAS, and other methods of fine-tuning, put into a layer.

Exported folders carry a copy of this file, so it imports nothing but torch.
"""

import torch
from torch import Tensor, nn


def add_to(x: Tensor, *others: Tensor) -> Tensor:
    """Return `x` plus the others, added in this order; in place if type and shape allow it, which saves fresh memory.

    No other code may read `x` afterwards.
    """
    for other in others:
        alike = other.dtype == x.dtype and other.shape in (x.shape, ())
        x = x.add_(other) if alike else x + other
    return x


class Adapter(nn.Module):
    """Compute `scale * up(relu(down(norm(x))))`, as a parallel adapter next to a sub-layer.

    Args:
        hidden_size: Width of the input and of the output.
        bottleneck: Width inside.
        norm: Whether a LayerNorm comes first, as in METER and ViLT.
        scale: Factor of the output.
        init: Initial weights; biases are 0. As in the code of DAS, `normal` (N(0, 0.02)) for METER and ViLT, `xavier`
            (Xavier uniform) for LLaVA. `zero`: torch's own for `down` and 0 for `up`, so that the adapter starts without
            effect (He et al., arXiv 2110.04366). `xavier_zero`: the same with Xavier uniform for `down`.
        generator: Draws the weights of `xavier`; None uses torch's global one.

    Source: DAS (arXiv 2309.01479), section 3.
    """

    def __init__(
        self,
        hidden_size: int,
        bottleneck: int,
        norm: bool = True,
        scale: float = 1.0,
        init: str = "normal",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size) if norm else nn.Identity()
        self.down = nn.Linear(hidden_size, bottleneck)
        self.up = nn.Linear(bottleneck, hidden_size)
        self.scale = scale
        for linear in (self.down, self.up):
            if init == "normal":
                nn.init.normal_(linear.weight, std=0.02)
            elif init == "xavier" or (init == "xavier_zero" and linear is self.down):
                nn.init.xavier_uniform_(linear.weight, generator=generator)
            nn.init.zeros_(linear.bias)
        if init in ("zero", "xavier_zero"):
            nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., hidden_size) to the same shape and type; it computes in the dtype of its weights, such as float32."""
        y = self.up(torch.relu_(self.down(self.norm(x).to(self.down.weight.dtype)))).to(x.dtype)
        return y if self.scale == 1 else self.scale * y


class SkipAdapter(Adapter):
    """An adapter plus its input, which replaces a skipped layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., hidden_size) to the same shape."""
        return add_to(super().forward(x), x)


class LinearMap(nn.Module):
    """Compute `W x + b`, in place of an attention or MLP that is skipped; with a rank, `W` is stored as two factors."""

    def __init__(self, in_features: int, out_features: int, rank: int | None = None) -> None:
        super().__init__()
        self.rank = rank
        self.down = nn.Identity() if rank is None else nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(in_features if rank is None else rank, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features), with the dtype and on the device of the input."""
        weight = self.up.weight  # a `device_map` may have put the layer before on another device
        y: Tensor = self.up(self.down(x.to(weight.device, weight.dtype)))
        return y.to(x.device, x.dtype)


class LinearSkipAdapter(LinearMap):
    """Compute `x + W rms_norm(x) + b`, in place of a layer that is skipped; see `LinearMap` and `rms_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., hidden_size) to the same shape."""
        return x + super().forward(rms_norm(x))


def rms_norm(x: Tensor) -> Tensor:
    """Scale (..., hidden_size) vectors to root mean square 1, in float32 at least, as RMSNorm without weights."""
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


class NoAdapter(nn.Module):
    """Add nothing: takes the place of a parallel adapter where the bottleneck is 0."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a zero, (), that broadcasts."""
        return x.new_zeros(())


class SequentialAdapter(nn.Module):
    """A linear layer followed by an adapter that reads the layer's output and adds to it.

    The linear layer has the name that peft uses for a wrapped layer, so that `without_adapters` finds both.
    """

    def __init__(self, base_layer: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.adapter = adapter

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        y: Tensor = self.base_layer(x)
        return y + self.adapter(y)


def skip_adapter(hidden_size: int, bottleneck: int) -> nn.Module:
    """Return a skip adapter, or the identity if the bottleneck is 0."""
    return SkipAdapter(hidden_size, bottleneck) if bottleneck else nn.Identity()


def parallel_adapter(hidden_size: int, bottleneck: int) -> nn.Module:
    """Return a parallel adapter, or nothing to add if the bottleneck is 0."""
    return Adapter(hidden_size, bottleneck) if bottleneck else NoAdapter()


def parallel_adapters(module: nn.Module) -> list[Adapter]:
    """Return the parallel adapters in a model or layer."""
    return [part for part in module.modules() if isinstance(part, Adapter) and not isinstance(part, SkipAdapter)]
