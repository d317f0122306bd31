"""Folders whose files are damaged, or want code run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import psutil
import pytest
import torch
from safetensors.torch import load_file

from das_gym.models.inputs import load_tokenizer
from das_gym.models.transformers import loading
from das_gym.models.transformers.inputs import SPECIAL_TOKENS, load_processor
from das_gym.models.transformers.loading import load_vlm
from das_gym.registration import ASSETS

SMOL = ASSETS / "smolvlm_mini"
CODE = "import pathlib\npathlib.Path({!r}).touch()\nclass Foo: pass\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The bundled model's folder, its configuration to be changed."""
    shutil.copytree(SMOL, tmp_path / "model", ignore=shutil.ignore_patterns("*.npz"))
    return tmp_path / "model"


def change(folder: Path, name: str = "config.json", **fields: object) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": 0},
        {"dtype": "x"},
        {"dtype": [1]},
        {"image_token_id": "x"},
        {"model_type": [1]},
        {"model_type": "nothing"},
        {"scale_factor": None},
        {"text_config": 3},
        {"vision_config": {"image_size": 0}},
        {"vision_config": {"image_size": 16_000_000}},
        {"vision_config": {"num_attention_heads": -1}},
        {"text_config": {"num_attention_heads": 0}},
        {"text_config": {"num_hidden_layers": -1}},
    ],
)
def test_a_configuration_of_no_model_is_named(folder: Path, fields: dict[str, object]):
    config = json.loads((folder / "config.json").read_text())
    merged = {k: {**config[k], **v} if isinstance(v, dict) and k in config else v for k, v in fields.items()}
    change(folder, **merged)
    with pytest.raises(ValueError, match=rf"{folder}|cannot be driven"):
        load_vlm(folder)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\0", b"[]", b"3", "{}".encode("utf-16"), b""])
def test_a_configuration_that_is_none_is_named(folder: Path, content: bytes):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=str(folder)):
        load_vlm(folder)


def test_code_in_a_folder_is_not_run(folder: Path, tmp_path: Path):
    (folder / "evil.py").write_text(CODE.format(str(tmp_path / "ran")))
    auto_map = {"AutoConfig": "evil.Foo", "AutoModelForImageTextToText": "evil.Foo", "AutoTokenizer": ["evil.Foo", None]}
    change(folder, model_type="evil", auto_map=auto_map)
    change(folder, "tokenizer_config.json", tokenizer_class="Foo", auto_map=auto_map)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        load_vlm(folder)
    with pytest.raises(ValueError, match="has code of its own, which is not run"):  # and does not ask
        load_tokenizer(folder)
    assert not (tmp_path / "ran").exists()


def test_a_model_that_memory_has_no_room_for_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Mistral's folders hold all of it twice: what transformers does not load takes no room."""
    size = (folder / "model.safetensors").stat().st_size
    shutil.copyfile(folder / "model.safetensors", folder / "consolidated.safetensors")
    free = SimpleNamespace(available=size)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    monkeypatch.setattr(loading, "_load", Mock(side_effect=ValueError("it is loaded")))
    with pytest.raises(ValueError, match="it is loaded"):
        load_vlm(folder)
    for free.available, dtype in ((size - 1, "auto"), (2 * size - 1, "float32")):
        with pytest.raises(ValueError, match="of memory are free: use a smaller dtype"):
            load_vlm(folder, dtype=dtype)


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
@pytest.mark.parametrize("value", ["evil/kernel", "evil/kernel@main:run", {"text_config": "evil/kernel"}])
def test_kernels_of_others_are_not_fetched(folder: Path, name: str, value: object):
    text = json.loads((folder / "config.json").read_text())["text_config"]
    for fields in ({name: value}, {"text_config": {**text, name: value}}):
        change(folder, **fields)
        with pytest.raises(ValueError, match=r"config\.json has layers computed by 'evil/kernel.*trust_remote_code=True"):
            load_vlm(folder)


def test_a_folder_that_names_another_is_refused(folder: Path, tmp_path: Path):
    """transformers reads `adapter_config.json` first, and loads the model that it names."""
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "other")}))
    with pytest.raises(ValueError, match=r"model holds adapter_config\.json, .* merge the adapter into the weights"):
        load_vlm(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json", "model-1.safetensors", "README.md"])
def test_a_pipe_in_a_folder_is_not_waited_for(folder: Path, name: str):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(ValueError, match=f"{name} is not a regular file"):
        load_vlm(folder)
    with pytest.raises(ValueError, match=f"{name} is not a regular file"):
        load_processor(folder)
    with pytest.raises(ValueError, match=f"{name} is not a regular file"):
        load_tokenizer(folder)


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_more_layers_than_any_model_has_are_not_built(folder: Path, part: str):
    config = json.loads((folder / "config.json").read_text())[part]
    change(folder, **{part: {**config, "num_hidden_layers": 10**9}})
    with pytest.raises(ValueError, match=r"config\.json says num_hidden_layers=1000000000, and no model has more than 512"):
        load_vlm(folder)
    change(folder, **{part: config}, depths=[1, 10**9])
    with pytest.raises(ValueError, match="says depths=1000000000"):
        load_vlm(folder)


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("shards", [True, False])
def test_load_vlm_executes_no_pickle(folder: Path, tmp_path: Path, shards: bool):
    name = "shard.bin" if shards else "pytorch_model.bin"
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if shards:
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    torch.save({**weights, "extra": Evil(tmp_path / "ran")}, folder / name)
    with pytest.raises(ValueError, match="model is damaged or holds more than tensors"):
        load_vlm(folder)
    assert not (tmp_path / "ran").exists()


def test_special_tokens_without_end_are_refused(folder: Path):
    change(folder, "tokenizer_config.json", extra_special_tokens=[f"<{n}>" for n in range(SPECIAL_TOKENS + 1)])
    with pytest.raises(ValueError, match=r"tokenizer_config\.json names 65,537 extra_special_tokens, .* it is damaged"):
        load_vlm(folder)
