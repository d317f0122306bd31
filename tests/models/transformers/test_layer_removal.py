"""Removed layers: the configuration follows, and what cannot be removed is rejected."""

import pytest
import transformers as t

from das_gym.models.transformers.layer_removal import delete_layers, prune
from tests.models.transformers import tiny


def test_delete_layers_renumbers_settings_in_configuration_and_modules():
    model = tiny.make("mllama")[0]
    text = model.config.text_config
    text.kv_source_layers = [0, 1, 2, 3]
    delete_layers(model, [0, 2])
    assert (text.kv_source_layers, text.cross_attention_layers) == ([0, 1], [0])
    assert model.get_decoder().cross_attention_layers == [0]


def test_prune_removes_all_layers_with_a_sliding_window():
    """The decoder remembers whether there are any."""
    settings = tiny.text(use_sliding_window=True, sliding_window=8, max_window_layers=2)
    model = prune(t.Qwen3ForCausalLM(t.Qwen3Config(**settings)), [0, 0, 1, 1])
    assert model.config.layer_types == ["full_attention"] * 2
    assert model.model.has_sliding_layers is False
    model = prune(t.Qwen3ForCausalLM(t.Qwen3Config(**settings)), [0, 1, 0, 0])
    assert model.config.max_window_layers == 1  # which others read, who do not know `layer_types`


def test_prune_renumbers_a_vision_tower_that_counts_its_layers():
    model = tiny.gemma4()[0]
    prune(model, [0] * 4, [0, 1, 0])
    assert model.config.vision_config.num_hidden_layers == model.model.vision_tower.encoder.num_layers == 2


@pytest.mark.parametrize(("mask", "text"), [([0, 1], "`mask`"), ([1, 1, 1, 1], "all 4 decoder"), ([0, 2, 0, 0], "`mask`")])
def test_prune_rejects_masks(mask, text):
    with pytest.raises(ValueError, match=text):
        prune(tiny.make("llava")[0], mask)


def test_prune_rejects_a_model_that_would_not_reload():
    """Gemma 4 makes its last layer one of full attention, whatever its configuration says."""
    with pytest.raises(ValueError, match="would not load again"):
        prune(tiny.make("gemma4_text")[0], [0, 0, 0, 1])
