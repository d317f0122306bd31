"""How much of the loss from removed layers recovery regains, by its settings, on held-out examples.

    python -m benchmarks.recovery                                       the bundled model and data, 20 % of the MACs
    python -m benchmarks.recovery --checkpoint DIR --data-root DIR --macs-saved 0.2 --json recovery.json
    python -m benchmarks.recovery --recover lora full --learning-rates 1e-4 1e-3 --steps 300 1000

A search with `bayes` finds the mask, unless one is given, and every setting trains the same pruned model. Settings are
compared by the loss on the reward split. The best is evaluated on the test split: loss (nats), and score of generated
answers. The regained share is (shrunk - recovered) / (shrunk - full).
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.adapt.shrink.checks import as_vlm
from das_gym.adapt.shrink.measuring import answer_scores, loss_of
from das_gym.adapt.shrink.recovery import RecoveryConfig, make_teacher, merged, recover
from das_gym.agents.searching.config import SearchConfig
from das_gym.agents.searching.loop import search

from benchmarks.machine import describe_machine
from das_gym.files import write_json
from das_gym.intervals import mean_interval
from das_gym.models.transformers.generation import generate
from das_gym.models.transformers.layer_removal import draw_mask, pruned_copy
from das_gym.models.transformers.model import VLM
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import Problem, load_problem, shuffled
from das_gym.registration import find_environment

BATCH = 8


def find_mask(options: argparse.Namespace, config: ProblemConfig) -> np.ndarray:
    """Return the given mask, or that of a search."""
    if options.mask is not None:
        return np.array(options.mask, dtype=bool)
    given = {
        name: getattr(config, name) for name in ("checkpoint", "data_root", "dtype") if getattr(config, name) is not None
    }
    asked = SearchConfig(
        find_environment(config.model, config.task).id,
        env_kwargs=given,
        agent="bayes",
        macs_saved=options.macs_saved,
        evaluations=options.evaluations,
    )
    return np.array(search(asked).mask, dtype=bool)


class Subject:
    """A model, its pruned form, and their scores on held-out examples.

    Args:
        problem: The full model with its data.
        mask: Layers to remove.
        examples: Largest number of examples of the reward split, and of the test split.
        longest: Settings with the most steps: the teacher's outputs are computed once.
    """

    def __init__(self, problem: Problem, mask: np.ndarray, examples: int, longest: RecoveryConfig) -> None:
        self.problem, self.task, self.mask = problem, problem.task, mask
        self.full = as_vlm(problem)
        self.held_out = shuffled(problem.task, problem.splits.reward, examples)
        self.test = shuffled(problem.task, problem.splits.test, examples)
        self.teacher = make_teacher(self.full, self.task, problem.splits.train, longest)

    def loss(self, vlm: VLM, examples: Sequence[Any]) -> float:
        """Return the mean loss, in nats."""
        return loss_of(vlm, self.task, self.task.open_ended(examples), BATCH, "loss")

    def score(self, vlm: VLM) -> np.ndarray:
        """Return (n,) scores of the answers that a model generates for test examples."""
        prompts = self.task.pairs(self.task.open_ended(self.test))
        return answer_scores(self.task, self.test, generate(vlm, self.task.processor, prompts, "answers", BATCH))  # type: ignore[arg-type]

    def tested(self, vlm: VLM) -> dict[str, Any]:
        """Return score and loss on test examples."""
        scores = self.score(vlm)
        return {"score": float(scores.mean()), "interval": mean_interval(scores), "loss": self.loss(vlm, self.test)}


def regained(full: float, shrunk: float, recovered: float) -> float | None:
    """Return the share of the loss that was recovered; None if nothing was lost."""
    return None if shrunk == full else (shrunk - recovered) / (shrunk - full)


def settings_of(options: argparse.Namespace) -> list[RecoveryConfig]:
    """Return every combination of the settings."""
    every = itertools.product(options.recover, options.steps, options.learning_rates)
    same = {"batch_size": options.batch_size, "seed": options.seed}
    return [RecoveryConfig(recover=r, steps=s, learning_rate=rate, **same) for r, s, rate in every]


def words(config: RecoveryConfig) -> str:
    """Return the varied settings as text."""
    return f"{config.recover}, {config.steps} steps, learning rate {config.learning_rate:g}"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Compare the settings on one model."""
    config = ProblemConfig(
        model="VLM", task="answering", checkpoint=options.checkpoint, data_root=options.data_root, dtype=options.dtype
    )
    mask = find_mask(options, config)
    every = settings_of(options)
    subject = Subject(load_problem(config), mask, options.examples, max(every, key=lambda settings: settings.steps))
    shrunk = pruned_copy(subject.full, mask)
    held = {name: subject.loss(vlm, subject.held_out) for name, vlm in (("full", subject.full), ("shrunk", shrunk))}
    saved = subject.problem.costs.macs_saved(mask)
    layers = draw_mask(subject.full, mask)
    print(f"{layers}, {100 * saved:.1f} % of the MACs saved; held-out loss {held['full']:.4f}, then {held['shrunk']:.4f}")
    test = {name: subject.tested(vlm) for name, vlm in (("full", subject.full), ("shrunk", shrunk))}
    rows: list[dict[str, Any]] = []
    for settings in every:
        student, started = pruned_copy(subject.full, mask), time.perf_counter()
        trained = recover(
            student, subject.full, subject.task, subject.problem.splits.train, settings, teacher=subject.teacher
        )
        seconds = time.perf_counter() - started
        with merged(student, subject.full, settings, trained):
            loss = subject.loss(student, subject.held_out)
            if loss < min((row["loss"] for row in rows), default=float("inf")):
                test["recovered"] = subject.tested(student)
        share = regained(held["full"], held["shrunk"], loss)
        rows.append({"settings": words(settings), "loss": loss, "loss_regained": share, "seconds": seconds})
        told = "nothing was lost" if share is None else f"{100 * share:.0f} % regained"
        print(f"  {words(settings)}: held-out loss {loss:.4f}, {told}, {seconds:.0f} s")
    return {"mask": mask.astype(int).tolist(), "macs_saved": saved, "held_out": held, "rows": rows, "test": test}


