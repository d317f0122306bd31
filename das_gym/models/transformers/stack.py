"""The layers inside a model of transformers: found, watched during its own forward, and run again one by one.

A model is driven, not rewritten. Its own forward runs once a batch with every decoder layer replaced by one that returns
zeros: what each layer was called with (attention mask, rotary embeddings, ...) is kept, and so is what the model adds
between layers. Layers are then called with those arguments in whatever selection a mask asks for.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_map_with_path

CACHES = ("cache", "past_key_values", "past_key_value")
"""What layers of this and earlier versions of transformers call the cache of keys and values."""

LEFT_OUT = (*CACHES, "use_cache", "cache_position", "output_attentions", "output_hidden_states")
"""Arguments of a layer that are not replayed: masks are scored without a cache, one output a layer."""

ATTENTION_NAMES = ("self_attn", "cross_attn", "attn", "attention", "self_attention")
MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe")
LIST_NAMES = ("layers", "h", "blocks", "layer")


class Call(NamedTuple):
    """What a layer was called with, besides its hidden vectors.

    Attributes:
        args: Positional arguments after the hidden vectors.
        kwargs: Keyword arguments, without those in `LEFT_OUT`.
        made: Whether it was called at all: Mllama passes by its cross-attention layers where there is no picture.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    made: bool = True


UNMADE = Call((), {}, made=False)
"""Of a layer that was passed by."""


class Recording(NamedTuple):
    """What the model's own forward did around its layers.

    Attributes:
        embedded: (batch, tokens, hidden_size), the input of the first layer.
        calls: Of each layer, in order.
        added: Position of a layer -> (batch, tokens, hidden_size) that the model adds to the hidden vectors before it.
    """

    embedded: Tensor
    calls: tuple[Call, ...]
    added: dict[int, Tensor]


@dataclass(frozen=True)
class Stack:
    """The layers of a decoder, or of a vision tower.

    Attributes:
        owner: The module that runs them.
        name: The name of their list in it.
        norm: What follows them; of a tower nobody asks.
    """

    owner: nn.Module
    name: str
    norm: nn.Module

    @property
    def layers(self) -> nn.ModuleList:
        """The layers, in order."""
        layers: nn.ModuleList = getattr(self.owner, self.name)
        return layers


def find_decoder(model: nn.Module) -> Stack:
    """The decoder layers of a model of transformers, and the norm behind them.

    Raises:
        ValueError: they are not where transformers keeps them.
    """
    name = type(model).__name__
    config: Any = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{name} reads with an encoder and writes with a decoder that looks at it: only models whose one decoder reads "
            "and writes can be driven"
        )
    decoder: Any = model.get_decoder()  # type: ignore[operator]
    for _ in range(3):  # some wrap their language model, head included: BLIP-2's OPT
        lists = [n for n in LIST_NAMES if isinstance(getattr(decoder, n, None), nn.ModuleList)]
        if lists:
            break
        decoder = next((inner for name in ("model", "decoder") if (inner := getattr(decoder, name, None)) is not None), None)
    norm = (
        next((part for part in _behind(decoder, lists[0]) if "norm" in type(part).__name__.lower()), None) if lists else None
    )
    if norm is None:
        raise ValueError(
            f"{name} keeps its decoder layers in no list ({', '.join(LIST_NAMES)}) with a norm behind it: it cannot be "
            "driven layer by layer"
        )
    return Stack(decoder, lists[0], norm)


def find_tower(model: Any) -> Stack:
    """The layers of a model's vision tower.

    Raises:
        ValueError: it has no tower of layers in a row, or one of several rows.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    name, decoder = type(model).__name__, find_decoder(model).owner
    tower = model.get_encoder(modality="image")
    inside = () if tower is model or tower is model.base_model or decoder in set(tower.modules()) else tower.named_modules()
    found = [
        Stack(owner, list_name, nn.Identity())
        for _, owner in inside
        for list_name, layers in owner.named_children()
        if isinstance(layers, nn.ModuleList)
        and len(layers)
        and all(isinstance(layer, GradientCheckpointingLayer) for layer in layers)
    ]
    if len(found) != 1:
        raise ValueError(f"{name} has no vision tower whose layers stand in one row: leave vision out")
    return found[0]


def _behind(decoder: nn.Module, name: str) -> list[nn.Module]:
    """The decoder's parts, those behind the list of layers first."""
    parts = dict(decoder.named_children())
    place = list(parts).index(name)
    return [*list(parts.values())[place + 1 :], *list(parts.values())[:place]]


