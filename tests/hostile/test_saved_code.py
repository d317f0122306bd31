"""Folders that `shrink` and `export` write name no code but our own, whatever the untrusted source names."""

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from das_gym.adapt.card import kept_fields
from das_gym.adapt.shrinking.saving import save

from das_gym.files import read_json, write_json, write_text
from das_gym.models.transformers.layer_removal import remove_parts
from das_gym.models.transformers.loading import load_vlm
from das_gym.models.transformers.stack import find_decoder, note_layer_parts
from das_gym.models.transformers.units import MLP
from tests.models.transformers import tiny

AUTO = ("AutoConfig", "AutoModelForImageTextToText", "AutoModel", "AutoProcessor", "AutoImageProcessor", "AutoTokenizer")
OWN = {"AutoModelForImageTextToText": "modeling_removed_sublayers.LlavaForConditionalGenerationWithoutSublayers"}

AWAY, HERE, PATH = "ELSEWHERE--evil.Evil", "evil.Evil", "ELSEWHERE/evil.Evil"
EVERY = dict.fromkeys(AUTO, AWAY) | {"AutoTokenizer": [AWAY, AWAY]}
PIPELINE = {"evil-task": {"impl": AWAY, "pt": ["AutoModel"], "tf": []}}
FORGED: dict[str, dict[str, Any]] = {
    "issue": {
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": [AWAY, AWAY]}},
        "processor_config.json": {"auto_map": {"AutoProcessor": AWAY}},
    },
    **{f"every class in {name}": {f"{name}.json": {"auto_map": EVERY}} for name in ("config", "generation_config")},
    "old form of tokenizers": {"tokenizer_config.json": {"auto_map": [AWAY, AWAY]}},
    "slow tokenizer": {"tokenizer_config.json": {"auto_map": {"AutoTokenizer": [AWAY, None]}, "tokenizer_class": "Strange"}},
    "code of the folder": {"tokenizer_config.json": {"auto_map": {"AutoTokenizer": [HERE, HERE]}}},
    "code by its path": {"tokenizer_config.json": {"auto_map": {"AutoTokenizer": [PATH, PATH]}}},
    "tokenizer in the model's settings": {"config.json": {"auto_map": {"AutoTokenizer": [AWAY, AWAY]}}},
    "processor in the words'": {"tokenizer_config.json": {"auto_map": {"AutoProcessor": AWAY}, "processor_class": None}},
    "processor in the images'": {"preprocessor_config.json": {"auto_map": {"AutoProcessor": AWAY}}},
    "images": {"preprocessor_config.json": {"auto_map": {"AutoImageProcessor": AWAY, "AutoFeatureExtractor": AWAY}}},
    "images in the processor": {"processor_config.json": {"image_processor": {"auto_map": {"AutoImageProcessor": AWAY}}}},
    "videos": {"video_preprocessor_config.json": {"auto_map": {"AutoVideoProcessor": AWAY, "AutoProcessor": AWAY}}},
    "sounds": {
        "processor_config.json": {
            "audio_tokenizer": {"audio_tokenizer_class": "AutoModel", "audio_tokenizer_name_or_path": "ELSEWHERE"}
        }
    },
    "parts of the model": {
        "config.json": {"text_config": {"auto_map": EVERY}, "vision_config": {"auto_map": {"AutoModel": AWAY}}}
    },
    "pipeline": {"config.json": {"custom_pipelines": PIPELINE}},
    "generation": {"custom_generate/generate.py": "EVIL", "custom_generate/requirements.txt": ""},
    "generation in its settings": {"generation_config.json": {"custom_generate": AWAY}},
    "name of our file": {"modeling_removed_sublayers.py": "EVIL", "config.json": {"auto_map": EVERY}},
    "adapter": {"adapter/adapter_config.json": {"base_model_name_or_path": "ELSEWHERE", "auto_mapping": {"x": AWAY}}},
    "unknown setting": {"processor_config.json": {"deep": [{"helper": [None, AWAY]}]}},
    "folder of a tokenizer": {"qformer_tokenizer/tokenizer_config.json": {"auto_map": {"AutoTokenizer": [AWAY, AWAY]}}},
    "upper case": {"License.py": "EVIL", "EVIL.PY": "EVIL", "evil.pth": "EVIL", "evil.so": "EVIL"},
    "exported program": {"export_manifest.json": {"export_format": "ExportedProgram"}, "program.pt2": "EVIL"},
    "broken settings": {"inner/processor_config.json": "{'auto_map': evil"},
    "other letter case": {
        "Tokenizer_Config.json": {"auto_map": {"AutoTokenizer": [AWAY, AWAY]}},
        "PROCESSOR_CONFIG.JSON": {"auto_map": {"AutoProcessor": AWAY}},
    },
    "spaces": {"processor_config.json": {"helper": "a folder/evil--e vil.E vil"}},
    "names of licenses": {"license.so": "EVIL", "license.pyc": "EVIL", "copyright.sh": "EVIL", "NOTICE.pth": "EVIL"},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return tiny.save("llava", tmp_path_factory.mktemp("source") / "llava")


@pytest.fixture
def evil(tmp_path, monkeypatch) -> Iterator[str]:
    """The code that creates the file EXECUTED when it is imported; `elsewhere/evil.py` has it, too."""
    code = f"open({str(tmp_path / 'EXECUTED')!r}, 'w').close()\nclass Evil: pass\n"
    write_text(tmp_path / "elsewhere" / "evil.py", code)
    auto_map = dict.fromkeys(AUTO, HERE)
    write_json(tmp_path / "elsewhere" / "config.json", {"model_type": "evil", "auto_map": auto_map})
    monkeypatch.setattr(t.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield code
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]  # its folder is this test's
    assert not (tmp_path / "EXECUTED").exists()


def forge(source: Path, folder: Path, changes: dict[str, Any], code: str) -> Path:
    """Copy a folder, and write or merge the changes into its files."""
    shutil.copytree(source, folder)
    write_text(folder / "evil.py", code)
    for name, content in changes.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, str):
            path.write_text(content.replace("EVIL", code))
            continue
        before = read_json(path) if path.is_file() else {}
        nested = {key: before[key] | inner for key, inner in content.items() if isinstance(before.get(key), dict)}
        write_json(path, before | content | nested)
        path.write_text(path.read_text().replace("ELSEWHERE", str(folder.parent / "elsewhere")))
    return folder


