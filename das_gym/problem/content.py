"""Hash the content of examples."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from das_gym.tasks.base import Task


def content_hash(task: Task, examples: Sequence[Any]) -> str:
    """Return 16 hex digits of all texts and pixels of the examples, in order; every image is opened once."""
    digest = hashlib.sha256()
    known: dict[str, bytes] = {}
    for pair in task.pairs(examples):
        digest.update(pair.text.encode())
        for image in pair.images:
            if image.key not in known:
                pixels = image.open()
                known[image.key] = hashlib.sha256(str(pixels.size).encode() + pixels.tobytes()).digest()
            digest.update(known[image.key])
    return digest.hexdigest()[:16]
