"""Generated answers: batched and padded they are those of transformers' own generate, one by one."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as t
from packaging.version import Version

from das_gym.data.images import NoiseImage
from das_gym.models.inputs import Prompt
from das_gym.models.transformers.generation import (
    can_pad_left,
    cut_at_end,
    generate,
    generate_batch,
    generate_tokens,
    greedy_decoding,
    greedy_settings,
)
from das_gym.models.transformers.layer_removal import pruned_copy
from das_gym.models.transformers.model import VLM
from tests.adapt.conftest import MASK
from tests.models.transformers import tiny

ASKED = (("how many circles are there", "2"), ("what", "red green"), ("is the square blue or is it red", "true"))


def prompts_of() -> list[Prompt]:
    sizes = ((32, 32), (64, 32))
    return [Prompt(q, (NoiseImage(n, *sizes[n % 2]),), a) for n, (q, a) in enumerate(ASKED)]


@pytest.mark.filterwarnings("ignore:.*answers are cut off")
@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_generate_batches_give_what_each_prompt_gets_alone(problem_of, name):
    problem = problem_of(name)
    vlm, processor = pruned_copy(problem.vlp, MASK), problem.task.processor
    encodings = [processor.encode(prompt, pixels=True) for prompt in prompts_of()]
    assert len({e.answer for e in encodings}) > 1
    assert can_pad_left(vlm, encodings[:2], 0)
    settings = greedy_settings(vlm, processor, 6)
    alone = []
    for prompt in prompts_of():  # as users do, by processor and generate
        content = [{"type": "image", "image": prompt.images[0].open()}, {"type": "text", "text": prompt.question}]
        inputs = processor.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )
        with greedy_decoding(vlm.model, settings), torch.no_grad():
            tokens = vlm.model.generate(**inputs)[0, inputs["input_ids"].shape[1] :].tolist()
        alone.append(cut_at_end(tokens, processor.ends))
    assert generate_batch(vlm, processor, encodings, settings) == alone
    words = [processor.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in alone]
    assert generate(vlm, processor, prompts_of(), "answers", 2, max_new_tokens=6) == words
    assert any(alone)


def test_generation_goes_on_where_it_stopped(problem_of):
    problem = problem_of("llava")
    prompts = [replace(prompt, answer=None) for prompt in problem.task.pairs(problem.splits.train[:6])]
    found: list[dict[int, list[int]]] = []

    def generated(known: dict[int, list[int]]) -> list[list[int]]:
        keep = lambda so_far: found.append(dict(so_far))  # noqa: E731
        return generate_tokens(problem.vlp, problem.task.processor, prompts, "", 1, 5, known, keep)

    wanted = generated({})
    assert [len(each) for each in found] == [4, 6]
    assert generated(found[0]) == wanted
    assert len(found) == 3


@pytest.mark.parametrize("fault", ["reads padding", "mixes images"])
def test_pads_left_finds_a_wrong_model(problem_of, monkeypatch, fault):
    problem = problem_of("llava")
    vlm = pruned_copy(problem.vlp, MASK)
    encodings = [problem.task.processor.encode(prompt, pixels=True) for prompt in prompts_of()]
    original = vlm.model.generate

    def wrong(attention_mask: torch.Tensor, pixel_values: torch.Tensor, **rest: Any) -> Any:
        if fault == "reads padding":
            attention_mask = torch.ones_like(attention_mask)
        else:
            pixel_values = pixel_values.roll(1, dims=0)
        return original(attention_mask=attention_mask, pixel_values=pixel_values, **rest)

    monkeypatch.setattr(vlm.model, "generate", wrong)
    assert can_pad_left(vlm, encodings[:1], 0) == (fault == "mixes images")
    assert not can_pad_left(vlm, encodings, 0)


@pytest.mark.filterwarnings("ignore:.*answers are cut off")
@pytest.mark.skipif(Version(t.__version__) < Version("5.24"), reason="it gives numbers")
def test_prompts_are_not_batched_where_padding_gives_nan():
    """transformers 5.24 gives NaN for padded prompts of Gemma 2 in float64."""
    kinds = ["sliding_attention", "full_attention"] * 2
    config = t.Gemma2Config(**tiny.text(sliding_window=8, layer_types=kinds))
    model, words = tiny.made(lambda: (t.Gemma2ForCausalLM(config), tiny.tokenizer()), torch.float64)
    vlm = VLM(model)
    processor = vlm.wrap_processor(words)
    prompts = [Prompt(" ".join(["how many circles are there"] * count), (), "2") for count in (1, 2, 3)]
    with pytest.warns(UserWarning, match="one by one"):
        together = generate(vlm, processor, prompts, "answers", 3, max_new_tokens=6)
    assert together == generate(vlm, processor, prompts, "answers", 1, max_new_tokens=6)


def test_greedy_decoding_reaches_the_part_that_generates():
    """Kosmos-2's `generate` calls its text model's, which has a configuration of its own."""
    text = {"vocab_size": 64, "embed_dim": 16, "layers": 2, "ffn_dim": 16, "attention_heads": 2}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = t.Kosmos2Config(
        text_config=text, vision_config=vision | {"image_size": 28, "patch_size": 14}, latent_query_num=2
    )
    model = t.Kosmos2ForConditionalGeneration(config).eval()
    before = model.text_model.generation_config
    given = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "pixel_values": torch.zeros(1, 3, 28, 28)}
    given["image_embeds_position_mask"] = torch.tensor([[0, 1, 1, 0]])
    with greedy_decoding(model, {"do_sample": False, "max_new_tokens": 3, "eos_token_id": None, "pad_token_id": 1}):
        assert model.generate(**given).shape[-1] == 4 + 3
    assert model.text_model.generation_config is before
