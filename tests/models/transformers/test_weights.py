"""Checksums of a shrunk folder's weights."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from das_gym.adapt.shrink.saving import save
from transformers import AutoModelForImageTextToText

from das_gym.models.transformers.loading import load_vlm
from das_gym.models.transformers.weights import SUMS, check_sums, source_dtype
from tests.models.transformers import tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model's folder, and one as `adapt shrink` saves it."""
    place = tmp_path_factory.mktemp("sums")
    tiny.save("llava", place / "source")
    (place / "smaller").mkdir()
    model = AutoModelForImageTextToText.from_pretrained(place / "source")
    save(model, place / "smaller", place / "source", place / "source", model.dtype)
    return place / "source", place / "smaller"


@pytest.fixture
def smaller(folders: tuple[Path, Path], tmp_path: Path) -> Path:
    return shutil.copytree(folders[1], tmp_path / "smaller")


def test_sums_have_the_form_of_sha256sum(folders, smaller):
    assert not check_sums(folders[0])
    assert check_sums(smaller)
    digest = hashlib.sha256((smaller / "model.safetensors").read_bytes()).hexdigest()
    assert (smaller / SUMS).read_text() == f"{digest}  model.safetensors\n"  # the form of sha256sum


def test_changed_weight_is_detected_on_load(smaller):
    path = smaller / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: its checksum .* remove SHA256SUMS"):
        load_vlm(smaller)
    (smaller / SUMS).unlink()
    load_vlm(smaller)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (f"{'0' * 64}  ../../etc/passwd\n", "expected a checksum"),
        (f"{'0' * 64}  missing.safetensors\n", "lacks missing.safetensors"),
    ],
)
def test_checksums_that_cannot_be_compared(tmp_path, text, match):
    (tmp_path / SUMS).write_text(text)
    with pytest.raises(ValueError, match=match):
        check_sums(tmp_path)


def test_wrong_header_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 8 + b"{}")
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        source_dtype(tmp_path)
