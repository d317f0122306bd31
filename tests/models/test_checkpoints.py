"""Official checkpoints of METER and ViLT, transformers' folders, our own files, and rejected files."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from das_gym.models.checkpoints import load_checkpoint, save_checkpoint
from das_gym.models.meter.model import METER, METER_FORMAT
from das_gym.models.meter.network import METERConfig
from das_gym.models.tensor_files import TensorFile, checksum, load_plain, read_tensors
from das_gym.models.vilt.model import ViLT
from das_gym.models.vilt.network import ViLTConfig
from tests.evil import Evil
from tests.models import golden_cases as golden

VILT_TINY = golden.GOLDEN / "vilt_tiny.ckpt"
PRETRAINED = golden.GOLDEN / "meter_pretrain_tiny.ckpt"


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


def refused(path: Path, match: str, **arguments: object) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        load_checkpoint(path, **arguments)
    assert str(path) in str(caught.value)


def changed(tmp_path: Path, **tensors: torch.Tensor | None) -> Path:
    """The tiny ViLT's file with other tensors; None removes one."""
    state = torch.load(VILT_TINY, weights_only=True)["state_dict"] | tensors
    torch.save(
        {"state_dict": {name: tensor for name, tensor in state.items() if tensor is not None}}, tmp_path / "changed.ckpt"
    )
    return tmp_path / "changed.ckpt"


# ---- official files at full size


@pytest.mark.parametrize(("section", "image_size"), [(0, 384), (1, None)])
def test_load_places_every_official_meter_name(section, image_size):
    found = load_checkpoint(TensorFile(golden.GOLDEN, official("meter", section), {}), image_size=image_size)
    report = found.report
    assert found.vlp.config == METERConfig(image_size=image_size or 288)
    assert report.unknown == ([] if section == 0 else ["skip_num", "das_gate"])  # the result of a search is not read
    adapters = {name for name in found.vlp.state_dict() if "adapter" in name}
    if section == 0:
        assert found.heads.keys() == {"itm_score", "mlm_score", "rank_output"}
        assert set(report.missing) == adapters
    else:
        assert found.heads.keys() == {"vqa_classifier"}
        assert report.missing == []
        parallel = sum(p.numel() for name, p in found.vlp.named_parameters() if ".layer." in name and "adapter" in name)
        assert parallel == 36 * (2 * 768 * 96 + 96 + 3 * 768)  # as published


@pytest.mark.parametrize("section", [0, 1])
def test_load_places_every_official_vilt_name(section):
    found = load_checkpoint(TensorFile(golden.GOLDEN, official("vilt", section), {}))
    assert found.vlp.config == ViLTConfig(position_grid=12)
    assert found.report.unknown == (["skip_num", "das_gate"] if section else [])
    assert set(found.report.missing) == (set() if section else {n for n in found.vlp.state_dict() if "adapter" in n})
    assert ("mlm_score" in found.heads) == (section == 0)


def test_load_rejects_streams_of_different_depth():
    tensors = {k: v for k, v in official("meter", 0).items() if not k.startswith("cross_modal_image_layers.5.")}
    with pytest.raises(ValueError, match="6 text and 5 image"):
        load_checkpoint(TensorFile(golden.GOLDEN, tensors, {}))


# ---- what the reference derives from a pre-training file


@pytest.fixture(scope="module")
def pretrained():
    generator = torch.Generator().manual_seed(5)
    return load_checkpoint(
        PRETRAINED, image_size=40, num_heads=4, text_heads=4, generator=generator, heads=("vqa_classifier",)
    )


def test_derived_tensors_equal_the_reference(pretrained):
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


def test_missing_adapters_start_as_in_the_reference(pretrained):
    left = json.loads((golden.GOLDEN / "meter_pretrain_keys.json").read_text())["keys_left_at_init"]
    expected = {METER_FORMAT.our_names(name)[0] for name in left if "adapter" in name}
    assert set(pretrained.report.missing) == expected | {"vqa_classifier"}
    state = pretrained.vlp.state_dict()
    new = {name: state[name] for name in expected}
    weights = torch.cat([t.flatten() for name, t in new.items() if name.endswith((".down.weight", ".up.weight"))])
    assert abs(float(weights.mean())) < 1e-3
    assert float(weights.std()) == pytest.approx(0.02, rel=0.01)
    assert all(bool((t == (1 if name.endswith("norm.weight") else 0)).all()) for name, t in new.items() if t.ndim == 1)
    generator = torch.Generator().manual_seed(5)
    again = load_checkpoint(PRETRAINED, image_size=40, num_heads=4, text_heads=4, generator=generator).vlp.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in state.items())


