"""Choose among a search's best masks by short trainings: successive halving (Jamieson and Talwalkar, arXiv 1502.07943).

Each round trains every remaining mask from the start, for twice as many steps as the round before, and keeps the better half
by loss on the reward split. Each training has its full learning rate schedule: a short training that ends says more about a
long one than the first steps of the long one do.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.adapt.evaluate import evaluate
from das_gym.adapt.finetune import cut, finetune, load_base_model
from das_gym.adapt.training import TrainingConfig

from das_gym.config import build
from das_gym.data.splits import Splits
from das_gym.engine.encoder_cache import EncoderCache
from das_gym.files import explain_damage, read_json, write_json
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import shuffled
from das_gym.processes import is_main_process, run_on_main_process

REFINED = "refined.json"

Train = Callable[[np.ndarray, int, str, Path], float]
"""Trains a (n_layers,) bool mask for some steps, with a title and a checkpoint; returns the loss on the reward split."""


@dataclass(frozen=True)
class Round:
    """Masks that were trained for the same number of steps.

    Attributes:
        steps: Steps of each training.
        masks: One number per layer, 1 = skipped, in the order of the search's rewards.
        losses: On the reward split afterwards, in nats; None where the training diverged. An interrupted round has fewer
            losses than masks.
    """

    steps: int
    masks: tuple[tuple[int, ...], ...]
    losses: tuple[float | None, ...] = ()

    def best(self, count: int) -> tuple[tuple[int, ...], ...]:
        """Return the masks of the lowest losses, in the round's order."""
        order = np.argsort([math.inf if loss is None else loss for loss in self.losses], kind="stable")
        return tuple(self.masks[i] for i in sorted(order[:count].tolist()))


def lengths(count: int, steps: int) -> list[int]:
    """Return the steps of each round for a number of masks: the last round, of two masks, has half of `steps`."""
    rounds = math.ceil(math.log2(count))
    return [max(1, round(steps / 2 ** (rounds - i))) for i in range(rounds)]


def halve(masks: Sequence[np.ndarray], steps: int, folder: Path, train: Train) -> list[Round]:
    """Halve the masks round by round until one remains: `rounds[-1].best(1)`.

    Args:
        masks: (n_layers,) bool each, two or more, the best by reward first.
        steps: Steps of the final training.
        folder: Results are kept here, in `REFINED`; those that exist are not computed again.
        train: Trains one mask.
    """
    path = folder / REFINED
    rounds = read_rounds(path)
    remaining = tuple(tuple(np.asarray(mask, dtype=int).tolist()) for mask in masks)
    for number, length in enumerate(lengths(len(masks), steps)):
        if number == len(rounds):
            rounds.append(Round(length, remaining))
        while len(rounds[number].losses) < len(remaining):
            place = len(rounds[number].losses)
            title = f"refining, mask {place + 1} of {len(remaining)}"
            checkpoint = folder / f"refining-{number}-{place + 1}.pt"
            loss: float | None = None
            try:
                loss = train(np.array(remaining[place], dtype=bool), length, title, checkpoint)
            except FloatingPointError as error:
                print(f"{title}: {error} It counts as the worst.")
            loss = None if loss is None or not math.isfinite(loss) else loss
            rounds[number] = dataclasses.replace(rounds[number], losses=(*rounds[number].losses, loss))
            if is_main_process():
                write_json(path, {"rounds": [dataclasses.asdict(each) for each in rounds]})
                for finished in folder.glob("refining-*.pt"):  # also one that an interrupted run could not remove
                    finished.unlink(missing_ok=True)
        remaining = rounds[number].best(math.ceil(len(remaining) / 2))
        losses = ["diverged" if loss is None else f"{loss:.4f}" for loss in rounds[number].losses]
        dropped = ["" if mask in remaining else " (dropped)" for mask in rounds[number].masks]
        print(f"losses on the reward split after {length} steps: {', '.join(map(str.__add__, losses, dropped))}")
    return rounds


def candidates(mask: np.ndarray, others: Iterable[np.ndarray], count: int) -> list[np.ndarray]:
    """Return `count` masks of a search, its best first; fewer, with a message, if it evaluated fewer."""
    masks = [mask, *itertools.islice(others, count - 1)]
    if 1 < len(masks) < count:
        print(f"The search evaluated {len(masks)} masks that keep the budget: all are trained.")
    return masks


def selected_mask(rounds: Sequence[Round], masks: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mask that remained, (n_layers,) bool, and print its place in the search."""
    mask = np.array(rounds[-1].best(1)[0], dtype=bool)
    place = next(i for i, each in enumerate(masks) if (each == mask).all())
    print(f"selected: {'the best' if place == 0 else f'number {place + 1}'} of the search by reward")
    return mask


def refine(
    problem: ProblemConfig, splits: Splits[Any], masks: Sequence[np.ndarray], config: TrainingConfig, folder: Path
) -> list[Round]:
    """Halve masks by the losses of their fine-tuned subnets, see `halve`."""
    base, _ = load_base_model(problem)
    examples = shuffled(base.task, splits.reward, base.task.reward_examples)
    encoder = EncoderCache(base.backbone.vlp, base.task.processor, int(config.encoder_cache_gib * 2**30))

    def train(mask: np.ndarray, steps: int, title: str, checkpoint: Path) -> float:
        subnet = cut(base, mask)
        finetune(subnet, splits, dataclasses.replace(config, steps=steps), title, checkpoint, encoder=encoder)
        return run_on_main_process(lambda: evaluate(subnet, examples, title, rank_images=1).loss)

    return halve(masks, config.steps, folder, train)


def read_rounds(path: Path) -> list[Round]:
    """Return the rounds in a file; none if it does not exist."""
    if not path.is_file():
        return []
    with explain_damage(path, "remove it to start again"):
        return [build(Round, each) for each in read_json(path)["rounds"]]
