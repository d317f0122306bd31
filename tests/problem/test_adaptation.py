import contextlib
import dataclasses

import numpy as np
import pytest
import torch

from das_gym.models.base import fingerprint
from das_gym.models.tensor_files import read_safetensors, write_tensors
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_backbone


@pytest.fixture
def saved(random_supernet) -> Adaptation:
    return Adaptation.load(random_supernet)


def test_load_reads_what_save_wrote(saved, tmp_path):
    saved.save(tmp_path / "copy.safetensors")
    copy = Adaptation.load(tmp_path / "copy.safetensors")
    assert copy.answers == saved.answers
    assert (copy.task, copy.base, copy.mask) == ("vqa", saved.base, None)
    assert all(torch.equal(copy.tensors[name], tensor) for name, tensor in saved.tensors.items())


def test_fingerprint_covers_frozen_parameters_and_is_checked(saved):
    vlp = load_backbone(ProblemConfig()).vlp
    with pytest.raises(ValueError, match="was trained on a model with fingerprint"):
        saved.apply(vlp, torch.nn.Linear(1, 1), base="0" * 16)
    before = fingerprint(vlp)
    with torch.no_grad():
        vlp.text_pooler.weight += 1
    assert fingerprint(vlp) == before
    with torch.no_grad():
        vlp.text_transform.weight[0, 0] += 1e-3
    assert fingerprint(vlp) != before


def test_load_rejects_missing_and_other_files(mini_folder, tmp_path):
    for path, error in ((tmp_path / "none.safetensors", FileNotFoundError), (mini_folder / "model.safetensors", ValueError)):
        with pytest.raises(error, match="adaptation file"):
            Adaptation.load(path)


def test_flipped_bytes_never_change_parameters(saved, tmp_path):
    saved.save(tmp_path / "whole.safetensors")
    whole, path = (tmp_path / "whole.safetensors").read_bytes(), tmp_path / "flipped.safetensors"
    places = np.random.default_rng(0).integers(0, len(whole), 40)
    header = np.random.default_rng(1).integers(0, 8 + int.from_bytes(whole[:8], "little"), 20)
    for place in map(int, (*places, *header)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with contextlib.suppress(ValueError):
            again = Adaptation.load(path)
            assert dataclasses.replace(again, tensors={}) == dataclasses.replace(saved, tensors={})
            assert all(torch.equal(again.tensors[name], tensor) for name, tensor in saved.tensors.items())


@pytest.mark.parametrize("change", [{"mask": [2, -1]}, {"answers": 3}, {"odd": 1}])
def test_load_rejects_damaged_metadata(saved, tmp_path, change):
    saved.save(tmp_path / "a.safetensors")
    file = read_safetensors(tmp_path / "a.safetensors")
    write_tensors(tmp_path / "a.safetensors", file.tensors, {**file.config, **change})
    with pytest.raises(ValueError, match=rf"a\.safetensors is a damaged adaptation file \(.*{next(iter(change))}"):
        Adaptation.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("value", [float("nan"), 1e300], ids=["nan", "too large for 32 bits"])
def test_load_rejects_non_finite_numbers(saved, tmp_path, value):
    name = next(iter(saved.tensors))
    odd = torch.full(saved.tensors[name].shape, value, dtype=torch.float64)
    dataclasses.replace(saved, tensors={**saved.tensors, name: odd}).save(tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match="NaN or infinite values"):
        Adaptation.load(tmp_path / "odd.safetensors")


def test_apply_prunes_the_mask_of_a_subnet(saved, tiny_problem):
    backbone = load_backbone(ProblemConfig())
    mask = np.arange(12) % 3 == 0
    head = tiny_problem.task.build_head(backbone.vlp.feature_size)
    saved.apply(backbone.vlp, head, backbone.base)
    backbone.vlp.prune(mask)
    subnet = Adaptation.from_model(backbone.vlp, head, task="vqa", answers=saved.answers, base=backbone.base)
    assert subnet.mask == tuple(mask.astype(int))
    fresh = load_backbone(ProblemConfig())
    subnet.apply(fresh.vlp, tiny_problem.task.build_head(fresh.vlp.feature_size), fresh.base)
    np.testing.assert_array_equal(fresh.vlp.pruned_mask, mask)