def test_load_checkpoint_converts_to_float32(tmp_path):
    state = torch.load(VILT_TINY, weights_only=True)["state_dict"]
    torch.save(
        {"state_dict": {name: t.half() if t.is_floating_point() else t for name, t in state.items()}}, tmp_path / "half.ckpt"
    )
    vlp = load_checkpoint(tmp_path / "half.ckpt", num_heads=4).vlp
    assert {p.dtype for p in vlp.parameters()} == {torch.float32}
    torch.testing.assert_close(vlp.pooler.weight, state["pooler.dense.weight"].half().float())


# ---- our own files


def tiny_meter() -> METER:
    torch.manual_seed(0)
    return METER(
        METERConfig(32, 16, 16, 2, 2, 16, 1, 2, 16, 1, 2, vocab_size=30, max_positions=12, bottleneck=4, skip_bottleneck=8)
    )


def tiny_vilt() -> ViLT:
    torch.manual_seed(0)
    return ViLT(ViLTConfig(32, 16, None, 16, 2, 3, vocab_size=30, max_positions=12, bottleneck=4, skip_bottleneck=8))


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("make", [tiny_meter, tiny_vilt])
@pytest.mark.parametrize("prune", [False, True])
def test_saved_model_is_equal(make, prune, tmp_path):
    vlp, head = make().eval(), torch.nn.Linear(4, 2)
    if prune:
        vlp.prune(np.arange(len(vlp.layers)) % 2 == 0)
    path = tmp_path / "deep" / "model"
    save_checkpoint(path, vlp, {"itm_score": head.state_dict()}, {"tokenizer.json": "{}"})
    found = load_checkpoint(path)
    assert found.vlp.config == vlp.config
    assert (found.report.missing, found.report.unknown) == ([], [])
    assert torch.equal(found.heads["itm_score"]["weight"], head.weight)
    ids = torch.arange(12).reshape(2, 6) + 2
    batch = {"image": torch.ones(2, 3, 32, 32), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        assert torch.equal(found.vlp(batch), vlp(batch))
    if prune:
        assert found.vlp.pruned_mask.tolist() == vlp.pruned_mask.tolist()
    assert sorted(p.name for p in path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert load_checkpoint(path / "model.safetensors").vlp.config == vlp.config  # the file alone


def test_save_checkpoint_writes_a_new_folder_or_none(tmp_path):
    save_checkpoint(tmp_path / "model", tiny_meter())
    with pytest.raises(FileExistsError, match="model"):
        save_checkpoint(tmp_path / "model", tiny_vilt())
    with pytest.raises(TypeError, match="got a Linear, expected one of meter, vilt"):
        save_checkpoint(tmp_path / "a", torch.nn.Linear(1, 1))
    with pytest.raises(FileNotFoundError):
        save_checkpoint(tmp_path / "b", tiny_vilt(), files={"no/such/folder.json": ""})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# ---- transformers


def save_transformers(kind: str, folder: Path):
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 60}
    images = {"image_size": 48, "patch_size": 16, "num_images": 2, "modality_type_vocab_size": 3}
    config = transformers.ViltConfig(**sizes, **images, max_position_embeddings=20, num_labels=7)
    torch.manual_seed(3)
    model = getattr(transformers, kind)(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    folder.mkdir()
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return model


def test_transformers_folder_gives_equal_logits(tmp_path):
    model = save_transformers("ViltForQuestionAnswering", tmp_path / "vilt")
    found = load_checkpoint(tmp_path / "vilt")
    assert found.vlp.config == ViLTConfig(48, 16, 3, 32, 4, 2, 60, 20, norm_eps=1e-12, dropout=0.0)
    assert (found.report.unknown, found.heads.keys()) == ([], {"vqa_classifier"})
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


@pytest.mark.parametrize(
    ("kind", "heads"),
    [
        ("ViltForMaskedLM", {"mlm_score"}),
        ("ViltForImagesAndTextClassification", {"nlvr2_classifier"}),
        ("ViltForImageAndTextRetrieval", {"rank_output"}),
    ],
)
def test_transformers_heads_are_found(kind, heads, tmp_path):
    model = save_transformers(kind, tmp_path / "vilt")
    edit_config(tmp_path / "vilt", layer_norm_eps=1e-2)
    found = load_checkpoint(tmp_path / "vilt")
    assert (found.heads.keys(), found.report.unknown) == (heads, [])
    epsilons = {m.eps for n, m in found.vlp.named_modules() if isinstance(m, torch.nn.LayerNorm) and "adapter" not in n}
    assert epsilons == {1e-2}
    if kind == "ViltForMaskedLM":
        words = model.vilt.embeddings.text_embeddings.word_embeddings.weight
        assert torch.equal(found.heads["mlm_score"]["decoder.weight"], words)
        assert "bias" in found.heads["mlm_score"]


def test_transformers_folder_with_another_activation_is_rejected(tmp_path):
    save_transformers("ViltModel", tmp_path / "vilt")
    edit_config(tmp_path / "vilt", hidden_act="relu")
    refused(tmp_path / "vilt", "relu")


# ---- pickles


class Callback:
    """As Lightning's checkpoints hold them: a class as a key."""


class Attributes(dict):
    """As Lightning's own container of hyperparameters."""


@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
def test_load_checkpoint_executes_no_pickle(form, tmp_path):
    content, path = {"state_dict": {"a": torch.ones(2)}, "extra": Evil(tmp_path / "pwned")}, tmp_path / "evil.ckpt"
    if form == "bare":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    if form == "zip":
        assert torch.equal(read_tensors(path).tensors["a"], torch.ones(2))
    else:
        refused(path, "damaged")
    assert not (tmp_path / "pwned").exists()


def test_load_checkpoint_reads_lightning_files(tmp_path):
    """METER's and ViLT's own files hold callbacks as keys and Sacred's read-only containers."""
    from sacred.config.custom_containers import make_read_only

    state = torch.load(VILT_TINY, weights_only=True)["state_dict"]
    config = make_read_only({"exp_name": "vqa", "loss_names": {"vqa": 1}, "datasets": ["vqa"]})
    extra = {"callbacks": {Callback: {"monitor": "x"}, io.StringIO: {1, 2}}, "hyper_parameters": {"config": config}}
    torch.save({**extra, "state_dict": state}, tmp_path / "lightning.ckpt")
    assert load_checkpoint(tmp_path / "lightning.ckpt", num_heads=4).report.missing == []
    found = load_plain(tmp_path / "lightning.ckpt")["hyper_parameters"]["config"]
    assert found == config
    assert type(found) is dict


@pytest.mark.parametrize("value", [Attributes(a=1), print])
def test_load_plain_imports_no_class(value, tmp_path, capsys):
    torch.save({"state_dict": {"a": torch.arange(3.0)}, "x": value}, tmp_path / "a.ckpt")
    found = load_plain(tmp_path / "a.ckpt")
    assert torch.equal(found["state_dict"]["a"], torch.arange(3.0))
    assert type(found["x"]) is not type(value)
    assert not capsys.readouterr().out


def repacked(source: Path, target: Path, change=lambda name, content: (name, content)) -> None:
    """Copy an archive, not compressed, with other records."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(*change(name, old.read(name)))


# ---- archives and damage


def test_read_tensors_reads_every_kind_of_archive(tmp_path):
    tensors = {
        "a": torch.arange(6.0).view(2, 3).T,
        "b": torch.arange(3),
        "c": torch.ones(0, 2),
        "d": torch.ones(2).bfloat16(),
    }
    tensors |= {"e": tensors["b"], "f": tensors["b"][1:]}  # of one storage
    torch.save(tensors, tmp_path / "a.ckpt")
    repacked(tmp_path / "a.ckpt", tmp_path / "big.ckpt", lambda name, b: (name, b"big" if name.endswith("byteorder") else b))
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tensors, tmp_path / "unchecked.ckpt")
    finally:
        torch.serialization.set_crc32_options(True)
    for name in ("a.ckpt", "big.ckpt", "unchecked.ckpt"):
        read, right = read_tensors(tmp_path / name).tensors, torch.load(tmp_path / name)
        assert all(torch.equal(read[key], right[key]) and read[key].dtype == right[key].dtype for key in tensors)
        assert len({read[key].data_ptr() for key in "bef"}) == 3


def test_checksum_depends_on_names_shapes_types_and_config():
    one, two = torch.zeros(4), torch.ones(4)
    others = [{"a": two, "b": one}, {"a": one.view(2, 2), "b": two}, {"a": one.view(torch.int32), "b": two}]
    sums = {checksum(tensors, {}) for tensors in ({"a": one, "b": two}, *others)} | {
        checksum({"a": one, "b": two}, {"n": 1})
    }
    assert len(sums) == 5
    assert checksum({"b": one, "a": two}, {}) in sums


def test_changed_byte_in_our_file_is_damage(tmp_path):
    save_checkpoint(tmp_path / "model", tiny_vilt())
    file = tmp_path / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    refused(file, "damaged")
    file.write_bytes(content[:5000])
    refused(file, "safetensors")


@pytest.mark.parametrize("how", ["compressed", "overlapping"])
def test_archive_that_unpacks_to_more_than_it_has_is_damage(how, tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(10_000)}}, tmp_path / "a.ckpt")
    if how == "compressed":
        with (
            zipfile.ZipFile(tmp_path / "a.ckpt") as old,
            zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as new,
        ):
            for name in old.namelist():
                new.writestr(name, old.read(name))
    else:  # two records of the same bytes
        with zipfile.ZipFile(tmp_path / "a.ckpt", "a") as archive:
            archive.filelist.append(max(archive.filelist, key=lambda record: record.file_size))
            archive._didModify = True
        (tmp_path / "a.ckpt").rename(tmp_path / "b.ckpt")
    refused(tmp_path / "b.ckpt", "compressed records|more bytes than the file")


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"state_dict": {"a": [1]}},
        {"state_dict": {"a": torch.ones(1).expand(10**12)}},
        {"state_dict": {"a": torch.ones(2)}},
    ],
)
def test_load_checkpoint_rejects_other_content(content, tmp_path):
    torch.save(content, tmp_path / "odd.ckpt")
    refused(tmp_path / "odd.ckpt", "odd")


# ---- names, shapes and settings that do not fit


def test_load_report_names_unknown_and_missing_tensors(tmp_path):
    path = changed(tmp_path, **{"transformer.blocks.3.gamma": torch.ones(2), "pooler.dense.bias": None})
    report = load_checkpoint(path, num_heads=4).report
    assert (report.unknown[2:], report.missing) == (["transformer.blocks.3.gamma"], ["pooler.bias"])
    assert "its skip_num, das_gate, transformer.blocks.*.gamma are not used" in report.describe_problems()


INFINITE = torch.full((64, 64), torch.inf)


@pytest.mark.parametrize(
    ("name", "tensor", "match"),
    [
        ("transformer.blocks.3.mlp.fc1.weight", None, "frozen"),
        ("pooler.dense.bias", torch.ones(64, dtype=torch.long), "pooler.dense.bias"),
        ("transformer.blocks.0.attn.qkv.weight", torch.ones(191, 64), "attn.qkv.weight"),
        ("transformer.patch_embed.proj.weight", None, "patch_embed.proj.weight"),
        ("transformer.blocks.14.norm1.weight", torch.ones(64), "gap"),
        ("transformer.pos_embed", torch.ones(1, 16, 64), "16"),
        ("pooler.dense.weight", INFINITE, r"pooler.weight has 4096 NaN or infinite values of 4096"),
        ("vqa_classifier.0.weight", INFINITE, "vqa_classifier.0.weight has 4096"),
    ],
)
def test_load_checkpoint_rejects_tensors_that_do_not_fit(name, tensor, match, tmp_path):
    refused(changed(tmp_path, **{name: tensor}), match, num_heads=4)


@pytest.mark.parametrize(
    "given",
    [{"num_heads": None}, {"num_head": 4}, {"num_heads": 7}, {"hidden_size": 32}, {"bottleneck": 0}],
)
def test_load_checkpoint_rejects_settings_that_do_not_fit(given):
    arguments = {name: value for name, value in (golden.HEADS["meter"] | given).items() if value is not None}
    refused(golden.GOLDEN / "meter_tiny.ckpt", next(iter(given)), **arguments)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model": "clip", "config": {}}, "expected one of meter, vilt"),
        ({"config": {}}, "does not fit|have no place|frozen"),
        ({"config": {"num_layers": 300_000}}, "`num_layers`"),
    ],
)
def test_load_checkpoint_rejects_a_config_that_does_not_fit(tmp_path, changes, match):
    save_checkpoint(tmp_path / "model", tiny_vilt())
    edit_config(tmp_path / "model", **changes)
    refused(tmp_path / "model", match)


def test_load_checkpoint_rejects_folders_without_a_model(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(FileNotFoundError):
            load_checkpoint(path)
    save_checkpoint(tmp_path / "model", tiny_vilt())
    for text in ("{", "[]"):
        (tmp_path / "model/config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config\.json"):
            load_checkpoint(tmp_path / "model")
