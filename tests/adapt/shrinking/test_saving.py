"""Saved folders have the source's dtype, shards and other files; an interrupted save leaves nothing."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from das_gym.adapt.shrinking.saving import check_source_files, new_folder, round_parameters, save, saved_dtype
from transformers import AutoModelForImageTextToText, AutoProcessor

from das_gym.files import read_json, write_json
from das_gym.models.transformers import prune
from das_gym.models.transformers.loading import load_vlm, loaded_dtype, source_dtype, weight_files
from tests.models.transformers import tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A bfloat16 model in several files, with a card and a licence."""
    folder = tmp_path_factory.mktemp("source")
    model, processor = tiny.make("llava")
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="60KB")
    processor.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    (folder / "LICENSE").write_text("MIT")
    (folder / "training_args.bin").write_bytes(b"x")
    return folder


@pytest.fixture(scope="module")
def model(source):
    return AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32).eval()


def test_saved_dtype(source):
    assert len(weight_files(source)) > 1
    assert source_dtype(source) == torch.bfloat16
    assert saved_dtype(torch.bfloat16, torch.float32) == torch.bfloat16
    assert saved_dtype(torch.float32, torch.bfloat16) == torch.bfloat16
    assert saved_dtype(torch.float32, torch.float64) == torch.float32
    assert saved_dtype(torch.float16, torch.float32, "float32") == torch.float32


def test_save_keeps_dtype_modes_and_other_files(source, model, tmp_path, capfd):
    smaller = prune(model, [0, 1, 0, 0])
    round_parameters(smaller, torch.bfloat16)
    with new_folder(tmp_path / "out") as part:
        save(smaller, part, source, source, torch.bfloat16)
    assert capfd.readouterr().err == ""  # no progress bars without a terminal
    out = tmp_path / "out"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert source_dtype(out) == torch.bfloat16
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1  # who may read one file may read all
    kept = {path.name for path in out.iterdir()}
    assert {"LICENSE", "tokenizer.json", "processor_config.json", "generation_config.json", "config.json"} <= kept
    assert not {"README.md", "training_args.bin"} & kept
    for name in ("tokenizer.json", "chat_template.jinja", "processor_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    again = AutoModelForImageTextToText.from_pretrained(out)
    assert again.dtype == torch.bfloat16
    assert again.config.text_config.num_hidden_layers == 3
    assert smaller.dtype == torch.float32  # it is not touched
    assert all(torch.equal(p.float(), q) for p, q in zip(again.parameters(), smaller.parameters(), strict=True))
    AutoProcessor.from_pretrained(out)


def test_save_from_torch_files(source, model, tmp_path):
    """Older versions of transformers wrote a configuration without a dtype, and float16 weights in two files."""
    old, out = tmp_path / "old", tmp_path / "out"
    shutil.copytree(source, old, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = read_json(old / "config.json")
    for part in (config, config["text_config"], config["vision_config"]):
        part.pop("dtype", None)
    write_json(old / "config.json", config)
    tensors = {name: tensor.half() for name, tensor in model.state_dict().items()}
    names = sorted(tensors)
    halves = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, chosen in halves.items():
        torch.save({name: tensors[name] for name in chosen}, old / file)
    index = {"metadata": {}, "weight_map": {name: file for file, chosen in halves.items() for name in chosen}}
    write_json(old / "pytorch_model.bin.index.json", index)
    assert source_dtype(old) == loaded_dtype(old) == torch.float16
    smaller = prune(AutoModelForImageTextToText.from_pretrained(old, dtype=torch.float32), [0, 1, 0, 0])
    with new_folder(out) as part:
        save(smaller, part, old, old, torch.float16)
    config = read_json(out / "config.json")
    assert (config["dtype"], config["text_config"].get("dtype"), config["vision_config"].get("dtype")) == (
        "float16",
        None,
        None,
    )
    assert not (out / "pytorch_model.bin.index.json").exists()
    assert AutoModelForImageTextToText.from_pretrained(out, dtype="auto").dtype == torch.float16


def test_save_copies_sub_folders(source, model, tmp_path):
    """Caches, other models, linked folders and files of unknown names are left out."""
    origin, out = tmp_path / "origin", tmp_path / "out"
    shutil.copytree(source, origin)
    inner = ("additional_chat_templates/rag.jinja", "code/parts/config.json", "code/__pycache__/a.pyc")
    inner += (".cache/huggingface/lock", "original/consolidated.00.pth", "original/params.json", "code/deep/model.bin")
    for name in inner:
        (origin / name).parent.mkdir(parents=True, exist_ok=True)
        (origin / name).write_bytes(b"{{ messages }}\r\n")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_text("x")
    (origin / "linked").symlink_to(tmp_path / "private", target_is_directory=True)
    (origin / "code" / "LICENSE.txt").write_text("MIT")
    out.mkdir()
    save(model, out, origin, origin, torch.bfloat16)
    kept = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and path.parent != out}
    assert kept == {inner[0], "code/LICENSE.txt"}
    assert (out / inner[0]).read_bytes() == b"{{ messages }}\r\n"


def test_processor_of_another_folder(source, model, tmp_path):
    """All files of the processor come from its folder, the others from the model's."""
    other, out = tmp_path / "other", tmp_path / "out"
    shutil.copytree(source, other, ignore=shutil.ignore_patterns("*.safetensors*", "chat_template.jinja"))
    for name, content in (("LICENSE", "of the tokenizer"), ("generation_config.json", "{}"), ("NOTICE", "x")):
        (other / name).write_text(content)
    write_json(other / "tokenizer_config.json", {**read_json(source / "tokenizer_config.json"), "mine": 1})
    out.mkdir()
    save(model, out, source, other, torch.bfloat16)
    assert (out / "LICENSE").read_text() == "MIT"
    assert (out / "NOTICE").read_text() == "x"
    assert read_json(out / "tokenizer_config.json")["mine"] == 1
    assert (out / "generation_config.json").read_bytes() == (source / "generation_config.json").read_bytes()
    assert not (out / "chat_template.jinja").exists()


def test_check_source_files(tmp_path):
    folder = tiny.save("llava", tmp_path / "model")
    settings = read_json(folder / "tokenizer_config.json")
    vlm = load_vlm(folder)
    (folder / "LICENSE").write_bytes(b"\0")
    assert check_source_files(vlm, folder, folder) == [folder / "LICENSE"]
    for content in ({"auto_map": {}, "x": float("nan")}, {"auto_map": {}, "x": [float("-inf")]}):
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **content}))
        with pytest.raises(ValueError, match=r"tokenizer_config\.json .* NaN or infinity"):
            check_source_files(vlm, folder, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "x": float("nan")}))
    check_source_files(vlm, folder, folder)
    (folder / "tokenizer.json").rename(folder / "Tokenizer.json")
    with pytest.raises(ValueError, match="tokenizer=NEW"):
        check_source_files(vlm, folder, folder)


