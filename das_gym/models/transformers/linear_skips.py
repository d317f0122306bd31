"""Compute skip adapters in closed form: ridge regression from what a unit reads to what it adds to the hidden states.

A skipped layer becomes `h + W rms_norm(h) + b`. For all tokens of some calibration examples, `W` and `b` minimize

    |Y - X W - b|^2 + strength * mean(diag(X^T X)) * |W|^2,

with `X` the normalized hidden states before the layer and `Y` what the full model adds to them. An attention or MLP becomes
the linear map from its own input to its own output. One pass of the full model gives the skip adapters of every unit, and
with them the score of any mask (`fit_skip_adapters`).

The regressions of one mask can also be chained (`mask=`): a skipped unit then reads the hidden states of the shortened
model, and is fitted to lead back to those of the full model. Folding such maps into the weights before them is ReplaceMe
(arXiv 2505.02819).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from das_gym.commands.progress import progress
from das_gym.models.adapters import LinearMap, LinearSkipAdapter, rms_norm
from das_gym.models.base import State
from das_gym.models.transformers.driver import real_tokens
from das_gym.models.transformers.stack import IMAGE, JOINT, as_layer_output, first_input, first_output, replace_forwards
from das_gym.models.transformers.units import LAYER

if TYPE_CHECKING:
    from das_gym.models.transformers.model import VLM

STRENGTHS = (1e-5, 1e-4, 1e-3, 0.003, 0.01, 0.03, 0.1, 1.0)
"""Strengths that are tried, relative to the mean diagonal of the Gram matrix."""

USUAL_STRENGTH = 0.03
"""The strength without held-out batches."""

HELD_OUT_BATCHES = 8
"""One of this many batches is held out to choose the strength; it is then part of the fit."""


@dataclass(frozen=True)
class LinearFit:
    """How well one unit was fitted.

    Attributes:
        unit: Name of the unit.
        strength: The strength of the ridge regression, see `Ridge`.
        explained: Share of the variance on held-out tokens that the map explains, 1 at most.
    """

    unit: str
    strength: float
    explained: float


@torch.no_grad()
def fit_skip_adapters(
    vlm: VLM,
    states: Sequence[State],
    rank: int | None = None,
    mask: np.ndarray | None = None,
    share: bool = False,
) -> list[LinearFit]:
    """Give units skip adapters that are fitted on calibration batches, and return the fits in the order in which units run.

    `states` are those before the first unit of each batch, as `VLM.embed` returns them; `rank` is that of the maps
    (reduced-rank regression), None = full rank. With a (n_units,) bool mask, its skipped units alone are fitted, in order,
    on hidden states of the model under the mask; without, every unit on hidden states of the full model. With a mask and
    `share`, consecutive skipped decoder layers get one map, in the place of the last of them.

    Raises:
        ValueError: `rank` is out of range, or there is no batch.
        FloatingPointError: A unit's hidden states are not finite.
    """
    if not states:
        raise ValueError("no calibration examples: skip adapters are fitted on examples of the train split")
    fits = []
    full = list(states)
    short = full if mask is None else list(states)
    with progress(len(vlm.stages), "fitting linear maps", unit="unit") as bar:
        for stage, (index,) in enumerate(vlm.stages):
            full = [vlm.enter_stage(state, stage)[0] for state in full]
            short = full if mask is None else [vlm.enter_stage(state, stage)[0] for state in short]
            is_fitted = mask is None or bool(mask[index])
            outputs = [_run_unit(vlm, index, state) for state in full]
            if share and mask is not None and joins_next(vlm, index, mask):
                vlm.skippable_layer(index).skip_adapter = nn.Identity()
            elif is_fitted:
                pairs = [_pair(vlm, index, *each) for each in zip(full, outputs, short, strict=True)]
                fits.append(_fit_unit(vlm, index, pairs, rank))
            after = [_after(vlm, index, state, hidden) for state, (hidden, _) in zip(full, outputs, strict=True)]
            if mask is not None:
                short = [_after(vlm, index, state, vlm.run_unit(index, state, bool(mask[index]))) for state in short]
            full = after
            bar.update()
    return fits


def joins_next(vlm: VLM, index: int, mask: np.ndarray) -> bool:
    """Return True if a (n_units,) bool mask skips a decoder layer and the one right after it: a run that may share a map."""
    after = index + 1
    if after == len(mask) or not mask[index] or not mask[after] or vlm.places[after] != vlm.places[index] + 1:
        return False
    return all(each.kind == LAYER and each.stream == JOINT for each in (vlm.layers[index], vlm.layers[after]))


def _run_unit(vlm: VLM, index: int, state: State) -> tuple[Tensor, Tensor | None]:
    if vlm.layers[index].kind == LAYER:
        return vlm.run_unit(index, state, skipped=False), None
    given: list[Tensor] = []
    part = vlm.module_of(index)
    handle = part.register_forward_hook(lambda module, args, output: given.append(first_output(output).flatten(0, 1)))
    try:
        hidden = vlm.run_unit(index, state, skipped=False)
    finally:
        handle.remove()
    return hidden, torch.cat(given)[None]


def _after(vlm: VLM, index: int, state: State, hidden: Tensor) -> State:
    return state.with_hidden({vlm.layers[index].stream: vlm.run_following_layers(index, state, hidden)})


def _pair(vlm: VLM, index: int, full: State, output: tuple[Tensor, Tensor | None], short: State) -> tuple[Tensor, Tensor]:
    """Return what the skip adapter of a unit reads in the shortened model, and what it should give: (tokens, width) each."""
    hidden, given = output
    stream = vlm.layers[index].stream
    if given is None:
        read = rms_norm(stream_tokens(short, stream, short.hidden[stream]))
        return read, stream_tokens(short, stream, hidden) - stream_tokens(short, stream, short.hidden[stream])
    wanted = stream_tokens(full, stream, given)
    before = stream_tokens(full, stream, full.hidden[stream])
    if torch.allclose(
        stream_tokens(full, stream, hidden) - before, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max())
    ):
        # What the part gives is added as it is, without a norm or a factor: so the adapter can make up for earlier ones.
        wanted = wanted + before - stream_tokens(short, stream, short.hidden[stream])
    return stream_tokens(short, stream, _part_input(vlm, index, short)), wanted


def _part_input(vlm: VLM, index: int, state: State) -> Tensor:
    read: list[Tensor] = []
    part = vlm.module_of(index)

    def keep(*args: object, **kwargs: object) -> object:
        hidden = first_input(args, kwargs)
        read.append(hidden.flatten(0, 1))
        return as_layer_output(part, torch.zeros_like(hidden))

    with replace_forwards({part: keep}):
        vlm.run_unit(index, state, skipped=False)
    return torch.cat(read)[None]


def stream_tokens(state: State, stream: str, hidden: Tensor) -> Tensor:
    """Return (n, width): the tokens of a stream without padding."""
    if stream != IMAGE:
        return real_tokens(state.extras["blocks"], hidden)
    tokens = sum(batch.tokens for batch in state.extras["images"])  # outputs that the model reads later stand before them
    return hidden[0, hidden.shape[1] - tokens :]


def _fit_unit(vlm: VLM, index: int, pairs: Sequence[tuple[Tensor, Tensor]], rank: int | None) -> LinearFit:
    ridge = fit_ridge(pairs, rank, what=vlm.layers[index].name)
    weights = {"up.weight": ridge.up.T, "up.bias": ridge.bias}
    if ridge.down is not None:
        weights["down.weight"] = ridge.down.T
    _put(vlm, index, weights)
    return LinearFit(vlm.layers[index].name, ridge.strength, ridge.explained)


def put_skip_adapters(vlm: VLM, tensors: Mapping[str, Tensor], mask: np.ndarray | None = None, share: bool = False) -> None:
    """Give units the skip adapters whose weights are in `tensors`, by `<unit>.up.weight` and so on.

    Args:
        vlm: The model.
        tensors: The weights.
        mask: (n_units,) bool. Only its skipped units get one; None = every unit.
        share: Whether consecutive layers of the mask share one, see `fit_skip_adapters`.

    Raises:
        ValueError: Weights are missing.
    """
    for index, layer in enumerate(vlm.layers):
        if mask is not None and not mask[index]:
            continue
        if share and mask is not None and joins_next(vlm, index, mask):
            vlm.skippable_layer(index).skip_adapter = nn.Identity()
            continue
        start = f"{layer.name}."
        own = [f"{start}{name}" for name in ("up.weight", "up.bias", "down.weight")]
        weights = {name.removeprefix(start): tensors[name] for name in own if name in tensors}
        if "up.weight" not in weights:
            raise ValueError(f"skip adapters are incomplete: got none for {layer.name}")
        _put(vlm, index, weights)


def _put(vlm: VLM, index: int, weights: Mapping[str, Tensor]) -> None:
    out, inner = weights["up.weight"].shape
    is_low_rank = "down.weight" in weights
    kind = LinearSkipAdapter if vlm.layers[index].kind == LAYER else LinearMap
    adapter = kind(weights["down.weight"].shape[1] if is_low_rank else inner, out, inner if is_low_rank else None)
    parameter = next(vlm.module_of(index).parameters())
    adapter.to(parameter.device, parameter.dtype).load_state_dict(dict(weights))
    vlm.skippable_layer(index).skip_adapter = adapter.requires_grad_(False)


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

    `rank` None is full rank; with `bias`, the map has one, which is not penalized. Error messages call the place `what`.

    Raises:
        ValueError: `rank` is larger than a width.
        FloatingPointError: Hidden states are not finite, or no strength has a solution.
    """
    width = pairs[0][0].shape[1]
    out = pairs[0][1].shape[1]
    if rank is not None and not 1 <= rank <= min(width, out):
        raise ValueError(f"`skip_rank` is out of range: got {rank}, expected 1 to {min(width, out)}, the width of {what}")
    sums = _Sums(width, out, bias, pairs[0][0].device)
    held_out = pairs[HELD_OUT_BATCHES - 1 :: HELD_OUT_BATCHES]
    for number, pair in enumerate(pairs):
        if number % HELD_OUT_BATCHES != HELD_OUT_BATCHES - 1:
            sums.add(*pair)
    if not torch.isfinite(sums.gram).all() or not torch.isfinite(sums.product).all():
        raise FloatingPointError(f"hidden states at {what} are not finite on the calibration examples. Try float32.")
    if held_out:
        errors = sums.errors(held_out) if rank is None else sums.errors_of_rank(rank, held_out)
        strength = min(errors, key=errors.__getitem__, default=STRENGTHS[0])
        explained = 1 - errors.get(strength, math.nan)
        for pair in held_out:
            sums.add(*pair)
    else:
        strength = USUAL_STRENGTH
        explained = math.nan
    for stronger in [strength, *(each for each in STRENGTHS if each > strength)]:
        ridge = sums.solve(stronger, rank)
        if ridge is not None:
            return ridge._replace(strength=stronger, explained=explained)
    raise FloatingPointError(f"no linear map fits the hidden states at {what}: their features differ too much in size.")


