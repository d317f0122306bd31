"""Count the MACs of a model's parts by running a copy without content, once a shape; equal layers are counted once.

The copy lies on torch's `meta` device, where nothing is computed. torch's `FlopCounterMode` counts its matrix products,
attention's included, but not biases, LayerNorms, softmax and activations: also those of whatever is inserted into a layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from das_gym.models.adapters import Adapter, NoAdapter, SkipAdapter

if TYPE_CHECKING:
    from das_gym.models.base import VLP, State

LAYER_PART = "own"
"""Name of the part of a layer that every run computes; other parts have the names that the layer gives its memo."""

Module = TypeVar("Module", bound=nn.Module)
Result = TypeVar("Result")


def share_copy(module: Module) -> Module:
    """Return a copy that shares every parameter and buffer with the module, and nothing else."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)


def meta_twin(module: Module) -> Module:
    """Return a copy on the meta device: parameters and buffers with shapes, without values."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad) for p in module.parameters()
    }
    memo |= {id(buffer): torch.empty_like(buffer, device="meta") for buffer in module.buffers()}
    twin = copy.deepcopy(module, memo)
    if any(hasattr(part, "_hf_hook") for part in module.modules()):  # of `device_map`: they move inputs to real devices
        from accelerate.hooks import remove_hook_from_module

        remove_hook_from_module(twin, recurse=True)
    return twin


@contextmanager
def without_content() -> Iterator[None]:
    """Create modules on the meta device: with shapes, but without values and memory; no random number is drawn."""
    import torch._dynamo  # models import it, and in torch 2.6 the import computes, which fails on the meta device

    with torch.device("meta"):
        yield


def without_adapters(module: Module) -> Module:
    """Remove the parallel adapters of a module in place, and what peft put around its layers (LoRA and the like)."""
    for part in list(module.modules()):
        for name, child in part.named_children():
            if isinstance(child, Adapter) and not isinstance(child, SkipAdapter):
                setattr(part, name, NoAdapter())
            elif isinstance(getattr(child, "base_layer", None), nn.Module):
                inner: Any = child
                while isinstance(getattr(inner, "base_layer", None), nn.Module):
                    inner = inner.base_layer
                setattr(part, name, inner)
    return module


def structure_key(module: nn.Module) -> Hashable:
    """Return a key that modules with the same cost share: classes, settings, and shapes of parameters, part by part."""
    parts = []
    for name, part in module.named_modules():
        settings = [(key, value) for key, value in vars(part).items() if isinstance(value, (int, float, str))]
        settings = sorted(item for item in settings if item[0] != "layer_idx")  # transformers numbers its layers
        shapes = [(key, tuple(parameter.shape)) for key, parameter in part.named_parameters(recurse=False)]
        parts.append((name, type(part), tuple(settings), tuple(shapes)))
    return tuple(parts)


def count_macs(function: Callable[[], Result]) -> tuple[Result, int]:
    """Call a function, and return its result and the MACs of its matrix products."""
    # The math kernel of attention consists of plain products, which are counted alike on every device, `meta` among them.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = function()
    return result, counter.get_total_flops() // 2  # torch counts a multiply-accumulate as two operations


def head_macs(head: nn.Module, features: Tensor) -> int:
    """Return the MACs of a head that reads features of that shape."""
    return count_macs(lambda: meta_twin(head)(torch.empty_like(features, device="meta")))[1]


class MacCounter:
    """Counts the MACs of the parts of one model, with or without parallel adapters, once for each shape.

    Layers that `prune` removed can be counted as well.
    """

    def __init__(self, vlp: VLP, adapters: bool = True) -> None:
        self.twin = meta_twin(vlp)
        self.twin.put_back()
        if not adapters:
            without_adapters(self.twin)
        self.twin.eval()
        self.twin.count_without_content()
        # By what ran and at which shapes; results are kept with their counts, since the next part needs their shapes.
        self._found: dict[tuple, Any] = {}
        self._alike: dict[int, Hashable] = {}
        self._constant: tuple[Any, Any, tuple] | None = None
        self._bare: tuple[Any, Any, Any] | None = None

    def encoder(self, stream: str, batch: Mapping[str, Tensor]) -> int:
        """Return the MACs of `text_stream` or `image_stream` (`stream` is `text` or `image`) on a batch."""
        return self._once(("encode", stream), batch, getattr(self.twin, f"{stream}_stream"))[1]

    def encode(self, batch: Mapping[str, Tensor]) -> tuple[State, int]:
        """Return the encoder outputs of a batch, without content, and their MACs."""
        return self._once(("encode", ""), batch, self.twin.encode)

    def embed(self, encoded: State) -> tuple[State, int]:
        """Return the state before stage 0, without content, and the MACs of `embed`."""
        return self._once(("embed",), encoded, self.twin.embed)

    def pool(self, state: State) -> tuple[Tensor, int]:
        """Return the pooled features of a state, without content, and the MACs of `pool`."""
        return self._once(("pool",), state, self.twin.pool)

    def layer(self, index: int, state: State, skipped: bool, pooled_only: bool) -> dict[str, int]:
        """Return the MACs of one run of a layer, part by part; only the shapes of the state before its stage matter.

        `LAYER_PART` is what every run computes. Parts that runs share have the second entry of their memo key as name.
        """
        return self.run_layer(index, state, skipped, pooled_only)[1]

    def run_layer(self, index: int, state: State, skipped: bool, pooled_only: bool) -> tuple[Tensor, dict[str, int]]:
        """Return the layer's output, without content, and what `layer` returns."""
        key = ("layer", self.cost_key(index), skipped, pooled_only, *self._key_of(state))
        if key in self._found:
            return self._found[key]
        without = self.strip_content(state)
        parts = dict[str, int]()

        def memo(memo_key: tuple, compute: Callable[[], Any]) -> Any:
            result, macs = count_macs(compute)
            parts[memo_key[1]] = parts.get(memo_key[1], 0) + macs
            return result

        hidden, total = count_macs(lambda: self.twin.run_layer(index, without, skipped, memo, pooled_only))
        self._found[key] = hidden, {LAYER_PART: total - sum(parts.values()), **parts}
        return self._found[key]

    def cost_key(self, index: int) -> Hashable:
        """Return a key that layers of equal cost share; see `VLP.cost_key`."""
        if index not in self._alike:
            self._alike[index] = self.twin.cost_key(index)
        return self._alike[index]

    def _once(self, what: tuple, given: Any, function: Callable[[Any], Any]) -> tuple[Any, int]:
        key = (*what, *self._key_of(given))
        if key not in self._found:
            try:
                without = self.strip_content(given)
                self._found[key] = count_macs(lambda: function(without))
            except (NotImplementedError, RuntimeError) as error:
                raise TypeError(
                    f"cannot count MACs: `{what[0]}` of a {type(self.twin).__name__} reads the values of tensors, which "
                    f"have none on the meta device ({error}). Avoid that where a tensor's `is_meta` is true"
                ) from error
        return self._found[key]

    def _key_of(self, given: Any) -> tuple:
        """Return a key for batches or states of equal cost; `extras`, thousands of tensors, are read once a batch."""
        if isinstance(given, Mapping):
            return _shape_key(given)
        if self._constant is None or self._constant[0] is not given.extras or self._constant[1] is not given.attend:
            self._constant = given.extras, given.attend, _shape_key({"attend": given.attend, "extras": given.extras})
        return _shape_key(given.hidden), self._constant[2]

    def strip_content(self, given: Any) -> Any:
        """Return a batch or state without content, of the model's own floating point type."""
        # `extras` once a batch, as in `_key_of`
        dtype = next(self.twin.parameters()).dtype
        made = dict[int, Tensor]()

        def bare(tensor: Tensor) -> Tensor:
            kind = dtype if tensor.is_floating_point() else tensor.dtype
            if id(tensor) not in made:  # all layers are called with the same tensors
                made[id(tensor)] = torch.empty(tensor.shape, dtype=kind, device="meta")
            return made[id(tensor)]

        if isinstance(given, Mapping):
            return _mapped(given, bare)
        if self._bare is None or self._bare[0] is not given.extras or self._bare[1] is not given.attend:
            self._bare = given.extras, given.attend, _mapped({"attend": given.attend, "extras": given.extras}, bare)
        return type(given)(hidden=_mapped(given.hidden, bare), **self._bare[2])


def _shape_key(given: Mapping[str, Any]) -> tuple:
    """Return the shapes of tensors, and other values unchanged, or their types if they have no hash."""
    tree = {name: dict(part) if isinstance(part, Mapping) else part for name, part in given.items()}
    leaves = tree_leaves(tree)
    return tuple(tuple(x.shape) if isinstance(x, Tensor) else x if isinstance(x, Hashable) else type(x) for x in leaves)


def _mapped(given: Mapping[str, Any], change: Callable[[Tensor], Tensor]) -> Any:
    tree = {name: dict(part) if isinstance(part, Mapping) else part for name, part in given.items()}
    return tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, tree)
