"""Bundled files are the ones whose checksums are listed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from das_gym.agents.policy.network import PolicyEnsemble

from das_gym import bundled
from das_gym.bundled import CHECKSUMS, bundled_files, check_bundled, checksum
from das_gym.files import read_json
from das_gym.models.inputs import load_tokenizer
from das_gym.models.tensor_files import read_tensors
from das_gym.models.transformers.inputs import load_processor
from das_gym.models.transformers.loading import load_vlm
from das_gym.problem.adaptation import Adaptation
from das_gym.tables.table import SubnetTable


def test_checksums_list_every_bundled_file():
    assert json.loads(CHECKSUMS.read_text()) == {name: checksum(path) for name, path in bundled_files().items()}


def flip(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


READ = {
    "meter_mini/model.safetensors": lambda path: read_tensors(path.parent),
    "meter_mini/config.json": lambda path: read_tensors(path.parent),
    "meter_mini/tokenizer.json": lambda path: load_tokenizer(path.parent),
    "meter_mini/vqa_supernet.safetensors": Adaptation.load,
    "meter_mini/vqa_table.npz": SubnetTable.load,
    "vilt_mini/model.safetensors": lambda path: read_tensors(path.parent),
    "vilt_mini/nlvr2_supernet.safetensors": Adaptation.load,
    "vilt_mini/vqa_blocks.json": read_json,
    "smolvlm_mini/model.safetensors": lambda path: load_vlm(path.parent),
    "smolvlm_mini/chat_template.jinja": lambda path: load_vlm(path.parent),
    "llava_mini/model.safetensors": lambda path: load_vlm(path.parent),
    "llava_mini/processor_config.json": lambda path: load_processor(path.parent),
    "suite/suite.json": read_json,
    "suite/train-00-meter-vqa.npz": SubnetTable.load,
    "suite/policy.safetensors": PolicyEnsemble.load,
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("place", [-1, 0.5])
def test_reading_a_changed_bundled_file_is_rejected(
    name: str, place: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, file = Path(name).parts
    shutil.copytree(bundled.ASSETS / folder, tmp_path / folder)
    monkeypatch.setattr(bundled, "ASSETS", tmp_path)
    size = (tmp_path / name).stat().st_size
    flip(tmp_path / name, int(place * size) if place > 0 else -1)
    with pytest.raises(ValueError, match=f"{file} is not the file that came with das_gym"):
        READ[name](tmp_path / name)


def test_check_bundled_names_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(bundled.ASSETS / "vilt_mini", tmp_path / "vilt_mini")
    monkeypatch.setattr(bundled, "ASSETS", tmp_path)
    check_bundled(tmp_path / "vilt_mini")
    (tmp_path / "vilt_mini").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"config\.json is not the file"):
        check_bundled(tmp_path / "vilt_mini/config.json")
