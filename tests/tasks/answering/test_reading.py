"""Which format a folder has, and how it is divided."""

import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from das_gym.data.entries import BadExamples
from das_gym.data.images import ImageFile
from das_gym.shapes.nlvr2 import write_shapes_nlvr2
from das_gym.tasks.answering.examples import SHORT_ANSWER, Conversation, divide
from das_gym.tasks.answering.files import part_in_name
from das_gym.tasks.answering.reading import load_answers
from das_gym.tasks.answering.task import AnsweringTask
from tests.arrow_tables import write_nlvr2, write_vqa
from tests.tasks.answering.making import assert_disjoint, draw, entry, images_of, llava_folder, parts_of, write, write_lines


def sizes(root: Path) -> list[int]:
    return [len(part) for part in parts_of(load_answers(root)).values()]


@pytest.mark.parametrize(
    ("counts", "wanted"),
    [
        ({"train": 30, "val": 6, "test": 4}, [30, 6, 4]),
        ({"train": 30, "test": 4}, [27, 3, 4]),
        ({"train": 30, "val": 6}, [30, 3, 3]),
        ({"val": 6, "test": 4}, [3, 3, 4]),
        ({"conversations": 30}, [24, 3, 3]),
        ({"slake_train_en": 10, "slake_test-dev_en": 4, "slake_validate_en": 2}, [10, 2, 4]),
    ],
)
def test_files_and_the_splits_that_come_of_them(tmp_path, counts, wanted):
    root = llava_folder(tmp_path / "data", **counts)
    assert sizes(root) == wanted
    assert_disjoint(load_answers(root))


@pytest.mark.parametrize(
    ("name", "part", "rest"),
    [
        ("aid_train20.json", "train", ("aid", "20")),
        ("testval_llava_en.json", "test", ("llava", "en")),
        ("my-dev.v2.json", "val", ("my", "v", "2")),
        ("llava_v1_5_mix665k.json", "all", ("llava", "v", "1", "5", "mix", "665", "k")),
        ("contest.json", "all", ("contest",)),
    ],
)
def test_part_of_a_file_name(name, part, rest):
    assert part_in_name(Path(name)) == (part, rest)


def test_split_is_independent_of_folder_and_order(tmp_path):
    root = llava_folder(tmp_path / "here", everything=40)
    moved = tmp_path / "there" / "deep"
    shutil.copytree(root, moved / "data")
    entries = json.loads((root / "everything.json").read_text())
    write(moved / "data" / "everything.json", [dict(e, image=f"./{e['image']}") for e in reversed(entries)])
    parts, moved_parts = (
        {name: {Path(key).name for key in keys} for name, keys in images_of(load_answers(path)).items()}
        for path in (root, moved / "data")
    )
    assert parts == moved_parts
    assert parts["reward"] == {"1.png", "15.png", "16.png", "35.png"}


IMAGES = st.lists(st.lists(st.integers(0, 30), max_size=3, unique=True), min_size=3, max_size=60)
PARTS = st.lists(st.sampled_from(("train", "val", "test")), min_size=60, max_size=60)


def conversations(numbers: list[list[int]]) -> list[Conversation]:
    return [
        Conversation(
            where=f"x.json: [{index}]",
            key=str(index),
            images=tuple(ImageFile(Path(f"/images/{number}.png")) for number in own),
            names=tuple(f"{number}.png" for number in own),
            rounds=(("<image>" * len(own) + f"What is {index}?", "a"), ("And?", "b")),
        )
        for index, own in enumerate(numbers)
    ]


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(IMAGES, PARTS)
def test_files_that_share_images_are_divided_or_rejected(numbers, names):
    made = conversations(numbers)
    parts = {name: [c for c, part in zip(made, names, strict=False) if part == name] for name in ("train", "val", "test")}
    parts = {name: part for name, part in parts.items() if part}
    bad = BadExamples("skip")
    try:
        splits = divide(parts, "x.json", bad)
    except ValueError as error:
        assert re.search("expected . or more|holds no usable example", str(error))  # noqa: PT017
        return
    assert_disjoint(splits)
    assert sum(map(len, parts_of(splits).values())) + 2 * len(splits.left_out) == 2 * len(made)
    assert {e.key for e in splits.test} >= {f"{c.key}#1" for c in parts.get("test", ())} or len(parts) == 1


# --- known formats ---


def test_vqav2_with_the_instruction_and_all_annotators(shapes_folder):
    splits = load_answers(shapes_folder)
    example = splits.test[0]
    assert example.question.endswith(f"?\n{SHORT_ANSWER}")
    assert (example.rounds, example.options, len(example.images)) == ((), (), 1)
    assert example.answers == (example.answer,) * 10
    assert {"count", "exist"} & {e.kind for e in splits.train}
    assert_disjoint(splits)


