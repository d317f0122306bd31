import copy
import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from das_gym.models.inputs import meta_batch
from das_gym.models.macs import without_content
from das_gym.models.meter.model import METER
from das_gym.models.meter.network import METERConfig
from das_gym.models.vilt.model import ViLT
from das_gym.models.vilt.network import ViLTConfig
from das_gym.problem.costs import Costs, count_costs
from das_gym.tasks.base import build_classifier

PARTS = ("layer_macs", "parallel_macs", "skip_macs", "layer_parameters", "parallel_parameters", "skip_parameters")
PER_LAYER = {  # of a text layer and an image layer, or of a block; closed formulas of the sizes give the same
    "METER": (
        METERConfig(),
        93_132_291_072,
        326_018_361,
        [
            (1_048_866_816, 5_358_614_016),
            (17_694_720, 255_246_336),
            (17_694_720, 255_246_336),
            (9_451_776, 9_451_776),
            (449_568, 449_568),
            (444_960, 444_960),
        ],
    ),
    "ViLT": (
        ViLTConfig(),
        16_690_060_800,
        117_589_305,
        [
            (1_361_978_880,) * 2,
            (54_558_720,) * 2,
            (54_558_720,) * 2,
            (7_087_872,) * 2,
            (299_712,) * 2,
            (297_408,) * 2,
        ],
    ),
}
MASKS = [[False] * 12, [True] * 12, [i in (0, 3, 7, 11) for i in range(12)]]
TEXT, IMAGE = 7, 48


@cache
def full_costs(config: METERConfig | ViLTConfig, counting: str = "paper") -> Costs:
    """Return the costs of a model of any size with its VQA head, which has no content; counted once."""
    with without_content():
        vlp = (METER if isinstance(config, METERConfig) else ViLT)(config).eval()
        head = build_classifier(vlp.feature_size, 3129, vlp.head_size or vlp.feature_size)
    return count_costs(vlp, meta_batch(40, (3, config.image_size, config.image_size)), head, counting=counting)


def tiny(name: str) -> METER | ViLT:
    torch.manual_seed(0)
    if name == "meter":
        config = METERConfig(IMAGE, 16, 32, 4, 6, 64, 2, 4, 48, 3, 4, 50, 12, bottleneck=8, skip_bottleneck=24)
        return METER(config).eval()
    return ViLT(ViLTConfig(IMAGE, 16, 2, 32, 4, 12, 50, 12, bottleneck=8, skip_bottleneck=16)).eval()


def tiny_costs(vlp: METER | ViLT, head: nn.Module | None = None, counting: str = "paper") -> Costs:
    return count_costs(vlp, meta_batch(TEXT, (3, IMAGE, IMAGE)), head, counting=counting)


def vqa_head(features: int, answers: int) -> nn.Sequential:
    hidden = 2 * features if features == 32 else features  # ViLT's is twice as wide as its features
    return nn.Sequential(nn.Linear(features, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, answers))


@pytest.mark.slow
@pytest.mark.parametrize("model", PER_LAYER)
def test_costs_of_each_part(model):
    config, macs, parameters, each = PER_LAYER[model]
    costs = full_costs(config)
    assert (costs.macs_full, costs.parameters_full) == (macs, parameters)
    for part, (first, second) in zip(PARTS, each, strict=True):
        assert getattr(costs, part).tolist() == [first] * 6 + [second] * 6, part


@pytest.mark.slow
def test_last_stage_runs_the_pooled_token_only():
    """Skipping before the last stage saves more than the paper's count says, in it less."""
    paper, runs = (full_costs(METERConfig(), counting) for counting in ("paper", "runs"))
    early, late = np.zeros((2, 12), dtype=bool)
    early[[0, 1, 6, 7]] = late[[4, 5, 10, 11]] = True
    assert [round(100 * paper.macs_saved(mask), 1) for mask in (early, late)] == [12.0, 12.0]
    assert [round(100 * runs.macs_saved(mask), 1) for mask in (early, late)] == [13.2, 5.9]
    assert np.array_equal(paper.layer_macs[[0, 4, 6, 10]], runs.layer_macs[[0, 4, 6, 10]])


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
    assert tiny_costs(vlp, head).macs(mask) == pytest.approx(counted, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["meter", "vilt"])
