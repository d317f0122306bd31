"""Every type of model against its own forward: masks, sublayers, deletion for real, MACs, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as t
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from das_gym.models.inputs import Prompt
from das_gym.models.macs import MacCounter
from das_gym.models.transformers.checks import NoiseImage, in_double
from das_gym.models.transformers.inputs import Encoding
from das_gym.models.transformers.loading import load_vlm
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.pruning import prune
from tests.models.transformers import tiny
from tests.models.transformers.conftest import Driven

MARKS = list(range(3, len(tiny.SPECIAL)))
"""Tokens that stand for pictures: a random model would say them, and then lack a picture."""

every_type = pytest.mark.parametrize("name", tiny.cases(tiny.WORKING))


def _sharing() -> dict[str, object]:
    kinds = ["sliding_attention", "full_attention"] * 2
    return tiny.text(layer_types=kinds, global_head_dim=8, hidden_size_per_layer_input=0, num_kv_shared_layers=2)


def masks_of(driven: Driven) -> np.ndarray:
    """Nothing, first, last and all skipped, and a random one."""
    count = len(driven.vlm.layers)
    random = np.random.default_rng(0).random((1, count)) < 0.5
    return np.vstack((np.zeros((1, count)), np.eye(count)[[0, -1]], np.ones((1, count)), random)).astype(bool)


CASES = tiny.cases(tiny.WORKING, "layers") + tiny.cases(tiny.WORKING_APART, "sublayers")

ROUNDED = {"glm4_moe": 1e-6}
"""Types with parts that compute in float32 whatever the weights: how far logits may be apart."""


@pytest.mark.parametrize(("name", "units"), CASES)
def test_every_mask_gives_what_a_plain_forward_gives(driven: Callable[..., Driven], name: str, units: str):
    model = driven(name, units)
    prompts = model.prompts()
    found = [model.logits(prompts, mask) for mask in masks_of(model)]
    for mask, logits in zip(masks_of(model), found, strict=True):
        tolerance = ROUNDED.get(name, 1e-10)
        torch.testing.assert_close(logits, model.plain(prompts, mask), atol=tolerance, rtol=tolerance)
    assert min(float((logits - found[0]).abs().max()) for logits in found[1:4]) > 1e-4  # each mask matters


@pytest.mark.parametrize(("name", "units"), [CASES[0], CASES[-1]])
@torch.no_grad()
def test_served_is_its_own_forward_with_marks_around_units(driven: Callable[..., Driven], name: str, units: str):
    model, head = driven(name, units), driven(name, units).head
    prompt = next(prompt for prompt in model.prompts() if prompt.answer == "2")
    forward, count = model.vlm.served(model.processor, [prompt]), len(model.vlm.layers)
    for mask in masks_of(model):
        marked: list[int] = []
        logits = head(forward(mask, lambda index, hidden: marked.append(index)))  # noqa: B023
        assert marked == [index for index in range(count) for _ in range(2)]
        torch.testing.assert_close(logits, model.last(prompt, mask), atol=1e-10, rtol=1e-10)


@every_type
def test_deleted_for_real_saved_and_loaded_it_says_the_same(
    driven: Callable[..., Driven], folder_of: Callable[[str], Path], name: str, tmp_path: Path
):
    """In transformers alone: same logits as the mask's, and the same text with and without a cache."""
    model = driven(name)
    gone = [model.vlm.places[0], model.vlm.places[-1]]
    mask = np.isin(model.vlm.places, gone)
    wanted = model.logits(model.prompts(), mask)
    auto = AutoModelForCausalLM if name in tiny.TEXT_ALONE else AutoModelForImageTextToText
    whole = auto.from_pretrained(folder_of(name), dtype=torch.float64)
    prune(whole, np.isin(np.arange(tiny.LAYERS), gone)).save_pretrained(tmp_path)
    again = in_double(auto.from_pretrained(tmp_path, dtype=torch.float64).eval())
    plain = Driven.__new__(Driven)
    plain.vlm, plain.processor = type(model.vlm)(again), model.processor
    tolerance = ROUNDED.get(name, 1e-10)
    found = plain.plain(model.prompts(), [0] * len(plain.vlm.layers))
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)
    assert _says(again, model, True) == _says(again, model, False)


