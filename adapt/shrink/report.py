"""Report what shrinking did: the table of models and a conclusion."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from das_gym.adapt.report import format_speedup
from das_gym.adapt.shrink.measuring import CONTROL, FULL, RECOVERED, SHRUNK, Measured

from das_gym.drawing.table import WIDTH, Table

SCORE_LINES = 3
"""Lines of the table that a control has: score, interval and loss."""


def results_table(
    models: Sequence[Mapping[str, Any]], metric: str, title: str = "", control: Mapping[str, float] | None = None
) -> Table:
    """Return the table of a run's models, given as `ModelResult.record` does, the full model first."""
    milliseconds = "{:.3g} ({:.3g}..{:.3g})"
    lines: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        (f"{metric}, %", lambda m: f"{100 * m['score']:.1f}"),
        ("  its 95 % interval", lambda m: f"{100 * m['low']:.1f}..{100 * m['high']:.1f}"),
        ("loss, nats", lambda m: f"{m['loss']:.4f}"),
        ("parameters", lambda m: f"{m['parameters']:,}"),
        ("bytes of the weights", lambda m: f"{m['bytes']:,}"),
        ("MACs an example, M", lambda m: f"{m['macs'] / 1e6:,.3f}"),
        ("MACs saved, %", lambda m: f"{100 * m['macs_saved']:.2f}"),
        ("KV cache, bytes a token", lambda m: f"{m['kv_bytes']:,}"),
        ("first token, ms", lambda m: milliseconds.format(*m["prefill_ms"])),
        ("  times as fast", lambda m: format_speedup(m["prefill_speedup"])),
        ("further tokens, ms", lambda m: milliseconds.format(*m["decode_ms"])),
        ("  times as fast", lambda m: format_speedup(m["decode_speedup"])),
    ]
    by_name = {model["name"]: model for model in models}
    note = (
        "MACs saved and times as fast (ratio of the median times) are relative to the baseline. In brackets: quartiles of "
        "times, 95 % interval of times as fast."
    )
    if RECOVERED in by_name and by_name[RECOVERED]["prefill_ms"] == by_name[SHRUNK]["prefill_ms"]:
        note += " Shrunk and recovered have the same architecture and are timed once."
    columns = ["", *("full model (baseline)" if name == FULL else name for name in by_name)]
    rows = [[name, *(cell(model) for model in models)] for name, cell in lines]
    if control is not None:
        columns.insert(2, "control")
        for number, (row, (_, cell)) in enumerate(zip(rows, lines, strict=True)):
            row.insert(2, cell(control) if number < SCORE_LINES else "-")
        note += " The control is the full model, trained like the recovered one."
    return Table(tuple(columns), tuple(map(tuple, rows)), title, (note,))


def table_of(measured: Measured, title: str = "") -> Table:
    """Return the table of results in memory."""
    control = None if measured.control is None else asdict(measured.control)
    return results_table([row.record() for row in measured.rows.values()], measured.metric, title, control)


def print_report(measured: Measured, title: str, diagram: str) -> None:
    """Print the table, the removed layers and the conclusion."""
    table_of(measured, title).print()
    signs = " (A: attention alone is left, M: MLP alone)" if set(diagram) & {"A", "M"} else ""
    print(f"{'layers of vision tower and decoder' if ' ' in diagram else 'decoder layers'}: {diagram}{signs}")
    print(textwrap.fill(conclusion(measured), WIDTH))


def conclusion(measured: Measured) -> str:
    """Return two or three sentences about savings, speed-up and scores."""
    full, final, control = measured.rows[FULL], measured.final, measured.control
    smaller = 100 * (1 - final.parameters / full.parameters)
    parts = []
    timed = {"the first token comes": final.prefill_speedup, "each further one": final.decode_speedup}
    for phrase, speedup in timed.items():
        if speedup is not None:
            measurable = "" if speedup.is_measurable else ", which is not measurably faster"
            parts.append(f"{phrase} {speedup.ratio:.2f} ({speedup.low:.2f} to {speedup.high:.2f}) times as fast{measurable}")
    fast = f". Relative to the baseline, {', and '.join(parts)}" if parts else ""
    difference, low, high = (100 * value for value in measured.difference())
    trained = "" if control is None else f" and {100 * control.score:.1f} % of the full model trained alike (the control)"
    to = "" if control is None else f" compared with the {'control' if measured.reference == CONTROL else 'baseline'}"
    score = (
        f"It scores {100 * final.score:.1f} % against the baseline's {100 * full.score:.1f} %{trained}: {difference:+.1f} "
        f"points{to} (95 % interval {low:+.1f}..{high:+.1f}) on {len(measured.scores[FULL]):,} test examples"
    )
    regained = measured.loss_regained()
    recovery = "" if regained is None else f"; recovery removed {100 * regained:.0f} % of the increase in loss"
    if RECOVERED in measured.rows and final.loss < full.loss:
        recovery = "; its loss is lower than the full model's"
        if control is not None:
            recovery += f" and {'lower' if final.loss < control.loss else 'higher'} than the control's"
    elif RECOVERED in measured.rows and final.loss > measured.rows[SHRUNK].loss:
        recovery = "; recovery increased the loss: try recover=none, a lower learning_rate or more data"
    cache = 100 * (1 - final.kv_bytes / max(full.kv_bytes, 1))  # recurrent layers keep no keys
    return (
        f"The {final.name} model saves {100 * final.macs_saved:.2f} % of the baseline's MACs, {smaller:.1f} % of its "
        f"parameters and {cache:.1f} % of its KV cache{fast}. {score}{recovery}."
    )
