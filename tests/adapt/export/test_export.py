"""Exported folders: loaded without das_gym, and by das_gym without their code."""

import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from das_gym.adapt import load_subnet
from das_gym.adapt.export import folder as writing
from das_gym.adapt.export.command import run_export
from das_gym.adapt.export.folder import export
from das_gym.adapt.export.graph import probe_batch, subnet_logits, transformers_batch
from das_gym.adapt.finished_runs import ExportSettings, require_onnx
from PIL import Image
from torch import Tensor, nn

from das_gym.models.checkpoints import load_checkpoint
from das_gym.models.formats import export_head
from das_gym.models.macs import without_adapters
from das_gym.models.meter.model import METER
from das_gym.models.meter.network import METERConfig
from das_gym.models.vilt.model import ViLT
from das_gym.models.vilt.network import ViLTConfig
from das_gym.problem.loading import AdaptedModel, Backbone, task_class
from das_gym.registration import ASSETS

SIZES = {"image_size": 32, "patch_size": 16, "hidden_size": 32, "num_heads": 2}
LABELS = {"vqa": ("no", "yes", "two"), "nlvr2": (), "retrieval": ()}
MASKS = {"METER": (1, 0, 0, 1), "ViLT": (0, 1, 0, 1)}
FRESH = Path(__file__).with_name("load_fresh.py")