def test_round_parameters_replaces_only_what_changes():
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(layer.bias, 0.5)
    weight, bias = layer.weight, layer.bias
    round_parameters(layer, torch.bfloat16)
    assert layer.bias is bias
    assert layer.weight is not weight
    assert torch.equal(layer.weight, weight.bfloat16().float())
    pair = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])
    pair[1].weight = pair[0].weight  # as embeddings and head are tied
    round_parameters(pair, torch.bfloat16)
    assert pair[1].weight is pair[0].weight


def test_new_folder_leaves_nothing_on_a_full_disk(tmp_path):
    with pytest.raises(ValueError, match="cannot write `out`"), new_folder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left")
    assert not list(tmp_path.iterdir())


def test_new_folder_keeps_existing_folders(tmp_path):
    with pytest.raises(ValueError, match="`out` exists"), new_folder(tmp_path / "out"):
        (tmp_path / "out").mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_save_keeps_a_config_dtype_that_differs_from_the_weights(tmp_path):
    """The bundled model is stored in float16 and computed in float32."""
    source = tiny.save("llava", tmp_path / "source")
    AutoModelForImageTextToText.from_pretrained(source).half().save_pretrained(source)
    config = read_json(source / "config.json")
    write_json(source / "config.json", {**config, "dtype": "float32"})
    assert (source_dtype(source), loaded_dtype(source)) == (torch.float16, torch.float32)
    model = prune(AutoModelForImageTextToText.from_pretrained(source, dtype="auto"), [0, 1, 0, 0])
    assert model.dtype == torch.float32
    with new_folder(tmp_path / "out") as part:
        save(model, part, source, source, torch.float16)
    assert (source_dtype(tmp_path / "out"), loaded_dtype(tmp_path / "out")) == (torch.float16, torch.float32)
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.float32
    with new_folder(tmp_path / "asked") as part:
        save(model, part, source, source, torch.bfloat16, names_dtype=True)
    assert (source_dtype(tmp_path / "asked"), loaded_dtype(tmp_path / "asked")) == (torch.bfloat16, torch.bfloat16)
