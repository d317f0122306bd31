import numpy as np
import pytest
import torch

from benchmarks.pretrain import recipe
from benchmarks.pretrain.family import Size
from benchmarks.pretrain.recipe import CHECKPOINTS, RECIPES, pretrain
from benchmarks.pretrain.tokenizer import train_tokenizer
from das_gym.models.checkpoints import load_checkpoint
from das_gym.models.inputs import load_tokenizer
from das_gym.registration import MODELS


@pytest.mark.parametrize("name", ["METER", "ViLT"])
def test_shipped_tokenizer_equals_the_trained_one(name):
    folder = MODELS[name].assets
    assert folder is not None
    shipped, trained = load_tokenizer(folder), train_tokenizer(0, RECIPES[name].tokens)
    assert shipped.get_vocab() == trained.get_vocab()
    assert shipped("is it red?")["input_ids"] == trained("is it red?")["input_ids"]


@pytest.mark.slow
def test_pretraining_runs_stops_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "SAVE_EVERY", 2)
    size = Size(hidden_size=16, image_steps=3, image_batch_size=8, steps=4, batch_size=8, learning_rate=1e-3)
    pretrain("ViLT", size, tmp_path / "whole", tmp_path / "a")
    assert all((tmp_path / "a" / file).is_file() for file in CHECKPOINTS)
    (tmp_path / "a" / CHECKPOINTS[1]).unlink()
    pretrain("ViLT", size, tmp_path / "again", tmp_path / "a")  # the first part from step 2, the second again
    one, two = load_checkpoint(tmp_path / "whole", heads=["itm_score"]), load_checkpoint(tmp_path / "again")
    assert type(one.vlp).__name__ == "ViLT"
    frozen = [key for key in one.vlp.state_dict() if "adapter" not in key]
    assert all(torch.equal(one.vlp.state_dict()[key], two.vlp.state_dict()[key]) for key in frozen)
    assert all("adapter" in key for key in one.report.missing)
    assert one.heads["itm_score"]["weight"].shape == (2, one.vlp.feature_size)
    assert np.isfinite([float(p.detach().sum()) for p in one.vlp.parameters()]).all()
