from __future__ import annotations

import contextlib
import functools
import io
import json
import pickle
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from das_gym.adapt.convert import main
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from das_gym.models import tensor_files
from das_gym.models.checkpoints import assemble, load_checkpoint, load_vlp, save_checkpoint
from das_gym.models.formats import HEADS, count, derive_rank_output, derive_second_image, grid_side
from das_gym.models.meter.checkpoint import METER_FORMAT
from das_gym.models.meter.model import METER, METERConfig
from das_gym.models.tensor_files import TensorFile, checksum, load_plain, read_tensors, write_folder
from das_gym.models.vilt.model import ViLT, ViLTConfig
from tests.models import golden_cases as golden

METER_LEFT_OVERS = {
    "text_transformer.embeddings.position_ids",
    "text_transformer.pooler.dense.weight",
    "text_transformer.pooler.dense.bias",
    "vit_model.positional_embedding",
    "vit_model.ln_final.weight",
    "vit_model.ln_final.bias",
}
ALL_HEADS = {"vqa_classifier", "nlvr2_classifier", "rank_output", "itm_score"}


def official(model: str, section: int) -> dict[str, torch.Tensor]:
    """Tensors without content, of full size, under the names of an official file (0 = pre-training, 1 = DAS on VQA)."""
    lines = (golden.GOLDEN / f"official_keys_{model}.txt").read_text().splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("##") and line.endswith("keys")]
    tensors = {}
    for line in lines[starts[section] + 1 :]:
        if not line or line.startswith("##"):
            break
        name, shape, dtype = line.split("\t")
        size = [int(n) for n in shape.strip("()").split(",") if n]
        tensors[name] = torch.empty(size, dtype=getattr(torch, dtype), device="meta")
    assert lines[starts[section]] == f"## {len(tensors)} keys"
    return tensors


# ---- official files at full size


@pytest.mark.parametrize(("section", "image_size"), [(0, None), (0, 384), (1, None), (1, 384)])
def test_every_official_meter_name_has_a_place(section, image_size):
    found = assemble(TensorFile(golden.GOLDEN, official("meter", section), {}), image_size=image_size)
    report = found.report
    assert found.vlp.config == METERConfig(image_size=image_size or 288)
    assert set(report.unused) == METER_LEFT_OVERS
    assert report.unknown == []
    if section == 0:
        assert found.heads.keys() == {"itm_score", "mlm_score", "rank_output"}
        assert set(report.missing) == {name for name in found.vlp.state_dict() if "adapter" in name}
    else:
        assert found.heads.keys() == {"vqa_classifier"}
        assert report.missing == []
        assert found.search["das_gate"].shape == (12,)
    resized = [note for note in report.derived if "resized to 384 px" in note]
    assert len(resized) == (image_size is not None)


@pytest.mark.parametrize("section", [0, 1])
def test_every_official_vilt_name_has_a_place(section):
    found = assemble(TensorFile(golden.GOLDEN, official("vilt", section), {}))
    assert found.vlp.config == ViLTConfig(position_grid=12)
    assert (found.report.unused, found.report.unknown) == (["text_embeddings.position_ids"], [])
    missing = set() if section else {name for name in found.vlp.state_dict() if "adapter" in name}
    assert set(found.report.missing) == missing
    assert ("mlm_score" in found.heads) == (section == 0)


def test_official_shapes_count_to_the_published_size():
    found = assemble(TensorFile(golden.GOLDEN, official("meter", 1), {}))
    adapters = sum(p.numel() for name, p in found.vlp.named_parameters() if ".layer." in name and "adapter" in name)
    assert adapters == 36 * (2 * 768 * 96 + 96 + 3 * 768)


# ---- what the reference derives from a pre-training file


@pytest.fixture(scope="module")
def pretrained():
    generator = torch.Generator().manual_seed(5)
    path = golden.GOLDEN / "meter_pretrain_tiny.ckpt"
    return load_checkpoint(path, image_size=40, num_heads=4, text_heads=4, generator=generator, heads=("vqa_classifier",))


def test_derived_tensors(pretrained):
    expected = load_file(golden.GOLDEN / "meter_pretrain_golden.safetensors")
    state = pretrained.vlp.state_dict()
    pairs = {
        "nlvr2/token_type_embeddings.weight": state["token_types.weight"],
        "vqa/token4classifier": state["first_text_token"],
        "vqa/vit_model.visual.positional_embedding": state["image_encoder.embeddings.position_embedding.weight"],
        "irtr/rank_output.weight": pretrained.heads["rank_output"]["weight"],
        "irtr/rank_output.bias": pretrained.heads["rank_output"]["bias"],
        "irtr/itm_score.fc.weight": pretrained.heads["itm_score"]["weight"],
        "irtr/itm_score.fc.bias": pretrained.heads["itm_score"]["bias"],
    }
    for name, actual in pairs.items():
        torch.testing.assert_close(actual, expected[name], atol=1e-6, rtol=1e-6, msg=name)
    assert len(pretrained.report.derived) == 4


