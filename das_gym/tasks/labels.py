"""Files of labels: what the logits of a head stand for, in order, such as VQA's answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from das_gym.files import read_json, write_json

LABELS_FORMAT = "das_gym answer vocabulary 1"


def write_labels(path: str | Path, labels: Sequence[str]) -> None:
    """Write two or more distinct labels to a JSON file for `read_labels`; the index is the class."""
    write_json(path, {"format": LABELS_FORMAT, "answers": _checked(list(labels), "labels")})


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Return the labels in a file of `write_labels`, or in a JSON list of texts; ValueError: it holds something else."""
    whole = read_json(path)
    labels = whole.get("answers") if isinstance(whole, dict) and whole.get("format") == LABELS_FORMAT else whole
    return tuple(_checked(labels, str(path)))


def _checked(labels: object, source: str) -> list[str]:
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{source} is not an answer vocabulary: got {labels!r:.60}, expected a list of texts")
    repeated = [label for label, count in Counter(labels).items() if count > 1]
    if repeated or len(labels) < 2:
        got = f"{repeated[0]!r} twice" if repeated else f"{len(labels)} answers"
        raise ValueError(f"{source} is not an answer vocabulary: got {got}, expected two or more different answers")
    return labels
