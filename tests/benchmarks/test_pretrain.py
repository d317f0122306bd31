from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.pretrain.batches import CaptionBatches
from benchmarks.pretrain.models import PRETRAIN_MODELS
from benchmarks.pretrain.recipe import CHECKPOINTS, PretrainConfig, pretrain
from benchmarks.pretrain.tokenizer import train_tokenizer
from das_gym.models.checkpoints import load_checkpoint
from das_gym.models.inputs import load_tokenizer
from das_gym.registration import MODELS


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(0)


@pytest.fixture(scope="module")
def batches(tokenizer) -> CaptionBatches:
    return CaptionBatches(tokenizer, seed=0, batch_size=64, patch_size=16, normalise=PRETRAIN_MODELS["METER"].normalise)


both_models = pytest.mark.parametrize("name", PRETRAIN_MODELS)


@both_models
def test_shipped_tokenizer_equals_the_trained_one(name: str):
    folder = MODELS[name].assets
    assert folder is not None
    shipped, trained = load_tokenizer(folder), train_tokenizer(0, PRETRAIN_MODELS[name].special_tokens)
    assert shipped.get_vocab() == trained.get_vocab()
    assert shipped("is it red?")["input_ids"] == trained("is it red?")["input_ids"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViLT"])
def test_pretraining_runs_stops_and_resumes(tmp_path: Path, name: str):
    config = PretrainConfig(name, hidden_size=16, image_steps=3, steps=4, batch_size=8, image_batch_size=8, save_every=2)
    whole = pretrain(config, tmp_path / "whole", tmp_path / "a")
    assert all((tmp_path / "a" / file).is_file() for file in CHECKPOINTS)
    (tmp_path / "a" / CHECKPOINTS[1]).unlink()
    again = pretrain(config, tmp_path / "again", tmp_path / "a")  # the first part from step 2, the second again
    one, two = load_checkpoint(whole, heads=["itm_score"]), load_checkpoint(again)
    assert type(one.vlp).__name__ == name
    frozen = [key for key in one.vlp.state_dict() if "adapter" not in key]
    assert all(torch.equal(one.vlp.state_dict()[key], two.vlp.state_dict()[key]) for key in frozen)
    assert all("adapter" in key for key in one.report.missing)
    assert one.heads["itm_score"]["weight"].shape == (2, one.vlp.feature_size)
    assert np.isfinite([float(p.detach().sum()) for p in one.vlp.parameters()]).all()
    assert load_tokenizer(whole).pad_token_id == PRETRAIN_MODELS[name].special_tokens.tokens.index(
        load_tokenizer(whole).pad_token
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "vilt"}, "unknown model 'vilt'; did you mean 'ViLT'\\? known: METER, ViLT"),
        ({"hidden_size": 30}, "hidden_size=30 cannot be split over 4 heads; use a multiple of 4"),
        ({"learning_rate": -1.0}, "`learning_rate` is out of range"),
    ],
)
def test_wrong_settings_are_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        PretrainConfig(**settings)
