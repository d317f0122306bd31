"""The interface of models."""

import copy

import pytest
import torch
from torch import nn

from das_gym.models.base import VLP, Layer, SkippableLayer, check_class, check_model
from tests.models import golden_cases as golden


class Toy(VLP):
    """A model of two layers whose every part can be spoilt."""

    tunable = ("adapter",)

    def __init__(self) -> None:
        super().__init__()
        self.layers = (Layer("a", "joint", 0), Layer("b", "joint", 1))
        self.feature_size = 3
        self.parts = nn.ModuleList(SkippableLayer(nn.Linear(3, 3), nn.Identity()) for _ in self.layers)
        self.adapter = nn.Linear(1, 1)

    def skippable_layer(self, index):
        return self.parts[index]

    text_stream = image_stream = embed = run_layer = pool = inputs = None


def test_checks_name_everything_that_is_wrong():
    check_class(Toy)
    with pytest.raises(TypeError, match="got Linear"):
        check_class(nn.Linear)
    check_model(Toy())
    toy = Toy()
    toy.layers = (Layer("a", "joint", 0), Layer("a", "joint", 2))
    toy.adapter = nn.Identity()
    with pytest.raises(ValueError, match=r"stages \[0, 2\].*same name.*`tunable`"):
        check_model(toy)
    toy.layers = ()
    with pytest.raises(ValueError, match="`layers`"):
        check_model(toy)


@pytest.mark.parametrize("name", ["meter", "vilt"])
def test_families_pass_check_model(name):
    vlp = golden.loaded(name).vlp
    check_model(vlp)
    assert {layer.kind for layer in vlp.layers} == {"fusion" if name == "meter" else "block"}
    assert vlp.size == "mini"


@pytest.mark.parametrize("name", ["meter", "vilt"])
def test_models_run_on_meta(name):
    """On the meta device, where MACs are counted: shapes are those of images without padding."""
    case = golden.Recorded(name, torch.float32)
    batch = {key: tensor[:2] for key, tensor in case.batch().items()}
    meta = copy.deepcopy(case.vlp).to("meta")
    empty = {key: tensor.to("meta") for key, tensor in batch.items()}
    with torch.no_grad():
        real, found = case.vlp.encode(batch), meta.encode(empty)
        assert {stream: h.shape for stream, h in found.hidden.items()} == {s: h.shape for s, h in real.hidden.items()}
        assert meta(empty).shape == case.vlp(batch).shape
