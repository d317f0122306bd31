"""Checksums of a shrunk folder's weights."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from das_gym.adapt.shrink.saving import save
from transformers import AutoModelForImageTextToText

from das_gym.models.sums import SUMS, check_sums
from das_gym.models.transformers.loading import load_vlm
from das_gym.models.transformers.weights import source_dtype
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


def test_they_are_kept_and_anybody_can_look(folders, smaller):
    assert not check_sums(folders[0])
    assert check_sums(smaller)
    command = shutil.which("sha256sum")
    if command is not None:
        done = subprocess.run([command, "--check", SUMS], cwd=smaller, capture_output=True, text=True, check=False)
        assert done.stdout == "model.safetensors: OK\n"


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
        ("\udcff\0\n", "expected a checksum"),
    ],
)
def test_checksums_that_cannot_be_compared(tmp_path, text, match):
    (tmp_path / SUMS).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=match):
        check_sums(tmp_path)


@pytest.mark.parametrize("header", [b"\xff" * 8 + b"{}", b"\2" + b"\0" * 7 + b"[]", b"x"])
def test_wrong_header_is_named(tmp_path, header):
    (tmp_path / "model.safetensors").write_bytes(header)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        source_dtype(tmp_path)
