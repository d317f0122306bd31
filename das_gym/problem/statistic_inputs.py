"""The inputs of layer statistics: one model, run on one set of examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from das_gym.engine.evaluator import Evaluator
from das_gym.engine.scores import format_examples
from das_gym.models.base import VLP, State
from das_gym.models.inputs import to_widest
from das_gym.problem.budget import Floats
from das_gym.problem.costs import Costs
from das_gym.problem.statistics import single_removals


@dataclass(frozen=True)
class Activity:
    """How much each layer changes its stream, averaged over examples.

    Attributes:
        block_influence_pooled: (n_layers,) 1 - cos(h_in, h_out) at the pooled token (`VLP.pooled_tokens`), 0..2.
        block_influence_tokens: (n_layers,) the same, averaged over real tokens.
        residual_norm: (n_layers,) |h_out - h_in| / |h_in|, averaged over real tokens.
        angular: (n_layers,) arccos(cos(h_in, h_out)) / pi, averaged over real tokens, 0..1.
    """

    block_influence_pooled: np.ndarray
    block_influence_tokens: np.ndarray
    residual_norm: np.ndarray
    angular: np.ndarray


@dataclass(frozen=True)
class Sensitivity:
    """First-order effect of skipping each layer on the loss, nats, (n_layers,) each; see `STATISTICS` for the formulas."""

    taylor: np.ndarray
    fisher: np.ndarray


@dataclass(frozen=True)
class StatisticInputs:
    """The inputs of statistics: one model on one set of examples.

    Attributes:
        evaluator: Scores masks of the model; `evaluator.vlp` is the model, `evaluator.vlp.layers` its layers.
        costs: MACs and parameters of each layer.
        examples: The reward examples on which the full model is described.
        activity: How much each layer changes its stream on these examples.
        known_losses: (n_layers + 1,) losses of `single_removals` on the examples, if a table holds them; None scores them.
    """

    evaluator: Evaluator
    costs: Costs
    examples: Sequence[Any]
    activity: Activity
    known_losses: Floats | None = None

    @cached_property
    def sensitivity(self) -> Sensitivity:
        """Measured when it is first asked for."""
        return measure_sensitivity(self.evaluator, self.examples)

    @cached_property
    def removal_losses(self) -> Floats:
        """(n_layers + 1,) losses of `single_removals` on the examples."""
        if self.known_losses is not None:
            return self.known_losses
        return self.evaluator.losses(single_removals(len(self.evaluator.vlp.layers)), examples=self.examples)


@torch.inference_mode()
def measure_activity(evaluator: Evaluator, examples: Sequence[Any]) -> Activity:
    """Record statistics of every layer while the evaluator scores the full model on the examples."""
    vlp = evaluator.vlp
    totals = np.zeros((4, len(vlp.layers)))
    rows = np.zeros(len(vlp.layers))

    def watch(chunk: Sequence[Any], index: int, state: State, output: Tensor) -> None:
        if vlp.layers[index].stage == len(vlp.stages) - 1:  # scoring reads only the pooled tokens of it
            output = vlp.run_layer(index, state, skipped=False)
        changes, count = _changes(vlp, state, output, vlp.layers[index].stream)
        totals[:, index] += changes
        rows[index] += count  # an example may take several: NLVR2's two images, retrieval's sixteen texts
        check_layer(vlp, index, totals[:, index], chunk)

    evaluator.watch_full_model(examples, watch)
    return Activity(*(totals / rows))


def check_layer(vlp: VLP, index: int, values: Any, examples: Sequence[Any]) -> None:
    """Raise a FloatingPointError if `values`, an array computed from the output of layer `index`, are not all finite."""
    if not np.isfinite(values).all():
        raise FloatingPointError(
            f"layer {vlp.layers[index].name} of the full model outputs NaN or infinite values, on "
            f"{format_examples([example.key for example in examples])}: try float32, or train its adapters again"
        )


def _changes(vlp: VLP, state: State, output: Tensor, stream: str) -> tuple[tuple[float, ...], int]:
    """Return the numbers of `Activity` for one layer, summed over the rows of the batch, and how many those are."""
    before = state.hidden[stream]
    after = output
    tokens = min(before.shape[1], after.shape[1])  # Qwen3-VL's vision layers prepend features to the tokens
    before = to_widest(before[:, -tokens:])
    after = to_widest(after[:, -tokens:])
    norm = before.norm(dim=-1).clamp_min(1e-12)  # padding may be zeros
    cosine = (before * after).sum(dim=-1) / (norm * after.norm(dim=-1).clamp_min(1e-12))
    residual = (after - before).norm(dim=-1) / norm
    angle = torch.arccos(cosine.clamp(-1, 1)) / torch.pi
    values, attend = vlp.split_rows(state, stream, torch.stack((1 - cosine, residual, angle), dim=-1))
    real = torch.ones(values.shape[:2], device=values.device) if attend is None else attend[:, 0, -1]
    values = values * real[..., None]
    over_tokens = values.sum(dim=1) / real.sum(dim=1, keepdim=True).clamp_min(1)
    pooled = values[torch.arange(len(values), device=values.device), vlp.pooled_tokens(state, stream), 0]
    return (float(pooled.sum()), *over_tokens.sum(dim=0).tolist()), len(values)


def measure_sensitivity(evaluator: Evaluator, examples: Sequence[Any]) -> Sensitivity:
    """Run the full model on the examples, and its loss backwards, once."""
    vlp = evaluator.vlp
    totals = np.zeros((2, len(vlp.layers)))
    rows = 0
    for start in range(0, len(examples), evaluator.batch_size):
        chunk = examples[start : start + evaluator.batch_size]
        targets = {name: t.to(vlp.device) for name, t in evaluator.task.targets(chunk).items()}
        with torch.no_grad():
            state = vlp.embed(evaluator.encoder_cache(evaluator.task.pairs(chunk)))
        found = _effects(evaluator, state, targets)
        totals[0] += found.sum(axis=1)
        totals[1] += (found**2).sum(axis=1)
        rows += found.shape[1]
    return Sensitivity(totals[0] / len(examples), np.sqrt(totals[1] / rows))


@torch.enable_grad()
def _effects(evaluator: Evaluator, state: State, targets: dict[str, Tensor]) -> np.ndarray:
    """Return (n_layers, rows) of a batch, nats: its summed loss's slope towards each layer's being skipped, row by row."""
    vlp = evaluator.vlp
    state = state.with_hidden({stream: t.detach().clone().requires_grad_() for stream, t in state.hidden.items()})
    kept: list[Tensor] = [torch.empty(0)] * len(vlp.layers)
    skipped = list(kept)
    states = list[State]([state] * len(vlp.layers))
    for number, stage in enumerate(vlp.stages):
        state, _ = vlp.enter_stage(state, number)
        hidden = dict(state.hidden)
        for index in stage:
            kept[index] = vlp.run_layer(index, state, skipped=False)
            hidden[vlp.layers[index].stream] = kept[index]
            states[index] = state
            with torch.no_grad():
                skipped[index] = vlp.run_layer(index, state, skipped=True)
        state = state.with_hidden(hidden)
    losses = evaluator.task.losses(evaluator.head(evaluator.task.group_features(vlp.pool(state))), targets)
    slopes = torch.autograd.grad(losses.sum(), kept, allow_unused=True)
    effects = []
    for index, slope in enumerate(slopes):
        stream = vlp.layers[index].stream
        change = torch.zeros_like(kept[index]) if slope is None else slope * (skipped[index] - kept[index])
        rows, attend = vlp.split_rows(states[index], stream, to_widest(change.detach()))
        real = 1.0 if attend is None else to_widest(attend[:, 0, -1, :, None])
        effects.append((rows * real).sum(dim=(1, 2)).cpu().numpy())
    return np.stack(effects)
