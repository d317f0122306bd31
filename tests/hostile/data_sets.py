"""Small data sets in the formats of others; one of their files is what `tests.hostile.test_readers` changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from das_gym.data.entries import BadExamples
from das_gym.data.images import ImageFile
from das_gym.tasks.answering.published import load_questions
from das_gym.tasks.answering.reading import load_answers
from das_gym.tasks.base import read_labels
from das_gym.tasks.nlvr2 import load_nlvr2
from das_gym.tasks.retrieval import load_captions
from das_gym.tasks.vqa.files import read_questions
from tests.tasks.answering.making import chat, llava_folder, write, write_lines

QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"


def write_images(*paths: Path) -> None:
    """Files that are only looked for."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def vqa(path: Path) -> None:
    ids = [{"question_id": n, "image_id": n // 2} for n in range(4)]
    write(path.with_name(QUESTIONS), {"questions": [{**each, "question": "What is it?"} for each in ids]})
    answered = {"question_type": "what is", "answer_type": "other", "multiple_choice_answer": "bird"}
    answered |= {"answers": [{"answer": "bird", "answer_id": n, "answer_confidence": "yes"} for n in (1, 2)]}
    write(path.with_name(ANNOTATIONS), {"annotations": [{**each, **answered} for each in ids]})


def read_vqa(path: Path) -> None:
    bad = BadExamples("skip")
    read_questions(path.with_name(QUESTIONS), path.with_name(ANNOTATIONS), "val2014", lambda _: ImageFile(path), bad)


def nlvr2(path: Path) -> None:
    def entry(identifier: str) -> dict[str, Any]:
        return {"sentence": "Both.", "label": "True", "identifier": identifier, "directory": int(identifier.split("-")[1])}

    write_lines(path, [entry(f"train-{n}-0-0") for n in range(3)])
    write_lines(path.with_name("test1.json"), [entry("test1-0-0-0")])
    sides = [f"img{side}.png" for side in (0, 1)]
    write_images(*(path.parent / "images/train" / str(n) / f"train-{n}-0-{side}" for n in range(3) for side in sides))
    write_images(*(path.parent / "images/test1" / f"test1-0-0-{side}" for side in sides))


def karpathy(path: Path) -> None:
    entries = []
    for number, split in enumerate(("train", "val", "test") * 4):
        sentences = [{"raw": f"{number} {n}.", "sentid": 5 * number + n} for n in range(5)]
        entries.append({"filename": f"{number}.jpg", "split": split, "imgid": number, "sentences": sentences})
    write(path, {"images": entries})
    write_images(*(path.parent / "images" / entry["filename"] for entry in entries))


def llava(path: Path) -> None:
    llava_folder(path.parent, train=4, val=2, test=2)
    more = {"id": "x", "conversations": chat("Which?", "A"), "options": ["A", "B"], "answer_type": "CLOSED"}
    write(
        path, [*({"id": str(n), "image": f"{n}.png", "conversations": chat("<image>\nWhat?", "A")} for n in range(4)), more]
    )


def llava_questions(path: Path) -> None:
    write_lines(path, [{"question_id": n, "image": f"{n}.png", "text": "What?", "category": "count"} for n in range(3)])
    write_images(*(path.with_name(f"{n}.png") for n in range(3)))


def slake(path: Path) -> None:
    for number, part in enumerate(("train", "validate", "test")):
        entry = {"img_name": f"{number}/source.jpg", "question": "Where?", "answer": "Left", "q_lang": "en", "qid": number}
        write(path.with_name(f"{part}.json"), [{**entry, "answer_type": "OPEN"}])
        write_images(path.parent / "imgs" / f"{number}/source.jpg")


def scienceqa(path: Path) -> None:
    problem = {"question": "Which?", "choices": ["a", "b"], "answer": 1, "hint": "x", "image": None, "subject": "s"}
    write(path.with_name("problems.json"), {str(n): problem for n in range(3)})
    write(path.with_name("pid_splits.json"), {"train": ["0"], "val": ["1"], "test": ["2"]})


def folder_of(load: Callable[[Path], Any]) -> Callable[[Path], None]:
    """A reader of a file by that of its folder."""

    def read(path: Path) -> None:
        load(path.parent)

    return read


DATA_SETS: dict[str, tuple[str, Callable[[Path], Any], Callable[[Path], Any]]] = {
    "vqa questions": (QUESTIONS, vqa, read_vqa),
    "vqa annotations": (ANNOTATIONS, vqa, read_vqa),
    "nlvr2": ("train.json", nlvr2, folder_of(load_nlvr2)),
    "karpathy": ("dataset_a.json", karpathy, folder_of(load_captions)),
    "llava": ("train.json", llava, folder_of(load_answers)),
    "llava questions": ("asked.jsonl", llava_questions, lambda path: load_questions(path, path.parent)),
    "slake": ("train.json", slake, folder_of(load_answers)),
    "scienceqa problems": ("problems.json", scienceqa, folder_of(load_answers)),
    "scienceqa splits": ("pid_splits.json", scienceqa, folder_of(load_answers)),
    "labels": ("a.json", lambda path: write(path, ["yes", "no"]), read_labels),
}
"""File, what writes the data set that it is of, and what reads that."""
