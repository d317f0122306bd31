from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from das_gym.models.meter.model import METER, METERConfig
from das_gym.models.vilt.model import ViLT, ViLTConfig
from das_gym.problem.costs import count_costs, meter_costs, paper_table, vilt_costs

SPLITS = ((0, 0), (2, 2), (4, 0), (0, 4))
RECORDED = {  # image px, text tokens: GMACs without adapters, with them, and with text and image layers skipped as in SPLITS
    (384, 40): (93.132, 94.770, 81.955, 90.574, 73.335),
    (384, 50): (94.685, 96.349, 83.307, 91.782, 74.832),
    (288, 40): (52.825, 53.794, 46.495, 50.849, 42.141),
}
MASKS = [[False] * 12, [True] * 12, [i in (0, 3, 7, 11) for i in range(12)]]
TEXT, IMAGE = 7, 48


def text_image_mask(text: int, image: int) -> np.ndarray:
    return np.array([i < text for i in range(6)] + [i < image for i in range(6)])


def tiny(name: str) -> METER | ViLT:
    torch.manual_seed(0)
    if name == "meter":
        config = METERConfig(IMAGE, 16, 32, 4, 6, 64, 2, 4, 48, 3, 4, 50, 12, bottleneck=8, skip_bottleneck=24)
        return METER(config).eval()
    return ViLT(ViLTConfig(IMAGE, 16, 2, 32, 4, 12, 50, 12, bottleneck=8, skip_bottleneck=16)).eval()


def vqa_head(features: int, answers: int) -> nn.Sequential:
    hidden = 2 * features if features == 32 else features  # ViLT's is twice as wide as its features
    return nn.Sequential(nn.Linear(features, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, answers))


@pytest.mark.parametrize("size", RECORDED, ids=str)
def test_paper_table(size):
    costs = meter_costs(METERConfig(image_size=size[0]), size[1], 3129)
    found = [costs.macs_full, *(costs.macs(text_image_mask(*split)) for split in SPLITS)]
    assert [round(macs / 1e9, 3) for macs in found] == list(RECORDED[size])


def test_figures_of_the_design():
    costs = meter_costs(METERConfig(), 40, 3129)
    encoders = costs.base_macs
    assert encoders / 1e9 == pytest.approx(54, abs=1)
    assert costs.layer_macs[[0, 6]] / 1e9 == pytest.approx([1.05, 5.36], abs=0.005)
    assert costs.parallel_parameters.sum() == 36 * (2 * 768 * 96 + 96 + 768 + 2 * 768)
    mask = text_image_mask(2, 2)
    assert -100 * costs.macs_saved(mask) == pytest.approx(-12.00, abs=0.005)
    assert abs(100 * costs.macs_saved(mask) - 11.97) < 0.1
    assert costs.macs_saved(text_image_mask(0, 0)) == pytest.approx(-0.0176, abs=1e-4)


def test_published_parameters():
    rows = {row["what"]: row for row in paper_table()}
    assert rows["adapters, no skipping"]["adapters"] / 1e6 == pytest.approx(5.34, abs=0.005)
    assert rows["adapters, no skipping"]["adapters_and_norms"] / 1e6 == pytest.approx(5.39, abs=0.005)
    costs = meter_costs(METERConfig(), 40, 3129)
    assert costs.parameters_full / 1e6 == pytest.approx(323.31 + 0.5, abs=5)
    assert vilt_costs(ViLTConfig(), 40, 3129).parallel_parameters.sum() / 1e6 == pytest.approx(3.56, abs=0.05)
    assert vilt_costs(ViLTConfig(), 40, 3129).parallel_macs.sum() / 1e9 == pytest.approx(0.86, abs=0.25)


