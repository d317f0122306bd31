import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.make_suite.make import main, make_suite
from benchmarks.make_suite.models import SuiteModel, make_model
from benchmarks.make_suite.plan import suite_models
from das_gym.commands.runs import lock_folder
from das_gym.models.checkpoints import load_checkpoint
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.latency import measure_units
from das_gym.problem.problem import build_problem
from das_gym.registration import ASSETS
from das_gym.shapes.vqa import write_shapes
from das_gym.tables.table import SubnetTable


def test_plan_has_disjoint_splits():
    models = suite_models()
    assert models == suite_models()
    assert models != suite_models(seed=1)
    assert len({spec.name for spec in models}) == len(models)
    assert sum(spec.split == "train" for spec in models) >= 16
    train, test = ([spec for spec in models if spec.split == split] for split in ("train", "test"))
    assert not {(spec.model, spec.kept) for spec in train} & {(spec.model, spec.kept) for spec in test}
    assert not {spec.task for spec in train} & {"nlvr2", "retrieval"}
    for spec in models:
        assert all(list(places) == sorted(set(places)) for places in spec.kept)


def test_suite_is_made_by_one_process_at_a_time(tmp_path):
    lock = lock_folder(tmp_path)
    with pytest.raises(ValueError, match="another process uses"):
        main(["--out", str(tmp_path), "--only", "none"])
    lock.release()
    main(["--out", str(tmp_path), "--only", "none"])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", 3, train_scenes=20, val_scenes=12)


@pytest.mark.slow
def test_model_has_the_kept_layers(data, tmp_path):
    spec = SuiteModel("v", "train", "ViLT", "vqa", ((0, 7, 9),), 5, noise=0.1, skip_adapters=False, steps=2)
    config = make_model(spec, data, tmp_path / "v")
    problem = build_problem(config)
    bundled = load_checkpoint(ASSETS / "vilt_mini").vlp.state_dict()
    mine = problem.vlp.state_dict()
    for new, old in enumerate(spec.kept[0]):
        before, after = bundled[f"blocks.{old}.layer.mlp_in.weight"], mine[f"blocks.{new}.layer.mlp_in.weight"]
        assert float((after - before).std()) == pytest.approx(spec.noise * float(before.std()), rel=0.1)
    assert not any("skip_adapter" in name for name in problem.vlp.tunable_state())
    first, last = (Adaptation.load(tmp_path / "v" / f"{name}.safetensors") for name in ("first", "supernet"))
    assert any(not torch.equal(tensor, last.tensors[name]) for name, tensor in first.tensors.items())
    losses = problem.evaluator.losses(np.eye(len(problem.layer_names), dtype=bool), problem.splits.reward[:4])
    assert np.isfinite(losses).all()
    assert make_model(dataclasses.replace(spec, steps=9), data, tmp_path / "v") == config  # existing files stay


@pytest.mark.slow
def test_command_resumes_from_existing_files(tmp_path, monkeypatch):
    spec = SuiteModel("train-00", "train", "METER", "vqa", ((0,), (2,)), 5, steps=1)
    monkeypatch.setattr("benchmarks.make_suite.make.suite_models", lambda seed: [spec])
    monkeypatch.setattr("benchmarks.make_suite.make.USUAL_EXAMPLES", (6, 4))
    monkeypatch.setattr(
        "benchmarks.make_suite.make.write_shapes", lambda folder, seed, **counts: write_shapes(folder, seed, 20, 8)
    )
    monkeypatch.setenv("DAS_GYM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measure_units, "__defaults__", ((2, 2), 0.0, 1))
    folder = make_suite(tmp_path, bundled=False)
    table = SubnetTable.load(folder / "train-00.npz")
    assert table.n_layers == 2
    assert table.examples is not None
    latency = table.meta.costs["latency_saved"]
    assert (latency["measured"]["clock"], latency["measured"]["examples"]) == ("thread_time", 1)
    written = (folder / "train-00.npz").stat().st_mtime_ns
    make_suite(tmp_path, bundled=False)
    assert (folder / "train-00.npz").stat().st_mtime_ns == written
    assert (folder / "suite.json").is_file()
