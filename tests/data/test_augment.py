"""RandAugment: torchvision's, and drawn from a seed of its own."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
from PIL import Image

from das_gym.data import augment
from das_gym.data.augment import augmentation_seed, randaugment


@pytest.fixture
def picture() -> Image.Image:
    gradient = Image.linear_gradient("L")
    return Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180))).resize((48, 32))


def test_the_same_seed_changes_an_image_in_the_same_way(picture: Image.Image):
    changed = [randaugment(picture, seed) for seed in range(12)]
    assert [image.tobytes() for image in changed] == [randaugment(picture, seed).tobytes() for seed in range(12)]
    assert len({image.tobytes() for image in changed}) >= 6
    assert {(image.size, image.mode) for image in changed} == {((48, 32), "RGB")}


def test_it_is_torchvisions(picture: Image.Image):
    from torchvision.transforms import RandAugment

    torch.manual_seed(7)
    assert randaugment(picture, 7).tobytes() == RandAugment(2, 9)(picture).tobytes()


def test_torchs_own_numbers_go_on_as_if_nothing_was_drawn(picture: Image.Image):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    randaugment(picture, 5)
    assert torch.equal(torch.rand(4), expected)


def test_no_operations_change_nothing(picture: Image.Image):
    assert randaugment(picture, 1, num_ops=0).tobytes() == picture.tobytes()


@pytest.mark.parametrize("wrong", [{"num_ops": -1}, {"magnitude": 31}, {"magnitude": -1}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(picture: Image.Image, wrong: dict[str, int]):
    with pytest.raises(ValueError, match=r"num_ops and seed are 0 or more, magnitude is 0\.\.30"):
        randaugment(picture, **{"seed": 0, **wrong})


def test_seeds_differ_by_run_step_and_image():
    seeds = {
        augmentation_seed(*at) for at in [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b"), (0, 10, "a"), (1, 1, "0 a")]
    }
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert augmentation_seed(0, 0, "a") == augmentation_seed(0, 0, "a")


def test_without_torchvision_the_extra_is_named(picture: Image.Image, monkeypatch: pytest.MonkeyPatch):
    usual = builtins.__import__

    def without_torchvision(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("torchvision"):
            raise ImportError(name)
        return usual(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_torchvision)
    augment._augment.cache_clear()
    with pytest.raises(ImportError, match=r"RandAugment needs torchvision: install it with pip install 'das_gym\[augment"):
        randaugment(picture, 0)
