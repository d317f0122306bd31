from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.prediction import predict
from das_gym.engine import Evaluator
from das_gym.engine.macs import OWN, _meter_layer, encode_macs, head_macs, layer_macs, pool_macs
from das_gym.models.base import VLP, Layer, SkippableLayer, State
from das_gym.models.meter.model import METERConfig
from das_gym.models.vilt.model import ViLTConfig
from das_gym.problem.costs import count_costs, meter_costs, vilt_costs

MASKS = np.random.default_rng(3).random((7, 12)) < 0.5
EVERY = np.array(list(itertools.product((False, True), repeat=12)))
PATCH = 16


@pytest.mark.parametrize(("model", "divergences"), [("METER", True), ("ViLT", False)])
def test_all_that_runs_is_what_torch_counts(worlds, model, divergences):
    """Encoders, layers, poolers and head, in batches of two sizes."""
    world = worlds[model, torch.float32]
    evaluator = world.evaluator(batch_size=4)
    evaluator.losses(MASKS[:1], world.examples)
    head = evaluator._head_macs  # shapes of heads are counted by running them once, which torch would count too
    evaluator = world.evaluator(batch_size=4)
    evaluator._head_macs = head
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        evaluator.evaluate(MASKS, world.examples, divergences=divergences)
    assert 2 * evaluator.spent.macs == counter.get_total_flops()


@pytest.mark.parametrize(
    ("model", "masks"),
    [("METER", MASKS), ("ViLT", MASKS), ("METER", EVERY[EVERY.sum(1) == 4]), ("METER", EVERY[:1])],
    ids=["METER, 7", "ViLT, 7", "METER, 495", "METER, unskipped"],
)
def test_the_masks_alone_foretell_it(worlds, model, masks):
    world = worlds[model, torch.float32]
    evaluator = world.evaluator()
    evaluator.losses(masks[:1], world.examples[:2])
    evaluator.forget()
    evaluator.reset_spent()
    evaluator.losses(masks, world.examples[:2])
    state = world.vlp.embed(evaluator.encoder(world.task.pairs(world.examples[:2])))
    tokens = {stream: hidden.shape[1] for stream, hidden in state.hidden.items()}
    predicted = predict(world.vlp, world.head, masks, tokens, rows=2)
    assert (evaluator.spent.layer_runs, evaluator.spent.macs) == (predicted.layer_runs, predicted.macs)


@pytest.mark.parametrize("model", ["METER", "ViLT"])
def test_parts_add_up_to_the_costs_of_the_whole(worlds, model):
    vlp = worlds[model, torch.float32].vlp
    batch = {"image": torch.zeros(1, 3, 32, 32), "input_ids": torch.zeros(1, 7, dtype=torch.long)}
    costs = count_costs(vlp, 7)
    assert encode_macs(vlp, batch) + pool_macs(vlp) == costs.base_macs
    assert sum(encode_macs(vlp, {name: tensor}) for name, tensor in batch.items()) == encode_macs(vlp, batch)
    image = vlp.config.image_tokens
    tokens = {"text": 7, "image": image} if model == "METER" else {"joint": 7 + image}
    for index in range(12):
        kept, skipped = (layer_macs(vlp, index, tokens, skipped, pooled_only=False) for skipped in (False, True))
        assert sum(kept.values()) == costs.layer_macs[index] + costs.parallel_macs[index]
        assert sum(skipped.values()) == costs.skip_macs[index]


def test_the_pooled_token_alone_by_hand():
    """METER-base, text layer, 40 and 577 tokens: each of 12 heads reads whole tokens, everything else is of one."""
    parts = _meter_layer(METERConfig(), 40, 577, skipped=False, pooled_only=True)
    square, adapter = 768**2, 2 * 768 * 96
    assert parts["self"] == 4 * square + 2 * 12 * 40 * 768 + adapter
    assert parts[OWN] == 4 * square + 2 * 12 * 577 * 768 + 8 * square + 2 * adapter
    assert parts.keys() == {"self", OWN}


def test_base_encoders_by_their_published_size():
    assert meter_costs(METERConfig(), 40).base_macs / 1e9 == pytest.approx(54, abs=1)


def test_a_head_is_counted_as_often_as_it_runs():
    head = nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 3))
    assert head_macs(head, torch.zeros(5, 6)) == 5 * (24 + 12)
    assert head_macs(head, torch.zeros(5, 2, 6)) == 10 * (24 + 12)
    assert not head[0]._forward_hooks


class Other(VLP):
    """A model that is neither METER nor ViLT: one stage, two layers that scale."""

    tunable = ("adapter",)
    layers = (Layer("a", "text", 0), Layer("b", "image", 0))
    feature_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(SkippableLayer(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2))

    def text_stream(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        return batch["input_ids"][..., None].expand(-1, -1, 4).float(), batch["attention_mask"][:, None, None].bool()

    def image_stream(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        return batch["image"].mean((2, 3))[:, None, :1].expand(-1, 1, 4), None

    def embed(self, encoded: State) -> State:
        return encoded

    def skippable(self, index: int) -> SkippableLayer:
        return self.parts[index]

    def run_layer(self, index, state, skipped, memo=None, pooled_only=False) -> Tensor:
        del memo
        hidden = state.hidden[self.layers[index].stream]
        return self.skippable(index).chosen(skipped)(hidden[:, :1] if pooled_only else hidden)

    def pool(self, state: State) -> Tensor:
        return state.hidden["text"][:, 0] + state.hidden["image"][:, 0]


class OtherWithCosts(Other):
    """It says what it costs."""

    def count_costs(self, text_tokens: int):
        return vilt_costs(ViLTConfig(32, PATCH, 2, 32, 4, 2, 50, 32, bottleneck=8, skip_bottleneck=16), text_tokens)


def test_a_model_of_ones_own(meter):
    masks = np.array([[False, False], [False, True]])
    head = meter.task.build_head(4).eval()
    vlp = OtherWithCosts()
    evaluator = Evaluator(vlp, head, meter.task)
    assert np.isfinite(evaluator.losses(masks, meter.examples[:1])).all()
    tokens = int(evaluator.encoder(meter.task.pairs(meter.examples[:1])).hidden["text"].shape[1])
    costs = vlp.count_costs(tokens)
    kept = costs.layer_macs + costs.parallel_macs
    linear = head_macs(head, torch.zeros(1, 4))
    encoded = 8 * vlp.count_costs(16).base_macs  # a block of 8 rows, padded to 16 tokens
    assert evaluator.spent.macs == encoded + kept[0] + kept[1] + costs.skip_macs[1] + 2 * linear
    with pytest.raises(TypeError, match="give it a method count_costs"):
        Evaluator(Other(), head, meter.task).losses(masks, meter.examples[:1])
