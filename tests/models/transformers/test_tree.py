"""What a walk over the units of a transformers model holds, against the allocations of real walks."""

import pytest

from tests.engine.test_tree import check_peak
from tests.models.transformers.test_engine import evaluator_of, examples_by_round

pytestmark = pytest.mark.slow  # all of them take seconds


@pytest.mark.parametrize(
    ("name", "units", "vision"), [("llava", "layers", False), ("smolvlm", "sublayers", False), ("llava", "layers", True)]
)
def test_walk_stays_within_what_is_counted(driven, name, units, vision):
    model = driven(name, units, vision=vision)
    examples = examples_by_round(model) * 2
    check_peak(evaluator_of(model, batch_size=len(examples)), examples)
