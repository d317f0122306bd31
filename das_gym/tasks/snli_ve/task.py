"""SNLI-VE, visual entailment: does an image entail a hypothesis, contradict it, or neither?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from das_gym.data.splits import Splits
from das_gym.models.inputs import Pair
from das_gym.shapes.snli_ve import shapes_snli_ve_root
from das_gym.tasks.classification import ClassificationTask
from das_gym.tasks.snli_ve.files import LABELS, TABLES, SNLIVEExample, load_snli_ve


class SNLIVETask(ClassificationTask):
    """Visual entailment: the model gets the hypothesis with the image, which is the premise."""

    name = "snli_ve"
    pretrained_head = "snli_classifier"
    classes = LABELS
    key_name = "pairID"

    @classmethod
    def load_splits(cls, data_root: str | Path | None, on_bad_example: str = "raise") -> Splits[SNLIVEExample]:
        """Read SNLI-VE's files, or arrow tables; None is Shapes-SNLI-VE."""
        return load_snli_ve(shapes_snli_ve_root() if data_root is None else data_root, on_bad_example)

    @classmethod
    def format_of(cls, root: Path) -> str:
        """Return `SNLI-VE` for a folder with its files or its arrow tables."""
        names = ("snli_ve_train.jsonl", "data/snli_ve_train.jsonl")
        return "SNLI-VE" if any((root / name).is_file() for name in names) or TABLES.is_in(root) else ""

    def pairs(self, examples: Sequence[SNLIVEExample]) -> list[Pair]:
        return [Pair(example.hypothesis, example.image) for example in examples]
