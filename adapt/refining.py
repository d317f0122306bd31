"""Which of a search's best masks is best once it is fine-tuned: short trainings of all, longer ones of the better half.

Successive halving (Jamieson and Talwalkar, arXiv 1502.07943). Every round trains each mask that is left from the start, for
twice as many steps as before and with the whole course of the learning rate: a short training that ends says more of a long
one than its first steps do. Masks are judged by their loss on the reward split.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.adapt.evaluate import evaluate
from das_gym.adapt.finetune import FinetuneConfig, cut_subnet, finetune

from das_gym.config import build
from das_gym.data.splits import Splits
from das_gym.engine.encoder_cache import EncoderCache
from das_gym.files import damage_named, read_json, write_json
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, shuffled
from das_gym.processes import is_first, of_first

REFINED = "refined.json"
CHECKPOINTS = "refining-*.pt"
"""One a training: what a finished one left must not be taken for the next one's."""


@dataclass(frozen=True)
class Round:
    """Masks that were trained equally long.

    Attributes:
        steps: Of each training.
        masks: 0 or 1 a layer, 1 = skipped, in the order of the search's rewards.
        losses: On the reward split afterwards, nats, None where training or loss came to no number; fewer than masks where
            the round was stopped.
    """

    steps: int
    masks: tuple[tuple[int, ...], ...]
    losses: tuple[float | None, ...] = ()

    def best(self, count: int) -> tuple[tuple[int, ...], ...]:
        """So many masks of the lowest losses, in the round's order."""
        order = np.argsort([math.inf if loss is None else loss for loss in self.losses], kind="stable")
        return tuple(self.masks[i] for i in sorted(order[:count].tolist()))


def lengths(count: int, steps: int) -> list[int]:
    """Steps of the trainings of each round for so many masks: the last round, of two masks, has half of `steps`."""
    rounds = math.ceil(math.log2(count))
    return [max(1, round(steps / 2 ** (rounds - i))) for i in range(rounds)]


Train = Callable[[np.ndarray, int, str, Path], float]
"""Trains a (n_layers,) bool mask for so many steps, with a title and a checkpoint; gives its loss on the reward split."""


def halve(masks: Sequence[np.ndarray], steps: int, folder: Path, train: Train) -> list[Round]:
    """Halve the masks round by round until one is left: `rounds[-1].best(1)`.

    Args:
        masks: (n_layers,) bool each, two or more, the best by reward first.
        steps: Of the whole training that is to come.
        folder: What is known is kept here, in `REFINED`; what lies there is not done again.
        train: Trains one.

    Raises:
        ValueError: what lies there is damaged.
    """
    path = folder / REFINED
    rounds = _known(path)
    left = tuple(tuple(np.asarray(mask, dtype=int).tolist()) for mask in masks)
    for number, length in enumerate(lengths(len(masks), steps)):
        if number == len(rounds):
            rounds.append(Round(length, left))
        while len(rounds[number].losses) < len(left):
            place = len(rounds[number].losses)
            title, checkpoint = f"refining, mask {place + 1} of {len(left)}", folder / f"refining-{number}-{place + 1}.pt"
            loss: float | None = None
            try:
                loss = train(np.array(left[place], dtype=bool), length, title, checkpoint)
            except FloatingPointError as error:
                print(f"{title}: {error}; it counts as the worst")
            if loss is not None and not math.isfinite(loss):
                loss = None
            rounds[number] = dataclasses.replace(rounds[number], losses=(*rounds[number].losses, loss))
            if is_first():
                write_json(path, {"rounds": [dataclasses.asdict(each) for each in rounds]})
                for done in folder.glob(CHECKPOINTS):
                    done.unlink(missing_ok=True)
        left = rounds[number].best(math.ceil(len(left) / 2))
        print(told(rounds[number], left))
    return rounds


def candidates(mask: np.ndarray, others: Iterable[np.ndarray], count: int) -> list[np.ndarray]:
    """So many of a search's masks, its answer first; fewer, and a line that says so, where it saw fewer.

    Of the others no more are taken than that needs.
    """
    masks = [mask, *itertools.islice(others, count - 1)]
    if 1 < len(masks) < count:
        print(f"the search saw {len(masks)} masks that keep the budget: all are tried")
    return masks


def taken(rounds: Sequence[Round], masks: Sequence[np.ndarray]) -> np.ndarray:
    """(n_layers,) bool: the mask that is left, told in a line."""
    mask = np.array(rounds[-1].best(1)[0], dtype=bool)
    place = next(i for i, each in enumerate(masks) if (each == mask).all())
    print("the search's best mask stays" if place == 0 else f"taken is the search's number {place + 1} by reward")
    return mask


def refine(
    problem: ProblemConfig, splits: Splits[Any], masks: Sequence[np.ndarray], config: FinetuneConfig, folder: Path
) -> list[Round]:
    """Halve masks by what their subnets come to when they are fine-tuned, see `halve`.

    Args:
        problem: Model and data.
        splits: Its data.
        masks: As for `halve`.
        config: Of the whole fine-tuning that is to come.
        folder: As for `halve`.

    Raises:
        ValueError: what lies there is damaged.
    """
    encoder: EncoderCache | None = None

    def train(mask: np.ndarray, steps: int, title: str, checkpoint: Path) -> float:
        nonlocal encoder
        subnet = cut_subnet(problem, splits, mask)
        encoder = encoder or EncoderCache(subnet.backbone.vlp, subnet.task.processor, int(config.encoder_cache_gib * 2**30))
        finetune(subnet, splits, dataclasses.replace(config, steps=steps), title, checkpoint, encoder=encoder)
        return of_first(partial(_held_out, subnet, splits, title))

    return halve(masks, config.steps, folder, train)


def _known(path: Path) -> list[Round]:
    if not path.is_file():
        return []
    with damage_named(path, "remove it, and all is refined anew"):
        return [build(Round, each) for each in read_json(path)["rounds"]]


def _held_out(subnet: AdaptedModel, splits: Splits[Any], title: str) -> float:
    """The loss on the examples that searches score masks by, nats."""
    examples = shuffled(subnet.task, splits.reward, subnet.task.reward_examples)
    return evaluate(subnet, examples, title, rank_images=1).loss


def told(done: Round, left: Sequence[tuple[int, ...]]) -> str:
    """What a round came to, in a line."""
    words = ["none" if loss is None else f"{loss:.4f}" for loss in done.losses]
    losses = [f"{word}{'' if mask in left else ' (out)'}" for mask, word in zip(done.masks, words, strict=True)]
    return f"after {done.steps} steps the search's best masks have these losses on the reward split: {', '.join(losses)}"
