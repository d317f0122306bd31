from pathlib import Path

import pytest
import torch

from benchmarks.search.problems import TABLES
from benchmarks.tables.make import main
from benchmarks.tables.models import MODELS, TrainedModel, make_model
from das_gym.commands.runs import lock_folder
from das_gym.models.checkpoints import load_checkpoint
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.problem import build_problem
from das_gym.registration import ASSETS
from das_gym.shapes.vqa import write_shapes
from das_gym.tables.table import SubnetTable


@pytest.mark.parametrize("spec", MODELS, ids=lambda spec: spec.name)
def test_tables_have_the_kept_layers_and_each_example(spec):
    table = SubnetTable.load(TABLES / f"{spec.name}.npz")
    assert table.n_layers == sum(len(places) for places in spec.kept)
    assert table.examples is not None
    assert "latency_saved" in table.costs


def test_tables_are_made_by_one_process_at_a_time(tmp_path):
    lock = lock_folder(tmp_path)
    with pytest.raises(ValueError, match="another process uses"):
        main(["--out", str(tmp_path), "--only", "none"])
    lock.release()
    main(["--out", str(tmp_path), "--only", "none"])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", 3, train_scenes=20, val_scenes=12)


@pytest.mark.slow
def test_meter_has_the_kept_layers_and_is_trained(data, tmp_path):
    spec = TrainedModel("m", "METER", "vqa", "meter_mini", ((1, 4), (0, 5)), seed=5, steps=2)
    config = make_model(spec, data, tmp_path / "m")
    problem = build_problem(config)
    bundled = load_checkpoint(ASSETS / "meter_mini").vlp.state_dict()
    mine = problem.vlp.state_dict()
    for name, old, new in (("text_layers", 4, 1), ("image_layers", 5, 1)):
        matrices = [key.split(".", 2)[2] for key in mine if key.startswith(f"{name}.1.") and "adapter" not in key]
        assert matrices
        assert all(torch.equal(mine[f"{name}.{new}.{key}"], bundled[f"{name}.{old}.{key}"]) for key in matrices)
    assert not any("skip_adapter" in name for name in problem.vlp.tunable_state())
    first, last = (Adaptation.load(tmp_path / "m" / f"{name}.safetensors") for name in ("first", "supernet"))
    assert any(not torch.equal(tensor, last.tensors[name]) for name, tensor in first.tensors.items())
    assert make_model(spec, data, tmp_path / "m") == config  # existing files stay


@pytest.mark.slow
def test_decoder_has_the_kept_layers(data, tmp_path):
    spec = TrainedModel("d", "VLM", "answering", "smolvlm_mini", ((0, 3, 11),), seed=5, steps=1, noise=0.05)
    problem = build_problem(make_model(spec, data, tmp_path / "d"))
    assert len(problem.layer_names) == 3
