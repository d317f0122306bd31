"""Tiny models with tiny data in LLaVA's format, loaded once: the problems stay as they are; and commands in this process."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from das_gym.adapt.commands import PROGRAM

from das_gym.problem.config import ProblemConfig
from das_gym.problem.problem import Problem, load_problem
from tests.models.transformers import tiny

MASK = np.array([False, True, False, True])


@pytest.fixture(scope="session")
def data(tiny_llava) -> Path:
    """Conversations that every type can be trained on."""
    return Path(tiny_llava["data_root"])


@pytest.fixture(scope="session")
def folder_of(tiny_llava, tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a tiny float32 checkpoint by its type, made once."""
    made = {"llava": Path(tiny_llava["checkpoint"])}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tiny.save(name, tmp_path_factory.mktemp(name) / name)
        return made[name]

    return folder


@pytest.fixture(scope="session")
def problem_of(folder_of, data) -> Callable[[str], Problem]:
    def load(name: str) -> Problem:
        return load_problem(
            ProblemConfig(model="VLM", task="answering", checkpoint=str(folder_of(name)), data_root=str(data), device="cpu")
        )

    return load


@pytest.fixture
def run_here(tmp_path, monkeypatch, capsys):
    """Runs `python -m adapt ...` in an empty folder and in this process; returns its exit code and all that it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str]:
        code = PROGRAM.run(words)
        return code, "".join(capsys.readouterr())

    return run
