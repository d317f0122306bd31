"""Masks as a prefix tree of stages: what masks share is computed once.

A walk down the tree holds

- the state before the first stage,
- of each stage the outputs of its layers, and what the layers of the next one keep of these in their memo,
- the inner activations of the layer at work, or at a leaf the logits and what losses and divergences make of them.

`WalkMemory` counts these bytes on torch's `meta` device, where nothing is computed. Layers run in a precision that the
hardware has: it is detected, never assumed.
"""

import copy
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from das_gym.engine.scores import Spending
from das_gym.models.base import VLP, State, tensor_bytes
from das_gym.models.macs import LAYER_PART, MacCounter

PRECISIONS = ("float32", "bfloat16", "auto")
"""The values of an `Evaluator`'s `precision`: the model's own, even float64; bfloat16, whose emulation would be tens of
times slower; or bfloat16 on hardware that has instructions for it, and else the model's own."""

CPU_FLAGS = ("amx_bf16", "avx512_bf16")

Trunk = Callable[[Any, Callable[[], Any]], Any]
"""`trunk(what, compute)` returns what `compute()` did the first time, if there was room for it."""

Known = Callable[[Any], Any]
"""`known(what)` returns what a trunk keeps; None = nothing."""

Watch = Callable[[int, State, Tensor], None]
"""`watch(index, state, output)` sees each layer of the full model: the state before its stage, and its output."""


