"""Distances between input and output of blocks of consecutive layers, measured in one run of the full model.

A block is a run of layers of one stream: its input is the input of its first layer, its output that of its last one.
`das_gym.problem.statistics` has the same for single layers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from das_gym.engine.evaluator import Evaluator
from das_gym.problem.statistic_inputs import check_layer

TOKEN_BLOCKS = 3
"""Blocks of at most 3 layers are also compared token by token; for longer ones only the pooled token is kept."""


@torch.inference_mode()
def measure_blocks(evaluator: Evaluator, examples: Sequence[Any]) -> dict[str, Any]:
    """Return the distance between input and output of every block, averaged over the examples' rows, in plain JSON values.

    Returns:
        `stages`: the layers of each stage. `streams`: the stream of each layer. `angular`: a row a layer, whose entry
        m - 1 is arccos(cos(input, output)) / pi at the pooled token (`VLP.pooled_tokens`) of the block of m layers that
        begins there, 0..1, None where the stream has no m layers left. `cosine`: the same with 1 - cos(input, output) over
        real tokens, 0..2, for m up to 3.
    """
    vlp, count = evaluator.vlp, len(evaluator.vlp.layers)
    sums = {"angular": np.zeros((count, count)), "cosine": np.zeros((count, TOKEN_BLOCKS))}
    counts = np.zeros(count)  # an example of retrieval is many rows
    for start in range(0, len(examples), evaluator.batch_size):
        chunk = examples[start : start + evaluator.batch_size]
        state = vlp.embed(evaluator.encoder(evaluator.task.pairs(chunk)))
        chains: dict[str, list[int]] = defaultdict(list)  # the layers of each stream so far
        pooled: dict[str, list[Tensor]] = defaultdict(list)  # what each of them has read at the pooled token
        whole: dict[str, list[Tensor]] = defaultdict(list)  # and at every token, the last few
        for number, stage in enumerate(vlp.stages):
            state, _ = vlp.enter_stage(state, number)
            outputs = {vlp.layers[index].stream: vlp.run_layer(index, state, skipped=False) for index in stage}
            for index in stage:
                stream = vlp.layers[index].stream
                before, attend = vlp.rows_of(state, stream, state.hidden[stream])
                after, _ = vlp.rows_of(state, stream, outputs[stream])
                place = torch.arange(len(before), device=before.device), vlp.pooled_tokens(state, stream)
                chains[stream].append(index)
                pooled[stream].append(before[place].double())
                whole[stream] = [*whole[stream], before][-TOKEN_BLOCKS:]
                for length, (first, read) in enumerate(zip(chains[stream][::-1], pooled[stream][::-1], strict=True)):
                    cos = torch.cosine_similarity(read, after[place].double(), dim=-1).clamp(-1, 1)
                    sums["angular"][first, length] += float(torch.arccos(cos).sum()) / np.pi
                real = torch.ones(before.shape[:2]) if attend is None else attend[:, 0, -1]
                real = real.to(before.device).double()
                tokens = real.sum(dim=1).clamp_min(1)  # a prompt without images has none in the vision tower
                for length, (first, read) in enumerate(zip(chains[stream][::-1], whole[stream][::-1], strict=False)):
                    apart = 1 - torch.cosine_similarity(read.double(), after.double(), dim=-1)
                    sums["cosine"][first, length] += float(((apart * real).sum(dim=1) / tokens).sum())
                    check_layer(vlp, index, sums["cosine"][first], chunk)
                counts[index] += len(before)
            state = state.with_hidden({**state.hidden, **outputs})
    record: dict[str, Any] = {
        "stages": [list(stage) for stage in vlp.stages],
        "streams": [layer.stream for layer in vlp.layers],
        "angular": [],
        "cosine": [],
    }
    for index in range(count):
        chain = chains[vlp.layers[index].stream]
        left = len(chain) - chain.index(index)  # layers of the stream from here on
        for name, size in (("angular", len(chain)), ("cosine", TOKEN_BLOCKS)):
            row = (sums[name][index, :size] / counts[index]).round(9).tolist()  # rounded for readable records
            record[name].append([value if number < left else None for number, value in enumerate(row)])
    return record
