import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from das_gym.data.images import NoiseImage
from das_gym.engine.ranking import recalls, score_pairs
from das_gym.models.inputs import Pair
from das_gym.models.meter.model import METER
from das_gym.tasks.retrieval import build_rank_head
from tests.engine.conftest import World
from tests.models.golden_cases import run_full

IMAGES = (NoiseImage(0, 40, 40), NoiseImage(1, 50, 32), NoiseImage(2, 32, 64), NoiseImage(3, 32, 32))
TEXTS = (
    "a red star.",
    "a red circle left of a blue star, a green cross.",
    "red",
    "what color is the large object to the left of the small blue triangle?",
    "a red star.",
    "2 crosses.",
    "3 crosses.",
)
MASKS = {
    "none": (),
    "first text layers": (0, 1, 2),
    "last stage": (5, 11),
    "mixed": (1, 4, 6, 7, 10),
    "all": tuple(range(12)),
}


def head_for(world: World) -> torch.nn.Module:
    head = build_rank_head(world.vlp.feature_size).eval().requires_grad_(False)
    torch.nn.init.normal_(head[0].weight, std=0.5)
    return head.to(next(world.vlp.parameters()).dtype)


@torch.inference_mode()
def plain_scores(world: World, head: torch.nn.Module, mask: np.ndarray) -> np.ndarray:
    """A separate forward for each pair, encoders included, every token a query."""
    rows = []
    for image in IMAGES:
        batch = world.task.processor([Pair(text, image) for text in TEXTS])
        state = run_full(world.vlp, world.vlp.embed(world.vlp.encode(batch)), mask.tolist())[-1]
        rows.append(head(world.vlp.pool(state)))
    return torch.stack(rows).numpy()


def calm(world: World) -> World:
    """A copy whose matrices are neither so large that poolers saturate nor so small that nothing depends on anything."""
    torch.manual_seed(3)
    world = replace(world, vlp=copy.deepcopy(world.vlp))
    for parameter in world.vlp.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return world


@pytest.mark.slow
@pytest.mark.parametrize("skipped", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("model", ["METER", "ViLT"])
def test_rank_equals_plain_forwards(worlds, model, skipped):
    mask = np.isin(np.arange(12), skipped)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-6)):  # scores are returned in float32
        world = calm(worlds[model, dtype])
        head = head_for(world)
        expected = plain_scores(world, head, mask)
        if not mask.all():  # else no token sees another
            assert expected.std(axis=0).mean() > 0.01
            assert expected.std(axis=1).mean() > 0.01
        for batch_size in (3, 64):
            got = score_pairs(world.vlp, head, world.task.processor, IMAGES, TEXTS, mask, batch_size)
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, expected, atol=tolerance, rtol=tolerance)


def test_stage_0_runs_once_per_text_and_once_per_image(meter, monkeypatch):
    runs: dict[str, int] = {}
    for stream, layers in (("text", meter.vlp.text_layers), ("image", meter.vlp.image_layers)):
        layer = layers[0].layer

        def counted(x, *rest, stream=stream, original=layer.attend_self):
            runs[stream] = runs.get(stream, 0) + len(x)
            return original(x, *rest)

        monkeypatch.setattr(layer, "attend_self", counted)
    score_pairs(meter.vlp, head_for(meter), meter.task.processor, IMAGES, TEXTS, batch_size=3)
    assert runs == {"text": len(TEXTS), "image": len(IMAGES)}


def test_memory_bound_changes_no_score(meter):
    arguments = (meter.vlp, head_for(meter), meter.task.processor, IMAGES, TEXTS)
    expected = score_pairs(*arguments, batch_size=2)
    np.testing.assert_array_equal(score_pairs(*arguments, batch_size=2, max_bytes=1), expected)


def test_rank_of_a_pruned_model_equals_that_under_its_mask(new_world):
    world = calm(new_world())
    head, mask = head_for(world), np.isin(np.arange(12), (0, 1, 6, 7))
    expected = score_pairs(world.vlp, head, world.task.processor, IMAGES, TEXTS, mask)
    world.vlp.prune(mask)
    done: list[int] = []
    got = score_pairs(world.vlp, head, world.task.processor, IMAGES, TEXTS, batch_size=4, progress=done.append)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert sum(done) == len(IMAGES) * len(TEXTS)
    with pytest.raises(ValueError, match="train mode"):
        score_pairs(METER(world.vlp.config), head, world.task.processor, IMAGES, TEXTS)


def test_rank_names_a_score_that_is_not_finite(new_world):
    world = new_world()
    with torch.no_grad():
        world.vlp.skippable_layer(3).skip_adapter.up.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"28 of 28 scores .* noise 0 40 40 with 'a red star\.'"):
        score_pairs(world.vlp, head_for(world), world.task.processor, IMAGES, TEXTS, np.arange(12) == 3)


def test_recalls_by_hand():
    scores = np.array([[0.9, 0.1, 0.5, 0.2], [0.8, 0.2, 0.4, 0.1]])
    owner = [0, 0, 1, 1]
    found = recalls(scores, owner)
    # image 0: text 0 is the best of all; image 1: text 2 comes after text 0
    assert found["tr_r1"] == 0.5
    # texts 0 and 3 have larger scores with image 0 and 0: right, wrong; text 1 with image 1: wrong; text 2 with 0: wrong
    assert found["ir_r1"] == 0.25
    assert found["tr_r5"] == found["ir_r5"] == found["tr_r10"] == found["ir_r10"] == 1.0
    assert list(found) == ["tr_r1", "tr_r5", "tr_r10", "ir_r1", "ir_r5", "ir_r10"]
    with pytest.raises(ValueError, match="`image_of_text`"):
        recalls(scores, [0, 0, 0, 0])  # image 1 has no text
