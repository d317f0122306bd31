"""How much memory a walk down the tree of masks holds: counted on torch's `meta` device, where nothing is computed.

A walk (`das_gym.engine.tree`) holds

- the state before the first stage,
- of each stage the outputs of its layers, and what the layers of the next one keep of these in their memo,
- the inner activations of the layer at work, or at a leaf the logits and what losses and divergences make of them.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from das_gym.engine.tree import stage_order
from das_gym.models.base import VLP, State, bytes_of
from das_gym.models.macs import MacCounter


class LiveBytes(TorchDispatchMode):
    """Adds up the sizes of all tensors that are made in a block and still exist; `peak` is the largest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._total = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        read = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            key = storage._cdata  # on `meta`, storages have a size and no address
            if key not in read and key not in self._sizes:  # no view of a parameter, or of another tensor that is counted
                self._sizes[key] = storage.nbytes()
                self._total += storage.nbytes()
                self.peak = max(self.peak, self._total)
                weakref.finalize(storage, self._remove, key)
        return result

    def _remove(self, key: int) -> None:
        self._total -= self._sizes.pop(key)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class FusedAttention(TorchFunctionMode):
    """Replaces attention by an empty result: kernels for CPUs and GPUs keep no scores, but torch's code for `meta` does."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not nn.functional.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        query, _, value = args[:3]
        batch, heads, tokens, _ = query.shape
        return query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)


class LayerBytes(NamedTuple):
    """Bytes of one run of a layer.

    Attributes:
        output: Its result.
        shared: What it gives its memo, by the streams that each part reads.
        inner: The most that it holds besides those two.
    """

    output: int
    shared: Mapping[frozenset[str], int]
    inner: int


@dataclass
class WalkMemory:
    """Counts the bytes of a walk over any masks, weights and encoder outputs aside.

    Args:
        vlp: The model.
        counter: Has its copy on `meta`.
    """

    vlp: VLP
    counter: MacCounter
    _found: dict[Any, LayerBytes] = field(default_factory=dict)

    def bytes(self, encoded: State, logits: Callable[[Tensor], Tensor]) -> int:
        """Return the most bytes that a walk holds for some examples.

        Args:
            encoded: Encoder outputs of the examples; only shapes count.
            logits: From pooled features to the logits of the head, on `meta`.
        """
        state = self.counter.embed(encoded)[0]
        held = bytes_of(state)
        inner = 0
        variants = dict.fromkeys(state.hidden, 1)  # how many tensors of a stream exist at a time
        for stage in range(len(self.vlp.stages)):
            entered, _ = self.vlp.enter_stage(state, stage)
            if entered is not state:
                held += bytes_of(entered)
                variants = dict.fromkeys(entered.hidden, 1)
            layers = stage_order(self.vlp, stage, entered)
            hidden = dict(entered.hidden)
            below = dict(variants)
            for index in layers:
                stream = self.vlp.layers[index].stream
                below[stream] = 1 if index == layers[0] else 2
                runs = [self._layer(index, entered, skipped) for skipped in (False, True)]
                held += below[stream] * max(run.output for run in runs)
                # as many results of a part exist as variants of the streams that it reads
                shared = (each for run in runs for each in run.shared.items())
                held += sum(math.prod(variants[name] for name in read) * size for read, size in shared)
                inner = max(inner, *(run.inner for run in runs))
                hidden[stream] = self.counter.run_layer(index, entered, False, self._is_last(index))[0]
            state = entered.with_hidden(hidden)
            variants = below
        return held + max(inner, _leaf_bytes(logits(self.counter.pool(state)[0])))

    def _is_last(self, index: int) -> bool:
        return self.vlp.layers[index].stage == len(self.vlp.stages) - 1

    def _layer(self, index: int, state: State, skipped: bool) -> LayerBytes:
        """Return the bytes of a run of a layer, which are counted once for equal layers and shapes."""
        shapes = tuple(tuple(tensor.shape) for tensor in state.hidden.values())
        key = self.counter.cost_key(index), skipped, self._is_last(index), shapes
        if key not in self._found:
            self._found[key] = self._count(index, self.counter.without_content(state), skipped)
        return self._found[key]

    def _count(self, index: int, state: State, skipped: bool) -> LayerBytes:
        streams = {id(tensor): stream for stream, tensor in state.hidden.items()}
        shared: dict[frozenset[str], int] = {}
        results = []

        def memo(key: tuple, compute: Callable[[], Any]) -> Any:
            result = compute()
            read = frozenset(streams[tensor] for tensor in key[2:])
            shared[read] = shared.get(read, 0) + bytes_of(result)
            results.append(result)
            return result

        with torch.no_grad(), FusedAttention(), LiveBytes() as live:
            output = self.counter.twin.run_layer(index, state, skipped, memo, pooled_only=self._is_last(index))
        return LayerBytes(bytes_of(output), shared, live.peak - bytes_of([output, results]))


def _leaf_bytes(logits: Tensor) -> int:
    """Return the tensors of a leaf: logits of the mask and of the full model, and those that `Task.divergences` computes."""
    # in float64: both log-softmaxes, their difference, the probabilities, and their product with it
    doubles = 5 if logits.dtype == torch.float64 else 7  # and both logits, unless they are
    return 2 * bytes_of(logits) + doubles * 8 * logits.numel()


def saved_bytes(forward: Callable[[], object], parameters: Iterable[Tensor]) -> int:
    """Return how many bytes a forward pass keeps for the backward pass, without those of parameters.

    Works on the `meta` device too, where storages have a size and no address.
    """
    known = {p.untyped_storage()._cdata for p in parameters}
    saved: dict[int, tuple[Any, int]] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            saved[storage._cdata] = storage, storage.nbytes()  # held, so that no other storage gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        kept = forward()  # noqa: F841 - the graph lives as long as its output
    return sum(size for _, size in saved.values())
