"""Captioned images, and the examples of image-text retrieval that are built from them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from das_gym.data.images import ImageSource, OneImage

NUM_TEXTS = 16
"""Texts of an example: a true one and 15 false ones, as in the code of METER and ViLT."""


@dataclass(frozen=True, slots=True)
class CaptionedImage(OneImage):
    """An image with its captions.

    Attributes:
        image: The image.
        image_id: The data set's own number.
        captions: One or more.
        caption_ids: The data set's own number of each caption.
        hard_negatives: For each caption, false texts that differ little from it; may be empty.
    """

    image: ImageSource
    image_id: int
    captions: tuple[str, ...]
    caption_ids: tuple[int, ...]
    hard_negatives: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class RetrievalExample(OneImage):
    """An image and 16 texts, of which one is true.

    The false texts are the caption's hard negatives, if any, and captions of other images of the split. They follow
    from `key` and the captions of the split alone, so they never change. They are computed on access: the 145,000
    examples of Flickr30k take little memory.

    Attributes:
        key: The data set's own number of the caption, unique in the data set.
        image: The image.
        image_id: The data set's own number of the image.
        caption: The true text.
        own: All captions of the image: none of them is false.
        hard_negatives: False texts that are always among the 16.
        pool: The distinct captions of the split.
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
        """NUM_TEXTS distinct texts, the true one first."""
        chosen = dict.fromkeys((self.caption, *self.hard_negatives[: NUM_TEXTS - 1]))
        draws = _draws(self.key, len(self.pool))
        while len(chosen) < NUM_TEXTS:  # two images may share a caption, so that a draw can be true
            text = self.pool[next(draws)]
            if text not in self.own:
                chosen.setdefault(text)
        return tuple(chosen)


def _draws(key: str, count: int) -> Iterator[int]:
    """Yield endless numbers below `count`: four bytes each of BLAKE2b hashes of the key and a counter, the same for ever."""
    block = 0  # hashes, since generators of random numbers may change with Python's or numpy's version
    while True:
        digest = hashlib.blake2b(f"{key} {block}".encode()).digest()
        yield from (int.from_bytes(digest[start : start + 4], "little") % count for start in range(0, len(digest), 4))
        block += 1


def retrieval_examples(images: Sequence[CaptionedImage], source: str, skipped: str = "") -> tuple[RetrievalExample, ...]:
    """Return an example for each caption of a split, in order; the ValueError for too few captions names `source`.

    Every image has to leave 15 distinct captions of other images to be its false texts.
    """
    pool = tuple(dict.fromkeys(caption for image in images for caption in image.captions))
    others = len(pool) - max((len(set(image.captions)) for image in images), default=0)
    if others < NUM_TEXTS - 1:
        raise ValueError(
            f"{source} has too few captions: got {len(images)} images that leave {max(others, 0)} captions of other images, "
            f"expected {NUM_TEXTS - 1} distinct ones as the false texts of an example. Add images with captions{skipped}"
        )
    return tuple(
        RetrievalExample(str(caption_id), image.image, image.image_id, caption, image.captions, hard, pool)
        for image in images
        for caption, caption_id, hard in zip(image.captions, image.caption_ids, image.hard_negatives, strict=True)
    )
