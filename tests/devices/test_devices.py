"""Commands, training and scoring on `cuda`, without a GPU: see `strict_cuda`, which a process of its own loads."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CHECKS = Path(__file__).with_name("cuda_checks.py")
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(shutil.which(name, path=PATH) for name in ("g++", "ninja")), reason="needs g++ and ninja"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="torch's own CUDA is where the stand-in would be"),
]


@pytest.mark.parametrize("part", ["scores", "search or finetune", "shrink", "training or turn or planted"])
def test_on_strict_cuda(part):
    words = ["-m", "pytest", "-n0", "-p", "tests.devices.strict_cuda", "-p", "no:cacheprovider", str(CHECKS), "-k", part]
    environment = {**os.environ, "PATH": PATH, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, *words], cwd=CHECKS.parents[2], env=environment, capture_output=True, text=True, timeout=900
    )
    assert run.returncode == 0, run.stdout + run.stderr