def test_missing_names_are_those_the_reference_leaves_as_initialised(pretrained):
    left = json.loads((golden.GOLDEN / "meter_pretrain_keys.json").read_text())["keys_left_at_init"]
    expected = {METER_FORMAT.our_names(name)[0] for name in left if "adapter" in name}
    assert set(pretrained.report.missing) == expected | {"vqa_classifier"}


def test_missing_adapters_start_as_in_the_reference(pretrained):
    state = pretrained.vlp.state_dict()
    new = {name: state[name] for name in pretrained.report.missing if name in state}
    weights = torch.cat([t.flatten() for name, t in new.items() if name.endswith((".down.weight", ".up.weight"))])
    assert abs(float(weights.mean())) < 1e-3
    assert float(weights.std()) == pytest.approx(0.02, rel=0.01)
    assert all(bool((t == (1 if name.endswith("norm.weight") else 0)).all()) for name, t in new.items() if t.ndim == 1)


def test_same_generator_same_adapters(pretrained):
    path, generator = golden.GOLDEN / "meter_pretrain_tiny.ckpt", torch.Generator().manual_seed(5)
    again = load_vlp(path, image_size=40, num_heads=4, text_heads=4, generator=generator).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in pretrained.vlp.state_dict().items())


def test_vilt_keeps_its_positions_at_another_image_size():
    found = load_checkpoint(golden.GOLDEN / "vilt_tiny.ckpt", num_heads=4, image_size=96)
    assert (found.vlp.config.image_size, found.vlp.config.grid, found.vlp.image_positions.shape) == (96, 4, (1, 17, 64))


def test_heads_and_search_state():
    for name, features in (("meter", 128), ("vilt", 64)):
        found = golden.loaded(name)
        assert found.heads.keys() == ALL_HEADS
        assert found.heads["vqa_classifier"].keys() == {f"{i}.{part}" for i in (0, 1, 3) for part in ("weight", "bias")}
        assert found.heads["nlvr2_classifier"]["0.weight"].shape == (128, 2 * features)
        assert found.search.keys() == {"das_gate", "skip_num"}
        assert not found.vlp.training


def test_other_precisions_become_float32(tmp_path):
    state = torch.load(golden.GOLDEN / "vilt_tiny.ckpt", weights_only=True)["state_dict"]
    half = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    torch.save({"state_dict": half}, tmp_path / "half.ckpt")
    vlp = load_vlp(tmp_path / "half.ckpt", num_heads=4)
    assert {p.dtype for p in vlp.parameters()} == {torch.float32}
    torch.testing.assert_close(vlp.pooler.weight, state["pooler.dense.weight"].half().float())


def test_a_file_that_lost_the_layers_of_one_stream_is_refused():
    tensors = {k: v for k, v in official("meter", 0).items() if not k.startswith("cross_modal_image_layers.5.")}
    with pytest.raises(ValueError, match="6 text and 5 image fusion layers: the file is not whole"):
        assemble(TensorFile(golden.GOLDEN, tensors, {}))


@pytest.mark.parametrize(
    ("model", "lost", "said"),
    [
        (
            "meter",
            r"cross_modal_\w+_layers\.5\.|adapter_list_.\.5",
            "fusion_layers=5, METER of that width has 6: the file may lack",
        ),
        (
            "meter",
            r"text_transformer\.encoder\.layer\.11\.",
            "text_layers=11, METER of that width has 12: the file may lack",
        ),
        (
            "vilt",
            r"transformer\.blocks\.11\.|adapter_list\.11",
            "num_layers=11, ViLT of that width has 12: the file may lack",
        ),
    ],
)
def test_a_file_that_lost_its_last_layers_says_so(model, lost, said):
    tensors = {name: tensor for name, tensor in official(model, 1).items() if not re.match(lost, name)}
    report = assemble(TensorFile(golden.GOLDEN, tensors, {})).report
    assert said in report.doubts()
    assert said in str(report)


# ---- our own files


def tiny_meter() -> METER:
    torch.manual_seed(0)
    return METER(
        METERConfig(32, 16, 16, 2, 2, 16, 1, 2, 16, 1, 2, vocab_size=30, max_positions=12, bottleneck=4, skip_bottleneck=8)
    )


def tiny_vilt() -> ViLT:
    torch.manual_seed(0)
    return ViLT(ViLTConfig(32, 16, None, 16, 2, 3, vocab_size=30, max_positions=12, bottleneck=4, skip_bottleneck=8))


