import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, SmolVLMForConditionalGeneration

from benchmarks.pretrain.answering_models import SmolVLMMini
from benchmarks.pretrain.conversations import ConversationBatches
from benchmarks.pretrain.losses import features, words_losses
from benchmarks.real_model.assembling import merge, trained_tensors
from benchmarks.real_model.comparing import run
from benchmarks.real_model.fast_decoder import FastDecoder
from benchmarks.real_model.prepare import write_questions
from benchmarks.real_model.training import read_batch
from das_gym.registration import ASSETS
from das_gym.tasks.answering.task import AnsweringTask

BUNDLED = ASSETS / "smolvlm_mini"


@pytest.mark.parametrize("updated", [False, True])
def test_fast_decoder_reads_as_transformers_does_with_merged_weights(updated):
    recipe = SmolVLMMini()
    model = SmolVLMForConditionalGeneration.from_pretrained(BUNDLED, dtype=torch.float32)
    batch = ConversationBatches(recipe, AutoTokenizer.from_pretrained(BUNDLED), seed=5, batch_size=3)(0, described=False)
    decoder = FastDecoder(model.model.text_model, compiled=False)
    torch.manual_seed(0)
    for name, parameter in decoder.named_parameters():
        if updated and ".up." in name:
            torch.nn.init.normal_(parameter, std=0.05)
    parts = {"lora": decoder, **recipe.eyes(model)}
    with torch.no_grad():
        read = read_batch(recipe, model, decoder, batch)
        untouched = features(recipe, model, batch)
        merge(model, {k: t.float() for k, t in trained_tensors({name: p.state_dict() for name, p in parts.items()}).items()})
        merged = features(recipe, model, batch)
        fast, plain = (float(words_losses(model, each, batch)["words"]) for each in (read, merged))
    said = batch.attention_mask[:, batch.prefix_ids.shape[1] :].bool()
    torch.testing.assert_close(read.last[said], merged.last[said], rtol=0.1, atol=0.1)
    torch.testing.assert_close(read.states[5][said], merged.states[5][said], rtol=0.1, atol=0.1)
    assert fast == pytest.approx(plain, abs=0.02)
    assert ((untouched.last - merged.last)[said].abs().mean() > 0.1) == updated


class PlantedScorer:
    """Every skipped layer costs its number."""

    layers = 8

    def losses(self, masks: np.ndarray) -> np.ndarray:
        return masks @ np.arange(self.layers, dtype=float)


@pytest.mark.parametrize("method", ["greedy", "leave_one_out", "bayes", "block_influence"])
def test_methods_find_the_layers_that_cost_least(method):
    mask, spent = run(method, 3, 0, PlantedScorer(), influence=np.arange(8))
    assert np.flatnonzero(mask).tolist() == [0, 1, 2]
    # bayes has scored all 56 masks
    assert spent == {"greedy": 8 + 7 + 6, "leave_one_out": 8, "bayes": 56, "block_influence": 1}[method]


def test_questions_of_easy_vqa_are_read_as_answering_data(tmp_path):
    with zipfile.ZipFile(tmp_path / "easy.whl", "w") as wheel:
        for part in ("train", "test"):
            questions = [["is there a red shape?", "yes", 0], ["what shape is there?", "circle", 1]]
            wheel.writestr(f"easy_vqa/data/{part}/questions.json", json.dumps(questions))
            for image in range(2):
                pixels = io.BytesIO()
                Image.new("RGB", (8, 8), (image, len(part), 0)).save(pixels, "PNG")
                wheel.writestr(f"easy_vqa/data/{part}/images/{image}.png", pixels.getvalue())
    write_questions(tmp_path / "easy.whl", tmp_path / "easy_vqa")
    splits = AnsweringTask.load_splits(str(tmp_path / "easy_vqa"))
    assert sorted(example.answer for example in splits.test) == ["circle", "yes"]
