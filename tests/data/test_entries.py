"""Entries of JSON files, in a list or one per line, and checks of their fields."""

from __future__ import annotations

from pathlib import Path

import pytest

from das_gym.data.bad_examples import BadExamples
from das_gym.data.entries import check_fields, read_entries
from das_gym.data.images import FolderListings


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a": 2}]', '\n [{"a": 1},\n{"a": 2}]\n', '\ufeff[{"a": 1}, {"a": 2}]'])
def test_read_entries_of_a_list(tmp_path: Path, text: str):
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    assert list(read_entries(path, BadExamples())) == [(f"{path}: [0]", {"a": 1}), (f"{path}: [1]", {"a": 2})]


@pytest.mark.parametrize("text", ['{"a": 1}\n{"a": 2}', '\ufeff{"a": 1}\r\n\r\n{"a": 2}\r\n'])
def test_read_entries_of_lines(tmp_path: Path, text: str):
    path = tmp_path / "x.json"
    path.write_bytes(text.encode())
    entries = list(read_entries(path, BadExamples()))
    assert entries[0] == (f"{path}: line 1", {"a": 1})
    assert [entry for _, entry in entries] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("entry", [3, {}, {"a": "1"}, {"a": True}, {"a": None}])
def test_check_fields_names_the_field(entry: object):
    check_fields({"a": 1, "b": 2}, {"a": int}, "x")
    with pytest.raises(ValueError, match=r"^x.* a$|^x.*`a`"):
        check_fields(entry, {"a": int}, "x")


def test_folder_listings_find_the_first_existing_path(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    listings = FolderListings()
    paths = [tmp_path / folder / "x.png" for folder in ("missing", "a", "b")]
    assert listings.first_of(paths) == paths[1]
    paths[2].touch()
    assert listings.first_of(paths) == paths[1]  # each folder is listed once
    assert FolderListings().first_of(paths) == paths[2]
    assert FolderListings().first_of(paths[:1]) == paths[0]
