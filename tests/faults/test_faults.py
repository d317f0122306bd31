"""A few faults of `python -m tests.faults`, whose jobs are all commands that write what matters."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from das_gym.adapt.shrink import job

from tests.faults.jobs import JOBS


def test_a_job_leaves_its_modules_as_they_were(tmp_path: Path):
    before = job.verify
    JOBS["shrink"](tmp_path)
    assert job.verify is before


@pytest.mark.slow
def test_a_search_comes_to_the_same_result_whatever_stops_it():
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults", "table_search"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^([1-9]\d*) faults, 0 wrong$", done.stdout, re.MULTILINE)
