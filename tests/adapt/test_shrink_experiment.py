"""`python -m adapt shrink`: from a folder to a smaller one, and settings that are rejected at the start."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from das_gym.adapt.evaluate import EvaluateSettings, evaluate, evaluation_main, load
from das_gym.adapt.run_commands import shrink as ex
from das_gym.adapt.shrinking import checks, measuring, selecting, verifying
from das_gym.adapt.shrinking import shrink as shrink_module
from das_gym.adapt.shrinking.checks import check_dtype
from das_gym.adapt.shrinking.settings import RecoveryConfig, ShrinkSettings
from das_gym.adapt.shrinking.verifying import VerificationError
from PIL import Image
from pyarrow import parquet

from das_gym.commands.recorded import RunError, run_folder
from das_gym.commands.settings import flatten_settings
from das_gym.files import read_json, write_json
from das_gym.problem.config import ProblemConfig
from tests.arrow_tables import jpeg
from tests.models.transformers import tiny
from tests.tasks.answering import making

QUICK: dict[str, Any] = {"train": {"steps": 3, "save_every": 1}, "device": "cpu", "control": False}


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, str]:
    """A tiny model and tiny data."""
    place = tmp_path_factory.mktemp("given")
    making.llava_folder(place / "data", train=12, val=6, test=6)
    tiny.save("llava", place / "llava")
    (place / "llava" / "README.md").write_text("---\nlicense: mit\ntags:\n- mine\n---\n# Mine\n")
    return {"checkpoint": str(place / "llava"), "data_root": str(place / "data")}


@pytest.fixture
def shrink(given, tmp_path, monkeypatch) -> Callable[..., Any]:
    """Runs the command in an empty folder, with short measurements."""
    monkeypatch.setattr(measuring, "LATENCY_BLOCKS", 1)

    def run(**settings: Any) -> Any:
        updates = flatten_settings({**given, **QUICK, "runs_dir": str(tmp_path / "runs")}) | flatten_settings(settings)
        return ex.run({name: value for name, value in updates.items() if value is not None})

    return run


@pytest.fixture
def trusting(monkeypatch) -> None:
    """No fresh process, which takes seconds: what one says is what is wanted of it."""
    found = verifying.Verification(3, 0.0, ("with a cache",))
    monkeypatch.setattr(shrink_module, "verify", lambda *_: found)


@pytest.mark.slow
@pytest.mark.parametrize("vision", [None, True])
def test_shrink_end_to_end(shrink, tmp_path, capsys, vision):
    out = tmp_path / "out"
    run = shrink(macs_saved=0.1, out=str(out), search={"evaluations": 6}, vision=vision, save_dtype="bfloat16")
    folder, printed = run_folder(run), capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]
    record = read_json(folder / "shrink.json")
    assert record["mask"] == read_json(tmp_path / "runs" / "1" / "search.json")["mask"]
    full, shrunk, recovered = record["models"]
    assert [model["name"] for model in record["models"]] == ["full", "shrunk", "recovered"]
    assert full["parameters"] > shrunk["parameters"] == recovered["parameters"]
    assert (full["weight_bytes"], recovered["weight_bytes"]) == (4 * full["parameters"], 2 * recovered["parameters"])
    assert recovered["macs_saved"] >= 0.1
    assert full["loss"] != shrunk["loss"] != recovered["loss"]
    assert full["low"] <= full["score"] <= full["high"]
    assert record["verified"]["ways"] == ["with a cache", "without a cache", "with left padding"]
    assert record["drawn"].count("□") == sum(record["mask"])
    assert set(record["answers"][5]) == {"key", "question", "full", "shrunk", "recovered"}
    assert len(read_json(folder / "examples.json")["rows"]) == 6
    assert not (folder / "recovery.pt").exists()
    config = json.loads((out / "config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] == 4 - sum(record["mask"][:4])
    card = (out / "README.md").read_text()
    assert "library_name: transformers\npipeline_tag: image-text-to-text\nlicense: mit\ntags:" in card
    assert f"`{record['command']}`" in card
    assert "Then LoRA trained " in card
    for text in (record["drawn"], "exact match on test, %", f"model: {out}", "weights: saved in bfloat16"):
        assert text in printed


@pytest.mark.slow
def test_shrink_removes_attention_and_mlp_separately(shrink, given, tmp_path, capsys):
    out = tmp_path / "out"
    run = shrink(units="sublayers", mask=(1, 0, 0, 1, 1, 1, 0, 0), out=str(out))
    record = read_json(run_folder(run) / "shrink.json")
    assert (record["deleted"], record["without_attention"], record["without_mlp"]) == ([2], [0], [1])
    full, shrunk, recovered = record["models"]
    assert recovered["kv_bytes"] == full["kv_bytes"] / 2  # of layers 1 and 3
    assert full["macs"] > shrunk["macs"] == recovered["macs"]
    assert record["verified"]["ways"] == ["with a cache", "without a cache", "with left padding"]
    card = (out / "README.md").read_text()
    assert "without 1 of 4 decoder layers, 1 of 4 attentions of decoder layers, 1 of 4 MLPs of decoder layers" in card
    assert 'dtype="auto", trust_remote_code=True)' in card
    assert "equal those of the recovered model in memory" in card
    assert "MA□■ (A: attention alone is left, M: MLP alone)" in capsys.readouterr().out
    evaluated = EvaluateSettings(str(out), data_root=given["data_root"], trust_remote_code=True)
    evaluation_main(evaluated)
    assert f"loss {recovered['loss']:.4f}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        evaluation_main(replace(evaluated, trust_remote_code=False))


@pytest.mark.slow
def test_shrink_saves_adapters_with_their_code(shrink, tmp_path):
    out = tmp_path / "out"
    run = shrink(mask=(0, 1, 0, 0), recover="adapters", out=str(out))
    record = read_json(run_folder(run) / "shrink.json")
    full, shrunk, recovered = record["models"]
    added = recovered["parameters"] - shrunk["parameters"]
    assert added == (3 * 2 + 1) * (8 * 2 * tiny.WIDTH + 8 + tiny.WIDTH) + tiny.WIDTH  # six parallel, one skip, and a norm
    assert shrunk["macs"] < recovered["macs"] < full["macs"]
    assert record["verified"]["prompts"] == 3
    assert (out / "modeling_das_adapters.py").is_file()
    card = (out / "README.md").read_text()
    assert 'from_pretrained("path/of/this/folder", dtype="auto", trust_remote_code=True)' in card
    assert "Then DAS trained " in card


@pytest.mark.slow
@pytest.mark.parametrize("recover", ["linear", "linear+lora"])
def test_shrink_saves_linear_maps_with_their_code(shrink, tmp_path, recover):
    out = tmp_path / "out"
    run = shrink(mask=(1, 1, 0, 1), recover=recover, out=str(out))  # consecutive layers, the first one and the last one
    record = read_json(run_folder(run) / "shrink.json")
    full, shrunk, recovered = record["models"]
    assert recovered["parameters"] - shrunk["parameters"] == 3 * (tiny.WIDTH**2 + tiny.WIDTH)
    assert shrunk["macs"] < recovered["macs"] < full["macs"]
    assert recovered["loss"] != shrunk["loss"]
    assert record["verified"]["ways"] == ["with a cache", "without a cache", "with left padding"]
    assert (record["control"] is None) or recover == "linear+lora"
    card = (out / "README.md").read_text()
    assert "Linear maps that were fitted in closed form replace them." in card
    assert ("Then LoRA trained " in card) is (recover == "linear+lora")


@pytest.mark.slow
def test_shrink_saves_linear_maps_of_sublayers_and_vision_layers(shrink, given, tmp_path):
    """The attention and MLP of layer 0, the MLP of layer 1, and a vision layer."""
    out, mask = tmp_path / "out", (1, 1, 0, 1, 0, 0, 0, 0, 1, 0)
    run = shrink(mask=mask, units="sublayers", vision=True, skip="linear", recover="linear+lora", out=str(out))
    record = read_json(run_folder(run) / "shrink.json")
    full, shrunk, recovered = record["models"]
    assert shrunk["macs"] < recovered["macs"] < full["macs"]
    assert shrunk["kv_bytes"] == recovered["kv_bytes"] < full["kv_bytes"]
    assert record["verified"]["ways"] == ["with a cache", "without a cache", "with left padding"]
    code = ["adapters.py", "modeling_das_adapters.py", "modeling_removed_sublayers.py"]
    assert sorted(path.name for path in out.glob("*.py")) == code
    with pytest.raises(ValueError, match=f"run={out}"):
        EvaluateSettings(str(run_folder(run)))
    subnet, examples, _ = load(EvaluateSettings(str(out), data_root=given["data_root"], trust_remote_code=True))
    assert evaluate(subnet, examples, "").loss == pytest.approx(recovered["loss"], abs=1e-5)


def test_only_a_search_scores_masks_with_linear_maps():
    linear = RecoveryConfig(recover="linear")
    assert ShrinkSettings(train=linear).search.problem.skip == "linear"
    assert ShrinkSettings(train=linear, mask=(0, 1) * 6).problem.skip is None
    deleted = ProblemConfig(model="VLM", task="answering", skip="delete")
    assert ShrinkSettings(train=linear, problem=deleted).problem.skip == "delete"


@pytest.mark.slow
def test_shrink_refits_mlps_and_saves_a_plain_folder(shrink, tmp_path):
    out = tmp_path / "out"
    run = shrink(mask=(0, 1, 1, 0), recover="refit", out=str(out))
    record = read_json(run_folder(run) / "shrink.json")
    _, shrunk, recovered = record["models"]
    assert recovered["parameters"] == shrunk["parameters"]
    assert recovered["loss"] != shrunk["loss"]
    assert record["verified"]["prompts"] == 3
    assert not list(out.glob("*.py"))
    assert "The MLPs before them were refitted in closed form. Nothing was trained." in (out / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("trusting")
def test_shrink_without_recovery(shrink, given, tmp_path, capsys):
    cached = tmp_path / "models--Acme--Tiny-LLaVA" / "snapshots" / "0a1b2c3d"  # the Hub's cache
    cached.mkdir(parents=True)
    shutil.copytree(given["checkpoint"], cached.parents[1] / "blobs")
    for path in (cached.parents[1] / "blobs").iterdir():
        (cached / path.name).symlink_to(f"../../blobs/{path.name}")
    run = shrink(mask=(0, 1, 0, 0), recover="none", checkpoint=str(cached))
    record = read_json(run_folder(run) / "shrink.json")
    card = (tmp_path / "runs" / "1" / "model" / "README.md").read_text()
    assert "license: mit\nbase_model: Acme/Tiny-LLaVA\n" in card
    assert "# Acme/Tiny-LLaVA, without 1 of 4 decoder layers" in card
    assert [model["name"] for model in record["models"]] == ["full", "shrunk"]
    assert record["drawn"] == "■□■■"
    assert record["loss_regained"] is None
    page = tmp_path / "runs" / "1" / "report.html"
    assert capsys.readouterr().out.endswith(f"report: {page}\n")
    assert "<td>" in page.read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("own_metrics", "trusting")
@pytest.mark.filterwarnings("ignore:.*answers are cut off")  # random weights never end one
def test_metric_of_a_plugin_scores_parquet_data(shrink, tmp_path, monkeypatch, capsys):
    """Shrink with parquet data and a registered metric, and evaluate the saved folder with them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAS_GYM_CACHE", str(tmp_path / "cache"))
    Path("short_metric.py").write_text(
        "from das_gym import register_metric\n"
        "register_metric('share_of_a', lambda example, text: 0.25 if example.answer == 'thing 1' else 0.75)\n"
    )
    photos = [{"photo": jpeg(number), "ask": "What is it?", "say": f"thing {number % 2}"} for number in range(20)]
    for split, rows in (("train", photos[:10]), ("test", photos[10:])):
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{split}.parquet")
    data = {"data_root": str(tmp_path), "problem": {"columns": "photo,ask,say"}}
    own = {"metric": "share_of_a", "plugins": "short_metric"}
    run = shrink(mask=(0, 1, 0, 0), recover="none", out="smaller", **data, **own)
    record = read_json(run_folder(run) / "shrink.json")
    assert [model["score"] for model in record["models"]] == [0.5, 0.5]
    assert record["metric"] == "share of a"
    assert record["problem"]["columns"] == "photo,ask,say"
    assert "| share of a on test, % | 50.0 | 50.0 |" in (tmp_path / "smaller" / "README.md").read_text()
    capsys.readouterr()
    evaluated = {"data_root": str(tmp_path), "columns": "photo,ask,say", **own}
    evaluation_main(EvaluateSettings("smaller", out="answers.json", limit=5, **evaluated))
    answers = read_json("answers.json")
    assert [answer["share_of_a"] for answer in answers] == [0.75, 0.25, 0.75, 0.25, 0.75]
    assert "share of a" in capsys.readouterr().out
    with pytest.raises(RunError, match="unknown metric"):
        shrink(mask=(0, 1, 0, 0), metric="share_of_b", **data)


