"""Evaluation of a subnet: official accuracy, overall and by kind of question, and with the image hidden."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from das_gym.data.vqav2 import VQAExample
from das_gym.problem import AdaptedModel
from das_gym.runs import progress


@dataclass(frozen=True)
class Evaluation:
    """What a subnet scores on a set of questions.

    Attributes:
        accuracy: Official VQA accuracy, 0..1.
        loss: Mean loss, nats.
        by_question_type, by_answer_type: Accuracy of each.
        examples: How many questions.
    """

    accuracy: float
    loss: float
    by_question_type: dict[str, float]
    by_answer_type: dict[str, float]
    examples: int


def mean_image(subnet: AdaptedModel, examples: Sequence[VQAExample]) -> Tensor:
    """(3, size, size) float32: the mean of the images of the examples, as the model sees them."""
    paths = sorted({example.image_path for example in examples})
    processor = subnet.backbone.processor
    total = torch.zeros(3, processor.image_size, processor.image_size)
    for path in paths:
        total += processor.images([path])[0]
    return total / len(paths)


@torch.inference_mode()
def evaluate(
    subnet: AdaptedModel, examples: Sequence[VQAExample], title: str, batch_size: int = 128, blind: Tensor | None = None
) -> Evaluation:
    """Answer questions by plain forward passes.

    Args:
        subnet: A settled model with its head.
        examples: At least one question.
        title: Of the progress bar.
        batch_size: Questions a forward.
        blind: (3, size, size) image to show instead of every image, or None.
    """
    subnet.head.eval()
    device = subnet.backbone.vlp.device
    rows: list[tuple[float, float]] = []
    with progress(len(examples), title, unit="question") as bar:
        for start in range(0, len(examples), batch_size):
            chunk = examples[start : start + batch_size]
            batch = subnet.task.inputs(chunk)
            if blind is not None:
                batch["image"] = blind.expand(len(chunk), -1, -1, -1)
            targets = {name: t.to(device) for name, t in subnet.task.targets(chunk).items()}
            logits = subnet.head(subnet.backbone.vlp({name: t.to(device) for name, t in batch.items()}))
            losses, metrics = subnet.task.losses(logits, targets), subnet.task.metrics(logits, targets)
            rows += zip(losses.tolist(), metrics.tolist(), strict=True)
            bar.update(len(chunk))
    earned = [metric for _, metric in rows]
    return Evaluation(
        accuracy=sum(earned) / len(rows),
        loss=sum(loss for loss, _ in rows) / len(rows),
        by_question_type=_means([e.question_type for e in examples], earned),
        by_answer_type=_means([e.answer_type for e in examples], earned),
        examples=len(rows),
    )


def _means(groups: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    found = defaultdict(list)
    for group, value in zip(groups, values, strict=True):
        found[group].append(value)
    return {group: sum(members) / len(members) for group, members in sorted(found.items())}
