"""Evaluation of a subnet by plain forward passes: what the task reports of a whole split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from das_gym.engine.broken import format_examples, format_mask
from das_gym.engine.ranking import rank, recalls
from das_gym.problem.loading import AdaptedModel
from das_gym.progress import progress
from das_gym.registration import MODELS, find_class
from das_gym.tasks.base import Gallery


@dataclass(frozen=True)
class Evaluation:
    """What a subnet scores on a set of examples.

    Attributes:
        metric: The task's metric, 0..1.
        metric_name: What it is.
        loss: Mean loss, nats.
        numbers: All that the task reports, `metric` and `loss` among it; see `Task.summary`.
        examples: How many.
        predictions: What it answered to each, see `Task.predictions`.
        metrics: The metric of each example, whose mean is `metric`.
    """

    metric: float
    metric_name: str
    loss: float
    numbers: dict[str, float]
    examples: int
    predictions: list[dict[str, Any]] = field(default_factory=list, repr=False)
    metrics: list[float] = field(default_factory=list, repr=False)


def mean_image(subnet: AdaptedModel, examples: Sequence[Any]) -> Tensor:
    """(3, height, width) float32: the mean of the images of the examples, which have one size, as the model sees them."""
    sources = {pair.image.key: pair.image for pair in subnet.task.pairs(examples)}
    total: Tensor | None = None
    for key in sorted(sources):
        image = subnet.task.processor.image(sources[key])
        total = image if total is None else total + image
    if total is None:
        raise ValueError("no examples; give at least one")
    return total / len(sources)


NEW_TOKENS = 128
"""Most tokens of an answer in words, unless more are asked for."""

RANKED_IMAGES = 100
"""Images that are ranked, with all of their texts, unless more are asked for; the field's test sets have 1,000."""


def check_rank_images(rank_images: int | None) -> None:
    """Refuse a number of images that cannot be ranked.

    Raises:
        ValueError: less than 1.
    """
    if rank_images is not None and rank_images < 1:
        raise ValueError(f"rank_images={rank_images} is not allowed; use 1 or more, or None for all test images")


@torch.inference_mode()
def evaluate(
    subnet: AdaptedModel,
    examples: Sequence[Any],
    title: str,
    pairs: int = 128,
    blind: Tensor | None = None,
    rank_images: int | None = RANKED_IMAGES,
) -> Evaluation:
    """Solve examples by plain forward passes; a task with a gallery also ranks its texts and images.

    Args:
        subnet: A pruned model with its head.
        examples: At least one.
        title: Of the progress bar.
        pairs: At most so many go through the model at a time.
        blind: (3, height, width) image to show instead of every image, or None.
        rank_images: Most images that are ranked, None = all; nothing is ranked blind.

    Raises:
        FloatingPointError: what it says of an example is not a number.
    """
    task, device = subnet.task, subnet.backbone.vlp.device
    rows: list[tuple[float, float]] = []
    predictions: list[dict[str, Any]] = []
    for chunk, logits in answered(subnet, examples, title, pairs, blind):
        targets = {name: t.to(device) for name, t in task.targets(chunk).items()}
        losses, metrics = task.losses(logits, targets), task.metrics(logits, targets)
        _check_numbers(subnet, chunk, ~(losses.isfinite() & metrics.isfinite()))
        rows += zip(losses.tolist(), metrics.tolist(), strict=True)
        predictions += task.predictions(chunk, logits)
    losses, metrics = np.array(rows).T
    numbers = task.summary(examples, losses, metrics)
    gallery = None if blind is not None else task.gallery(examples, rank_images)
    if gallery is not None:
        numbers |= ranked(subnet, gallery, title)
    metric = numbers[task.metric_name]
    return Evaluation(metric, task.metric_name, numbers["loss"], numbers, len(rows), predictions, metrics.tolist())


