"""Distances between input and output of blocks of consecutive layers, measured in one run of the full model.

A block is a run of layers of one stream: its input is the input of its first layer, its output that of its last one.
`das_gym.problem.statistics` has the same for single layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from das_gym.engine.evaluator import Evaluator
from das_gym.problem.statistic_inputs import check_layer

TOKEN_BLOCKS = 3
"""Blocks of at most 3 layers are also compared token by token; for longer ones only the pooled token is kept."""

Distances = list[list[float | None]]


@torch.inference_mode()
def measure_blocks(evaluator: Evaluator, examples: Sequence[Any]) -> dict[str, Any]:
    """Return the distance between input and output of every block, averaged over the examples' rows, in plain JSON values.

    Returns:
        `stages`: the layers of each stage. `streams`: the stream of each layer. `angular`: a row a layer, whose entry
        m - 1 is arccos(cos(input, output)) / pi at the pooled token (`VLP.pooled_tokens`) of the block of m layers that
        begins there, 0..1, None where the stream has no m layers left. `cosine`: the same with 1 - cos(input, output) over
        real tokens, 0..2, for m up to 3.
    """
    vlp = evaluator.vlp
    chains: dict[str, list[int]] = {}  # the layers of each stream, in the order in which they run
    for stage in vlp.stages:
        for index in stage:
            chains.setdefault(vlp.layers[index].stream, []).append(index)
    angular = {name: np.zeros((len(chain), len(chain))) for name, chain in chains.items()}
    cosine = {name: np.zeros((len(chain), TOKEN_BLOCKS)) for name, chain in chains.items()}
    counts = dict.fromkeys(chains, 0)  # an example of retrieval is many rows
    for start in range(0, len(examples), evaluator.batch_size):
        chunk = examples[start : start + evaluator.batch_size]
        state = vlp.embed(evaluator.encoder(evaluator.task.pairs(chunk)))
        walks = {name: _Walk(angular[name], cosine[name]) for name in chains}
        for number, stage in enumerate(vlp.stages):
            state, _ = vlp.enter(state, number)
            outputs = {vlp.layers[index].stream: vlp.run_layer(index, state, skipped=False) for index in stage}
            for name, output in outputs.items():
                rows, attend = vlp.rows_of(state, name, state.hidden[name])
                real = torch.ones(rows.shape[:2]) if attend is None else attend[:, 0, -1]
                pooled = vlp.pooled_tokens(state, name)
                walks[name].step(rows, vlp.rows_of(state, name, output)[0], real.to(rows.device).double(), pooled)
                check_layer(vlp, chains[name][len(walks[name].pooled) - 1], cosine[name], chunk)
            state = state.with_hidden({**state.hidden, **outputs})
        for name, walk in walks.items():
            counts[name] += len(walk.pooled[0])
    return {
        "stages": [list(stage) for stage in vlp.stages],
        "streams": [layer.stream for layer in vlp.layers],
        "angular": _by_layer(chains, {name: total / counts[name] for name, total in angular.items()}),
        "cosine": _by_layer(chains, {name: total / counts[name] for name, total in cosine.items()}),
    }


class _Walk:
    """One batch along one stream: adds every block that ends at a layer to sums by first layer and length."""

    def __init__(self, angular: np.ndarray, cosine: np.ndarray) -> None:
        self.angular, self.cosine = angular, cosine
        self.pooled: list[Tensor] = []  # what each layer so far has read
        self.rows: list[Tensor] = []  # the same, whole, of the last few

    def step(self, before: Tensor, after: Tensor, real: Tensor, pooled: Tensor) -> None:
        """Add a layer: (rows, tokens, hidden_size) before and after it, (rows, tokens) 1.0 = no padding, (rows,) pooled."""
        place = torch.arange(len(before), device=before.device)
        self.pooled.append(before[place, pooled].double())
        self.rows = [*self.rows, before][-TOKEN_BLOCKS:]
        output, last = after[place, pooled].double(), len(self.pooled) - 1
        for first, read in enumerate(self.pooled):
            cos = torch.cosine_similarity(read, output, dim=-1).clamp(-1, 1)
            self.angular[first, last - first] += float(torch.arccos(cos).sum()) / np.pi
        tokens = real.sum(dim=1).clamp_min(1)  # a prompt without images has none in the vision tower
        for length, read in enumerate(reversed(self.rows), start=1):
            apart = 1 - torch.cosine_similarity(read.double(), after.double(), dim=-1)
            self.cosine[last - length + 1, length - 1] += float(((apart * real).sum(dim=1) / tokens).sum())


def _by_layer(chains: dict[str, list[int]], means: dict[str, np.ndarray]) -> Distances:
    """Return rows in mask order; None for blocks that would end beyond the stream. Rounded for readable records."""
    rows: dict[int, list[float | None]] = {}
    for name, chain in chains.items():
        for place, layer in enumerate(chain):
            left = len(chain) - place
            row = means[name][place]
            rows[layer] = [round(float(value), 9) if number < left else None for number, value in enumerate(row)]
    return [rows[layer] for layer in sorted(rows)]
