import json

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.pretrain import recipe
from benchmarks.pretrain.batches import IGNORE
from benchmarks.pretrain.conversations import ConversationBatches
from benchmarks.pretrain.family import AnsweringRecipe, Size
from benchmarks.pretrain.losses import features
from benchmarks.pretrain.recipe import CHECKPOINTS, RECIPES, pretrain
from benchmarks.pretrain.texts import INSTRUCTION
from benchmarks.pretrain.tokenizer import train_chat_tokenizer
from das_gym.registration import ASSETS
from das_gym.shapes.scenes import Scene, SceneObject, render
from das_gym.tasks.answering.examples import add_instruction

CLASSES = {"SmolVLM": ("SmolVLMForConditionalGeneration", 12), "LLaVA": ("LlavaForConditionalGeneration", 24)}


@pytest.fixture(scope="module", params=CLASSES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def family(name) -> AnsweringRecipe:
    return RECIPES[name]


@pytest.fixture(scope="module")
def tokenizer(family):
    return train_chat_tokenizer(family.tokens, 0)


@pytest.fixture(scope="module")
def processor(family, tokenizer):
    return family.make_processor(tokenizer)


@pytest.fixture(scope="module")
def batches(family, tokenizer) -> ConversationBatches:
    return ConversationBatches(family, tokenizer, seed=0, batch_size=6)


@pytest.fixture
def model(family, tokenizer):
    torch.manual_seed(0)
    model = family.build(16, tokenizer)
    family.initialise(model)
    return model.eval()


SCENE = Scene(
    (
        SceneObject("red", "circle", 20, 20, 10),
        SceneObject("blue", "circle", 70, 20, 10),
        SceneObject("green", "star", 40, 70, 10),
    ),
    background=220,
)


def test_shipped_tokenizer_equals_the_trained_one(name, family, tokenizer, tmp_path):
    tokenizer.backend_tokenizer.no_padding()
    family.make_processor(tokenizer).save_pretrained(tmp_path)
    assert (ASSETS / f"{name.lower()}_mini/tokenizer.json").read_text() == (tmp_path / "tokenizer.json").read_text()


def messages(text: str) -> list[dict[str, object]]:
    """One user's turn: where the image will be, then the text."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def test_questions_are_put_as_the_answering_task_puts_them():
    assert add_instruction("is it red?") == f"is it red?{INSTRUCTION}"


def test_batch_equals_the_processors(family, batches, processor):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (family.mean, family.std))
    batch = batches(3, described=False)
    for index in range(0, len(batch.rows), 5):
        row, answered = int(batch.rows[index]), batch.labels[index] != IGNORE
        first = int(answered.nonzero()[0]) + 1  # of the answer
        own = batch.input_ids[index, : int(batch.attention_mask[index].sum()) - batch.prefix_ids.shape[1]]
        text = processor.tokenizer.decode(own[:first]).split("\n")[0].strip()
        pixels = ((batch.images.image[row] * std + mean) * 255).round().byte().permute(1, 2, 0).numpy()
        prompt = processor.apply_chat_template(messages(text + INSTRUCTION), add_generation_prompt=True)
        made = processor(text=[prompt], images=[[pixels]], return_tensors="pt")
        assert torch.equal(made["input_ids"][0], torch.cat((batch.prefix_ids[row], own[:first])))
        assert torch.allclose(made["pixel_values"].flatten(0, -4)[0], batch.images.image[row], atol=1e-5)
        assert own[-1] == processor.tokenizer.eos_token_id
        assert torch.equal(batch.labels[index][answered], own[first:])


@torch.no_grad()
def test_packed_questions_equal_separate_ones(name, family, batches, model):
    batch = batches(0, described=True)
    together = features(family, model, batch).last
    for index in range(0, len(batch.rows), 7):
        row, length = int(batch.rows[index]), int(batch.attention_mask[index].sum()) - batch.prefix_ids.shape[1]
        ids = torch.cat((batch.prefix_ids[row], batch.input_ids[index, :length]))[None]
        pixels = batch.images.image[row][None]
        alone = model(input_ids=ids, pixel_values=pixels[None] if name == "SmolVLM" else pixels).logits[0, -length:]
        assert torch.allclose(model.lm_head(together[index, :length]), alone, atol=1e-4)


@pytest.mark.slow
def test_training_stops_resumes_and_writes_a_model(name, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "SAVE_EVERY", 2)
    size = Size(hidden_size=16, image_steps=3, image_batch_size=4, steps=4, batch_size=2, learning_rate=1e-3)
    whole, again = tmp_path / "whole", tmp_path / "again"
    pretrain(name, size, whole, tmp_path / "a")
    assert all((tmp_path / "a" / file).is_file() for file in CHECKPOINTS)
    (tmp_path / "a" / CHECKPOINTS[1]).unlink()
    pretrain(name, size, again, tmp_path / "a")  # the first part from step 2, the second again
    assert (whole / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    model, processor = AutoModelForImageTextToText.from_pretrained(whole), AutoProcessor.from_pretrained(whole)
    kind, layers = CLASSES[name]
    assert (type(model).__name__, model.dtype) == (kind, torch.float32)
    asked = [messages(text + INSTRUCTION) for text in ("is there a star?", "how many red objects are there?")]
    prompts = [processor.apply_chat_template(turn, add_generation_prompt=True) for turn in asked]
    inputs = processor(text=prompts, images=[[render(SCENE)]] * 2, padding=True, return_tensors="pt")
    said = model.generate(**inputs, do_sample=False, max_new_tokens=3)
    assert said.shape[0] == 2
    assert json.loads((whole / "tokenizer.json").read_text())["padding"] is None
    assert json.loads((whole / "config.json").read_text())["text_config"]["num_hidden_layers"] == layers
