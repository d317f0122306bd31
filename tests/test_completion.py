"""Completion as bash does it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from das_gym.completion import script

BASH = shutil.which("bash")
ASK = """
source {script}
COMP_WORDS=({words} "{last}"); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()
{function}
echo "${{COMPREPLY[*]}}"
"""


@pytest.mark.skipif(BASH is None, reason="there is no bash here")
@pytest.mark.parametrize(
    ("words", "last", "offered"),
    [
        ("python -m agents", "", "search runs with print_config completion --help"),
        ("python -m das_gym.agents", "ru", "runs"),
        ("python -m agents runs", "w", "with"),
        ("python -m agents with", "m", "meter_vqa"),
        ("python -m agents with meter_vqa", "se", "seed="),
        ("python -m agents search with", "se", "seed="),
        ("python -m agents runs with", "", "order="),
        ("python -m agents with seed =", "m", ""),
        ("python -m http.server", "a", ""),
        ("das-agents runs with", "o", "order="),
    ],
)
def test_words_that_are_offered(tmp_path: Path, words: str, last: str, offered: str):
    path = tmp_path / "agents.sh"
    path.write_text(script("agents", "search", {"search": ["meter_vqa", "seed="], "runs": ["order="]}))
    function = "_das_python" if words.startswith("python") else "_das_agents"
    asked = ASK.format(script=shlex.quote(str(path)), words=words, last=last, function=function)
    done = subprocess.run([BASH, "-c", asked], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (offered, "")
