"""Attention and MLP removed apart: by type of model, against the masked model, in memory and from a folder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t
from das_gym.adapt.shrinking.saving import save
from safetensors import safe_open

from das_gym.files import read_json
from das_gym.models.transformers.generation import can_pad_left, generate_batch, greedy_settings, pad_token
from das_gym.models.transformers.layer_removal import counting_attentions, draw_mask, full_model_with_parameters, pruned_copy
from das_gym.models.transformers.loading import auto_class, load_vlm
from das_gym.models.transformers.model import VLM, prepare_experts
from das_gym.models.transformers.stack import replace_forwards
from tests.models.transformers import tiny
from tests.models.transformers.conftest import Driven

APART = ("0.attention", "1.mlp", "3.attention")
TOGETHER = ("0.attention", "1.attention", "1.mlp", "3.mlp")
"""A layer loses both parts, and is deleted."""

WAYS: dict[str, dict[str, Any]] = {"with a cache": {}, "without a cache": {"use_cache": False}, "beams": {"num_beams": 3}}

every_type = pytest.mark.parametrize("name", tiny.cases(tiny.WORKING_APART))


def mask_of(vlm: VLM, units: tuple[str, ...]) -> np.ndarray:
    return np.array([layer.name.removeprefix("decoder.") in units for layer in vlm.layers])


def saved(model: Driven, mask: np.ndarray, source: Path, folder: Path) -> Path:
    save(pruned_copy(model.vlm, mask).model, folder, source, source, torch.float64)
    return folder


def load(folder: Path) -> tuple[Any, dict[str, Any]]:
    auto = auto_class(t.AutoConfig.from_pretrained(folder))
    options: dict[str, Any] = {"trust_remote_code": True, "dtype": torch.float64, "output_loading_info": True}
    model, report = auto.from_pretrained(folder, **options)
    return prepare_experts(model.eval()), {name: keys for name, keys in report.items() if keys}


@every_type
def test_saved_folder_gives_logits_and_text_of_the_masked_model(driven, folder_of, tmp_path, name):
    model = driven(name, "sublayers")
    vlm, processor, prompts = model.vlm, model.processor, model.prompts()
    mask = mask_of(vlm, APART)
    loaded, report = load(saved(model, mask, folder_of(name), tmp_path / "out"))
    assert not report
    torch.testing.assert_close(model.with_model(loaded).plain(prompts), model.plain(prompts, mask), atol=1e-10, rtol=0)

    encodings = [processor.encode(prompt, pixels=True) for prompt in prompts]
    settings = {**greedy_settings(vlm, processor, 6), "eos_token_id": None}
    smaller, can_pad = (
        VLM(loaded, capabilities=vlm.capabilities),
        can_pad_left(vlm, encodings[:1], pad_token(vlm, processor)),
    )
    for way, options in WAYS.items():
        with replace_forwards(vlm.skip_forwards(mask)):  # in place, so that its cache has an empty slot: without a cache
            uncached = {**options, "use_cache": False}
            wanted = [generate_batch(vlm, processor, [e], settings, (), **uncached)[0] for e in encodings[::2]]
        assert [generate_batch(smaller, processor, [e], settings, (), **options)[0] for e in encodings[::2]] == wanted, way
        if can_pad:
            padded = generate_batch(smaller, processor, encodings[::2], settings, (), extra=3, **options)
            assert padded == wanted, way


def test_saved_folder_says_what_is_gone_and_holds_none_of_it(driven, folder_of, tmp_path):
    model = driven("smolvlm", "sublayers")
    folder = saved(model, mask_of(model.vlm, TOGETHER), folder_of("smolvlm"), tmp_path / "out")
    config = read_json(folder / "config.json")
    skips = {0: "attention", 2: "mlp"}
    assert config["text_config"]["per_layer_config"] == {str(n): {"skip": [kind]} for n, kind in skips.items()}
    assert config["text_config"]["num_hidden_layers"] == 3
    (weights,) = folder.glob("*.safetensors")
    with safe_open(weights, "pt") as file:
        names = list(file.keys())
    gone = {"attention": ("self_attn", "input_layernorm"), "mlp": ("mlp", "post_attention_layernorm")}
    for place in range(3):
        for kind, parts in gone.items():
            for part in parts:
                has_weights = any(f"text_model.layers.{place}.{part}." in name for name in names)
                assert has_weights == (skips.get(place) != kind)


def test_norms_of_removed_parts_are_found_by_what_reads_them(driven):
    """In Gemma 3, the norm before the MLP has the name of the one behind the attention in other types, and more norms."""
    vlm = driven("gemma3", "sublayers").vlm
    layers = pruned_copy(vlm, mask_of(vlm, ("0.attention", "1.mlp"))).stack.layers
    norms = [
        {name for name, part in layer.named_children() if "norm" in name and list(part.parameters())} for layer in layers
    ]
    attention = {"input_layernorm", "post_attention_layernorm"}
    mlp = {"pre_feedforward_layernorm", "post_feedforward_layernorm"}
    assert norms == [mlp, attention, attention | mlp, attention | mlp]


@pytest.mark.parametrize("auto", [t.AutoModelForImageTextToText, t.LlavaForConditionalGeneration])
def test_saved_folder_does_not_load_without_its_code(driven, folder_of, tmp_path, auto):
    """transformers' own class would fill the missing weights with noise."""
    model = driven("llava", "sublayers")
    folder = saved(model, mask_of(model.vlm, APART), folder_of("llava"), tmp_path / "out")
    assert t.AutoConfig.from_pretrained(folder).text_config.per_layer_config[1].skip == ["mlp"]
    with pytest.raises(OSError, match=r"model\.safetensors"):
        auto.from_pretrained(folder)
    loaded, _ = load(folder)
    loaded.save_pretrained(tmp_path / "again")  # as one does after fine-tuning
    with pytest.raises(OSError, match=r"model\.safetensors"):
        auto.from_pretrained(tmp_path / "again")
    again, report = load(tmp_path / "again")
    assert not report
    for name, value in loaded.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_pruned_copy_needs_an_attention_of_the_first_layers_kind(driven):
    """Gemma 3's layers 0 and 2 have a sliding window, and caches of their own."""
    vlm = driven("gemma3", "sublayers").vlm
    assert counting_attentions(vlm.model) == [0, 2]
    with pytest.raises(ValueError, match="No attention"):
        pruned_copy(vlm, mask_of(vlm, ("0.attention", "2.attention")))


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny.WHOLE_ONLY)
def test_load_vlm_rejects_sublayers_of_layers_with_more_parts(folder_of, name):
    """LFM 2 has layers of convolutions, and Gemma 4 multiplies the output of each layer."""
    with pytest.raises(ValueError, match="`units`"):
        load_vlm(folder_of(name), units="sublayers")