class _Sums:
    """Sums over tokens from which a ridge regression is solved.

    Attributes:
        gram: (width + 1, width + 1) float64, of the inputs and a last column for the bias: ones, or zeros without a bias.
        product: (width + 1, out) float64, of these with the outputs.
    """

    def __init__(self, width: int, out: int, bias: bool, device: torch.device) -> None:
        self.device = device if device.type == "cuda" else torch.device("cpu")  # others may lack float64
        self.gram = torch.zeros(width + 1, width + 1, dtype=torch.float64, device=self.device)
        self.product = torch.zeros(width + 1, out, dtype=torch.float64, device=self.device)
        self.bias = bias

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Add (n, width) inputs and (n, out) outputs. Products of 16-bit numbers are computed in float32."""
        wide = torch.float64 if inputs.dtype == torch.float64 else torch.float32
        inputs = nn.functional.pad(inputs.to(wide), (0, 1), value=float(self.bias))
        self.gram += (inputs.T @ inputs).to(self.device)
        self.product += (inputs.T @ outputs.to(wide)).to(self.device)

    def penalty(self, strength: float) -> float:
        """Return what is added to the diagonal of the Gram matrix."""
        return strength * float(self.gram.diagonal()[:-1].mean())

    def center(self) -> tuple[Tensor, Tensor]:
        """Return the means, of inputs (width,) and outputs (out,), that a map with a bias leaves out: zeros without one."""
        tokens = self.gram[-1, -1] if self.bias else torch.inf
        return self.gram[-1, :-1] / tokens, self.product[-1] / tokens

    def errors(self, held_out: Sequence[tuple[Tensor, Tensor]]) -> dict[float, float]:
        """Return the unexplained share of the held-out outputs' variance by strength, of maps of full rank.

        Eigenvectors Q of the centered Gram matrix serve all strengths. The map is Q D V, with V = Q^T X^T Y and diagonal D,
        and its squared error is |Y|^2 - 2 <Z^T Y, D V> + <Z^T Z, D V V^T D>, with Z = X Q.
        """
        mean_in, mean_out = self.center()
        scatter = self.gram[:-1, :-1] - torch.outer(mean_in, self.gram[-1, :-1])
        values, vectors = torch.linalg.eigh(scatter)
        projected = vectors.T @ (self.product[:-1] - torch.outer(self.gram[-1, :-1], mean_out))
        inputs = (torch.cat([read for read, _ in held_out]).to(self.gram) - mean_in) @ vectors
        outputs = torch.cat([wanted for _, wanted in held_out]).to(self.gram)
        variance = (outputs - outputs.mean(dim=0)).pow(2).sum().clamp_min(1e-12)
        outputs = outputs - mean_out
        square = outputs.pow(2).sum()
        linear = ((inputs.T @ outputs) * projected).sum(dim=1)
        quadratic = (inputs.T @ inputs) * (projected @ projected.T)
        penalties = {strength: self.penalty(strength) for strength in STRENGTHS}
        factors = {each: 1 / (values + penalty) for each, penalty in penalties.items() if values[0] + penalty > 0}
        return {each: float((square - 2 * linear @ d + d @ quadratic @ d) / variance) for each, d in factors.items()}

    def errors_of_rank(self, rank: int, held_out: Sequence[tuple[Tensor, Tensor]]) -> dict[float, float]:
        """Return what `errors` does, of maps of a rank."""
        fits = {strength: self.solve(strength, rank) for strength in STRENGTHS}
        return {strength: _unexplained(fit, held_out) for strength, fit in fits.items() if fit is not None}

    def solve(self, strength: float, rank: int | None) -> Ridge | None:
        """Return the map with the smallest penalized error, of that rank or less.

        None if the penalty is smaller than the rounding errors of the sums, so that the Gram matrix with it is not positive
        definite: normalized hidden states of pretrained decoders are nearly one vector, and are multiplied in float32.
        """
        penalty = self.gram.new_full((len(self.gram),), self.penalty(strength))
        penalty[-1] = 0.0 if self.bias else 1.0  # a penalty gives the solution 0
        penalized = self.gram + torch.diag(penalty)
        factor, failed = torch.linalg.cholesky_ex(penalized)
        if failed:
            return None
        solution = torch.cholesky_solve(self.product, factor)
        weight = solution[:-1]
        bias = solution[-1]
        if rank is None:
            return Ridge(None, weight, bias)
        # Reduced-rank regression: keep the directions in which the fitted outputs vary most (Izenman 1975).
        mean_in, _ = self.center()
        scatter = self.gram[:-1, :-1] - self.gram[-1, -1] * torch.outer(mean_in, mean_in)
        _, directions = torch.linalg.eigh(weight.T @ scatter @ weight)
        kept = directions[:, -rank:]
        lost = weight - weight @ kept @ kept.T
        return Ridge(weight @ kept, kept.T.contiguous(), bias + mean_in @ lost)


def _unexplained(solution: Ridge, pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    outputs = torch.cat([wanted for _, wanted in pairs]).to(solution.up)
    fitted = torch.cat([solution(read) for read, _ in pairs])
    return float((outputs - fitted).pow(2).sum() / (outputs - outputs.mean(dim=0)).pow(2).sum().clamp_min(1e-12))
