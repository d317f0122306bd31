"""Run the decoder layers of a model one by one under a mask.

The file reads in the order in which things happen:

1. **Plan** (`plan_blocks`): a batch of prompts is split into blocks that run together.
2. **Record** (`make_block`): the model's own forward runs once a block, and is recorded instead of computed.
3. **Replay** (`run_blocks`): layers run with the recorded arguments, in whatever selection a mask asks for.
4. **Read** (`answer_states`): norm and head need the hidden states at the answers alone.

There is one plain way to run a layer, and two exact short cuts, which a model uses if `probing.probe_capabilities` found
that they give the same:

  `run_plain`          every prompt by itself, each layer at all its positions
  `run_with_prefixes`         prompts with a common beginning (an image) run it once, and read its keys and values
  `run_at_answers`     the last layer computes outputs where answers are read, and only keys and values at others

For the short cuts the model's forward is recorded in parts, each with a cache of the tokens before it, as in generation.

Hidden states of all blocks lie flat in one tensor, (1, tokens, hidden_size): of each block, prefixes first, then rows. So
the engine's tree of masks holds one tensor a state, as for any other model.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from das_gym.models.inputs import Prompt, padded_length, to_device
from das_gym.models.transformers.inputs import Encoding
from das_gym.models.transformers.stack import Call, LayerCache, Recording, keys_and_values, run_layer

SHORTEST_PREFIX = 8
"""Common tokens for which a separate pass is worth it."""

OPERATORS_PER_LAYER = 30
MACS_PER_LAUNCH = 5e8
"""An assumption about GPUs, not measured: see `count_launch_tokens`."""


# ---- plan


class Plan(NamedTuple):
    """Which prompts run together: their indices, those of a group side by side, and what each group has in common."""

    rows: list[int]
    each: int
    prefix: int


def plan_blocks(
    prompts: Sequence[Prompt],
    encodings: Sequence[Encoding],
    image_tokens: Sequence[int] | None,
    launch_tokens: float = 0.0,
) -> list[Plan]:
    """Choose the prompts that run together: with images of one form or without, of like length, with as much in common.

    Args:
        prompts: A batch.
        encodings: Their tokens.
        image_tokens: Ids of the tokens that stand for images; None = prompts on the same images share nothing.
        launch_tokens: What starting a layer costs, in tokens that run through it; see `count_launch_tokens`. Where it is not
            0, prompts share images, and run together with longer ones, only if that is cheaper.
    """
    if not launch_tokens:
        return _plan(prompts, encodings, image_tokens, merged=False)
    choices = [_plan(prompts, encodings, shared, merged) for shared in (image_tokens, None) for merged in (False, True)]

    def cost(plans: Sequence[Plan]) -> float:
        total = 0.0
        for plan in plans:
            longest = max(len(encodings[row].ids) for row in plan.rows)
            tokens = len(plan.rows) * (longest - plan.prefix) + len(plan.rows) // plan.each * plan.prefix
            total += tokens + launch_tokens * (2 if plan.prefix else 1)
        return total

    return min(choices, key=cost)


def count_launch_tokens(layer: nn.Module, device: torch.device) -> float:
    """Return through how many tokens a layer could run in the time in which its operators are launched; 0 on a CPU.

    A launch is taken as MACS_PER_LAUNCH: 5 microseconds at 100 T MACs a second. A token takes a MAC for each parameter.
    """
    if device.type == "cpu":
        return 0.0
    return OPERATORS_PER_LAYER * MACS_PER_LAUNCH / sum(parameter.numel() for parameter in layer.parameters())


def _plan(
    prompts: Sequence[Prompt], encodings: Sequence[Encoding], image_tokens: Sequence[int] | None, merged: bool
) -> list[Plan]:
    by_images: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        by_images[prompt.image_key].append(row)
    alike: defaultdict[tuple, list[int]] = defaultdict(list)
    for rows in by_images.values():
        prefix = 0 if image_tokens is None else common_prefix([encodings[row] for row in rows], image_tokens)
        for group in [rows] if prefix else [[row] for row in rows]:
            # A block is rectangular: as many rows for each prefix, with lengths that differ by less than TEXT_BLOCK tokens:
            # little is computed for padding. The model's forward concatenates images, which need one form.
            one = encodings[group[0]]
            longest = max(len(encodings[row].ids) for row in group)
            form = tuple(one.types), tuple(one.sizes), tuple((name, *value.shape[1:]) for name, value in one.pixels.items())
            alike[prefix, len(group), merged or padded_length(longest - prefix), form] += group
    return [Plan(rows, each, prefix) for (prefix, each, *_), rows in alike.items()]


def common_prefix(encodings: Sequence[Encoding], image_tokens: Sequence[int]) -> int:
    """Return how many tokens prompts begin with alike, before any that is read; 0 if they cannot share them.

    All images have to lie in it: the model's forward takes them with the prefix alone.
    """
    most = first_answer(encodings)
    if len(encodings) < 2 or most < SHORTEST_PREFIX:
        return 0
    ids = torch.stack([encoding.ids[:most] for encoding in encodings])
    length = int((ids == ids[0]).all(dim=0).cumprod(0).sum())
    return length if length >= max(SHORTEST_PREFIX, images_end(encodings, image_tokens)) else 0


def first_answer(encodings: Sequence[Encoding]) -> int:
    """Return the first position of any row that a token of an answer is predicted from."""
    return min(encoding.answer for encoding in encodings) - 1


def images_end(encodings: Sequence[Encoding], image_tokens: Sequence[int]) -> int:
    """Return the position after the last image token of any row."""
    end = 0
    tokens = torch.tensor(list(image_tokens), dtype=torch.long)
    for encoding in encodings:
        places = torch.isin(encoding.ids, tokens).nonzero()
        end = max(end, int(places.max()) + 1 if len(places) else 0)
    return end


# ---- record


class Block(NamedTuple):
    """Prompts that run together, and how the model calls its layers for them.

    Attributes:
        groups: How many prefixes there are; the number of rows where nothing is shared.
        each: Rows of each prefix.
        prefix: Tokens of a prefix; 0 = nothing is shared.
        tokens: Tokens of a row after its prefix.
        first: The first of those that anything is read at.
        read: Row and token of each position that an answer's token is predicted from, each (n,) int64.
        firsts: (rows,) int64: the position in each prompt that statistics read.
        lengths: (rows,) int64: tokens of each prompt, without padding.
        prefix_calls, calls: The arguments of each layer for the prefixes, and for the rows.
        last_calls: The arguments of the last layer for the tokens before `first`, and for the others; None = use `calls`.
        added: By position of a layer, (1, tokens of the block, hidden_size) that the model adds before it.
    """

    groups: int
    each: int
    prefix: int
    tokens: int
    first: int
    read: tuple[Tensor, Tensor]
    firsts: Tensor
    lengths: Tensor
    prefix_calls: tuple[Call, ...]
    calls: tuple[Call, ...]
    last_calls: tuple[Call, Call] | None
    added: dict[int, Tensor]

    @property
    def rows(self) -> int:
        """Number of prompts."""
        return self.groups * self.each

    @property
    def flat_tokens(self) -> int:
        """Tokens of prefixes and rows together."""
        return self.groups * self.prefix + self.rows * self.tokens

    def split(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Split (1, flat, size) into prefixes, (groups, prefix, size), and rows, (rows, tokens, size)."""
        prefixes, rows = flat[0].split([self.groups * self.prefix, self.rows * self.tokens])
        size = flat.shape[-1]
        return prefixes.view(self.groups, self.prefix, size), rows.view(self.rows, self.tokens, size)


