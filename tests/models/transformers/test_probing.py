"""What probing finds out about a model, and what it rejects."""

import itertools
from typing import Any

import pytest
import torch
import transformers as t

from das_gym.models.transformers import comparison
from das_gym.models.transformers.comparison import Comparison
from das_gym.models.transformers.layer_removal import prune
from das_gym.models.transformers.loading import load_vlm
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.probing import probe_capabilities, separating_sets
from tests.models.transformers import tiny
from tests.models.transformers.conftest import Driven


def gemma4(**settings: Any) -> Any:
    kinds = ["sliding_attention", "full_attention"] * 2
    return t.Gemma4ForCausalLM(t.Gemma4TextConfig(**tiny.text(layer_types=kinds, global_head_dim=8, **settings))).eval()


@pytest.mark.parametrize("count", [1, 4, 7])
def test_separating_sets_separate_any_two_layers(count):
    sets = separating_sets(range(count))
    assert all(0 < len(removed) < count for removed in sets)
    pairs = itertools.permutations(range(count), 2)
    assert all(any(a in removed and b not in removed for removed in sets) for a, b in pairs)


def test_layer_that_reads_another_layer_is_rejected(driven):
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
    with pytest.raises(ValueError, match="LlamaForCausalLM is not supported"):
        probe_capabilities(model, processor)


def test_layers_that_share_keys_and_values_are_rejected(driven):
    model = tiny.make("llama")[0]
    model.config.kv_source_layers = [0, 0, 2, 3]
    with pytest.raises(ValueError, match="`kv_source_layers`"):
        probe_capabilities(model, driven("llama").processor)
    with pytest.raises(ValueError, match="`num_kv_shared_layers`"):
        probe_capabilities(gemma4(num_kv_shared_layers=2, hidden_size_per_layer_input=0), driven("llama").processor)


def test_smaller_model_that_would_not_reload_is_rejected(driven):
    """Gemma 4's embeddings by layer are one matrix for all of them; DiffLlama's layers compute with their position."""
    torch.manual_seed(0)
    shared = gemma4(num_kv_shared_layers=0, hidden_size_per_layer_input=4, vocab_size_per_layer_input=512)
    with pytest.raises(ValueError, match=r"would not load again as it was: .*per_layer"):
        probe_capabilities(shared, driven("gemma4_text").processor)
    with pytest.raises(ValueError, match=r"would not load again as it was: .*lambda_init"):
        probe_capabilities(t.DiffLlamaForCausalLM(t.DiffLlamaConfig(**tiny.text())).eval(), driven("llama").processor)


@pytest.mark.slow
@pytest.mark.parametrize("common", [0.0, 0.3])
def test_probing_of_16_bits_sees_what_rounding_would_hide(common):
    """PaliGemma's question is read both ways: an answer's tokens are of another type, and nothing is shared.

    Embeddings with a large common part, as pretrained models have, leave little of what attention adds.
    """
    model, processor = tiny.make("paligemma", torch.bfloat16)
    embeddings = model.get_input_embeddings().weight
    embeddings.data += common * torch.randn(embeddings.shape[1])
    before = [id(parameter) for parameter in model.parameters()]
    able = probe_capabilities(model, VLM(model).wrap_processor(processor))
    assert (able.shares_prefix, able.answer_type) == (False, 1)
    assert [id(parameter) for parameter in model.parameters()] == before
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_attention_and_mlp_side_by_side_are_no_units(tmp_path):
    """Of GPT-NeoX, with one large component of the embeddings, as pretrained models have."""
    sizes = {"vocab_size": tiny.VOCABULARY, "hidden_size": tiny.WIDTH, "intermediate_size": 48, "num_hidden_layers": 4}

    def make() -> tuple[Any, Any]:
        config = t.GPTNeoXConfig(**sizes, num_attention_heads=4, bos_token_id=1, eos_token_id=2, pad_token_id=0)
        model = t.GPTNeoXForCausalLM(config)
        model.get_input_embeddings().weight.data[:, 3] += 20.0
        return model, tiny.tokenizer()

    with pytest.raises(ValueError, match="in parallel"):
        load_vlm(tiny.save_made(make, tmp_path), units="sublayers")


