"""Whether a supernet looks at the pictures: what the full model scores, and with every picture replaced by the mean one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from das_gym.adapt.evaluate import evaluate, mean_image

from das_gym.data.splits import Splits
from das_gym.models.inputs import Pair
from das_gym.problem.loading import AdaptedModel, hardly_seeing, shuffled, told_blindness

LEFT_OUT = ("ceiling", "loss", "blank", "ranked_images")
"""What a task reports that is no score."""


@dataclass(frozen=True)
class Look:
    """Scores on examples of the reward split, by name, 0..1; the task's own metric first."""

    seeing: Mapping[str, float]
    blind: Mapping[str, float]

    @property
    def doubts(self) -> tuple[str, ...]:
        """Names of the scores that are hardly better than without pictures."""
        return hardly_seeing(self.seeing, self.blind)

    def told(self) -> str:
        """A line that says it, and a second one where there is doubt."""
        metric = next(iter(self.seeing))
        line = (
            f"{metric.replace('_', ' ')} of the full model on the reward split: {100 * self.seeing[metric]:.1f} %, "
            f"{100 * self.blind[metric]:.1f} % with every picture replaced by the mean of all"
        )
        if not self.doubts:
            return line
        named = told_blindness(self.seeing, self.blind)
        return f"{line}\nhardly better than blind: {named}. Scores of masks mean little there: train longer, say steps=3000"


def look(model: AdaptedModel, splits: Splits[Any]) -> Look | None:
    """What a model scores seeing and blind; None where prompts hold the pictures, which cannot be replaced."""
    task = model.task
    examples = shuffled(task, splits.reward, task.reward_examples)
    if not all(isinstance(pair, Pair) for pair in task.pairs(examples[:1])):
        return None
    mean = mean_image(model, examples) if _one_size(model, examples) else None
    if mean is None:
        return None
    scores = []
    for title, blind in (("seeing", None), ("blind", mean)):
        found = evaluate(model, examples, title, blind=blind, rank_images=1)
        names = [n for n in found.numbers if n.partition("/")[0] not in LEFT_OUT and not n.startswith(("tr_r", "ir_r"))]
        scores.append({found.metric_name: found.metric, **{n: found.numbers[n] for n in names}})
    return Look(*scores)


def _one_size(model: AdaptedModel, examples: Any) -> bool:
    """Whether the model sees all pictures at one size, so that they have a mean."""
    processor = model.task.processor
    sources = {pair.image.key: pair.image for pair in model.task.pairs(examples)}
    return len({tuple(processor.image(source).shape) for source in sources.values()}) == 1
