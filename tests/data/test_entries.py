"""Entries of JSON files, in a list or a line each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from das_gym.data.checks import BadExamples
from das_gym.data.entries import read_entries
from das_gym.data.images import Listings


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a": 2}]', '\n [{"a": 1},\n{"a": 2}]\n', '\ufeff[{"a": 1}, {"a": 2}]'])
def test_a_list(tmp_path: Path, text: str):
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    assert list(read_entries(path, BadExamples())) == [(f"{path}: [0]", {"a": 1}), (f"{path}: [1]", {"a": 2})]


@pytest.mark.parametrize("text", ['{"a": 1}\n{"a": 2}', '\ufeff{"a": 1}\r\n\r\n{"a": 2}\r\n'])
def test_lines(tmp_path: Path, text: str):
    path = tmp_path / "x.json"
    path.write_bytes(text.encode())
    entries = list(read_entries(path, BadExamples()))
    assert [entry for _, entry in entries] == [{"a": 1}, {"a": 2}]
    assert entries[0][0] == f"{path}: line 1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}', r"is not whole JSON in UTF-8 .*it is truncated or damaged: get it again"),
        ("", r"is not whole JSON in UTF-8"),
        ("hello", r"is not whole JSON in UTF-8"),
        ("3", r"is JSON of type int; it must be a list of entries, or have one a line"),
        ('{\n"data": [],\n"version": 1}', r"is one JSON object with data, version; it must be a list of entries, or have"),
        ('{\n"data": [', r"is not whole JSON in UTF-8"),
        ("[" * 100_000, r"is not whole JSON in UTF-8"),
    ],
)
def test_what_is_neither(tmp_path: Path, text: str, message: str):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} {message}"):
        list(read_entries(path, BadExamples("skip")))


def test_a_bad_line_is_reported(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n{"a": "\xff"}\n{"a": 2}')
    bad = BadExamples("skip")
    assert [entry for _, entry in read_entries(path, bad)] == [{"a": 1}, {"a": 2}]
    assert [line.partition(" is not")[0] for line in bad.lines] == [f"{path}: line 2", f"{path}: line 3"]


def test_listings_list_every_folder_once(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    listings = Listings()
    paths = [tmp_path / folder / "x.png" for folder in ("gone", "a", "b")]
    assert listings.first_of(paths) == paths[1]
    paths[2].touch()
    assert listings.first_of(paths) == paths[1]
    assert Listings().first_of(paths) == paths[2]
    assert Listings().first_of(paths[:1]) == paths[0]