def test_nan_is_not_the_same(driven):
    same, nan = Comparison(driven("llama").vlm.model, driven("llama").processor).same, torch.tensor([1.0, torch.nan])
    assert not any(same(*pair) for pair in ((nan, nan), (nan, torch.ones(2)), (torch.ones(2), nan)))
    forbidden = torch.tensor([1.0, -torch.inf])
    assert same(forbidden, forbidden.clone())
    assert not same(forbidden, torch.ones(2))


def test_16_bit_model_whose_embeddings_have_a_rounded_factor_is_supported(tmp_path):
    """Gemma's factor, the root of the width, is a buffer that is not saved: 6.3246 is 6.3125 in bfloat16."""
    config = t.Gemma2Config(**tiny.text(hidden_size=40, sliding_window=8))
    folder = tiny.save_made(lambda: (t.Gemma2ForCausalLM(config), tiny.tokenizer()), tmp_path, torch.bfloat16)
    assert load_vlm(folder).model.dtype == torch.bfloat16


@pytest.mark.slow
def test_float64_model_that_rounds_to_float32_is_supported(tmp_path):
    model = Driven.load(tiny.save_made(tiny.hunyuan_vl, tmp_path, torch.float64))
    found, wanted = (logits(model.prompts(), [1, 0, 0, 1]) for logits in (model.logits, model.plain))
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_softcap_under_another_name_is_found(tmp_path):
    assert load_vlm(tiny.save_made(tiny.recurrent_gemma, tmp_path, torch.float64)).capabilities.logit_softcap == 30.0


@pytest.mark.slow
def test_images_that_are_numbered_within_their_batch_are_encoded_one_by_one(tmp_path):
    """Molmo 2's; each of its layers keeps its own kind of rotary embeddings."""
    model = Driven.load(tiny.save_made(tiny.molmo2, tmp_path / "full", torch.float64))
    assert model.vlm.capabilities.caches_images
    for mask in ([0, 0, 0, 0], [1, 0, 0, 1]):
        wanted = model.logits(model.prompts(), mask)
        torch.testing.assert_close(wanted, model.plain(model.prompts(), mask), atol=1e-10, rtol=1e-10)
    prune(model.vlm.model, [1, 0, 0, 1]).save_pretrained(tmp_path / "smaller")
    again = t.AutoModelForImageTextToText.from_pretrained(tmp_path / "smaller", dtype=torch.float64).eval()
    assert again.config.text_config.rope_scaling_layers == [1]
    torch.testing.assert_close(model.with_model(again).plain(model.prompts()), wanted, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", tiny.cases(tiny.WORKING))
def test_large_model_probed_by_few_layers_gives_the_same_capabilities(name, driven, monkeypatch):
    monkeypatch.setattr(comparison, "LARGE_BYTES", 0)
    monkeypatch.setattr(comparison, "LAYERS_PER_KIND", 2)
    model = driven(name)
    assert probe_capabilities(model.vlm.model, model.processor) == model.vlm.capabilities
    assert not any("forward" in vars(layer) for layer in model.vlm.stack.layers)


def test_large_model_runs_few_of_its_alike_layers(driven, monkeypatch):
    """The first forward and the last comparison run all layers: at least three times each."""
    monkeypatch.setattr(comparison, "LARGE_BYTES", 0)
    model, runs = t.LlamaForCausalLM(t.LlamaConfig(**tiny.text(num_hidden_layers=9))).eval(), [0] * 9
    for place, layer in enumerate(model.model.layers):

        def count(*_: Any, place: int = place) -> None:
            runs[place] += 1

        layer.mlp.register_forward_hook(count)
    probe_capabilities(model, driven("llama").processor)
    assert max(runs[2:7]) <= 4 < 8 < min(runs[:2] + runs[7:])
