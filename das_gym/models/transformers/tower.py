"""The layers of a vision tower: found, and run one by one under a mask; the model's own forward then reads what they gave.

Pictures lie flat in one stream, `image`, (1, tokens of all pictures, hidden_size). Where the model reads outputs of
earlier layers, too (Qwen3-VL's deepstack, `vision_feature_layer` with several entries), they stand before the current
ones in it, in order: (1, (1 + kept) * tokens, hidden_size).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from das_gym.models.transformers import features, stack
from das_gym.models.transformers.stack import Call

OUTPUT = "output of layer "


@dataclass(frozen=True)
class TowerTraits:
    """What a self-check found out about a vision tower.

    Attributes:
        reads: Positions of the layers whose outputs the model reads, apart from what the next layer does with them.
        protected: Positions of layers that are never skipped, with the reason.
    """

    reads: tuple[int, ...]
    protected: Mapping[int, str] = field(default_factory=dict)

    def without(self, gone: Sequence[int]) -> TowerTraits:
        """Those of the tower without some layers: what was read behind one of them is read behind the one before it."""
        kept = [place for place in range(max(self.reads) + 1) if place not in gone]
        reads = sorted({sum(other <= place for other in kept) - 1 for place in self.reads} - {-1})
        return replace(self, reads=tuple(reads), protected={})


@dataclass(frozen=True)
class Whole:
    """Whole numbers among a layer's arguments, such as the lengths of pictures: MACs cannot be counted without them."""

    values: tuple[int, ...]
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, value: Any) -> Any:
        """A tensor of whole numbers as such; anything else as it is."""
        if not isinstance(value, Tensor) or value.dtype not in (torch.int32, torch.int64):
            return value
        return cls(tuple(value.flatten().tolist()), tuple(value.shape), value.device, value.dtype)

    @property
    def tensor(self) -> Tensor:
        """The tensor again."""
        return torch.tensor(self.values, device=self.device, dtype=self.dtype).view(self.shape)


class Pictures(NamedTuple):
    """Pictures that run together.

    Attributes:
        shape: Of their hidden vectors, as layers read them.
        calls: What each layer is called with.
    """

    shape: tuple[int, ...]
    calls: tuple[Call, ...]

    @property
    def tokens(self) -> int:
        """Of all of them."""
        return int(torch.Size(self.shape[:-1]).numel())

    def called(self, place: int) -> Call:
        """What a layer is called with; one that was deleted, as the last."""
        call = self.calls[min(place, len(self.calls) - 1)]
        return Call(*tree_map(lambda v: v.tensor if isinstance(v, Whole) else v, (call.args, call.kwargs)))


class Place(NamedTuple):
    """Where the pictures of a prompt lie: which `Pictures`, and which of their rows; None = all there is."""

    block: int
    rows: slice | None


