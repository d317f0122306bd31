"""Export of fine-tuned answering models: LoRA and full fine-tuning as plain folders, DAS with its adapters."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from das_gym.adapt.export.answering import QUESTIONS, export_answering
from das_gym.adapt.methods.base import make_method, trained_parameters
from das_gym.adapt.shrinking.verifying import Probes, replay_logits
from transformers import AutoModelForImageTextToText

from das_gym.data.images import NoiseImage
from das_gym.models.inputs import Prompt
from das_gym.models.transformers.inserted_adapters import exportable_subnet
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, load_backbone, new_head, task_class
from tests.models.transformers import tiny

MASK = (0, 1, 0, 1)
RECORD = {"row": "LoRA, learning rate 0.002", "models": [{"name": "LoRA", "metric": 0.75, "metric_name": "exact_match"}]}


def finetuned(folder: Path, data: Path, name: str, **settings: Any) -> AdaptedModel:
    """Return a model whose trained parameters have changed."""
    config = ProblemConfig(model="VLM", task="answering", checkpoint=str(folder), data_root=str(data), device="cpu")
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


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("das", {"mask": MASK}),
        pytest.param("lora", {}, marks=pytest.mark.slow),
        pytest.param("full", {}, marks=pytest.mark.slow),
        pytest.param("das", {}, marks=pytest.mark.slow),
    ],
)
def test_as_saved_keeps_the_outputs(folder_of, data, name, settings):
    model = finetuned(folder_of("llava"), data, name, **settings)
    vlm, processor = model.backbone.vlp, model.task.processor
    probes = Probes(vlm, processor, [Prompt(q, (NoiseImage(n, 96, 64),), "red") for n, q in enumerate(QUESTIONS)])
    wanted = torch.cat(replay_logits(vlm, probes, None))
    smaller = exportable_subnet(vlm)
    assert len(smaller.stack.layers) == 4 - sum(settings.get("mask", ()))
    found = []
    with torch.no_grad():
        for e in probes.encodings:
            found.append(smaller.run([e._replace(answer=len(e.ids))], with_head=True).logits[0, e.answer - 1 : -1])
    torch.testing.assert_close(torch.cat(found), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("wanted", "dtype"), [("auto", torch.bfloat16), ("float32", torch.float32)])
def test_export_answering_loads_in_transformers(data, tmp_path, wanted, dtype):
    source = tiny.save("llava", tmp_path / "source", torch.bfloat16)
    written = export_answering(finetuned(source, data, "lora"), tmp_path / "out", RECORD, wanted)
    assert written.loads_with == "transformers.AutoModelForImageTextToText"
    assert written.dtype.startswith(f"saved in {dtype}".replace("torch.", ""))
    assert written.difference < 0.5
    card = (tmp_path / "out/README.md").read_text()
    assert "trust_remote_code=True" not in card
    assert "| exact match on test, % | 75.0 |" in card
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert sum(p.numel() for p in loaded.parameters()) == written.parameters


@pytest.mark.slow
def test_export_answering_writes_a_trained_projector(data, tmp_path):
    source = tiny.save("llava", tmp_path / "source", torch.bfloat16)
    config = ProblemConfig(model="VLM", task="answering", checkpoint=str(source), data_root=str(data), device="cpu")
    backbone = load_backbone(config, bottleneck=4, skip_bottleneck=6, projector=True)
    task = task_class("answering")(backbone.processor, ())
    for name, parameter in backbone.vlp.named_parameters():
        if "projector" in name:
            parameter.data *= 1.5
    backbone.vlp.prune(np.array(MASK, bool))
    export_answering(AdaptedModel(backbone, new_head(backbone, task), task), tmp_path / "out", {})  # it compares logits
    assert "trust_remote_code=True" in (tmp_path / "out/README.md").read_text()
