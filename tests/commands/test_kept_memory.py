"""`keep_freed_memory`: glibc does not hand each large tensor's memory back to the system."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
from das_gym.processes import keep_freed_memory
keep_freed_memory()
for turn in range(20):
    block = bytearray(2**26)
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_used_again_unless_that_is_turned_off():
    faults = {}
    for setting in ("", "0"):
        environment = {**os.environ, "DAS_GYM_KEEP_MEMORY": setting}
        run = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True)
        faults[setting] = int(run.stdout)
    assert faults["0"] - faults[""] > 19 * 2**26 // 2**21  # pages of up to 2 MiB
