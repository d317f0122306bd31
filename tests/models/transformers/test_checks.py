"""Layers that hang together are found out wherever they stand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

from das_gym.models.transformers.checks import find_traits
from das_gym.models.transformers.loading import load_vlm
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.pruning import _shorten, apart, delete_layers, prune
from tests.models.transformers import tiny
from tests.models.transformers.conftest import Driven


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 32])
def test_of_any_two_layers_one_goes_and_the_other_stays(count: int):
    sets = apart(range(count))
    assert all(0 < len(gone) < count for gone in sets)
    assert all(any(a in gone and b not in gone for gone in sets) for a, b in itertools.permutations(range(count), 2))


def test_a_layer_that_reads_what_another_one_computed(driven: Callable[..., Driven]):
    """The last reads what the first left behind; without the middle one alone, nothing shows."""
    model, processor = tiny.make("llama")[0], driven("llama").processor
    left: dict[str, Any] = {}

    def leave(layer: Any, args: Any, output: Any) -> None:
        left["behind"] = output

    def read(layer: Any, args: Any, output: Any) -> Any:
        behind = left.pop("behind", None)
        return output if behind is None or behind.shape != output.shape else output + behind

    model.model.layers[0].register_forward_hook(leave)
    model.model.layers[3].register_forward_hook(read)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM .*(layers read what others computed|more between its layers)"):
        find_traits(model, processor)


def test_keys_and_values_of_other_layers(driven: Callable[..., Driven]):
    model = tiny.make("llama")[0]
    model.config.kv_source_layers = [0, 0, 2, 3]
    with pytest.raises(ValueError, match=r"is refused: some of its layers \(kv_source_layers\) take keys and values"):
        find_traits(model, driven("llama").processor)


def test_settings_by_number_follow_their_layers():
    """In the configuration, and in the modules that keep them: the model in memory is the one that is saved."""
    model = tiny.make("mllama")[0]
    text = model.config.text_config
    text.kv_source_layers = [0, 1, 2, 3]
    delete_layers(model, [0, 2])
    assert (text.kv_source_layers, text.cross_attention_layers) == ([0, 1], [0])
    assert model.get_decoder().cross_attention_layers == [0]


def test_layers_with_settings_of_their_own_keep_them():
    config = t.LlamaConfig(**tiny.text(), per_layer_config={2: {"intermediate_size": 24}})
    _shorten(config, [1, 2, 3], 4)
    assert [layer.intermediate_size for layer in config.per_layer_config] == [48, 24, 48]
    assert list(config.to_dict()["per_layer_config"]) == ["1"]


def test_lists_that_are_as_long_as_the_decoder_by_chance_stay():
    model = t.LlamaForCausalLM(t.LlamaConfig(**tiny.text() | {"num_hidden_layers": 3}))
    model.config.eos_token_id, model.config.ssm_multipliers = [2, 3, 4], [0.1, 0.2, 0.3]
    prune(model, [0, 1, 0])
    assert (model.config.eos_token_id, model.config.ssm_multipliers) == ([2, 3, 4], [0.1, 0.2, 0.3])


def test_all_layers_that_see_a_window_can_go():
    """The decoder remembers whether there are any."""
    settings = tiny.text(use_sliding_window=True, sliding_window=8, max_window_layers=2)
    model = prune(t.Qwen3ForCausalLM(t.Qwen3Config(**settings)), [0, 0, 1, 1])
    assert model.config.layer_types == ["full_attention"] * 2
    assert model.model.has_sliding_layers is False
    model = prune(t.Qwen3ForCausalLM(t.Qwen3Config(**settings)), [0, 1, 0, 0])
    assert model.config.max_window_layers == 1  # what others read, who do not know `layer_types`


def test_a_vision_tower_that_counts_its_layers_loses_some():
    """Gemma 4's is asked for the number by nobody but itself."""
    model = tiny.gemma4()[0]
    prune(model, [0] * 4, [0, 1, 0])
    assert model.config.vision_config.num_hidden_layers == model.model.vision_tower.encoder.num_layers == 2


@pytest.mark.slow
def test_what_rounding_would_hide_is_seen_in_16_bits():
    """PaliGemma's question is read both ways: an answer's tokens are of another type, and nothing is shared."""
    model, processor = tiny.make("paligemma", torch.bfloat16)
    before = [id(parameter) for parameter in model.parameters()]
    traits = find_traits(model, VLM(model).processor_of(processor))
    assert (traits.shares_prefix, traits.answer_type) == (False, 1)
    assert [id(parameter) for parameter in model.parameters()] == before
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.slow
def test_a_model_of_double_weights_that_rounds_to_float32_is_driven(tmp_path: Path):
    model = Driven(tiny.save_made(tiny.hunyuan_vl, tmp_path, torch.float64))
    found, wanted = (logits(model.prompts(), [1, 0, 0, 1]) for logits in (model.logits, model.plain))
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_pictures_that_are_numbered_within_their_batch_are_seen_one_by_one(tmp_path: Path):
    """Molmo 2's; each of its layers keeps its own kind of rotary embeddings."""
    model = Driven(tiny.save_made(tiny.molmo2, tmp_path / "whole", torch.float64))
    assert model.vlm.traits.keeps_images
    for mask in ([0, 0, 0, 0], [1, 0, 0, 1]):
        wanted = model.logits(model.prompts(), mask)
        torch.testing.assert_close(wanted, model.plain(model.prompts(), mask), atol=1e-10, rtol=1e-10)
    prune(model.vlm.model, [1, 0, 0, 1]).save_pretrained(tmp_path / "smaller")
    again = Driven(tmp_path / "whole")
    again.vlm.model = t.AutoModelForImageTextToText.from_pretrained(tmp_path / "smaller", dtype=torch.float64).eval()
    assert again.vlm.model.config.text_config.rope_scaling_layers == [1]
    torch.testing.assert_close(again.plain(model.prompts(), [0] * 4), wanted, atol=1e-10, rtol=1e-10)


@pytest.mark.slow
def test_logits_that_are_bounded_under_another_name(tmp_path: Path):
    vlm = load_vlm(tiny.save_made(tiny.recurrent_gemma, tmp_path, torch.float64))
    assert vlm.traits.softcap == 30.0


def test_a_layer_whose_deletion_cannot_be_loaded_is_told_before_it_is_run(driven: Callable[..., Driven]):
    """Gemma 4's embeddings by layer are one matrix for all of them."""
    settings = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 0, "global_head_dim": 8}
    config = t.Gemma4TextConfig(**tiny.text(**settings), hidden_size_per_layer_input=4, vocab_size_per_layer_input=512)
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"without layer 2 would not load again as it was: .*per_layer"):
        find_traits(t.Gemma4ForCausalLM(config).eval(), driven("gemma4_text").processor)


def test_nobody_is_shown_bars_where_nobody_looks(folder_of: Callable[[str], Path], capfd: pytest.CaptureFixture[str]):
    folder = folder_of("llama")
    capfd.readouterr()
    load_vlm(folder)
    assert capfd.readouterr().err == ""
