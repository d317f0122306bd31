"""What tasks with a head of classes share: that head, and loss and accuracy of examples with one right class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from das_gym.tasks.base import Task, load_head


def build_classifier(input_size: int, num_classes: int, inside: int) -> nn.Sequential:
    """Linear, LayerNorm, GELU, Linear: (batch, input_size) to (batch, num_classes) logits, `inside` wide between the two."""
    first, last = nn.Linear(input_size, inside), nn.Linear(inside, num_classes)
    for layer in (first, last):
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.LayerNorm(inside), nn.GELU(), last)


class ClassificationTask(Task):
    """Examples have a `label`, the index of the one class that is right; logits are of the classes, in their order.

    Attributes:
        classes: What predictions call the classes.
        key_name: What predictions call an example's key.
    """

    classes: ClassVar[tuple[str, ...]]
    key_name: ClassVar[str] = "key"

    @property
    def logit_names(self) -> tuple[str, ...]:
        """The classes."""
        return self.classes

    def targets(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """`label`: (batch,) int64, indices into `classes`."""
        return {"label": torch.tensor([int(e.label) for e in examples])}

    def build_head(self, feature_size: int, head_size: int | None = None) -> nn.Module:
        """A new head on the features of all passes side by side."""
        return build_classifier(self.passes * feature_size, len(self.classes), head_size or feature_size)

    def init_head(self, head: nn.Module, heads: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Start from the checkpoint's own head for the task."""
        if self.pretrained_head is not None and self.pretrained_head in heads:
            load_head(head, self.pretrained_head, heads[self.pretrained_head])

    def losses(self, logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """(batch,) cross-entropy, in nats."""
        return F.cross_entropy(logits, targets["label"], reduction="none")

    def metrics(self, logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """(batch,) 1 where the largest logit is that of the label, else 0."""
        return (logits.argmax(-1) == targets["label"]).to(logits)

    def predictions(self, examples: Sequence[Any], logits: Tensor) -> list[dict[str, Any]]:
        """The key by `key_name`, and `prediction`, one of `classes`."""
        said = logits.argmax(-1).tolist()
        return [{self.key_name: e.key, "prediction": self.classes[n]} for e, n in zip(examples, said, strict=True)]

    def reference(self, example: Any) -> str:
        """The right class."""
        return self.classes[int(example.label)]
