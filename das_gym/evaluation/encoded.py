"""Encoder outputs, computed once per example and kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from das_gym.data.processor import padded_length
from das_gym.tasks.base import Task
from das_gym.vlp.base import VLP, State

Kept = dict[str, Tensor]

BLOCK = 8
"""Examples that go through the encoders at a time."""


class EncoderCache:
    """Encoder outputs by example, the least recently used dropped beyond a bound.

    Args:
        vlp: The frozen model.
        task: Makes its batches.
        max_bytes: How much to keep.
    """

    def __init__(self, vlp: VLP, task: Task, max_bytes: int = 2**31) -> None:
        self.vlp = vlp
        self.task = task
        self.max_bytes = max_bytes
        self.encoded = 0
        self._bytes = 0
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def __call__(self, examples: Sequence[Any]) -> State:
        """The encoder outputs of the examples as one batch, padded to the longest of it."""
        missing = [e for e in examples if e.key not in self._kept]
        fresh = self._encode(missing) if missing else {}
        parts = [fresh[e.key] if e.key in fresh else self._kept[e.key] for e in examples]
        for example, part in zip(examples, parts, strict=True):
            self._keep(example.key, part)
        return _stack(parts)

    @torch.no_grad()
    def _encode(self, examples: Sequence[Any]) -> dict[str, Kept]:
        """Encode in blocks whose shape depends on an example alone, so that its bits do not depend on its company."""
        inputs = self.task.inputs(examples)
        self.encoded += len(examples)
        result = {}
        for rows, batch in _blocks(inputs):
            state = self.vlp.encode({name: tensor.to(self.vlp.device) for name, tensor in batch.items()})
            for position, row in enumerate(rows):
                result[examples[row].key] = {
                    stream: _real_tokens(hidden[position], state.attend[stream], position)
                    for stream, hidden in state.hidden.items()
                }
        return result

    def _keep(self, key: str, part: Kept) -> None:
        if key in self._kept:
            self._kept.move_to_end(key)
            return
        self._kept[key] = part
        self._bytes += _size(part)
        while self._bytes > self.max_bytes:
            self._bytes -= _size(self._kept.popitem(last=False)[1])


def _blocks(inputs: dict[str, Tensor]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Yields rows and their batch: BLOCK examples with the same padded text length, the last repeated to fill it."""
    longest = inputs["input_ids"].shape[1]
    lengths = [min(padded_length(int(real)), longest) for real in inputs["attention_mask"].sum(dim=1)]
    for length in sorted(set(lengths)):
        same = [row for row, other in enumerate(lengths) if other == length]
        for start in range(0, len(same), BLOCK):
            rows = same[start : start + BLOCK]
            filled = rows + rows[-1:] * (BLOCK - len(rows))
            batch = {name: tensor[filled] for name, tensor in inputs.items()}
            yield rows, batch | {name: batch[name][:, :length] for name in ("input_ids", "attention_mask")}


def _size(part: Kept) -> int:
    return sum(hidden.numel() * hidden.element_size() for hidden in part.values())


def _real_tokens(hidden: Tensor, attend: Tensor | None, row: int) -> Tensor:
    """(tokens, hidden_size) without padding: a copy, so that the batch it came from can go."""
    return (hidden if attend is None else hidden[attend[row, 0, 0]]).clone()


def _stack(parts: Sequence[Kept]) -> State:
    """One batch of per-example outputs, zero where padded; `attend` only where something is."""
    hidden, attend = {}, {}
    for stream in parts[0]:
        lengths = [len(part[stream]) for part in parts]
        longest = max(lengths)
        hidden[stream] = torch.stack([F.pad(part[stream], (0, 0, 0, longest - len(part[stream]))) for part in parts])
        real = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
        attend[stream] = None if bool(real.all()) else real[:, None, None].to(hidden[stream].device)
    return State(hidden, attend)