def join_flat(prefixes: Tensor, rows: Tensor) -> Tensor:
    """Join prefixes and rows into (1, flat, size): the inverse of `Block.split`."""
    return torch.cat((prefixes.flatten(0, 1), rows.flatten(0, 1)))[None]


def make_block(
    plan: Plan, encodings: Sequence[Encoding], record_part: Callable[[list[int], int, int], Recording], at_answers: bool
) -> tuple[Block, Tensor]:
    """Record how the model calls its layers for a plan; return that, and the flat hidden states before the first layer.

    `record_part` records the model's forward on the tokens from one place to another of some prompts. With `at_answers`, it
    also records what `run_at_answers` needs.
    """
    rows = plan.rows
    start = plan.prefix
    end = max(len(encoding.ids) for encoding in encodings)
    first = first_answer(encodings)
    if start:
        shared = record_part(rows[:: plan.each], 0, start)
    own = record_part(rows, start, end)
    prefixes = shared.embedded if start else own.embedded[:, :0]
    added = {n: join_flat(shared.added[n] if start else value[:, :0], value) for n, value in own.added.items()}
    last_calls = None
    if at_answers:  # masks and positions depend on which tokens run, so that each part has its own arguments
        before = record_part(rows, start, first).calls[-1] if first > start else own.calls[-1]
        last_calls = before, record_part(rows, first, end).calls[-1]
    device = own.embedded.device
    read = [(n, at - start) for n, e in enumerate(encodings) for at in range(e.answer - 1, len(e.ids) - 1)]
    row, token = to_device(torch.tensor(read), device).T.unbind()
    block = Block(
        groups=len(rows) // plan.each,
        each=plan.each,
        prefix=start,
        tokens=end - start,
        first=first - start,
        read=(row, token),
        # Of a text that is predicted from its beginning, the first token is a poor summary: its last one is pooled.
        firsts=to_device(torch.tensor([e.answer - 1 if e.answer > 1 else len(e.ids) - 2 for e in encodings]), device),
        lengths=to_device(torch.tensor([len(e.ids) for e in encodings]), device),
        prefix_calls=shared.calls if start else (),
        calls=own.calls,
        last_calls=last_calls,
        added=added,
    )
    return block, join_flat(prefixes, own.embedded)