def without_mlp(folder: Path) -> Any:
    """Load the model of a folder, and remove an MLP, so that it needs our code."""
    model = t.AutoModelForImageTextToText.from_pretrained(folder)
    note_layer_parts(find_decoder(model), lambda: model(input_ids=torch.tensor([[5, 6]])))
    return remove_parts(model, {1: MLP})


def load_everything(folder: Path) -> None:
    """Load all that transformers finds in a folder, with its code trusted."""
    for loader in (t.AutoConfig, t.AutoProcessor, t.AutoTokenizer, t.AutoImageProcessor, t.AutoVideoProcessor):
        with contextlib.suppress(Exception):
            loader.from_pretrained(folder, trust_remote_code=True, local_files_only=True)
    for sub in ("qformer_tokenizer", "adapter"):
        with contextlib.suppress(Exception):
            t.AutoTokenizer.from_pretrained(folder, subfolder=sub, trust_remote_code=True)
    with contextlib.suppress(Exception):
        t.pipeline("evil-task", model=str(folder), trust_remote_code=True)


@pytest.mark.parametrize("name", FORGED)
def test_saved_folder_names_our_code_alone(source, tmp_path, evil, name):
    forged, out = forge(source, tmp_path / "forged", FORGED[name], evil), tmp_path / "out"
    out.mkdir()
    model = without_mlp(forged)
    save(model, out, forged, forged, model.dtype)
    load_everything(out)
    loaded = t.AutoModelForImageTextToText.from_pretrained(out, trust_remote_code=True)
    assert type(loaded).__name__.endswith("WithoutSublayers")
    assert [
        path.name for path in out.rglob("*") if path.suffix.lower() in (".py", ".so", ".pth", ".pt2", ".pyc", ".sh")
    ] == ["modeling_removed_sublayers.py"]
    texts = {path: path.read_text("utf-8") for path in out.rglob("*.json")}
    assert not [path for path, text in texts.items() if "evil" in text.lower() and path.name != "config.json"]
    assert read_json(out / "config.json")["auto_map"] == OWN
    assert texts[out / "config.json"].count("auto_map") == 1


LINKED = ("LICENSE", "use_policy.md", "merges.txt", "sub/NOTICE.txt", "chat_template.jinja", "generation_config.json")


def test_saved_folder_has_no_content_of_links(source, tmp_path):
    """The folder is built by hand here: loading rejects it."""
    private, folder, out = tmp_path / "id_rsa", tmp_path / "model", tmp_path / "out"
    private.write_text("SECRET")
    shutil.copytree(source, folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    for name in (*LINKED, "README.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(private)
    (folder / "linked").symlink_to(tmp_path, target_is_directory=True)
    out.mkdir()
    model = without_mlp(source)
    left_out = save(model, out, folder, folder, model.dtype)
    assert {str(path.relative_to(folder)) for path in left_out} == {*LINKED}
    assert not [path for path in out.rglob("*") if path.is_file() and b"SECRET" in path.read_bytes()]
    assert kept_fields(folder) == {}
    with pytest.raises(ValueError, match="is a link"):
        load_vlm(folder)


def test_pipeline_knows_the_class_of_the_folder(source, tmp_path, monkeypatch):
    """transformers prints an error for a class that is not registered; other models of this type are loaded as before."""
    model, errors = without_mlp(source), []
    save(model, tmp_path, source, source, model.dtype)
    monkeypatch.setattr(t.pipelines.base.logger, "error", errors.append)
    pipeline = t.pipeline("image-text-to-text", model=str(tmp_path), trust_remote_code=True)
    assert type(pipeline.model).__name__.endswith("WithoutSublayers")
    assert not errors
    assert type(t.AutoModelForImageTextToText.from_pretrained(source)) is t.LlavaForConditionalGeneration


def test_forged_folders_execute_code_without_protection(source, tmp_path, evil):
    """Otherwise the test above would show nothing."""
    load_everything(forge(source, tmp_path / "forged", FORGED["issue"], evil))
    assert (tmp_path / "EXECUTED").exists()
    (tmp_path / "EXECUTED").unlink()


def test_changed_code_is_rejected_before_it_runs(source, tmp_path, evil):
    out = tmp_path / "out"
    out.mkdir()
    model = without_mlp(source)
    save(model, out, source, source, model.dtype)
    code = out / "modeling_removed_sublayers.py"
    original = code.read_text()
    for file, text in ((code, original + evil), (out / "other.py", evil)):
        file.write_text(text)
        with pytest.raises(ValueError, match=f"{file.name}.* checksum"):
            load_vlm(out, only_runs=True, trust_remote_code=True)
        code.write_text(original)
