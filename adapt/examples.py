"""Some questions of the test split with their images and the models' answers, which reports show."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from das_gym.commands.settings import build
from das_gym.data.images import ImageSource
from das_gym.drawing.report import Answers, Question
from das_gym.files import explain_damage, read_json, write_json
from das_gym.tasks.base import Task

EXAMPLES = "examples.json"

THUMBNAIL_SIDE = 160
"""Pixels of the longer side of an image."""


def write_examples(folder: Path, task: Task, examples: Sequence[Any], answers: Mapping[str, Sequence[str]]) -> None:
    """Write `examples.json`: test examples on which the models' answers differ, then others; the full model is the first."""
    by_example = list(zip(*answers.values(), strict=True))
    questions = []
    for row in Answers.rows_to_show(by_example):
        example = examples[row]
        images = {image.key: image for pair in task.pairs([example]) for image in pair.images}
        thumbnails = [thumbnail_url(image) for image in images.values()]
        questions.append(Question(task.question(example), task.reference(example), thumbnails))
    write_json(folder / EXAMPLES, asdict(Answers.from_models(list(answers), questions, by_example)))


def read_examples(folder: Path) -> Answers | None:
    """Return what `write_examples` wrote, None without a file."""
    path = folder / EXAMPLES
    if not path.is_file():
        return None
    record = read_json(path)
    with explain_damage(path, "remove it for a report without examples"):
        return build(Answers, record)


def thumbnail_url(source: ImageSource) -> str:
    """Return an image, scaled down to `THUMBNAIL_SIDE` pixels, as a `data:` URL."""
    image = source.open()
    buffer = io.BytesIO()
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    image.save(buffer, "JPEG", quality=85)
    # Within the page: a report is one file, which can be sent.
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
