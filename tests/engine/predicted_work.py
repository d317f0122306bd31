"""What scoring masks must cost, worked out from the masks alone: to be compared with what the engine counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from das_gym.models.base import VLP, State
from das_gym.models.macs import OWN, MacCounter


@dataclass(frozen=True)
class Prediction:
    """Of one batch, without encoders.

    Attributes:
        layer_runs: Runs of kept layers.
        macs: Multiply-accumulates.
    """

    layer_runs: int
    macs: int


def predict(vlp: VLP, head: nn.Module, masks: np.ndarray, state: State) -> Prediction:
    """Count distinct pieces of work, where the engine walks a tree.

    A part of a layer is the same work for two masks if they agree on the layer, on all stages but the last one before it,
    and, of that one, on the layers whose streams the part reads.

    Args:
        vlp: The model; its layers keep the length of their streams.
        head: Made of linear layers, each of which runs once a row.
        masks: (m, n_layers) bool, distinct.
        state: The state before stage 0; only its shapes count.
    """
    layer_runs, macs, counter = 0, 0, MacCounter(vlp)
    for number, stage in enumerate(vlp.stages):
        before = vlp.stages[number - 1] if number else ()
        earlier = [index for other in vlp.stages[: max(number - 1, 0)] for index in other]
        last = number == len(vlp.stages) - 1
        for index in stage:
            layer_runs += len(np.unique(masks[~masks[:, index]][:, [*earlier, *before]], axis=0))
            for skipped in (False, True):
                chosen = masks[masks[:, index] == skipped]
                for part, cost in counter.layer(index, state, skipped, pooled_only=last).items():
                    read = [i for i in before if _reads(vlp, part, index, i)]
                    macs += cost * len(np.unique(chosen[:, [*earlier, *read]], axis=0))
    rows = len(next(iter(state.hidden.values())))
    linear = sum(layer.in_features * layer.out_features for layer in head.modules() if isinstance(layer, nn.Linear))
    return Prediction(layer_runs, macs + len(masks) * (counter.pool(state)[1] + rows * linear))


def _reads(vlp: VLP, part: str, index: int, before: int) -> bool:
    """Whether a part of layer `index` reads the stream of layer `before`: "cross" is keys and values of the other stream."""
    same = vlp.layers[index].stream == vlp.layers[before].stream
    return part == OWN or same != (part == "cross")
