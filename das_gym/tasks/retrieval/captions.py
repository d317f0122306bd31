"""Captioned images, and the examples of image-text retrieval that are made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from das_gym.data.images import ImageSource

NUM_TEXTS = 16
"""Texts of an example: a true one and 15 false ones, as in METER's and ViLT's code."""


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """An image with the captions that people gave it.

    Attributes:
        image: The picture.
        image_id: The data set's own number.
        captions: At least one.
        caption_ids: The data set's own number of each caption.
        hard_negatives: For each caption, false texts that differ little from it; empty where the data set has none.
    """

    image: ImageSource
    image_id: int
    captions: tuple[str, ...]
    caption_ids: tuple[int, ...]
    hard_negatives: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class RetrievalExample:
    """An image and 16 texts, of which one is true.

    The false ones are the caption's hard negatives, where it has some, and captions of other images of the same split.
    Which ones follows from `key` and the split's captions alone, so they are the same at every time; they are
    worked out when they are needed, so that the 145,000 examples of Flickr30k take little memory.

    Attributes:
        key: The data set's own number of the caption, unique in the data set.
        image: The picture.
        image_id: The data set's own number of the image.
        caption: The true text.
        own: All captions of the image: none of them is false.
        hard_negatives: False texts that are always among the 16.
        pool: The different captions of the split.
    """

    key: str
    image: ImageSource
    image_id: int
    caption: str
    own: tuple[str, ...]
    hard_negatives: tuple[str, ...] = ()
    pool: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @property
    def texts(self) -> tuple[str, ...]:
        """NUM_TEXTS different texts, the true one first."""
        chosen = dict.fromkeys((self.caption, *self.hard_negatives[: NUM_TEXTS - 1]))
        draws = _draws(self.key, len(self.pool))
        while len(chosen) < NUM_TEXTS:
            text = self.pool[next(draws)]
            if text not in self.own:
                chosen.setdefault(text)
        return tuple(chosen)


def _draws(key: str, count: int) -> Iterator[int]:
    """Endless numbers below `count`, the same for ever: four bytes each of BLAKE2b hashes of the key and a counter."""
    block = 0
    while True:
        digest = hashlib.blake2b(f"{key} {block}".encode()).digest()
        yield from (int.from_bytes(digest[start : start + 4], "little") % count for start in range(0, len(digest), 4))
        block += 1


def retrieval_examples(images: Sequence[CaptionedImage], what: str, left_out: str = "") -> tuple[RetrievalExample, ...]:
    """An example for each caption of a split, in order.

    Args:
        images: The split.
        what: Names the split and its file in messages.
        left_out: What to add to them, see `BadExamples.first_left_out`.

    Raises:
        ValueError: Some image leaves fewer than 15 different captions of other images to be its false texts.
    """
    pool = tuple(dict.fromkeys(caption for image in images for caption in image.captions))
    others = len(pool) - max((len(set(image.captions)) for image in images), default=0)
    if others < NUM_TEXTS - 1:
        raise ValueError(
            f"{what} has {len(images)} images with {len(pool)} different captions, which leaves {max(others, 0)} captions "
            f"of other images; an example needs {NUM_TEXTS - 1} different ones as its false texts: add images with captions"
            f"{left_out}"
        )
    return tuple(
        RetrievalExample(str(caption_id), image.image, image.image_id, caption, image.captions, hard, pool)
        for image in images
        for caption, caption_id, hard in zip(image.captions, image.caption_ids, image.hard_negatives, strict=True)
    )
