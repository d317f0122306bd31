from __future__ import annotations

import numpy as np
import pytest
import torch

from das_gym.engine import precision as room
from das_gym.engine.precision import PRECISIONS, bfloat16_hardware, cpu_flags, resolve_precision

MASKS = np.eye(12, dtype=bool)


@pytest.fixture
def no_bfloat16(monkeypatch):
    """A CPU without the instructions."""
    monkeypatch.setattr(room, "cpu_flags", frozenset)


@pytest.fixture
def has_bfloat16(monkeypatch):
    """A CPU with them, as far as anyone can tell."""
    monkeypatch.setattr(room, "cpu_flags", lambda: frozenset({"avx512_bf16"}))


class TestDetection:
    def test_torch_and_linux_agree(self, monkeypatch):
        told = cpu_flags()
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
        assert cpu_flags() == told

    @pytest.mark.parametrize(
        ("flags", "found"),
        [
            ("fpu avx2 avx512_bf16 avx512f", {"avx512_bf16"}),
            ("fpu amx_bf16 avx512_bf16 amx_tile", {"amx_bf16", "avx512_bf16"}),
            ("fpu avx2 avx512f", set()),
        ],
    )
    def test_reads_cpuinfo(self, monkeypatch, tmp_path, flags, found):
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
        cpuinfo = tmp_path / "cpuinfo"
        cpuinfo.write_text(f"processor\t: 0\nmodel name\t: X\nflags\t\t: {flags}\nbugs\t:\n")
        assert cpu_flags(cpuinfo) == found

    def test_elsewhere_nothing_is_assumed(self, monkeypatch, tmp_path):
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
        assert cpu_flags(tmp_path / "none") == frozenset()
        assert bfloat16_hardware("meta") is None

    def test_torch_without_onednn(self, has_bfloat16, monkeypatch):
        assert bfloat16_hardware("cpu") == "avx512_bf16"
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert bfloat16_hardware("cpu") is None


class TestResolving:
    def test_without_the_instructions(self, no_bfloat16):
        assert resolve_precision("auto", "cpu") == "float32"
        with pytest.raises(ValueError, match=r"this cpu has no bfloat16 instructions.*'bfloat16-emulated'"):
            resolve_precision("bfloat16", "cpu")
        assert resolve_precision("bfloat16-emulated", "cpu") == "bfloat16-emulated"

    def test_with_them(self, has_bfloat16):
        assert resolve_precision("auto", "cpu") == resolve_precision("bfloat16", "cpu") == "bfloat16"
        assert resolve_precision("float32", "cpu") == "float32"

    def test_unknown(self):
        with pytest.raises(ValueError, match=f"precision='half' is unknown; choose one of {', '.join(PRECISIONS)}"):
            resolve_precision("half", "cpu")


class TestScoring:
    @pytest.mark.parametrize("model", ["METER", "ViLT"])
    def test_close_to_float32_and_not_equal(self, worlds, model):
        world = worlds[model, torch.float32]
        exact = world.evaluator().evaluate(MASKS, world.examples, divergences=True)
        rounded = world.evaluator(precision="bfloat16-emulated").evaluate(MASKS, world.examples, divergences=True)
        difference = np.abs(rounded.losses - exact.losses)
        assert 1e-5 < difference.max() < 0.1
        assert rounded.losses.dtype == np.float64
        assert difference.max() < np.ptp(exact.losses) / 10
        unskipped = world.evaluator(precision="bfloat16-emulated")
        assert unskipped.evaluate(np.zeros((1, 12)), world.examples, divergences=True).divergences[0] == 0

    def test_streams_and_head_stay_in_float32(self, meter):
        evaluator = meter.evaluator(precision="bfloat16-emulated")
        seen = []
        hook = meter.head[0].register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
        try:
            evaluator.losses(MASKS, meter.examples)
        finally:
            hook.remove()
        assert {tensor.dtype for pair in seen for tensor in pair} == {torch.float32}

    def test_reported(self, meter, has_bfloat16):
        assert "precision float32" in repr(meter.evaluator())
        assert "METER on vqa, cpu, precision bfloat16 (avx512_bf16)" in repr(meter.evaluator(precision="auto"))
        assert meter.evaluator(precision="auto").precision == "bfloat16"

    def test_refused(self, meter, no_bfloat16):
        with pytest.raises(ValueError, match="use 'float32', or 'auto'"):
            meter.evaluator(precision="bfloat16")
