"""Check all examples before anything is searched or trained: images must decode, prompts must fit the model."""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from das_gym.data.bad_examples import decode_errors
from das_gym.data.decoding import file_pixels
from das_gym.data.images import ImageFile, ImageSource
from das_gym.models.inputs import Prompt
from das_gym.progress import progress
from das_gym.tasks.base import Task

LONGEST = 8
"""Number of prompts of each kind that are fully encoded: those with most words, pixels, images, and estimated tokens."""


class _Length(NamedTuple):
    key: str
    prompt: Prompt
    words: int
    pixels: int


def check_examples(task: Task, examples: Sequence[Any]) -> None:
    """Reject examples that the model cannot read.

    All texts are tokenized and all images decoded. Only the longest prompts are encoded with their image tokens, since that
    takes long for thousands of examples.
    """
    processor: Any = task.processor
    prompts: list[tuple[str, Any]] = [(example.key, prompt) for example in examples for prompt in task.pairs([example])]
    images: dict[str, tuple[str, ImageSource]] = {}
    for key, prompt in prompts:
        for image in prompt.images:
            images.setdefault(image.key, (key, image))
    with contextlib.closing(decode_errors({name: image for name, (_, image) in images.items()})) as errors:
        for name, error in errors:
            raise type(error)(f"{images[name][0]}: {error}") from error
    pixels = {name: _pixels(image) for name, (_, image) in images.items()}
    lengths = []
    with progress(len(prompts), "checking texts", unit="text") as bar:
        for key, prompt in prompts:
            words = _named(key, processor.count_words, prompt)
            lengths.append(_Length(key, prompt, words, sum(pixels[image.key] for image in prompt.images)))
            bar.update()

    def count_tokens(prompt: Any) -> int:
        return len(processor.encode(prompt).ids)

    tokens_per_pixel = 0.0
    orders: list[Callable[[_Length], float]] = [
        lambda one: one.pixels,
        lambda one: len(one.prompt.images),
        lambda one: one.words,
        lambda one: one.words + tokens_per_pixel * one.pixels,
    ]
    for order in orders:
        for one in heapq.nlargest(LONGEST, lengths, key=order):
            tokens = _named(one.key, count_tokens, one.prompt)
            if one.pixels:
                tokens_per_pixel = max(tokens_per_pixel, (tokens - one.words) / one.pixels)
    for one in [one for one in lengths if not one.prompt.images][:1]:  # some templates reject prompts without an image
        _named(one.key, count_tokens, one.prompt)


def _named(key: str, count: Callable[[Any], int], prompt: Any) -> int:
    try:
        return count(prompt)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def _pixels(image: ImageSource) -> int:
    if isinstance(image, ImageFile):
        return file_pixels(image.path)
    opened = image.open()
    return int(opened.width * opened.height)