def build(model: str, task: str, layers: int = 4, **adapters: int) -> AdaptedModel:
    """Return a small random subnet with weights large enough to distinguish layers."""
    torch.manual_seed(0)
    mask = MASKS[model][-layers:]
    sizes = {**SIZES, "bottleneck": 4, "skip_bottleneck": 6, **adapters}
    assets = ASSETS / f"{model.lower()}_mini"
    vocab = json.loads((assets / "config.json").read_text())["config"]["vocab_size"]
    if model == "METER":
        encoders = {f"{part}_{what}": n for part in ("text", "vision") for what, n in (("width", 64), ("layers", 1))}
        heads = {"text_heads": 2, "vision_heads": 1}
        vlp = METER(METERConfig(**sizes, **encoders, **heads, vocab_size=vocab, fusion_layers=layers // 2, max_positions=34))
    else:
        vlp = ViLT(ViLTConfig(**sizes, num_layers=layers, vocab_size=vocab, max_positions=32))
    vlp.freeze()
    processor = vlp.make_processor(assets)
    of_task = task_class(task)(processor, LABELS[task])
    head = of_task.build_head(vlp.feature_size, vlp.head_size)
    for parameter in (*vlp.parameters(), *head.parameters()):
        nn.init.normal_(parameter, std=0.2)
    vlp.prune(np.array(mask, dtype=bool))
    return AdaptedModel(Backbone(vlp, processor, "0" * 16), head.eval(), of_task)


def images_of(subnet: AdaptedModel) -> int:
    return export_head(subnet.head, subnet.backbone.vlp.feature_size).num_images


def in_double(subnet: AdaptedModel, batch: dict[str, Tensor]) -> Tensor:
    subnet.backbone.vlp.double()
    subnet.head.double()
    return subnet_logits(subnet, {name: t.double() if t.is_floating_point() else t for name, t in batch.items()})


def load_fresh(folders: dict[str, str], work: Path) -> dict[str, dict[str, Tensor]]:
    """Load folders in a process without das_gym, each by its auto class."""
    environment = {**os.environ, "HF_MODULES_CACHE": str(work / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-I", str(FRESH), *(f"{folder}:{automatic}" for folder, automatic in folders.items())]
    done = subprocess.run(words, env=environment, cwd=work, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return {folder: torch.load(work / folder / "found.pt") for folder in folders}


@pytest.mark.slow
def test_export_loads_without_das_gym(tmp_path):
    subnets = {
        "first": build("METER", "vqa"),
        "second": build("ViLT", "nlvr2"),
        "plain": build("ViLT", "vqa", bottleneck=0, skip_bottleneck=0),
    }
    for name, subnet in subnets.items():
        export(subnet, tmp_path / name)
        torch.save(
            transformers_batch(probe_batch(subnet, images_of(subnet)), images_of(subnet)), tmp_path / name / "batch.pt"
        )
    classes = {"first": "AutoModel", "second": "AutoModel", "plain": "AutoModelForVisualQuestionAnswering"}
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 77, 3), dtype=np.uint8))
    for name, found in load_fresh(classes, tmp_path).items():
        subnet, processor = subnets[name], subnets[name].task.processor
        batch = probe_batch(subnet, images_of(subnet))
        torch.testing.assert_close(found["float32"].reshape(-1), subnet_logits(subnet, batch), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found["float64"].reshape(-1), in_double(subnet, batch), atol=1e-10, rtol=0)
        expected = processor.transform(picture, processor.image_size, processor.patch_size)
        torch.testing.assert_close(found["pixels"][0], expected, atol=1e-6, rtol=0)
        assert found["from_card"].shape == (1, export_head(subnet.head, subnet.backbone.vlp.feature_size).num_labels)
        assert found["ids"].tolist() == [processor.tokenizer("what is this")["input_ids"]]


@pytest.mark.parametrize(
    ("model", "task", "adapters"),
    [
        ("METER", "vqa", {}),
        ("METER", "nlvr2", {"skip_bottleneck": 0}),
        ("ViLT", "retrieval", {}),
        ("ViLT", "nlvr2", {"bottleneck": 0, "skip_bottleneck": 0}),
    ],
)
def test_load_subnet_runs_no_code_of_the_folder(model, task, adapters, tmp_path):
    subnet = build(model, task, **adapters)
    batch = probe_batch(subnet, images_of(subnet))
    written = export(subnet, tmp_path / "out")
    plain = model == "ViLT" and adapters == {"bottleneck": 0, "skip_bottleneck": 0}
    code = list(written.folder.glob("*.py"))
    assert bool(code) is not plain
    for file in code:
        file.write_text("raise RuntimeError('this was run')")
    again = load_subnet(written.folder, device="cpu")
    assert again.task.labels == subnet.task.labels
    assert again.backbone.processor.max_text_length == subnet.backbone.processor.max_text_length
    assert again.backbone.processor.texts(["red"])["input_ids"].equal(subnet.backbone.processor.texts(["red"])["input_ids"])
    assert len(again.backbone.vlp.layers) == len(MASKS[model]) - plain * sum(MASKS[model])
    torch.testing.assert_close(subnet_logits(again, batch), subnet_logits(subnet, batch), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(in_double(again, batch), in_double(subnet, batch), atol=1e-10, rtol=0)
    assert load_checkpoint(written.folder).vlp.config == again.backbone.vlp.config


def test_load_subnet_rejects_a_damaged_folder(tmp_path):
    folder = export(build("ViLT", "vqa"), tmp_path / "out").folder
    with pytest.raises(ValueError, match="did you mean 'device'"):
        load_subnet(folder, devise="cpu")
    whole = json.loads((folder / "config.json").read_text())
    changes = [
        ({"das_gym": {"task": "vqa"}}, r"config\.json is damaged .*labels"),
        ({"das_gym": {**whole["das_gym"], "labels": ["no", "yes"]}}, "holds a head of .* the task vqa needs"),
        ({"sizes": None}, "the model 'vilt' with the sizes None"),
    ]
    changes.append(({"das_gym": {**whole["das_gym"], "image_size": 16_000_000}}, r"config\.json is damaged .*image_size"))
    for change, message in changes:
        (folder / "config.json").write_text(json.dumps(whole | change))
        with pytest.raises(ValueError, match=message):
            load_subnet(folder)


def test_export_writes_config_and_card(tmp_path):
    subnet = build("METER", "vqa")
    evaluation = {"metric": 0.812, "metric_name": "accuracy", "loss": 1.5}
    row = {"name": "subnet", "evaluation": evaluation, "macs": 12345, "macs_saved": 0.1}
    written = export(subnet, tmp_path / "out", record={"models": [row]})
    vlp = subnet.backbone.vlp
    assert written.parameters == sum(p.numel() for p in (*vlp.parameters(), *subnet.head.parameters()))
    config = json.loads((written.folder / "config.json").read_text())
    assert config["mask"] == [1, 0, 0, 1]
    assert config["id2label"] == {"0": "no", "1": "yes", "2": "two"}
    assert config["das_gym"]["skipped_layers"] == ["text.0", "image.1"]
    card = (written.folder / "README.md").read_text()
    for words in (
        "without 2 of its 4",
        "text.0 adapter, ",
        "accuracy on test, % | 81.2 |",
        "| 10.00 |",
        "trust_remote_code",
    ):
        assert words in card
    code = {f"{name}.py" for name in ("modeling_meter_subnet", "network", "inputs", "subnet", "adapters", "attention")}
    files = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert {path.name for path in written.folder.iterdir()} == {*code, *files, "tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize("model", ["METER", "ViLT"])
def test_export_of_an_untrained_model(model, tmp_path):
    """Its config still has the widths of adapters that are not there."""
    subnet = build(model, "vqa")
    vlp = without_adapters(subnet.backbone.vlp)
    for index in range(4):
        vlp.skippable_layer(index).skip_adapter = nn.Identity() if vlp.pruned_mask[index] else None
    batch = probe_batch(subnet, 1)
    written = export(subnet, tmp_path / "out")
    assert bool(list(written.folder.glob("*.py"))) is (model == "METER")
    again = load_subnet(written.folder, device="cpu")
    torch.testing.assert_close(subnet_logits(again, batch), subnet_logits(subnet, batch), atol=1e-5, rtol=1e-5)


def test_exported_model_trains(tmp_path):
    from das_gym.models.vilt.modeling_vilt_subnet import ViltSubnet

    subnet = build("ViLT", "vqa")
    model = ViltSubnet.from_pretrained(export(subnet, tmp_path / "out").folder)
    batch = transformers_batch(probe_batch(subnet, 1), 1)
    labels = torch.tensor([[0.0, 1.0, 0.3]] * 3)
    output = model.train()(**batch, labels=labels)
    expected = nn.functional.binary_cross_entropy_with_logits(output.logits, labels) * 3
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "positions" not in name)
    loss, logits = model.eval()(**batch, labels=torch.tensor([1, 0, 2]), return_dict=False)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, torch.tensor([1, 0, 2])))
    with pytest.raises(ValueError, match="`pixel_values` is missing"):
        model(batch["input_ids"])


def test_exported_folder_of_an_unknown_task_is_rejected(tmp_path):
    config = export(build("ViLT", "vqa"), tmp_path / "out").folder / "config.json"
    config.write_text(config.read_text().replace('"task": "vqa"', '"task": "nope"'))
    with pytest.raises(ValueError, match=r"config\.json.*unknown task 'nope'"):
        load_subnet(tmp_path / "out")


@pytest.mark.parametrize("models", ["x", [{}], [1], {"name": 1}])
def test_export_of_a_forged_record_is_rejected_before_it_loads(tmp_path, models):
    run = tmp_path / "run"
    run.mkdir()
    (run / "adapt.json").write_text(json.dumps({"problem": {"model": "METER", "task": "vqa"}, "models": models}))
    with pytest.raises(ValueError, match=r"adapt\.json is damaged"):
        run_export(ExportSettings(run=str(run), out=str(tmp_path / "out")))


def test_export_leaves_nothing_after_an_error(tmp_path, monkeypatch):
    subnet = build("ViLT", "vqa")
    monkeypatch.setattr(writing, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="logits differ from the subnet's"):
        export(subnet, tmp_path / "deep" / "out")
    assert not list((tmp_path / "deep").iterdir())


def test_export_rejects_existing_folders_and_unknown_heads(tmp_path):
    subnet = build("ViLT", "vqa")
    with pytest.raises(ValueError, match="`out` exists"):
        export(subnet, tmp_path)
    odd = nn.Sequential(nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="this head cannot be exported: got Linear, Tanh, Linear"):
        export(dataclasses.replace(subnet, head=odd), tmp_path / "out")
    subnet.backbone.vlp.pruned_mask = None
    with pytest.raises(ValueError, match=r"not pruned"):
        export(subnet, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("model", "task"), [pytest.param("METER", "nlvr2", marks=pytest.mark.long), ("ViLT", "vqa")])
def test_onnx(model, task, tmp_path):
    try:
        require_onnx()
    except ValueError as error:
        pytest.skip(str(error))
    import onnxruntime

    subnet = build(model, task, layers=2)  # torch takes ten seconds for four
    written = export(subnet, tmp_path / "out", onnx=True)
    assert written.onnx_difference <= 1e-4
    assert "those of `model.onnx`" in (written.folder / "README.md").read_text()
    session = onnxruntime.InferenceSession(written.folder / "model.onnx")
    for rows, length in ((9, 5), (6, 11)):
        batch = probe_batch(subnet, images_of(subnet), rows)
        batch |= {name: batch[name][:, :length].contiguous() for name in ("input_ids", "attention_mask")}
        given = transformers_batch(batch, images_of(subnet))
        (logits,) = session.run(None, {i.name: given[i.name].numpy() for i in session.get_inputs()})
        torch.testing.assert_close(torch.from_numpy(logits).reshape(-1), subnet_logits(subnet, batch), atol=1e-4, rtol=0)


def test_export_names_what_onnx_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.9.1+cpu")
    with pytest.raises(ValueError, match=r"`onnx` needs torch 2\.11 or newer"):
        export(build("ViLT", "vqa"), tmp_path / "out", onnx=True)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.11.0")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"`onnx` needs .*onnxscript"):
        export(build("ViLT", "vqa"), tmp_path / "out", onnx=True)
    assert not list(tmp_path.iterdir())


def test_exported_tokenizer_names_no_code(tmp_path):
    """The card loads the folder with trust_remote_code=True, for the code of das_gym."""
    subnet = build("METER", "vqa")
    processor: Any = subnet.task.processor
    processor.tokenizer.init_kwargs["auto_map"] = {"AutoTokenizer": ["evil/repo--code.Evil", None]}  # as it is read
    written = export(subnet, tmp_path / "out")
    assert "auto_map" not in json.loads((written.folder / "tokenizer_config.json").read_text())
