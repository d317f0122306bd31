"""What a model has to offer, and how it is told what it lacks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from das_gym.models.base import VLP, Layer, SkippableLayer, check_class, check_model
from tests.models import golden_cases as golden

METHODS = "embed, image_stream, inputs, pool, run_layer, skippable, text_stream"


class Toy(VLP):
    """A model of two layers whose every part can be spoilt."""

    tunable = ("adapter",)

    def __init__(self) -> None:
        super().__init__()
        self.layers = (Layer("a", "joint", 0), Layer("b", "joint", 1))
        self.feature_size = 3
        self.parts = nn.ModuleList(SkippableLayer(nn.Linear(3, 3), nn.Identity()) for _ in self.layers)
        self.adapter = nn.Linear(1, 1)

    def skippable(self, index):
        return self.parts[index]

    text_stream = image_stream = embed = run_layer = pool = inputs = None


def test_a_class_is_told_all_that_it_lacks_at_once():
    class Empty(VLP):
        pass

    with pytest.raises(TypeError, match=rf"Empty lacks {METHODS}, tunable \(parts of the names"):
        check_class(Empty)
    with pytest.raises(TypeError, match=rf"Linear is no model: derive it from das_gym.models.base.VLP; it lacks {METHODS}"):
        check_class(nn.Linear)
    check_class(Toy)


def test_a_model_is_told_all_that_is_wrong_at_once():
    check_model(Toy())
    toy = Toy()
    toy.layers = (Layer("a", "joint", 0), Layer("a", "joint", 2))
    toy.parts[1] = nn.Identity()
    toy.adapter = nn.Identity()
    del toy.feature_size
    text = (
        r"this Toy cannot be used: its layers have the stages \[0, 2\]; number them .*; two layers have the same name; "
        r"skippable\(index\) does not give .*; feature_size .* is not set .*; no parameter has one of tunable=\('adapter',\)"
    )
    with pytest.raises(ValueError, match=text):
        check_model(toy)
    toy.layers = ()
    with pytest.raises(ValueError, match="layers is not a tuple of one Layer or more, in mask order"):
        check_model(toy)


@pytest.mark.parametrize("name", ["meter", "vilt"])
def test_the_families_offer_it(name):
    vlp = golden.loaded(name).vlp
    check_model(vlp)
    assert {layer.kind for layer in vlp.layers} == {"fusion" if name == "meter" else "block"}
    assert vlp.size == "mini"


@pytest.mark.parametrize("name", ["meter", "vilt"])
def test_models_run_without_content(name):
    """On the meta device, where MACs are counted: shapes are those of images without padding."""
    case = golden.Recorded(name, torch.float32)
    batch = {"image": case.given("image"), "input_ids": case.given("text_ids"), "attention_mask": case.given("text_masks")}
    batch = {key: tensor[:2] for key, tensor in batch.items()}
    meta = copy.deepcopy(case.vlp).to("meta")
    empty = {key: tensor.to("meta") for key, tensor in batch.items()}
    with torch.no_grad():
        real, found = case.vlp.encode(batch), meta.encode(empty)
        assert {stream: h.shape for stream, h in found.hidden.items()} == {s: h.shape for s, h in real.hidden.items()}
        assert meta(empty).shape == case.vlp(batch).shape
