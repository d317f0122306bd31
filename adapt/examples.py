"""Some questions of the test split with what models answer to them, pictures and all: what a report shows."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from das_gym.config import build
from das_gym.data.images import ImageSource
from das_gym.drawing.report import Answers, Asked
from das_gym.files import damage_named, read_json, write_json
from das_gym.tasks.base import Task

EXAMPLES = "examples.json"

SIDE = 160
"""Pixels of a picture's longer side."""


def write_examples(folder: Path, task: Task, examples: Sequence[Any], said: Mapping[str, Sequence[str]]) -> None:
    """Write `examples.json`: those examples on which the models differ, then others, see `Answers.of`.

    Args:
        folder: Of the run.
        task: Whose examples they are.
        examples: The test split.
        said: What each model answered to each of them, by its name, the full one first.
    """

    def asked(number: int) -> Asked:
        example = examples[number]
        pictures = {image.key: image for pair in task.pairs([example]) for image in pair.images}
        return Asked(task.question(example), task.reference(example), [small(image) for image in pictures.values()])

    write_json(folder / EXAMPLES, asdict(Answers.of(list(said), list(zip(*said.values(), strict=True)), asked)))


def read_examples(folder: Path) -> Answers | None:
    """What `write_examples` wrote; None where nothing was written.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / EXAMPLES
    if not path.is_file():
        return None
    kept = read_json(path)
    with damage_named(path, "remove it for a report without examples"):
        return build(Answers, kept)


def small(source: ImageSource) -> str:
    """A picture of at most `SIDE` pixels as a `data:` URL."""
    picture, buffer = source.open(), io.BytesIO()
    picture.thumbnail((SIDE, SIDE))
    picture.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
