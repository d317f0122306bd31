"""Every example that will be used, looked at before anything is searched or trained: answers, pictures, lengths."""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from das_gym.data.decoding import file_pixels
from das_gym.data.image_checks import MANY_IMAGES, decode_errors
from das_gym.data.images import ImageFile, ImageSource
from das_gym.models.inputs import Prompt
from das_gym.progress import progress
from das_gym.tasks.base import Task

LONGEST = 8
"""Prompts of each kind whose pictures are turned into tokens: of most text, most pixels, most pictures, most of all."""


class Looked(NamedTuple):
    """A prompt that was looked at.

    Attributes:
        key: Its example's.
        prompt: It itself.
        words: Tokens of its text and answer.
        pixels: Of all of its pictures.
    """

    key: str
    prompt: Prompt
    words: int
    pixels: int


def check_examples(task: Task, examples: Sequence[Any]) -> None:
    """Refuse examples that the model cannot read.

    The text of all is turned into tokens, and every picture is decoded that is not known to be readable. What pictures come
    to in tokens is found out of the prompts that have most of something; what a pixel comes to there says which are longest.

    Args:
        task: Answered in words.
        examples: Those that will be used.

    Raises:
        ValueError, FileNotFoundError: names the example.
    """
    keys: dict[str, str] = {}
    images: dict[str, ImageSource] = {}
    pairs: list[tuple[str, Any]] = [(example.key, prompt) for example in examples for prompt in task.pairs([example])]
    for key, prompt in pairs:
        for image in prompt.images:
            keys.setdefault(image.key, key)
            images.setdefault(image.key, image)
    with contextlib.closing(decode_errors(images)) as errors:
        for name, error in errors:
            raise type(error)(f"{keys[name]}: {error}") from error
    sizes = {name: _pixels(image) for name, image in images.items()}
    looked = _words(task, pairs, sizes)
    _check_lengths(task, looked)


def _words(task: Task, pairs: Sequence[tuple[str, Prompt]], sizes: dict[str, int]) -> list[Looked]:
    processor: Any = task.processor
    looked = []
    many = len(pairs) >= MANY_IMAGES
    with progress(len(pairs), "checking texts", unit="text") if many else contextlib.nullcontext() as bar:
        for key, prompt in pairs:
            with _named(key):
                words = processor.count_words(prompt)
            looked.append(Looked(key, prompt, words, sum(sizes[image.key] for image in prompt.images)))
            if bar is not None:
                bar.update()
    return looked


def _check_lengths(task: Task, looked: Sequence[Looked]) -> None:
    """Encode those prompts that may be too long, and one without a picture."""
    rates = [0.0]
    for most in (lambda one: one.pixels, lambda one: len(one.prompt.images), lambda one: one.words):
        for one in heapq.nlargest(LONGEST, looked, key=most):
            tokens = _tokens(task, one)
            if one.pixels:
                rates.append((tokens - one.words) / one.pixels)
    rate = max(rates)
    for one in heapq.nlargest(LONGEST, looked, key=lambda one: one.words + rate * one.pixels):
        _tokens(task, one)
    blind = next((one for one in looked if not one.prompt.images), None)
    if blind is not None:
        _tokens(task, blind)


def _tokens(task: Task, one: Looked) -> int:
    processor: Any = task.processor
    with _named(one.key):
        return len(processor.encode(one.prompt).ids)


@contextlib.contextmanager
def _named(key: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def _pixels(image: ImageSource) -> int:
    if isinstance(image, ImageFile):
        return file_pixels(image.path)
    picture = image.open()
    return int(picture.width * picture.height)
