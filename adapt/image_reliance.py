"""Check whether a supernet's answers depend on the image: its scores with the images, and with the mean image instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from das_gym.adapt.evaluate import evaluate, mean_image

from das_gym.data.splits import Splits
from das_gym.models.inputs import Pair
from das_gym.problem.loading import AdaptedModel, format_blindness, image_agnostic_metrics, shuffled

NO_SCORES = ("ceiling", "loss", "blank", "ranked_images")
"""Numbers of an evaluation that are no scores."""


@dataclass(frozen=True)
class ImageRelianceCheck:
    """Scores on examples of the reward split, by name, 0..1; the task's own metric first.

    Attributes:
        seeing: With the images.
        blind: With each image replaced by the mean image.
    """

    seeing: Mapping[str, float]
    blind: Mapping[str, float]

    @property
    def image_agnostic_metrics(self) -> tuple[str, ...]:
        """Names of the scores that are not clearly better than without images."""
        return image_agnostic_metrics(self.seeing, self.blind)

    def summary(self) -> str:
        """Return a line with both scores, and a second line if some scores do not depend on the image."""
        metric = next(iter(self.seeing))
        line = (
            f"{metric.replace('_', ' ')} of the full model on the reward split: {100 * self.seeing[metric]:.1f} %, "
            f"{100 * self.blind[metric]:.1f} % with every image replaced by the mean image"
        )
        if not self.image_agnostic_metrics:
            return line
        blindness = format_blindness(self.seeing, self.blind)
        return f"{line}\nnot clearly better than without images: {blindness}. Raise `train.steps` before a search."


def check_image_reliance(model: AdaptedModel, splits: Splits[Any]) -> ImageRelianceCheck | None:
    """Return a model's scores with and without images; None for prompts and images of many sizes, which have no mean."""
    task, processor = model.task, model.task.processor
    examples = shuffled(task, splits.reward, task.reward_examples)
    pairs = task.pairs(examples)
    if not all(isinstance(pair, Pair) for pair in pairs):
        return None
    sources = {pair.image.key: pair.image for pair in pairs}
    if len({tuple(processor.image(source).shape) for source in sources.values()}) > 1:
        return None
    mean = mean_image(model, examples)
    if mean is None:
        return None
    scores = []
    for title, blind in (("seeing", None), ("blind", mean)):
        found = evaluate(model, examples, title, blind=blind, rank_images=1)
        names = [n for n in found.numbers if n.partition("/")[0] not in NO_SCORES and not n.startswith(("tr_r", "ir_r"))]
        scores.append({found.metric_name: found.metric, **{n: found.numbers[n] for n in names}})
    return ImageRelianceCheck(*scores)