def batch(tokens: int = 6) -> dict[str, torch.Tensor]:
    ids = torch.arange(2 * tokens).reshape(2, tokens) + 2
    return {"image": torch.ones(2, 3, 32, 32), "input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("single", [False, True], ids=["folder", "file"])
@pytest.mark.parametrize("make", [tiny_meter, tiny_vilt])
def test_saved_model_is_equal(make, single, tmp_path):
    vlp, head = make().eval(), torch.nn.Linear(4, 2)
    path = tmp_path / ("model.safetensors" if single else "deep/model")
    save_checkpoint(path, vlp, {"itm_score": head.state_dict()}, None if single else {"tokenizer.json": "{}"})
    found = load_checkpoint(path)
    assert found.vlp.config == vlp.config
    assert (found.report.missing, found.report.unknown, found.report.unused) == ([], [], [])
    assert all(torch.equal(tensor, found.vlp.state_dict()[name]) for name, tensor in vlp.state_dict().items())
    assert torch.equal(found.heads["itm_score"]["weight"], head.weight)
    with torch.no_grad():
        assert torch.equal(found.vlp(batch()), vlp(batch()))
    if not single:
        assert sorted(p.name for p in path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
        assert json.loads((path / "config.json").read_text())["model"] in ("meter", "vilt")


@pytest.mark.parametrize("make", [tiny_meter, tiny_vilt])
def test_pruned_model_stays_pruned(make, tmp_path):
    vlp = make().eval()
    mask = np.arange(len(vlp.layers)) % 2 == 0
    vlp.prune(mask)
    save_checkpoint(tmp_path / "model", vlp)
    again = load_vlp(tmp_path / "model")
    assert again.pruned_mask.tolist() == mask.tolist()
    with torch.no_grad():
        assert torch.equal(again(batch()), vlp(batch()))


def test_model_without_parallel_adapters_can_get_them(tmp_path):
    vlp = METER(METERConfig(**{**vars(tiny_meter().config), "bottleneck": 0}))
    save_checkpoint(tmp_path / "model", vlp)
    assert load_vlp(tmp_path / "model").config.bottleneck == 0
    found = load_checkpoint(tmp_path / "model", bottleneck=5)
    assert found.vlp.config.bottleneck == 5
    assert found.report.missing
    assert all("adapter" in name and ".layer." in name for name in found.report.missing)


def test_saving_replaces_only_checkpoints(tmp_path):
    save_checkpoint(tmp_path / "model", tiny_meter())
    save_checkpoint(tmp_path / "model", tiny_vilt())
    assert isinstance(load_vlp(tmp_path / "model"), ViLT)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "config.json").write_text("{}")  # somebody else's
    with pytest.raises(FileExistsError, match="letters exists and is not a checkpoint folder; give another name"):
        save_checkpoint(tmp_path / "letters", tiny_vilt())
    with pytest.raises(ValueError, match=r"is one file and cannot hold tokenizer.json; give a folder instead"):
        save_checkpoint(tmp_path / "a.safetensors", tiny_vilt(), files={"tokenizer.json": "{}"})
    with pytest.raises(TypeError, match="a Linear cannot be saved; give one of meter, vilt"):
        save_checkpoint(tmp_path / "a", torch.nn.Linear(1, 1))


def test_failed_save_leaves_what_was_there(tmp_path):
    save_checkpoint(tmp_path / "model", tiny_meter())

    def fail(folder):
        (folder / "config.json").write_text("{}")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_folder(tmp_path / "model", fail)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert isinstance(load_vlp(tmp_path / "model"), METER)


def test_what_a_writer_left_that_was_killed_halfway_is_put_back(tmp_path, monkeypatch):
    def fail(folder):
        raise RuntimeError("disk full")

    save_checkpoint(tmp_path / "model", tiny_meter())
    (tmp_path / "model").replace(tmp_path / ".model.old")
    with pytest.raises(RuntimeError, match="disk full"):
        write_folder(tmp_path / "model", fail)
    assert isinstance(load_vlp(tmp_path / "model"), METER)
    monkeypatch.setattr(tensor_files.shutil, "rmtree", lambda *args, **kwargs: None)

    @contextlib.contextmanager
    def no_room(folder):
        (tmp_path / "fresh").mkdir()
        yield tmp_path / "fresh"
        raise OSError("no room")

    monkeypatch.setattr(tensor_files, "whole_folder", no_room)
    with pytest.raises(OSError, match="no room"):
        write_folder(tmp_path / "model", lambda folder: None)
    assert isinstance(load_vlp(tmp_path / "model"), METER)


def test_what_shapes_tell():
    assert count({"a.0.w": (1,), "a.1.w": (1,), "b.7.w": (1,)}, "a") == 2
    with pytest.raises(ValueError, match=r"a has the numbers \[0, 2\]; a whole checkpoint has 0, 1, 2, ... without a gap"):
        count({"a.0.w": (1,), "a.2.w": (1,)}, "a")
    assert [grid_side(n) for n in (2, 5, 10)] == [1, 2, 3]
    for positions in (0, 1, 4, 6):
        with pytest.raises(ValueError, match=f"{positions} image positions are not a square grid and a class token"):
            grid_side(positions)


def test_what_is_there_is_not_derived():
    itm = {"weight": torch.arange(4.0).view(2, 2), "bias": torch.arange(2.0)}
    heads = {"itm_score": itm}
    assert derive_rank_output(heads) == ["rank_output: row 1 of itm_score"]
    assert heads["rank_output"]["weight"].tolist() == [[2, 3]]
    assert derive_rank_output(heads) == []
    types = {"token_types.weight": torch.arange(4.0).view(2, 2)}
    assert len(derive_second_image(types)) == 1
    assert types["token_types.weight"].tolist() == [[0, 1], [2, 3], [2, 3]]
    assert derive_second_image(types) == []


# ---- transformers


def vilt_config():
    from transformers import ViltConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 60}
    images = {"image_size": 48, "patch_size": 16, "num_images": 2, "modality_type_vocab_size": 3}
    return ViltConfig(**sizes, **images, max_position_embeddings=20, num_labels=7, initializer_range=0.2)