def child(layer: nn.Module, names: Sequence[str]) -> str | None:
    """The first of the names under which the layer has a child."""
    children = dict(layer.named_children())
    return next((name for name in names if name in children), None)


@contextmanager
def replaced(parts: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Modules whose forward is another function for a while; hooks that others put on them stay."""
    before = {module: module.__dict__.get("forward") for module in parts}
    try:
        for module, forward in parts.items():
            module.forward = forward
        yield
    finally:
        for module, own in before.items():
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = own


def record(stack: Stack, run: Callable[[], Any], adds: Sequence[int] | None = None) -> Recording:
    """Watch a forward of the model, in which no layer is computed.

    Args:
        stack: Its layers.
        run: Calls the model.
        adds: Before which layers something is added; None finds out, which takes a look at each hidden vector, and at
            whether every layer is called.

    Raises:
        ValueError: the model did not call every layer, or none of them.
    """
    layers = list(stack.layers)
    given: dict[int, tuple[Tensor, Call]] = {}

    def stub(position: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs.pop("hidden_states")
            kept = {name: value for name, value in kwargs.items() if name not in LEFT_OUT}
            given[position] = hidden, Call(tuple(args[1:]), kept)
            return nothing(layers[position], hidden)

        return forward

    with replaced({layer: stub(position) for position, layer in enumerate(layers)}):
        run()
    if not given or (adds is None and len(given) < len(layers)):
        raise ValueError(f"the model called {len(given)} of its {len(layers)} layers")
    first = given[min(given)][0]
    look = range(1, len(layers)) if adds is None else adds
    added = {at: given[at][0] for at in look if at in given and (adds is not None or bool(given[at][0].any()))}
    return Recording(first, tuple(given[at][1] if at in given else UNMADE for at in range(len(layers))), added)


def gives_tuple(layer: nn.Module) -> bool:
    """Whether a layer returns a tuple that begins with the hidden vectors; `note_outputs` found out."""
    return bool(getattr(layer, "_das_gives_tuple", False))


def note_outputs(stack: Stack, run: Callable[[], Any]) -> None:
    """Run the model once and note what its layers, and their attention and MLP, give back."""
    handles = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        del inputs
        module._das_gives_tuple = isinstance(output, tuple)  # type: ignore[assignment]
        module._das_width = len(output) if isinstance(output, tuple) else 1  # type: ignore[assignment]

    for layer in stack.layers:
        parts = [layer, *(getattr(layer, name) for names in (ATTENTION_NAMES, MLP_NAMES) if (name := child(layer, names)))]
        handles += [part.register_forward_hook(note) for part in parts]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()


def nothing(module: nn.Module, hidden: Tensor) -> Any:
    """Zeros in the form in which a module returns its output."""
    if not gives_tuple(module):
        return torch.zeros_like(hidden)
    return (torch.zeros_like(hidden), *(None for _ in range(int(module._das_width) - 1)))  # type: ignore[arg-type]


def zeros(module: nn.Module) -> Callable[..., Any]:
    """A forward that returns zeros in the form in which the module returns its output."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        return nothing(module, args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()))))

    return forward


def passing(layer: nn.Module, stands_in: Callable[[Tensor], Tensor] = lambda hidden: hidden) -> Callable[..., Any]:
    """A forward that passes on its hidden vectors, in the form in which the layer returns its output.

    Args:
        layer: The layer.
        stands_in: What is made of them on the way, such as by a skip adapter.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = stands_in(args[0] if args else kwargs["hidden_states"])
        return (hidden, *(None for _ in range(int(layer._das_width) - 1))) if gives_tuple(layer) else hidden  # type: ignore[arg-type]

    return forward


def run_layer(layer: nn.Module, hidden: Tensor, call: Call, cache: Any = None) -> Tensor:
    """The layer's output; `cache` stands in for transformers' own and is asked for keys and values."""
    if not call.made:
        return hidden
    kwargs = dict(call.kwargs)
    if cache is not None:
        kwargs[cache_name(type(layer).forward)] = cache
    output = layer(hidden, *call.args, **kwargs)
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


@functools.cache
def cache_name(forward: Callable[..., Any]) -> str:
    """What the forward of a layer, or of a decoder, calls the cache: `cache` in newer versions of transformers."""
    new, old, _ = CACHES
    return new if new in inspect.signature(forward).parameters else old


class Axes(NamedTuple):
    """Which axes of an argument count rows and tokens.

    Attributes:
        rows: The axis of rows; None = the same for every row.
        tokens: The axes of tokens; queries before keys where there are two.
    """

    rows: int | None
    tokens: tuple[int, ...]


def leaves_of(call: Call) -> dict[str, Tensor]:
    """The tensors among the arguments, by where they stand."""
    found, _ = tree_flatten_with_path((call.args, call.kwargs))
    return {f"{keystr(path)} {leaf.dim()}": leaf for path, leaf in found if isinstance(leaf, Tensor)}


def learn_axes(recordings: Sequence[Recording]) -> dict[str, Axes]:
    """Which axes count rows and tokens, by argument: those that change with the batch.

    Args:
        recordings: Of two batches or more, each of another number of rows and of tokens.
    """
    sizes = [recording.embedded.shape[:2] for recording in recordings]
    seen: dict[str, list[torch.Size | None]] = {}
    for number, recording in enumerate(recordings):
        for name, leaf in (item for call in recording.calls for item in leaves_of(call).items()):
            seen.setdefault(name, [None] * len(sizes))[number] = leaf.shape
    axes = {}
    for name, shapes in seen.items():
        known = [(shape, size) for shape, size in zip(shapes, sizes, strict=True) if shape is not None]
        if len(known) < 2:
            continue
        every = range(len(known[0][0]))
        rows, tokens = ([axis for axis in every if all(shape[axis] == size[i] for shape, size in known)] for i in (0, 1))
        axes[name] = Axes(rows[0] if rows else None, tuple(tokens))
    return axes


@dataclass(frozen=True)
class Packing:
    """Rows with a beginning in common, several of them side by side in one row of a batch.

    Attributes:
        groups: How many beginnings.
        each: Rows of each of them, one behind the other in the batch.
        prefix: Tokens that they have in common.
        tokens: Tokens of a row behind those.
    """

    groups: int
    each: int
    prefix: int
    tokens: int

    def pack(self, call: Call, start: int, end: int, keys: Sequence[tuple[int, int]], axes: Mapping[str, Axes]) -> Call:
        """The arguments for some tokens of every row, those of a group side by side.

        Args:
            call: Arguments for the batch, all tokens of it.
            start: The first of a row's own tokens that asks.
            end: The one behind the last.
            keys: Which of a row's own tokens are asked, part by part: behind the prefix stand the first parts of all rows
                of a group, then the second ones.
            axes: What `learn_axes` found.
        """

        def packed(path: Any, value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            along = axes.get(f"{keystr(path)} {value.dim()}", Axes(None, ()))
            if len(along.tokens) > 1:
                return self._mask(_softened(value), start, end, keys)
            return self._along(value, along, start, end)

        args, kwargs = tree_map_with_path(packed, (call.args, call.kwargs))
        return Call(args, kwargs)

    def _along(self, value: Tensor, along: Axes, start: int, end: int) -> Tensor:
        """Values of tokens, rows, both, or neither."""
        by = along.rows if along.rows is not None and value.shape[along.rows] > 1 else None
        if not along.tokens:
            return value if by is None else value[(slice(None),) * by + (slice(None, None, self.each),)]
        at = along.tokens[0]
        value = value.narrow(at, self.prefix + start, end - start)
        if by is None:
            return value.repeat(*(self.each if axis == at else 1 for axis in range(value.dim())))
        return value.unflatten(by, (self.groups, self.each)).movedim(by + 1, at).flatten(at, at + 1)

    def _mask(self, mask: Tensor, start: int, end: int, keys: Sequence[tuple[int, int]]) -> Tensor:
        """(groups, heads, each * asking, prefix + each * asked): the rows of a group do not see each other."""
        if not self.prefix and self.each == 1:
            parts = [mask.narrow(3, low, high - low) for low, high in keys]
            return torch.cat(parts, dim=3).narrow(2, start, end - start)
        own = mask.expand(self.groups * self.each, *mask.shape[1:]).unflatten(0, (self.groups, self.each))
        own = own.narrow(3, self.prefix + start, end - start)
        asking, asked = end - start, sum(high - low for low, high in keys)
        size = (self.groups, mask.shape[1], self.each * asking, self.prefix + self.each * asked)
        nothing = False if mask.dtype == torch.bool else _least(mask.dtype)
        result = mask.new_full(size, nothing)
        for row in range(self.each):
            queries = result.narrow(2, row * asking, asking)
            queries[..., : self.prefix] = own[:, row, ..., : self.prefix]
            behind = self.prefix
            for low, high in keys:
                place = behind + row * (high - low)
                part = own[:, row, ..., self.prefix + low : self.prefix + high]
                queries[..., place : place + high - low] = part
                behind += self.each * (high - low)
        return result

    def shared(self, call: Call, axes: Mapping[str, Axes], causal_by_itself: bool) -> Call:
        """The arguments for what the rows of a group have in common.

        Args:
            call: Arguments for the batch.
            axes: What `learn_axes` found.
            causal_by_itself: Whether attention without a mask is causal.
        """

        def narrowed(path: Any, value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            along = axes.get(f"{keystr(path)} {value.dim()}", Axes(None, ()))
            if len(along.tokens) > 1:
                value = _softened(value)
            for axis in along.tokens:
                value = value.narrow(axis, 0, self.prefix)
            if along.rows is not None and value.shape[along.rows] > 1:
                value = value[(slice(None),) * along.rows + (slice(None, None, self.each),)]
            return None if len(along.tokens) > 1 and causal_by_itself and _is_causal(value) else value

        args, kwargs = tree_map_with_path(narrowed, (call.args, call.kwargs))
        return Call(args, kwargs)


def _least(dtype: torch.dtype) -> float:
    """What is added where nothing is to be seen: finite in float32, too, in which attention written out takes its softmax.

    A padded token that sees nothing, as far from others as a sliding window reaches, would be NaN, and all that follows.
    """
    return max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)


def _softened(mask: Tensor) -> Tensor:
    """A mask that is added, with nothing below `_least` in it."""
    return mask.clamp_min(_least(mask.dtype)) if mask.dtype == torch.float64 else mask


def _is_causal(mask: Tensor) -> bool:
    """Whether a mask lets each token see itself and those before it, and nothing else."""
    allowed = mask if mask.dtype == torch.bool else mask == 0
    return bool((allowed == torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).tril()).all())


def with_mask(call: Call, tokens: int, device: torch.device) -> Call:
    """The same arguments with a causal mask where the model left it to its attention.

    A mask of None means "causal" to scaled dot product attention, where queries are as many as keys; with keys before
    the queries it has to be written down.
    """
    if "attention_mask" not in call.kwargs or call.kwargs["attention_mask"] is not None:
        return call
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()[None, None]
    return Call(call.args, {**call.kwargs, "attention_mask": causal})


class LayerCache:
    """Keys and values of the positions before the ones that a layer is called with.

    Takes the place of transformers' cache for one call of one layer.

    Args:
        keys, values: (batch, heads, tokens, head_size), or None where nothing comes before.
    """

    is_compileable = False

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None) -> None:
        self.keys = keys
        self.values = values
        self.is_initialized = keys is not None

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of all positions; those of this call are kept where there were none."""
        del args, kwargs
        if self.keys is None or self.values is None:
            self.keys, self.values = keys, values
            return keys, values
        return torch.cat((self.keys, keys), dim=2), torch.cat((self.values, values), dim=2)

    def get_seq_length(self, *args: Any) -> int:
        """How many positions come before."""
        del args
        return 0 if self.keys is None else self.keys.shape[2]


class _KeysKnownError(Exception):
    """Ends a layer's forward as soon as it has its keys and values."""


class _KeysOnly(LayerCache):
    """Takes keys and values, and stops the layer there."""

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        super().update(keys, values, *args, **kwargs)
        raise _KeysKnownError


def keys_and_values(layer: nn.Module, hidden: Tensor, call: Call) -> LayerCache:
    """The keys and values of some positions; nothing else of the layer is computed.

    Raises:
        ValueError: the layer asks no cache.
    """
    cache = _KeysOnly()
    try:
        run_layer(layer, hidden, call, cache)
    except _KeysKnownError:
        return LayerCache(cache.keys, cache.values)
    raise ValueError(f"{type(layer).__name__} keeps no keys and values")