def flops(vlp: METER | ViLT, head: nn.Module, mask: list[bool]) -> int:
    """FLOPs of one example as torch counts them, every token a query in the last stage too."""
    ids = torch.arange(TEXT)[None] + 2
    batch = {"image": torch.ones(1, 3, IMAGE, IMAGE), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        state = vlp.embed(vlp.encode(batch))
        for stage in vlp.stages:
            new = {vlp.layers[i].stream: vlp.run_layer(i, state, mask[i]) for i in stage}
            state = state.with_hidden({**state.hidden, **new})
        head(vlp.pool(state))
    return counter.get_total_flops()


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: f"{sum(mask)} skipped")
@pytest.mark.parametrize("name", ["meter", "vilt"])
def test_macs_agree_with_torch(name, mask):
    vlp = tiny(name)
    head = vqa_head(vlp.feature_size, 11)
    counted = flops(vlp, head, mask) / 2
    assert count_costs(vlp, TEXT, head).macs(mask) == pytest.approx(counted, rel=1e-3)


@pytest.mark.parametrize("name", ["meter", "vilt"])
def test_baseline_is_the_model_without_adapters(name):
    vlp = tiny(name)
    bare = type(vlp)(dataclasses.replace(vlp.config, bottleneck=0)).eval()
    counted = flops(bare, nn.Identity(), [False] * 12) / 2
    assert count_costs(vlp, TEXT).macs_full == pytest.approx(counted, rel=1e-3)
    assert count_costs(bare, TEXT).macs([False] * 12) == count_costs(vlp, TEXT).macs_full


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: f"{sum(mask)} skipped")
@pytest.mark.parametrize("bottleneck", [8, 0])
@pytest.mark.parametrize("name", ["meter", "vilt"])
def test_parameters_are_those_of_the_pruned_model(name, bottleneck, mask):
    vlp = tiny(name)
    vlp = type(vlp)(dataclasses.replace(vlp.config, bottleneck=bottleneck))
    head = vqa_head(vlp.feature_size, 11)
    costs = count_costs(vlp, TEXT, head)
    vlp.prune(mask)
    vlp.freeze()
    modules = nn.ModuleList([vlp, head])
    assert costs.parameters(mask) == sum(p.numel() for p in modules.parameters())
    assert costs.trainable_parameters(mask) == sum(p.numel() for p in modules.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["meter", "vilt"])
def test_heads_by_number_of_answers_and_by_module(name):
    vlp = tiny(name)
    by_module = count_costs(vlp, TEXT, vqa_head(vlp.feature_size, 11))
    by_number = (meter_costs if name == "meter" else vilt_costs)(vlp.config, TEXT, 11)
    for field in dataclasses.fields(by_module):
        assert np.array_equal(getattr(by_module, field.name), getattr(by_number, field.name)), field.name


def test_arrays_are_int64_and_add_up():
    costs = meter_costs(METERConfig(), 40, 3129)
    arrays = [
        getattr(costs, f"{part}_{what}")
        for part, what in itertools.product(("layer", "parallel", "skip"), ("macs", "parameters"))
    ]
    assert all(array.dtype == np.int64 and array.shape == (12,) for array in arrays)
    assert isinstance(costs.macs([False] * 12), int)
    one = costs.macs(text_image_mask(1, 0)) - costs.macs([False] * 12)
    assert one == costs.skip_macs[0] - costs.layer_macs[0] - costs.parallel_macs[0]


def test_vilt_image_of_another_shape():
    config = ViLTConfig()
    assert vilt_costs(config, 40, image_tokens=145).macs_full == vilt_costs(config, 40).macs_full
    assert vilt_costs(config, 40, image_tokens=12 * 20 + 1).macs_full > vilt_costs(config, 40).macs_full


def test_errors():
    costs = meter_costs(METERConfig(), 40)
    with pytest.raises(ValueError, match=r"mask of shape \(3,\): this model has 12 layers, give one bool each"):
        costs.macs([True] * 3)
    with pytest.raises(ValueError, match="text_tokens=0: a text has at least one token"):
        vilt_costs(ViLTConfig(), 0)
    with pytest.raises(TypeError, match="the costs of a Linear are not known; count METER or ViLT"):
        count_costs(nn.Linear(1, 1), 40)
