"""The function `das_gym.adapt.shrink`, on live models and on folders; tests of the command are those of its result."""

import json

import numpy as np
import pytest
import torch
from das_gym.adapt import shrink
from das_gym.adapt.shrinking.shrink import Shrunk
from safetensors.torch import load_file

from das_gym.problem.problem import Problem
from tests.adapt.conftest import MASK

STEPS = {"steps": 2, "batch_size": 4}


@pytest.fixture
def live(folder_of, data) -> Problem:
    """The problem of a model in memory, on rows of the same data."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = folder_of("llava")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    rows = json.loads((data / "train.json").read_text())
    parts = [
        {
            "image": str(data / "images" / row["image"]) if (data / "images").is_dir() else str(data / row["image"]),
            "question": row["conversations"][0]["value"].replace("<image>\n", ""),
            "answer": row["conversations"][1]["value"],
        }
        for row in rows
    ]
    return Problem.from_model(model, AutoProcessor.from_pretrained(folder), train=parts)


def weights(small: Shrunk) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in small.model.state_dict().items()}


@pytest.mark.parametrize("recover", ["none", "linear+lora"])
def test_a_problem_and_the_random_state_stay_as_they_are(problem_of, recover):
    problem = problem_of("llava")
    full = problem.vlp.model
    before = {name: (value.clone(), value.requires_grad) for name, value in full.named_parameters()}
    state = torch.get_rng_state()
    small = shrink(problem, MASK.tolist(), recover=recover, **STEPS)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[name][0]) and p.requires_grad == before[name][1] for name, p in full.named_parameters())
    assert small.model.config.text_config.num_hidden_layers == 2
    assert "removed: decoder.1, decoder.3" in repr(small)


def test_twice_and_for_two_models_in_turn_gives_the_same(problem_of):
    first = weights(shrink(problem_of("llava"), MASK, **STEPS))
    shrink(problem_of("smolvlm"), MASK, **STEPS)
    again = weights(shrink(problem_of("llava"), MASK, **STEPS))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.slow
def test_a_live_model_becomes_a_folder(live, tmp_path):
    small = shrink(live, MASK, recover="refit+lora", **STEPS)
    verified = small.save_pretrained(tmp_path / "smaller")
    assert verified.logits_difference < 1e-4
    saved = load_file(tmp_path / "smaller" / "model.safetensors")
    assert sum(value.numel() for value in saved.values()) <= sum(p.numel() for p in small.model.parameters())
    assert "decoder layers 1, 3 (counted from 0) were deleted" in (tmp_path / "smaller" / "README.md").read_text()
    assert small.evaluate().score == small.measure().final.score


def test_a_folder_belongs_to_one_mask_and_one_model(problem_of, tmp_path):
    shrink(problem_of("llava"), MASK, folder=tmp_path, **STEPS)
    for other in ({"mask": ~MASK}, {"rank": 4}, {"save_dtype": "float16"}):
        given = {"mask": MASK, **STEPS, **other}
        with pytest.raises(ValueError, match=f"another `{next(iter(other))}`"):
            shrink(problem_of("llava"), folder=tmp_path, **given)
    with pytest.raises(ValueError, match="another `model`"):
        shrink(problem_of("smolvlm"), MASK, folder=tmp_path, **STEPS)
    small = shrink(problem_of("llava"), MASK, folder=tmp_path, micro_batch_size=np.int64(2), **STEPS)
    assert small.trained_parameters or not small.selection.trained_is_better


@pytest.mark.parametrize(
    ("mask", "settings", "word"),
    [
        (MASK, {"recover": "lroa"}, "lora"),
        (MASK, {"stepz": 3}, "steps"),
        (MASK, {"save_dtype": "int8"}, "save_dtype"),
        (MASK[:3], {}, "mask"),
        ([2, 0, 0, 0], {}, "mask"),
        ([1, 1, 1, 1], {"recover": "none"}, "4 decoder layers"),
        (MASK, {"targets": "teachr"}, "teacher"),
    ],
)
def test_wrong_arguments_are_one_line(problem_of, mask, settings, word):
    with pytest.raises((ValueError, TypeError), match=word) as error:
        shrink(problem_of("llava"), mask, **settings)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_model_that_was_trained_since_is_rejected(live):
    with torch.no_grad():
        live.backbone.origin.shared[0].add_(1.0)
    with pytest.raises(ValueError, match="has changed"):
        shrink(live, MASK)


def test_other_models_are_rejected():
    problem = Problem.from_pretrained("METER", "vqa")
    with pytest.raises(TypeError, match="METER"):
        shrink(problem, [0] * 12)
