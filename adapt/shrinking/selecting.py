"""Choose between a pruned model before and after its training, on reward examples, since training can make it worse."""

from dataclasses import asdict, dataclass
from typing import Any

from das_gym.adapt.report import percent
from das_gym.adapt.shrinking.measuring import Quality, Scored

from das_gym.intervals import difference_interval

SELECTION_EXAMPLES = 100
"""Most reward examples on which the two models are compared."""


@dataclass(frozen=True)
class Selection:
    """Which of two models is saved.

    Attributes:
        trained_is_better: Whether the trained model is saved, and not the untrained one.
        by: `score` if the 95 % interval of the difference of scores excludes 0, otherwise `loss`.
        untrained, trained: How well they answer the reward examples.
        examples: Number of these.
    """

    trained_is_better: bool
    by: str
    untrained: Quality
    trained: Quality
    examples: int

    @property
    def reason(self) -> str:
        """A sentence on what is saved, and why."""
        before, after = self.untrained, self.trained
        found, saved = ("better", "trained") if self.trained_is_better else ("worse", "untrained")
        found = "no better" if after.loss == before.loss and self.by == "loss" else found
        unclear = ", as the scores do not differ significantly" if self.by == "loss" else ""
        return (
            f"On {self.examples:,} reward examples, training made the model {found} by {self.by}{unclear}: loss "
            f"{before.loss:.4f} before and {after.loss:.4f} after it, score {percent(before.score)} and "
            f"{percent(after.score)} %. The {saved} model is saved."
        )

    def record(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "reason": self.reason}


def select(untrained: Scored, trained: Scored) -> Selection:
    """Choose between two models that were scored on the same reward examples; the trained one has to be better.

    The score decides where the models differ significantly; a few answers are too noisy otherwise, and the loss decides.
    """
    low, high = difference_interval(trained.scores - untrained.scores)
    is_clear = low > 0 or high < 0
    better = low > 0 if is_clear else trained.quality.loss < untrained.quality.loss
    return Selection(bool(better), "score" if is_clear else "loss", untrained.quality, trained.quality, len(trained.scores))
