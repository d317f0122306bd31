"""From pictures and sentences to what a VLP reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from das_gym.data.transforms import load_image

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerBase


TEXT_BLOCK = 16
"""Texts are padded to a multiple of this many tokens, so that few shapes occur."""


def padded_length(tokens: int) -> int:
    """The next multiple of TEXT_BLOCK."""
    return -(-tokens // TEXT_BLOCK) * TEXT_BLOCK


@dataclass(frozen=True)
class Processor:
    """Turns image files and texts into a batch.

    Attributes:
        tokenizer: A transformers tokenizer.
        transform: Takes an RGB picture and a side in pixels, gives (3, side, side) float32.
        image_size: That side.
        max_text_length: Longest text in tokens; longer ones are cut.
    """

    tokenizer: PreTrainedTokenizerBase
    transform: Callable[[Image, int], Tensor]
    image_size: int
    max_text_length: int

    def images(self, paths: Sequence[Path]) -> Tensor:
        """(batch, 3, image_size, image_size) float32."""
        return torch.stack([self.transform(load_image(path), self.image_size) for path in paths])

    def texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, (batch, tokens) int64, padded to `padded_length` of the longest text."""
        ids = self.tokenizer(list(texts), truncation=True, max_length=self.max_text_length)["input_ids"]
        tokens = min(padded_length(max(map(len, ids))), self.max_text_length)
        input_ids = torch.full((len(ids), tokens), self.tokenizer.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, text in enumerate(ids):
            input_ids[row, : len(text)] = torch.tensor(text)
            attention_mask[row, : len(text)] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def __call__(self, paths: Sequence[Path], texts: Sequence[str]) -> dict[str, Tensor]:
        """The batch of as many pictures as texts."""
        return {"image": self.images(paths), **self.texts(texts)}


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, from its files alone.

    Raises:
        FileNotFoundError: the folder holds no tokenizer that transformers can read.
    """
    from transformers import AutoTokenizer

    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "vocab.txt")):
        raise FileNotFoundError(
            f"{folder} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt); "
            "put the tokenizer of the checkpoint there, or name its folder with tokenizer="
        )
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
