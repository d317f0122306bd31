from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.pretrain.batches import IGNORE, CaptionBatches, image_batch
from benchmarks.pretrain.losses import PretrainHeads, caption_losses, image_losses
from benchmarks.pretrain.models import PRETRAIN_MODELS
from benchmarks.pretrain.recipe import CHECKPOINTS, PretrainConfig, pretrain
from benchmarks.pretrain.tokenizer import BERT, ROBERTA, train_tokenizer
from das_gym.models.checkpoints import load_checkpoint
from das_gym.models.inputs import load_tokenizer
from das_gym.models.meter.inputs import meter_transform
from das_gym.models.vilt.inputs import vilt_transform
from das_gym.registration import MODELS
from das_gym.shapes.scenes import COLORS, SHAPES, render, sample_scene


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(0)


@pytest.fixture(scope="module")
def batches(tokenizer) -> CaptionBatches:
    return CaptionBatches(tokenizer, seed=0, batch_size=64, patch_size=16, normalise=PRETRAIN_MODELS["METER"].normalise)


both_models = pytest.mark.parametrize("name", PRETRAIN_MODELS)


def test_vocabulary_covers_all_texts(tokenizer):
    for text in ("what color is the circle?", "où est le chat\u202f?", "猫はどこ 🐈", "\x00\ttabs"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids[1:-1]).strip() == text.strip() or text != text.lower()


@both_models
def test_shipped_tokenizer_equals_the_trained_one(name: str):
    folder = MODELS[name].assets
    assert folder is not None
    shipped, trained = load_tokenizer(folder), train_tokenizer(0, PRETRAIN_MODELS[name].special_tokens)
    assert shipped.get_vocab() == trained.get_vocab()
    assert shipped("is it red?")["input_ids"] == trained("is it red?")["input_ids"]


@pytest.mark.parametrize(
    ("special", "pad", "first", "last", "mask"),
    [
        (ROBERTA, ("<pad>", 1), ("<s>", 0), ("</s>", 2), ("<mask>", 4)),
        (BERT, ("[PAD]", 0), ("[CLS]", 2), ("[SEP]", 3), ("[MASK]", 4)),
    ],
    ids=["RoBERTa", "BERT"],
)
def test_special_tokens_are_those_of_the_models_text(special, pad, first, last, mask):
    tokenizer = train_tokenizer(0, special)
    ids = tokenizer("a")["input_ids"]
    assert (tokenizer.bos_token, ids[0]) == first
    assert (tokenizer.eos_token, ids[-1]) == last
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == pad
    assert (tokenizer.mask_token, tokenizer.mask_token_id) == mask
    assert tokenizer("")["input_ids"] == [special.first, special.last]


@pytest.mark.parametrize(
    ("name", "transform"), [("METER", meter_transform), ("ViLT", lambda i, s: vilt_transform(i, s, 16))]
)
def test_pixels_are_those_of_the_models_transform(name: str, transform):
    batch = image_batch(3, 1, 2, 16, PRETRAIN_MODELS[name].normalise)
    rng = np.random.default_rng([3, 0, 1])
    expected = [transform(render(sample_scene(rng)), 96) for _ in range(2)]
    torch.testing.assert_close(batch.image, torch.stack(expected))


@pytest.mark.slow
@both_models
def test_losses_train_the_model(name: str):
    torch.manual_seed(0)
    recipe = PRETRAIN_MODELS[name]
    tokenizer = train_tokenizer(0, recipe.special_tokens)
    model = recipe.build(16, len(tokenizer), 0, 4)
    recipe.initialise(model)
    heads = PretrainHeads(16, model.feature_size, len(tokenizer))
    batch = CaptionBatches(tokenizer, 0, 24, 16, recipe.normalise)(0)
    inputs = {"image": batch.scenes.image, "input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    losses = caption_losses(heads, recipe.features(model, inputs), batch)
    whole = losses.pop("loss")
    whole.backward(retain_graph=True)
    taught = [p for key, p in model.named_parameters() if "adapter" not in key and p.grad is not None]
    for loss in losses.values():
        grads = torch.autograd.grad(loss, taught, retain_graph=True, allow_unused=True)
        assert sum(float(g.abs().sum()) for g in grads if g is not None) > 0


@both_models
def test_first_part_trains_without_text(name: str):
    torch.manual_seed(0)
    recipe = PRETRAIN_MODELS[name]
    model = recipe.build(16, 373, 0, 4)
    recipe.initialise(model)
    heads = PretrainHeads(16, model.feature_size, 373)
    batch = image_batch(0, 0, 8, 16, recipe.normalise)
    patches = recipe.early_patches(model, batch.image)
    assert patches.shape == (8, 36, 16)
    optimizer = torch.optim.Adam([*model.parameters(), *heads.parameters()], 1e-2)
    values = []
    for _ in range(8):
        loss = image_losses(heads, recipe.early_patches(model, batch.image), batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.7 * values[0]


def test_hidden_words_are_labelled_and_nothing_else(batches: CaptionBatches, tokenizer):
    batch = batches(0)
    hidden = batch.input_ids == tokenizer.mask_token_id
    assert torch.equal(hidden, batch.words != IGNORE)
    with_hidden = hidden.any(1)
    assert torch.equal(with_hidden, batch.matches == IGNORE)
    assert 0.3 < with_hidden.float().mean() < 0.7
    assert set(batch.matches[~with_hidden].tolist()) == {0, 1}


def test_patches_are_labelled_by_what_they_show():
    batch = image_batch(0, 0, 8, 16, PRETRAIN_MODELS["METER"].normalise)
    assert batch.image.shape == (8, 3, 96, 96)
    assert batch.colors.shape == batch.shapes.shape == (8, 36)
    assert torch.equal(batch.colors == len(COLORS), batch.shapes == len(SHAPES))
    assert ((batch.centers >= 0) & (batch.centers <= 1)).all()


@pytest.mark.slow
@both_models
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