class Tower:
    """The vision tower of a model, layer by layer.

    Args:
        model: The model of transformers.
        traits: What a self-check found out.
    """

    def __init__(self, model: Any, traits: TowerTraits) -> None:
        self.model = model
        self.traits = traits
        self.stack = stack.find_tower(model)

    def begin(self, given: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, tuple[Pictures, ...], list[Place]]:
        """What the first layer reads of the pictures of some prompts, what each layer is called with, and where each lies.

        Args:
            given: Pixels and sizes of each prompt's pictures.
        """
        hidden: list[Tensor] = []
        blocks: list[Pictures] = []
        places: list[Place] = []
        alike: dict[tuple[int, ...], int] = {}
        for one in given:
            recording = self.record(one)
            shape, calls = recording.embedded.shape, tuple(_numbers(call) for call in recording.calls)
            plain = len(shape) == 3 and not any(stack.leaves_of(call) for call in recording.calls)
            block = alike.setdefault(tuple(shape[1:]), len(blocks)) if plain and _is_bare(calls) else len(blocks)
            if block == len(blocks):
                blocks.append(Pictures(tuple(shape), calls))
                hidden.append(recording.embedded)
                places.append(Place(block, slice(0, shape[0]) if plain else None))
                continue
            rows = hidden[block].shape[0]
            hidden[block] = torch.cat((hidden[block], recording.embedded))
            blocks[block] = blocks[block]._replace(shape=tuple(hidden[block].shape))
            places.append(Place(block, slice(rows, rows + shape[0])))
        flat = [h.reshape(1, -1, h.shape[-1]) for h in hidden]
        return torch.cat(flat, dim=1) if flat else self._none(), tuple(blocks), places

    def _none(self) -> Tensor:
        """No pictures."""
        parameter = next(self.stack.layers.parameters())
        return parameter.new_empty(1, 0, parameter.shape[-1])

    def record(self, given: Mapping[str, Tensor]) -> stack.Recording:
        """What the tower does around its layers on the pictures of a prompt.

        Raises:
            ValueError: it adds something between them.
        """
        recording = stack.record(self.stack, partial(features.seen, self.model, given))
        if recording.added:
            raise ValueError(f"{type(self.model).__name__} adds something between the layers of its vision tower")
        return recording

    def step(
        self,
        hidden: Tensor,
        blocks: Sequence[Pictures],
        place: int,
        run: Callable[[Tensor, Call], Tensor] | None,
        within: bool = False,
    ) -> Tensor:
        """The stream behind a layer.

        Args:
            hidden: The stream before it.
            blocks: What lies in it.
            place: Position of the layer.
            run: Gives its output for some pictures; None = it is passed by.
            within: Whether what is current comes from within the layer, and not from the one before it.
        """
        total = sum(block.tokens for block in blocks)
        current = hidden[:, hidden.shape[1] - total :]
        is_read = place - 1 in self.traits.reads and not within
        kept = hidden if is_read else hidden[:, : hidden.shape[1] - total]
        if run is None:
            return torch.cat((hidden, current), dim=1) if is_read else hidden
        parts = current.split([block.tokens for block in blocks], dim=1)
        given = [run(part.view(b.shape), b.called(place)) for b, part in zip(blocks, parts, strict=True)]
        return torch.cat((kept, *(part.reshape(1, -1, part.shape[-1]) for part in given)), dim=1)

    def features(
        self, hidden: Tensor, blocks: Sequence[Pictures], places: Sequence[Place], given: Sequence[Mapping[str, Tensor]]
    ) -> Iterator[dict[str, Any]]:
        """What the model makes of each prompt's pictures, from what the tower's layers gave.

        Args:
            hidden: The stream behind the last layer that is read; without content (on `meta`) any content will do.
            blocks: What lies in it.
            places: Where each prompt's pictures lie.
            given: Their pixels and sizes.
        """
        if hidden.is_meta:
            hidden = torch.zeros(hidden.shape, dtype=hidden.dtype, device=next(self.stack.layers.parameters()).device)
        total = sum(block.tokens for block in blocks)
        outputs = [part.split([b.tokens for b in blocks], dim=1) for part in hidden.split(total, dim=1)] if total else []
        for one, place in zip(given, places, strict=True):
            shape = blocks[place.block].shape
            read = [part[place.block].view(shape) for part in outputs]
            read = [part if place.rows is None else part[place.rows] for part in read]
            yield self.seen(one, dict(zip(self.traits.reads, read, strict=True)))

    def watch(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What layers that are read give to the pictures of a prompt, by `OUTPUT` and position, beside pixels and sizes."""
        outputs: dict[str, Tensor] = {}

        def keep(place: int, module: nn.Module, args: Any, output: Any) -> None:
            outputs[f"{OUTPUT}{place}"] = output[0] if isinstance(output, tuple) else output

        hooks = [self.stack.layers[p].register_forward_hook(partial(keep, p)) for p in self.traits.reads]
        try:
            features.seen(self.model, given)
        finally:
            for hook in hooks:
                hook.remove()
        return {**given, **outputs}

    def read(self, watched: Mapping[str, Tensor]) -> dict[str, Any]:
        """What the model makes of pictures, from what `watch` kept of them."""
        given = {name: value for name, value in watched.items() if not name.startswith(OUTPUT)}
        return self.seen(given, {place: watched[f"{OUTPUT}{place}"] for place in self.traits.reads})

    def seen(self, given: Mapping[str, Tensor], outputs: Mapping[int, Tensor]) -> dict[str, Any]:
        """What the model makes of pictures if layers give these outputs, by position; the others give what they read."""
        parts = {
            layer: stack.passing(layer, partial(_instead, outputs.get(place)))
            for place, layer in enumerate(self.stack.layers)
        }
        with stack.replaced(parts):
            return features.seen(self.model, given)


def _instead(output: Tensor | None, hidden: Tensor) -> Tensor:
    return hidden if output is None else output


def _numbers(call: Call) -> Call:
    return Call(*tree_map(Whole.of, (call.args, call.kwargs)))


def _is_bare(calls: Sequence[Call]) -> bool:
    """Whether no argument depends on the pictures."""
    return not any(isinstance(value, Tensor | Whole) for call in calls for value in (*call.args, *call.kwargs.values()))
