"""Layers of vision towers as units: masks, the engine, deletion, costs, and unsupported models."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from das_gym.models.macs import MacCounter
from das_gym.models.transformers import comparison
from das_gym.models.transformers.layer_removal import prune
from das_gym.models.transformers.loading import load_vlm
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.probing import TIED_VISION, UNREAD, add_tower
from das_gym.models.transformers.stack import find_vision_tower
from das_gym.problem.costs import count_costs
from das_gym.problem.statistic_inputs import measure_activity
from das_gym.tasks.answering.examples import AnswerExample
from tests.models.transformers import tiny
from tests.models.transformers.conftest import Driven
from tests.models.transformers.test_engine import evaluator_of, examples_by_round
from tests.models.transformers.test_sublayer_removal import load, saved

pytestmark = pytest.mark.slow  # all of them take seconds

SEEN = ("llava", "smolvlm", "qwen2_5_vl", "qwen3_vl", "paligemma")

every_tower = pytest.mark.parametrize("name", tiny.cases(SEEN))


def masks_of(model: Driven, count: int = 4) -> np.ndarray:
    """Nothing, all of the tower alone, all of the decoder alone, everything, and random ones."""
    units = model.vlm.layers
    tower = np.array([unit.stream == "image" for unit in units])
    random = np.random.default_rng(0).random((count, len(units))) < 0.5
    return np.vstack((np.zeros(len(units)), tower, ~tower, np.ones(len(units)), random)).astype(bool)


@pytest.mark.parametrize(("name", "units"), tiny.cases(SEEN, "layers") + tiny.cases(["smolvlm"], "sublayers"))
def test_engine_gives_losses_of_plain_forwards(driven, name, units):
    model = driven(name, units, vision=True)
    examples, masks = examples_by_round(model), masks_of(model)
    evaluator = evaluator_of(model)
    targets = evaluator.task.targets(examples)
    losses = [float(evaluator.task.losses(model.plain(model.prompts(), mask), targets).mean()) for mask in masks]
    np.testing.assert_allclose(evaluator.losses(masks, examples), losses, atol=1e-10)
    assert np.abs(np.diff(losses[:3])).min() > 1e-6  # each matters


def test_vision_units_come_last_and_run_first(driven):
    vlm = driven("smolvlm", vision=True).vlm
    assert [layer.name for layer in vlm.layers] == [f"decoder.{n}" for n in range(4)] + [f"vision.{n}" for n in range(3)]
    assert vlm.stages == ((4,), (5,), (6,), (0,), (1,), (2,), (3,))


def test_layers_that_cannot_be_removed_are_protected(driven):
    """LLaVA reads the last layer but one, Qwen3-VL merges the first two into its decoder's layers."""
    assert driven("llava", vision=True).vlm.capabilities.tower.protected == {2: UNREAD}
    assert driven("qwen3_vl", vision=True).vlm.capabilities.tower.protected == {0: TIED_VISION, 1: TIED_VISION}
    assert driven("qwen3_vl", vision=True).vlm.capabilities.tower.reads == (0, 1, 2)


@every_tower
def test_removed_layers_saved_and_loaded_give_logits_of_the_mask(driven, folder_of, name, tmp_path):
    model = driven(name, vision=True)
    mask = np.zeros(len(model.vlm.layers), dtype=bool)
    mask[[0, model.vlm.decoder_units, len(mask) - 1]] = True
    whole = AutoModelForImageTextToText.from_pretrained(folder_of(name), dtype=torch.float64)
    gone = [np.isin(range(n), model.vlm.removed_layers(mask, s)) for s, n in (("joint", 4), ("image", tiny.TOWER_LAYERS))]
    prune(whole, *gone).save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float64).eval()
    found = model.with_model(again).plain(model.prompts())
    torch.testing.assert_close(found, model.logits(model.prompts(), mask), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("layers", [2, [1, -2]])
def test_vision_feature_layer_is_renumbered(driven, layers, tmp_path):
    """Counted from the front, from the back, or several: the smaller tower is read where the larger one was."""
    model, _ = tiny.made(lambda: tiny.llava_of(vision_layers=4, vision_feature_layer=layers), torch.float64)
    known = driven("llava")
    seeing = Driven(VLM(model, capabilities=add_tower(known.vlm.capabilities, model, known.processor)), known.processor)
    mask = np.array([unit.name == "vision.0" for unit in seeing.vlm.layers])
    wanted = seeing.logits(seeing.prompts(), mask)
    torch.testing.assert_close(wanted, seeing.plain(seeing.prompts(), mask), atol=1e-10, rtol=1e-10)
    prune(model, [0] * 4, [1, 0, 0, 0]).save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float64).eval()
    torch.testing.assert_close(known.with_model(again).plain(known.prompts()), wanted, atol=1e-10, rtol=1e-10)


