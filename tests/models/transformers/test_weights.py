"""Checksums of a shrunk folder's weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from das_gym.adapt.shrink.saving import save
from transformers import AutoModelForImageTextToText

from das_gym.models.transformers.loading import load_vlm
from das_gym.models.transformers.weights import SUMS, loaded_dtype, source_dtype, verify_checksums
from tests.models.transformers import tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("llava", tmp_path_factory.mktemp("sums") / "source")


def test_checksums_are_compared_on_load(source, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(source)
    smaller = tmp_path / "smaller"
    smaller.mkdir()
    save(model, smaller, source, source, model.dtype)
    assert (verify_checksums(source), verify_checksums(smaller)) == (False, True)
    path = smaller / "model.safetensors"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (smaller / SUMS).read_text() == f"{digest}  model.safetensors\n"  # the form of sha256sum
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: its checksum .* remove SHA256SUMS"):
        load_vlm(smaller)
    (smaller / SUMS).unlink()
    load_vlm(smaller)


@pytest.mark.parametrize(
    ("name", "match"), [("../../etc/passwd", "expected a checksum"), ("missing.safetensors", "lacks missing.safetensors")]
)
def test_checksums_that_cannot_be_compared(tmp_path, name, match):
    (tmp_path / SUMS).write_text(f"{'0' * 64}  {name}\n")
    with pytest.raises(ValueError, match=match):
        verify_checksums(tmp_path)


def test_source_dtype_names_a_damaged_file(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 8 + b"{}")
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        source_dtype(tmp_path)


def test_config_that_is_no_object_is_named(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json holds a list"):
        loaded_dtype(tmp_path)