def save_transformers(kind: str, folder):
    import transformers

    torch.manual_seed(3)
    model = getattr(transformers, kind)(vilt_config()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder.mkdir()
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return model


def test_transformers_folder_has_the_same_numbers(tmp_path):
    model = save_transformers("ViltForQuestionAnswering", tmp_path / "vilt")
    found = load_checkpoint(tmp_path / "vilt")
    assert found.vlp.config == ViLTConfig(48, 16, 3, 32, 4, 2, 60, 20, norm_eps=1e-12, dropout=0.0)
    assert (found.report.unknown, found.heads.keys()) == ([], {"vqa_classifier"})
    found.vlp.skippable(0).layer.attention_adapter.up.weight.data.zero_()
    for parameter in (p for name, p in found.vlp.named_parameters() if "adapter" in name):
        parameter.data.zero_()
    ids = torch.arange(12).reshape(2, 6) + 3
    attention_mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    image = torch.randn(2, 3, 64, 48)
    image[1, :, 32:] = 0
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        pixel_mask = (image.sum(1) != 0).long()
        theirs = model(input_ids=ids, attention_mask=attention_mask, pixel_values=image, pixel_mask=pixel_mask).logits
        features = found.vlp({"image": image, "input_ids": ids, "attention_mask": attention_mask})
        head = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.LayerNorm(64), torch.nn.GELU(), torch.nn.Linear(64, 7))
        head.load_state_dict(found.heads["vqa_classifier"])
        torch.testing.assert_close(head(features), theirs, atol=1e-5, rtol=1e-5)


def test_transformers_epsilon_is_that_of_every_layer_norm(tmp_path):
    model = save_transformers("ViltModel", tmp_path / "vilt")
    config = {**json.loads((tmp_path / "vilt/config.json").read_text()), "layer_norm_eps": 1e-2}
    (tmp_path / "vilt/config.json").write_text(json.dumps(config))
    found = load_checkpoint(tmp_path / "vilt").vlp
    assert {m.eps for n, m in found.named_modules() if isinstance(m, torch.nn.LayerNorm) and "adapter" not in n} == {1e-2}
    assert model.embeddings.text_embeddings.LayerNorm.eps == 1e-12


@pytest.mark.parametrize(
    ("kind", "heads"),
    [
        ("ViltForMaskedLM", {"mlm_score"}),
        ("ViltForImagesAndTextClassification", {"nlvr2_classifier"}),
        ("ViltForImageAndTextRetrieval", {"rank_output"}),
        ("ViltModel", set()),
    ],
)
def test_transformers_heads(kind, heads, tmp_path):
    model = save_transformers(kind, tmp_path / "vilt")
    found = load_checkpoint(tmp_path / "vilt")
    assert found.heads.keys() == heads
    assert found.report.unknown == []
    if kind == "ViltForMaskedLM":
        assert torch.equal(
            found.heads["mlm_score"]["decoder.weight"], model.vilt.embeddings.text_embeddings.word_embeddings.weight
        )
        assert "bias" in found.heads["mlm_score"]


def test_other_transformers_models_are_refused(tmp_path):
    save_transformers("ViltModel", tmp_path / "vilt")
    config = json.loads((tmp_path / "vilt/config.json").read_text())
    (tmp_path / "vilt/config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    with pytest.raises(
        ValueError, match="vilt: it holds a vilt model with relu; of transformers' models only ViLT with gelu is read"
    ):
        load_checkpoint(tmp_path / "vilt")


# ---- the command


def test_convert(tmp_path, capsys):
    main(["with", f"source={golden.GOLDEN / 'vilt_tiny.ckpt'}", f"out={tmp_path / 'vilt'}", "num_heads=4"])
    assert "unused (1): text_embeddings.position_ids\nunknown (0): -\nwritten to" in capsys.readouterr().out
    found, original = load_checkpoint(tmp_path / "vilt"), golden.loaded("vilt")
    assert (found.report.missing, found.heads.keys()) == ([], ALL_HEADS)
    assert torch.equal(found.search["das_gate"], original.search["das_gate"])
    assert all(torch.equal(t, found.vlp.state_dict()[name]) for name, t in original.vlp.state_dict().items())


def test_converted_pretraining_file_still_lacks_its_adapters(tmp_path):
    source = str(golden.GOLDEN / "meter_pretrain_tiny.ckpt")
    heads = ["num_heads=4", "text_heads=4"]
    for target in ("first.safetensors", "second.safetensors"):
        main(["with", f"source={source}", f"out={tmp_path / target}", *heads])
        source, heads = str(tmp_path / target), []
    assert (tmp_path / "first.safetensors").read_bytes() == (tmp_path / "second.safetensors").read_bytes()
    assert len(load_checkpoint(tmp_path / "second.safetensors").report.missing) == 288


