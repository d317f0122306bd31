"""The wheel, unpacked and used from an empty folder, next to packages that own the names `agents` and `adapt`."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[1]
FOLDERS = ("das_gym", "agents", "adapt")
DATA = [REPOSITORY / "das_gym" / name for name in ("assets", "drawing/pages")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The unpacked wheel; it is built from a copy, so that no stale `build` folder gets in."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in FOLDERS:
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", target, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(target.glob("das_gym-*.whl"))) as archive:
        archive.extractall(target / "site")
    return target / "site"


def installed_name(folder: Path) -> str:
    name = ".".join(folder.relative_to(REPOSITORY).parts)
    return name if name.partition(".")[0] == "das_gym" else f"das_gym.{name}"


def test_packages_are_listed():
    listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {installed_name(path.parent) for folder in FOLDERS for path in (REPOSITORY / folder).rglob("__init__.py")}
    there |= {installed_name(path.parent) for folder in DATA for path in folder.rglob("*") if path.is_file()}
    assert sorted(listed) == sorted(there)


def test_wheel_contents(wheel):
    assert {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")} == {"das_gym"}
    code = {
        f"{installed_name(path.parent).replace('.', '/')}/{path.name}"
        for folder in FOLDERS
        for path in (REPOSITORY / folder).rglob("*.py")
    }
    assert {str(path.relative_to(wheel)) for path in wheel.rglob("*.py")} == code
    assert (wheel / "das_gym/py.typed").is_file()
    assets = [path.relative_to(REPOSITORY) for folder in DATA for path in folder.rglob("*") if path.is_file()]
    assert assets
    assert all((wheel / path).is_file() for path in assets)
    scripts = next(wheel.glob("*.dist-info/entry_points.txt")).read_text()
    assert "das-agents = das_gym.agents.commands:main" in scripts
    assert "das-adapt = das_gym.adapt.commands:main" in scripts


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (["-m", "das_gym.agents", "list"], "DAS-METER-VQA-v0"),
        (["-m", "das_gym.adapt", "--help"], "fine-tune"),
        (["-c", "from das_gym.agents.commands import main; main(['das-agents', 'list'])"], "DAS-METER-VQA-v0"),
    ],
)
def test_wheel_runs_next_to_packages_with_the_bare_names(wheel, tmp_path, code, says):
    for name in ("agents", "adapt"):
        (tmp_path / "others" / name).mkdir(parents=True)
        (tmp_path / "others" / name / "__init__.py").write_text("raise ImportError('this is another package')")
    (tmp_path / "empty").mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "others"), str(wheel), *sys.path])}

    def run(*words):
        command = [sys.executable, "-S", "-W", "ignore", *words]  # -S: without the editable install of this environment
        return subprocess.run(command, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True)

    done = run(*code)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
    where = run("-c", "import das_gym.agents; print(das_gym.agents.__file__)").stdout.strip()
    assert Path(where).is_relative_to(wheel)
