"""What a walk down the tree of masks holds, as counted without computing, against the allocations of real walks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from das_gym.engine.evaluator import Evaluator
from das_gym.engine.tree import LiveBytes, WalkMemory
from das_gym.models.macs import meta_twin


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most memory of a call above what there was before, by torch's allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    changes = [event.nbytes() for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    return int(np.cumsum(changes).max())


def walk_bytes(evaluator: Evaluator, examples: Any) -> int:
    """What the engine counts for a walk over these examples."""
    head = meta_twin(evaluator.head)

    def logits(features: Tensor) -> Tensor:
        return head(evaluator.task.group_features(features))

    encoded = evaluator.encoder_cache(evaluator.task.pairs(examples))
    return WalkMemory(evaluator.vlp, evaluator.counter).bytes(encoded, logits)


def check_peak(evaluator: Evaluator, examples: Any) -> None:
    """The real peak is at most what is counted, up to 1 % for targets and buffers of kernels, and not far below."""
    masks = np.random.default_rng(0).random((60, len(evaluator.vlp.layers))) < 0.5
    counted = walk_bytes(evaluator, examples)
    evaluator.losses(masks[:1], examples)  # encoder outputs are no part of it, nor is what a first call makes
    evaluator.forget()
    peak = peak_bytes(lambda: evaluator.evaluate(masks, examples, divergences=True))
    assert counted / 2 < peak < 1.01 * counted


@pytest.mark.slow
@pytest.mark.parametrize("model", ["METER", "ViLT"])
def test_walk_of_pairs_stays_within_what_is_counted(worlds, model):
    world = worlds[model, torch.float32]
    check_peak(world.evaluator(batch_size=24), world.examples * 4)
    check_peak(world.evaluator(batch_size=1), world.examples[:1])


def test_live_bytes_counts_what_exists_at_a_time():
    weight = torch.ones(10, 10)
    with LiveBytes() as live:
        first = weight.t() @ weight  # the view has no memory of its own
        del first
        second = torch.zeros(300)
        third = second.view(3, 100) + 1
        del second, third
    assert live.peak == 2 * 4 * 300
