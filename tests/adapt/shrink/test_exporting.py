"""What fine-tuning made of a model of transformers, as a folder: methods that leave nothing, and DAS with its adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from das_gym.adapt.export.folder import Exported
from das_gym.adapt.methods.base import make_method
from das_gym.adapt.methods.saving import trained_parameters
from das_gym.adapt.shrink import exporting
from das_gym.adapt.shrink.exporting import MadeUp, made_up, write
from das_gym.adapt.shrink.verifying import Questions, replayed
from transformers import AutoModelForImageTextToText

from das_gym.models.transformers.loading import load_vlm
from das_gym.models.transformers.stand_ins import as_saved
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, load_backbone, new_head, task_class
from tests.models.transformers import tiny

MASK = (0, 1, 0, 1)
RECORD = {"row": "LoRA, learning rate 0.002", "models": [{"name": "LoRA", "metric": 0.75, "metric_name": "exact_match"}]}


def tuned(config: ProblemConfig, name: str, **settings: Any) -> AdaptedModel:
    """A model as fine-tuning leaves it: what a method trains is anything else than it was."""
    backbone = load_backbone(config, **({"bottleneck": 4, "skip_bottleneck": 6} if name == "das" else {}))
    task = task_class("answering")(backbone.processor, ())
    model, method = AdaptedModel(backbone, new_head(backbone, task), task), make_method(name, settings)
    method.apply(model)
    torch.manual_seed(1)
    for parameter in trained_parameters(model).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    method.finish(backbone.vlp)
    if backbone.vlp.pruned_mask is None:
        backbone.vlp.prune(np.zeros(len(backbone.vlp.layers), bool))
    return model


def config_of(folder: Path, data: Path) -> ProblemConfig:
    return ProblemConfig(model="VLM", task="answering", checkpoint=str(folder), data_root=str(data), device="cpu")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("das", {"mask": MASK}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("lora", {}), ("full", {}), ("das", {}), ("das", {"mask": (1, 1, 0, 0)}))
        ),
    ],
)
def test_a_tuned_model_says_the_same_in_the_form_of_its_folder(
    folder_of: Callable[[str], Path], data: Path, name: str, settings: dict[str, Any]
):
    model = tuned(config_of(folder_of("llava"), data), name, **settings)
    vlm, processor = model.backbone.vlp, model.task.processor
    asked = Questions(vlm, MadeUp(processor), made_up(processor))
    wanted = torch.cat(replayed(vlm, asked, None))
    smaller = as_saved(vlm)
    assert len(smaller.stack.layers) == 4 - sum(settings.get("mask", ()))
    whole = [(e._replace(answer=len(e.ids)), e.answer) for e in asked.encodings]
    with torch.no_grad():
        said = torch.cat([smaller.run([e], whole=True).logits[0, first - 1 : -1] for e, first in whole])
    torch.testing.assert_close(said, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings", "dtype"), [("lora", {}, torch.bfloat16), ("das", {"mask": MASK}, torch.float32)]
)
def test_transformers_alone_loads_the_folder(
    data: Path, tmp_path: Path, name: str, settings: dict[str, Any], dtype: torch.dtype
):
    source = tiny.save("llava", tmp_path / "source", dtype)
    model = tuned(config_of(source, data), name, **settings)
    written = write(model, tmp_path / "out", RECORD)
    assert written.loads_with == "transformers.AutoModelForImageTextToText"
    assert written.difference < (1e-4 if dtype == torch.float32 else 0.5)
    assert ("trust_remote_code=True" in (tmp_path / "out/README.md").read_text()) == (name == "das")
    assert "| exact match on test | 75.0% |" in (tmp_path / "out/README.md").read_text()
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert sum(p.numel() for p in loaded.parameters()) == written.parameters


@pytest.mark.slow
def test_what_no_folder_can_hold_is_refused(folder_of: Callable[[str], Path], data: Path):
    for name in ("adapter", "parallel"):
        with pytest.raises(ValueError, match=r"cannot be told by a folder of transformers: .* full, lora, bitfit and das"):
            as_saved(tuned(config_of(folder_of("llava"), data), name).backbone.vlp)


@pytest.mark.slow
def test_a_projector_that_trained_is_written_too(data: Path, tmp_path: Path):
    source = tiny.save("llava", tmp_path / "source", torch.bfloat16)
    config = config_of(source, data)
    backbone = load_backbone(config, bottleneck=4, skip_bottleneck=6, projector=True)
    task = task_class("answering")(backbone.processor, ())
    model = AdaptedModel(backbone, new_head(backbone, task), task)
    for name, parameter in backbone.vlp.named_parameters():
        if "projector" in name:
            parameter.data *= 1.5
    backbone.vlp.prune(np.array(MASK, bool))
    write(dataclasses.replace(model), tmp_path / "out", {})


@pytest.mark.parametrize(("remote", "adapted"), [(False, False), (False, True), (True, False)])
def test_the_card_says_what_code_has_to_be_trusted(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, remote: bool, adapted: bool
):
    monkeypatch.setattr(exporting, "is_remote", lambda _: remote)
    folder = folder_of("llava")
    exported = Exported(folder, "transformers.AutoModelForImageTextToText", 1, 0.0)
    lines = exporting.card(folder, exported, adapted, load_vlm(folder), RECORD).splitlines()
    (model,) = (line for line in lines if line.startswith("model = "))
    (processor,) = (line for line in lines if line.startswith("processor = "))
    assert ("trust_remote_code=True" in model) == (remote or adapted)
    assert ("trust_remote_code=True" in processor) == remote
