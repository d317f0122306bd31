"""The settings of a problem, and the warning where a model is no better than chance."""

import json
import sys
import warnings
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from das_gym.agents import SearchConfig, search

from das_gym import registration
from das_gym.data.entries import POLICIES
from das_gym.engine import tree
from das_gym.files import write_json
from das_gym.models.transformers import units
from das_gym.problem.config import (
    COMPUTE_SETTINGS,
    DEVICE_TYPES,
    ON_BAD_EXAMPLE,
    PATH_SETTINGS,
    PRECISIONS,
    SCORE_SETTINGS,
    UNITS,
    ProblemConfig,
    check_before_loading,
    check_device,
    training_command,
    warn_at_chance,
)
from das_gym.problem.loading import task_class
from das_gym.tasks import base
from tests.tasks.answering.making import llava_folder


def test_listed_choices_are_those_that_are_read():
    assert (PRECISIONS, UNITS, ON_BAD_EXAMPLE) == (tree.PRECISIONS, units.UNITS, POLICIES)
    assert registration.PARTS == base.PARTS


def test_each_setting_either_changes_scores_or_not():
    """A new setting that changes scores has to be in `SCORE_SETTINGS`, which tables keep."""
    without_effect = {"model", "task", "trust_remote_code", "device_map", *PATH_SETTINGS, *COMPUTE_SETTINGS}
    assert without_effect | set(SCORE_SETTINGS) == {each.name for each in fields(ProblemConfig)}
    assert not without_effect & set(SCORE_SETTINGS)


@pytest.mark.parametrize(
    ("device", "nearest"),
    [
        ("gpu", "cuda"),
        ("gpu0", "cuda"),
        ("cud", "cuda"),
        ("mpx", "mps"),
        ("graphics", None),
        ("auto:1", None),
        ("meta", None),
    ],
)
def test_words_that_are_no_device_of_torch_are_rejected(device, nearest):
    with pytest.raises(ValueError, match=f"`device` is unknown: got {device}, expected auto, cpu, cuda") as caught:
        ProblemConfig(device=device)
    assert nearest is None or str(caught.value).endswith(f"Did you mean {nearest}?")


def test_device_types_of_torch_pass():
    for kind in DEVICE_TYPES:
        assert torch.device(kind).type == kind
        check_device(f"{kind}:1")


@pytest.mark.parametrize(
    ("tower", "expected"), [({"num_hidden_layers": 3}, range(5, 8)), ({"depth": 3}, range(5, 8)), ({}, None)]
)
def test_numbers_of_units_are_unknown_if_the_vision_layers_are(tower, expected, tmp_path):
    config = {"model_type": "llava", "text_config": {"num_hidden_layers": 4}, "vision_config": tower}
    (tmp_path / "config.json").write_text(json.dumps(config))
    problem = ProblemConfig("VLM", "answering", checkpoint=str(tmp_path), vision=True)
    assert problem.unit_counts == expected


@pytest.mark.parametrize("protocol", [2, 4])
def test_units_of_an_official_file_are_counted_by_whole_names(protocol, tmp_path):
    """Tensors of another module may have the same ending, and hyper-parameters may mention a layer."""
    own = {f"transformer.blocks.{n}.{'norm' * 8}.weight": torch.zeros(1) for n in range(3)}
    others = {f"momentum.{name}".replace(".2.", ".7."): tensor for name, tensor in own.items()}
    path = tmp_path / "vilt.ckpt"
    content = {"state_dict": {**own, **others}, "hyper_parameters": {"frozen": "all but transformer.blocks.9."}}
    torch.save(content, path, pickle_protocol=protocol)
    assert ProblemConfig("ViLT", checkpoint=str(path)).unit_counts == range(3, 4)
    path.write_bytes(path.read_bytes()[:100])
    assert ProblemConfig("ViLT", checkpoint=str(path)).unit_counts is None


@pytest.mark.parametrize(
    ("name", "setting", "command"),
    [
        ("model", "checkpoint", "hf download a/b"),
        ("checkpoint", "checkpoint", "hf download a/b"),
        ("data_root", "data_root", "hf download --repo-type dataset a/b"),
    ],
)
def test_hub_id_is_rejected_with_the_download_command(name, setting, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        (ValueError, FileNotFoundError), match=f"`{name}`.*got a/b.*`{command} --local-dir .*{setting}=FOLDER"
    ):
        ProblemConfig(**{"model": "VLM", "task": "answering", name: "a/b"})
    if name != "model":  # commands make paths absolute first
        with pytest.raises(FileNotFoundError, match=command):
            ProblemConfig(**{"model": "VLM", "task": "answering", name: str(tmp_path / "a" / "b")})


