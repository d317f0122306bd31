"""Which files of a model's folder are read and copied: no link leads out of it, and names are exact."""

import re
from pathlib import Path

import pytest
import transformers

from das_gym.models.inputs import load_tokenizer
from das_gym.models.source_files import MAX_LEGAL_TEXT, PROCESSOR_FILES, check_links, is_own_file, source_files
from das_gym.models.transformers.inputs import load_processor


@pytest.fixture
def secret(tmp_path) -> Path:
    """A private file outside of the model's folder, and a private folder with a file of a known name."""
    for name in ("key", "private/tokenizer.json", "private/x.jinja"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("SECRET")
    return tmp_path / "key"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A snapshot in the Hub's cache, whose files are links to its blobs."""
    place = tmp_path / "models--owner--name" / "snapshots" / "0123"
    place.mkdir(parents=True)
    (tmp_path / "models--owner--name" / "blobs").mkdir()
    for name in ("config.json", "tokenizer.json", "LICENSE"):
        (tmp_path / "models--owner--name" / "blobs" / f"blob-{name}").write_text("{}")
        (place / name).symlink_to(f"../../blobs/blob-{name}")
    return place


def names(paths: list[Path]) -> list[str]:
    return sorted(path.name for path in paths)


def test_names_are_those_of_the_tokenizers_of_transformers():
    found = set()
    for path in Path(transformers.__file__).parent.glob("models/*/tokenization*.py"):
        for table in re.findall(r"VOCAB_FILES_NAMES\s*=\s*\{(.*?)\}", path.read_text("utf-8"), re.DOTALL):
            found |= set(re.findall(r":\s*[\"']([^\"']+)[\"']", table))
    assert len(found) > 20
    assert not found - set(PROCESSOR_FILES)


def test_the_cache_of_the_hub_is_read_and_copied(folder):
    check_links(folder)
    assert names(source_files(folder)[0]) == ["LICENSE", "tokenizer.json"]


@pytest.mark.parametrize(
    "kind", ["absolute", "relative", "chained", "loop", "inside", "blobs of another model", "no snapshot"]
)
def test_links_are_not_followed(folder, secret, kind):
    blobs = folder.parents[1] / "blobs"
    (blobs / "chained").symlink_to(secret)
    (folder / "real").write_text("{}")
    (secret.parent / "models--owner--other" / "blobs").mkdir(parents=True)
    (secret.parent / "models--owner--other" / "blobs" / "blob").write_text("{}")
    if kind == "no snapshot":
        folder = folder.rename(folder.parents[1] / "moved")
        target = "../blobs/blob-tokenizer.json"
    else:
        target = {
            "absolute": str(secret),
            "relative": "../../../key",
            "chained": "../../blobs/chained",
            "loop": "tokenizer.json",
            "inside": "real",
            "blobs of another model": "../../../models--owner--other/blobs/blob",
        }[kind]
    for name in ("tokenizer.json", "LICENSE"):
        (folder / name).unlink()
        (folder / name).symlink_to(target)
        assert not is_own_file(folder / name, folder)
    copied, left_out = source_files(folder)
    assert (names(copied), names(left_out)) == ([], ["LICENSE", "tokenizer.json"])
    with pytest.raises(ValueError, match=re.escape("tokenizer.json is a link out of the model's folder")):
        check_links(folder)


def test_blobs_that_are_a_link_are_not_followed(folder, secret):
    (folder.parents[1] / "blobs").rename(secret.parent / "taken")
    (folder.parents[1] / "blobs").symlink_to(secret.parent / "taken")
    with pytest.raises(ValueError, match="is a link"):
        check_links(folder)
    assert not source_files(folder)[0]


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("additional_chat_templates", "private"),
        ("qformer_tokenizer", "private"),
        ("Merges.TXT", "key"),  # on a file system that ignores case, it is read as merges.txt
        ("qformer/vocab.json", "key"),
        ("additional_chat_templates/rag.jinja", "key"),
        ("generation_config.json", "key"),
    ],
)
def test_every_file_that_transformers_reads_is_checked(tmp_path, secret, link, target):
    path = tmp_path / "model" / link
    path.parent.mkdir(parents=True)
    path.symlink_to(secret.parent / target)
    with pytest.raises(ValueError, match="is a link"):
        check_links(tmp_path / "model")
    for load in (load_tokenizer, load_processor):
        with pytest.raises(ValueError, match="is a link"):
            load(tmp_path / "model")
    assert not source_files(tmp_path / "model")[0]


def test_code_is_checked_where_it_is_trusted(tmp_path, secret):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "modeling.py").symlink_to(secret)
    (tmp_path / "model" / "model.safetensors").symlink_to(secret)  # weights may lie on another disk
    check_links(tmp_path / "model")
    with pytest.raises(ValueError, match=r"modeling\.py is a link"):
        check_links(tmp_path / "model", trust_remote_code=True)
    assert source_files(tmp_path / "model", trust_remote_code=True) == ([], [tmp_path / "model" / "modeling.py"])


@pytest.mark.parametrize(
    ("name", "copied"),
    [
        *((name, True) for name in ("tokenizer_config.json", "vocab.txt", "chat_template.jinja", "tokenizer.model")),
        *((name, False) for name in ("Tokenizer_Config.json", "PROCESSOR_CONFIG.JSON", "other.jinja", "other.txt")),
        *((name, False) for name in ("config.json", "README.md", "SHA256SUMS", "other.model", "evil.tiktoken")),
        *((name, True) for name in ("LICENSE", "license.txt", "Notice.md", "LICENSE-MIT", "USE_POLICY.md", "COPYING")),
        *((name, True) for name in ("THIRD_PARTY_NOTICES.txt", "Llama-3_LICENSE")),
        *((name, False) for name in ("license.so", "license.pyc", "copyright.sh", "license.py", "LICENSE.PY", "notice.pth")),
    ],
)
def test_names_are_exact(tmp_path, name, copied):
    (tmp_path / name).write_text("{}")
    assert source_files(tmp_path) == ([tmp_path / name] if copied else [], [])


def test_legal_texts_are_small_plain_texts(tmp_path):
    for name, content in (("LICENSE", b"\x7fELF\0"), ("NOTICE", b"x" * (MAX_LEGAL_TEXT + 1)), ("COPYING", b"\xa9 x")):
        (tmp_path / name).write_bytes(content)
    copied, left_out = source_files(tmp_path)
    assert (names(copied), names(left_out)) == (["COPYING"], ["LICENSE", "NOTICE"])
