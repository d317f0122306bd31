"""Settings of recovery on a tiny model."""

import pytest

from benchmarks import recovery


@pytest.mark.slow
def test_settings_side_by_side(tiny_llava, capsys):
    model = ["--checkpoint", tiny_llava["checkpoint"], "--data-root", tiny_llava["data_root"], "--evaluations", "4"]
    model += ["--macs-saved", "0.1"]
    settings = ["--recover", "lora", "full", "--steps", "3", "--learning-rates", "1e-5", "1e-2", "--batch-size", "4"]
    record = recovery.main([*model, *settings])
    printed = capsys.readouterr().out
    assert [row["settings"] for row in record["rows"]] == [
        f"{how}, 3 steps, learning rate {rate}" for how in ("lora", "full") for rate in ("1e-05", "0.01")
    ]
    assert len({row["loss"] for row in record["rows"]}) == 4
    assert record["macs_saved"] >= 0.1
    for row in record["rows"]:
        full, shrunk = record["held_out"]["full"], record["held_out"]["shrunk"]
        assert row["loss_regained"] == pytest.approx((shrunk - row["loss"]) / (shrunk - full))
    assert set(record["test"]) == {"full", "shrunk", "recovered"}
    assert "on test, with the settings of the least held-out loss:" in printed