# ---- replay


def run_blocks(blocks: Sequence[Block], hidden: Tensor, run: Callable[[Block, Tensor, Tensor], Any]) -> Tensor:
    """Call `run` on the prefixes and rows of every block, and join the results."""
    parts = hidden.split([block.flat_tokens for block in blocks], dim=1)
    return torch.cat([join_flat(*run(b, *b.split(part))) for b, part in zip(blocks, parts, strict=True)], dim=1)


def run_plain(layer: nn.Module, place: int, block: Block, prefixes: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Call a layer as the model does; return new prefixes and rows, (groups or rows, tokens, size) each."""
    return prefixes, run_layer(layer, rows, block.calls[place])


def run_with_prefixes(layer: nn.Module, place: int, block: Block, prefixes: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Call a layer on prefixes, and on the rows that follow them; see `run_plain`."""
    # The prefix runs under the same mask as its rows, since its hidden states depend on the layers before; so its keys and
    # values are those that each row would compute for itself, as long as attention is causal.
    cache = LayerCache()
    prefixes = run_layer(layer, prefixes, block.prefix_calls[place], cache)
    return prefixes, run_layer(layer, rows, block.calls[place], LayerCache(cache.keys, cache.values, block.each))


def run_everywhere(layer: nn.Module, place: int, block: Block, prefixes: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Call a layer at all positions; arguments and results are those of `run_plain`."""
    run = run_with_prefixes if block.prefix else run_plain
    return run(layer, place, block, prefixes, rows)


def run_at_answers(
    layer: nn.Module, place: int, block: Block, prefixes: Tensor, rows: Tensor, attends: bool = True
) -> tuple[Tensor, Tensor]:
    """Call the last layer; outputs are those of the positions from `Block.first` on.

    `attends` is False if the layer's attention is skipped, so that it reads no other positions.
    """
    # No layer follows, so that outputs before the answers are read by nothing: of those tokens only keys and values count.
    if block.last_calls is None:
        return prefixes[:, :0], run_everywhere(layer, place, block, prefixes, rows)[1][:, block.first :]
    before, asking = block.last_calls
    known = LayerCache()
    if attends and asking.made:
        if block.prefix:
            known = LayerCache(*keys_and_values(layer, prefixes, block.prefix_calls[-1]), block.each)
        if block.first:
            known = LayerCache(*known.update(*keys_and_values(layer, rows[:, : block.first], before)))
    hidden = run_layer(layer, rows[:, block.first :], asking, known if known.is_initialized else None)
    return prefixes[:, :0], hidden


# ---- read


def answer_states(blocks: Sequence[Block], hidden: Tensor) -> Tensor:
    """Return (n, hidden_size): the hidden states from which answer tokens are predicted, block by block."""
    short = [block.rows * (block.tokens - block.first) for block in blocks]
    # `run_at_answers` has dropped the tokens before the answers, if it ran.
    is_short = hidden.shape[1] == sum(short)
    found = []
    for block, part in zip(blocks, hidden.split(short if is_short else [b.flat_tokens for b in blocks], dim=1), strict=True):
        rows = part.view(block.rows, -1, part.shape[-1]) if is_short else block.split(part)[1][:, block.first :]
        row, token = block.read
        found.append(rows[row, token - block.first])
    return torch.cat(found)


def padded_rows(blocks: Sequence[Block], hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Return (rows, tokens, size), each row after its prefix, and the (rows, tokens) bool mask of tokens without padding."""
    longest = max(block.prefix + block.tokens for block in blocks)
    padded = []
    real = []
    for block, part in zip(blocks, hidden.split([block.flat_tokens for block in blocks], dim=1), strict=True):
        prefixes, rows = block.split(part)
        rows = torch.cat((prefixes.repeat_interleave(block.each, dim=0), rows), dim=1)
        padded.append(nn.functional.pad(rows, (0, 0, 0, longest - rows.shape[1])))
        real.append(torch.arange(longest, device=hidden.device) < block.lengths[:, None])
    return torch.cat(padded), torch.cat(real)


def real_tokens(blocks: Sequence[Block], hidden: Tensor) -> Tensor:
    """Return (n, size): the tokens of a flat tensor without padding, each shared prefix once."""
    found = []
    for block, part in zip(blocks, hidden.split([block.flat_tokens for block in blocks], dim=1), strict=True):
        prefixes, rows = block.split(part)
        places = torch.arange(block.prefix, block.prefix + block.tokens, device=hidden.device)
        found += [prefixes.flatten(0, 1), rows[places < block.lengths[:, None]]]
    return torch.cat(found)