@pytest.mark.slow
def test_convert_as_a_command_reports_errors(tmp_path):
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "adapt",
        "convert",
        "with",
        f"source={tmp_path / 'none.ckpt'}",
        f"out={tmp_path / 'out'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: no checkpoint at {tmp_path / 'none.ckpt'}; give an official .ckpt file")
    assert list(tmp_path.iterdir()) == []


# ---- refused


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


class Callback:
    """As Lightning's checkpoints hold them: a class as a key."""


def refused(path, match, **arguments):
    with pytest.raises(ValueError, match=match) as caught:
        load_checkpoint(path, **arguments)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
def test_load_checkpoint_executes_no_pickle(form, tmp_path):
    content, path = {"state_dict": {"a": torch.ones(2)}, "extra": Evil(str(tmp_path / "pwned"))}, tmp_path / "evil.ckpt"
    if form == "bare":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    if form == "zip":
        assert torch.equal(read_tensors(path).tensors["a"], torch.ones(2))
    else:
        refused(path, "is damaged or holds more than tensors and plain values")
    assert not (tmp_path / "pwned").exists()


def test_load_checkpoint_reads_lightning_files(tmp_path):
    """METER's and ViLT's own files hold callbacks as keys and Sacred's read-only containers."""
    from sacred.config.custom_containers import make_read_only

    state = torch.load(golden.GOLDEN / "vilt_tiny.ckpt", weights_only=True)["state_dict"]
    config = make_read_only({"exp_name": "vqa", "loss_names": {"vqa": 1}, "datasets": ["vqa"]})
    extra = {"callbacks": {Callback: {"monitor": "x"}, io.StringIO: {1, 2}}, "hyper_parameters": {"config": config}}
    torch.save({**extra, "state_dict": state}, tmp_path / "lightning.ckpt")
    assert load_checkpoint(tmp_path / "lightning.ckpt", num_heads=4).report.missing == []
    found = load_plain(tmp_path / "lightning.ckpt")["hyper_parameters"]["config"]
    assert found == config
    assert type(found) is dict


class Attributes(dict):
    """As Lightning's own container of hyperparameters."""


@pytest.mark.parametrize(
    "value", [Attributes(a=1), np.float64(1), np.arange(3), functools.partial(print, "ran"), Path("a"), Callback(), print]
)
def test_load_plain_imports_no_class(value, tmp_path, capsys):
    torch.save({"state_dict": {"a": torch.arange(3.0)}, "x": value}, tmp_path / "a.ckpt")
    found = load_plain(tmp_path / "a.ckpt")
    assert torch.equal(found["state_dict"]["a"], torch.arange(3.0))
    assert type(found["x"]) is not type(value)
    assert not capsys.readouterr().out


class Numbers(list):
    """A list, but no plain one."""


def test_load_plain_says_how_to_convert_a_file(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(1)}, "x": Numbers([1])}, tmp_path / "a.ckpt")
    refused(tmp_path / "a.ckpt", r"Can only append to lists.*save its state_dict by safetensors\.torch\.save_file")


def call(module, name, *arguments):
    """The bytes of a pickle that calls a function."""
    words = b"".join(b"X" + len(a).to_bytes(4, "little") + a.encode() for a in arguments)
    return f"c{module}\n{name}\n(".encode() + words + b"tR"


@pytest.mark.parametrize(("module", "name"), [("posix", "system"), ("builtins", "exec"), ("torch", "load")])
def test_load_checkpoint_calls_no_function(module, name, tmp_path):
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {"a": 1}}, tmp_path / "good.ckpt")
    harm = b"\x80\x02" + call(module, name, f"touch {tmp_path}/pwned") + b"."
    repacked(tmp_path / "good.ckpt", path, lambda name, content: (name, harm if name.endswith("data.pkl") else content))
    with pytest.raises(ValueError, match=r"evil\.ckpt (holds no state_dict|is damaged)") as caught:
        load_checkpoint(path)
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()


class Scripted(torch.nn.Module):
    """A program of TorchScript that writes a file when it is loaded."""

    def __init__(self, mark: str):
        super().__init__()
        self.mark = mark

    @torch.jit.export
    def __getstate__(self):
        return self.mark, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]):
        self.mark, self.training = state
        torch.save(torch.zeros(2), self.mark)

    def forward(self, x):
        return x