def test_vision_layers_that_do_not_run_are_compared(driven, monkeypatch):
    """Of a large tower only the first and last layers run; MLPs in the middle compute with the position of their layer."""
    monkeypatch.setattr(comparison, "LARGE_BYTES", 0)
    monkeypatch.setattr(comparison, "LAYERS_PER_KIND", 2)
    model, _ = tiny.made(lambda: tiny.llava_of(vision_layers=9), torch.float64)
    for place, layer in enumerate(find_vision_tower(model).layers):
        layer.mlp.layer_idx = place
        layer.mlp.register_forward_hook(lambda part, _, output: output * (2 if part.layer_idx in (3, 4) else 1))
    with pytest.raises(ValueError, match="`vision`"):
        add_tower(driven("llava").vlm.capabilities, model, driven("llava").processor)


def test_tower_runs_once_a_vision_mask_and_is_kept(driven):
    model = driven("llava", vision=True)
    examples, count = examples_by_round(model), len(model.vlm.layers)
    masks = np.zeros((4, count), dtype=bool)
    masks[[0, 1, 2], [0, 1, 4]] = True  # two of the decoder's layers; one of the tower's; nothing
    evaluator = evaluator_of(model, trunk_bytes=2**24, batch_size=6)
    fresh = evaluator_of(model, batch_size=6).losses(masks, examples)
    evaluator.losses(masks[2:], examples)
    first = evaluator.spent.layer_runs
    assert first == 2 + 1 + 4 + 4  # the tower under its two masks, which part at once, and the decoder under each
    evaluator.reset_spent()
    np.testing.assert_array_equal(evaluator.losses(masks[:2], examples), fresh[:2])
    assert evaluator.spent.layer_runs == 3 + 2  # behind the unit that each skips
    evaluator.reset_spent()
    both = masks[2] | masks[0]
    evaluator.losses(both[None], examples)
    assert evaluator.spent.layer_runs == 3  # the tower's mask is known


def test_vision_layers_are_removed_next_to_sublayers(driven, folder_of, tmp_path):
    model = driven("smolvlm", "sublayers", vision=True)
    mask = np.isin([unit.name for unit in model.vlm.layers], ["decoder.0.attention", "decoder.2.mlp", "vision.1"])
    smaller, report = load(saved(model, mask, folder_of("smolvlm"), tmp_path / "out"))
    assert not report
    found = model.with_model(smaller).plain(model.prompts())
    torch.testing.assert_close(found, model.logits(model.prompts(), mask), atol=1e-10, rtol=1e-10)


@every_tower
def test_costs_and_statistics(driven, name):
    model = driven(name, vision=True)
    vlm, examples = model.vlm, examples_by_round(model)
    costs = count_costs(vlm, vlm.cost_example(model.processor, model.prompts(), MacCounter(vlm)), model.head)
    plain = driven(name).vlm
    whole = count_costs(plain, plain.cost_example(model.processor, model.prompts(), MacCounter(plain)), model.head)
    unread = 1 if vlm.capabilities.tower.protected.get(2) == UNREAD else 0
    tower = costs.layer_macs[vlm.decoder_units :]
    assert (costs.layer_macs[: vlm.decoder_units] == whole.layer_macs).all()
    assert whole.macs_full == costs.macs_full + unread * tower[0]  # a layer whose output is unused does not run
    assert costs.parameters_full == whole.parameters_full
    activity = measure_activity(evaluator_of(model), examples)
    assert (activity.residual_norm > 1e-3).all()


def test_prompts_with_and_without_images_share_a_batch(driven):
    model = driven("smolvlm", vision=True)
    prompts = model.prompts()
    prompts[1] = replace(prompts[1], images=())
    mask = masks_of(model)[-1]
    torch.testing.assert_close(model.logits(prompts, mask), model.plain(prompts, mask), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", ["llama", "mllama"])
def test_models_without_vision_units_are_rejected(driven, folder_of, name):
    with pytest.raises(ValueError, match="`vision`"):
        load_vlm(folder_of(name), vision=True)
    with pytest.raises(ValueError, match="`vision`"):  # and vision units have no adapters
        driven("llava", vision=True).vlm.insert_adapters(2, 2)


def test_activity_of_the_tower_counts_prompts_without_images_as_unchanged(driven):
    model = driven("llava", vision=True)
    examples = examples_by_round(model)
    blind = [AnswerExample(f"blind {e.key}", (), e.question, e.answer) for e in examples]
    tower = [layer.stream == "image" for layer in model.vlm.layers]
    seeing, both = (measure_activity(evaluator_of(model), some) for some in (examples, examples + blind))
    for name in ("block_influence_pooled", "block_influence_tokens", "residual_norm", "angular"):
        np.testing.assert_allclose(getattr(both, name)[tower], getattr(seeing, name)[tower] / 2, rtol=1e-6)