def test_missing_path_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    for path in ("a/b", "/a/b"):
        with pytest.raises(FileNotFoundError, match=r"`data_root` does not exist.*for the bundled one\.$"):
            ProblemConfig("VLM", "answering", data_root=path)


def test_chance_follows_from_options_and_classes():
    options = [
        SimpleNamespace(options=("a", "b")),
        SimpleNamespace(options=("a", "b", "c", "d")),
        SimpleNamespace(options=()),
    ]
    assert task_class("answering").chance(None, options) == pytest.approx(0.25)
    assert task_class("nlvr2").chance(task_class("nlvr2"), options) == 0.5


def test_scores_within_two_standard_errors_of_chance_warn():
    task = SimpleNamespace(chance=lambda examples: 0.5, metric_name="accuracy")
    with pytest.warns(UserWarning, match=r"no better than chance .* 54\.0 % accuracy on 400 reward"):
        warn_at_chance(None, task, range(400), 0.54, "reward")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_at_chance(None, task, range(400), 0.56, "reward")


def test_training_command_names_model_and_data(tmp_path):
    assert "adapt supernet with vilt_vqa data_root=" in training_command(
        ProblemConfig(model="ViLT", data_root=str(tmp_path))
    )
    unlike = {"units": "sublayers", "vision": True, "skip": "linear"}  # of which `adapt compare` fine-tunes none
    command = training_command(ProblemConfig(model="VLM", task="answering", data_root=str(tmp_path), **unlike))
    assert not any(f"{name}=" in command for name in unlike)
    assert "adapt compare with vlm_answering data_root=" in command
    assert "adapt export with run=<id> method=lora out=FOLDER" in command


def test_search_warns_of_a_model_at_zero_percent(tmp_path):
    """The bundled model has never seen such questions: `thing 3` is no answer of its."""
    root = llava_folder(tmp_path / "mine", train=20, test=3)
    settings = {"agent": "random", "evaluations": 2, "masks_per_turn": 2, "skip_num": 2}
    config = SearchConfig("DAS-VLM-Answering-v0", env_kwargs={"data_root": str(root)}, **settings)
    with pytest.warns(UserWarning, match=r"no better than chance .*0\.0 % exact_match on 2 reward .*adapt compare with"):
        search(config)


def test_workers_need_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"`workers`.*das_gym\[ray\]"):
        check_before_loading(ProblemConfig(workers="ray"))


def folder_of(place: Path, *files: str) -> str:
    """Write config.json of a text model with 64 positions, and empty files."""
    write_json(place / "config.json", {"model_type": "llama", "num_hidden_layers": 4, "max_position_embeddings": 64})
    for name in files:
        (place / name).touch()
    return str(place)


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        ((), "has no weights"),
        (("tokenizer.json",), "has no weights"),
        (("model-00001-of-00002.safetensors",), "has no model-00002-of-00002"),
        (("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"), ""),
        (("model.safetensors",), ""),
        (("pytorch_model.bin",), ""),
        (("model.trust_remote_code.safetensors",), ""),
    ],
)
def test_missing_weights_are_reported_before_anything_is_loaded(tmp_path, files, missing):
    config = ProblemConfig(model="VLM", task="answering", checkpoint=folder_of(tmp_path, *files))
    if any("-of-" in name for name in files):
        shards = {name: f"model-0000{name}-of-00002.safetensors" for name in "12"}
        write_json(tmp_path / "model.safetensors.index.json", {"weight_map": shards})
    with pytest.raises(FileNotFoundError, match=missing) if missing else nullcontext():
        check_before_loading(config)


def test_context_beyond_the_positions_is_reported_before_anything_is_loaded(tmp_path):
    given = {
        "model": "VLM",
        "task": "text",
        "data_root": str(tmp_path),
        "checkpoint": folder_of(tmp_path, "model.safetensors"),
    }
    check_before_loading(ProblemConfig(**given, context=64))
    with pytest.raises(ValueError, match=r"`context` .* got 65, expected at most 64"):
        check_before_loading(ProblemConfig(**given, context=65))
    with pytest.raises(ValueError, match=r"`context` .* got 64, expected at most 32"):
        check_before_loading(ProblemConfig(**given, context=64, max_text_length=32))