def repacked(source, target, change=lambda name, content: (name, content)):
    """A copy of an archive, not compressed, with other records."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(*change(name, old.read(name)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("record", ["constants.pkl", "Constants.PKL", "deep/constants.pkl"])
def test_load_checkpoint_refuses_torchscript(record, tmp_path):
    mark, path = tmp_path / "mark.pt", tmp_path / "evil.ckpt"
    torch.jit.script(Scripted(str(mark))).save(str(tmp_path / "program.pt"))
    mark.unlink(missing_ok=True)
    repacked(tmp_path / "program.pt", path, lambda name, content: (name.replace("constants.pkl", record), content))
    refused(path, r"evil\.ckpt (holds no state_dict|is damaged or holds more than tensors)")
    assert not mark.exists()


def test_archives_of_every_kind_that_torch_writes(tmp_path):
    tensors = {
        "a": torch.arange(6.0).view(2, 3).T,
        "b": torch.arange(3),
        "c": torch.ones(0, 2),
        "d": torch.ones(2).bfloat16(),
    }
    tensors |= {"e": tensors["b"], "f": tensors["b"][1:]}  # of one storage
    path = tmp_path / "a.ckpt"
    torch.save(tensors, path)
    repacked(path, tmp_path / "big.ckpt", lambda name, b: (name, b"big" if name.endswith("byteorder") else b))
    for name in ("a.ckpt", "big.ckpt"):
        read, right = read_tensors(tmp_path / name).tensors, torch.load(tmp_path / name)
        assert all(torch.equal(read[key], right[key]) and read[key].dtype == right[key].dtype for key in tensors)
        assert len({read[key].data_ptr() for key in "bef"}) == 3


def test_an_archive_without_checksums(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(3.0)}, tmp_path / "a.ckpt")
    finally:
        torch.serialization.set_crc32_options(True)
    file = read_tensors(tmp_path / "a.ckpt")
    assert torch.equal(file.tensors["a"], torch.arange(3.0))
    assert not file.checked


def test_records_one_over_the_other_take_no_time(tmp_path):
    """To compare each with its checksum took as long as there are records."""
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", bytes(2**20))
        archive.filelist += 10_000 * archive.filelist
    began = time.process_time()
    refused(path, "a.ckpt is damaged: its records have more bytes than the file")
    assert time.process_time() - began < 2


def test_a_checksum_is_of_names_shapes_types_and_config():
    one, two = torch.zeros(4), torch.ones(4)
    sums = [
        checksum(*given)
        for given in (
            ({"a": one, "b": two}, {}),
            ({"a": two, "b": one}, {}),
            ({"a": one.view(2, 2), "b": two}, {}),
            ({"a": one.view(torch.int32), "b": two}, {}),
            ({"a": one, "b": two}, {"n": 1}),
        )
    ]
    assert len(set(sums)) == len(sums)
    assert sums[1] == checksum({"b": one, "a": two}, {})


def test_damaged_files(tmp_path):
    whole = (golden.GOLDEN / "vilt_tiny.ckpt").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    contents = {
        "half.ckpt": whole[: len(whole) // 2],
        "flipped.ckpt": bytes(flipped),
        "empty.ckpt": b"",
        "page.ckpt": b"<html>404</html>",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, r"is damaged.*[Cc]opy or download it again", num_heads=4)
    write_whole = tmp_path / "whole.safetensors"
    save_checkpoint(write_whole, tiny_vilt())
    (tmp_path / "half.safetensors").write_bytes(write_whole.read_bytes()[:5000])
    refused(tmp_path / "half.safetensors", "is not a whole safetensors file")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1, 2], "holds no state_dict: got a list"),
        ({"state_dict": {}}, "holds no state_dict"),
        ({"state_dict": {"a": [1]}}, "its entry 'a' is a list; only plain dense tensors"),
        (
            {"state_dict": {"a": torch.ones(1).expand(10**12)}},
            r"a of shape \(1000000000000,\) needs 4000000000000 bytes, more than",
        ),
        (
            {"state_dict": {"a": torch.ones(2, device="meta")}},
            "'a' is a Tensor; only plain dense tensors",
        ),
        ({"state_dict": {"a": torch.eye(2).to_sparse()}}, "'a' is a Tensor; only plain dense tensors"),
        ({"state_dict": {"a": torch.ones(2)}}, "is of no known kind .its tensors: a, ...."),
    ],
)
def test_odd_content(content, match, tmp_path):
    torch.save(content, tmp_path / "odd.ckpt")
    refused(tmp_path / "odd.ckpt", match)


@pytest.fixture(scope="module")
def small_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    tensors = {"a": torch.arange(64.0), "b.c": torch.ones(2, 3)}
    torch.save({"state_dict": tensors}, folder / "zip.ckpt")
    torch.save({"state_dict": tensors}, folder / "legacy.ckpt", _use_new_zipfile_serialization=False)
    return folder


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(["zip.ckpt", "legacy.ckpt"]), place=st.floats(0, 1, exclude_max=True), flip=st.integers(0, 255))
def test_any_damage_is_a_value_error_or_harmless(small_files, name, place, flip):
    """`flip` 0 cuts the file at the place, anything else changes the byte there."""
    whole = bytearray((small_files / name).read_bytes())
    at = int(place * len(whole))
    if flip:
        whole[at] ^= flip
    else:
        del whole[at:]
    path = small_files / f"damaged_{name}"
    path.write_bytes(whole)
    error = None
    try:
        tensors = read_tensors(path).tensors
    except ValueError as caught:
        error = str(caught)
    if error is not None:
        assert str(path) in error
    elif name == "zip.ckpt" and set(tensors) == {"a", "b.c"}:  # checksums guard the content
        assert torch.equal(tensors["a"].flatten(), torch.arange(64.0))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["pooler.dense.weight", "vqa_classifier.0.weight"])
def test_weights_that_are_not_numbers_are_named(name, value, tmp_path):
    shape = torch.load(golden.GOLDEN / "vilt_tiny.ckpt", weights_only=True)["state_dict"].get(name, torch.ones(3, 3)).shape
    tensor = torch.zeros(shape)
    tensor[-1, -1] = value
    refused(
        changed(tmp_path, **{name: tensor}), f"weight has 1 values of {tensor.numel()} that are NaN or infin", num_heads=4
    )


def test_what_we_wrote_tells_a_changed_byte_and_what_others_wrote_is_said_not_to(tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", tiny_vilt())
    assert "no checksums" not in str(load_checkpoint(tmp_path / "a.safetensors").report)
    whole = bytearray((tmp_path / "a.safetensors").read_bytes())
    whole[-1] ^= 1
    (tmp_path / "a.safetensors").write_bytes(whole)
    refused(tmp_path / "a.safetensors", "is damaged: its checksum is another one")
    content = torch.load(golden.GOLDEN / "vilt_tiny.ckpt", weights_only=True)
    torch.save(content, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    save_file(content["state_dict"], tmp_path / "theirs.safetensors")
    for name in ("old.ckpt", "theirs.safetensors"):
        said = str(load_checkpoint(tmp_path / name, num_heads=4).report)
        assert said.endswith("it holds no checksums: a byte of it that has changed could not be told")


def test_a_record_marked_as_a_folder_is_damage(tmp_path):
    path = tmp_path / "marked.ckpt"
    torch.save({"state_dict": {"a": torch.arange(64.0)}}, path)
    whole = bytearray(path.read_bytes())
    name = whole.rindex(b"marked/data/0")
    whole[name - 46 + 38] ^= 0x10  # the external attributes in its entry of the directory
    path.write_bytes(whole)
    refused(path, "is damaged: record marked/data/0 is marked as a folder")


def changed(tmp_path, **tensors):
    state = torch.load(golden.GOLDEN / "vilt_tiny.ckpt", weights_only=True)["state_dict"]
    for name, tensor in tensors.items():
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor
    torch.save({"state_dict": state}, tmp_path / "changed.ckpt")
    return tmp_path / "changed.ckpt"


def test_names_without_a_place_are_reported(tmp_path):
    found = load_checkpoint(changed(tmp_path, **{"transformer.blocks.3.gamma": torch.ones(2)}), num_heads=4)
    assert found.report.unknown == ["transformer.blocks.3.gamma"]
    assert "unknown (1): transformer.blocks.*.gamma" in str(found.report)


def test_missing_frozen_parameters_are_refused(tmp_path):
    path = changed(tmp_path, **{"transformer.blocks.3.mlp.fc1.weight": None})
    refused(
        path, r"lacks 1 frozen parameters \(blocks.3.layer.mlp_in.weight\); it is not a whole ViLT checkpoint", num_heads=4
    )


def test_missing_trained_parameters_are_reported(tmp_path):
    path = changed(tmp_path, **{"pooler.dense.bias": None})
    assert load_checkpoint(path, num_heads=4).report.missing == ["pooler.bias"]


BLOCKS = "transformer.blocks"


@pytest.mark.parametrize(
    ("name", "tensor", "match"),
    [
        ("pooler.dense.weight", torch.ones(64, 63), r"pooler\.dense\.weight is \(64, 63\) .*pooler\.weight is \(64, 64\)"),
        ("pooler.dense.bias", torch.ones(64, dtype=torch.long), r"pooler\.dense\.bias is \(64,\) torch\.int64, but"),
        (f"{BLOCKS}.0.attn.qkv.weight", torch.ones(191, 64), r"of shape \(191, 64\) cannot be split into 3 equal parts"),
        (f"{BLOCKS}.14.norm1.weight", torch.ones(64), r"blocks has the numbers .*14\]; a whole checkpoint has 0, 1, 2"),
        ("transformer.pos_embed", torch.ones(1, 16, 64), "16 image positions are not a square grid and a class token"),
        ("transformer.pos_embed", torch.ones(1), "tuple index out of range"),
        ("transformer.patch_embed.proj.weight", None, r"lacks the tensor 'transformer\.patch_embed\.proj\.weight'"),
        (
            "transformer.patch_embed.proj.weight",
            torch.ones(64, 3, 16, 0),
            "image_size=0 is not allowed",
        ),
    ],
)
def test_tensors_that_do_not_fit(name, tensor, match, tmp_path):
    refused(changed(tmp_path, **{name: tensor}), match, num_heads=4)


def test_settings(tmp_path):
    path = golden.GOLDEN / "meter_tiny.ckpt"
    refused(
        path,
        r"does not tell the number of attention heads: give load_checkpoint num_heads= \(a divisor of 64\)",
    )
    refused(path, "unknown config field 'num_head'; did you mean num_heads", num_head=4)
    refused(path, "hidden_size=32 contradicts .* whose hidden_size is 64; leave it out", hidden_size=32)
    refused(path, "image_size=50 is not a multiple of patch_size=16", num_heads=4, text_heads=4, image_size=50)
    with pytest.raises(ValueError, match="image_size=-16 is no size; give a multiple of the patch size"):
        load_checkpoint(path, num_heads=4, text_heads=4, image_size=-16)
    refused(
        path,
        r"image_size=16000000 is not allowed; use a whole number, 1\.\.8192",
        **golden.HEADS["meter"],
        image_size=16_000_000,
    )
    assert load_vlp(path, num_heads=4, text_heads=2, dropout=0.0).config.text_heads == 2


def test_pictures_of_more_patches_than_any_model_reads():
    """To make room for their positions failed in torch."""
    with pytest.raises(ValueError, match="image_size=8192 with patch_size=8 has more than 512 patches a side"):
        METERConfig(image_size=8192, patch_size=8)
    with pytest.raises(ValueError, match="image_size=8192 with patch_size=8 has more than 512 patches a side"):
        ViLTConfig(image_size=8192, patch_size=8)


@pytest.mark.parametrize(
    ("setting", "value", "text"),
    [
        ("bottleneck", -3, "bottleneck=-3 is not allowed; use a whole number, 0..16384"),
        ("bottleneck", 16_000_000, "bottleneck=16000000 is not allowed; use a whole number, 0..16384"),
        ("bottleneck", 8.5, "bottleneck=8.5 is not allowed; use a whole number"),
        ("skip_bottleneck", -1, "skip_bottleneck=-1 is not allowed; use a whole number, 0.."),
        ("bottleneck", 0, "adapter.*, for which a model of these sizes has no place: leave out bottleneck="),
        ("bottleneck", 5, r"adapter.* is \(\d+.*but the model's"),
        ("dropout", float("nan"), "dropout=nan is not allowed; use 0..1"),
        ("dropout", 1.5, "dropout=1.5 is not allowed; use 0..1"),
    ],
)
@pytest.mark.parametrize("name", ["meter", "vilt"])
def test_settings_that_no_model_has(name, setting, value, text):
    refused(golden.GOLDEN / f"{name}_tiny.ckpt", text, **golden.HEADS[name], **{setting: value})


@pytest.mark.parametrize(("name", "field"), [("meter", "fusion_layers"), ("vilt", "num_layers")])
def test_a_config_that_would_build_for_ever(name, field, tmp_path):
    save_checkpoint(tmp_path / "model", tiny_meter() if name == "meter" else tiny_vilt())
    config = json.loads((tmp_path / "model/config.json").read_text())
    config["config"][field] = 300_000
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    refused(tmp_path / "model", f"{field}=300000 is not allowed; use a whole number, 1..512")


def test_a_config_with_fewer_layers_than_its_file(tmp_path):
    save_checkpoint(tmp_path / "model", tiny_vilt())
    config = json.loads((tmp_path / "model/config.json").read_text())
    config["config"]["num_layers"] = 2
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    refused(tmp_path / "model", "holds blocks.*layer.*, for which a model of these sizes has no place")


def test_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nothing; give an official \.ckpt file"):
        load_checkpoint(tmp_path / "nothing")
    needed = r"needs config\.json and one of model\.safetensors, pytorch_model\.bin; it holds nothing"
    with pytest.raises(FileNotFoundError, match=needed):
        load_checkpoint(tmp_path)
    save_checkpoint(tmp_path / "model", tiny_vilt())
    config = tmp_path / "model/config.json"
    for text, match in (
        ("{", "config.json is not valid JSON"),
        ("[]", "config.json holds a JSON list, not an object"),
        ('{"model": "clip", "config": {}}', "holds the model 'clip' with the config {}; known are meter, vilt"),
        ('{"model": "vilt", "config": {"hiden_size": 3}}', "unknown config field 'hiden_size'; did you mean hidden_size"),
        ('{"model": "vilt", "config": {"hidden_size": "x"}}', "hidden_size='x' is no number; give one"),
        ('{"model": "vilt", "config": {}}', "but the model's"),
    ):
        config.write_text(text)
        with pytest.raises(ValueError, match=match):
            load_checkpoint(tmp_path / "model")


def test_safetensors_with_official_names(tmp_path):
    state = torch.load(golden.GOLDEN / "vilt_tiny.ckpt", weights_only=True)["state_dict"]
    save_file(state, tmp_path / "official.safetensors")
    assert load_checkpoint(tmp_path / "official.safetensors", num_heads=4).report.title == "ViLT checkpoint"


def test_rules_know_every_name_once():
    names = [METER_FORMAT.our_names(name) for name in official("meter", 1)]
    flat = [name for group in names if group for name in group]
    assert len(flat) == len(set(flat))
    assert sum(name.startswith(HEADS) for name in flat) == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["meter", "vilt"])
def test_saving_and_loading_as_transformers_has_it(name, tmp_path):
    vlp = golden.fresh(name)
    vlp.prune([index in (1, 7) for index in range(12)])
    vlp.save_pretrained(tmp_path / "mine")
    again = type(vlp).from_pretrained(tmp_path / "mine")
    assert again.pruned_mask.tolist() == vlp.pruned_mask.tolist()
    for key, tensor in vlp.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor)
    other = {"meter": ViLT, "vilt": METER}[name]
    with pytest.raises(ValueError, match=f"holds a {type(vlp).__name__}: load it by {type(vlp).__name__}.from_pretrained"):
        other.from_pretrained(tmp_path / "mine")
