import json

import pytest

from benchmarks import first_figure
from benchmarks.claims import ROOT


@pytest.mark.slow
def test_figure_and_record_from_one_command(tmp_path):
    first_figure.main(["--seeds", "1", "--out", str(tmp_path)])
    assert (tmp_path / "score_against_macs.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "first_figure.json").read_text(encoding="utf-8"))
    kept = json.loads((ROOT / "benchmarks" / "records" / "first_figure.json").read_text(encoding="utf-8"))
    for name in ("optimum", "leave_one_out", "full model"):  # the same with every seed
        assert found[name] == kept[name], name
    for points in found.values():
        assert all(0 <= point["accuracy"] <= 100 and point["macs"] > 0 for point in points)
