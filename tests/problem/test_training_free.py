"""Problems without a supernet: the full model is searched, with its own head."""

import shutil
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from das_gym.models.checkpoints import load_checkpoint, save_checkpoint
from das_gym.models.tensor_files import read_tensors, write_tensors
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import ProblemConfig
from das_gym.problem.problem import Problem, build_problem
from das_gym.registration import ASSETS


@pytest.fixture(scope="module")
def fine_tuned(mini_folder, tmp_path_factory) -> Path:
    """METER-mini with a head for VQA in its folder, as fine-tuned checkpoints have it."""
    supernet = Adaptation.load(ASSETS / "meter_mini" / "vqa_supernet.safetensors")
    head = {n.removeprefix("head."): t for n, t in supernet.tensors.items() if n.startswith("head.")}
    folder = tmp_path_factory.mktemp("checkpoint") / "meter"
    save_checkpoint(folder, load_checkpoint(mini_folder).vlp, heads={"vqa_classifier": head})
    for file in mini_folder.glob("*token*"):
        shutil.copy(file, folder)
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        if (mini_folder / name).is_file():
            shutil.copy(mini_folder / name, folder)
    return folder


@pytest.fixture(scope="module")
def meter(fine_tuned) -> Problem:
    return build_problem(ProblemConfig(checkpoint=str(fine_tuned)))


@pytest.mark.slow
def test_fine_tuned_checkpoint_brings_its_head_and_leaves_skipped_layers_out(meter, fine_tuned):
    theirs = load_checkpoint(fine_tuned).heads["vqa_classifier"]
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in meter.head.state_dict().items())
    vlp, examples = meter.vlp, meter.splits.reward[:6]
    state = vlp.embed(meter.evaluator.encoder_cache(meter.task.pairs(examples)))
    with torch.no_grad():
        assert torch.equal(vlp.run_layer(0, state, skipped=True), state.hidden["text"])
    assert meter.costs.parallel_macs.sum() == meter.costs.skip_macs.sum() == 0
    full, skipped = meter.evaluator.losses(np.vstack((np.zeros(12), np.eye(12)[3])).astype(bool), examples)
    assert np.isfinite(full)
    assert full != skipped


@pytest.mark.slow
def test_incomplete_checkpoints_are_rejected(fine_tuned, tmp_path):
    folder = shutil.copytree(fine_tuned, tmp_path / "model")
    file = read_tensors(folder / "model.safetensors")
    del file.tensors["text_pooler.weight"]
    write_tensors(folder / "model.safetensors", file.tensors, file.config)
    with (
        pytest.warns(UserWarning, match="it lacks text_pooler"),
        pytest.raises(ValueError, match=r"lacks text_pooler\.weight"),
    ):
        build_problem(ProblemConfig(checkpoint=str(folder)))


def test_checkpoint_without_a_head_needs_a_supernet(mini_folder):
    with pytest.raises(ValueError, match="neither a supernet nor a head for vqa"):
        build_problem(ProblemConfig(checkpoint=str(mini_folder)))


@pytest.mark.slow
def test_transformers_model_is_an_environment(tiny_llava):
    env = gymnasium.make("DAS-VLM-Answering-v0", **tiny_llava, skip_num=1)
    observation, info = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert info["macs_saved"] == 0
    mask = np.array([0, 1, 0, 0], dtype=np.int8)
    _, reward, terminated, _, info = env.step(mask)
    assert terminated
    assert reward == pytest.approx(np.exp(-info["loss"]), rel=1e-6)
    assert info["macs_saved"] > 0.1


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"model": "METER", "task": "answering"}, "task='answering' is not supported by METER"),
        ({"units": "sublayers"}, "`units`"),
        ({"model": "VLM", "task": "answering", "precision": "bfloat16"}, "`precision`"),
    ],
)
def test_incompatible_settings_are_rejected(settings, name):
    with pytest.raises(ValueError, match=name):
        ProblemConfig(**settings)


def test_tree_gib_bounds_the_batch_size(tiny_llava, small_kwargs):
    problem = build_problem(ProblemConfig("VLM", "answering", **tiny_llava, tree_gib=1.5 * 2**19 / 2**30))
    evaluator = problem.evaluator
    assert 1 <= evaluator.batch_size < 128
    assert evaluator.trunk_bytes == 2**18
    assert evaluator.batch_size * problem.walk_bytes <= 2**19 < (evaluator.batch_size + 1) * problem.walk_bytes
    bounded, other = (build_problem(ProblemConfig(**small_kwargs, tree_gib=gib)).evaluator for gib in (2**-10, 3.0))
    assert bounded.batch_size < other.batch_size


@pytest.mark.parametrize(("share", "trunk"), [(1.2, 0.2), (0.9, 0.0), (3.0, 1.0)])
def test_what_is_kept_leaves_room_for_one_example(small_kwargs, small_problem, share, trunk):
    walk = small_problem.walk_bytes
    evaluator = build_problem(ProblemConfig(**small_kwargs, tree_gib=share * walk / 2**30)).evaluator
    assert evaluator.batch_size == max(1, int(2 * share / 3))
    assert evaluator.trunk_bytes == pytest.approx(trunk * walk, abs=2)
