"""The costs of a model by part: MACs, counted by running it on meta tensors, parameters and bytes.

MACs are multiply-accumulates of one example's matrix products (`das_gym.models.macs`), as das_gym runs them: in the last
stage the token that is read is the only query. The papers of this field count every token there, and print the number as
"FLOPs": that is `counting="paper"`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from das_gym.config import check_names
from das_gym.models.base import VLP, State, bytes_of
from das_gym.models.macs import MacCounter, head_macs
from das_gym.problem.adaptation import own_parameters
from das_gym.problem.mask_cost import MaskCost

Mask = Sequence[bool] | np.ndarray

COUNTINGS = ("runs", "paper")


@dataclass(frozen=True, eq=False)
class Costs:
    """The costs of a model by part; arrays are (n_layers,) int64, in mask order.

    Parameters that a layer shares with another one, or with anything else, are the base's: they stay whatever is skipped.

    Attributes:
        base_macs: Encoders, embeddings and poolers: what runs under every mask.
        head_macs: The task's head.
        layer_macs: Each layer without adapters.
        parallel_macs: Each layer's parallel adapters.
        skip_macs: Each layer's skip adapter.
        base_parameters: As `base_macs`.
        base_trainable: Those of `base_parameters` that train: poolers, token types and the like.
        head_parameters: As `head_macs`; all of them train.
        layer_parameters: As `layer_macs`.
        parallel_parameters: As `parallel_macs`, LayerNorms included.
        skip_parameters: As `skip_macs`, LayerNorms included.
        kept_trainable: Parameters of each kept layer, adapters included, that train.
        skip_trainable: Those of each skip adapter.
        memory: Bytes of the weights under any mask, in the types in which they are loaded.
        base_added_macs: Those of `base_macs` that modules inserted into the encoders take, such as LoRA.
        base_added_parameters: Their parameters.
    """

    base_macs: int
    head_macs: int
    layer_macs: np.ndarray
    parallel_macs: np.ndarray
    skip_macs: np.ndarray
    base_parameters: int
    base_trainable: int
    head_parameters: int
    layer_parameters: np.ndarray
    parallel_parameters: np.ndarray
    skip_parameters: np.ndarray
    kept_trainable: np.ndarray
    skip_trainable: np.ndarray
    memory: MaskCost
    base_added_macs: int = 0
    base_added_parameters: int = 0

    @property
    def macs_full(self) -> int:
        """MACs of the pre-trained model and head: nothing skipped, no adapters. The baseline of every saving."""
        return self.base_macs - self.base_added_macs + self.head_macs + int(self.layer_macs.sum())

    @property
    def parameters_full(self) -> int:
        """Parameters of the pre-trained model and head: nothing skipped, no adapters."""
        base = self.base_parameters - self.base_added_parameters
        return base + self.head_parameters + int(self.layer_parameters.sum())

    @property
    def macs_cost(self) -> MaskCost:
        """MACs of any mask."""
        kept = self.layer_macs + self.parallel_macs
        full_model = self.base_macs + self.head_macs + int(kept.sum())
        return MaskCost(self.macs_full, full_model, kept - self.skip_macs, "macs_saved")

    @property
    def parameters_cost(self) -> MaskCost:
        """Parameters of any mask."""
        kept = self.layer_parameters + self.parallel_parameters
        full_model = self.base_parameters + self.head_parameters + int(kept.sum())
        return MaskCost(self.parameters_full, full_model, kept - self.skip_parameters, "parameters_saved")

    def macs(self, mask: Mask) -> int:
        """Return the MACs of the subnet with its adapters, under a (n_layers,) mask, True = skipped."""
        kept = self.layer_macs + self.parallel_macs
        return self.base_macs + self.head_macs + self._choose(mask, kept, self.skip_macs)

    def macs_saved(self, mask: Mask) -> float:
        """Return the share of `macs_full` that the subnet saves; negative if its adapters cost more than it skips."""
        return 1 - self.macs(mask) / self.macs_full

    def parameters(self, mask: Mask) -> int:
        """Return the number of parameters of the pruned subnet and its head."""
        kept = self.layer_parameters + self.parallel_parameters
        return self.base_parameters + self.head_parameters + self._choose(mask, kept, self.skip_parameters)

    def trainable_parameters(self, mask: Mask) -> int:
        """Return the number of trainable parameters among `parameters(mask)`."""
        return self.base_trainable + self.head_parameters + self._choose(mask, self.kept_trainable, self.skip_trainable)

    def _choose(self, mask: Mask, kept: np.ndarray, skipped: np.ndarray) -> int:
        array = np.asarray(mask, dtype=bool)
        if array.shape != kept.shape:
            raise ValueError(f"mask of shape {array.shape}: this model has {len(kept)} layers, give one bool each")
        return int(np.where(array, skipped, kept).sum())


def count_costs(
    vlp: VLP,
    batch: Mapping[str, Tensor] | tuple[State, int],
    head: nn.Module | None = None,
    group_features: Callable[[Tensor], Tensor] = lambda pooled: pooled,
    passes: int = 1,
    counting: str = "runs",
) -> Costs:
    """Return the costs of one example.

    Args:
        vlp: The model, pruned or not.
        batch: One row of what it reads (only shapes count, see `meta_batch`), or what `MacCounter.encode` gives of it.
        head: From features to logits; None counts none.
        group_features: From the pooled features of all passes to what the head reads of one example.
        passes: How often the model runs for an example.
        counting: `runs`: the last stage computes what is read; `paper`: it computes every token.

    Raises:
        ValueError: another way of counting.
        TypeError: a model whose MACs cannot be counted.
    """
    check_names([counting], COUNTINGS, "counting")
    with_adapters, bare = MacCounter(vlp), MacCounter(vlp, adapters=False)
    encoded, encoder_macs = batch if isinstance(batch, tuple) else with_adapters.encode(batch)
    state, embed_macs = with_adapters.embed(encoded)
    kept, plain, skip = (np.zeros(len(vlp.layers), dtype=np.int64) for _ in range(3))
    for stage, indices in enumerate(vlp.stages):
        pooled_only = counting == "runs" and stage == len(vlp.stages) - 1
        state, macs = vlp.enter(state, stage)
        embed_macs += macs
        hidden = dict(state.hidden)
        for index in indices:
            hidden[vlp.layers[index].stream], parts = with_adapters.run_layer(index, state, False, pooled_only)
            kept[index] = sum(parts.values())
            plain[index] = sum(bare.layer(index, state, False, pooled_only).values())
            skip[index] = sum(with_adapters.layer(index, state, True, pooled_only).values())
        state = state.with_hidden(hidden)
    features, pool_macs = with_adapters.pool(state)
    pooled = torch.cat([features] * passes)
    own_head = [] if head is None else list(own_parameters(vlp, head).values())
    return Costs(
        base_macs=passes * (encoder_macs + embed_macs + pool_macs),
        base_added_macs=0 if isinstance(batch, tuple) else passes * (encoder_macs - bare.encode(batch)[1]),
        head_macs=0 if head is None else head_macs(head, group_features(pooled)),
        layer_macs=passes * plain,
        parallel_macs=passes * (kept - plain),
        skip_macs=passes * skip,
        head_parameters=_count(own_head),
        memory=_memory(with_adapters.twin, bare.twin, own_head),
        **_parameters(with_adapters.twin, bare.twin),
    )


def _memory(twin: VLP, bare: VLP, head: Iterable[Tensor]) -> MaskCost:
    """Return the bytes of the weights under any mask."""

    def each(model: VLP, part: str) -> np.ndarray:
        return np.array([bytes_of(unit) for unit in _units(model, part)], dtype=np.int64)

    outside = bytes_of(list(head))
    full, unskipped = (
        bytes_of(list(model.parameters())) + outside - int(each(model, "skip_adapter").sum()) for model in (bare, twin)
    )
    return MaskCost(full, unskipped, each(twin, "layer") - each(twin, "skip_adapter"), "memory_saved")


def _parameters(twin: VLP, bare: VLP) -> dict[str, Any]:
    """Return the fields of `Costs` that count the model's parameters."""
    tunable = {id(p) for p in twin.tunable_state().values()}

    def each(model: VLP, part: str, chosen: set[int] | None = None) -> np.ndarray:
        return np.array([_count(unit, chosen) for unit in _units(model, part)], dtype=np.int64)

    plain, kept, skip = each(bare, "layer"), each(twin, "layer"), each(twin, "skip_adapter")
    bare_base = _count(bare.parameters()) - int((plain + each(bare, "skip_adapter")).sum())
    kept_trainable, skip_trainable = each(twin, "layer", tunable), each(twin, "skip_adapter", tunable)
    base = _count(twin.parameters()) - int((kept + skip).sum())
    return {
        "base_parameters": base,
        "base_added_parameters": base - bare_base,
        "base_trainable": _count(twin.parameters(), tunable) - int((kept_trainable + skip_trainable).sum()),
        "layer_parameters": plain,
        "parallel_parameters": kept - plain,
        "skip_parameters": skip,
        "kept_trainable": kept_trainable,
        "skip_trainable": skip_trainable,
    }


def _units(vlp: VLP, part: str) -> list[list[Tensor]]:
    """Return the parameters that go with each unit's `layer` or `skip_adapter`; shared ones stay."""
    units = [vlp.skippable(index) for index in range(len(vlp.layers))]
    parts = [list(own.modules()) for unit in units for own in (unit.layer, unit.skip_adapter) if own is not None]
    inside = {module for modules in parts for module in modules}
    others = ([module] for module in vlp.modules() if module not in inside)
    owners = Counter(
        owned
        for modules in (*parts, *others)
        for owned in {id(p) for module in modules for p in module._parameters.values() if p is not None}
    )
    return [[p for p in getattr(unit, part).parameters() if owners[id(p)] == 1] for unit in units]


def _count(parameters: Iterable[Tensor], chosen: set[int] | None = None) -> int:
    return sum(p.numel() for p in parameters if chosen is None or id(p) in chosen)
