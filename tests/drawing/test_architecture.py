from __future__ import annotations

import numpy as np

from das_gym.drawing.architecture import Architecture
from das_gym.models.base import Layer
from das_gym.problem.mask_cost import MaskCost
from das_gym.tables.table import SubnetTable


def test_lines_by_hand():
    layers = [Layer("text.0", "text", 0), Layer("text.1", "text", 1), Layer("image.0", "image", 0)]
    architecture = Architecture.of_layers(layers, MaskCost(200, 200, np.array([10, 20, 40])))
    assert architecture.stages == ((0, 2), (1,))
    assert architecture.lines([False, False, True]) == [
        "stage 0: keep text.0 (5.0 %), SKIP image.0 (20.0 %)",
        "stage 1: keep text.1 (10.0 %)",
    ]


def test_architecture_reads_stages_from_a_table(small_problem, small_table: SubnetTable):
    known = Architecture.of_layers(small_problem.vlp.layers, small_table.layer_macs)
    assert Architecture.of_table(small_table) == known
