"""Every type of model against its own forward: masks, sublayers, removal, MACs, and the short cuts against the plain way."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as t
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from das_gym.data.images import NoiseImage
from das_gym.models.inputs import Prompt
from das_gym.models.macs import MacCounter
from das_gym.models.transformers.inputs import Encoding
from das_gym.models.transformers.layer_removal import prune, pruned_copy
from das_gym.models.transformers.model import VLM, prepare_experts
from tests.models.transformers import tiny
from tests.models.transformers.conftest import Driven

IMAGE_TOKENS = list(range(3, len(tiny.SPECIAL)))
"""A random model would say them, and then lack an image."""

every_type = pytest.mark.parametrize("name", tiny.cases(tiny.WORKING))
CASES = tiny.cases(tiny.WORKING, "layers") + tiny.cases(tiny.WORKING_APART, "sublayers")

TOLERANCES = {"glm4_moe": 1e-6}
"""Types with parts that compute in float32 whatever the weights."""


def masks_of(driven: Driven) -> np.ndarray:
    """Return nothing, first, last and all skipped, and a random mask."""
    count = len(driven.vlm.layers)
    random = np.random.default_rng(0).random((1, count)) < 0.5
    return np.vstack((np.zeros((1, count)), np.eye(count)[[0, -1]], np.ones((1, count)), random)).astype(bool)


def assert_close(found: torch.Tensor, wanted: torch.Tensor, name: str = "") -> None:
    tolerance = TOLERANCES.get(name, 1e-10)
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("name", "units"), CASES)
def test_masks_give_logits_of_plain_forwards(driven, name, units):
    model = driven(name, units)
    found = [model.logits(model.prompts(), mask) for mask in masks_of(model)]
    for mask, logits in zip(masks_of(model), found, strict=True):
        assert_close(logits, model.plain(model.prompts(), mask), name)
    assert min(float((logits - found[0]).abs().max()) for logits in found[1:4]) > 1e-4  # each mask matters


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "gemma3"])
@pytest.mark.parametrize("short_cut", ["shares_prefix", "supports_kv_only_last_layer"])
def test_short_cuts_give_logits_of_the_plain_way(driven, name, short_cut):
    able = driven(name).vlm.capabilities
    assert getattr(able, short_cut)
    plain = replace(able, shares_prefix=False, supports_kv_only_last_layer=False)
    ways = [driven(name).with_capabilities(way) for way in (plain, replace(plain, **{short_cut: True}))]
    for mask in masks_of(ways[0]):
        one, other = (way.logits(way.prompts(), mask) for way in ways)
        assert_close(other, one)


@pytest.mark.parametrize(("name", "units"), [CASES[0], CASES[-1]])
@torch.no_grad()
def test_served_runs_its_own_forward_with_marks_around_units(driven, name, units):
    model = driven(name, units)
    asked = replace(model.prompts()[0], answer=None)
    forward, count = model.vlm.make_timed_forward(model.processor, [asked]), len(model.vlm.layers)
    for mask in masks_of(model):
        marked: list[int] = []
        logits = model.head(forward(mask, lambda index, hidden: marked.append(index)))  # noqa: B023
        assert marked == [index for index in range(count) for _ in range(2)]
        assert_close(logits, model.plain([asked], mask))


@every_type
def test_removed_layers_saved_and_loaded_give_logits_of_the_mask(driven, folder_of, name, tmp_path):
    """The saved folder also generates the same text with and without a cache."""
    model = driven(name)
    removed = [model.vlm.places[0], model.vlm.places[-1]]
    wanted = model.logits(model.prompts(), np.isin(model.vlm.places, removed))
    auto = AutoModelForCausalLM if name in tiny.TEXT_ALONE else AutoModelForImageTextToText
    full = auto.from_pretrained(folder_of(name), dtype=torch.float64)
    prune(full, np.isin(np.arange(tiny.LAYERS), removed)).save_pretrained(tmp_path)
    again = prepare_experts(auto.from_pretrained(tmp_path, dtype=torch.float64).eval())
    assert_close(model.with_model(again).plain(model.prompts()), wanted, name)

    encoding = model.processor.encode(model.prompts()[0], pixels=True)
    batch = {"input_ids": encoding.ids[None, : encoding.answer]} | encoding.pixels | encoding.sizes
    batch |= {name: values[None, : encoding.answer] for name, values in encoding.types.items()}
    batch = {n: v.double() if v.is_floating_point() else v for n, v in batch.items()}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    settings = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": IMAGE_TOKENS}
    one, other = (again.generate(**batch, **settings, use_cache=use_cache) for use_cache in (True, False))
    assert torch.equal(one, other)


@every_type
def test_macs_count_what_runs(driven, name):
    """A layer costs its matrix products at every position, fewer at the end of the decoder, none if it is skipped."""
    model = driven(name)
    vlm, counter = model.vlm, MacCounter(model.vlm)
    state, macs = vlm.cost_example(model.processor, model.prompts()[:1], counter)
    assert (macs > 0) == model.processor.takes_images
    state, _ = counter.embed(state)
    last = len(vlm.layers) - 1
    ways = ((False, False), (False, True), (True, True))
    everywhere, answers, skipped = (sum(counter.layer(last, state, *way).values()) for way in ways)
    tokens = state.hidden["joint"].shape[1]
    matrices = sum(p.numel() for p in vlm.skippable_layer(last).layer.parameters() if p.dim() == 2)
    assert everywhere >= tokens * matrices if name != "mllama" else everywhere > 0
    able = vlm.capabilities
    saves = able.supports_kv_only_last_layer and (able.caches_images or not model.processor.takes_images)
    assert 0 < answers < everywhere if saves else answers == everywhere
    assert (skipped > 0) == (tiny.LAYERS - 1 in vlm.capabilities.protected)  # which runs behind the last unit


def test_macs_of_llama_by_hand(driven):
    """Weights at every token, and attention's two products over all pairs of tokens. In the last layer, queries, keys and
    values are of all tokens, and everything else only where answers are read."""
    model = driven("llama")
    counter, encoding = MacCounter(model.vlm), model.processor.encode(model.prompts()[0])
    state, _ = model.vlm.cost_example(model.processor, model.prompts()[:1], counter)
    tokens, asking = len(encoding.ids), len(encoding.ids) - encoding.answer + 1
    projections, mlp, square = 32 * 32 + 32 * 16 * 2, 3 * 32 * 48, 32 * 32
    layer, last = (sum(counter.layer(n, state, False, n > 0).values()) for n in (0, tiny.LAYERS - 1))
    assert layer == tokens * (projections + square + mlp) + 2 * tokens * tokens * 32
    assert last == tokens * projections + asking * (square + mlp + 2 * tokens * 32)


@pytest.mark.parametrize("name", ["mllama", "lfm2_vl", "glm4_moe", "gpt2", "qwen2_vl"])
def test_long_common_beginnings_give_plain_logits(driven, name):
    model = driven(name)
    begin = "is the square red or green or blue, and how many circles are there, "
    ends = ("now", "is it true", "what colour")
    prompts = [Prompt(begin + end, model.prompts()[0].images, "red green") for end in ends]
    mask = np.arange(len(model.vlm.layers)) == 1
    torch.testing.assert_close(model.logits(prompts, mask), model.plain(prompts, mask), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_images_behind_common_text_give_plain_logits(driven, name):
    """The beginning that such prompts share ends before the image, so that it cannot be run by itself."""
    model = driven(name)
    images = model.prompts()[0].images
    prompts = [Prompt(f"is the square red or green or blue {n} <image> {n}", images, "red") for n in ("1", "2 2")]
    mask = [0, 1, 0, 0]
    assert_close(model.logits(prompts, mask), model.plain(prompts, mask))


def test_several_images_and_earlier_rounds_give_plain_logits(driven):
    model = driven("smolvlm")
    two, rounds = (NoiseImage(1), NoiseImage(2)), (("what is in <image>", "a square"),)
    prompts = [Prompt("is it also in <image>", two, "no", rounds), Prompt("and here", two, "true")]
    assert_close(model.logits(prompts, [0, 1, 0, 0]), model.plain(prompts, [0, 1, 0, 0]))
    text = model.processor.tokenizer.decode(model.processor.encode(prompts[0]).ids)
    assert text.index("what is in") < text.index("a square") < text.index("is it also in")


def test_bidirectional_prefixes_are_not_shared(driven):
    able = driven("paligemma").vlm.capabilities
    assert (able.shares_prefix, able.answer_type) == (False, 1)  # as its suffix in training: answers are causal


def test_deepstack_is_replayed_and_its_layers_are_protected(driven):
    model = driven("qwen3_vl")
    assert model.vlm.capabilities.additive_layers == (1, 2)
    assert [layer.name for layer in model.vlm.layers] == ["decoder.2", "decoder.3"]


@pytest.mark.slow
def test_unused_softcap_is_not_applied(tmp_path):
    """Gemma 2 caps its logits, and LLaVA around it does not; the same setting is in both configurations."""
    model, processor = tiny.llava_of(t.Gemma2Config(**tiny.text()))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    driven = Driven.load(tmp_path)
    assert driven.vlm.text_config.final_logit_softcapping
    assert (driven.head.softcap, driven.head.scale) == (None, 1.0)


@torch.no_grad()
def test_model_without_base_gives_its_heads_input():
    """Llama 4's text model holds its decoder next to the head, under a name that `base_model` does not know."""
    config = t.Llama4TextConfig(**tiny.text(num_local_experts=2, intermediate_size_mlp=48, interleave_moe_layer_step=2))
    vlm = VLM(tiny.made(lambda: (t.Llama4ForCausalLM(config), None))[0])
    assert vlm.model.base_model is vlm.model
    encoding = Encoding(torch.arange(4, 12), 6, {}, {}, {})
    hidden, logits = vlm.run([encoding]).last_hidden_state, vlm.run([encoding], with_head=True).logits
    assert hidden.shape == (1, 8, tiny.WIDTH)
    torch.testing.assert_close(vlm.language_head()(hidden), logits)


@pytest.mark.slow
def test_pruned_copy_may_end_in_a_layer_without_keys(driven):
    """LFM2's last layer is one of attention; the one before it, a convolution, has no keys and values."""
    model, mask = driven("lfm2_vl"), np.array([0, 0, 0, 1], dtype=bool)
    smaller = Driven(pruned_copy(model.vlm, mask), model.processor)
    found, wanted = smaller.logits(model.prompts(), [0, 0, 0]), model.logits(model.prompts(), mask)
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)


def test_layers_without_adapter_slots_can_only_be_searched(driven):
    vlm = driven("lfm2_vl").vlm
    assert vlm.tunable == ()
    with pytest.raises(ValueError, match="Lfm2DecoderLayer has no attention"):
        vlm.insert_adapters(2, 2, None)