def test_answers_that_normalising_leaves_nothing_of(shapes_folder, tmp_path):
    root = shutil.copytree(shapes_folder, tmp_path / "vqa")
    path = root / "v2_mscoco_train2014_annotations.json"
    whole = json.loads(path.read_text())
    first, second = whole["annotations"][:2]
    first["multiple_choice_answer"], first["answers"] = "a", [{"answer": "A"}, {"answer": "the"}]
    second["multiple_choice_answer"], second["answers"] = "a", [{"answer": "a"}, {"answer": "A"}, {"answer": "heron"}]
    write(path, whole)
    before, splits = load_answers(shapes_folder), load_answers(root)
    assert splits.train[0].answer == "heron"
    assert len(splits.train) == len(before.train) - 1
    assert splits.left_out == (f"{root}: 1 questions whose every answer is empty when it is normalized",)
    assert len(splits.left_out) == 1


def test_nlvr2_through_a_prompt(tmp_path):
    root = write_shapes_nlvr2(tmp_path / "nlvr2", directories=3, directory_sets=1, test_sets=1)
    splits = load_answers(root)
    example = splits.test[0]
    assert [image.key.rpartition("-")[2] for image in example.images] == ["img0.png", "img1.png"]
    assert re.fullmatch(r".+\nIs this true of the two images\? Answer with true or false\.", example.question)
    assert example.options == ("true", "false")
    assert {e.answer for e in splits.test} == {"true", "false"}
    assert_disjoint(splits)
    (root / "data").mkdir()
    for path in root.glob("*.json"):
        path.rename(root / "data" / path.name)
    assert list(load_answers(root).test) == list(splits.test)


def test_arrow_tables(tmp_path):
    vqa, nlvr2 = load_answers(write_vqa(tmp_path / "vqa")), load_answers(write_nlvr2(tmp_path / "nlvr2"))
    assert vqa.train[0].answer == "heron"
    assert vqa.train[0].answers.count("heron") == 4
    assert nlvr2.train[0].options == ("true", "false")
    for splits in (vqa, nlvr2):
        assert_disjoint(splits)
    assert list(load_answers(tmp_path / "nlvr2" / "nlvr2_train.arrow").test) == list(nlvr2.test)
    assert list(load_answers(tmp_path / "vqa" / "vqav2_val.arrow").test) == list(vqa.test)


def slake(root: Path, **changes: object) -> Path:
    """Slake's own files: four questions about each image, one of them Chinese."""

    def asked(n: int, m: int) -> dict[str, object]:
        known = {"img_id": n, "img_name": f"xmlab{n}/source.jpg", "question": f"Question {m}?", "answer": "Liver"}
        kinds = {"q_lang": "zh" if m == 3 else "en", "answer_type": "OPEN" if m else "CLOSED", "qid": n * 10 + m}
        return {**known, **kinds, **changes}

    for name, images in (("train", range(12)), ("validate", range(12, 15)), ("test", range(15, 18))):
        write(root / f"{name}.json", [asked(n, m) for n in images for m in range(4)])
        draw(*(root / "imgs" / f"xmlab{n}" / "source.jpg" for n in images))
    return root


