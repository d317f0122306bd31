"""The engine on models of transformers: equal to plain forwards for every type, and what it shares."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t

from das_gym.data.images import NoiseImage
from das_gym.engine.evaluator import Evaluator
from das_gym.models.inputs import Prompt
from das_gym.models.macs import MacCounter
from das_gym.models.transformers.loading import load_vlm
from das_gym.models.transformers.model import VLM
from das_gym.tasks.answering.examples import AnswerExample
from das_gym.tasks.answering.task import AnsweringTask
from tests.fake_device import DEVICE, OTHER_DEVICE, fake_device, two_devices
from tests.models.transformers import tiny
from tests.models.transformers.conftest import Driven


def examples_by_round(model: Driven) -> list[AnswerExample]:
    return [AnswerExample(str(n), p.images, p.question, p.answer) for n, p in enumerate(model.prompts())]


def evaluator_of(model: Driven, **settings: Any) -> Evaluator:
    return Evaluator(model.vlm, model.head, AnsweringTask(model.processor), **{"batch_size": 4, **settings})


@pytest.mark.parametrize("name", tiny.cases(("llama", "llava", "qwen3_vl", "mllama", "paligemma")))
def test_engine_gives_losses_of_plain_forwards(driven, name):
    """Of types that differ in what the engine keeps; `test_model` runs the masks of every type."""
    model = driven(name)
    examples, count = examples_by_round(model), len(model.vlm.layers)
    masks = np.vstack((np.zeros(count), np.eye(count)[1], np.eye(count)[0], np.ones(count))).astype(bool)
    evaluator = evaluator_of(model, trunk_bytes=2**20)
    found = evaluator.evaluate(masks, examples, divergences=True)
    targets = evaluator.task.targets(examples)
    plain = [model.plain(model.prompts(), mask) for mask in masks]
    losses = [float(evaluator.task.losses(logits, targets).mean()) for logits in plain]
    apart = [float(evaluator.task.divergences(logits, plain[0], targets).mean()) for logits in plain]
    np.testing.assert_allclose(found.losses, losses, atol=1e-10)
    np.testing.assert_allclose(found.divergences, apart, atol=1e-10)


@pytest.mark.slow
def test_on_another_device(folder_of):
    """All tensors are on the device: mixing them with tensors of the CPU raises, as on CUDA."""
    model = Driven.load(folder_of("llava"))
    masks, examples = np.eye(4, dtype=bool), examples_by_round(model)
    wanted = evaluator_of(model).losses(masks, examples)
    with fake_device():
        model.vlm.to(DEVICE)
        found = evaluator_of(model, trunk_bytes=2**20).losses(masks, examples)
    np.testing.assert_allclose(found, wanted, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [("llava", {}), ("llava", {"vision": True}), ("smolvlm", {"units": "sublayers"}), ("gemma4_text", {})],
)
def test_device_map_over_two_devices(folder_of, name, options):
    """Each layer finds its inputs on its own device."""

    def losses(device_map: str | None) -> np.ndarray:
        vlm = load_vlm(folder_of(name), device_map=device_map, generator=torch.Generator().manual_seed(0), **options)
        if device_map:
            assert {str(p.device) for p in vlm.stack.layers.parameters()} == {DEVICE, OTHER_DEVICE}
        model, count = Driven(vlm, vlm.make_processor(folder_of(name))), len(vlm.layers)
        masks = np.vstack((np.eye(count), np.ones(count))).astype(bool)
        return evaluator_of(model, trunk_bytes=2**20).losses(masks, examples_by_round(model))

    with two_devices():
        found = losses("auto")
    np.testing.assert_allclose(found, losses(None), atol=1e-10)


@pytest.mark.slow
def test_trunk_skips_layers_before_the_first_skipped_one(driven):
    """Hidden states of the full model are cached: only layers behind the first skipped one run again."""
    model = driven("llava")
    examples, eye = examples_by_round(model), np.eye(4, dtype=bool)
    scratch = evaluator_of(model).losses(eye[[2]], examples)
    evaluator = evaluator_of(model, trunk_bytes=2**22)
    evaluator.losses(eye[[3]], examples)  # runs layers 0 to 2
    evaluator.reset_spent()
    assert evaluator.losses(eye[[2]], examples) == scratch
    assert evaluator.spent.layer_runs == 2  # layer 3 behind layer 2, on two batches
    evaluator.forget()
    evaluator.reset_spent()
    evaluator.losses(eye[[1]], examples)
    assert evaluator.spent.layer_runs == 2 * 3


@pytest.mark.slow
def test_padding_beyond_a_sliding_window_gives_no_nan(tmp_path):
    """Gemma 2's attention takes its softmax in float32, where the least number of float64 is infinite."""
    decoder = t.Gemma2Config(**tiny.text(sliding_window=4, query_pre_attn_scalar=8))
    model = Driven.load(tiny.save_made(lambda: tiny.llava_of(decoder), tmp_path, torch.float64))
    picture = model.prompts()[0].images
    questions = ("how many", "how many red circles and how many green squares")
    prompts = [Prompt(question, picture, "2") for question in questions]
    for mask in ([0, 0, 0, 0], [1, 0, 0, 1]):
        torch.testing.assert_close(model.logits(prompts, mask), model.plain(prompts, mask), atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("mask", [[0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 1]])
def test_questions_without_images_leave_out_cross_attention(driven, mask):
    """Mllama does not call its cross-attention layers, of which layer 1 is one, without an image."""
    model = driven("mllama")
    prompts = [*model.prompts()[:2], *(replace(prompt, images=()) for prompt in model.prompts()[2:4])]
    found = model.logits(prompts, mask)
    torch.testing.assert_close(found, model.plain(prompts, mask), atol=1e-10, rtol=1e-10)


@torch.no_grad()
def test_answer_options_share_their_question(driven):
    model = driven("qwen2_vl")
    image = model.prompts()[0].images
    examples = [AnswerExample("1", image, "which", "red green", options=("2", "red green", "true"))]
    evaluator = evaluator_of(model)
    mask = np.array([[False, True, False, False]])
    plain = model.plain(evaluator.task.pairs(examples), mask[0])
    targets = evaluator.task.targets(examples)
    found = evaluator.evaluate(mask, examples)
    assert found.losses[0] == pytest.approx(float(evaluator.task.losses(plain, targets)[0]), abs=1e-10)
    assert found.metrics[0] == float(evaluator.task.metrics(plain, targets)[0])


@pytest.mark.slow
def test_image_features_are_kept_on_disk(driven, tmp_path):
    """Every type keeps its own structure of tensors, lists of them among it."""
    for name in ("llava", "qwen3_vl", "llava_next"):
        model = driven(name)
        examples, masks = examples_by_round(model), np.eye(len(model.vlm.layers), dtype=bool)[:2]
        first, second = (evaluator_of(model, cache_folder=tmp_path) for _ in range(2))
        np.testing.assert_array_equal(first.losses(masks, examples), second.losses(masks, examples))
        assert (first.spent.images, second.spent.images) == (2, 0)


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_alike_layers_have_the_macs_of_each_alone(driven, name):
    vlm = driven(name).vlm
    assert vlm.cost_key(0) == vlm.cost_key(1) or name != "llava"
    state = evaluator_of(driven(name)).encoder_cache(driven(name).prompts())
    together = MacCounter(vlm)
    for index in range(len(vlm.layers)):
        last = index == len(vlm.layers) - 1
        for skipped in (False, True):
            assert together.layer(index, state, skipped, last) == MacCounter(vlm).layer(index, state, skipped, last)


def test_image_features_do_not_depend_on_their_order(driven):
    """MACs are counted at the first image of a shape, by other attention kernels: its features are not taken from there."""
    model = driven("llava")
    images = {seed: Prompt("what", (NoiseImage(seed),), "it") for seed in (8, 9)}
    found = []
    for order in ((8, 9), (9, 8)):
        vlm = VLM(model.vlm.model, capabilities=model.vlm.capabilities)
        items = {seed: images[seed] for seed in order}
        found.append(
            {k: (part, macs) for k, part, macs in vlm.encode_items(model.processor, "image", items, MacCounter(vlm))}
        )
    for key in images:
        assert found[0][key][1] == found[1][key][1] > 0
        for name, value in found[0][key][0].items():
            torch.testing.assert_close(value, found[1][key][0][name], atol=0, rtol=0)
