from __future__ import annotations

import pytest

from benchmarks import plain_forward


@pytest.mark.slow
def test_both_forwards_compute_the_same():
    vlp = plain_forward.build(image_size=64, fusion_layers=2, vision_layers=1, text_layers=1)
    for rows in (1, 3):
        record = plain_forward.measure(vlp, rows, repeats=2)
        assert record["largest_difference"] < 1e-5
        assert record["faster"]["low"] <= record["faster"]["median"] <= record["faster"]["high"]