def test_slake(tmp_path):
    root = slake(tmp_path / "Slake1.0")
    splits = load_answers(root)
    assert [len(part) for part in parts_of(splits).values()] == [36, 9, 9]
    example = splits.test[1]
    assert (example.key, example.kind, example.answer) == ("test.json/151", "OPEN", "Liver")
    assert example.question == f"Question 1?\n{SHORT_ANSWER}"
    assert example.images == (ImageFile(root / "imgs" / "xmlab15" / "source.jpg"),)
    assert_disjoint(splits)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"answer": " "}, r"train\.json: \[0\] \(qid 0\): `answer` is empty"),
        ({"q_lang": "zh"}, r"train\.json holds no usable example"),
    ],
)
def test_bad_slake_entry_is_named(tmp_path, changes, text):
    root = slake(tmp_path / "Slake1.0", **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        load_answers(root)


def scienceqa(root: Path) -> Path:
    """Problems with and without images, as the official repository has them."""
    problems, pids = {}, {}
    for split, numbers in (("train", range(1, 9)), ("val", range(9, 12)), ("test", range(12, 15))):
        pids[split] = [str(n) for n in numbers]
        for n in numbers:
            problems[str(n)] = {
                "question": f"Which is {n}?",
                "choices": ["a cat", "a dog", "a heron"],
                "answer": n % 3,
                "hint": "Look." if n % 2 else "",
                "image": "image.png" if n % 2 else None,
                "subject": "natural science" if n % 2 else "language science",
                "split": split,
            }
            if n % 2:
                draw(root / "images" / split / str(n) / "image.png")
    pids["minival"] = pids["val"][:1]
    write(root / "problems.json", problems)
    write(root / "pid_splits.json", pids)
    return root


def test_scienceqa(tmp_path):
    root = scienceqa(tmp_path / "ScienceQA")
    splits = load_answers(root)
    assert [len(part) for part in parts_of(splits).values()] == [8, 3, 3]
    first, second, _ = splits.test
    asked = "Which is 12?\nContext: N/A\nOptions: (A) a cat (B) a dog (C) a heron\nAnswer with the option's letter from the "
    assert first.question.startswith(asked)
    assert (first.key, first.answer, first.options, first.images) == ("test/12", "A", ("A", "B", "C"), ())
    assert (second.answer, second.kind) == ("B", "natural science")
    assert second.images == (ImageFile(root / "images" / "test" / "13" / "image.png"),)
    assert "\nContext: Look.\n" in second.question
    assert_disjoint(splits)
    assert list(load_answers(root / "problems.json").test) == list(splits.test)
    shutil.copy(second.images[0].path, root / "images" / "train" / "1" / "image.png")
    with pytest.warns(UserWarning, match="1 images of the train split are in the test split"):  # as published
        assert list(load_answers(root).train) == list(splits.train)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"answer": 3}, r"problems\.json: 13: wrong `answer`"),
        ({"choices": ["one"]}, r"problems\.json: 13: wrong `choices`"),
    ],
)
def test_bad_problem_is_named_or_skipped(tmp_path, changes, text):
    root = scienceqa(tmp_path / "sqa")
    problems = json.loads((root / "problems.json").read_text())
    problems["13"] |= changes
    write(root / "problems.json", problems)
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        load_answers(root)
    splits = load_answers(root, "skip")
    assert [example.key for example in splits.test] == ["test/12", "test/14"]
    assert len(splits.left_out) == 1


def test_unknown_and_repeated_pids_are_named(tmp_path):
    root = scienceqa(tmp_path / "sqa")
    pids = json.loads((root / "pid_splits.json").read_text())
    write(root / "pid_splits.json", pids | {"test": ["12", "99", "3"]})
    with pytest.raises(ValueError, match=r"pid_splits\.json: test\[1\] is not in problems\.json: got 99"):
        load_answers(root)
    splits = load_answers(root, "skip")
    assert [example.key for example in splits.test] == ["test/12"]
    assert "test[2] repeats `pid` 3 of" in splits.left_out[1]
    write(root / "pid_splits.json", {"trains": []})
    with pytest.raises(ValueError, match=r"pid_splits\.json has no splits: got trains"):
        load_answers(root)


def aid(root: Path) -> Path:
    draw(*(root / folder / f"{n}.jpg" for folder in ("Airport", "BareLand", "rail_way-Station") for n in range(7)))
    (root / "Airport" / "notes.txt").touch()
    return root


def test_class_folders(tmp_path):
    splits = load_answers(aid(tmp_path / "data"))
    assert [len(part) for part in parts_of(splits).values()] == [17, 2, 2]
    (example,) = [e for part in parts_of(splits).values() for e in part if e.key == "BareLand/3.jpg"]
    assert example.question == f"What is the label for this image?\n{SHORT_ANSWER}"
    assert (example.answer, example.options) == ("bare land", ("airport", "bare land", "rail way station"))
    assert_disjoint(splits)
    copies = [tmp_path / "data" / folder / f"{n}.jpg" for folder in ("Airport", "rail_way-Station") for n in range(4)]
    for path in copies:
        shutil.copy(example.images[0].path, path)
    images = images_of(load_answers(tmp_path / "data"))
    assert sum(not keys.isdisjoint(map(str, copies)) for keys in images.values()) == 1


def test_class_folders_of_parts(tmp_path):
    """The layout of torchvision's ImageFolder; split folders that hold images themselves are no classes."""
    for part in ("train", "valid"):
        aid(tmp_path / "data" / part)
        draw(*(tmp_path / "images" / part / f"{n}.jpg" for n in range(3)))
    splits = load_answers(tmp_path / "data")
    assert [len(part) for part in parts_of(splits).values()] == [21, 10, 11]
    assert splits.train[0].key == "train/Airport/0.jpg"
    assert splits.train[0].options == ("airport", "bare land", "rail way station")
    with pytest.raises(ValueError, match="holds no data in a known format"):
        load_answers(tmp_path / "images")
    shutil.copy(tmp_path / "data" / "valid" / "Airport" / "0.jpg", tmp_path / "data" / "train" / "BareLand" / "new.jpg")
    with pytest.raises(ValueError, match=r"train/BareLand/new\.jpg shares an image with another split"):
        load_answers(tmp_path / "data")
    aid(tmp_path / "data" / "validation")
    with pytest.raises(ValueError, match="two folders for one part"):
        load_answers(tmp_path / "data")


