import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from das_gym.models.base import State
from das_gym.models.inputs import meta_batch
from das_gym.models.macs import LAYER_PART, MacCounter, head_macs
from das_gym.models.meter.model import METER
from das_gym.models.meter.network import METERConfig
from das_gym.problem.costs import count_costs

MASKS = np.random.default_rng(3).random((7, 12)) < 0.5
EVERY = np.array(list(itertools.product((False, True), repeat=12)))


@pytest.mark.slow
@pytest.mark.parametrize(("model", "divergences"), [("METER", True), ("ViLT", False)])
def test_macs_equal_torchs_count(worlds, model, divergences):
    """Encoders, layers, poolers and head, in batches of two sizes."""
    world = worlds[model, torch.float32]
    evaluator = world.evaluator(batch_size=4)
    evaluator.evaluate(MASKS, world.examples, divergences=divergences)
    evaluator.forget()  # but not the MACs of each shape: they are counted by a separate run, which torch would count
    evaluator.reset_spent()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        evaluator.evaluate(MASKS, world.examples, divergences=divergences)
    assert 2 * evaluator.spent.macs == counter.get_total_flops()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "masks", "macs"),
    [("METER", MASKS, 18_363_520), ("ViLT", MASKS, 34_066_496), ("METER", EVERY[EVERY.sum(1) == 4], 312_834_048)],
    ids=["METER, 7", "ViLT, 7", "METER, 495"],
)
def test_masks_share_all_equal_work(worlds, model, masks, macs):
    """The numbers come from the masks alone: distinct pieces of work, each with its cost, without a tree."""
    world = worlds[model, torch.float32]
    evaluator = world.evaluator()
    evaluator.losses(masks[:1], world.examples[:2])
    evaluator.forget()
    evaluator.reset_spent()
    evaluator.losses(masks, world.examples[:2])
    assert evaluator.spent.macs == macs


@pytest.mark.parametrize("model", ["METER", "ViLT"])
def test_parts_add_up_to_the_full_costs(worlds, model):
    vlp = worlds[model, torch.float32].vlp
    batch, counter = meta_batch(7, (3, 32, 32)), MacCounter(vlp)
    costs = count_costs(vlp, batch)
    encoded, encoders = counter.encode(batch)
    state, embedding = counter.embed(encoded)
    assert encoders + embedding + counter.pool(state)[1] == costs.base_macs
    assert sum(counter.encoder(stream, batch) for stream in ("text", "image")) == encoders
    for index in range(12):
        last = index in vlp.stages[-1]
        kept, skipped = (counter.layer(index, state, skipped, pooled_only=last) for skipped in (False, True))
        assert sum(kept.values()) == costs.layer_macs[index] + costs.parallel_macs[index]
        assert sum(skipped.values()) == costs.skip_macs[index]


def test_macs_of_the_pooled_token_by_hand():
    """METER-base, text layer, 40 and 577 tokens: each of 12 heads reads whole tokens, everything else is of one."""
    with torch.device("meta"):
        vlp = METER(METERConfig())
        hidden = {"text": torch.empty(1, 40, 768), "image": torch.empty(1, 577, 768)}
    parts = MacCounter(vlp).layer(5, State(hidden, dict.fromkeys(hidden)), skipped=False, pooled_only=True)
    square, adapter = 768**2, 2 * 768 * 96
    assert parts["self"] == 4 * square + 2 * 12 * 40 * 768 + adapter
    assert parts[LAYER_PART] == 4 * square + 2 * 12 * 577 * 768 + 8 * square + 2 * adapter
    assert parts.keys() == {"self", LAYER_PART}


def test_macs_count_each_run_of_the_head():
    head = nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 3))
    assert head_macs(head, torch.zeros(5, 6)) == 5 * (24 + 12)
    assert head_macs(head, torch.zeros(5, 2, 6)) == 10 * (24 + 12)
    assert not head[0]._forward_hooks