@pytest.mark.slow
def test_shrink_removes_a_folder_that_fails_verification(shrink, tmp_path, monkeypatch):
    def wrong(*_: Any) -> None:
        raise VerificationError("the logits are 0.5 of their largest away")

    monkeypatch.setattr(shrink_module, "verify", wrong)
    with pytest.raises(RunError, match=r"the logits are 0\.5 of their largest away"):
        shrink(mask=(0, 1, 0, 0), recover="none", out=str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.slow
def test_a_resumed_run_keeps_its_scores(shrink, tmp_path, monkeypatch):
    scored: list[str] = []
    score = measuring.score_model

    def count(*arguments: Any) -> Any:
        scored.append(arguments[3])
        return score(*arguments)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "score_model", count)
    monkeypatch.setattr(shrink_module, "verify", stop)
    with pytest.raises(KeyboardInterrupt):
        shrink(mask=(0, 1, 0, 0))
    rewards = ["reward examples, before training", "reward examples, after training"]
    every = ["full model", *rewards, "shrunk model", "recovered model"]
    assert scored == every
    monkeypatch.setattr(shrink_module, "verify", lambda *_: verifying.Verification(3, 0.0, ("with a cache",)))
    record = read_json(run_folder(shrink(resume=1)) / "shrink.json")
    assert scored == every
    whole = read_json(run_folder(shrink(mask=(0, 1, 0, 0))) / "shrink.json")
    assert record["answers"] == whole["answers"]
    assert [model["loss"] for model in record["models"]] == [model["loss"] for model in whole["models"]]
    assert not (tmp_path / "runs" / "1" / "scored.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("recover", ["lora", "adapters", "linear+lora"])
@pytest.mark.usefixtures("trusting")
def test_a_training_that_made_the_model_worse_is_not_saved(shrink, tmp_path, capsys, monkeypatch, recover):
    """Its result is a run with the same repair and without training; the control is trained if that is asked for."""
    monkeypatch.setattr(shrink_module, "select", lambda before, after: selecting.select(after, before))
    given = {"mask": (0, 1, 0, 0), "recover": recover, "control": True, "train": {"learning_rate": 0.02}}
    record = read_json(run_folder(shrink(**given)) / "shrink.json")
    selection = record["selection"]
    assert not selection["trained_is_better"]
    assert selection["trained"]["loss"] > selection["untrained"]["loss"]
    card = (tmp_path / "runs" / "1" / "model" / "README.md").read_text()
    assert selection["reason"] in card
    assert selection["reason"] in capsys.readouterr().out
    assert "Nothing was trained." in card
    assert record["control"] is not None
    untrained = recover.replace("lora", "").strip("+").replace("adapters", "") or "none"
    wanted = read_json(run_folder(shrink(mask=(0, 1, 0, 0), recover=untrained)) / "shrink.json")
    assert wanted["selection"] is None
    assert [model["loss"] for model in record["models"]] == [model["loss"] for model in wanted["models"]]
    folders = [tmp_path / "runs" / run / "model" for run in "12"]
    assert len({(folder / "SHA256SUMS").read_text() for folder in folders}) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("trusting")
def test_control_is_the_full_model_with_the_same_training(shrink, tmp_path, capsys):
    settings = {"mask": (0, 1, 0, 0), "control": True, "train": {"steps": 4, "learning_rate": 0.01}}
    record = read_json(run_folder(shrink(**settings)) / "shrink.json")
    names = [model["name"] for model in record["models"]]
    assert names == ["full", "shrunk", "recovered"]
    full, _, recovered = record["models"]
    assert record["control"]["loss"] not in (full["loss"], recovered["loss"])
    assert list(record["answers"][0])[2:] == ["full", "control", "shrunk", "recovered"]
    assert record["difference"]["score"] == recovered["score"] - max(full["score"], record["control"]["score"])
    printed, card = capsys.readouterr().out, (tmp_path / "runs" / "1" / "model" / "README.md").read_text()
    for text in (card, " ".join(printed.split())):
        assert "of the full model trained alike (the control)" in text
    assert f"| loss, nats | {full['loss']:.4f} | {record['control']['loss']:.4f} |" in card
    assert "trained alike (the control)" in (tmp_path / "runs" / "1" / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recover", "score", "loss", "wins"),
    [("adapters", 0.25, 0.25, True), ("lora", 0.0, 0.25, False)],
)
@pytest.mark.usefixtures("trusting")
def test_control_is_trained_by_default_if_the_recovered_model_wins(shrink, monkeypatch, recover, score, loss, wins):
    original = shrink_module.measure

    def scored(*arguments: Any) -> Any:
        measured = original(*arguments)
        full = measured.rows["full"]
        measured.rows["recovered"] = replace(measured.rows["recovered"], score=full.score + score, loss=full.loss + loss)
        return measured

    monkeypatch.setattr(shrink_module, "measure", scored)
    record = read_json(run_folder(shrink(mask=(0, 1, 0, 0), recover=recover, control=None)) / "shrink.json")
    assert (record["control"] is not None) is wins


def test_a_mask_of_zeros_is_named_before_the_model_is_loaded():
    with pytest.raises(ValueError, match="`mask` skips nothing"):
        ShrinkSettings(mask=(0,) * 12)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"skip_num": 0}, "`skip_num` is out of range: got 0"),
        ({"skip_num": 4}, "`skip_num` must leave one layer: got 4, expected 3 or less"),
        ({"parameters_saved": 0.3}, r"`parameters_saved` is out of reach .*: got 0\.3, expected 0\.\d+ or less"),
        ({"mask": (0, 0, 0, 0)}, "`mask` skips nothing"),
        ({"mask": (1, 1, 1, 1)}, "all 4 decoder layers"),
        ({"mask": (0, 1, 0, 0), "skip_num": 2}, "`skip_num` is the budget of a search"),
        ({"control": True, "recover": "none"}, "`control`"),
        ({"units": "sublayers", "skip_num": 8}, "`skip_num` must leave one attention: got 8, expected 7 or less"),
        ({"units": "sublayers", "recover": "adapters"}, r"Sublayers have no adapters\. Leave out `units`\. Or use"),
        ({"units": "sublayers", "recover": "refit"}, "recover=refit"),
        ({"model": "METER", "task": "vqa"}, "`model` must answer in words"),
        ({"checkpoint": "{data_root}"}, "`checkpoint` is not a"),
    ],
)
def test_shrink_rejects_wrong_settings_before_a_search(shrink, given, tmp_path, settings, text):
    filled = {name: value.format(**given) if isinstance(value, str) else value for name, value in settings.items()}
    with pytest.raises(RunError, match=text) as rejected:
        shrink(**filled)
    assert "\n" not in str(rejected.value)
    assert not list(tmp_path.iterdir())


