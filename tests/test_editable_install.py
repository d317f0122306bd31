"""An editable install, as the README sets it up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = "import gymnasium, das_gym; gymnasium.make('DAS-METER-VQA-Tabular-v0'); print(das_gym.__file__)"


def test_import_finds_the_package_from_the_parent_folder_of_a_clone(tmp_path: Path):
    for name in ("das_gym", "agents", "adapt"):
        (tmp_path / "das_gym" / name).mkdir(parents=True)
        (tmp_path / "das_gym" / name / "__init__.py").touch()
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CODE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not Path(done.stdout.strip()).is_relative_to(tmp_path)
