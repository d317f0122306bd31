"""Which files of a model's folder are read and copied; the folder may be untrusted.

A link could bring a private file of this machine into a folder that is published. So links are not followed, except those
of the Hub's cache, whose files lie in `models--OWNER--NAME/blobs`.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

MODEL_FILES = ("config.json", "generation_config.json")

CHAT_TEMPLATES = "additional_chat_templates"

PROCESSOR_FILES = (
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    *("chat_template.json", "chat_template.jinja"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json", "tekken.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "dict.txt", "bpe.codes", "entity_vocab.json", "target_vocab.json"),
    *("vocab-src.json", "vocab-tgt.json", "source.spm", "target.spm", "spm_char.model", "spm.model", "spiece.model"),
    *("tokenizer.model", "tiktoken.model", "sentencepiece.model", "sentencepiece.bpe.model", "prophetnet.tokenizer"),
    *("emoji.json", "normalizer.json", "byte_maps.json", "word_shape.json", "word_pronunciation.json"),
)
"""What transformers 5.24 reads of processors and tokenizers, besides `CHAT_TEMPLATES/NAME.jinja`, also in sub-folders."""

LEGAL_TEXTS = re.compile(
    r"([\w-]+[-_])?(licen[cs]e|notices?|copying|copyright|(acceptable_)?use_policy)([-_][\w-]+)?(\.(txt|md|rst))?", re.I
)

MAX_LEGAL_TEXT = 2**20
"""Bytes of the largest legal text that is copied."""

WEIGHT_SUFFIXES = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".onnx_data", ".msgpack", ".h5", ".npz"),
    ".index.json",
)

NOT_COPIED = ("config.json", "readme.md", "training_args.bin", "adapter_config.json", "sha256sums")
"""Names, in lower case, of files that are written anew, or hold for the source alone."""


def is_own_file(path: Path, folder: Path) -> bool:
    """Return True for a regular file of a model's folder, or a link into the blobs of that very model in the Hub's cache.

    Folders between the two must not be links.
    """
    if not path.is_symlink():
        return path.is_file()
    model = Path(os.path.realpath(folder)).parent.parent
    target = Path(os.path.realpath(path))
    in_cache = model.name.startswith("models--") and Path(os.path.realpath(folder)).parent.name == "snapshots"
    return in_cache and target.parent == model / "blobs" and target.is_file()


def check_links(folder: Path, trust_remote_code: bool = False) -> None:
    """Raise ValueError if a file that transformers reads, weights aside, is a link out of the folder: see `is_own_file`.

    With `trust_remote_code`, code must not be a link either.
    """
    for path in (*folder.glob("*"), *folder.glob("*/*")):
        is_code = trust_remote_code and path.suffix == ".py"
        if not (is_code or _is_read(Path(path.parent.name.lower(), path.name.lower()))):
            continue  # a file system that ignores case has `Tokenizer.JSON` for `tokenizer.json`, too
        link = path.parent if path.parent != folder and path.parent.is_symlink() else path
        if link.is_symlink() and not is_own_file(link, folder):
            raise ValueError(
                f"{link} is a link out of the model's folder: got {link.readlink()}, expected a file of its own. Put a copy "
                "there if that file belongs to the model, since it may be copied and published; or remove the link."
            )


def source_files(folder: Path, trust_remote_code: bool = False) -> tuple[list[Path], list[Path]]:
    """Return the files to copy from a model's folder, and what is left out although a user would expect it.

    Without trusted code, they are the files of exactly those names that transformers reads, and legal texts: nothing else
    can name code. With it, they are all files but weights. Hidden files, caches, linked folders, and sub-folders with
    weights, which are other models, are never copied. Left out are legal texts that are links, larger than `MAX_LEGAL_TEXT`
    or not plain text, and, with trusted code, all links out of the folder.
    """
    copied: list[Path] = []
    left_out: list[Path] = []
    for path in _walk(folder, folder):
        name = path.name
        is_legal = LEGAL_TEXTS.fullmatch(name) is not None
        is_other = trust_remote_code and not (path.parent == folder and name.lower() in NOT_COPIED)
        if not (is_legal or is_other or (_is_read(path.relative_to(folder)) and name != "config.json")):
            continue
        is_good = is_own_file(path, folder) and (not is_legal or _is_plain_text(path))
        (copied if is_good else left_out).append(path)
    return copied, left_out


def _walk(folder: Path, root: Path) -> Iterator[Path]:
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__pycache__")))
    others = [path for path in paths if not path.is_dir()]
    weights = [path for path in others if path.name.lower().endswith(WEIGHT_SUFFIXES)]
    if folder != root and weights:
        return
    yield from (path for path in others if path not in weights)
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path, root)


def is_processor_file(path: Path) -> bool:
    """Return True for the name of a file of a processor or tokenizer that transformers reads."""
    is_template = path.parent.name == CHAT_TEMPLATES and path.suffix == ".jinja"
    return is_template or path.name in PROCESSOR_FILES


def _is_read(path: Path) -> bool:
    return is_processor_file(path) or path.name in MODEL_FILES


def _is_plain_text(path: Path) -> bool:
    if path.stat().st_size > MAX_LEGAL_TEXT:
        return False
    return b"\0" not in path.read_bytes()
