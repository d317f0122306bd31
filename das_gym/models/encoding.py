"""Batches of few shapes for the encoders, and their outputs as one batch again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from das_gym.models.inputs import Processor, padded_length

if TYPE_CHECKING:
    from das_gym.data.images import ImageSource

BLOCK = 8
"""Largest number of texts or images that go through their encoder at a time."""


def input_blocks(processor: Processor, stream: str, items: Sequence[Any]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Yield rows and their batch, all of one shape; `items` are texts or images, as `stream` says."""
    return _text_blocks(processor.texts(items)) if stream == "text" else _image_blocks(processor, items)


def _blocks(rows: list[int]) -> Iterator[list[int]]:
    """Yield BLOCK rows at a time, the rest in powers of two, so that few shapes occur and nothing is computed twice."""
    start = 0
    while start < len(rows):
        size = min(BLOCK, 1 << (len(rows) - start).bit_length() - 1)
        yield rows[start : start + size]
        start += size


def _text_blocks(inputs: Mapping[str, Tensor]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Yield rows and their batch, all of the same padded length."""
    longest = inputs["input_ids"].shape[1]
    lengths = [min(padded_length(int(real)), longest) for real in inputs["attention_mask"].sum(dim=1)]
    for length in sorted(set(lengths)):
        for rows in _blocks([row for row, other in enumerate(lengths) if other == length]):
            yield rows, {name: tensor[rows, :length] for name, tensor in inputs.items()}


def _image_blocks(processor: Processor, sources: Sequence[ImageSource]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Yield rows and their batch, all of the same size; no more images than needed are in memory at a time."""
    waiting: defaultdict[torch.Size, dict[int, Tensor]] = defaultdict(dict)
    for row, source in enumerate(sources):
        image = processor.image(source)
        same = waiting[image.shape]
        same[row] = image
        if len(same) == BLOCK:
            yield list(same), {"image": torch.stack(list(same.values()))}
            same.clear()
    for same in waiting.values():
        for rows in _blocks(list(same)):
            yield rows, {"image": torch.stack([same[row] for row in rows])}


def real_tokens(hidden: Tensor, attend: Tensor | None, row: int) -> Tensor:
    """Return (tokens, hidden_size) without padding: a copy, so that the memory of the batch can be freed."""
    return (hidden if attend is None else hidden[attend[row, 0, 0]]).clone()


def stacked(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return per-item outputs as one batch padded with zeros, and where to attend; None if nothing is padded."""
    lengths = [len(part) for part in parts]
    longest = max(lengths)
    hidden = torch.stack([F.pad(part, (0, 0, 0, longest - len(part))) for part in parts])
    real = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    return hidden, None if bool(real.all()) else real[:, None, None].to(hidden.device)


def meta_batch(text_tokens: int, image_shape: Sequence[int]) -> dict[str, Tensor]:
    """Return a batch of one text and one image of shape (3, height, width), without content."""
    ids = torch.empty(1, text_tokens, dtype=torch.long, device="meta")
    return {"image": torch.empty(1, *image_shape, device="meta"), "input_ids": ids, "attention_mask": ids}
