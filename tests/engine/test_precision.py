from dataclasses import replace

import numpy as np
import pytest
import torch

from das_gym.engine import tree
from das_gym.engine.evaluator import Evaluator
from das_gym.engine.tree import bfloat16_hardware, resolve_precision
from das_gym.problem.config import ProblemConfig
from das_gym.problem.problem import build_problem

MASKS = np.eye(12, dtype=bool)


@pytest.fixture
def with_bfloat16(monkeypatch):
    monkeypatch.setattr(tree, "cpu_flags", lambda: frozenset({"avx512_bf16"}))


def test_cpu_flags_before_torch_2_9(monkeypatch, tmp_path):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    (tmp_path / "cpuinfo").write_text("flags\t\t: avx512f avx512_bf16 amx_tile\n")
    assert tree.cpu_flags(tmp_path / "cpuinfo") == {"avx512_bf16"}
    assert tree.cpu_flags(tmp_path / "none") == frozenset()


def test_bfloat16_hardware_needs_onednn(with_bfloat16, monkeypatch):
    assert bfloat16_hardware("meta") is None
    assert bfloat16_hardware("cpu") == "avx512_bf16"
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert bfloat16_hardware("cpu") is None


def test_resolve_precision_without_instructions(monkeypatch):
    monkeypatch.setattr(tree, "cpu_flags", frozenset)
    assert resolve_precision("auto", "cpu") == "float32"
    for wanted in ("bfloat16", "half"):
        with pytest.raises(ValueError, match="`precision"):
            resolve_precision(wanted, "cpu")


def test_resolve_precision_with_instructions(meter, with_bfloat16):
    assert resolve_precision("float32", "cpu") == "float32"
    assert meter.evaluator(precision="auto").precision == resolve_precision("bfloat16", "cpu") == "bfloat16"


def test_bfloat16_scores_are_close_to_float32(worlds, with_bfloat16):
    world = worlds["ViLT", torch.float32]
    exact = world.evaluator().evaluate(MASKS, world.examples, divergences=True)
    rounded = world.evaluator(precision="bfloat16").evaluate(MASKS, world.examples, divergences=True)
    difference = np.abs(rounded.losses - exact.losses)
    assert 1e-5 < difference.max() < 0.1
    assert rounded.losses.dtype == np.float64
    assert difference.max() < np.ptp(exact.losses) / 10
    full_model = world.evaluator(precision="bfloat16")
    assert full_model.evaluate(np.zeros((1, 12)), world.examples, divergences=True).divergences[0] == 0


def test_streams_and_head_stay_in_float32(meter, with_bfloat16):
    evaluator = meter.evaluator(precision="bfloat16")
    seen = []
    hook = meter.head[0].register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    try:
        evaluator.losses(MASKS, meter.examples)
    finally:
        hook.remove()
    assert {tensor.dtype for pair in seen for tensor in pair} == {torch.float32}


@pytest.mark.parametrize(("changed", "chosen"), [(0.0, "bfloat16"), (1.0, "float32")])
def test_auto_takes_bfloat16_where_the_loss_stays_within_its_noise(tiny_kwargs, with_bfloat16, monkeypatch, changed, chosen):
    scored = Evaluator.evaluate_each

    def evaluate_each(self, *args, **settings):
        scores = scored(self, *args, **settings)
        return replace(scores, losses=scores.losses + changed * (self.precision == "bfloat16"))

    monkeypatch.setattr(Evaluator, "evaluate_each", evaluate_each)
    assert build_problem(ProblemConfig(**tiny_kwargs, precision="auto")).evaluator.precision == chosen
