"""Rows of a batch that run together: questions of one length, and what questions on the same pictures have in common."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from das_gym.models.inputs import Prompt, padded_length
from das_gym.models.transformers.inputs import Encoding
from das_gym.models.transformers.stack import Axes, Call, Packing, Recording, with_mask

SHORTEST_PREFIX = 8
"""Tokens that questions must have in common to be worth a pass of their own."""


class Plan(NamedTuple):
    """Which rows run together.

    Attributes:
        rows: Indices of prompts, those with a beginning in common side by side.
        each: How many have a beginning in common; 1 where nothing is shared.
        prefix: Tokens that they have in common; 0 where nothing is shared.
    """

    rows: list[int]
    each: int
    prefix: int


class Block(NamedTuple):
    """Rows that run together, and what their layers are called with.

    Hidden vectors lie flat: first those of the beginnings, (groups * prefix), then those of the rows, (rows * tokens).
    Rows of a group stand side by side in one row of a layer's batch, (groups, each * tokens).

    Attributes:
        packing: How many rows, what they have in common, and their tokens behind that.
        first: The first of those tokens that anything is read at.
        read: (n,) int64 row and (n,) int64 token, those that are read, row by row.
        before: What each layer is called with for the beginnings; empty where nothing is shared.
        calls: What each layer is called with for the rows.
        last: What the last layer is called with for the tokens before `first`, and for those from it on.
        added: Position of a layer -> (1, flat tokens, hidden_size) that the model adds before it.
    """

    packing: Packing
    first: int
    read: tuple[Tensor, Tensor]
    before: tuple[Call, ...]
    calls: tuple[Call, ...]
    last: tuple[Call, Call]
    added: dict[int, Tensor]

    @property
    def rows(self) -> int:
        """How many."""
        return self.packing.groups * self.packing.each

    @property
    def shared(self) -> int:
        """Tokens of all beginnings."""
        return self.packing.groups * self.packing.prefix

    @property
    def flat(self) -> int:
        """Tokens of beginnings and rows together."""
        return self.shared + self.rows * self.packing.tokens

    def split(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """(1, flat, hidden_size) as (groups, prefix, hidden_size) and (groups, each * tokens, hidden_size)."""
        size, groups = flat.shape[-1], self.packing.groups
        return flat[0, : self.shared].view(groups, -1, size), flat[0, self.shared :].view(groups, -1, size)

    def part(self, rows: Tensor, start: int, end: int | None) -> Tensor:
        """(groups, each * (end - start), hidden_size): some tokens of every row."""
        return rows.unflatten(1, (self.packing.each, self.packing.tokens))[:, :, start:end].flatten(1, 2)

    def answers(self, hidden: Tensor) -> Tensor:
        """(n, hidden_size): what is read of the tokens from `first` on, (groups, each * tokens, hidden_size)."""
        return hidden.reshape(self.rows, -1, hidden.shape[-1])[self.read[0], self.read[1] - self.first]


def join(before: Tensor, rows: Tensor) -> Tensor:
    """The opposite of `Block.split`."""
    size = rows.shape[-1]
    return torch.cat((before.reshape(1, -1, size), rows.reshape(1, -1, size)), dim=1)


def plan(prompts: Sequence[Prompt], encodings: Sequence[Encoding], shares: bool) -> list[Plan]:
    """Which prompts run together: those with pictures apart from those without, and only those of like length.

    Args:
        prompts: At least one.
        encodings: Theirs.
        shares: Whether questions on the same pictures may share what they have in common.
    """
    by_pictures: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        by_pictures[prompt.image_key].append(row)
    together: defaultdict[tuple, list[list[int]]] = defaultdict(list)
    for rows in by_pictures.values():
        prefix = _common([encodings[row] for row in rows]) if shares else 0
        groups = [rows] if prefix else [[row] for row in rows]
        for group in groups:
            longest = max(len(encodings[row].ids) for row in group)
            kind = _kind(encodings[group[0]])
            together[prefix, len(group), padded_length(longest - prefix), kind].append(group)
    return [
        Plan([row for group in groups for row in group], each, prefix) for (prefix, each, *_), groups in together.items()
    ]


def _kind(encoding: Encoding) -> tuple:
    """What rows of a block have in common besides their length: the values that come with them, the form of their pixels."""
    pixels = tuple((name, tuple(value.shape[1:])) for name, value in encoding.pixels.items())
    return tuple(encoding.types), tuple(encoding.sizes), pixels


def _common(encodings: Sequence[Encoding]) -> int:
    """How many tokens several prompts begin with alike, short of what is read; 0 where it is not worth it."""
    if len(encodings) < 2:
        return 0
    most = min(encoding.answer for encoding in encodings) - 1
    first = encodings[0].ids[:most]
    same = torch.ones(most, dtype=torch.bool)
    for other in encodings[1:]:
        same &= other.ids[:most] == first
    length = int(same.cumprod(0).sum())
    return length if length >= SHORTEST_PREFIX else 0


def make_block(
    plan: Plan, encodings: Sequence[Encoding], recording: Recording, axes: Mapping[str, Axes], causal_by_itself: bool
) -> tuple[Block, Tensor]:
    """The block of a plan and its flat hidden vectors, from what the model's own forward did.

    Args:
        plan: Which rows.
        encodings: Theirs, in the order of `plan.rows`.
        recording: Of their batch.
        axes: Of its arguments.
        causal_by_itself: Whether the model's attention is causal where it is given no mask.
    """
    embedded, start = recording.embedded, plan.prefix
    rows, tokens = embedded.shape[:2]
    packing = Packing(rows // plan.each, plan.each, start, tokens - start)
    own, first = packing.tokens, min(e.answer for e in encodings) - 1 - start
    read = [(row, place - start) for row, e in enumerate(encodings) for place in range(e.answer - 1, len(e.ids) - 1)]
    distinct: dict[tuple[int, ...], tuple[Call, Call]] = {}

    def parts(call: Call) -> tuple[Call, Call]:
        if not call.made:
            return call, call
        key = tuple(id(value) for value in (*call.args, *call.kwargs.values()))
        if key not in distinct:
            given = with_mask(call, tokens, embedded.device) if start else call
            shared = packing.shared(given, axes, causal_by_itself) if start else call
            distinct[key] = shared, packing.pack(given, 0, own, [(0, own)], axes)
        return distinct[key]

    pairs = [parts(call) for call in recording.calls]
    last = with_mask(recording.calls[-1], tokens, embedded.device)
    block = Block(
        packing=packing,
        first=first,
        read=tuple(torch.tensor(axis, device=embedded.device) for axis in zip(*read, strict=True)),  # type: ignore[arg-type]
        before=tuple(shared for shared, _ in pairs) if start else (),
        calls=tuple(given for _, given in pairs),
        last=(
            packing.pack(last, 0, first, [(0, first)], axes) if last.made else last,
            packing.pack(last, first, own, [(0, first), (first, own)], axes) if last.made else last,
        ),
        added={at: join(value[:: plan.each, :start], value[:, start:]) for at, value in recording.added.items()},
    )
    return block, join(embedded[:: plan.each, :start], embedded[:, start:])
