"""Encoder outputs, computed once per text and once per image, and kept."""

from __future__ import annotations

import hashlib
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from das_gym.data.images import ImageSource
from das_gym.engine.macs import encode_macs
from das_gym.files import write_bytes
from das_gym.models.base import VLP, State, fingerprint
from das_gym.models.inputs import Pair, Processor, padded_length

BLOCK = 8
"""Texts or images that go through their encoder at a time."""


class EncoderCache:
    """Encoder outputs by text and by image, the least recently used dropped beyond a bound.

    Args:
        vlp: The frozen model.
        processor: Makes its batches.
        max_bytes: How much to keep in memory.
        folder: Keep them on disk as well, under a name that changes with the model's frozen parameters, the
            transform, the tokenizer and the picture's file, so that a stale one is never read. Nothing is ever
            removed there: METER-base at 384 px takes 1.8 MB an image.

    Attributes:
        texts, images: How many went through their encoder so far.
        macs: MACs of that, of repeated rows and padding too.
    """

    def __init__(self, vlp: VLP, processor: Processor, max_bytes: int = 2**31, folder: str | Path | None = None) -> None:
        self.vlp = vlp
        self.processor = processor
        self.max_bytes = max_bytes
        self.texts = 0
        self.images = 0
        self.macs = 0
        self._bytes = 0
        self._kept: OrderedDict[tuple[str, str], Tensor] = OrderedDict()
        self._disk = None if folder is None else _Disk(Path(folder), vlp, processor)

    def __call__(self, pairs: Sequence[Pair]) -> State:
        """The encoder outputs of the pairs as one batch, padded to the longest of it."""
        texts = self.stream("text", {pair.text: pair.text for pair in pairs})
        images = self.stream("image", {pair.image.key: pair.image for pair in pairs})
        hidden_text, attend_text = _stack([texts[pair.text] for pair in pairs])
        hidden_image, attend_image = _stack([images[pair.image.key] for pair in pairs])
        types = torch.tensor([pair.image_type for pair in pairs], device=hidden_image.device)
        attend = {"text": attend_text, "image": attend_image}
        return State({"text": hidden_text, "image": hidden_image}, attend, {"image_types": types})

    def stream(self, stream: str, wanted: Mapping[str, Any]) -> dict[str, Tensor]:
        """(tokens, hidden_size) of each text or image, from memory, disk, or its encoder.

        Args:
            stream: `text` or `image`.
            wanted: The texts by themselves, or the images by their key.
        """
        found = {key: self._kept[stream, key] for key in wanted if (stream, key) in self._kept}
        missing = {key: item for key, item in wanted.items() if key not in found}
        if missing and self._disk is not None:
            found |= self._disk.read(stream, missing)
            missing = {key: item for key, item in missing.items() if key not in found}
        if missing:
            fresh = self._encode(stream, missing)
            if self._disk is not None:
                self._disk.write(stream, missing, fresh)
            found |= fresh
        for key in wanted:
            self._keep((stream, key), found[key])
        return found

    @torch.no_grad()
    def _encode(self, stream: str, items: Mapping[str, Any]) -> dict[str, Tensor]:
        """Encode in blocks whose shape depends on an item alone, so that its bits do not depend on its company."""
        keys = list(items)
        if stream == "text":
            self.texts += len(keys)
            blocks, encode = _text_blocks(self.processor.texts(list(items.values()))), self.vlp.text_stream
        else:
            self.images += len(keys)
            blocks, encode = _image_blocks(self.processor, list(items.values())), self.vlp.image_stream
        result = {}
        for rows, batch in blocks:
            hidden, attend = encode({name: tensor.to(self.vlp.device) for name, tensor in batch.items()})
            self.macs += encode_macs(self.vlp, batch)
            for position, row in enumerate(rows):
                result[keys[row]] = _real_tokens(hidden[position], attend, position)
        return result

    def _keep(self, key: tuple[str, str], part: Tensor) -> None:
        if key in self._kept:
            self._kept.move_to_end(key)
            return
        self._kept[key] = part
        self._bytes += _size(part)
        while self._bytes > self.max_bytes:
            self._bytes -= _size(self._kept.popitem(last=False)[1])


class _Disk:
    """Encoder outputs in files, one a text or image."""

    def __init__(self, folder: Path, vlp: VLP, processor: Processor) -> None:
        made_by = f"{type(vlp).__qualname__} {fingerprint(vlp)} {processor.identity()}"
        self.folder = folder.expanduser() / hashlib.sha256(made_by.encode()).hexdigest()[:16]
        self.device = vlp.device

    def read(self, stream: str, items: Mapping[str, Any]) -> dict[str, Tensor]:
        """Those that are there, whole."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        found = {}
        for key, item in items.items():
            path = self._path(stream, item)
            try:
                found[key] = load_file(path, device=str(self.device))["hidden"]
            except (OSError, SafetensorError, KeyError):
                continue  # not there, or damaged: it is computed and written again
        return found

    def write(self, stream: str, items: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> None:
        """Write each, whole or not at all."""
        from safetensors.torch import save

        for key, item in items.items():
            write_bytes(self._path(stream, item), save({"hidden": outputs[key].cpu().contiguous()}))

    def _path(self, stream: str, item: str | ImageSource) -> Path:
        name = item if isinstance(item, str) else f"{item.key} {item.stamp()}"
        digest = hashlib.sha256(name.encode()).hexdigest()
        return self.folder / stream / digest[:2] / f"{digest[:40]}.safetensors"


def _filled(rows: list[int]) -> Iterator[tuple[list[int], list[int]]]:
    """BLOCK rows at a time, and the same with the last repeated to fill the block."""
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        yield block, block + block[-1:] * (BLOCK - len(block))


def _text_blocks(inputs: dict[str, Tensor]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Yields rows and their batch, all of the same padded length."""
    longest = inputs["input_ids"].shape[1]
    lengths = [min(padded_length(int(real)), longest) for real in inputs["attention_mask"].sum(dim=1)]
    for length in sorted(set(lengths)):
        for rows, filled in _filled([row for row, other in enumerate(lengths) if other == length]):
            yield rows, {name: tensor[filled, :length] for name, tensor in inputs.items()}


def _image_blocks(processor: Processor, sources: list[ImageSource]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Yields rows and their batch, all of the same size; no more pictures than needed are held at a time."""
    waiting: defaultdict[torch.Size, dict[int, Tensor]] = defaultdict(dict)
    for row, source in enumerate(sources):
        image = processor.image(source)
        same = waiting[image.shape]
        same[row] = image
        if len(same) == BLOCK:
            yield list(same), {"image": torch.stack(list(same.values()))}
            same.clear()
    for same in waiting.values():
        for rows, filled in _filled(list(same)):
            yield rows, {"image": torch.stack([same[row] for row in filled])}


def _size(part: Tensor) -> int:
    return part.numel() * part.element_size()


def _real_tokens(hidden: Tensor, attend: Tensor | None, row: int) -> Tensor:
    """(tokens, hidden_size) without padding: a copy, so that the batch it came from can go."""
    return (hidden if attend is None else hidden[attend[row, 0, 0]]).clone()


def _stack(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """One batch of per-item outputs, zero where padded, and what to attend to: None where nothing is padded."""
    lengths = [len(part) for part in parts]
    longest = max(lengths)
    hidden = torch.stack([F.pad(part, (0, 0, 0, longest - len(part))) for part in parts])
    real = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    return hidden, None if bool(real.all()) else real[:, None, None].to(hidden.device)
