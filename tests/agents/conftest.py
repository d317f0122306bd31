"""Makes `synthetic` and `landscapes` importable, so that "synthetic:Synthetic-v0" is an environment id."""

import sys
from pathlib import Path

import pytest

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)


@pytest.fixture
def oracle(made_up_table):
    """Return the oracle of the made-up table, with a budget of 4 layers."""
    from das_gym.agents import make_oracle

    return make_oracle("DAS-METER-VQA-Tabular-v0", {"skip_num": 4}, {"table": str(made_up_table)})
