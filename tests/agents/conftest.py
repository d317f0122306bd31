"""Makes `synthetic` and `landscapes` importable, so that "synthetic:Synthetic-v0" is an environment id; a made-up table."""

import sys
from pathlib import Path

import pytest

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)


@pytest.fixture(scope="session")
def made_up_table(tmp_path_factory) -> Path:
    """Of 8 layers, 256 masks, as if it were METER's on VQA."""
    from landscapes import write_table

    return write_table(tmp_path_factory.mktemp("tables") / "meter_vqa_table.npz")


@pytest.fixture
def oracle(made_up_table):
    """Return the oracle of the made-up table, with a budget of 4 layers."""
    from das_gym.agents import make_oracle

    return make_oracle("DAS-METER-VQA-Tabular-v0", {"skip_num": 4}, {"table": str(made_up_table)})