def test_baseline_has_no_adapters(name):
    vlp = tiny(name)
    bare = type(vlp)(dataclasses.replace(vlp.config, bottleneck=0)).eval()
    counted = flops(bare, nn.Identity(), [False] * 12) / 2
    assert tiny_costs(vlp).macs_full == pytest.approx(counted, rel=1e-3)
    assert tiny_costs(bare).macs([False] * 12) == tiny_costs(vlp).macs_full


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: f"{sum(mask)} skipped")
@pytest.mark.parametrize(("name", "bottleneck"), [("meter", 8), ("vilt", 0)])
def test_parameters_agree_with_the_pruned_model(name, bottleneck, mask):
    vlp = tiny(name)
    vlp = type(vlp)(dataclasses.replace(vlp.config, bottleneck=bottleneck))
    head = vqa_head(vlp.feature_size, 11)
    costs = tiny_costs(vlp, head)
    vlp.prune(mask)
    modules = nn.ModuleList([vlp, head])
    assert parameters_of(costs, mask) == sum(p.numel() for p in modules.parameters())


@pytest.mark.parametrize("name", ["meter", "vilt"])
def test_pruning_does_not_change_costs(name):
    vlp = tiny(name)
    before = tiny_costs(vlp)
    vlp.prune(MASKS[2])
    after = tiny_costs(vlp)
    for name in ("macs_cost", "parameters_cost", "memory"):
        assert getattr(after, name).as_dict() == getattr(before, name).as_dict()
    for field in dataclasses.fields(before)[3:]:
        np.testing.assert_array_equal(getattr(after, field.name), getattr(before, field.name), err_msg=field.name)


def parameters_of(costs: Costs, mask) -> int:
    return int(costs.parameters_cost.amounts(np.array([mask], dtype=bool))[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["meter", "vilt"])
def test_baseline_has_no_lora(name):
    peft = pytest.importorskip("peft")
    vlp = tiny(name)
    before = tiny_costs(vlp, counting="runs")
    targets = ["query", "value", "q_proj"]  # of layers, of RoBERTa, of CLIP
    vlp = peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=targets), vlp)
    after = tiny_costs(vlp, counting="runs")
    assert after.macs_full == before.macs_full
    assert after.parameters_full == before.parameters_full
    np.testing.assert_array_equal(after.layer_macs, before.layer_macs)
    kept = [False] * 12
    assert after.macs(kept) > before.macs(kept)
    added = sum(p.numel() for name, p in vlp.named_parameters() if "lora" in name)
    assert parameters_of(after, kept) == parameters_of(before, kept) + added


def test_shared_parameters_belong_to_the_base():
    vlp = tiny("vilt")
    vlp.blocks[5].layer.mlp_in = vlp.blocks[2].layer.mlp_in  # a module
    vlp.pooler.weight = vlp.blocks[7].layer.attention.out.weight = vlp.blocks[4].layer.attention.out.weight  # a parameter
    vlp.blocks[9].layer.mlp_norm = vlp.blocks[9].layer.attention_norm  # within a layer: it goes with that
    costs, memory = tiny_costs(vlp), tiny_costs(vlp).memory
    kept = sum(p.numel() for p in vlp.parameters()) - int(costs.skip_parameters.sum())
    assert parameters_of(costs, [False] * 12) == kept == memory.unskipped // 4
    for gone in ([2], [4], [7], [9], [0, 2, 7, 9]):
        mask, twin = np.isin(np.arange(12), gone), copy.deepcopy(vlp)
        twin.prune(mask)
        assert parameters_of(costs, mask) == sum(p.numel() for p in twin.parameters()) == memory.amounts(mask[None])[0] // 4
    one, both = (parameters_of(costs, np.isin(np.arange(12), gone)) for gone in ([2], [2, 5]))
    assert kept - both == 2 * (kept - one)  # sums over layers cannot see that it is unused now: it counts as kept


def test_models_that_read_tensor_values_are_rejected():
    class Looks(ViLT):
        def text_stream(self, batch):
            return super().text_stream({**batch, "n": int(batch["input_ids"].max())})

    with pytest.raises(TypeError, match="Looks"):
        count_costs(Looks(ViLTConfig(IMAGE, 16, 2, 32, 4, 12, 50, 12)), meta_batch(TEXT, (3, IMAGE, IMAGE)))


def test_memory_is_the_bytes_of_the_subnet(small_problem):
    problem, mask = small_problem, np.array([0, 1, 1, 0, 0, 1], dtype=bool)
    costs = problem.costs.memory
    parameters = problem.costs.parameters_cost
    twin = copy.deepcopy(problem.vlp)
    twin.prune(mask)
    left = [*twin.parameters(), *problem.head.parameters()]
    assert costs.amounts(mask[None]).tolist() == [sum(p.numel() * p.element_size() for p in left)]
    assert parameters.amounts(mask[None]).tolist() == [sum(p.numel() for p in left)]
    half = count_costs(copy.deepcopy(problem.vlp).half(), meta_batch(8, (3, 96, 96)))
    assert half.memory.savings.tolist() == (costs.savings // 2).tolist()
