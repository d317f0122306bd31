"""Bundled files are the ones whose checksums are listed, and their origin and licence are documented."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.bundled import bundled_files
from das_gym import files
from das_gym.files import CHECKSUMS, check_bundled, checksum
from das_gym.models.inputs import load_tokenizer
from das_gym.models.tensor_files import read_tensors
from das_gym.models.transformers.inputs import load_processor
from das_gym.models.transformers.loading import load_vlm
from das_gym.problem.adaptation import Adaptation
from das_gym.tables.table import SubnetTable

PACKAGE = Path(__file__).parents[1] / "das_gym"


def test_checksums_list_every_bundled_file():
    assert json.loads(CHECKSUMS.read_text()) == {name: checksum(path) for name, path in bundled_files().items()}


def test_bundled_files_take_less_than_20_mb():
    assert sum(path.stat().st_size for path in bundled_files().values()) < 20e6


READ = {
    "meter_mini/model.safetensors": lambda path: read_tensors(path.parent),
    "meter_mini/tokenizer.json": lambda path: load_tokenizer(path.parent),
    "meter_mini/vqa_supernet.safetensors": Adaptation.load,
    "meter_mini/vqa_table.npz": SubnetTable.load,
    "smolvlm_mini/chat_template.jinja": lambda path: load_vlm(path.parent),
    "llava_mini/processor_config.json": lambda path: load_processor(path.parent),
}


@pytest.mark.parametrize("name", READ)
def test_reading_a_changed_bundled_file_is_rejected(name, tmp_path, monkeypatch):
    folder, file = Path(name).parts
    shutil.copytree(files.ASSETS / folder, tmp_path / folder)
    monkeypatch.setattr(files, "ASSETS", tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{file} is not the file that came with das_gym"):
        READ[name](tmp_path / name)


def test_check_bundled_names_a_missing_file(tmp_path, monkeypatch):
    shutil.copytree(files.ASSETS / "vilt_mini", tmp_path / "vilt_mini")
    monkeypatch.setattr(files, "ASSETS", tmp_path)
    check_bundled(tmp_path / "vilt_mini")
    (tmp_path / "vilt_mini").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"config\.json is not the file"):
        check_bundled(tmp_path / "vilt_mini/config.json")


def test_shipped_assets_document_their_origin():
    told = (PACKAGE / "assets" / "README.md").read_text(encoding="utf-8")
    assert "under this repository's license, MIT" in told
    folders = {path.parent.name for path in (PACKAGE / "assets").rglob("*") if path.is_file()} - {"assets"}
    assert folders
    assert all(f"`{folder}/" in told for folder in folders)


def test_vendored_files_have_licences():
    vendor = PACKAGE / "drawing" / "pages" / "vendor"
    licences = (vendor / "LICENSES.txt").read_text(encoding="utf-8")
    files = {path.name for path in vendor.iterdir()} - {"LICENSES.txt"}
    assert files
    assert all(f"{name}: " in licences for name in files)
    others = [path for path in PACKAGE.rglob("*.min.js") if path.parent != vendor]
    assert others == []
