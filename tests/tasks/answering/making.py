"""Makes tiny data of every format, for tests."""

import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from das_gym.data.splits import Splits
from das_gym.tasks.answering.examples import AnswerExample

Entry = dict[str, Any]


def draw(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        color = zlib.crc32("/".join(path.parts[-3:]).encode()) % 2**24  # different images have different content
        Image.new("RGB", (6, 4), color).save(path, format="PNG")


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_lines(path: Path, entries: Iterable[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def chat(*texts: str) -> list[Entry]:
    """Turns of human and gpt."""
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


def entry(number: int | str, *texts: str, image: object = "", **more: Any) -> Entry:
    """A conversation of LLaVA's about `image`, by default a new image."""
    turns = chat(*(texts or ("<image>\nWhat is it?", f"thing {number}")))
    return {"id": str(number), "image": f"{number}.png" if image == "" else image, **more, "conversations": turns}


def llava_folder(root: Path, images: str = "images", **counts: int) -> Path:
    """Write files of n conversations, about an image each: `llava_folder(root, train=20, test=5)`."""
    start = 0
    for name, count in counts.items():
        numbers = range(start, start + count)
        write(root / f"{name}.json", [entry(n) for n in numbers])
        draw(*(root / images / f"{n}.png" for n in numbers))
        start += count
    return root


def text_folder(root: Path, **counts: int) -> Path:
    """As `llava_folder`, about no image, with a question of its own in each conversation."""
    for name, count in counts.items():
        talks = [chat(f"What is {name} {number}?", f"thing {number}") for number in range(count)]
        write(root / f"{name}.json", [{"id": f"{name} {n}", "conversations": talk} for n, talk in enumerate(talks)])
    return root


def parts_of(splits: Splits[AnswerExample]) -> dict[str, list[AnswerExample]]:
    return {name: list(getattr(splits, name)) for name in ("train", "reward", "test")}


def images_of(splits: Splits[AnswerExample]) -> dict[str, set[str]]:
    """Names of the images of each split."""
    return {name: {image.key for e in part for image in e.images} for name, part in parts_of(splits).items()}


def assert_disjoint(splits: Splits[AnswerExample]) -> None:
    """No split is empty, no image in two of them, and every key occurs once."""
    images = images_of(splits)
    parts = parts_of(splits)
    assert all(parts.values())
    assert not images["train"] & images["reward"]
    assert not images["train"] & images["test"]
    assert not images["reward"] & images["test"]
    keys = [example.key for part in parts.values() for example in part]
    assert len(set(keys)) == len(keys)
