"""SNLI-VE, visual entailment: whether a picture entails a hypothesis, contradicts it, or leaves it open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from das_gym.data.arrow import is_arrow
from das_gym.data.splits import Splits
from das_gym.models.inputs import Pair
from das_gym.shapes.snli_ve import shapes_snli_ve_root
from das_gym.tasks.classification import ClassificationTask
from das_gym.tasks.snli_ve.arrow import FILES, load_arrow_snli_ve
from das_gym.tasks.snli_ve.files import LABELS, SNLIVEExample, load_snli_ve


class SNLIVETask(ClassificationTask):
    """Visual entailment: the model reads the hypothesis with the picture, which is the premise."""

    name = "snli_ve"
    pretrained_head = "snli_classifier"
    classes = LABELS
    key_name = "pairID"

    @classmethod
    def load_splits(cls, data_root: str | Path | None, on_bad_example: str = "raise") -> Splits[SNLIVEExample]:
        """SNLI-VE's files, or arrow tables; None is Shapes-SNLI-VE."""
        root = shapes_snli_ve_root() if data_root is None else data_root
        load = load_arrow_snli_ve if is_arrow(root, FILES) else load_snli_ve
        return load(root, on_bad_example)

    def pairs(self, examples: Sequence[SNLIVEExample]) -> list[Pair]:
        """Each hypothesis with its picture."""
        return [Pair(example.hypothesis, example.image) for example in examples]
