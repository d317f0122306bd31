from __future__ import annotations

import pytest

from benchmarks import finetune
from benchmarks.models import DAS, load_subject


@pytest.mark.slow
@pytest.mark.parametrize("skipped", [(), DAS])
def test_both_ways_give_the_same_weights(skipped: tuple[str, ...]):
    record = finetune.compare(load_subject("mini", 4), skipped, batch_size=2, steps=2)
    assert record["largest_difference"] < 1e-5
    assert min(record["cached"], record["uncached"]) > 0
