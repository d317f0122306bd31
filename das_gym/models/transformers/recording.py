"""Record with which arguments a model calls its layers, and call them again one by one.

The model's own forward runs with every layer replaced by one that returns zeros. So transformers itself makes attention
masks, positions and rotary embeddings, and nothing about a model type has to be known here.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections import UserDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from das_gym.models.transformers.stack import Stack, as_layer_output, first_output, replace_forwards

CACHES = ("cache", "past_key_values", "past_key_value")
"""Names of the argument for the cache of keys and values, in this and in earlier versions of transformers."""

NOT_REPLAYED = (*CACHES, "use_cache", "cache_position", "output_attentions", "output_hidden_states")


class Call(NamedTuple):
    """The arguments of a layer besides its hidden states.

    Attributes:
        args: Positional arguments after the hidden states.
        kwargs: Keyword arguments, without those in `NOT_REPLAYED`.
        made: False if the model does not call the layer: Mllama leaves out cross-attention layers without an image.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    made: bool = True


class Recording(NamedTuple):
    """Inputs of the layers, recorded from the model's own forward.

    Attributes:
        embedded: (batch, tokens, hidden_size), the input of the first layer.
        calls: The arguments of each layer.
        added: By position of a layer, (batch, tokens, hidden_size) that the model adds before it (Qwen3-VL's deepstack).
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
        kwargs = {name: value for name, value in kwargs.items() if name not in NOT_REPLAYED}
        inputs[position] = hidden
        calls[position] = Call(*tree_map(_finite_mask, (tuple(rest), kwargs)))
        return as_layer_output(layers[position], torch.zeros_like(hidden))

    with replace_forwards({layer: functools.partial(stub, n) for n, layer in enumerate(layers)}):
        run()
    if not calls or (additive_layers is None and len(calls) < len(layers)):
        raise ValueError(f"The model called {len(calls)} of its {len(layers)} layers.")
    if additive_layers is None:  # the layers give zeros, so that anything else was added by the model
        additive_layers = [n for n in range(1, len(layers)) if bool(inputs[n].any())]
    added = {n: inputs[n] for n in additive_layers if n in inputs}
    not_made = Call((), {}, made=False)
    return Recording(inputs[min(inputs)], tuple(calls.get(n, not_made) for n in range(len(layers))), added)


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
    """Return a cache that claims to hold some tokens, so that the model makes masks and positions for those after them.

    It has no content, since no layer reads it while a forward is recorded. Without a configuration all its layers count
    as full attention: those with a sliding window are called with all earlier keys, too.
    """
    from transformers import DynamicCache

    cache = DynamicCache()
    nothing = torch.zeros(rows, 1, tokens, 1)
    for layer in range(layers):
        cache.update(nothing, nothing, layer)
    return cache


class LayerCache:
    """Keys and values of earlier positions: replaces transformers' cache in calls of one layer.

    Args:
        keys: (batch, heads, tokens, head_size); None = nothing comes before.
        values: Of the same shape.
        each: How many rows of a call share each row of `keys` as their prefix.
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
