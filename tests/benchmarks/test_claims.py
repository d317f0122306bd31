"""Figures of the pages are those of the records, and every figure is claimed."""

import dataclasses
from pathlib import Path

import pytest

from benchmarks.claims import Claim, faults_of, load_claims
from das_gym.commands.settings import build
from tests.docs.blocks import commands_of
from tests.docs.test_pages import wrong_words

CLAIMS = load_claims()


def test_pages_hold_what_is_claimed_and_nothing_else():
    assert faults_of(CLAIMS) == []


@pytest.mark.parametrize("command", sorted({claim.command for claim in CLAIMS if claim.command.startswith("python -m")}))
def test_commands_of_claims_are_there(command):
    (words,) = commands_of(command)
    assert wrong_words(words) is None


def made_up(tmp_path: Path, readme: str, record: str = "") -> Path:
    (tmp_path / "README.md").write_text(readme, encoding="utf-8")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("It takes\n5.1 s in all. `reward_examples=0.5`\n", encoding="utf-8")
    (tmp_path / "record.txt").write_text(record, encoding="utf-8")
    return tmp_path


TIME = Claim(("It takes {5.1} s",), ("docs/a.md",), "python -m adapt", measured="2026-11-30, a laptop")
SCORE = Claim(
    ("a score of {97.4} % and {1,234} steps",), ("README.md",), "python -m adapt", ("record.txt", "Second", "score")
)
RECORD = "# First\nscore 0.1 1234\n# Second\nsteps 1234, score 0.97412\n"


def test_claims_that_hold(tmp_path):
    root = made_up(tmp_path, "a score of 97.4 % and\n1,234 steps", RECORD)
    assert faults_of([TIME, SCORE], root) == []


def test_figures_of_several_lines(tmp_path):
    root = made_up(tmp_path, "a score of 97.4 % and\n1,234 steps", RECORD.replace(", score", "\nscore"))
    several = dataclasses.replace(SCORE, record=("record.txt", "Second", "score", "steps"))
    assert faults_of([TIME, several], root) == []
    above = dataclasses.replace(SCORE, record=("record.txt", "First", "score", "steps"))
    assert len(faults_of([TIME, above], root)) == 1


@pytest.mark.parametrize(
    ("readme", "record", "word"),
    [
        ("", RECORD, "there is no 'a score"),
        ("a score of 97.4 % and 1,234 steps. It takes 6.1 s", RECORD, "6.1"),
        ("a score of 97.4 % and 1,234 steps", RECORD.replace("0.97412", "0.97452"), "record.txt"),
        ("a score of 97.4 % and 1,234 steps", "# First\nscore 0.974 1234\n", "record.txt"),
        ("a score of 97.4 % and 1,234 steps. It needs 3 GiB", RECORD, "3 GiB"),
    ],
)
def test_faults_name_the_figure(tmp_path, readme, record, word):
    faults = faults_of([TIME, SCORE], made_up(tmp_path, readme, record))
    assert faults
    assert all(word in fault or "there is none of" in fault for fault in faults)


def test_one_quantity_has_one_figure(tmp_path):
    root = made_up(tmp_path, "about 5.2 s")
    both = Claim(
        (*TIME.texts, "about {5.2} s"), ("README.md", "docs/a.md"), "python -m adapt", measured=TIME.measured, same=True
    )
    (fault,) = faults_of([both], root)
    assert "several figures" in fault


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ({"texts": ["{1}"], "pages": ["README.md"], "command": "python -m adapt"}, "record"),
        ({"texts": ["{1}"], "pages": ["README.md"], "command": "python -m adapt", "measured": "yesterday"}, "measured"),
        ({"texts": ["1"], "pages": ["README.md"], "given": "a setting"}, "braces"),
        ({"texts": ["{1}"], "pages": ["README.md"], "given": "a setting", "page": 1}, "page"),
    ],
)
def test_entries_that_are_not_allowed(entry, word):
    with pytest.raises(ValueError, match=word):
        build(Claim, entry)
