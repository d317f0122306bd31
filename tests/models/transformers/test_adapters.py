"""DAS's adapters in models of transformers: their formulas, what trains, and what is left after pruning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from das_gym.models.base import check_model
from das_gym.models.macs import MacCounter
from das_gym.models.transformers.adapters import input_adapter, usual_widths
from das_gym.models.transformers.loading import load_vlm
from das_gym.models.transformers.model import VLM
from tests.models.transformers import tiny
from tests.models.transformers.conftest import Driven


@pytest.fixture
def adapted(folder_of: Callable[[str], Path]) -> VLM:
    vlm = load_vlm(folder_of("llava"), bottleneck=3, skip_bottleneck=5, generator=torch.Generator().manual_seed(0))
    vlm.freeze()
    return vlm


@pytest.mark.parametrize(
    ("hidden_size", "widths"), [(4096, (64, 256)), (768, (64, 256)), (576, (64, 216)), (80, (10, 30)), (2, (1, 1))]
)
def test_widths_follow_the_hidden_size(hidden_size: int, widths: tuple[int, int]):
    assert usual_widths(hidden_size) == widths


def test_adapters_of_a_small_model_cost_less_than_its_layers(folder_of: Callable[[str], Path]):
    vlm = load_vlm(folder_of("llava"))
    unit: Any = vlm.skippable(0)
    own = [p.numel() for name, p in unit.layer.named_parameters() if "adapter" not in name]
    added = [p.numel() for name, p in unit.named_parameters() if "adapter" in name and "norm" not in name]
    assert sum(added) < sum(own) / 2


def hidden_of(vlm: VLM) -> torch.Tensor:
    return torch.randn(1, 6, tiny.WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def driven_of(vlm: VLM, folder_of: Callable[[str], Path]) -> Driven:
    model = Driven.__new__(Driven)
    model.vlm, model.processor, model.head = vlm, vlm.inputs(folder_of("llava")), vlm.own_head()
    return model


@pytest.mark.slow
def test_a_kept_layer_by_hand(adapted: VLM):
    """h + attention(x + A0(x)), then h + MLP(y + A1(y)), x and y normed."""
    layer, hidden = adapted.stack.layers[0], hidden_of(adapted)
    position = torch.arange(6)[None]
    rotary = adapted.stack.owner.rotary_emb(hidden, position)
    a0, a1 = layer.attention_adapter, layer.mlp_adapter
    found = layer(hidden, position_embeddings=rotary)
    for name in ("self_attn", "mlp"):
        getattr(layer, name)._forward_pre_hooks.clear()
    by_hand = lambda a, x: x + a.up(torch.relu(a.down(x.float()))).double()  # noqa: E731
    x = by_hand(a0, layer.input_layernorm(hidden))
    hidden = hidden + layer.self_attn(x, position_embeddings=rotary, attention_mask=None)[0]
    hidden = hidden + layer.mlp(by_hand(a1, layer.post_attention_layernorm(hidden)))
    torch.testing.assert_close(found, hidden)


def test_a_skipped_layer_by_hand(adapted: VLM):
    unit, hidden, norm = adapted.skippable(2).skip_adapter, hidden_of(adapted), adapted.stack.layers[2].input_layernorm
    x = norm(hidden).float()
    expected = hidden + unit.adapter.up(torch.relu(unit.adapter.down(x))).double()
    torch.testing.assert_close(unit(hidden), expected)
    assert not torch.equal(expected, hidden)


def test_adapters_train_and_nothing_else(adapted: VLM):
    check_model(adapted)
    trains = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trains == set(adapted.tunable_state())
    assert len(trains) == 4 * 3 * 4  # layers, adapters of each, weights and biases of two linears
    assert all("adapter" in name and "norm" not in name for name in trains)


def test_macs_of_adapters(adapted: VLM, folder_of: Callable[[str], Path]):
    with_them, bare = MacCounter(adapted), MacCounter(adapted, adapters=False)
    model = driven_of(adapted, folder_of)
    state, _ = adapted.sample(model.processor, model.prompts()[:1], with_them)
    tokens = state.hidden["joint"].shape[1]
    kept, plain, skipped = (
        sum(counter.layer(0, state, skip, False).values())
        for counter, skip in ((with_them, False), (bare, False), (with_them, True))
    )
    assert kept - plain == tokens * 2 * 2 * 3 * tiny.WIDTH
    assert skipped == tokens * 2 * 5 * tiny.WIDTH


def test_what_questions_share_passes_through_the_same_adapters(adapted: VLM, folder_of: Callable[[str], Path]):
    """Three questions on a picture together are what each is alone, whatever stands in for the layers between."""
    model = driven_of(adapted, folder_of)
    assert adapted.traits.shares_prefix
    for mask in ([0, 1, 0, 0], [1, 0, 0, 1], [1, 1, 0, 1]):
        alone = [model.logits([prompt], mask) for prompt in model.prompts()]
        torch.testing.assert_close(model.logits(model.prompts(), mask), torch.cat(alone))


def test_a_pruned_one_says_the_same_with_fewer_parameters(adapted: VLM, folder_of: Callable[[str], Path]):
    model = driven_of(adapted, folder_of)
    mask = np.array([False, True, False, True])
    wanted = model.logits(model.prompts(), mask)
    before = sum(p.numel() for p in adapted.parameters())
    weights = sum(p.numel() for p in adapted.stack.layers[1].parameters())
    adapted.prune(mask)
    torch.testing.assert_close(model.logits(model.prompts(), mask), wanted)
    skip = sum(p.numel() for p in nn.ModuleList([input_adapter(tiny.WIDTH, 5)]).parameters()) + tiny.WIDTH
    assert before - sum(p.numel() for p in adapted.parameters()) == 2 * weights + 2 * skip
    with torch.no_grad():
        torch.testing.assert_close(
            adapted.ready(model.processor, model.prompts())(), model.vlm.ready(model.processor, model.prompts())(mask)
        )


@pytest.mark.slow
def test_without_adapters_it_is_the_model_that_came(adapted: VLM, folder_of: Callable[[str], Path]):
    adapted.remove_adapters()
    assert adapted.tunable_state() == {}
    model = driven_of(adapted, folder_of)
    whole = Driven(folder_of("llava"))
    mask = [0, 1, 0, 0]
    torch.testing.assert_close(model.logits(model.prompts(), mask), whole.plain(whole.prompts(), mask), atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"bottleneck": 0}, "bottleneck=0: an adapter is at least 1 wide"),
        ({"skip_bottleneck": -1}, "skip_bottleneck=-1"),
        ({"dropout": 0.1}, "dropout=0.1: models of transformers are adapted without"),
    ],
)
def test_refused(folder_of: Callable[[str], Path], settings: dict[str, float], text: str):
    with pytest.raises(ValueError, match=text):
        load_vlm(folder_of("llava"), **settings)
