from __future__ import annotations

from das_gym.drawing.architecture import Architecture
from das_gym.tables.table import SubnetTable


def test_architecture_reads_stages_from_a_table(small_problem, small_table: SubnetTable):
    known = Architecture.of_layers(small_problem.vlp.layers, small_table.layer_macs)
    assert Architecture.of_table(small_table) == known
