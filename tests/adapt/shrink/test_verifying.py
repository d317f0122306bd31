"""What a fresh process says is compared with the masked model: the same passes, whatever differs is named."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from das_gym.adapt.shrink import fresh, verifying
from das_gym.adapt.shrink.recovery import Recovery, RecoveryConfig
from das_gym.adapt.shrink.saving import save
from das_gym.adapt.shrink.verifying import NotTheSameError, Questions, check_generates, questions, verify

from das_gym.models.inputs import Prompt
from das_gym.models.transformers.comparison import NoiseImage
from das_gym.models.transformers.layer_removal import pruned_copy
from das_gym.models.transformers.loading import load_vlm
from das_gym.models.transformers.model import VLM
from das_gym.problem.loading import Problem
from das_gym.tasks.answering.examples import AnswerExample
from das_gym.tasks.answering.task import AnsweringTask
from tests.adapt.shrink.conftest import MASK
from tests.models.transformers import tiny

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Have this process be the fresh one, to save seconds; what it says can be changed. A test elsewhere uses a real one."""

    def be_fresh(change: Change = lambda found: None) -> None:
        def ask(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
            torch.save(dict(given), tmp_path / "given.pt")
            with monkeypatch.context() as patch:
                patch.setattr(sys, "meta_path", list(sys.meta_path))
                fresh.main(str(folder), str(tmp_path / "given.pt"), str(tmp_path / "wanted.pt"))
            found = torch.load(tmp_path / "wanted.pt", weights_only=True)
            change(found)
            return found

        monkeypatch.setattr(verifying, "ask_fresh", ask)

    return be_fresh


def shrunk(problem: Problem, folder: Path, source: Path) -> tuple[VLM, Questions]:
    """A saved and recovered model."""
    smaller = pruned_copy(problem.vlp, MASK)
    config = RecoveryConfig(steps=2, batch_size=4, learning_rate=1e-2)
    Recovery(smaller, problem.vlp, problem.task, problem.splits.train, config).run()
    save(smaller.model, folder, source, source, torch.float32)
    return smaller, questions(problem.vlp, problem.task, problem.splits.test)


def test_a_recovered_folder_is_the_masked_model_with_its_parameters(
    problem_of: Callable[[str], Problem], folder_of: Callable[[str], Path], here: Callable[..., None], tmp_path: Path
):
    here()
    smaller, asked = shrunk(problem_of("llava"), tmp_path / "out", folder_of("llava"))
    found = verify(tmp_path / "out", smaller, MASK, asked, torch.float32)
    assert found.logits_apart < 1e-5
    assert found.ways == ("with a cache", "without a cache", "with left padding")
    with pytest.raises(NotTheSameError, match="logits"):  # the model as it was before recovery
        verify(tmp_path / "out", pruned_copy(problem_of("llava").vlp, MASK), MASK, asked, torch.float32)
    with pytest.raises(NotTheSameError, match=r"are torch\.float32, not torch\.bfloat16"):
        verify(tmp_path / "out", smaller, MASK, asked, torch.bfloat16)


def other_token(way: str) -> Change:
    def change(found: dict[str, Any]) -> None:
        found["said"][way][0][1] = 300 if found["said"][way][0][1] != 300 else 301

    return change


def other_logit(found: dict[str, Any]) -> None:
    found["logits"][1][0, 7] += 0.1 * found["logits"][1].abs().max()


def no_number(found: dict[str, Any]) -> None:
    found["logits"][0][0, 7] = torch.nan


def other_words(found: dict[str, Any]) -> None:
    found["tokens"][0] = [1, 2]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (other_logit, r"the logits of .* are 0\.1 of their largest away from those of the masked model \(allowed: 0.001\)"),
        (no_number, "are inf of their largest away"),
        (other_words, "the tokenizer in .* makes other tokens than the source's"),
        (other_token("with a cache"), r"with a cache, generates \[.*\], of which token 1 is not what the masked model says"),
        (other_token("without a cache"), "without a cache, generates"),
        (other_token("with left padding"), "with left padding, generates"),
    ],
)
def test_what_differs_is_named(
    problem_of: Callable[[str], Problem],
    folder_of: Callable[[str], Path],
    here: Callable[..., None],
    tmp_path: Path,
    change: Change,
    text: str,
):
    here(change)
    smaller, asked = shrunk(problem_of("llava"), tmp_path / "out", folder_of("llava"))
    with pytest.raises(NotTheSameError, match=text):
        verify(tmp_path / "out", smaller, MASK, asked, torch.float32)


