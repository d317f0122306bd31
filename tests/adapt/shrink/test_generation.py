"""Generated answers: batched and padded they are those of transformers' own generate, one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from das_gym.data.images import NoiseImage
from das_gym.models.inputs import Prompt
from das_gym.models.transformers.generation import (
    cut_at_end,
    generate,
    generate_batch,
    greedy_decoding,
    greedy_settings,
    pads_left,
)
from das_gym.models.transformers.layer_removal import pruned_copy
from das_gym.problem.loading import Problem
from tests.adapt.shrink.conftest import MASK

ASKED = (("how many circles are there", "2"), ("what", "red green"), ("is the square blue or is it red", "true"))


def prompts_of() -> list[Prompt]:
    sizes = ((32, 32), (64, 32))
    return [Prompt(q, (NoiseImage(n, *sizes[n % 2]),), a) for n, (q, a) in enumerate(ASKED)]


@pytest.mark.filterwarnings("ignore:.*answers are cut off")
@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_generate_batches_give_what_each_prompt_gets_alone(problem_of: Callable[[str], Problem], name: str):
    problem = problem_of(name)
    vlm, processor = pruned_copy(problem.vlp, MASK), problem.task.processor
    encodings = [processor.encode(prompt, pixels=True) for prompt in prompts_of()]
    assert len({e.answer for e in encodings}) > 1
    assert pads_left(vlm, encodings[:2], 0)
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


@pytest.mark.parametrize("fault", ["reads padding", "mixes images"])
def test_pads_left_finds_a_wrong_model(problem_of: Callable[[str], Problem], monkeypatch: pytest.MonkeyPatch, fault: str):
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
    assert pads_left(vlm, encodings[:1], 0) == (fault == "mixes images")
    assert not pads_left(vlm, encodings, 0)
