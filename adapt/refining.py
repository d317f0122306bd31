"""Which of a search's best masks is best once it is fine-tuned: short trainings of all, longer ones of the better half.

Successive halving (Jamieson and Talwalkar, arXiv 1502.07943). Every round trains each mask that is left from the start, for
twice as many steps as before and with the whole course of the learning rate: a short training that ends says more of a long
one than its first steps do. Masks are judged by their loss on the reward split.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
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
        losses: On the reward split afterwards, nats; fewer than masks where the round was stopped.
    """

    steps: int
    masks: tuple[tuple[int, ...], ...]
    losses: tuple[float, ...] = ()

    def best(self, count: int) -> tuple[tuple[int, ...], ...]:
        """So many masks of the lowest losses, in the round's order."""
        order = np.argsort([loss if math.isfinite(loss) else math.inf for loss in self.losses], kind="stable")
        return tuple(self.masks[i] for i in sorted(order[:count].tolist()))


def lengths(count: int, steps: int) -> list[int]:
    """Steps of the trainings of each round for so many masks: the last round, of two masks, has half of `steps`."""
    rounds = math.ceil(math.log2(count))
    return [max(1, round(steps / 2 ** (rounds - i))) for i in range(rounds)]


def refine(
    problem: ProblemConfig, splits: Splits[Any], masks: Sequence[np.ndarray], config: FinetuneConfig, folder: Path
) -> list[Round]:
    """Halve the masks round by round until one is left: `rounds[-1].best(1)`.

    Args:
        problem: Model and data.
        splits: Its data.
        masks: (n_layers,) bool each, two or more, the best by reward first.
        config: Of the whole fine-tuning that is to come.
        folder: What is known is kept here, in `REFINED`; what lies there is not done again.

    Raises:
        ValueError: what lies there is damaged.
    """
    path = folder / REFINED
    rounds = _known(path)
    encoder: EncoderCache | None = None
    left = tuple(tuple(np.asarray(mask, dtype=int).tolist()) for mask in masks)
    for number, steps in enumerate(lengths(len(masks), config.steps)):
        if number == len(rounds):
            rounds.append(Round(steps, left))
        while len(rounds[number].losses) < len(left):
            mask = left[len(rounds[number].losses)]
            subnet = cut_subnet(problem, splits, np.array(mask, dtype=bool))
            encoder = encoder or EncoderCache(
                subnet.backbone.vlp, subnet.task.processor, int(config.encoder_cache_gib * 2**30)
            )
            place = len(rounds[number].losses) + 1
            title, checkpoint = f"refining, mask {place} of {len(left)}", folder / f"refining-{number}-{place}.pt"
            finetune(subnet, splits, dataclasses.replace(config, steps=steps), title, checkpoint, encoder=encoder)
            losses = (*rounds[number].losses, of_first(partial(_held_out, subnet, splits, title)))
            rounds[number] = dataclasses.replace(rounds[number], losses=losses)
            if is_first():
                write_json(path, {"rounds": [dataclasses.asdict(each) for each in rounds]})
                for done in folder.glob(CHECKPOINTS):
                    done.unlink(missing_ok=True)
        left = rounds[number].best(math.ceil(len(left) / 2))
        print(told(rounds[number], left))
    return rounds


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
    losses = [f"{loss:.4f}{'' if mask in left else ' (out)'}" for mask, loss in zip(done.masks, done.losses, strict=True)]
    return f"after {done.steps} steps the search's best masks have these losses on the reward split: {', '.join(losses)}"
