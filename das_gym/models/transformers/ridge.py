"""Ridge regression on batches of hidden states, its strength chosen by the error on held-out batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

STRENGTHS = (1e-5, 1e-4, 1e-3, 0.003, 0.01, 0.03, 0.1, 1.0)
"""Strengths that are tried, relative to the mean diagonal of the Gram matrix."""

USUAL_STRENGTH = 0.03
"""The strength without held-out batches."""

HELD_OUT_BATCHES = 8
"""One of this many batches is held out to choose the strength; it is then part of the fit."""


class Ridge(NamedTuple):
    """A fitted map, `x @ down @ up + bias`, all float64.

    Attributes:
        down: (width, rank), or None at full rank.
        up: (width or rank, out).
        bias: (out,).
        strength: The strength with the smallest error on held-out batches, one of `STRENGTHS`.
        explained: Share of the variance of held-out outputs that the map explains, 1 at most; NaN without held-out batches.
    """

    down: Tensor | None
    up: Tensor
    bias: Tensor
    strength: float = float("nan")
    explained: float = float("nan")

    def __call__(self, x: Tensor) -> Tensor:
        """Map (n, width) to (n, out) float64."""
        x = x.to(self.up)
        return (x if self.down is None else x @ self.down) @ self.up + self.bias


def fit_ridge(
    pairs: Sequence[tuple[Tensor, Tensor]], rank: int | None = None, bias: bool = True, what: str = "a layer"
) -> Ridge:
    """Fit a linear map to batches of (n, width) inputs and (n, out) outputs.

    Args:
        pairs: The batches.
        rank: Rank of the map (reduced-rank regression); None = full rank.
        bias: Whether it has a bias, which is not penalized.
        what: What error messages call the place of these hidden states.

    Raises:
        ValueError: `rank` is larger than a width.
        FloatingPointError: Hidden states are not finite.
    """
    width = pairs[0][0].shape[1]
    out = pairs[0][1].shape[1]
    if rank is not None and not 1 <= rank <= min(width, out):
        raise ValueError(f"`rank` is out of range: got {rank}, expected 1 to {min(width, out)}, the width of {what}")
    sums = _Sums(width, out, bias)
    held_out = pairs[HELD_OUT_BATCHES - 1 :: HELD_OUT_BATCHES]
    for number, pair in enumerate(pairs):
        if number % HELD_OUT_BATCHES != HELD_OUT_BATCHES - 1:
            sums.add(*pair)
    if not torch.isfinite(sums.gram).all() or not torch.isfinite(sums.product).all():
        raise FloatingPointError(f"hidden states at {what} are not finite on the calibration examples. Try float32.")
    if not held_out:
        return sums.solve(USUAL_STRENGTH, rank)._replace(strength=USUAL_STRENGTH)
    errors = {strength: _unexplained(sums.solve(strength, rank), held_out) for strength in STRENGTHS}
    strength = min(errors, key=errors.__getitem__)
    for pair in held_out:
        sums.add(*pair)
    return sums.solve(strength, rank)._replace(strength=strength, explained=1 - errors[strength])


class _Sums:
    """Sums over tokens from which a ridge regression is solved.

    Attributes:
        gram: (width + 1, width + 1) float64, of the inputs and a last column for the bias: ones, or zeros without a bias.
        product: (width + 1, out) float64, of these with the outputs.
    """

    def __init__(self, width: int, out: int, bias: bool) -> None:
        self.gram = torch.zeros(width + 1, width + 1, dtype=torch.float64)
        self.product = torch.zeros(width + 1, out, dtype=torch.float64)
        self.bias = bias

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Add (n, width) inputs and (n, out) outputs. Products of 16-bit numbers are computed in float32."""
        wide = torch.float64 if inputs.dtype == torch.float64 else torch.float32
        inputs = nn.functional.pad(inputs.to(wide), (0, 1), value=float(self.bias))
        self.gram += (inputs.T @ inputs).cpu()
        self.product += (inputs.T @ outputs.to(wide)).cpu()

    def solve(self, strength: float, rank: int | None) -> Ridge:
        """Return the map with the smallest penalized error, of that rank or less."""
        penalty = torch.full((len(self.gram),), strength * float(self.gram.diagonal()[:-1].mean()), dtype=torch.float64)
        penalty[-1] = 0.0 if self.bias else 1.0  # a penalty gives the solution 0
        penalized = self.gram + torch.diag(penalty)
        solution = torch.cholesky_solve(self.product, torch.linalg.cholesky(penalized))
        weight = solution[:-1]
        bias = solution[-1]
        if rank is None:
            return Ridge(None, weight, bias)
        # Reduced-rank regression: keep the directions in which the fitted outputs vary most (Izenman 1975).
        mean_in = self.gram[-1, :-1] / self.gram[-1, -1] if self.bias else torch.zeros_like(weight[:, 0])
        scatter = self.gram[:-1, :-1] - self.gram[-1, -1] * torch.outer(mean_in, mean_in)
        _, directions = torch.linalg.eigh(weight.T @ scatter @ weight)
        kept = directions[:, -rank:]
        lost = weight - weight @ kept @ kept.T
        return Ridge(weight @ kept, kept.T.contiguous(), bias + mean_in @ lost)


def _unexplained(solution: Ridge, pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the squared error of a map on held-out tokens, relative to the variance of the outputs."""
    outputs = torch.cat([wanted for _, wanted in pairs]).cpu().double()
    fitted = torch.cat([solution(read.cpu()) for read, _ in pairs])
    return float((outputs - fitted).pow(2).sum() / (outputs - outputs.mean(dim=0)).pow(2).sum().clamp_min(1e-12))
