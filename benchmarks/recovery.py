"""How much of the loss from removed layers recovery regains, by its settings, on held-out examples.

    python -m benchmarks.recovery                                       the bundled model and data, 20 % of the MACs
    python -m benchmarks.recovery --checkpoint DIR --data-root DIR --macs-saved 0.2
    python -m benchmarks.recovery --recover lora full --learning-rates 1e-4 1e-3 --steps 300 1000

A search with `bayes` finds the mask, unless one is given, and every setting trains the same pruned model. Settings are
compared by the loss on the reward split. The best is evaluated on the test split: loss (nats), and score of generated
answers. The regained share is (shrunk - recovered) / (shrunk - full).
"""

import argparse
import itertools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from das_gym.adapt.shrinking.checks import as_vlm
from das_gym.adapt.shrinking.measuring import Quality, mean_loss, score_model
from das_gym.adapt.shrinking.recovery import make_teacher, recover_student, temporarily_merged
from das_gym.adapt.shrinking.settings import RecoveryConfig
from das_gym.agents.searching.loop import search
from das_gym.agents.settings import SearchConfig

from benchmarks.machine import make_parser
from das_gym.models.transformers.layer_removal import draw_mask, pruned_copy
from das_gym.models.transformers.model import VLM
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import shuffled
from das_gym.problem.problem import load_problem

BATCH = 8


def find_mask(options: argparse.Namespace) -> np.ndarray:
    """Return the given mask, or that of a search."""
    if options.mask is not None:
        return np.array(options.mask, dtype=bool)
    given = {"checkpoint": options.checkpoint, "data_root": options.data_root}
    kwargs = {name: value for name, value in given.items() if value is not None}
    budget = {"macs_saved": options.macs_saved, "evaluations": options.evaluations}
    return np.array(
        search(SearchConfig("DAS-VLM-Answering-v0", env_kwargs=kwargs, agent="bayes", **budget)).mask, dtype=bool
    )


def regained(full: float, shrunk: float, recovered: float) -> float | None:
    """Return the share of the loss that was recovered; None if nothing was lost."""
    return None if shrunk == full else (shrunk - recovered) / (shrunk - full)


def format_share(share: float | None) -> str:
    """Return a regained share as text."""
    return "nothing was lost" if share is None else f"{100 * share:.0f} % regained"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Compare the settings on one model, printing each."""
    config = ProblemConfig(model="VLM", task="answering", checkpoint=options.checkpoint, data_root=options.data_root)
    mask = find_mask(options)
    problem = load_problem(config)
    task = problem.task
    full = as_vlm(problem)
    held_out, test = (shuffled(task, part, options.examples) for part in (problem.splits.reward, problem.splits.test))
    same = {"batch_size": options.batch_size, "seed": options.seed}
    every = [
        RecoveryConfig(recover=r, steps=s, learning_rate=rate, **same)
        for r, s, rate in itertools.product(options.recover, options.steps, options.learning_rates)
    ]
    # The teacher's outputs are computed once, for the settings with the most steps.
    teacher = make_teacher(full, task, problem.splits.train, max(every, key=lambda settings: settings.num_steps))

    def loss(vlm: VLM, examples: Sequence[Any]) -> float:
        return mean_loss(vlm, task, task.open_ended(examples), BATCH, "loss")

    shrunk = pruned_copy(full, mask)
    held = {"full": loss(full, held_out), "shrunk": loss(shrunk, held_out)}
    saved = problem.costs.macs_saved(mask)
    removed = f"{draw_mask(full, mask)}, {100 * saved:.1f} % of the MACs saved"
    print(f"{removed}; held-out loss {held['full']:.4f}, then {held['shrunk']:.4f}")
    rows: list[dict[str, Any]] = []
    results = {"full": score_model(full, task, test, "")[0], "shrunk": score_model(shrunk, task, test, "")[0]}
    for settings in every:
        student = pruned_copy(full, mask)
        started = time.perf_counter()
        trained = recover_student(student, problem, settings, teacher=teacher)
        seconds = time.perf_counter() - started
        with temporarily_merged(student, full, settings, trained):
            found = loss(student, held_out)
            if found < min((row["loss"] for row in rows), default=float("inf")):
                results["recovered"] = score_model(student, task, test, "")[0]
        share = regained(held["full"], held["shrunk"], found)
        words = f"{settings.recover}, {settings.steps} steps, learning rate {settings.learning_rate:g}"
        rows.append({"settings": words, "loss": found, "loss_regained": share})
        print(f"  {words}: held-out loss {found:.4f}, {format_share(share)}, {seconds:.0f} s")
    return {"macs_saved": saved, "held_out": held, "rows": rows, "test": results}


def report(test: dict[str, Quality]) -> str:
    """Return the scores on the test split as text."""
    lines = ["on test, with the settings of the least held-out loss:"]
    for name, row in test.items():
        interval = f"{100 * row.low:.1f}..{100 * row.high:.1f}"
        lines.append(f"  {name:<9} score {100 * row.score:.1f} % ({interval}), loss {row.loss:.4f}")
    lines.append(f"  of the score {format_share(regained(*(row.score for row in test.values())))}")
    lines.append(f"  of the loss {format_share(regained(*(row.loss for row in test.values())))}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and print; return the record."""
    parser = make_parser("recovery", __doc__)
    parser.add_argument("--checkpoint", help="folder of a model of transformers; default: the bundled model")
    parser.add_argument("--data-root")
    parser.add_argument("--macs-saved", type=float, default=0.2)
    parser.add_argument("--mask", type=int, nargs="+", help="0 or 1 per layer, 1 = removed; default: a search")
    parser.add_argument("--evaluations", type=int, default=120, help="of the search")
    parser.add_argument("--recover", nargs="+", choices=("lora", "full", "adapters"), default=["lora", "full"])
    parser.add_argument("--steps", type=int, nargs="+", default=[300])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", type=int, default=500, help="largest number of examples of each held-out split")
    record = measure(parser.parse_args(arguments))
    print(report(record["test"]))
    return record


if __name__ == "__main__":
    main()
