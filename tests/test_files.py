"""Reading and atomic writing of files."""

import errno
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from das_gym import files
from das_gym.files import (
    absolute_path,
    check_file,
    check_new_folder,
    expand_home,
    read_arrays,
    read_json,
    replacing,
    write_json,
    write_text,
)


def test_json_reads_back_bit_for_bit(tmp_path):
    values, name = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 1.0], os.fsdecode(b"caf\xe9")  # which is not UTF-8
    write_text(tmp_path / "a.txt", name)
    assert (tmp_path / "a.txt").read_bytes() == b"caf?"
    write_json(
        tmp_path / "a.json", {"values": values, "array": np.array([1, 2]), "number": np.float64(1 / 3), name: Path(name)}
    )
    back = read_json(tmp_path / "a.json")
    assert [v.hex() for v in back["values"]] == [v.hex() for v in values]
    assert (back["array"], back["number"], back[name]) == ([1, 2], 1 / 3, name)


@pytest.mark.parametrize("value", [math.nan, math.inf, object()])
def test_write_json_rejects_other_values(tmp_path, value):
    with pytest.raises((ValueError, TypeError), match=r"cannot write .*a\.json"):
        write_json(tmp_path / "a.json", [value])
    assert not list(tmp_path.iterdir())


def failing(is_folder: bool, path: Path, error: Exception) -> None:
    with replacing(path, is_folder) as part:
        if part.is_dir():
            (part / "inner").mkdir()
        else:
            part.write_text("half")
        raise error


@pytest.mark.parametrize("is_folder", [False, True])
def test_failed_write_leaves_no_files(tmp_path, is_folder):
    with pytest.raises(RuntimeError, match="halfway"):
        failing(is_folder, tmp_path / "a", RuntimeError("halfway"))
    rust = Exception("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(OSError, match=re.escape(f"[Errno 28] No space left on device: '{tmp_path / 'a'}'")):
        failing(is_folder, tmp_path / "a", rust)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failing_disk_keeps_the_old_file(tmp_path, monkeypatch, call, code):
    write_text(tmp_path / "a.txt", "old")

    def fail(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match=rf"{os.strerror(code)}: '.*/a\.txt'"):
        write_text(tmp_path / "a.txt", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_temporary_files_of_killed_writers_are_removed(tmp_path):
    script = """import os, sys; from das_gym import files
writer = files.replacing(files.Path(sys.argv[1]), is_folder=len(sys.argv) > 2)
writer.__enter__().mkdir(exist_ok=True)
os._exit(1)"""
    for name, *folder in (("a.txt",), ("a.txt", "folder"), ("b.txt",)):
        subprocess.run([sys.executable, "-c", script, str(tmp_path / name), *folder], check=False)
    assert len(list(tmp_path.iterdir())) == 2  # the second removed that of the first
    with replacing(tmp_path / "a.txt") as living:
        living.write_text("first")
        write_text(tmp_path / "a.txt", "second")
        assert living.read_text() == "first"
    names = sorted(path.name for path in tmp_path.iterdir())
    assert (len(names), names[-1]) == (2, "a.txt")
    assert names[0].startswith(".b.txt.")


def test_read_arrays_limits_what_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MIN_UNPACKED", 2**20)
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(2**18))
    with pytest.raises(ValueError, match="expected at most 1048576"):
        read_arrays(tmp_path / "bomb.npz")
    np.savez_compressed(tmp_path / "large.npz", a=np.random.default_rng(0).random(2**18))  # packs to nine tenths
    assert read_arrays(tmp_path / "large.npz")["a"].shape == (2**18,)
    monkeypatch.setattr(files, "MAX_UNPACKED", 2**20)
    with pytest.raises(ValueError, match="expected at most 1048576"):
        read_arrays(tmp_path / "large.npz")
    monkeypatch.setattr(files, "MAX_DESCRIPTION", 2**10)
    np.savez_compressed(tmp_path / "described.npz", meta=np.array("[1]" * 2**10))
    with pytest.raises(ValueError, match="expected at most 1024"):
        read_arrays(tmp_path / "described.npz")


def test_at_home_and_absolute(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home("~/x") == Path("/home/me/x")
    with pytest.raises(ValueError, match="~no such person/x"):
        expand_home("~no such person/x")
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/away")
    monkeypatch.chdir(tmp_path / "far")
    assert absolute_path("../data/x") == tmp_path / "data" / "x"
    assert absolute_path(tmp_path / "link" / ".." / "x") == tmp_path / "far" / "x"  # as the system reads it
    # A link keeps its name: its target in the Hub's cache has none.
    assert absolute_path("../link/x") == tmp_path / "link" / "x"
    assert absolute_path("..") == tmp_path


def test_check_new_folder(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    check_new_folder(tmp_path / "a" / "b", source)
    assert list(tmp_path.iterdir()) == [source]
    (tmp_path / "file").write_text("")
    for out, message in (
        (tmp_path / "file", "`out` exists"),
        (source / "inner", "inside the checkpoint's folder"),
        (tmp_path / "file" / "inner", "not writable"),
        ("/proc/x", "not writable"),  # where not even root can make a folder
    ):
        with pytest.raises(ValueError, match=message):
            check_new_folder(out, source)


def test_check_file(tmp_path):
    (tmp_path / "file").write_text("")
    check_file(tmp_path / "file", may_exist=True)
    check_file(tmp_path / "a" / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    for out, message in (
        (tmp_path, "a folder"),
        (tmp_path / "file", "`out` exists"),
        (tmp_path / "file" / "inner", "not writable"),
        ("/proc/x", "not writable"),
    ):
        with pytest.raises(ValueError, match=message):
            check_file(out)
