"""Find the layers inside a model of transformers, replace parts of it temporarily, and call its layers one by one.

To record with which arguments a model calls its layers (`record`), its own forward runs with every layer replaced by one
that returns zeros. So nothing about a model type has to be known here.
"""

import copy
import functools
import inspect
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

aten = torch.ops.aten

JOINT, IMAGE = "joint", "image"
"""Streams: what decoder layers update, and what vision layers update."""

ATTENTION_NAMES = ("self_attn", "cross_attn", "attn", "attention", "self_attention")
MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe")
PART_NAMES = {"attention": ATTENTION_NAMES, "mlp": MLP_NAMES}
"""Names of the halves of a layer, by kind of unit."""

LIST_NAMES = ("layers", "h", "blocks", "layer")

CACHES = ("cache", "past_key_values", "past_key_value")
"""Names of the argument for the cache of keys and values, in this and in earlier versions of transformers."""

DROPPED_ARGUMENTS = (*CACHES, "use_cache", "cache_position", "output_attentions", "output_hidden_states")


@dataclass(frozen=True)
class Stack:
    """The layers of a decoder, with the norm after them, or of a vision tower; they are the list `name` of their owner."""

    owner: nn.Module
    name: str
    norm: nn.Module

    @property
    def layers(self) -> nn.ModuleList:
        """The layers, in order."""
        return getattr(self.owner, self.name)


def find_decoder(model: nn.Module) -> Stack:
    """Find the decoder layers of a model of transformers, and the norm after them; ValueError if there are none."""
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"{name} is an encoder-decoder model, which is not supported. Use a decoder-only model.")
    decoder: Any = model.get_decoder()  # type: ignore[operator]
    for _ in range(3):  # some wrap their language model, head included: BLIP-2's OPT
        list_name = next((n for n in LIST_NAMES if isinstance(getattr(decoder, n, None), nn.ModuleList)), None)
        if list_name is not None:
            break
        decoder = next((inner for n in ("model", "decoder") if (inner := getattr(decoder, n, None)) is not None), None)
    else:
        raise ValueError(f"{name} is not supported: its decoder has no list of layers named {', '.join(LIST_NAMES)}.")
    parts = dict(decoder.named_children())
    at = list(parts).index(list_name)
    after_list = [*list(parts.values())[at + 1 :], *list(parts.values())[:at]]
    norm = next((part for part in after_list if "norm" in type(part).__name__.lower()), None)
    if norm is None:
        raise ValueError(f"{name} is not supported: its decoder has no norm next to its list of layers.")
    return Stack(decoder, list_name, norm)


def find_vision_tower(model: Any) -> Stack:
    """Find the layers of a model's vision tower; several lists of layers, or none, are a ValueError."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    tower = model.get_encoder(modality="image")
    decoder = find_decoder(model).owner
    has_tower = tower is not model and tower is not model.base_model and decoder not in set(tower.modules())
    found = []
    for owner in tower.modules() if has_tower else ():
        for name, layers in owner.named_children():
            is_list = isinstance(layers, nn.ModuleList) and len(layers) > 0
            if is_list and all(isinstance(layer, GradientCheckpointingLayer) for layer in layers):
                found.append(Stack(owner, name, nn.Identity()))
    if len(found) != 1:
        raise ValueError(f"{type(model).__name__} has {len(found)} lists of vision layers, expected 1. Leave out `vision`.")
    return found[0]


def module_path(model: nn.Module, module: nn.Module) -> str:
    """Return the dotted name of a module within a model."""
    return next(name for name, other in model.named_modules() if other is module)


def child_name(layer: nn.Module, names: Sequence[str]) -> str | None:
    """Return the first of the names under which the layer has a child."""
    children = dict(layer.named_children())
    return next((name for name in names if name in children), None)


def child(layer: nn.Module, names: Sequence[str]) -> nn.Module | None:
    """Return the child that the layer has under the first of the names that it knows."""
    name = child_name(layer, names)
    return None if name is None else getattr(layer, name)


@contextmanager
def replace_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replace the forward functions of modules within the block. Their hooks stay."""
    # On the object and not its class, so that copies and other layers of the class are as before. A forward may be replaced
    # already: by accelerate for `device_map`, or by an outer block.
    before = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, own in before.items():
            del module.forward
            if own is not None:
                module.forward = own


def note_layer_parts(stack: Stack, run: Callable[[], Any]) -> None:
    """Run the model once; note on layers and their parts how many outputs they return (0 = a tensor alone), and norms.

    Those are the norms that serve attention or MLP alone, by what reads what: names mislead (`post_attention_layernorm` is
    before the MLP in Llama, and after the attention in Gemma).
    """
    calls: dict[Any, tuple[Any, Any]] = {}

    def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        module._das_outputs = len(output) if isinstance(output, tuple) else 0
        calls[module] = first_input(args, kwargs), first_output(output)

    def note_norms(layer: Any, *_: Any) -> None:
        called = {name: calls[part] for name, part in layer.named_children() if part in calls}
        layer._das_norms = {kind: _own_norms(layer, called, kind) for kind in PART_NAMES}
        calls.clear()

    parts = [part for layer in stack.layers for part in (*layer.children(), layer)]
    handles = [part.register_forward_hook(note, with_kwargs=True) for part in parts]
    handles += [layer.register_forward_hook(note_norms) for layer in stack.layers]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()


