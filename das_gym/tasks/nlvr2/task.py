"""NLVR2: whether a sentence is true of two images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from das_gym.data.arrow import is_arrow
from das_gym.data.splits import Splits
from das_gym.models.inputs import Pair
from das_gym.shapes.nlvr2 import shapes_nlvr2_root
from das_gym.tasks.base import Task, load_head
from das_gym.tasks.nlvr2.arrow import FILES, load_arrow_nlvr2
from das_gym.tasks.nlvr2.files import NLVR2Example, load_nlvr2


def build_nlvr2_head(feature_size: int, hidden_size: int) -> nn.Sequential:
    """Linear, LayerNorm, GELU, Linear: (batch, 2 * feature_size) to (batch, 2) logits."""
    first, last = nn.Linear(2 * feature_size, hidden_size), nn.Linear(hidden_size, 2)
    for layer in (first, last):
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.LayerNorm(hidden_size), nn.GELU(), last)


class NLVR2Task(Task):
    """NLVR2: the model reads the sentence with each image, the head both readings side by side.

    The second image has a token type of its own. Logits are of false and true, in this order.
    """

    name = "nlvr2"
    own_head = "nlvr2_classifier"
    metric_name = "accuracy"
    passes = 2

    @classmethod
    def load_splits(cls, data_root: str | Path | None, on_bad_example: str = "raise") -> Splits[NLVR2Example]:
        """NLVR2's files, or arrow tables; None is Shapes-NLVR2."""
        root = shapes_nlvr2_root() if data_root is None else data_root
        load = load_arrow_nlvr2 if is_arrow(root, FILES) else load_nlvr2
        return load(root, on_bad_example)

    def pairs(self, examples: Sequence[NLVR2Example]) -> list[Pair]:
        """Each sentence with its left image (type 1), then with its right one (type 2)."""
        return [Pair(e.sentence, image, image_type) for e in examples for image_type, image in enumerate(e.images, start=1)]

    def group_features(self, pooled: Tensor) -> Tensor:
        """(batch, 2 * feature_size): the features of both passes side by side, the left image's first."""
        return pooled.unflatten(0, (-1, self.passes)).flatten(1)

    def targets(self, examples: Sequence[NLVR2Example]) -> dict[str, Tensor]:
        """`label`: (batch,) int64, 1 = true."""
        return {"label": torch.tensor([int(e.label) for e in examples])}

    def build_head(self, feature_size: int, head_size: int | None = None) -> nn.Module:
        """A new head on both passes."""
        return build_nlvr2_head(feature_size, head_size or feature_size)

    def start_head(self, head: nn.Module, heads: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Start from the checkpoint's `nlvr2_classifier`."""
        if self.own_head in heads:
            load_head(head, self.own_head, heads[self.own_head])

    def losses(self, logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """(batch,) cross-entropy, in nats."""
        return F.cross_entropy(logits, targets["label"], reduction="none")

    def metrics(self, logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """(batch,) 1 where the larger logit is that of the label, else 0."""
        return (logits.argmax(-1) == targets["label"]).to(logits)

    def predictions(self, examples: Sequence[NLVR2Example], logits: Tensor) -> list[dict[str, Any]]:
        """`identifier` and `prediction`, "True" or "False" as the data set writes labels."""
        said = logits.argmax(-1).tolist()
        return [{"identifier": e.identifier, "prediction": str(bool(n))} for e, n in zip(examples, said, strict=True)]

    def summary(self, examples: Sequence[NLVR2Example], losses: np.ndarray, metrics: np.ndarray) -> dict[str, float]:
        """Accuracy, loss, and consistency: the share of sentences (0..1) judged right with all their pairs of images."""
        by_sentence: defaultdict[str, list[float]] = defaultdict(list)
        for example, metric in zip(examples, metrics.tolist(), strict=True):
            by_sentence[example.set_id].append(metric)
        right = [min(values) == 1.0 for values in by_sentence.values()]
        return {**super().summary(examples, losses, metrics), "consistency": sum(right) / len(right)}
