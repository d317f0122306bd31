from __future__ import annotations

import subprocess
import sys


def test_importing_the_package_is_light():
    code = "import sys, das_gym; print([m for m in ('torch', 'transformers', 'sacred', 'matplotlib') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_only_commands_import_sacred():
    code = (
        "import sys, das_gym.agents, das_gym.adapt.finetune, das_gym.runs, das_gym.commandline, gymnasium\n"
        "import das_gym.agents.searching.validate, das_gym.agents.listing\n"
        "gymnasium.make('DAS-METER-VQA-Tabular-v0').reset(seed=0)\n"
        "print('sacred' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_registering_twice_is_quiet():
    code = "import das_gym; das_gym.register_all(); import importlib; importlib.reload(das_gym)"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True).returncode == 0


def test_packages_point_one_way():
    code = (
        "import das_gym.envs, das_gym.problem.loading, das_gym.experiment, sys;"
        "print([m for m in sys.modules if m.split('.')[0] in ('agents', 'adapt')])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