def test_full_with_parameters_of_takes_those_of_kept_parts(driven):
    model = driven("llava", "sublayers")
    mask = mask_of(model.vlm, TOGETHER)
    smaller = pruned_copy(model.vlm, mask)
    for module in smaller.model.modules():
        for name, parameter in module._parameters.items():
            module._parameters[name] = None if parameter is None else torch.nn.Parameter(1.1 * parameter)
    merged = Driven(full_model_with_parameters(model.vlm, smaller, mask), model.processor)
    prompts = model.prompts()
    torch.testing.assert_close(
        merged.logits(prompts, mask), model.with_model(smaller.model).plain(prompts), atol=1e-10, rtol=0
    )
    assert not torch.allclose(merged.logits(prompts, mask), model.logits(prompts, mask))


def test_draw_mask_tells_what_is_left_of_layers(driven):
    vlm = driven("llava", "sublayers").vlm
    assert draw_mask(vlm, mask_of(vlm, TOGETHER)) == "M□■A"
    assert vlm.removed_layers(mask_of(vlm, TOGETHER)) == [1]


def test_load_vlm_rejects_a_folder_without_sublayers(driven, folder_of, tmp_path):
    model = driven("llava", "sublayers")
    folder = saved(model, mask_of(model.vlm, APART), folder_of("llava"), tmp_path / "out")
    for trusted in (True, False):
        with pytest.raises(ValueError, match="`units=sublayers`"):
            load_vlm(folder, trust_remote_code=trusted)