def _says(model: torch.nn.Module, driven: Driven, use_cache: bool) -> list[int]:
    encoding = driven.processor.encode(driven.prompts()[0], pixels=True)
    batch = {"input_ids": encoding.ids[None, : encoding.answer]} | encoding.pixels | encoding.sizes
    batch |= {name: values[None, : encoding.answer] for name, values in encoding.types.items()}
    batch = {n: t.double() if t.is_floating_point() else t for n, t in batch.items()}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    return model.generate(**batch, max_new_tokens=6, do_sample=False, use_cache=use_cache, suppress_tokens=MARKS)[0].tolist()


@every_type
def test_pruned_it_is_the_same_with_fewer_parameters(folder_of: Callable[[str], Path], name: str):
    model = Driven(folder_of(name))
    prompts, mask = model.prompts(), np.zeros(len(model.vlm.layers), dtype=bool)
    mask[[0, -1]] = True
    wanted, before = model.logits(prompts, mask), sum(p.numel() for p in model.vlm.parameters())
    model.vlm.prune(mask)
    torch.testing.assert_close(model.logits(prompts, mask), wanted, atol=0, rtol=0)
    assert sum(p.numel() for p in model.vlm.parameters()) < before


@every_type
def test_macs_of_what_runs(driven: Callable[..., Driven], name: str):
    """A layer costs its matrix products at every position, less at the end of the decoder, nothing where it is skipped."""
    model = driven(name)
    vlm, counter = model.vlm, MacCounter(model.vlm)
    state, macs = vlm.sample(model.processor, model.prompts()[:1], counter)
    assert (macs > 0) == model.processor.sees
    state, _ = counter.embed(state)
    last = len(vlm.layers) - 1
    whole, answers, skipped = (
        sum(counter.layer(last, state, skipped, pooled_only).values())
        for skipped, pooled_only in ((False, False), (False, True), (True, True))
    )
    tokens = state.hidden["joint"].shape[1]
    matrices = sum(p.numel() for p in vlm.skippable(last).layer.parameters() if p.dim() == 2)
    assert whole >= tokens * matrices if name != "mllama" else whole > 0
    assert 0 < answers < whole if vlm.traits.keys_only else answers == whole
    assert (skipped > 0) == (tiny.LAYERS - 1 in vlm.traits.protected)  # which runs behind the last unit


def test_llama_by_hand(driven: Callable[..., Driven]):
    """Matrix products of one layer: its weights at every token, and attention's two products over all pairs of tokens."""
    model = driven("llama")
    counter = MacCounter(model.vlm)
    state, _ = model.vlm.sample(model.processor, model.prompts()[:1], counter)
    tokens = len(model.processor.encode(model.prompts()[0]).ids)
    weights = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48
    assert sum(counter.layer(0, state, False, False).values()) == tokens * weights + 2 * tokens * tokens * 32


def test_pictures_that_questions_share_run_once(driven: Callable[..., Driven]):
    model = driven("llava")
    seen = lambda _, items: {key: model.vlm.see(model.processor, one) for key, one in items.items()}  # noqa: E731
    (block,) = model.vlm.gather(model.processor, model.prompts(), seen).extras["blocks"]
    assert (block.packing.groups, block.rows) == (2, 6)
    assert block.packing.prefix >= 17  # patches and class token
    assert block.first > 0


def test_a_model_that_looks_both_ways_shares_nothing(driven: Callable[..., Driven]):
    traits = driven("paligemma").vlm.traits
    assert not traits.shares_prefix
    assert traits.answer_type == 1  # as its suffix in training: it sees what is before it alone


