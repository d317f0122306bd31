"""Examples in docstrings run and print what they show."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"das_gym": "das_gym", "agents": "das_gym.agents", "adapt": "das_gym.adapt"}


def modules_with_examples() -> list[str]:
    names = []
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            if ">>> " in path.read_text(encoding="utf-8"):
                names.append(".".join((package, *path.relative_to(ROOT / folder).with_suffix("").parts)))
    return names


@pytest.mark.slow
@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_of_docstrings_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.attempted
    assert not result.failed
