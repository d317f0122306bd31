import ast
import importlib
import subprocess
import sys
from pathlib import Path

import das_gym.adapt
import das_gym.agents
import pytest

import das_gym
from das_gym.files import ASSETS

GOLDEN = Path(__file__).parent / "golden"
IN_A_CLONE = "import gymnasium, das_gym; gymnasium.make('DAS-METER-VQA-Tabular-v0'); print(das_gym.__file__)"
DOORS = (das_gym, das_gym.agents, das_gym.adapt)


@pytest.mark.parametrize("package", ["das_gym", "das_gym.agents", "das_gym.adapt", "das_gym.problem.config"])
def test_importing_the_package_is_light(package):
    heavy = ("torch", "transformers", "sacred", "matplotlib", "stable_baselines3", "datasets", "pyarrow")
    code = f"import sys, {package}; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize("module", ["das_gym.agents.run_commands", "das_gym.adapt.run_commands"])
def test_settings_are_checked_before_torch_is_imported(module):
    heavy = ("torch", "transformers", "matplotlib", "stable_baselines3", "datasets")  # Sacred's pandas imports pyarrow
    code = (
        f"import sys, {module} as module\n"
        "for each in vars(module).values():\n"
        "    if isinstance(each, module.RecordedCommand):\n"
        "        each.help_text(), each.settings_class()\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        ("evaluate with run=99", "99"),
        ("evaluate with run=. data_root=/missing", "run"),
        ("predict with run=99", "99"),
        ("export with run=99 out=new", "99"),
        ("export with run=1 out=new device=cpu", "device"),
        ("with mask=[0,1]", "mask"),
        ("with vilt_vqa mask=[0,1]", "mask"),
        ("shrink with mask=[0,1] checkpoint=llava_mini", "mask"),
        ("shrink with mask=[0,1] vision=True", "mask"),
        (f"with checkpoint={GOLDEN / 'meter_tiny.ckpt'} mask=[0,1]", "mask"),
        (f"with vilt_vqa checkpoint={GOLDEN / 'vilt_tiny.ckpt'} mask=[0,1]", "mask"),
        ("with vlm_answering vision=True", "vision"),
        ("compare with vlm_answering units=sublayers", "units"),
        ("with device=gpu0", "device"),
        ("shrink with dtype=fp16", "unknown dtype 'fp16'"),
        ("shrink with task=text", "`data_root`"),
        ("shrink with columns=a,b", "`columns`"),
        (f"shrink with checkpoint={GOLDEN}", "`checkpoint`"),
        ("shrink with skip_num=13", "`skip_num`"),
        ("shrink with skip_num=12", "`skip_num` must leave one layer"),
        (f"shrink with task=text data_root={GOLDEN} checkpoint={ASSETS / 'llava_mini'} context=9999", "`context`"),
        ("compare with vlm_answering skip_num=13", "`skip_num`"),
        ("with skip_num=13", "`skip_num`"),
        ("with search_run=99", "no run 99"),
        ("shrink with search_run=99", "no run 99"),
        (f"evaluate with run={ASSETS / 'llava_mini'} device=gpu0", "device"),
        (f"evaluate with run={ASSETS / 'llava_mini'} split=tests", "split"),
        (f"evaluate with run={ASSETS / 'llava_mini'} out=/proc/x", "`out`"),
        ("report 99", "no run '99'"),
        ("report .. with out=/proc/x", "`out`"),
        ("supernet with out=/proc/x", "`out`"),
    ],
)
def test_wrong_settings_are_reported_before_torch_is_imported(words: str, setting: str):
    assert_light("adapt", words, setting)


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        ("with skip_num=13", "`skip_num`"),
        ("pareto with vlm_text", "`data_root`"),
        ("table with max_skipped=13", "`max_skipped`"),
        ('compare with agents=["x"]', "'x'"),
        ("compare with live=True skip_num=13", "`skip_num`"),
        ("with env_id=DAS-Nope-v0", "unknown env_id"),
        ("pareto with runs_dir=/proc/x", "`runs_dir`"),
        ("compare with skip_num=-1", "`skip_num`"),
        ("compare with env_id=meter_vqa", "did you mean 'DAS-METER-VQA-v0'"),
    ],
)
def test_wrong_settings_of_searches_are_reported_before_torch_is_imported(words: str, setting: str):
    assert_light("agents", words, setting)


def assert_light(program: str, words: str, setting: str) -> None:
    code = (
        f"import sys\nfrom das_gym.{program}.commands import PROGRAM\n"
        f"print(PROGRAM.run({words.split()}), 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert found.stdout.split() == ["1", "False"]
    assert setting in found.stderr


def test_tabular_environments_need_numpy_and_gymnasium_only():
    env_id = "DAS-METER-VQA-Tabular-v0"
    code = (
        "import sys, gymnasium, numpy, das_gym\n"
        "loaded = lambda: {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "before = loaded()\n"
        f"for env in (gymnasium.make('{env_id}'), gymnasium.make_vec('{env_id}', num_envs=2)):\n"
        "    env.reset(seed=0); env.step(env.action_space.sample())\n"
        "print(sorted(loaded() - before - {'filelock', 'psutil', 'tqdm'}))"  # small dependencies of das_gym
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.slow
def test_sacred_is_imported_only_by_commands():
    code = (
        "import sys, das_gym.agents, das_gym.adapt.finetuning, gymnasium\n"
        "import das_gym.commands.runs, das_gym.commands.commandline\n"
        "import das_gym.agents.searching.loop, das_gym.agents.listing\n"
        "gymnasium.make('DAS-METER-VQA-Tabular-v0').reset(seed=0)\n"
        "print('sacred' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


@pytest.mark.parametrize("door", DOORS)
def test_package_exports_all_names(door):
    assert set(door.__all__) <= set(dir(door))
    for name in door.__all__:
        assert getattr(door, name) is not None
    for name, place in door._PLACES.items():
        assert getattr(door, name) is getattr(importlib.import_module(place), name)


@pytest.mark.parametrize("door", DOORS)
def test_type_checking_imports_match_places(door):
    tree = ast.parse(Path(door.__file__).read_text(encoding="utf-8"))
    guard = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    told = {alias.asname: node.module for node in guard.body for alias in node.names}
    assert told == door._PLACES


def test_import_finds_the_package_from_the_parent_folder_of_a_clone(tmp_path):
    for name in ("das_gym", "agents", "adapt"):
        (tmp_path / "das_gym" / name).mkdir(parents=True)
        (tmp_path / "das_gym" / name / "__init__.py").touch()
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", IN_A_CLONE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not Path(done.stdout.strip()).is_relative_to(tmp_path)