def bfloat16_hardware(device: torch.device | str) -> str | None:
    """Return the bfloat16 instructions of this device (`avx512_bf16`, `cuda 8.0`, ...); None without any.

    A GPU has it from compute capability 8.0 on. A CPU has it if the processor has AMX or AVX-512 instructions for it
    and torch uses oneDNN, which calls them.
    """
    device = torch.device(device)
    if device.type == "cuda" and torch.version.hip is not None:
        return "rocm" if torch.cuda.is_bf16_supported() else None
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"cuda {major}.{minor}" if major >= 8 else None
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    flags = cpu_flags()
    return next((flag for flag in CPU_FLAGS if flag in flags), None)


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return those of `CPU_FLAGS` that this processor has; before torch 2.9, those that Linux lists in `cpuinfo`."""
    if hasattr(torch.cpu, "get_capabilities"):
        found = {flag for flag, has in torch.cpu.get_capabilities().items() if has}
    else:
        found = set(cpuinfo.read_text().split()) if cpuinfo.is_file() else set()
    return frozenset(found.intersection(CPU_FLAGS))


def resolve_precision(precision: str, device: torch.device | str) -> str:
    """Return `float32` or `bfloat16` for this device; ValueError if it lacks what is wanted."""
    if precision not in PRECISIONS:
        raise ValueError(f"unknown `precision`: got {precision!r}, expected one of {', '.join(PRECISIONS)}")
    hardware = bfloat16_hardware(device)
    if precision == "auto":
        return "float32" if hardware is None else "bfloat16"
    if precision == "bfloat16" and hardware is None:
        raise ValueError(
            f"`precision=bfloat16` needs instructions that this {torch.device(device).type} lacks: a CPU needs one of "
            f"{', '.join(CPU_FLAGS)}, a GPU compute capability 8.0. Use float32 or auto."
        )
    return precision


def with_bfloat16_layers(vlp: VLP) -> VLP:
    """Return a model whose layers multiply by bfloat16 copies of the matrices; it shares all other parameters with `vlp`."""
    shared: dict[int, Any] = {id(parameter): parameter for parameter in vlp.parameters()}
    twin = copy.deepcopy(vlp, shared)
    for index in range(len(twin.layers)):
        for part in twin.skippable_layer(index).modules():
            if isinstance(part, nn.Linear):
                part.weight = nn.Parameter(part.weight.detach().bfloat16(), requires_grad=False)
    return twin


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Return a context for matrix products in that (resolved) precision; sums and LayerNorms keep the model's own."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


class MaskTree:
    """Masks that agree on their first stages share a path from the root; a leaf is a distinct mask. Nothing is approximated.

    Within a stage each layer runs at most twice (kept, skipped) per parent state, the parts that layers pass to their memo
    run once per hidden state that they read, and in the last stage the pooled token is the only query.

    Args:
        masks: (m, n_layers) bool, True = skipped.
        spent: Counts runs and MACs, of which `counter` knows those of one run.
        precision: Of the layers; a result of `resolve_precision`.
        runner: Whose layers run: `vlp`, or its `with_bfloat16_layers`.
    """

    def __init__(
        self, vlp: VLP, masks: np.ndarray, spent: Spending, precision: str, runner: VLP, counter: MacCounter
    ) -> None:
        self.vlp = vlp
        self.masks = masks
        self.spent = spent
        self.precision = precision
        self.runner = runner
        self.counter = counter
        self._stages = vlp.stages
        self._device = vlp.device
        self._keep: Trunk | None = None
        self._watch: Watch | None = None
        self._front = [index for stage in self._stages[: vlp.front] for index in stage]

    def leaves(
        self, state: State, trunk: Trunk | None = None, known: Known | None = None, watch: Watch | None = None
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield the leaves depth first, so that memory grows with depth and not with the number of masks.

        Args:
            state: The state before stage 0.
            trunk: Keeps the outputs of layers of the full model, by index, and the states that `VLP.enter_stage` gives after
                `VLP.front` stages, by the bits of those.
            known: Looks those states up: masks whose first bits are known start after those stages.
            watch: Called for every layer of the full model; needs a trunk and nothing `known`.

        Yields:
            Rows of `masks` that are the same mask, and its pooled features; the full model, if included, comes first.
        """
        rows = np.arange(len(self.masks))
        self._keep = trunk
        self._watch = watch
        if not self._front or known is None:
            yield from self._below(state, 0, rows, {}, trunk)
            return
        front = self.masks[:, self._front]
        kept = {bits: entered for bits in set(map(_bits, front)) if (entered := known(bits)) is not None}
        rest = rows[[_bits(row) not in kept for row in front]]
        first = not front[rest].any(axis=1).all()  # the rest has the full model, which callers expect as the first leaf
        if len(rest) and first:
            yield from self._below(state, 0, rest, {}, trunk)
        for bits, entered in sorted(kept.items(), key=lambda item: item[0]):
            same = rows[[_bits(row) == bits for row in front]]
            yield from self._run_children(entered, self.vlp.front, same, {}, None if any(bits) else trunk)
        if len(rest) and not first:
            yield from self._below(state, 0, rest, {}, trunk)

    def _below(
        self, state: State, stage: int, rows: np.ndarray, memory: dict[tuple, Any], trunk: Trunk | None
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield the leaves below `state`, which all masks in `rows` have before `stage`.

        `memory` is shared by states with the same parent, which have hidden tensors in common. Its keys hold ids of those,
        so what was computed from a tensor is dropped with it. `trunk` is None once something was skipped.
        """
        if stage < len(self._stages):
            state, macs = self.vlp.enter_stage(state, stage)
            self.spent.macs += macs
            if self._front and stage == self.vlp.front and self._keep is not None:
                entered = state
                self._keep(_bits(self.masks[rows[0]][self._front]), lambda: entered)
        yield from self._run_children(state, stage, rows, memory, trunk)

    def _run_children(
        self, state: State, stage: int, rows: np.ndarray, memory: dict[tuple, Any], trunk: Trunk | None
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        if stage == len(self._stages):
            features = self.vlp.pool(state)
            self.spent.macs += self.counter.pool(state)[1]
            yield rows, features
            return
        layers = stage_order(self.vlp, stage, state)
        outputs: dict[tuple[int, bool], Tensor] = {}
        below: dict[tuple, Any] = {}
        bits = self.masks[rows][:, layers]
        choices = np.unique(bits, axis=0)
        for number, choice in enumerate(choices):
            hidden = dict(state.hidden)
            for index, skipped in zip(layers, choice.tolist(), strict=True):
                if (index, skipped) not in outputs:
                    outputs[index, skipped] = self._run(index, state, skipped, memory, trunk)
                hidden[self.vlp.layers[index].stream] = outputs[index, skipped]
            same = rows[(bits == choice).all(axis=1)]
            yield from self._below(state.with_hidden(hidden), stage + 1, same, below, None if choice.any() else trunk)
            needed = {key for later in choices[number + 1 :] for key in zip(layers, later.tolist(), strict=True)}
            for key in outputs.keys() - needed:
                # A freed tensor's id can be given to a new one: entries made from it must go at the same time.
                dead = id(outputs.pop(key))
                for entry in [entry for entry in below if dead in entry[2:]]:
                    del below[entry]

    def _run(self, index: int, state: State, skipped: bool, memory: dict[tuple, Any], trunk: Trunk | None = None) -> Tensor:
        if trunk is not None and not skipped:
            output: Tensor = trunk(index, lambda: self._run(index, state, skipped, memory))
            if self._watch is not None:
                self._watch(index, state, output)
            return output
        ran = {LAYER_PART}  # parts that an earlier state computed are found in `memory`, and cost nothing here

        def memo(key: tuple, compute: Callable[[], Any]) -> Any:
            if key not in memory:
                memory[key] = compute()
                ran.add(key[1])
            return memory[key]

        last = self.vlp.layers[index].stage == len(self._stages) - 1
        # Only the layer runs in bfloat16: the state between layers stays in the model's own type, so errors do not add up.
        with autocast(self.precision, self._device):
            hidden = self.runner.run_layer(index, state, skipped, memo, pooled_only=last)
        parts = self.counter.layer(index, state, skipped, pooled_only=last)
        macs = sum(count for part, count in parts.items() if part in ran)
        self.spent.macs += macs
        self.spent.layer_runs += not skipped
        self.spent.adapter_runs += skipped and macs > 0
        return hidden


def stage_order(vlp: VLP, stage: int, state: State) -> list[int]:
    """Return the layers of a stage in the order in which a walk chooses their bits.

    Choices are sorted by the first layer, so that the longest stream changes least often: one output of it is held at a
    time, while both outputs of shorter streams are kept and used again.
    """
    return sorted(vlp.stages[stage], key=lambda index: -state.hidden[vlp.layers[index].stream].shape[1])


def _bits(row: np.ndarray) -> tuple[bool, ...]:
    return tuple(row.tolist())


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
    """Bytes of tensors in one run of a layer.

    Attributes:
        output: The layer's result.
        shared: What it puts into its memo, by the streams from which each entry is computed.
        inner: The peak of all other tensors.
    """

    output: int
    shared: Mapping[frozenset[str], int]
    inner: int


@dataclass
class WalkMemory:
    """Counts the bytes of a walk over any masks, weights and encoder outputs aside."""

    vlp: VLP
    counter: MacCounter
    _found: dict[Any, LayerBytes] = field(default_factory=dict)

    def bytes(self, encoded: State, logits: Callable[[Tensor], Tensor]) -> int:
        """Return the most bytes that a walk holds for some examples, by the shapes of their encoder outputs.

        `logits` maps pooled features to the logits of the head, on `meta`.
        """
        state = self.counter.embed(encoded)[0]
        held = tensor_bytes(state)
        inner = 0
        variants = dict.fromkeys(state.hidden, 1)  # how many tensors of a stream exist at a time
        for stage in range(len(self.vlp.stages)):
            entered, _ = self.vlp.enter_stage(state, stage)
            if entered is not state:
                held += tensor_bytes(entered)
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
        shapes = tuple(tuple(tensor.shape) for tensor in state.hidden.values())
        key = self.counter.cost_key(index), skipped, self._is_last(index), shapes
        if key not in self._found:
            self._found[key] = self._count(index, self.counter.strip_content(state), skipped)
        return self._found[key]

    def _count(self, index: int, state: State, skipped: bool) -> LayerBytes:
        streams = {id(tensor): stream for stream, tensor in state.hidden.items()}
        shared: dict[frozenset[str], int] = {}
        results = []

        def memo(key: tuple, compute: Callable[[], Any]) -> Any:
            result = compute()
            read = frozenset(streams[tensor] for tensor in key[2:])
            shared[read] = shared.get(read, 0) + tensor_bytes(result)
            results.append(result)
            return result

        with torch.no_grad(), FusedAttention(), LiveBytes() as live:
            output = self.counter.twin.run_layer(index, state, skipped, memo, pooled_only=self._is_last(index))
        return LayerBytes(tensor_bytes(output), shared, live.peak - tensor_bytes([output, results]))


def _leaf_bytes(logits: Tensor) -> int:
    # in float64: both log-softmaxes, their difference, the probabilities, and their product with it
    doubles = 5 if logits.dtype == torch.float64 else 7  # and both logits, unless they are
    return 2 * tensor_bytes(logits) + doubles * 8 * logits.numel()


def saved_bytes(forward: Callable[[], object], parameters: Iterable[Tensor]) -> int:
    """Return how many bytes a forward pass keeps for the backward pass, without those of parameters."""
    known = {p.untyped_storage()._cdata for p in parameters}
    saved: dict[int, tuple[Any, int]] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            saved[storage._cdata] = storage, storage.nbytes()  # held, so that no other storage gets its address
        return tensor.detach()  # an output that its own graph holds would never be released

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        kept = forward()  # noqa: F841 - the graph lives as long as its output
    return sum(size for _, size in saved.values())
