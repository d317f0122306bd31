from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from adapt.pretrain import PretrainConfig, pretrain
from adapt.pretrain_batches import IGNORE, CaptionBatches, image_batch
from adapt.tokenizer import train_tokenizer
from das_gym.data.processor import load_tokenizer
from das_gym.data.scenes import COLORS, SHAPES
from das_gym.vlp.checkpoints import load_checkpoint


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(0)


@pytest.fixture(scope="module")
def batches(tokenizer) -> CaptionBatches:
    return CaptionBatches(tokenizer, seed=0, batch_size=64, patch_size=16)


def test_no_text_is_out_of_vocabulary(tokenizer):
    for text in ("what color is the circle?", "où est le chat\u202f?", "猫はどこ 🐈", "\x00\ttabs"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids[1:-1]).strip() == text.strip() or text != text.lower()


def test_the_shipped_tokenizer_is_the_trained_one(tokenizer, mini_folder: Path):
    assert load_tokenizer(mini_folder).get_vocab() == tokenizer.get_vocab()


def test_special_tokens_are_robertas(tokenizer):
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]) == [0, 1, 2, 3, 4]
    assert tokenizer("a")["input_ids"][0] == 0
    assert tokenizer("a")["input_ids"][-1] == 2


def test_batches_are_a_function_of_seed_and_step(batches: CaptionBatches):
    one, again, other = batches(3), batches(3), batches(4)
    assert torch.equal(one.scenes.image, again.scenes.image)
    assert torch.equal(one.input_ids, again.input_ids)
    assert not torch.equal(one.scenes.image, other.scenes.image)


def test_hidden_words_are_labelled_and_nothing_else(batches: CaptionBatches, tokenizer):
    batch = batches(0)
    hidden = batch.input_ids == tokenizer.mask_token_id
    assert torch.equal(hidden, batch.words != IGNORE)
    with_hidden = hidden.any(1)
    assert torch.equal(with_hidden, batch.matches == IGNORE)
    assert 0.3 < with_hidden.float().mean() < 0.7
    assert set(batch.matches[~with_hidden].tolist()) == {0, 1}


def test_false_captions_teach_nothing_about_patches(batches: CaptionBatches):
    batch = batches(0)
    false = batch.matches == 0
    assert (batch.roles[false] == IGNORE).all()
    assert batch.places[false].isnan().all()
    assert batch.offsets[false].isnan().all()
    assert (batch.roles[~false] != IGNORE).all()


def test_named_words_lie_where_their_object_is(batches: CaptionBatches):
    batch = batches(1)
    rows, tokens = torch.nonzero(~batch.places.isnan().any(-1), as_tuple=True)
    assert len(rows) > 20
    for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
        color, shape = batch.color_words[row, token], batch.shape_words[row, token]
        shown = batch.scenes.colors[row] == color if color >= 0 else batch.scenes.shapes[row] == shape
        centers = batch.scenes.centers[row][shown]
        assert (centers - batch.places[row, token]).abs().sum(-1).min() < 1e-6


def test_patches_are_labelled_by_what_they_show():
    batch = image_batch(0, 0, 8, 16)
    assert batch.image.shape == (8, 3, 96, 96)
    assert batch.colors.shape == batch.shapes.shape == (8, 36)
    assert torch.equal(batch.colors == len(COLORS), batch.shapes == len(SHAPES))
    assert ((batch.centers >= 0) & (batch.centers <= 1)).all()


@pytest.mark.slow
def test_pretraining_runs_stops_and_goes_on(tmp_path: Path):
    config = PretrainConfig(image_steps=3, steps=4, batch_size=8, image_batch_size=8, save_every=2)
    whole = pretrain(config, tmp_path / "whole", tmp_path / "a")
    (tmp_path / "b").mkdir()
    for name in ("image.pt", "fusion.pt"):
        assert (tmp_path / "a" / name).is_file() or name == "image.pt"
    again = pretrain(config, tmp_path / "again", tmp_path / "a")  # goes on from the last checkpoint
    one, two = load_checkpoint(whole), load_checkpoint(again)
    frozen = [name for name in one.vlp.state_dict() if "adapter" not in name]
    assert all(torch.equal(one.vlp.state_dict()[name], two.vlp.state_dict()[name]) for name in frozen)
    assert all("adapter" in name for name in one.report.missing)
    assert np.isfinite([float(p.detach().sum()) for p in one.vlp.parameters()]).all()