def _own_norms(layer: nn.Module, calls: Mapping[str, tuple[Any, Any]], kind: str) -> list[str]:
    """Return the norms before a layer's attention or MLP that nothing else reads, and those after it that keep zeros."""
    part = child_name(layer, PART_NAMES[kind]) or ""

    def serves_it(name: str, read: Any, given: Any) -> bool:
        if [other for other, (value, _) in calls.items() if value is given] == [part]:
            return True
        if part not in calls or read is not calls[part][1]:
            return False
        module: Any = getattr(layer, name)
        zeros = torch.zeros_like(read, dtype=next(module.parameters(), read).dtype)  # `forward` runs no hooks of float32
        return not module.forward(zeros).any()  # with a bias, it turns zeros into something else: it stays

    return [name for name, call in calls.items() if serves_it(name, *call)]


def as_layer_output(module: nn.Module, hidden: Tensor) -> Any:
    """Return hidden states in the form of the module's output, see `note_layer_parts`."""
    outputs = int(getattr(module, "_das_outputs", 0))
    return (hidden, *[None] * (outputs - 1)) if outputs else hidden


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the (..., hidden_size) hidden states among the arguments of a layer, attention or MLP."""
    return args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))


def first_output(output: Any) -> Tensor:
    """Return the (..., hidden_size) hidden states among the outputs of a layer, attention or MLP."""
    return output[0] if isinstance(output, tuple) else output


def zero_forward(module: nn.Module) -> Callable[..., Any]:
    """Return a forward for an attention or MLP that gives zeros: the residual connection then passes its input on."""
    return lambda *args, **kwargs: as_layer_output(module, torch.zeros_like(first_input(args, kwargs)))


def skip_forward(layer: nn.Module, instead: Callable[[Tensor], Tensor] = lambda hidden: hidden) -> Callable[..., Any]:
    """Return a forward that skips a layer, or computes something `instead`, such as a skip adapter."""
    return lambda *args, **kwargs: as_layer_output(layer, instead(first_input(args, kwargs)))


class Call(NamedTuple):
    """The arguments of a layer after its hidden states, without those in `DROPPED_ARGUMENTS`.

    `made` is False if the model does not call the layer: Mllama leaves out cross-attention layers without an image.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    made: bool = True


class Recording(NamedTuple):
    """Inputs of the layers, recorded from the model's own forward.

    Attributes:
        embedded: (batch, tokens, hidden_size), the input of the first layer.
        calls: The arguments of each layer.
        added: By position of a layer, the tensor that the model adds before it (Qwen3-VL's deepstack).
    """

    embedded: Tensor
    calls: tuple[Call, ...]
    added: dict[int, Tensor]


def record(stack: Stack, run: Callable[[], Any], additive_layers: Sequence[int] | None = None) -> Recording:
    """Run the model with stubs for layers, and record each one's arguments; ValueError if a layer is not called.

    `additive_layers` are those before which the model adds something to the hidden states; None detects them.
    """
    layers = list(stack.layers)
    inputs: dict[int, Tensor] = {}
    calls: dict[int, Call] = {}

    def stub(position: int, *args: Any, **kwargs: Any) -> Any:
        # Some models pass hidden states by position, others by name. A stub returns zeros, so that whatever a later layer
        # reads besides zeros was added by the model between its layers.
        hidden, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
        kwargs = {name: value for name, value in kwargs.items() if name not in DROPPED_ARGUMENTS}
        inputs[position] = hidden
        calls[position] = Call(*tree_map(_finite_mask, (tuple(rest), kwargs)))
        return as_layer_output(layers[position], torch.zeros_like(hidden))

    with replace_forwards({layer: functools.partial(stub, n) for n, layer in enumerate(layers)}):
        run()
    if not calls or (additive_layers is None and len(calls) < len(layers)):
        raise ValueError(f"The model called {len(calls)} of its {len(layers)} layers.")
    if additive_layers is None:  # the layers give zeros, so that anything else was added by the model
        later = range(1, len(layers))
        any_added = torch.stack([inputs[n].any() for n in later]).tolist() if later else []
        additive_layers = [n for n, is_added in zip(later, any_added, strict=True) if is_added]
    added = {n: inputs[n] for n in additive_layers if n in inputs}
    not_made = Call((), {}, made=False)
    return Recording(inputs[min(inputs)], tuple(calls.get(n, not_made) for n in range(len(layers))), added)


