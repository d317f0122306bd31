"""Repairs in closed form: fitted once for a model, its data and a mask, also if the run is resumed."""

import pytest
import torch
from das_gym.adapt.shrinking import repairing
from das_gym.adapt.shrinking.settings import RecoveryConfig

from das_gym.files import CACHE_VARIABLE, cache_folder
from tests.adapt.conftest import MASK


@pytest.mark.parametrize("recover", ["linear", "refit"])
def test_a_resumed_run_reads_the_repair(recover, problem_of, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    fits = []
    for name in ("fit_skip_adapters", "refit_before_removed"):
        fit = getattr(repairing, name)
        monkeypatch.setattr(repairing, name, lambda *args, fit=fit: fits.append(fit(*args)))
    problem = problem_of("llava")
    config = RecoveryConfig(recover=recover)
    first = repairing.repaired_copy(problem, MASK, config).model.state_dict()
    second = repairing.repaired_copy(problem, MASK, config).model.state_dict()
    assert len(fits) == 1
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    (file,) = (cache_folder() / "skip_adapters").iterdir()
    file.write_bytes(file.read_bytes()[:-8])  # damaged: it is fitted again
    third = repairing.repaired_copy(problem, MASK, config).model.state_dict()
    assert len(fits) == 2
    assert all(torch.equal(first[name], third[name]) for name in first)
