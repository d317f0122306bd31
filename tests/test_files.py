from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from das_gym.files import read_json, replacing, write_bytes, write_json, write_text


def test_what_is_written_reads_back_and_leaves_nothing_else(tmp_path):
    write_bytes(tmp_path / "new" / "a.bin", b"\x00\x01")
    write_text(tmp_path / "new" / "a.txt", "één\n")
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"\x00\x01"
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "één\n"
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.bin", "a.txt"]


def test_json_floats_read_back_bit_for_bit(tmp_path):
    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 1.0]
    write_json(
        tmp_path / "a.json", {"values": values, "numpy": np.float64(1 / 3), "array": np.array([1, 2]), "path": Path("x")}
    )
    back = read_json(tmp_path / "a.json")
    assert [v.hex() for v in back["values"]] == [v.hex() for v in values]
    assert back["numpy"] == 1 / 3
    assert back["array"] == [1, 2]
    assert back["path"] == "x"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_knows_no_infinity(tmp_path, value):
    with pytest.raises(ValueError, match=r"a\.json.*write None for a number that is not finite"):
        write_json(tmp_path / "a.json", [value])
    assert not list(tmp_path.iterdir())


def test_json_refuses_objects(tmp_path):
    with pytest.raises(TypeError, match="object is not JSON; use plain values, numpy arrays or paths"):
        write_json(tmp_path / "a.json", [object()])


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail():
        with replacing(path) as part:
            part.write_text("ne")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1')
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON .*delete it or write it again"):
        read_json(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "b.json")
