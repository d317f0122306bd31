"""The costs of a model by part: MACs, counted by running it on meta tensors, parameters and bytes.

MACs are multiply-accumulates of one example's matrix products, as das_gym runs them: in the last stage the token that is
read is the only query. The papers of this field count every token there (`counting="paper"`), and call them "FLOPs".
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from das_gym.models.base import VLP, State, tensor_bytes
from das_gym.models.macs import MacCounter, head_macs
from das_gym.names import check_names
from das_gym.problem.adaptation import own_parameters
from das_gym.problem.budget import MaskCost

Mask = Sequence[bool] | np.ndarray

COUNTINGS = ("runs", "paper")


@dataclass(frozen=True, eq=False)
class Costs:
    """The costs of a model under any mask, and some of their parts; arrays are (n_layers,) int64, in mask order.

    Parameters that a layer shares with anything else stay whatever is skipped.

    Attributes:
        macs_cost, parameters_cost: MACs of an example; number of parameters.
        memory: Bytes of the weights, in the types in which they are loaded.
        base_macs: Encoders, embeddings and poolers: what runs under every mask.
        layer_macs, parallel_macs, skip_macs: Each layer without adapters, its parallel adapters, its skip adapter.
        layer_parameters, parallel_parameters, skip_parameters: The same, LayerNorms of adapters included.
    """

    macs_cost: MaskCost
    parameters_cost: MaskCost
    memory: MaskCost
    base_macs: int
    layer_macs: np.ndarray
    parallel_macs: np.ndarray
    skip_macs: np.ndarray
    layer_parameters: np.ndarray
    parallel_parameters: np.ndarray
    skip_parameters: np.ndarray

    @property
    def macs_full(self) -> int:
        """MACs of the pre-trained model and head: nothing skipped, no adapters. The baseline of every saving."""
        return int(self.macs_cost.full)

    @property
    def parameters_full(self) -> int:
        """Parameters of the pre-trained model and head: nothing skipped, no adapters."""
        return int(self.parameters_cost.full)

    def macs(self, mask: Mask) -> int:
        """Return the MACs of the subnet with its adapters, under a (n_layers,) mask, True = skipped."""
        array = np.asarray(mask, dtype=bool)
        if array.shape != self.layer_macs.shape:
            raise ValueError(f"mask of shape {array.shape}: expected one bool for each of {len(self.layer_macs)} layers")
        return int(self.macs_cost.amounts(array[None])[0])

    def macs_saved(self, mask: Mask) -> float:
        """Return the share of `macs_full` that the subnet saves; negative if its adapters cost more than it skips."""
        return 1 - self.macs(mask) / self.macs_full


def count_costs(
    vlp: VLP,
    batch: Mapping[str, Tensor] | tuple[State, int],
    head: nn.Module | None = None,
    group_features: Callable[[Tensor], Tensor] = lambda pooled: pooled,
    passes: int = 1,
    counting: str = "runs",
    counter: MacCounter | None = None,
) -> Costs:
    """Return the costs of one example of a model, pruned or not, with a head, if there is one.

    `batch` is one row of what the model reads (only shapes count, see `meta_batch`), or what `MacCounter.encode` gives of
    it. `group_features` maps the pooled features of all `passes` of an example to what the head reads. With
    `counting="runs"`, the last stage computes what is read; with `paper`, every token. `counter` counts the MACs of this
    model; None makes one.
    """
    check_names([counting], COUNTINGS, "counting")
    with_adapters = counter or MacCounter(vlp)
    bare = MacCounter(vlp, adapters=False)
    encoded, encoder_macs = batch if isinstance(batch, tuple) else with_adapters.encode(batch)
    state, embed_macs = with_adapters.embed(encoded)
    kept, plain, skip = (np.zeros(len(vlp.layers), dtype=np.int64) for _ in range(3))
    for stage, indices in enumerate(vlp.stages):
        pooled_only = counting == "runs" and stage == len(vlp.stages) - 1
        state, macs = vlp.enter_stage(state, stage)
        embed_macs += macs
        hidden = dict(state.hidden)
        for index in indices:
            hidden[vlp.layers[index].stream], parts = with_adapters.run_layer(index, state, False, pooled_only)
            kept[index] = sum(parts.values())
            plain[index] = sum(bare.layer(index, state, False, pooled_only).values())
            skip[index] = sum(with_adapters.layer(index, state, True, pooled_only).values())
        state = state.with_hidden(hidden)
    features, pool_macs = with_adapters.pool(state)
    base = passes * (encoder_macs + embed_macs + pool_macs)
    # What modules that are inserted into the encoders take, such as LoRA, is no part of the baseline.
    added = 0 if isinstance(batch, tuple) else passes * (encoder_macs - bare.encode(batch)[1])
    outside = 0 if head is None else head_macs(head, group_features(torch.cat([features] * passes)))
    kept, plain, skip = passes * kept, passes * plain, passes * skip
    full = base - added + outside + int(plain.sum())
    total = MaskCost(full, base + outside + int(kept.sum()), kept - skip, "macs_saved")
    head_weights: list[Tensor] = [] if head is None else [*own_parameters(vlp, head).values()]
    twins = with_adapters.twin, bare.twin
    parameters, each_unit = _weight_cost(lambda some: sum(p.numel() for p in some), *twins, head_weights, "parameters_saved")
    memory, _ = _weight_cost(tensor_bytes, *twins, head_weights, "memory_saved")
    return Costs(total, parameters, memory, base, plain, kept - plain, skip, *each_unit)


def _weight_cost(
    measure: Callable[[list[Tensor]], int], twin: VLP, bare: VLP, head: list[Tensor], setting: str
) -> tuple[MaskCost, tuple[np.ndarray, ...]]:
    """Return what weights cost under any mask; and of each unit the layer, its parallel adapters and its skip adapter.

    `twin` is the model with its adapters, `bare` without; `measure` returns the number or the bytes of some parameters.
    """

    def each(model: VLP, part: str) -> np.ndarray:
        return np.array([measure(unit) for unit in _units(model, part)], dtype=np.int64)

    kept, plain, skip = each(twin, "layer"), each(bare, "layer"), each(twin, "skip_adapter")
    whole, whole_bare = (measure([*model.parameters()]) + measure(head) for model in (twin, bare))
    full = whole_bare - int(each(bare, "skip_adapter").sum())
    return MaskCost(full, whole - int(skip.sum()), kept - skip, setting), (plain, kept - plain, skip)


def _units(vlp: VLP, part: str) -> list[list[Tensor]]:
    units = [vlp.skippable_layer(index) for index in range(len(vlp.layers))]
    parts = [list(own.modules()) for unit in units for own in (unit.layer, unit.skip_adapter) if own is not None]
    inside = {module for modules in parts for module in modules}
    others = ([module] for module in vlp.modules() if module not in inside)
    # A parameter that a second module holds, such as tied embeddings, is needed whatever is skipped.
    owners = Counter(
        owned
        for modules in (*parts, *others)
        for owned in {id(p) for module in modules for p in module._parameters.values() if p is not None}
    )
    return [[p for p in getattr(unit, part).parameters() if owners[id(p)] == 1] for unit in units]
