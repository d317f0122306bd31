"""What those who carry on rely on: files that agree with each other."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import das_gym

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_citation_has_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == das_gym.__version__
    assert cited["license"] == PROJECT["license"]
    assert cited["references"][0]["url"] == PROJECT["urls"]["Paper"]


def test_actions_run_what_ci_runs():
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["run"]
    assert job["steps"][-1]["run"] == ".ci/run"
    assert os.access(ROOT / ".ci/run", os.X_OK)
    named = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python ::" in line}
    assert set(job["strategy"]["matrix"]["python"]) == named


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/visualization.md"])
def test_files_that_are_named_are_there(name: str):
    text = (ROOT / name).read_text()
    paths = set(re.findall(r"`((?:das_gym|agents|adapt|tests|docs|\.ci)/[\w./]*)`", text))
    assert paths or name != "CONTRIBUTING.md"
    assert not [path for path in paths if not (ROOT / path).exists()]
