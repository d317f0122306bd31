"""Files of labels: what a head's logits stand for, such as VQA's answers, in their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from das_gym.files import read_json, write_json

LABELS_FORMAT = "das_gym answer vocabulary 1"


def write_labels(path: str | Path, labels: Sequence[str]) -> None:
    """Write labels to a JSON file, to be used again with `read_labels`.

    Args:
        path: Where to.
        labels: The labels, each once, at least two; the index is the class.

    Raises:
        ValueError: `labels` are none.
    """
    write_json(path, {"format": LABELS_FORMAT, "answers": _checked(list(labels), "labels")})


def read_labels(path: str | Path) -> tuple[str, ...]:
    """The labels of a file that `write_labels` wrote, or of a JSON list of texts; the index is the class.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It holds something else.
    """
    whole = read_json(path)
    labels = whole.get("answers") if isinstance(whole, dict) and whole.get("format") == LABELS_FORMAT else whole
    return tuple(_checked(labels, str(path)))


def _checked(labels: object, source: str) -> list[str]:
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{source} is no answer vocabulary: it must be a list of texts, as write_labels writes it")
    repeated = [label for label, count in Counter(labels).items() if count > 1]
    if repeated or len(labels) < 2:
        what = f"{repeated[0]!r} occurs twice" if repeated else f"it has {len(labels)} answers"
        raise ValueError(f"{source} is no answer vocabulary: {what}; it needs at least two, each once")
    return labels
