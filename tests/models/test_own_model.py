"""A model of transformers that is no family of ours, by what `VLP` asks for alone: `examples/own_model.py`."""

import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from das_gym.adapt.finetuning import new_subnet, train_subnet
from das_gym.adapt.joint_search import new_model
from das_gym.adapt.methods.base import make_method
from das_gym.adapt.paper import das_settings
from das_gym.adapt.settings import JointSearchSettings, SupernetConfig, TrainingConfig
from das_gym.adapt.supernet import train_supernet

from das_gym import ModelEntry, register_model
from das_gym.models.base import Site, check_model
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.loading import ProblemConfig, load_backbone, load_splits, restore
from das_gym.problem.problem import build_problem
from tests.registered import as_before

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_model.py"


def save_bridge_tower(folder: Path, tokenizer: Path) -> Path:
    """A tiny random BridgeTower, 6 + 6 cross-modal layers, as `save_pretrained` writes it."""
    from transformers import BridgeTowerConfig, BridgeTowerModel

    torch.manual_seed(0)
    text = {
        "vocab_size": 512,
        "hidden_size": 64,
        "num_hidden_layers": 7,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 66,
    }
    vision = {"hidden_size": 64, "num_hidden_layers": 7, "patch_size": 16, "image_size": 32}
    config = BridgeTowerConfig(
        hidden_size=64,
        num_attention_heads=4,
        num_hidden_layers=6,
        text_config=text,
        vision_config=vision,
        initializer_factor=8,
    )
    BridgeTowerModel(config).save_pretrained(folder)
    for path in tokenizer.glob("token*.json"):
        shutil.copy(path, folder / path.name)
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory, mini_folder) -> Iterator[SimpleNamespace]:
    """The example's module, registered, and a checkpoint for it."""
    with as_before():
        example = SimpleNamespace(**runpy.run_path(str(EXAMPLE)))
        example.checkpoint = save_bridge_tower(tmp_path_factory.mktemp("bridge") / "model", mini_folder)
        register_model(ModelEntry("BridgeTower", vlp=example.BridgeTower, load=example.load))
        yield example


@pytest.fixture(scope="module")
def settings(own, shapes_folder) -> dict[str, str]:
    return {"checkpoint": str(own.checkpoint), "data_root": str(shapes_folder)}


@pytest.fixture(scope="module")
def supernet(settings, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bridge_supernet") / "supernet.safetensors"
    training = SupernetConfig(steps=3, batch_size=4, min_answer_count=1)
    return train_supernet(training, ProblemConfig(model="BridgeTower", **settings), out)


def test_custom_model_equals_transformers(own):
    from transformers import BridgeTowerModel

    plain = BridgeTowerModel.from_pretrained(own.checkpoint, attn_implementation="eager").eval()
    vlp = own.load(own.checkpoint)
    check_model(vlp)
    ids = torch.arange(12).reshape(2, 6) + 5
    real = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = plain(input_ids=ids, attention_mask=real, pixel_values=image).pooler_output
        ours = vlp({"input_ids": ids, "attention_mask": real, "image": image})
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert ours.std() > 0.1


@pytest.mark.slow
def test_engine_equals_plain_forwards(settings, supernet):
    problem = build_problem(ProblemConfig(model="BridgeTower", supernet=str(supernet), **settings))
    vlp, task, examples = problem.vlp, problem.task, problem.splits.reward[:6]
    with torch.no_grad():
        for parameter in vlp.tunable_state().values():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    masks = np.random.default_rng(0).random((6, 12)) < 0.4
    masks[0] = False
    batch, targets = task.processor(task.pairs(examples)), task.targets(examples)
    with torch.no_grad():
        plain = [float(task.losses(problem.head(vlp(batch, mask)), targets).mean()) for mask in masks]
    np.testing.assert_allclose(problem.evaluator.losses(masks, examples), plain, rtol=1e-5)
    assert len({round(loss, 3) for loss in plain}) == len(masks)


@pytest.mark.slow
def test_custom_model_is_fine_tuned_and_reloaded(settings, supernet, tmp_path):
    config = ProblemConfig(model="BridgeTower", supernet=str(supernet), **settings)
    mask = np.arange(12) % 3 == 0
    splits = load_splits(config)
    tuned, path = new_subnet(config, mask), tmp_path / "subnet.safetensors"
    train_subnet(tuned, splits, TrainingConfig(steps=2, batch_size=4), "fine-tuning")
    tuned.adaptation().save(path)
    again = restore(load_backbone(config), Adaptation.load(path), "vqa", path)
    assert again.backbone.vlp.pruned_mask.tolist() == mask.tolist()
    assert not any(part.layer for part, skipped in zip(again.backbone.vlp.parts, mask, strict=True) if skipped)
    ids = torch.arange(8)[None] + 5
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "image": torch.ones(1, 3, 32, 32)}
    with torch.no_grad():
        assert torch.equal(tuned.backbone.vlp.eval()(batch), again.backbone.vlp.eval()(batch))


def test_das_trains_the_adapters_that_a_mask_leaves(own):
    """Parallel ones this model has none, so that a mask that skips nothing leaves none."""
    vlp = own.load(own.checkpoint)
    assert make_method("das").insert(vlp) == []
    vlp = own.load(own.checkpoint)
    trained = make_method("das", {"mask": (1, 0, 0) * 4}).insert(vlp)
    assert sum(p.numel() for p in trained) == sum(p.numel() for p in vlp.skippable_layer(0).skip_adapter.parameters()) * 4
    vlp.remove_adapters()
    with pytest.raises(ValueError, match="DAS: this BridgeTower has no adapters"):
        make_method("das").insert(vlp)


def test_pipeline_leaves_sizes_to_the_model(own, settings):
    asked = JointSearchSettings(problem=ProblemConfig(model="BridgeTower", **settings))
    config = asked.recipe_problem
    assert (config.image_size, config.max_text_length) == (None, None)
    made = new_model(config, load_splits(config), asked.pipeline, 0)
    assert made.backbone.vlp.skippable_layer(0).skip_adapter.down.out_features == 64 // 8
    wide = das_settings("BridgeTower", "vqa", skip_bottleneck=24)
    assert (
        new_model(config, load_splits(config), wide, 0).backbone.vlp.skippable_layer(0).skip_adapter.down.out_features == 24
    )
    with pytest.raises(ValueError, match="`bottleneck`"):
        load_backbone(config, bottleneck=24)
    with pytest.raises(ValueError, match="`image_size`"):
        load_backbone(ProblemConfig(model="BridgeTower", image_size=64, **settings))


def test_lora_finds_modules_below_the_owner_of_a_site(own):
    """As transformers' BERTs have them: queries in `self`, what comes out in `output`."""
    vlp = own.load(own.checkpoint)
    batch = {"input_ids": torch.arange(8)[None] + 5, "attention_mask": torch.ones(1, 8), "image": torch.ones(1, 3, 32, 32)}

    def sites(index: int) -> tuple[Site, ...]:
        attention = vlp.skippable_layer(index).layer.attention
        return (Site("attention", attention, "output.dense", ("self.query", "self.value"), print),)

    vlp.sites = sites
    with torch.no_grad():
        before, trained = vlp(batch), make_method("lora").insert(vlp)
        torch.testing.assert_close(vlp(batch), before)  # it begins as nothing
        for parameter in trained:
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
        assert not torch.allclose(vlp(batch), before, atol=1e-3)
    size = vlp.bridge.config.hidden_size
    assert sum(p.numel() for p in trained) == 12 * 2 * 2 * size * 4  # layers, queries and values, down and up, rank
