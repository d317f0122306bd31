"""The trained weights that come with das_gym are those of today's default settings."""

import numpy as np
import pytest
import torch
from das_gym.adapt.evaluate import evaluate
from das_gym.adapt.finetuning import copy_model, load_reference, load_start, new_subnet, reference_file
from das_gym.adapt.report import BASELINE, FULL_MODEL
from das_gym.adapt.settings import AdaptSettings
from das_gym.adapt.step_loss import resolve_defaults

from das_gym.commands.settings import build
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, load_splits


def untrained(settings: AdaptSettings, name: str) -> AdaptedModel:
    problem = settings.problem
    return new_subnet(problem, np.zeros(12, bool), adapters=name == FULL_MODEL)


def loads(settings: AdaptSettings, model: AdaptedModel, name: str) -> bool:
    config, _ = resolve_defaults(settings.train, model)
    return load_reference(model, settings.problem, config, name)


@pytest.mark.parametrize("name", [FULL_MODEL, BASELINE])
def test_load_reference_serves_the_default_settings(name):
    settings = AdaptSettings()
    model = untrained(settings, name)
    assert loads(settings, model, name)
    kept = Adaptation.load(reference_file(settings.problem, name))  # type: ignore[arg-type]
    assert kept.tensors.keys() == model.adaptation().tensors.keys()
    assert all(torch.equal(tensor, kept.tensors[key]) for key, tensor in model.adaptation().tensors.items())


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"device": "cpu", "train": {"save_every": 10, "encoder_cache_gib": 0.5}, "runs_dir": "other"}, True),
        ({"seed": 1}, False),
        ({"train": {"mixed_precision": "bf16"}}, False),
    ],
)
def test_load_reference_only_serves_settings_that_learn_the_same(changes, same):
    settings = build(AdaptSettings, changes)
    assert loads(settings, untrained(settings, BASELINE), BASELINE) == same


def test_load_reference_serves_no_other_model():
    settings = AdaptSettings(problem=ProblemConfig(model="ViLT"))
    assert not loads(settings, untrained(settings, BASELINE), BASELINE)


@pytest.mark.long
@pytest.mark.parametrize("name", [FULL_MODEL, BASELINE])
def test_references_are_what_training_gives(name, tmp_path, monkeypatch, capsys):
    from benchmarks import assets

    monkeypatch.setattr(assets, "reference_file", lambda *_: tmp_path / "again.safetensors")
    assets.write_reference(name)
    metric = float(capsys.readouterr().out.rpartition(": ")[2].partition(" ")[0])
    settings = AdaptSettings()
    model = untrained(settings, name)
    assert loads(settings, model, name)
    kept = evaluate(model, load_splits(settings.problem).test, name).metric
    assert metric == pytest.approx(100 * kept, abs=0.5)  # another processor rounds otherwise


def test_copy_model_shares_frozen_weights(tiny_kwargs):
    model = load_start(ProblemConfig(**{name: value for name, value in tiny_kwargs.items() if name != "supernet"})).model
    kept = model.backbone.vlp
    again = copy_model(model)
    for name, parameter in again.backbone.vlp.named_parameters():
        assert torch.equal(parameter, kept.get_parameter(name))
        assert (parameter is kept.get_parameter(name)) == (not parameter.requires_grad)
    assert all(mine is not its for mine, its in zip(again.head.parameters(), model.head.parameters(), strict=True))
