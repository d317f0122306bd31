"""Folders: whole or not at all, in the source's type and shards, with what lay beside the weights; bad places refused."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
import torch
from das_gym.adapt.shrink.saving import check_out, new_folder, rounded, save, saved_dtype
from transformers import AutoModelForImageTextToText, AutoProcessor

from das_gym.files import read_json, write_json
from das_gym.models.transformers import prune
from das_gym.models.transformers.weights import loaded_dtype, shard_size, source_dtype, weight_files
from tests.models.transformers import tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
def model(source: Path):
    return AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32).eval()


def test_what_a_source_is_like(source: Path):
    assert len(weight_files(source)) > 1
    assert source_dtype(source) == torch.bfloat16
    assert shard_size(source) == "60KB"
    assert saved_dtype(torch.bfloat16, torch.float32) == torch.bfloat16
    assert saved_dtype(torch.float32, torch.bfloat16) == torch.bfloat16
    assert saved_dtype(torch.float32, torch.float64) == torch.float32


def test_a_smaller_folder_is_like_its_source(
    source: Path, model: torch.nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    smaller = prune(model, [0, 1, 0, 0])
    rounded(smaller, torch.bfloat16)
    with new_folder(tmp_path / "out") as part:
        save(smaller, part, source, source, torch.bfloat16)
    assert capfd.readouterr().err == ""  # no bars of transformers where nobody looks
    out = tmp_path / "out"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert source_dtype(out) == torch.bfloat16
    assert len(weight_files(out)) > 1
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1  # who may read one file may read all
    assert int(shard_size(out)[:-2]) <= int(shard_size(source)[:-2])
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


def test_files_of_torch_have_their_type_and_their_shards(source: Path, model: torch.nn.Module, tmp_path: Path):
    """As older versions of transformers saved them: a configuration without a type, beside float16 in two files."""
    old, out = tmp_path / "old", tmp_path / "out"
    shutil.copytree(source, old, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = read_json(old / "config.json")
    for told in (config, config["text_config"], config["vision_config"]):
        told.pop("dtype", None)
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
    assert len(weight_files(out)) > 1
    assert not (out / "pytorch_model.bin.index.json").exists()
    assert AutoModelForImageTextToText.from_pretrained(out, dtype="auto").dtype == torch.float16


def test_the_files_of_another_processor_come_from_its_folder(source: Path, model: torch.nn.Module, tmp_path: Path):
    other, out = tmp_path / "other", tmp_path / "out"
    shutil.copytree(source, other)
    (other / "chat_template.jinja").write_text("{{ messages }}")
    (other / "LICENSE").unlink()
    out.mkdir()
    save(model, out, source, other, torch.bfloat16)
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"
    assert (out / "LICENSE").read_bytes() == (source / "LICENSE").read_bytes()


def test_what_lies_in_sub_folders_comes_along(source: Path, model: torch.nn.Module, tmp_path: Path):
    """But for caches, other models, and what lies behind a link to a folder."""
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
    (origin / "code" / "blob.txt").symlink_to(tmp_path / "private" / "key")  # as the hub's cache has every file
    out.mkdir()
    save(model, out, origin, origin, torch.bfloat16)
    kept = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and path.parent != out}
    assert kept == {*inner[:2], "code/blob.txt"}
    assert (out / inner[0]).read_bytes() == b"{{ messages }}\r\n"


def test_rounding_gives_parameters_of_its_own_where_it_changes_something():
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(layer.bias, 0.5)
    weight, bias = layer.weight, layer.bias
    rounded(layer, torch.bfloat16)
    assert layer.bias is bias
    assert layer.weight is not weight
    assert torch.equal(layer.weight, weight.bfloat16().float())
    pair = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])
    pair[1].weight = pair[0].weight  # as embeddings and head are tied
    rounded(pair, torch.bfloat16)
    assert pair[1].weight is pair[0].weight


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_folder_that_was_not_finished(tmp_path: Path, error: BaseException):
    def fill() -> None:
        with new_folder(tmp_path / "out") as part:
            (part / "model.safetensors").write_bytes(b"half")
            raise error

    if isinstance(error, OSError):
        with pytest.raises(ValueError, match=r"out=.*out could not be written \(No space left on device\); nothing is left"):
            fill()
    else:
        with pytest.raises(KeyboardInterrupt):
            fill()
    assert not list(tmp_path.iterdir())


def test_a_missing_picture_is_not_taken_for_a_full_disk(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"1\.png"), new_folder(tmp_path / "out"):
        raise FileNotFoundError("1.png is not there")


def test_a_folder_that_came_to_be_there_is_not_written_over(tmp_path: Path):
    with pytest.raises(ValueError, match="has come to be there meanwhile"), new_folder(tmp_path / "out"):
        (tmp_path / "out").mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_bad_places(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check_out(tmp_path / "a" / "b", source, 1000)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"out=.*file is there already, and nothing is ever written over"):
        check_out(tmp_path / "file", source, 1000)
    with pytest.raises(ValueError, match=r"out=.*inner lies in checkpoint=.*: give a folder outside it"):
        check_out(source / "inner", source, 1000)
    with pytest.raises(ValueError, match=r"out=.*file/inner cannot be made: .*file is no folder"):
        check_out(tmp_path / "file" / "inner", source, 1000)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    with pytest.raises(ValueError, match=r"may take 1,088 MiB and its disk has 1 MiB left: make room"):
        check_out(tmp_path / "new", source, 2**30)


def test_weights_of_fewer_bits_than_the_configuration_says(tmp_path: Path):
    """As the bundled model has them: stored in float16, computed in float32, and so is what comes of it."""
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