def spoilt(place: Path, name: str, **changes: Any) -> Path:
    """Write data in which the last entry of a split is changed."""
    making.llava_folder(place, train=12, val=12, test=12)
    entries = read_json(place / f"{name}.json")
    entries[-1] = {**entries[-1], **changes}
    write_json(place / f"{name}.json", entries)
    return place


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"conversations": making.chat("<image>\nx", "red " * 600)}, "tokens .* 512"),
        ({"image": "short.png"}, r"the image .*short\.png cannot be read"),
    ],
)
def test_shrink_rejects_unreadable_examples_before_a_search(shrink, tmp_path, changes, text):
    data = spoilt(tmp_path / "data", "train", **changes)
    (data / "images" / "short.png").write_bytes((data / "images" / "0.png").read_bytes()[:50])
    with pytest.raises(RunError, match=rf"^train\.json.*{text}"):
        shrink(data_root=str(data), train={"batch_size": 12})
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_shrink_rejects_an_image_of_too_many_tokens(shrink, tmp_path):
    """Qwen's images have as many tokens as squares; other prompts have longer texts."""
    folder = tiny.save("qwen2_5_vl", tmp_path / "qwen")
    settings = read_json(folder / "processor_config.json")
    settings["image_processor"]["size"] = {"shortest_edge": 256, "longest_edge": 10**6}
    write_json(folder / "processor_config.json", settings)
    data = spoilt(tmp_path / "data", "test", image="large.png", conversations=making.chat("<image>\nx", "no"))
    Image.new("RGB", (440, 400)).save(data / "images" / "large.png")
    with pytest.raises(RunError, match=r"^test\.json.* \d{3} tokens .*smaller images"):
        shrink(data_root=str(data), checkpoint=str(folder))


