"""Layer statistics of a frozen VLP, by name: what an agent observes.

Nothing here imports torch, so that an environment from a table does not: `das_gym.problem.statistic_inputs` runs the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from das_gym.names import check_names
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.rewards import MAX_LOSS, add_bounded

if TYPE_CHECKING:
    from das_gym.problem.statistic_inputs import StatisticInputs


@dataclass(frozen=True)
class Statistic:
    """One number per layer.

    Attributes:
        name: Its name in the setting `statistics`.
        formula: Its definition in one line, with the unit and the source.
        low, high: Its bounds; values outside are clipped to them.
        compute: Maps `StatisticInputs` to (n_layers,) finite float values, one for each layer, always the same.
        of_removals: Maps the (n_layers + 1,) losses of `single_removals`, in nats, to the values, if they depend on nothing
            else: a table then has the statistic without a model. None for other statistics.
    """

    name: str
    formula: str
    low: float
    high: float
    compute: Callable[[StatisticInputs], np.ndarray]
    of_removals: Callable[[Floats], Floats] | None = None

    def bounded(self, values: object, n_layers: int) -> Floats:
        """Return what `compute` gave as an environment observes it, (n_layers,) float64, clipped to the bounds.

        Raises:
            ValueError: They are not `n_layers` finite numbers.
        """
        try:
            checked = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"statistic {self.name!r} did not return numbers: got {values!r}. Return an array") from error
        if checked.shape != (n_layers,):
            raise ValueError(
                f"statistic {self.name!r} returned the wrong shape: got {checked.shape}, expected ({n_layers},). "
                "Return one number for each layer"
            )
        wrong = np.flatnonzero(~np.isfinite(checked))
        if wrong.size:
            raise ValueError(
                f"statistic {self.name!r} is not finite for layers {wrong.tolist()}: got {checked[wrong].tolist()}. "
                "Return finite numbers"
            )
        return np.clip(checked, self.low, self.high)


def single_removals(n_layers: int) -> Masks:
    """Return (n_layers + 1, n_layers) bool masks: nothing skipped, then each layer alone."""
    return np.eye(n_layers + 1, dtype=bool)[:, 1:]


def leave_one_out(losses: Floats) -> Floats:
    """Return (n_layers,) loss with one layer skipped minus that of the full model, from the losses of `single_removals`.

    Infinite losses count as `MAX_LOSS`.
    """
    finite = np.minimum(losses, MAX_LOSS)
    return finite[1:] - finite[0]


def _of_activity(name: str, high: float, formula: str) -> Statistic:
    return Statistic(name, formula, 0, high, lambda m: getattr(m.activity, name))


def _of_skipping(slopes: np.ndarray) -> np.ndarray:
    """Return slopes towards skipping; one that is NaN or infinite counts as `MAX_LOSS`, as in `leave_one_out`."""
    return np.nan_to_num(slopes, nan=MAX_LOSS, posinf=MAX_LOSS, neginf=-MAX_LOSS)


def _stream(inputs: StatisticInputs) -> np.ndarray:
    layers = inputs.evaluator.vlp.layers
    streams = sorted({layer.stream for layer in layers}, reverse=True)
    return np.array([streams.index(layer.stream) for layer in layers], dtype=float)


def _depth(inputs: StatisticInputs) -> np.ndarray:
    vlp = inputs.evaluator.vlp
    return np.array([layer.stage / max(len(vlp.stages) - 1, 1) for layer in vlp.layers])


MACS_FORMULA = "MACs of the layer / MACs of the model"
SIZE_FORMULA = "parameters of the layer / parameters of the model"
TAYLOR_FORMULA = "E <dL/dh_out, h_skipped - h_out>: leave_one_out to first order, nats (arXiv 1906.10771)"
FISHER_FORMULA = "root mean square over rows of <dL/dh_out, h_skipped - h_out>, nats (arXiv 1801.05787)"
REMOVAL_FORMULA = "loss with the layer alone skipped - loss of the full model, nats (SLEB, arXiv 2402.09025)"

STATISTICS: dict[str, Statistic] = {
    statistic.name: statistic
    for statistic in (
        Statistic("stream", "0 for the text (or only) stream, 1 for the image stream", 0, 1, _stream),
        Statistic("depth", "stage / (number of stages - 1)", 0, 1, _depth),
        Statistic("macs_share", MACS_FORMULA, 0, 1, lambda m: m.costs.layer_macs / m.costs.macs_full),
        Statistic("parameters_share", SIZE_FORMULA, 0, 1, lambda m: m.costs.layer_parameters / m.costs.parameters_full),
        _of_activity("block_influence_pooled", 2, "1 - E cos(h_in, h_out) at the pooled token (ShortGPT, arXiv 2403.03853)"),
        _of_activity("block_influence_tokens", 2, "1 - E cos(h_in, h_out) over real tokens (ShortGPT, arXiv 2403.03853)"),
        _of_activity("residual_norm", 100, "E |h_out - h_in| / |h_in| over real tokens (EvoPress, arXiv 2410.14649)"),
        Statistic("leave_one_out", REMOVAL_FORMULA, -100, 100, lambda m: leave_one_out(m.removal_losses), leave_one_out),
        _of_activity("angular", 1, "E arccos(cos(h_in, h_out)) / pi over real tokens (arXiv 2403.17887)"),
        Statistic("taylor", TAYLOR_FORMULA, -100, 100, lambda m: _of_skipping(m.sensitivity.taylor)),
        Statistic("fisher", FISHER_FORMULA, 0, 100, lambda m: _of_skipping(m.sensitivity.fisher)),
    )
}

DEFAULT_STATISTICS = (
    "stream",
    "depth",
    "macs_share",
    "parameters_share",
    "block_influence_pooled",
    "block_influence_tokens",
    "residual_norm",
    "angular",
)
"""The statistics that environments observe by default, in this order: what one forward of the full model gives."""


def statistics_of_removals() -> list[str]:
    """Return the names of the statistics for which a model scores `single_removals`."""
    return [name for name, statistic in STATISTICS.items() if statistic.of_removals is not None]


def register_statistic(statistic: Statistic) -> None:
    """Add a layer statistic: environments observe it by name, and new tables hold it.

    Raises:
        TypeError: `statistic` is not a `Statistic`.
        ValueError: The name is not allowed or already registered, or the bounds are not finite numbers with low < high.

    Complete example: `examples/own_statistic.py`.
    """
    add_bounded(STATISTICS, statistic, Statistic)


def check_statistics(names: str | Iterable[str]) -> tuple[Statistic, ...]:
    """Return the statistics with the given names, one or more; ValueError for unknown ones or none."""
    names = (names,) if isinstance(names, str) else tuple(names)
    if not names:
        raise ValueError(f"`statistics` is empty: expected one or more of {', '.join(STATISTICS)}, or None")
    check_names(names, STATISTICS, "statistic", own=True)
    return tuple(STATISTICS[name] for name in names)


def masks_needed(names: Iterable[str], n_layers: int) -> int:
    """Return how many masks a model scores for statistics by name: `single_removals` or none; unknown names need none."""
    scored = set(statistics_of_removals()) & set(names)
    return n_layers + 1 if scored else 0


def compute_statistics(statistics: Sequence[Statistic], inputs: StatisticInputs) -> np.ndarray:
    """Return the values of statistics, (n_layers, n_statistics) float32; ValueError as in `Statistic.bounded`."""
    n_layers = len(inputs.evaluator.vlp.layers)
    columns = [s.bounded(s.compute(inputs), n_layers) for s in statistics]
    return np.stack(columns, axis=1).astype(np.float32)