def report(record: dict[str, Any]) -> str:
    """Return the scores on the test split as text."""
    lines = [
        f"  {name:<9} score {100 * row['score']:.1f} % ({100 * row['interval'][0]:.1f}..{100 * row['interval'][1]:.1f}), "
        f"loss {row['loss']:.4f}"
        for name, row in record["test"].items()
    ]
    full, shrunk, back = (record["test"][name] for name in ("full", "shrunk", "recovered"))
    for name in ("score", "loss"):
        share = regained(full[name], shrunk[name], back[name])
        lines.append(f"  of the {name} {'nothing was lost' if share is None else f'{100 * share:.0f} % regained'}")
    return "\n".join(["on test, with the settings of the least held-out loss:", *lines])


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recovery", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", help="folder of a model of transformers; default: the bundled model")
    parser.add_argument("--data-root")
    parser.add_argument("--dtype")
    parser.add_argument("--macs-saved", type=float, default=0.2)
    parser.add_argument("--mask", type=int, nargs="+", help="0 or 1 per layer, 1 = removed; default: a search")
    parser.add_argument("--evaluations", type=int, default=120, help="of the search")
    parser.add_argument("--recover", nargs="+", choices=("lora", "full", "adapters"), default=["lora", "full"])
    parser.add_argument("--steps", type=int, nargs="+", default=[300])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--examples", type=int, default=500, help="largest number of examples of each held-out split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    machine = describe_machine()
    record = {**measure(options), "machine": machine}
    print(report(record))
    if options.json is not None:
        write_json(options.json, record)


if __name__ == "__main__":
    main()
