"""A few faults of `python -m tests.faults`, whose jobs are all commands that write what matters."""

import re
import subprocess
import sys

import pytest

from tests.faults.jobs import JOBS

OTHERS = [pytest.param(name, marks=pytest.mark.long) for name in JOBS if name != "table_search"]


@pytest.mark.slow
@pytest.mark.parametrize("job", ["table_search", *OTHERS])
def test_job_gives_the_same_result_after_any_stop(job):
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults", job]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^([1-9]\d*) faults, 0 wrong$", done.stdout, re.MULTILINE)
