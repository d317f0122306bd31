"""NLVR2: is a sentence true of two images?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from das_gym.data.splits import Splits
from das_gym.models.inputs import Pair
from das_gym.shapes.nlvr2 import shapes_nlvr2_root
from das_gym.tasks.classification import ClassificationTask
from das_gym.tasks.nlvr2.files import NLVR2Example, is_nlvr2, load_nlvr2


class NLVR2Task(ClassificationTask):
    """NLVR2: the model gets the sentence with each image, and the head the features of both.

    The second image has a separate token type. Logits are of false and true, in this order.
    """

    name = "nlvr2"
    pretrained_head = "nlvr2_classifier"
    passes = 2
    classes = ("False", "True")
    key_name = "identifier"

    @classmethod
    def load_splits(cls, data_root: str | Path | None, on_bad_example: str = "raise") -> Splits[NLVR2Example]:
        """Read NLVR2's files, or arrow tables; None is Shapes-NLVR2."""
        return load_nlvr2(shapes_nlvr2_root() if data_root is None else data_root, on_bad_example)

    @classmethod
    def format_of(cls, root: Path) -> str:
        """Return `NLVR2` for a folder with its files or its arrow tables."""
        return "NLVR2" if is_nlvr2(root) else ""

    def pairs(self, examples: Sequence[NLVR2Example]) -> list[Pair]:
        """Return each sentence with its left image (type 1), then with its right one (type 2)."""
        return [Pair(e.sentence, image, image_type) for e in examples for image_type, image in enumerate(e.images, start=1)]

    def group_features(self, pooled: Tensor) -> Tensor:
        """Return the concatenated features of both passes, (batch, 2 * feature_size), the left image's first."""
        return pooled.unflatten(0, (-1, self.passes)).flatten(1)

    def summary(self, examples: Sequence[NLVR2Example], losses: np.ndarray, metrics: np.ndarray) -> dict[str, float]:
        """Return accuracy, loss, and consistency: the share of sentences that are right for all their pairs of images."""
        by_sentence: defaultdict[str, list[float]] = defaultdict(list)
        for example, metric in zip(examples, metrics.tolist(), strict=True):
            by_sentence[example.set_id].append(metric)
        right = [min(values) == 1.0 for values in by_sentence.values()]
        return {**super().summary(examples, losses, metrics), "consistency": sum(right) / len(right)}
