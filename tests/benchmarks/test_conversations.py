from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.conversations.batches import IGNORE, ConversationBatches
from benchmarks.conversations.models import LLAVA_MINI, SMOLVLM_MINI, Recipe, features
from benchmarks.conversations.questions import INSTRUCTION
from das_gym.registration import ASSETS
from das_gym.tasks.answering.examples import instructed


@dataclass
class Case:
    recipe: Recipe
    processor: Any
    model: Any
    batches: ConversationBatches


@pytest.fixture(
    scope="module", params=[("smolvlm_mini", SMOLVLM_MINI), ("llava_mini", LLAVA_MINI)], ids=["SmolVLM", "LLaVA"]
)
def case(request: pytest.FixtureRequest) -> Case:
    name, recipe = request.param
    processor = AutoProcessor.from_pretrained(ASSETS / name)
    model = AutoModelForImageTextToText.from_pretrained(ASSETS / name, dtype=torch.float32).eval()
    return Case(recipe, processor, model, ConversationBatches(recipe, processor.tokenizer, seed=0, batch_size=6))


def test_questions_are_put_as_the_answering_task_puts_them():
    assert instructed("is it red?") == f"is it red?{INSTRUCTION}"


def test_batch_equals_the_processors(case: Case):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (case.recipe.mean, case.recipe.std))
    batch = case.batches(3)
    for index in range(0, len(batch.rows), 5):
        row, answered = int(batch.rows[index]), batch.labels[index] != IGNORE
        first = int(answered.nonzero()[0]) + 1  # of the answer
        own = batch.input_ids[index, : int(batch.attention_mask[index].sum()) - batch.prefix_ids.shape[1]]
        text = case.processor.tokenizer.decode(own[:first]).split("\n")[0].strip()
        pixels = ((batch.images.image[row] * std + mean) * 255).round().byte().permute(1, 2, 0).numpy()
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text + INSTRUCTION}]}
        prompt = case.processor.apply_chat_template([turn], add_generation_prompt=True)
        made = case.processor(text=[prompt], images=[[pixels]], return_tensors="pt")
        assert torch.equal(made["input_ids"][0], torch.cat((batch.prefix_ids[row], own[:first])))
        assert torch.allclose(made["pixel_values"].flatten(0, -4)[0], batch.images.image[row], atol=1e-5)
        assert own[-1] == case.processor.tokenizer.eos_token_id
        assert torch.equal(batch.labels[index][answered], own[first:])


@torch.no_grad()
def test_packed_questions_equal_separate_ones(case: Case):
    batch = case.batches(0)
    together = features(case.recipe, case.model, batch).last
    for index in range(0, len(batch.rows), 7):
        row, length = int(batch.rows[index]), int(batch.attention_mask[index].sum()) - batch.prefix_ids.shape[1]
        ids = torch.cat((batch.prefix_ids[row], batch.input_ids[index, :length]))[None]
        pixels = batch.images.image[row][None]
        given = pixels[None] if case.recipe.reads_lists else pixels
        alone = case.model(input_ids=ids, pixel_values=given).logits[0, -length:]
        assert torch.allclose(case.model.lm_head(together[index, :length]), alone, atol=1e-4)