class HostReads(TorchDispatchMode):
    """Keeps what functions read from the device within its block, and replays it in the next one, which waits for nothing.

    For functions whose reads depend on inputs that are the same in each block: sizes, tokens, which pixels are padding.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: list[tuple[Any, Any]] = []
        self._place = 0

    def __enter__(self) -> "HostReads":
        self._place = 0
        return super().__enter__()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is aten.index.Tensor:  # the places of a mask of bools are counted on the device: a read
            places = [self._read(aten.nonzero.default, i).unbind(1) if _is_mask(i) else (i,) for i in args[1]]
            return function(args[0], [index for parts in places for index in parts])
        given = [each.type for each in (*args, *kwargs.values()) if isinstance(each, torch.device)]
        to_host = given == ["cpu"] and isinstance(args[0], Tensor) and not args[0].is_cpu
        # in inference mode, torch passes `item` and `is_nonzero` on as they are
        if to_host or function.overloadpacket in (aten.nonzero, aten.item, aten.is_nonzero, aten._local_scalar_dense):
            return self._read(function, *args, **kwargs)
        return function(*args, **kwargs)

    def _read(self, function: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        what = function, tensor.shape
        if self._place == len(self._known) or self._known[self._place][0] != what:
            self._known[self._place :] = [(what, function(tensor, *args, **kwargs))]
        self._place += 1
        return self._known[self._place - 1][1]


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype == torch.bool


def _finite_mask(value: Any) -> Any:
    """Bound masks of float64: attention that takes its softmax in float32 (Gemma 2) would give NaN for padding."""
    if isinstance(value, Tensor) and value.dtype == torch.float64 and value.dim() == 4:
        return value.clamp_min(torch.finfo(torch.float32).min)
    return value


def run_layer(layer: nn.Module, hidden: Tensor, call: Call, cache: Any = None) -> Tensor:
    """Return the layer's output, on the device of its input; `cache` replaces transformers' own."""
    if not call.made:
        return hidden
    # Gemma 4's layers write their keys and values into a dictionary for later layers, of which supported models have none
    kwargs = {name: copy.copy(value) if isinstance(value, UserDict) else value for name, value in call.kwargs.items()}
    if cache is not None:
        kwargs[cache_name(type(layer).forward)] = cache
    return first_output(layer(hidden, *call.args, **kwargs)).to(hidden.device)  # `device_map` may put layers on others


@functools.cache
def cache_name(forward: Callable[..., Any]) -> str:
    """Return the name of the cache's parameter in the forward of a layer or model; newer transformers call it `cache`."""
    new, old, _ = CACHES
    return new if new in inspect.signature(forward).parameters else old


def filled_cache(rows: int, tokens: int, layers: int) -> Any:
    """Return an empty cache that claims to hold some tokens, so that the model makes masks and positions for those after.

    Without a configuration all its layers count as full attention: those with a sliding window are called with all earlier
    keys, too.
    """
    from transformers import DynamicCache

    cache = DynamicCache()
    nothing = torch.zeros(rows, 1, tokens, 1)
    for layer in range(layers):
        cache.update(nothing, nothing, layer)
    return cache


class LayerCache:
    """Keys and values of earlier positions, (batch, heads, tokens, head_size): replaces transformers' cache for one layer.

    `each` rows of a call share each row of them as their prefix.
    """

    is_compileable = False

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None, each: int = 1) -> None:
        self.keys = keys
        self.values = values
        self.each = each
        self.is_initialized = keys is not None

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return keys and values of all positions. The first call keeps its own."""
        if self.keys is None or self.values is None:
            self.keys = keys
            self.values = values
            return keys, values
        return self._append(self.keys, keys), self._append(self.values, values)

    def _append(self, earlier: Tensor, own: Tensor) -> Tensor:
        if self.each == 1:
            return torch.cat((earlier, own), dim=2)
        # expanded, the earlier ones are copied once; `repeat_interleave` and `cat` would copy them twice
        earlier = earlier[:, None].expand(-1, self.each, -1, -1, -1)
        return torch.cat((earlier, own.unflatten(0, (-1, self.each))), dim=3).flatten(0, 1)

    def get_seq_length(self, *_: Any) -> int:
        """Return how many positions come before."""
        return 0 if self.keys is None else self.keys.shape[2]


class _StopForwardError(Exception):
    """Ends a layer's forward as soon as its keys and values are computed."""


class _StoppingCache(LayerCache):
    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.keys = keys
        self.values = values
        raise _StopForwardError


def keys_and_values(layer: nn.Module, hidden: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Compute the keys and values of some positions, and nothing else of the layer; ValueError if it has none."""
    cache: Any = _StoppingCache()
    try:
        run_layer(layer, hidden, call, cache)
    except _StopForwardError:
        return cache.keys, cache.values
    raise ValueError(f"{type(layer).__name__} does not use a cache of keys and values.")
