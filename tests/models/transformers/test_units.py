"""DAS's adapters in models of transformers: their formulas, what trains, and what is left after pruning."""

import dataclasses
from typing import Any

import accelerate
import numpy as np
import pytest
import torch

from das_gym.models.adapters import Adapter
from das_gym.models.base import check_model
from das_gym.models.macs import MacCounter
from das_gym.models.transformers.loading import load_vlm
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.modeling_das_adapters import SkippedLayer
from das_gym.models.transformers.units import default_widths
from das_gym.problem.costs import Costs, count_costs
from tests.models.transformers import tiny
from tests.models.transformers.conftest import Driven

HIDDEN = torch.randn(1, 6, tiny.WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_skipped_layer_runs_with_offloaded_weights():
    torch.manual_seed(0)
    layer = SkippedLayer(torch.nn.LayerNorm(tiny.WIDTH), Adapter(tiny.WIDTH, 4, norm=False)).double()
    wanted = layer(HIDDEN)
    accelerate.cpu_offload(layer, execution_device=torch.device("cpu"))
    assert layer.adapter.down.weight.is_meta
    torch.testing.assert_close(layer(HIDDEN), wanted)


@pytest.fixture
def adapted(folder_of) -> VLM:
    vlm = load_vlm(folder_of("llava"), bottleneck=3, skip_bottleneck=5, generator=torch.Generator().manual_seed(0))
    vlm.freeze()
    return vlm


@pytest.fixture
def model(adapted, folder_of) -> Driven:
    return Driven(adapted, adapted.make_processor(folder_of("llava")))


@pytest.mark.parametrize(("hidden_size", "widths"), [(4096, (64, 256)), (576, (64, 216)), (2, (1, 1))])
def test_default_widths_follow_the_hidden_size(hidden_size, widths):
    assert default_widths(hidden_size) == widths


def test_kept_layer_by_hand(adapted):
    """h + attention(x + A0(x)), then h + MLP(y + A1(y)), x and y normed."""
    layer: Any = adapted.stack.layers[0]
    rotary = adapted.stack.owner.rotary_emb(HIDDEN, torch.arange(6)[None])
    found = layer(HIDDEN, position_embeddings=rotary)
    for name in ("self_attn", "mlp"):
        getattr(layer, name)._forward_pre_hooks.clear()
    by_hand = lambda a, x: x + a.up(torch.relu(a.down(x.float()))).double()  # noqa: E731
    x = by_hand(layer.self_attn.das_adapter, layer.input_layernorm(HIDDEN))
    hidden = HIDDEN + layer.self_attn(x, position_embeddings=rotary, attention_mask=None)[0]
    hidden = hidden + layer.mlp(by_hand(layer.mlp.das_adapter, layer.post_attention_layernorm(hidden)))
    torch.testing.assert_close(found, hidden)


def test_skipped_layer_by_hand(adapted):
    unit: Any = adapted.skippable_layer(2).skip_adapter
    x = adapted.stack.layers[2].input_layernorm(HIDDEN).float()
    expected = HIDDEN + unit.adapter.up(torch.relu(unit.adapter.down(x))).double()
    torch.testing.assert_close(unit(HIDDEN), expected)
    assert not torch.equal(expected, HIDDEN)


def test_adapters_train_and_nothing_else(adapted):
    check_model(adapted)
    trains = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trains == set(adapted.tunable_state())
    assert len(trains) == 4 * 3 * 4  # layers, adapters of each, weights and biases of two linears
    assert all("adapter" in name and "norm" not in name for name in trains)


def test_macs_of_adapters(model):
    with_them, bare = MacCounter(model.vlm), MacCounter(model.vlm, adapters=False)
    state, _ = model.vlm.cost_example(model.processor, model.prompts()[:1], with_them)
    tokens = state.hidden["joint"].shape[1]
    ways = ((with_them, False), (bare, False), (with_them, True))
    kept, plain, skipped = (sum(counter.layer(0, state, skip, False).values()) for counter, skip in ways)
    assert kept - plain == tokens * 2 * 2 * 3 * tiny.WIDTH
    assert skipped == tokens * 2 * 5 * tiny.WIDTH


def test_shared_prefixes_pass_through_the_same_adapters(model):
    assert model.vlm.capabilities.shares_prefix
    for mask in ([0, 1, 0, 0], [1, 0, 0, 1], [1, 1, 0, 1]):
        alone = [model.logits([prompt], mask) for prompt in model.prompts()]
        torch.testing.assert_close(model.logits(model.prompts(), mask), torch.cat(alone))


def test_prune_keeps_skip_adapters(model):
    vlm, mask = model.vlm, np.array([False, True, False, True])
    wanted = model.logits(model.prompts(), mask)
    before = sum(p.numel() for p in vlm.parameters())
    weights = sum(p.numel() for p in vlm.stack.layers[1].parameters())
    skip = sum(p.numel() for p in vlm.skippable_layer(1).skip_adapter.parameters())  # type: ignore[union-attr]
    vlm.prune(mask)
    torch.testing.assert_close(model.logits(model.prompts(), mask), wanted)
    assert before - sum(p.numel() for p in vlm.parameters()) == 2 * weights + 2 * skip
    with torch.no_grad():
        pruned, masked = (vlm.make_forward(model.processor, model.prompts())(each) for each in (None, mask))
    torch.testing.assert_close(pruned, masked)


def test_pruning_does_not_change_costs(model):
    def costs() -> Costs:
        return count_costs(model.vlm, model.vlm.cost_example(model.processor, model.prompts(), MacCounter(model.vlm)))

    before = costs()
    model.vlm.prune([False, True, False, True])
    after = costs()
    assert after.macs_full == before.macs_full
    for field in dataclasses.fields(before):
        assert str(getattr(after, field.name)) == str(getattr(before, field.name)), field.name


@pytest.mark.parametrize("settings", [{"bottleneck": 0}, {"skip_bottleneck": -1}, {"dropout": 0.1}])
def test_load_vlm_rejects_settings_of_adapters(folder_of, settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}`"):
        load_vlm(folder_of("llava"), **settings)