# --- unknown formats ---


@pytest.mark.parametrize("content", ['{"data": [{"conversations": []}]}', "", '[{"image": "a.png", "caption": "b"}]'])
def test_unknown_data_are_rejected(tmp_path, content):
    with pytest.raises(ValueError, match="in a known format: got an empty folder, expected LLaVA's conversations"):
        load_answers(tmp_path)
    aid(tmp_path)  # folders of classes next to a damaged file are its images
    (tmp_path / "train.json").write_text(content)
    for data_root in (tmp_path, tmp_path / "train.json"):
        with pytest.raises(ValueError, match=r"in a known format.*`split=questions`"):
            load_answers(data_root)


@pytest.mark.parametrize(
    ("content", "holds"),
    [
        ('[{"image": "a.png", "question": "b?", "answer": "c"}]', "entries with answer, image, question"),
        ('[{"image": "a.png", "question"', r"damaged JSON \(Expecting ':' delimiter"),
        ("[]", "no entries"),
    ],
)
def test_unknown_data_are_described(tmp_path, content, holds):
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(ValueError, match=rf"train\.json holds {holds}"):
        load_answers(tmp_path)
    with pytest.raises(ValueError, match=rf"train\.json is not in a known format: it holds {holds}.* task=text"):
        load_answers(tmp_path / "train.json")


@pytest.mark.parametrize(("content", "form"), [("", "is empty"), ("[]\n", "is empty"), ('{"a": 1}', "another structure")])
def test_an_empty_part_is_not_called_another_structure(tmp_path, content, form):
    draw(tmp_path / "0.png")
    write(tmp_path / "train.json", [entry(0)])
    (tmp_path / "test.json").write_text(content)
    with pytest.raises(ValueError, match=rf"test\.json is named like the test part of train\.json but .*{form}"):
        load_answers(tmp_path)


def test_duplicate_files_of_a_part_are_rejected(tmp_path):
    root = llava_folder(tmp_path / "data", train=9, training=3)
    with pytest.raises(ValueError, match=r"two files for train: got .*train\.json and .*training\.json"):
        load_answers(root)


def test_mixed_formats_in_a_folder_are_rejected(tmp_path):
    root = slake(tmp_path / "data")
    llava_folder(root, train_llava=9, test_llava=3)
    with pytest.raises(ValueError, match=r"holds 2 data sets: .*_llava\.json \(LLaVA's conversations\), .* \(Slake's own"):
        load_answers(root)
    assert sizes(root / "test_llava.json") == [8, 1, 3]
    assert sizes(root / "validate.json") == [36, 9, 9]


def test_questions_of_vqas_server_are_read_alone(tmp_path):
    """test-dev has no public answers: its questions are asked like all others, and known by their own numbers."""
    questions = [{"image_id": 5, "question": "How many?", "question_id": 50}]
    write(tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json", {"questions": questions})
    draw(tmp_path / "test2015/COCO_test2015_000000000005.jpg")
    [example] = AnsweringTask.load_part(tmp_path, "test-dev2015")
    assert (example.question, example.answer, example.question_id) == (f"How many?\n{SHORT_ANSWER}", "", 50)
    assert not AnsweringTask.is_labelled([example])


def test_questions_alone_are_read_from_llavas_files(tmp_path):
    lines = [{"question_id": "a", "image": "1.png", "text": "what is it?", "category": "detail"}]
    file = write_lines(tmp_path / "asked.jsonl", [*lines, {"question_id": 7, "text": "two plus two?"}])
    draw(tmp_path / "images/1.png")
    seen, plain = AnsweringTask.load_part(tmp_path, "questions")
    assert (seen.question, seen.question_id, seen.kind, seen.answer) == ("what is it?", "a", "detail", "")
    assert seen.images[0].path == tmp_path / "images/1.png"
    assert (plain.question_id, plain.images) == (7, ())
    with pytest.raises(ValueError, match=r"`split=questions`"):
        load_answers(file)
    write_lines(file, [{"question_id": "7", "text": "one?"}, {"question_id": 7, "text": "two?"}])
    with pytest.raises(ValueError, match=r"line 2 repeats `question_id` 7"):
        AnsweringTask.load_part(file, "questions")
    root = llava_folder(tmp_path / "data", train=4)
    with pytest.raises(ValueError, match=r"got none, expected one file of questions"):
        AnsweringTask.load_part(root, "questions")
    with pytest.raises(ValueError, match=r"`split` of LLaVA's conversations in .*got 'val2014'"):
        AnsweringTask.load_part(root, "val2014")
