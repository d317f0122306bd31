"""Compare the sum of unit latencies with the measured latency of whole subnets, and saved MACs with saved time.

    python -m benchmarks.latency                            METER-base (random weights)
    python -m benchmarks.latency --size mini --batch 1 --subnets 10

Random subnets with 1 to n - 1 skipped units, which are removed, run from pixels and tokens to logits. The prediction is the
sum of their parts (`das_gym.problem.latency`). Whole subnets and parts are timed in turns, in random order, so that
other load affects both; medians are compared. METER is also run full without adapters, and as DAS with k = 4: two text and
two image layers skipped, adapters everywhere. Its share of saved time is compared with its share of saved MACs.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.harness import DAS, load_subject, make_parser
from das_gym.models.base import VLP
from das_gym.models.macs import MacCounter, share_copy
from das_gym.problem.budget import MaskCost
from das_gym.problem.costs import count_costs
from das_gym.problem.latency import Spread, Timed, UnitTimer, make_timed_forward, without_adapters_sharing

ROUNDS = {"base": 8, "mini": 40}
"""Timed runs of each subnet, by model size."""

WARM_UP = 2
"""Rounds that are not counted."""


def random_masks(n_layers: int, count: int) -> np.ndarray:
    """Return (count, n_layers) masks with 1 to n - 1 skipped units, uniformly distributed."""
    rng = np.random.default_rng(0)
    return np.array([rng.permutation(n_layers) < rng.integers(1, n_layers) for _ in range(count)])


@torch.inference_mode()
def measure(size: str, batch: int, subnets: int, rounds: int) -> dict[str, Any]:
    """Return the record of a size of METER at one batch size."""
    subject = load_subject(size, batch)
    vlp = subject.vlp
    task = subject.task
    names = [layer.name for layer in subject.vlp.layers]
    masks = np.concatenate((random_masks(len(names), subnets), [[each in DAS for each in names]]))

    def timed_forward(model: VLP) -> Timed:
        return make_timed_forward(model, subject.head, task, subject.examples)

    calls: list[Callable[[], Any]] = []
    for mask in masks:
        twin = share_copy(vlp)
        twin.prune(mask)
        calls.append(timed_forward(twin))
    bare = timed_forward(without_adapters_sharing(vlp) or vlp)
    timer = UnitTimer(timed_forward(vlp), bare, len(names), torch.device("cpu"), time.perf_counter)
    calls.append(bare)
    taken = []
    for number in range(WARM_UP + rounds):
        if number == WARM_UP:
            timer.reset()
            taken = []
        timer.round()
        taken.append(in_turns(calls, time.perf_counter, np.random.default_rng(number)))
    sample = vlp.cost_example(task.processor, task.pairs(subject.examples), MacCounter(vlp))  # as long as the longest one
    macs = count_costs(vlp, sample, subject.head, task.group_features, task.passes).macs_cost
    return compared(timer, np.array(taken), masks, macs)


def in_turns(calls: Sequence[Callable[[], Any]], clock: Callable[[], float], rng: np.random.Generator) -> list[float]:
    """Return the milliseconds of one run of each call, in random order, since one run can affect the next."""
    taken = [0.0] * len(calls)
    for place in rng.permutation(len(calls)):
        started = clock()
        calls[place]()
        taken[place] = 1000 * (clock() - started)
    return taken


def compared(timer: UnitTimer, taken: np.ndarray, masks: np.ndarray, macs: MaskCost) -> dict[str, Any]:
    """Compare predicted and measured latency.

    Args:
        timer: Times of the parts.
        taken: (rounds, subnets + 1) milliseconds, the last column of the model without adapters.
        masks: (subnets, n_layers) masks, the last one that of DAS.
        macs: Cost of masks in MACs.
    """
    cost = timer.latencies().cost
    full = taken[:, -1]
    predicted = cost.amounts(masks)[:-1]
    errors = np.abs(predicted / np.median(taken[:, :-2], axis=0) - 1)
    macs_saved = float(macs.saved(masks[-1:])[0])
    saved = Spread.from_values(1 - taken[:, -2] / full)
    return {
        "full_ms": float(np.median(full)),
        "predicted_ms": predicted.tolist(),
        "error": Spread.from_values(errors),
        "largest_error": float(errors.max()),
        "macs_saved": macs_saved,
        "predicted_saved": float(cost.saved(masks[-1:])[0]),
        "measured_saved": saved,
        "of_the_macs": saved.median / macs_saved,
    }


def describe(size: str, batch: int, record: dict[str, Any]) -> str:
    """Return a record as text."""
    error = record["error"]
    saved = record["measured_saved"]
    count = len(record["predicted_ms"])
    return (
        f"METER-{size}, batch {batch}: {count} random subnets, predicted within {error.median:.1%} of the clock in the "
        f"median (quartiles {error.low:.1%}..{error.high:.1%}, at most {record['largest_error']:.1%}); "
        f"full {record['full_ms']:.1f} ms\n"
        f"  DAS, k = 4 ({', '.join(DAS)}): {record['macs_saved']:.1%} of the MACs and {saved.median:.1%} of the time "
        f"saved (quartiles {saved.low:.1%}..{saved.high:.1%}, predicted {record['predicted_saved']:.1%}): "
        f"{record['of_the_macs']:.0%} of the MACs' saving"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser("latency", __doc__)
    parser.add_argument("--size", choices=ROUNDS, default="base")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="examples at a time (default 1 and 8)")
    parser.add_argument("--subnets", type=int, default=30, help="random subnets (default 30)")
    parser.add_argument("--rounds", type=int, help="timed runs of each; default 8 (base), 40 (mini)")
    options = parser.parse_args(arguments)
    for batch in options.batch:
        record = measure(options.size, batch, options.subnets, options.rounds or ROUNDS[options.size])
        print(describe(options.size, batch, record), flush=True)


if __name__ == "__main__":
    main()
