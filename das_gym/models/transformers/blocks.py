"""Rows of a batch that run together: questions of one length, and what questions on the same pictures have in common."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from das_gym.models.inputs import Prompt, padded_length
from das_gym.models.transformers.inputs import Encoding
from das_gym.models.transformers.stack import Axes, Call, Recording, cut, with_mask

SHORTEST_PREFIX = 8
"""Tokens that questions must have in common to be worth a pass of their own."""


class Plan(NamedTuple):
    """Which rows run together.

    Attributes:
        rows: Indices of prompts, questions on the same pictures side by side.
        owner: Of each row, the number of its prefix; empty where nothing is shared.
        prefix: Tokens that the rows of a prefix have in common; 0 where nothing is shared.
    """

    rows: list[int]
    owner: list[int]
    prefix: int


class Block(NamedTuple):
    """Rows that run together, and what their layers are called with.

    Hidden vectors lie flat: first those of the prefixes, (prefixes * prefix), then those of the rows, (rows * tokens).

    Attributes:
        prefixes, prefix: How many prefixes, and their tokens; both 0 where nothing is shared.
        rows, tokens: How many rows, and the tokens of each behind its prefix.
        first: The first of those tokens that anything is read at.
        owner: (rows,) int64, the prefix of each row; None where nothing is shared.
        read: (n,) int64 row and (n,) int64 token, those that are read, row by row.
        before: What each layer is called with for the prefixes; empty where nothing is shared.
        calls: What each layer is called with for the rows.
        last: What the last layer is called with for the tokens before `first`, and for those from it on.
        added: Position of a layer -> (1, flat tokens, hidden_size) that the model adds before it.
    """

    prefixes: int
    prefix: int
    rows: int
    tokens: int
    first: int
    owner: Tensor | None
    read: tuple[Tensor, Tensor]
    before: tuple[Call, ...]
    calls: tuple[Call, ...]
    last: tuple[Call, Call]
    added: dict[int, Tensor]

    @property
    def flat(self) -> int:
        """Tokens of prefixes and rows together."""
        return self.prefixes * self.prefix + self.rows * self.tokens

    def split(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """(1, flat, hidden_size) as (prefixes, prefix, hidden_size) and (rows, tokens, hidden_size)."""
        shared = self.prefixes * self.prefix
        size = flat.shape[-1]
        return flat[0, :shared].view(self.prefixes, self.prefix, size), flat[0, shared:].view(self.rows, -1, size)

    def answers(self, hidden: Tensor) -> Tensor:
        """(n, hidden_size): what is read of (rows, tokens from `first` on, hidden_size)."""
        return hidden[self.read[0], self.read[1] - self.first]


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
            together[prefix, padded_length(longest - prefix), kind].append(group)
    plans = []
    for (prefix, _, _), groups in together.items():
        owner = [number for number, group in enumerate(groups) for _ in group] if prefix else []
        plans.append(Plan([row for group in groups for row in group], owner, prefix))
    return plans


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
    plan: Plan, encodings: Sequence[Encoding], recording: Recording, axes: Mapping[str, Axes]
) -> tuple[Block, Tensor]:
    """The block of a plan and its flat hidden vectors, from what the model's own forward did.

    Args:
        plan: Which rows.
        encodings: Theirs, in the order of `plan.rows`.
        recording: Of their batch.
        axes: Of its arguments.
    """
    embedded = recording.embedded
    device, (rows, tokens) = embedded.device, embedded.shape[:2]
    start = plan.prefix
    every = slice(None)
    firsts = torch.tensor(_first_of_each(plan.owner), device=device, dtype=torch.long)
    read = [(row, place - start) for row, e in enumerate(encodings) for place in range(e.answer - 1, len(e.ids) - 1)]
    first = min(e.answer for e in encodings) - 1 - start
    distinct: dict[tuple[int, ...], tuple[Call, Call]] = {}

    def parts(call: Call) -> tuple[Call, Call]:
        key = tuple(id(value) for value in (*call.args, *call.kwargs.values()))
        if key not in distinct:
            shared = cut(call, firsts, 0, start, axes) if start else call
            own = with_mask(cut(call, every, start, tokens, axes), start, tokens, device) if start else call
            distinct[key] = shared, own
        return distinct[key]

    pairs = [parts(call) for call in recording.calls]
    last, edge = recording.calls[-1], start + first
    middle = cut(last, every, start, edge, axes)
    block = Block(
        prefixes=len(firsts),
        prefix=start,
        rows=rows,
        tokens=tokens - start,
        first=first,
        owner=torch.tensor(plan.owner, device=device) if start else None,
        read=(torch.tensor([row for row, _ in read], device=device), torch.tensor([at for _, at in read], device=device)),
        before=tuple(shared for shared, _ in pairs) if start else (),
        calls=tuple(own for _, own in pairs),
        last=(
            with_mask(middle, start, edge, device) if start else middle,
            with_mask(cut(last, every, edge, tokens, axes), edge, tokens, device),
        ),
        added={at: join(value[firsts, :start], value[:, start:]) for at, value in recording.added.items()},
    )
    return block, join(embedded[firsts, :start], embedded[:, start:])


def _first_of_each(owner: Sequence[int]) -> list[int]:
    """The first row of each prefix."""
    return [row for row, number in enumerate(owner) if row == 0 or owner[row - 1] != number]
