"""Layer statistics of a frozen VLP, by name: what an agent observes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from das_gym.config import add_entry, check_names
from das_gym.engine.broken import told_examples
from das_gym.engine.evaluator import Evaluator
from das_gym.models.base import VLP, State
from das_gym.problem.costs import Costs
from das_gym.problem.rewards import check_bounds


@dataclass(frozen=True)
class Activity:
    """How much each layer changes what passes through it, averaged over examples.

    Attributes:
        influence_pooled: (n_layers,) 1 - cos(h_in, h_out) at the pooled token (`VLP.pooled_tokens`), 0..2.
        influence_tokens: (n_layers,) the same, averaged over real tokens.
        residual_norm: (n_layers,) |h_out - h_in| / |h_in|, averaged over real tokens.
    """

    influence_pooled: np.ndarray
    influence_tokens: np.ndarray
    residual_norm: np.ndarray


@dataclass(frozen=True)
class StatisticInputs:
    """All that a statistic is computed from: one model on one set of examples."""

    evaluator: Evaluator
    costs: Costs
    examples: Sequence[Any]
    activity: Activity


@dataclass(frozen=True)
class Statistic:
    """One number per layer.

    Attributes:
        name: How it is asked for.
        formula: What it is, in a line.
        low, high: Its bounds; values beyond are clipped to them.
        compute: (n_layers,) float values from the inputs. Every statistic is deterministic.
    """

    name: str
    formula: str
    low: float
    high: float
    compute: Callable[[StatisticInputs], np.ndarray]


@torch.inference_mode()
def measure_activity(evaluator: Evaluator, examples: Sequence[Any]) -> Activity:
    """Run the unskipped model on the examples and watch every layer.

    Raises:
        FloatingPointError: a layer gives what is not finite; names it and the examples.
    """
    vlp = evaluator.vlp
    totals = np.zeros((3, len(vlp.layers)))
    for start in range(0, len(examples), evaluator.batch_size):
        chunk = examples[start : start + evaluator.batch_size]
        state = vlp.embed(evaluator.encoder(evaluator.task.pairs(chunk)))
        for number, stage in enumerate(vlp.stages):
            state, _ = vlp.enter(state, number)
            outputs = {vlp.layers[index].stream: vlp.run_layer(index, state, skipped=False) for index in stage}
            for index in stage:
                stream = vlp.layers[index].stream
                totals[:, index] += _changes(vlp, state, outputs[stream], stream)
                check_layer(vlp, index, totals[:, index], chunk)
            state = state.with_hidden({**state.hidden, **outputs})
    return Activity(*(totals / len(examples)))


def check_layer(vlp: VLP, index: int, values: Any, examples: Sequence[Any]) -> None:
    """Refuse what was measured of a layer whose output is not finite.

    Raises:
        FloatingPointError: names the layer and the examples.
    """
    if not np.isfinite(values).all():
        raise FloatingPointError(
            f"layer {vlp.layers[index].name} of the full model gives what is not finite, on "
            f"{told_examples([example.key for example in examples])}: try float32, or train its adapters anew"
        )


def _changes(vlp: VLP, state: State, output: Tensor, stream: str) -> tuple[float, float, float]:
    """The three numbers of `Activity` for one layer, summed over the batch."""
    rows, attend = vlp.rows_of(state, stream, state.hidden[stream])
    before, after = rows.double(), vlp.rows_of(state, stream, output)[0].double()
    pooled = vlp.pooled_tokens(state, stream)
    real = torch.ones(before.shape[:2], device=before.device) if attend is None else attend[:, 0, -1].double()
    influence = 1 - torch.cosine_similarity(before, after, dim=-1)
    residual = (after - before).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-12)
    tokens = real.sum(dim=1)
    return (
        float(influence.gather(1, pooled[:, None]).sum()),
        float(((influence * real).sum(dim=1) / tokens).sum()),
        float(((residual * real).sum(dim=1) / tokens).sum()),
    )


def leave_one_out(inputs: StatisticInputs) -> np.ndarray:
    """(n_layers,) loss with that layer alone skipped, minus the loss of the unskipped model, in nats."""
    count = len(inputs.evaluator.vlp.layers)
    masks = np.concatenate((np.zeros((1, count), bool), np.eye(count, dtype=bool)))
    losses = inputs.evaluator.losses(masks, inputs.examples)
    return losses[1:] - losses[0]


def _stream(inputs: StatisticInputs) -> np.ndarray:
    layers = inputs.evaluator.vlp.layers
    streams = sorted({layer.stream for layer in layers}, reverse=True)
    return np.array([streams.index(layer.stream) for layer in layers], dtype=float)


def _depth(inputs: StatisticInputs) -> np.ndarray:
    vlp = inputs.evaluator.vlp
    return np.array([layer.stage / max(len(vlp.stages) - 1, 1) for layer in vlp.layers])


STATISTICS: dict[str, Statistic] = {
    statistic.name: statistic
    for statistic in (
        Statistic("stream", "0 for the text (or only) stream, 1 for the image stream", 0, 1, _stream),
        Statistic("depth", "stage / (number of stages - 1)", 0, 1, _depth),
        Statistic(
            "macs_share", "MACs of the layer / MACs of the model", 0, 1, lambda m: m.costs.layer_macs / m.costs.macs_full
        ),
        Statistic(
            "parameters_share",
            "parameters of the layer / parameters of the model",
            0,
            1,
            lambda m: m.costs.layer_parameters / m.costs.parameters_full,
        ),
        Statistic(
            "block_influence_pooled",
            "1 - E cos(h_in, h_out) at the pooled token (ShortGPT, arXiv 2403.03853)",
            0,
            2,
            lambda m: m.activity.influence_pooled,
        ),
        Statistic(
            "block_influence_tokens",
            "1 - E cos(h_in, h_out) over real tokens (ShortGPT, arXiv 2403.03853)",
            0,
            2,
            lambda m: m.activity.influence_tokens,
        ),
        Statistic(
            "residual_norm",
            "E |h_out - h_in| / |h_in| over real tokens (EvoPress, arXiv 2410.14649)",
            0,
            100,
            lambda m: m.activity.residual_norm,
        ),
        Statistic(
            "leave_one_out",
            "loss with the layer alone skipped - loss of the unskipped model, nats (SLEB, arXiv 2402.09025)",
            -100,
            100,
            leave_one_out,
        ),
    )
}
"""Every layer statistic by name."""

DEFAULT_STATISTICS = tuple(STATISTICS)
"""What environments observe unless they are told otherwise, in this order; registered ones are asked for by name."""


def register_statistic(statistic: Statistic) -> None:
    """Add a layer statistic of one's own: environments observe it when asked, tables made from now on hold it.

    Raises:
        TypeError: no `Statistic`.
        ValueError: a name that is not allowed or taken, or bounds that are not finite and rising.
    """
    if not isinstance(statistic, Statistic):
        raise TypeError(f"register_statistic({statistic!r}): give a Statistic(name, formula, low, high, compute)")
    check_bounds("statistic", statistic.name, statistic.low, statistic.high)
    add_entry(STATISTICS, statistic.name, statistic, "statistic")


def statistic_names(statistics: str | Iterable[str]) -> tuple[str, ...]:
    """The names as a tuple; a text is one name, not its letters."""
    return (statistics,) if isinstance(statistics, str) else tuple(statistics)


def check_statistics(names: str | Iterable[str]) -> tuple[Statistic, ...]:
    """The statistics of those names.

    Raises:
        ValueError: an unknown name, or none at all; the text names the nearest.
    """
    names = statistic_names(names)
    if not names:
        raise ValueError(f"statistics={names}: give one or more of {', '.join(STATISTICS)}, or None for all")
    check_names(names, STATISTICS, "statistic")
    return tuple(STATISTICS[name] for name in names)


def compute_statistics(statistics: Sequence[Statistic], inputs: StatisticInputs) -> np.ndarray:
    """(n_layers, n_statistics) float32 within the bounds of each statistic."""
    columns = [np.clip(np.nan_to_num(s.compute(inputs)), s.low, s.high) for s in statistics]
    return np.stack(columns, axis=1).astype(np.float32)