@pytest.mark.parametrize("name", ["mllama", "lfm2_vl", "glm4_moe", "gpt2"])
def test_questions_that_begin_alike(driven: Callable[..., Driven], name: str):
    """Whether their beginning may run once was once not tried where it holds few marks of pictures."""
    model = driven(name)
    image = model.prompts()[0].images
    begin = "is the square red or green or blue, and how many circles are there, "
    prompts = [Prompt(begin + end, image, "red green") for end in ("now", "is it true", "what colour")]
    mask = np.arange(len(model.vlm.layers)) == 1
    torch.testing.assert_close(model.logits(prompts, mask), model.plain(prompts, mask), atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_what_a_model_does_not_do_with_its_logits_is_not_done(tmp_path: Path):
    """Gemma 2 caps its logits, and LLaVA around it does not; the same setting stands in both configurations."""
    model, processor = tiny.llava_of(t.Gemma2Config(**tiny.text()))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    driven = Driven(tmp_path)
    assert driven.vlm.text_config.final_logit_softcapping
    assert (driven.head.softcap, driven.head.scale) == (None, 1.0)


@torch.no_grad()
def test_a_model_that_is_its_own_base_gives_what_its_head_reads():
    """Llama 4's text model holds its decoder beside the head, under a name that `base_model` does not know."""
    config = t.Llama4TextConfig(**tiny.text(num_local_experts=2, intermediate_size_mlp=48, interleave_moe_layer_step=2))
    vlm = VLM(tiny.made(lambda: (t.Llama4ForCausalLM(config), None))[0])
    assert vlm.model.base_model is vlm.model
    encoding = Encoding(torch.arange(4, 12), 6, {}, {}, {})
    hidden, logits = vlm.run([encoding]).last_hidden_state, vlm.run([encoding], whole=True).logits
    assert hidden.shape == (1, 8, tiny.WIDTH)
    torch.testing.assert_close(vlm.own_head()(hidden), logits)


def test_layers_without_a_place_for_adapters_are_searched_only(driven: Callable[..., Driven]):
    vlm = driven("lfm2_vl").vlm
    assert vlm.tunable == ()
    with pytest.raises(ValueError, match="Lfm2DecoderLayer has no attention and no norm before its attention for adapters"):
        vlm.insert_adapters(2, 2, None)


def test_deepstack_is_replayed_and_its_layers_are_protected(driven: Callable[..., Driven]):
    model = driven("qwen3_vl")
    assert model.vlm.traits.adds == (1, 2)
    assert [layer.name for layer in model.vlm.layers] == ["decoder.2", "decoder.3"]


def test_several_pictures_and_earlier_rounds(driven: Callable[..., Driven]):
    model = driven("smolvlm")
    two = (NoiseImage(1), NoiseImage(2))
    rounds = (("what is in <image>", "a square"),)
    prompts = [Prompt("is it also in <image>", two, "no", rounds), Prompt("and here", two, "true")]
    torch.testing.assert_close(model.logits(prompts, [0, 1, 0, 0]), model.plain(prompts, [0, 1, 0, 0]), atol=1e-10, rtol=0)
    text = model.processor.tokenizer.decode(model.processor.encode(prompts[0]).ids)
    assert text.index("what is in") < text.index("a square") < text.index("is it also in")


class TestRefused:
    def test_a_type_that_cannot_be(self, folder_of: Callable[[str], Path]):
        with pytest.raises(ValueError, match=r"Blip2ForConditionalGeneration \(blip-2\) is refused: .*cross_attention_freq"):
            load_vlm(folder_of("blip_2"))

    @pytest.mark.parametrize(
        ("model", "text"),
        [
            (
                lambda: t.Gemma4ForCausalLM(t.Gemma4TextConfig(**_sharing())),
                "its last 2 layers .* take keys and values from",
            ),
            (
                lambda: t.DiffLlamaForCausalLM(t.DiffLlamaConfig(**tiny.text())),
                "would not load again as it was: .*lambda_init",
            ),
        ],
    )
    def test_layers_that_hang_together(self, model: Callable[[], torch.nn.Module], text: str, tmp_path: Path):
        model().save_pretrained(tmp_path)
        tiny.tokenizer().save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=text):
            load_vlm(tmp_path)

    def test_a_processor_of_another_model(self, folder_of: Callable[[str], Path]):
        """What transformers raises comes back as one line, which names the folder."""
        text = (
            rf"^{re.escape(str(folder_of('llava')))}: LlavaForCond.* cannot be driven: its own forward fails .*\(\w+: .+\)$"
        )
        with pytest.raises(ValueError, match=text):
            load_vlm(folder_of("llava"), tokenizer=folder_of("qwen2_vl"))

    def test_a_mask_whose_model_would_load_again_as_another(self):
        """Gemma 4 makes its last layer one of full attention, whatever its configuration says."""
        with pytest.raises(
            ValueError, match=r"without its layers \[3\] would not load again as it was: .*; use another mask"
        ):
            prune(tiny.make("gemma4_text")[0], [0, 0, 0, 1])

    def test_a_folder_without_a_processor(self, folder_of: Callable[[str], Path], tmp_path: Path):
        shutil.copytree(folder_of("llava"), tmp_path / "model")
        for name in ("processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
            (tmp_path / "model" / name).unlink(missing_ok=True)
        with pytest.raises(FileNotFoundError, match="holds no processor that transformers can read"):
            load_vlm(tmp_path / "model")

    def test_no_model_at_all(self, tmp_path: Path):
        with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
            load_vlm(tmp_path)

    def test_weights_that_do_not_fit(self, folder_of: Callable[[str], Path], tmp_path: Path):
        shutil.copytree(folder_of("llava"), tmp_path / "model")
        config = json.loads((tmp_path / "model/config.json").read_text())
        config["text_config"]["num_hidden_layers"] += 1
        (tmp_path / "model/config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"do not fit its config\.json: \d+ are missing"):
            load_vlm(tmp_path / "model")

    @pytest.mark.parametrize("part", ["", "text_config"])
    def test_quantised_weights(self, folder_of: Callable[[str], Path], tmp_path: Path, part: str):
        shutil.copytree(folder_of("llava"), tmp_path / "model")
        config = json.loads((tmp_path / "model/config.json").read_text())
        (config[part] if part else config)["quantization_config"] = {"quant_method": "gptq", "bits": 4}
        (tmp_path / "model/config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"holds quantised weights \(gptq\)"):
            load_vlm(tmp_path / "model")

    def test_quantised_weights_by_a_file_of_their_own(self, folder_of: Callable[[str], Path], tmp_path: Path):
        shutil.copytree(folder_of("llava"), tmp_path / "model")
        (tmp_path / "model/quantize_config.json").write_text('{"bits": 4, "group_size": 128}')
        with pytest.raises(ValueError, match=r"holds quantised weights \(quantize_config\.json\)"):
            load_vlm(tmp_path / "model")

    def test_a_type_of_weights_that_is_none(self, folder_of: Callable[[str], Path]):
        with pytest.raises(ValueError, match="dtype='float31' is no type of weights"):
            load_vlm(folder_of("llava"), dtype="float31")

    @pytest.mark.parametrize(
        ("mask", "text"),
        [([0, 1], "this model has 4 decoder layers"), ([1, 1, 1, 1], "leave one at least"), ([0, 2, 0, 0], "one bool each")],
    )
    def test_a_mask_that_cannot_be_deleted(self, mask: list[int], text: str):
        with pytest.raises(ValueError, match=text):
            prune(tiny.make("llava")[0], mask)

    @pytest.mark.parametrize(
        ("prompt", "text"),
        [
            (Prompt("what <image> and <image>", (NoiseImage(0),), "red"), "has 2 marks <image> for 1 pictures"),
            (Prompt("what", (NoiseImage(0),), "  "), "comes to no token"),
            (Prompt("what " * 600, (NoiseImage(0),), "red"), "its answer's [1-9], the model reads 512: take it out"),
        ],
    )
    def test_a_prompt_that_cannot_be(self, driven: Callable[..., Driven], prompt: Prompt, text: str):
        with pytest.raises(ValueError, match=text):
            driven("llava").processor.encode(prompt)

    def test_a_question_without_a_picture_where_none_is_read(self, driven: Callable[..., Driven]):
        """PaliGemma's processor asks for `images` of its own."""
        with pytest.raises(
            ValueError, match=r"'what' has no picture, and a PaliGemmaProcessor reads no text .*: take it out"
        ):
            driven("paligemma").processor.encode(Prompt("what", (), "red"))

    def test_words_are_counted_without_pictures(self, driven: Callable[..., Driven]):
        for name in ("llava", "llama"):
            processor = driven(name).processor
            prompt = Prompt("what is it", (NoiseImage(0),) if processor.sees else (), "red", (("how many", "two"),))
            encoding = processor.encode(prompt)
            marks = int((encoding.ids == tiny.SPECIAL.index("<image>")).sum())
            assert processor.count_words(prompt) == len(encoding.ids) - max(0, marks - 1)

    def test_a_picture_for_a_model_that_reads_text(self, driven: Callable[..., Driven]):
        with pytest.raises(ValueError, match="this model reads text alone"):
            driven("llama").processor.encode(Prompt("what", (NoiseImage(0),), "red"))


def test_no_pixels_are_remembered_with_a_prompt(driven: Callable[..., Driven], monkeypatch: pytest.MonkeyPatch):
    """DeepSeek-VL's larger one has pictures in two sizes, and its forward wants to be given both."""
    model = driven("llava")
    processor = model.processor.with_answer_type(None)
    ask = processor._ask
    larger = {"high_res_pixel_values": torch.ones(1, 3, 64, 64)}
    monkeypatch.setattr(processor, "_ask", lambda prompt: (ask(prompt)[0] | larger, ask(prompt)[1]))
    prompt = model.prompts()[0]
    assert processor.encode(prompt, pixels=True).pixels.keys() == {"pixel_values", "high_res_pixel_values"}
    kept = processor.encode(prompt)
    assert not kept.pixels
    assert kept.sizes["high_res_pixel_values"].shape == (0, 3, 64, 64)
