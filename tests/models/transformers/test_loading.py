import hashlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from das_gym.adapt.shrinking.saving import save
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from das_gym.models.inputs import load_tokenizer
from das_gym.models.transformers.inputs import SPECIAL_TOKENS, load_processor
from das_gym.models.transformers.loading import CHECKSUM_FILE, load_vlm, loaded_dtype, source_dtype, verify_checksums
from das_gym.registration import ASSETS
from tests.evil import Evil
from tests.models.transformers import tiny

SMOL = ASSETS / "smolvlm_mini"
CODE = "import pathlib\npathlib.Path({!r}).touch()\nclass Foo: pass\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    """The bundled model's folder, its configuration to be changed."""
    shutil.copytree(SMOL, tmp_path / "model", ignore=shutil.ignore_patterns("*.npz"))
    return tmp_path / "model"


def change(folder: Path, name: str = "config.json", **fields: Any) -> None:
    """Change fields of a file of JSON; fields that are objects are merged."""
    path = folder / name
    before = json.loads(path.read_text()) if path.exists() else {}
    merged = {k: {**before[k], **v} if isinstance(v, dict) and k in before else v for k, v in fields.items()}
    path.write_text(json.dumps({**before, **merged}))


KERNEL = r"evil/kernel.*`trust_remote_code=True`"
QUANTIZED = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
TOKENS = [f"<{n}>" for n in range(SPECIAL_TOKENS + 1)]


@pytest.mark.parametrize(
    ("file", "fields", "match"),
    [
        ("config.json", {"model_type": [1]}, "{folder}"),
        ("config.json", {"scale_factor": None}, "{folder}|is not supported"),
        ("config.json", {"text_config": {"num_hidden_layers": 13}}, r"do not fit its config\.json"),
        ("config.json", {"depths": [1, 10**9]}, "depths=1000000000"),
        ("config.json", {"text_config": QUANTIZED}, r"quantized weights \(gptq\)"),
        ("config.json", {"attn_implementation": "evil/kernel@main:run"}, KERNEL),
        ("config.json", {"text_config": {"_attn_implementation_internal": {"text_config": "evil/kernel"}}}, KERNEL),
        ("adapter_config.json", {"base_model_name_or_path": "/other"}, "an adapter of peft"),  # which is read first
        ("tokenizer_config.json", {"extra_special_tokens": TOKENS}, "too many extra_special_tokens"),
    ],
)
def test_load_vlm_rejects_a_folder(folder, file, fields, match):
    change(folder, file, **fields)
    with pytest.raises(ValueError, match=match.format(folder=folder)):
        load_vlm(folder)


def test_load_vlm_needs_a_configuration_and_a_processor(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_vlm(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="merge_and_unload"):
        load_vlm(tmp_path)
    with pytest.raises(ValueError, match="`dtype`"):
        load_vlm(folder, dtype="float31")
    with pytest.raises(ValueError, match="`device_map`"):  # weights that are not loaded
        load_vlm(folder, device_map="meta")
    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match="processor"):
        load_vlm(folder)


def test_load_vlm_runs_no_code_of_the_folder(folder, tmp_path):
    (folder / "evil.py").write_text(CODE.format(str(tmp_path / "ran")))
    auto_map = {"AutoConfig": "evil.Foo", "AutoModelForImageTextToText": "evil.Foo", "AutoTokenizer": ["evil.Foo", None]}
    change(folder, model_type="evil", auto_map=auto_map)
    change(folder, "tokenizer_config.json", tokenizer_class="Foo", auto_map=auto_map)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        load_vlm(folder)
    with pytest.raises(ValueError, match="code"):  # and does not ask
        load_tokenizer(folder)
    assert not (tmp_path / "ran").exists()


def test_load_vlm_rejects_weights_that_exceed_memory(folder, monkeypatch):
    """Mistral's folders hold all of it twice: what transformers does not load takes no room."""
    size = (folder / "model.safetensors").stat().st_size
    shutil.copyfile(folder / "model.safetensors", folder / "consolidated.safetensors")
    free = SimpleNamespace(available=size)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    for free.available, dtype in ((size - 1, "auto"), (2 * size - 1, "float32")):
        with pytest.raises(ValueError, match="`dtype`"):
            load_vlm(folder, dtype=dtype)
    free.available = size
    (folder / "model.safetensors").write_bytes(b"\0" * size)
    with pytest.raises(ValueError, match=r"(?s)^(?!.*`dtype`)"):  # read, and found damaged
        load_vlm(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "README.md"])
def test_pipe_in_a_folder_is_rejected(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    for load in (load_vlm, load_processor, load_tokenizer):
        with pytest.raises(ValueError, match=name):
            load(folder)


def test_load_vlm_executes_no_pickle(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "shard.bin")}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    torch.save({**weights, "extra": Evil(tmp_path / "ran")}, folder / "shard.bin")
    with pytest.raises(ValueError, match=str(folder)):
        load_vlm(folder)
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return tiny.save("llava", tmp_path_factory.mktemp("sums") / "source")


def test_checksums_are_compared_on_load(source, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(source)
    smaller = tmp_path / "smaller"
    smaller.mkdir()
    save(model, smaller, source, source, model.dtype)
    assert (verify_checksums(source), verify_checksums(smaller)) == (False, True)
    path = smaller / "model.safetensors"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (smaller / CHECKSUM_FILE).read_text() == f"{digest}  model.safetensors\n"  # the form of sha256sum
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: its checksum .* remove SHA256SUMS"):
        load_vlm(smaller)
    (smaller / CHECKSUM_FILE).unlink()
    load_vlm(smaller)


@pytest.mark.parametrize(
    ("name", "match"), [("../../etc/passwd", "expected a checksum"), ("missing.safetensors", "lacks missing.safetensors")]
)
def test_checksums_that_cannot_be_compared(tmp_path, name, match):
    (tmp_path / CHECKSUM_FILE).write_text(f"{'0' * 64}  {name}\n")
    with pytest.raises(ValueError, match=match):
        verify_checksums(tmp_path)


def test_source_dtype_names_a_damaged_file(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 8 + b"{}")
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        source_dtype(tmp_path)


def test_config_that_is_no_object_is_named(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json holds a JSON list"):
        loaded_dtype(tmp_path)