def test_shrink_rejects_lora_without_linear_layers(shrink, tmp_path):
    """GPT-2's layers are transformers' Conv1D."""
    making.text_folder(tmp_path / "data", train=12, val=6, test=6)
    tiny.save("gpt2", tmp_path / "gpt2")
    with pytest.raises(RunError, match="recover=full"):
        shrink(data_root=str(tmp_path / "data"), checkpoint=str(tmp_path / "gpt2"))
    with pytest.raises(RunError, match="recover=linear"):
        shrink(data_root=str(tmp_path / "data"), checkpoint=str(tmp_path / "gpt2"), recover="refit")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "gpt2"]


def test_shrink_rejects_adapters_for_remote_code(shrink, tmp_path):
    folder, data = tiny.save("llama", tmp_path / "mine"), making.text_folder(tmp_path / "data", train=4, val=2, test=2)
    config = read_json(folder / "config.json")
    brought = {"AutoConfig": "code.MineConfig", "AutoModelForCausalLM": "code.Mine"}
    write_json(folder / "config.json", {**config, "model_type": "mine", "architectures": ["Mine"], "auto_map": brought})
    (folder / "code.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class MineConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class Mine(LlamaForCausalLM):\n    config_class = MineConfig\n"
    )
    given = {"checkpoint": str(folder), "data_root": str(data), "trust_remote_code": True}
    with pytest.raises(RunError, match=r"recover=adapters does not support .* recover=lora"):
        shrink(**given, recover="adapters")


def test_check_dtype(monkeypatch, given):
    source = Path(given["checkpoint"])
    monkeypatch.setattr(checks, "bfloat16_hardware", lambda _: None)
    check_dtype(torch.float32, torch.device("cpu"), source)
    with pytest.raises(ValueError, match=r"are bfloat16, .* dtype=float32"):
        check_dtype(torch.bfloat16, torch.device("cpu"), source)
    monkeypatch.setattr(checks, "bfloat16_hardware", lambda _: "amx_bf16")
    check_dtype(torch.bfloat16, torch.device("cpu"), source)
    with pytest.raises(ValueError, match=r"are float16, .* dtype=float16"):
        check_dtype(torch.float16, torch.device("cpu"), source)
