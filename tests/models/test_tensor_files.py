import os
import signal
import stat
import subprocess
import sys

import pytest
import torch

from das_gym.models.tensor_files import check_finite, read_safetensors, write_tensors

WRITE = "import sys, torch; from pathlib import Path; from das_gym.models.tensor_files import write_tensors\n"
WRITE += "write_tensors(Path(sys.argv[1]), {'a': torch.zeros(100_000)}, {})"

ON_POSIX = pytest.mark.skipif(os.name == "nt", reason="rights, limits and signals of another kind")


@ON_POSIX
def test_weights_are_for_whom_other_files_are(tmp_path):
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(3)}, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o640


@ON_POSIX
@pytest.mark.slow
def test_killed_writer_leaves_no_files(tmp_path):
    killed = "import os, pathlib\n"  # during the write of the temporary file
    killed += "pathlib.Path.write_bytes = lambda path, data: (path.touch(), os.kill(os.getpid(), 9))\n"
    path = tmp_path / "a.safetensors"
    done = subprocess.run([sys.executable, "-c", killed + WRITE, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [file.suffix for file in tmp_path.iterdir()] == [".part"]
    write_tensors(path, {"a": torch.zeros(3)}, {})
    assert list(tmp_path.rglob("*")) == [path]


@ON_POSIX
@pytest.mark.slow
def test_full_disk_keeps_the_previous_file(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.ones(3)}, {})
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    done = subprocess.run([sys.executable, "-c", limit + WRITE, str(path)], capture_output=True, text=True, check=False)
    assert f"OSError: [Errno 27] File too large: '{path}'" in done.stderr
    assert list(tmp_path.iterdir()) == [path]
    assert torch.equal(read_safetensors(path).tensors["a"], torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.float64])
def test_numbers_of_any_width_are_looked_at(tmp_path, dtype):
    check_finite([("a", torch.ones(3).to(dtype))], tmp_path)
    with pytest.raises(ValueError, match="a has 1 NaN or infinite values of 2"):
        check_finite([("a", torch.tensor([1.0, torch.nan]).to(dtype))], tmp_path)
