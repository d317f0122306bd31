"""The saved folder in a fresh process is compared with the masked model; whatever differs is named."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from das_gym.adapt.shrinking import subprocess_main, verifying
from das_gym.adapt.shrinking.recovery import recover_student, temporarily_merged
from das_gym.adapt.shrinking.saving import save
from das_gym.adapt.shrinking.settings import RecoveryConfig
from das_gym.adapt.shrinking.verifying import Probes, VerificationError, check_generation, verify

from das_gym.data.images import NoiseImage
from das_gym.models.inputs import Prompt
from das_gym.models.transformers.layer_removal import pruned_copy
from das_gym.models.transformers.loading import load_vlm
from das_gym.models.transformers.model import VLM
from das_gym.problem.problem import Problem
from tests.adapt.conftest import MASK
from tests.models.transformers import tiny

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def in_this_process(monkeypatch, tmp_path) -> Callable[..., None]:
    """Run the subprocess's main function here, to save seconds; its output can be changed."""

    def install(change: Change = lambda found: None) -> None:
        def run(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
            torch.save(dict(given), tmp_path / "input.pt")
            with monkeypatch.context() as patch:
                patch.setitem(sys.modules, "das_gym", sys.modules["das_gym"])  # which the function takes away
                subprocess_main.main(str(folder), str(tmp_path / "input.pt"), str(tmp_path / "output.pt"))
            found = torch.load(tmp_path / "output.pt", weights_only=True)
            change(found)
            return found

        monkeypatch.setattr(verifying, "run_in_subprocess", run)

    return install


def shrunk(problem: Problem, folder: Path, source: Path) -> tuple[VLM, Probes]:
    """Return a recovered model that was saved."""
    smaller = pruned_copy(problem.vlp, MASK)
    config = RecoveryConfig("full", steps=2, batch_size=4, learning_rate=1e-3)
    with temporarily_merged(smaller, problem.vlp, config, recover_student(smaller, problem, config)):
        pass  # what `full` trains is the student's own
    save(smaller.model, folder, source, source, torch.float32)
    return smaller, Probes.from_examples(problem.vlp, problem.task, problem.splits.test)


def test_verify_accepts_the_saved_model_and_no_other(problem_of, folder_of, in_this_process, tmp_path):
    in_this_process()
    smaller, probes = shrunk(problem_of("llava"), tmp_path / "out", folder_of("llava"))
    found = verify(tmp_path / "out", smaller, MASK, probes, torch.float32)
    assert found.logits_difference < 1e-5
    assert found.ways == ("with a cache", "without a cache", "with left padding")
    with pytest.raises(VerificationError, match="logits"):  # the model before recovery
        verify(tmp_path / "out", pruned_copy(problem_of("llava").vlp, MASK), MASK, probes, torch.float32)
    with pytest.raises(VerificationError, match=r"torch\.float32, not torch\.bfloat16"):
        verify(tmp_path / "out", smaller, MASK, probes, torch.bfloat16)


def another_token(way: str) -> Change:
    def change(found: dict[str, Any]) -> None:
        found["generated"][way][0][1] = 300 if found["generated"][way][0][1] != 300 else 301

    return change


def another_logit(found: dict[str, Any]) -> None:
    found["logits"][1][0, 7] += 0.1 * found["logits"][1].abs().max()


def other_tokens(found: dict[str, Any]) -> None:
    found["tokens"][0] = [1, 2]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (other_tokens, "tokenizer"),
        (another_logit, r"relative difference 0\.1, allowed 0\.001"),
        (another_token("with a cache"), "with a cache, generates .* token 1 "),
        (another_token("with left padding"), "with left padding, generates"),
    ],
)
def test_verify_names_what_differs(problem_of, folder_of, in_this_process, tmp_path, change, text):
    in_this_process(change)
    smaller, probes = shrunk(problem_of("llava"), tmp_path / "out", folder_of("llava"))
    with pytest.raises(VerificationError, match=text):
        verify(tmp_path / "out", smaller, MASK, probes, torch.float32)


@pytest.mark.parametrize("name", ["mllama", "qwen3_vl", "glm4_moe", "lfm2_vl"])
def test_verify_other_types_in_float64(name, in_this_process, tmp_path):
    in_this_process()
    source = tiny.save(name, tmp_path / "source", torch.float64)
    probes = probes_of(source)
    mask = np.zeros(len(probes.vlm.layers), dtype=bool)
    mask[[2 if name == "mllama" else 0, -1]] = True  # its layer 1 has cross-attention and cannot be the first
    smaller = pruned_copy(probes.vlm, mask)
    check_generation(smaller, probes)
    save(smaller.model, tmp_path / "out", source, source, torch.float64)
    found = verify(tmp_path / "out", smaller, mask, probes, torch.float64)  # LFM2 ends in a layer without keys then
    assert found.logits_difference < (1e-6 if name == "glm4_moe" else 1e-12)  # older versions route in float32
    assert found.ways[:2] == ("with a cache", "without a cache")


def probes_of(source: Path) -> Probes:
    """Return two questions on images of different sizes."""
    vlm = load_vlm(source)
    vlm.remove_adapters()
    vlm.freeze()
    processor: Any = vlm.make_processor(source)
    images = [(NoiseImage(n, 32 * n, 32),) if processor.takes_images else () for n in (1, 2)]
    prompts = [Prompt("how many circles", images[0], "2"), Prompt("what colour is it then", images[1], "red green")]
    return Probes(vlm, processor, prompts)


def test_check_generation_rejects_a_wrong_first_layer(tmp_path):
    """transformers' mllama reads the length of its cache off the first layer, which must not be a cross-attention."""
    probes = probes_of(tiny.save("mllama", tmp_path / "source", torch.float64))
    with pytest.raises(VerificationError, match=r"MllamaForCond\w+ does not work without these layers"):
        check_generation(pruned_copy(probes.vlm, [1, 0, 0, 0]), probes)


def test_check_generation_accepts_what_the_full_model_does_as_well(problem_of, monkeypatch):
    """Gemma 2 counts padding into its sliding window, so that the full model's output changes with padding, too."""
    problem = problem_of("llava")
    probes = Probes.from_examples(problem.vlp, problem.task, problem.splits.reward)
    smaller, full_model_differs = pruned_copy(problem.vlp, MASK), True

    def say(vlm: Any, *arguments: Any, extra: int = 0, **more: Any) -> list[list[int]]:
        return [[1 if extra and (vlm is smaller or full_model_differs) else 2]]

    monkeypatch.setattr(verifying, "generate_batch", say)
    check_generation(smaller, probes)
    full_model_differs = False
    with pytest.raises(VerificationError, match="with left padding"):
        check_generation(smaller, probes)


def test_run_in_subprocess_reports_one_line_and_keeps_stdin_open(tmp_path, monkeypatch):
    """Packages on PYTHONPATH can be imported."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "torch_of_a_cluster.py").write_text("WHY = 'the weights are missing'\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import select, torch_of_a_cluster as t\nassert not select.select([0], [], [], 0)[0], 'stdin has ended'\n"
        "raise RuntimeError(f'{t.WHY}\\n\\nYou can update Transformers.')\n"
    )
    monkeypatch.setattr(subprocess_main, "__file__", str(script))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    with pytest.raises(VerificationError, match=r"RuntimeError: the weights are missing$"):
        verifying.run_in_subprocess(Path("out"), {})