@pytest.mark.parametrize("name", ["llama", "mllama", "qwen3_vl", "glm4_moe"])  # tiny.WORKING all do, in half a minute
def test_other_types_are_the_same_in_transformers_alone(name: str, here: Callable[..., None], tmp_path: Path):
    """In float64, on pictures of different sizes."""
    here()
    source = tiny.save(name, tmp_path / "source", torch.float64)
    asked = asked_of(source)
    vlm = asked.vlm
    mask = np.zeros(len(vlm.layers), dtype=bool)
    mask[[2 if name == "mllama" else 0, -1]] = True  # its layer 1 looks at pictures and cannot be the first
    smaller = pruned_copy(vlm, mask)
    check_generates(smaller, asked)
    save(smaller.model, tmp_path / "out", source, source, torch.float64)
    found = verify(tmp_path / "out", smaller, mask, asked, torch.float64)
    assert found.logits_apart < (1e-6 if name == "glm4_moe" else 1e-12)  # older versions route in float32
    assert found.ways[:2] == ("with a cache", "without a cache")


def asked_of(source: Path) -> Questions:
    """Two questions on pictures of different sizes, of a model loaded anew."""
    vlm = load_vlm(source)
    vlm.remove_adapters()
    vlm.freeze()
    task = AnsweringTask(vlm.inputs(source))  # type: ignore[arg-type]
    pictures = [(NoiseImage(n, 32 * n, 32),) if task.processor.sees else () for n in (1, 2)]
    asked = [Prompt("how many circles", pictures[0], "2"), Prompt("what colour is it then", pictures[1], "red green")]
    examples = [AnswerExample(str(n), p.images, p.question, p.answer) for n, p in enumerate(asked)]
    return Questions(vlm, task, examples)


def test_a_model_that_generates_wrongly_without_its_first_layer_is_refused_early(tmp_path: Path):
    """Transformers' mllama reads the length of its cache off the first layer, which must not be a cross-attention."""
    asked = asked_of(tiny.save("mllama", tmp_path / "source", torch.float64))
    with pytest.raises(
        NotTheSameError, match=r"MllamaForCond\w+ cannot do without these layers: .* with left padding; give"
    ):
        check_generates(pruned_copy(asked.vlm, [1, 0, 0, 0]), asked)


def test_what_the_whole_model_does_no_better_is_not_the_masks_fault(
    problem_of: Callable[[str], Problem], monkeypatch: pytest.MonkeyPatch
):
    """Gemma 2's window, where it is short, counts the padding: the whole model says something else with it, too."""
    problem = problem_of("llava")
    asked = questions(problem.vlp, problem.task, problem.splits.reward)
    smaller, whole_fails = pruned_copy(problem.vlp, MASK), True

    def say(vlm: Any, *arguments: Any, extra: int = 0, **more: Any) -> list[list[int]]:
        return [[1 if extra and (vlm is smaller or whole_fails) else 2]]

    monkeypatch.setattr(verifying, "generate_batch", say)
    check_generates(smaller, asked)
    whole_fails = False
    with pytest.raises(NotTheSameError, match="with left padding"):
        check_generates(smaller, asked)


def test_a_folder_that_does_not_load_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of a message of several lines, the one that says what is wrong; packages on PYTHONPATH are there."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "torch_of_a_cluster.py").write_text("WHY = 'the weights are gone'\n")
    script = tmp_path / "fresh.py"
    script.write_text("import torch_of_a_cluster as t\nraise RuntimeError(f'{t.WHY}\\n\\nYou can update Transformers.')\n")
    monkeypatch.setattr(fresh, "__file__", str(script))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    with pytest.raises(
        NotTheSameError, match=r"out does not run in transformers alone: RuntimeError: the weights are gone$"
    ):
        verifying.ask_fresh(Path("out"), {})


def test_das_gym_cannot_be_imported_there():
    with pytest.raises(ImportError, match="has to load without das_gym"):
        fresh.NoDasGym.find_spec("das_gym.models")
    assert fresh.NoDasGym.find_spec("torch") is None


def test_the_fresh_process_ends_with_the_one_that_waits_for_it(tmp_path: Path):
    """It would go on with the model in memory."""
    os.mkfifo(tmp_path / "given")  # nobody writes there
    command = [sys.executable, "-P", fresh.__file__, str(tmp_path), str(tmp_path / "given"), str(tmp_path / "wanted")]
    child = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert child.stdin is not None
    try:
        child.stdin.close()
        assert child.wait(timeout=60) == 1
    finally:
        child.kill()
        child.wait()


def test_the_fresh_process_is_given_an_input_that_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = tmp_path / "script.py"
    script.write_text("import select, sys\nsys.exit(f'Error: ended' if select.select([0], [], [], 0)[0] else 'Error: open')")
    monkeypatch.setattr(fresh, "__file__", str(script))
    with pytest.raises(NotTheSameError, match=r"Error: open"):
        verifying.ask_fresh(tmp_path, {})