@torch.inference_mode()
def predict(
    subnet: AdaptedModel, examples: Sequence[Any], title: str, pairs: int = 128, max_new_tokens: int = NEW_TOKENS
) -> list[dict[str, Any]]:
    """Return the answers of a subnet to examples, which need no labels; see `Task.predictions`.

    Args:
        subnet: A pruned model with its head.
        examples: At least one.
        title: Of the progress bar.
        pairs: At most so many go through the model at a time, where answers are chosen.
        max_new_tokens: Most tokens of an answer in words; a warning tells how many answers are cut there.

    Raises:
        FloatingPointError: what it says of an example is not a number.
        TypeError: the examples want answers in words, and the model says none.
    """
    task = subnet.task
    asked = [task.generation_prompt(example) for example in examples]
    chosen = [example for example, prompt in zip(examples, asked, strict=True) if prompt is None]
    free = [prompt for prompt in asked if prompt is not None]
    said = iter(_said(subnet, free, title, max_new_tokens) if free else ())
    batches = answered(subnet, chosen, title, pairs) if chosen else ()
    rows = (row for chunk, logits in batches for row in task.predictions(chunk, logits))
    pairs_of = zip(examples, asked, strict=True)
    return [next(rows) if prompt is None else task.format_generated(example, next(said)) for example, prompt in pairs_of]


def _said(subnet: AdaptedModel, prompts: Sequence[Any], title: str, max_new_tokens: int) -> list[str]:
    vlp = subnet.backbone.vlp
    entry = next((entry for entry in MODELS.values() if entry.say and isinstance(vlp, find_class(entry.vlp))), None)
    if entry is None:
        raise TypeError(f"a {type(vlp).__name__} says no answers in words: register how it does, as ModelEntry(say=...)")
    answers: list[str] = find_class(entry.say)(vlp, subnet.task.processor, prompts, title, max_new_tokens)
    return answers


def answered(
    subnet: AdaptedModel, examples: Sequence[Any], title: str, pairs: int, blind: Tensor | None = None
) -> Iterator[tuple[Sequence[Any], Tensor]]:
    """Batches of examples with their logits; the arguments are those of `evaluate`."""
    subnet.head.eval()
    task, vlp = subnet.task, subnet.backbone.vlp
    step = task.examples_for_pairs(pairs)
    with progress(len(examples), title, unit="example") as bar:
        for start in range(0, len(examples), step):
            chunk = examples[start : start + step]
            pairs_of = task.pairs(chunk)
            pooled = vlp.ready(task.processor, pairs_of)() if blind is None else _blind(subnet, pairs_of, blind)
            logits = subnet.head(task.group_features(pooled))
            largest = logits.reshape(len(logits), -1).amax(1)  # small beside a vocabulary of logits; NaN where one is
            _check_numbers(subnet, chunk, largest.isnan() | largest.isposinf())
            yield chunk, logits
            bar.update(len(chunk))


def _check_numbers(subnet: AdaptedModel, examples: Sequence[Any], wrong: Tensor) -> None:
    """Refuse to go on with numbers that are none: (rows,) bool, a row an example, or else nobody knows whose it is."""
    rows = wrong.tolist()
    if not any(rows):
        return
    keys = [e.key for e, bad in zip(examples, rows, strict=False) if bad or len(rows) != len(examples)]
    raise FloatingPointError(
        f"the outputs of {format_mask(subnet.backbone.vlp.check_mask(None))} are NaN or infinite, on "
        f"{format_examples(keys)}. Use float32, or train at a lower learning rate"
    )


def _blind(subnet: AdaptedModel, pairs: Sequence[Any], image: Tensor) -> Tensor:
    """Pooled features of pairs that all show one image."""
    vlp, batch = subnet.backbone.vlp, subnet.task.processor(pairs)
    batch["image"] = image.expand(len(batch["image"]), -1, -1, -1)
    return vlp({name: tensor.to(vlp.device) for name, tensor in batch.items()})


def ranked(subnet: AdaptedModel, gallery: Gallery, title: str) -> dict[str, float]:
    """Recall at 1, 5 and 10 both ways (`tr_r1`, ..., `ir_r10`, 0..1) and `ranked_images`, how many images were ranked."""
    images, texts = gallery.images, gallery.texts
    with progress(len(images) * len(texts), f"{title}, ranking", unit="pair") as bar:
        scores = rank(subnet.backbone.vlp, subnet.head, subnet.task.processor, images, texts, progress=bar.update)
    return {**recalls(scores, gallery.image_of_text), "ranked_images": float(len(images))}
