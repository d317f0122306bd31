from __future__ import annotations

import errno
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from das_gym.files import (
    _HOST,
    _host,
    absolute,
    at_home,
    description_in,
    read_arrays,
    read_json,
    replacing,
    whole_folder,
    write_bytes,
    write_json,
    write_text,
)


def test_what_is_written_reads_back_and_leaves_nothing_else(tmp_path):
    write_bytes(tmp_path / "new" / "a.bin", b"\x00\x01")
    write_text(tmp_path / "new" / "a.txt", "één\n")
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"\x00\x01"
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "één\n"
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.bin", "a.txt"]


def test_a_name_that_is_no_utf8_is_written_all_the_same(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_text(tmp_path / "a.txt", name)
    assert (tmp_path / "a.txt").read_bytes() == b"caf?"
    write_json(tmp_path / "a.json", {name: Path(name)})
    assert read_json(tmp_path / "a.json") == {name: name}


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


@pytest.fixture(scope="module")
def dead():
    """The id of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_writer_left_is_removed_by_the_next_and_what_a_living_one_writes_is_not(tmp_path, dead):
    (tmp_path / f".a.txt.{_HOST}-{dead}-0.part").write_text("half")
    (tmp_path / f".a.txt.{_HOST}-{dead}-1.part").mkdir()
    kept = [f".a.txt.{_HOST}-{os.getpid()}-0.part", f".a.txt.00000000-{dead}-0.part", f".b.txt.{_HOST}-{dead}-0.part"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    write_text(tmp_path / "a.txt", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a.txt", *kept])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_the_old_file(tmp_path, monkeypatch, call, code):
    write_text(tmp_path / "a.txt", "old")

    def fail(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match=rf"{os.strerror(code)}: '.*/a\.txt'"):
        write_text(tmp_path / "a.txt", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    with whole_folder(tmp_path / "new" / "folder") as part:
        (part / "sub").mkdir()
        (part / "sub" / "a.txt").write_text("a")
        assert not (tmp_path / "new" / "folder").exists()
    assert (tmp_path / "new" / "folder" / "sub" / "a.txt").read_text() == "a"
    with pytest.raises(FileNotFoundError), whole_folder(tmp_path / "new" / "other") as part:
        (part / "nowhere" / "a.txt").write_text("a")
    with pytest.raises(OSError, match="not empty"), whole_folder(tmp_path / "new" / "folder") as part:
        (part / "b.txt").write_text("b")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["folder"]


@pytest.mark.parametrize("content", ["[" * 100_000, "\0", "", '"', "{1: 2}"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_odd_json_is_named(tmp_path, content, encoding):
    (tmp_path / "a.json").write_text(content, encoding=encoding)
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_arrays_that_unpack_to_far_more_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("das_gym.files.MIN_UNPACKED", 2**20)
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(2**18))
    with pytest.raises(ValueError, match=r"it unpacks to 2097.* bytes, more than 1048576"):
        read_arrays(tmp_path / "bomb.npz")
    np.savez_compressed(tmp_path / "large.npz", a=np.random.default_rng(0).random(2**18))  # packs to nine tenths
    assert read_arrays(tmp_path / "large.npz")["a"].shape == (2**18,)
    monkeypatch.setattr("das_gym.files.MOST_UNPACKED", 2**20)
    with pytest.raises(ValueError, match="more than 1048576"):
        read_arrays(tmp_path / "large.npz")


def test_a_description_that_would_fill_the_memory_is_not_read(monkeypatch):
    text = json.dumps([[]] * 1000)
    assert len(description_in({"meta": np.array(text)}, "make it again")) == 1000
    monkeypatch.setattr("das_gym.files.MOST_DESCRIBED", 4 * 3000)
    with pytest.raises(ValueError, match="its description has 16000 bytes, more than 12000"):
        description_in({"meta": np.array(text)}, "make it again")


def test_a_part_of_no_process_there_can_be_is_removed(tmp_path):
    left = tmp_path / f".a.json.{_HOST}-{10**30}-0.part"
    left.write_text("ne")
    write_json(tmp_path / "a.json", 1)
    assert not left.exists()


def test_a_part_that_cannot_be_removed_is_in_nobodys_way(tmp_path, monkeypatch):
    left = tmp_path / f".a.json.{_HOST}-{2**31 - 1}-0.part"
    left.write_text("somebody else's, in a folder like /tmp")
    remove = Path.unlink

    def refuse(path, missing_ok=False):
        if path == left:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
        remove(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    write_json(tmp_path / "a.json", 1)
    assert read_json(tmp_path / "a.json") == 1


@pytest.mark.skipif(not Path("/proc/self/ns/pid").is_symlink(), reason="no containers here")
def test_containers_of_one_name_do_not_remove_each_others_parts(monkeypatch):
    assert _host() == _HOST
    monkeypatch.setattr(Path, "readlink", lambda _: Path("pid:[1]"))  # where processes are counted anew
    assert _host() != _HOST


def test_an_error_of_a_library_in_rust_is_the_systems(tmp_path):
    def fail(writing):
        with writing(tmp_path / "a") as part:
            if part.is_dir():
                (part / "inner").mkdir()
            raise Exception("Error while serializing: I/O error: No space left on device (os error 28)")

    for writing in (replacing, whole_folder):
        with pytest.raises(OSError, match=re.escape(f"[Errno 28] No space left on device: '{tmp_path / 'a'}'")):
            fail(writing)
    assert not list(tmp_path.iterdir())


def test_errors_of_a_folder_name_it_and_not_its_hidden_one(tmp_path):
    def fail():
        with whole_folder(tmp_path / "a") as part:
            (part / "b" / "c").write_text("x")

    with pytest.raises(FileNotFoundError, match=re.escape(f"No such file or directory: '{tmp_path / 'a'}'")):
        fail()


def test_the_home_folder_of_nobody_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert at_home("~/x") == Path("/home/me/x")
    with pytest.raises(ValueError, match=r"^~no such person/x begins with the home folder of somebody who has none here"):
        at_home("~no such person/x")


def test_a_path_is_told_without_ways_up(tmp_path, monkeypatch):
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/away")
    monkeypatch.chdir(tmp_path / "far")
    assert absolute("../data/x") == tmp_path / "data" / "x"
    assert absolute(tmp_path / "link" / ".." / "x") == tmp_path / "far" / "x"  # as the system reads it
    assert absolute("../link/x") == tmp_path / "link" / "x"  # a link keeps its name: in the Hub's cache its target has none
    assert absolute("..") == tmp_path
