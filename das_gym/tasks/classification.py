"""Tasks whose examples have one right class: their head, loss and accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from das_gym.tasks.base import Task


def build_classifier(input_size: int, num_classes: int, hidden_size: int) -> nn.Sequential:
    """Return Linear, LayerNorm, GELU, Linear: (batch, input_size) to (batch, num_classes) logits."""
    first = nn.Linear(input_size, hidden_size)
    last = nn.Linear(hidden_size, num_classes)
    for layer in (first, last):  # as METER and ViLT initialize their heads
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.LayerNorm(hidden_size), nn.GELU(), last)


class ClassificationTask(Task):
    """Examples have a `label`, the index of the right class; logits are in the order of the classes.

    Attributes:
        classes: The names of the classes in predictions.
        key_name: The name of an example's key in predictions.
    """

    classes: ClassVar[tuple[str, ...]]
    key_name: ClassVar[str] = "key"

    @property
    def logit_names(self) -> tuple[str, ...]:
        return self.classes

    def targets(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """Return `label`: (batch,) int64, indices into `classes`."""
        return {"label": torch.tensor([int(e.label) for e in examples])}

    def build_head(self, feature_size: int, head_size: int | None = None) -> nn.Module:
        """Return a new head on the concatenated features of all passes."""
        return build_classifier(self.passes * feature_size, len(self.classes), head_size or feature_size)

    def losses(self, logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """Return the cross-entropy, (batch,), in nats."""
        return F.cross_entropy(logits, targets["label"], reduction="none")

    def metrics(self, logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """Return 1 where the largest logit is that of the label, else 0; (batch,)."""
        return (logits.argmax(-1) == targets["label"]).to(logits)

    def chance(self, examples: Sequence[Any]) -> float:
        del examples
        return 1 / len(self.classes)

    def predictions(self, examples: Sequence[Any], logits: Tensor) -> list[dict[str, Any]]:
        """Return the key as `key_name`, and `prediction`, one of `classes`."""
        numbers = logits.argmax(-1).tolist()
        return [{self.key_name: e.key, "prediction": self.classes[n]} for e, n in zip(examples, numbers, strict=True)]

    def reference(self, example: Any) -> str:
        return self.classes[int(example.label)]
