"""Compare the sum of unit latencies with the measured latency of whole subnets, and saved MACs with saved time.

    python -m benchmarks.latency                            METER-base (random weights)
    python -m benchmarks.latency --models meter_mini vilt_mini smolvlm_mini          the bundled models
    python -m benchmarks.latency --batch 1 --subnets 10

Random subnets with 1 to n - 1 skipped units, which are removed, run from pixels and tokens to logits. The prediction is the
sum of their parts (`das_gym.problem.latency`). Whole subnets and parts are timed in turns, in random order, so that
other load affects both; medians are compared. METER is also run full without adapters, and as DAS with k = 4: two text and
two image layers skipped, adapters everywhere. Its share of saved time is compared with its share of saved MACs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.machine import make_parser
from benchmarks.models import DAS, Subject, load_subject
from das_gym.models.base import VLP
from das_gym.models.macs import MacCounter, share_copy
from das_gym.problem.config import ProblemConfig
from das_gym.problem.costs import count_costs
from das_gym.problem.latency import Spread, Timed, UnitTimer, make_timed_forward, without_adapters_sharing
from das_gym.problem.loading import load_problem
from das_gym.problem.mask_cost import MaskCost

MODELS = ("meter_base", "meter_mini", "vilt_mini", "smolvlm_mini")
ROUNDS = {"meter_base": 8}
"""Timed runs of each subnet; 40 for the small models."""

WARM_UP = 2
"""Rounds that are not counted."""


def subject_of(name: str, batch: int) -> Subject:
    """Load a model with its head, its task and a batch of examples."""
    if name.startswith("meter"):
        return load_subject(name.removeprefix("meter_"), batch)
    kinds = {"vilt_mini": {"model": "ViLT"}, "smolvlm_mini": {"model": "VLM", "task": "answering"}}
    problem = load_problem(ProblemConfig(device="cpu", **kinds[name]))
    return Subject(problem.vlp, problem.head, problem.task, problem.splits.reward[:batch])


def random_masks(n_layers: int, count: int) -> np.ndarray:
    """Return (count, n_layers) masks with 1 to n - 1 skipped units, uniformly distributed."""
    rng = np.random.default_rng(0)
    return np.array([rng.permutation(n_layers) < rng.integers(1, n_layers) for _ in range(count)])


@torch.inference_mode()
def measure(name: str, batch: int, subnets: int, rounds: int) -> dict[str, Any]:
    """Return the record of one model at one batch size."""
    subject = subject_of(name, batch)
    vlp, names = subject.vlp, [layer.name for layer in subject.vlp.layers]
    masks, meter = random_masks(len(names), subnets), name.startswith("meter")
    if meter:
        masks = np.concatenate((masks, [[each in DAS for each in names]]))

    def timed_forward(model: VLP) -> Timed:
        return make_timed_forward(model, subject.head, subject.task, subject.examples)

    calls: list[Callable[[], Any]] = []
    for mask in masks:
        twin = share_copy(vlp)
        twin.prune(mask)
        calls.append(timed_forward(twin))
    bare = without_adapters_sharing(vlp)
    whole = None if bare is None else timed_forward(bare)
    timer = UnitTimer(timed_forward(vlp), whole, len(names), torch.device("cpu"), time.perf_counter)
    calls.append(whole or timer.timed)
    taken = []
    for number in range(WARM_UP + rounds):
        if number == WARM_UP:
            timer.reset()
            taken = []
        timer.round()
        taken.append(in_turns(calls, time.perf_counter, np.random.default_rng(number)))
    task = subject.task
    sample = vlp.sample(task.processor, task.pairs(subject.examples), MacCounter(vlp))  # as long as the longest example
    macs = count_costs(vlp, sample, subject.head, task.group_features, task.passes).macs_cost
    return compared(timer, np.array(taken), masks, macs, meter)


def in_turns(calls: Sequence[Callable[[], Any]], clock: Callable[[], float], rng: np.random.Generator) -> list[float]:
    """Return the milliseconds of one run of each call, in random order, since one run can affect the next."""
    taken = [0.0] * len(calls)
    for place in rng.permutation(len(calls)):
        started = clock()
        calls[place]()
        taken[place] = 1000 * (clock() - started)
    return taken


def compared(timer: UnitTimer, taken: np.ndarray, masks: np.ndarray, macs: MaskCost, das: bool) -> dict[str, Any]:
    """Compare predicted and measured latency.

    Args:
        timer: Times of the parts.
        taken: (rounds, subnets + 1) milliseconds, the last column of the model without adapters.
        masks: (subnets, n_layers) masks.
        macs: Cost of masks in MACs.
        das: Whether the last mask is that of DAS.
    """
    figures, taken, full = timer.latencies(), taken[:, :-1], taken[:, -1]
    predicted, measured = figures.cost.amounts(masks), np.median(taken, axis=0)
    record: dict[str, Any] = {"full_ms": float(np.median(full))}
    if das:
        saved = Spread.of(1 - taken[:, -1] / full)
        record["das"] = {
            "macs_saved": float(macs.saved(masks[-1:])[0]),
            "predicted_saved": float(figures.cost.saved(masks[-1:])[0]),
            "measured_saved": saved._asdict(),
            "of_the_macs": saved.median / float(macs.saved(masks[-1:])[0]),
        }
        masks, predicted, measured = masks[:-1], predicted[:-1], measured[:-1]
    errors = np.abs(predicted / measured - 1)
    record["subnets"] = [
        {"mask": mask.astype(int).tolist(), "predicted_ms": float(one), "measured_ms": float(other)}
        for mask, one, other in zip(masks, predicted, measured, strict=True)
    ]
    return {**record, "error": Spread.of(errors)._asdict(), "largest_error": float(errors.max())}


def describe(name: str, batch: int, record: dict[str, Any]) -> str:
    """Return a record as text."""
    error, count = record["error"], len(record["subnets"])
    lines = [
        f"{name}, batch {batch}: {count} random subnets, predicted within {error['median']:.1%} of the clock in the median "
        f"(quartiles {error['low']:.1%}..{error['high']:.1%}, at most {record['largest_error']:.1%}); "
        f"full {record['full_ms']:.1f} ms"
    ]
    if "das" in record:
        das = record["das"]
        spread = das["measured_saved"]
        lines.append(
            f"  DAS, k = 4 ({', '.join(DAS)}): {das['macs_saved']:.1%} of the MACs and {spread['median']:.1%} of the time "
            f"saved (quartiles {spread['low']:.1%}..{spread['high']:.1%}, predicted {das['predicted_saved']:.1%}): "
            f"{das['of_the_macs']:.0%} of the MACs' saving"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser("latency", __doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["meter_base"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="examples at a time (default 1 and 8)")
    parser.add_argument("--subnets", type=int, default=30, help="random subnets (default 30)")
    parser.add_argument("--rounds", type=int, help="timed runs of each; default 8 (base), 40 (mini)")
    options = parser.parse_args(arguments)
    for name in options.models:
        for batch in options.batch:
            record = measure(name, batch, options.subnets, options.rounds or ROUNDS.get(name, 40))
            print(describe(name, batch, record), flush=True)


if __name__ == "__main__":
    main()
