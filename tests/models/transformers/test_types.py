"""The table of types that work, in docs/models.md: `python -m tests.models.transformers.test_types` rewrites it."""

import tempfile
from pathlib import Path

import pytest
from transformers import AutoConfig

from das_gym.models.transformers.loading import load_vlm
from das_gym.registration import MODELS
from tests.models.transformers import tiny
from tests.models.transformers.conftest import Driven
from tests.models.transformers.test_vision_units import SEEN

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
START, END = "<!-- table -->", "<!-- end of table -->"

COLUMNS = ("`model_type`", "skippable layers", "`units=sublayers`", "image prefix shared", "skippable vision layers")
HEADER = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def vision_of(model: Driven) -> str:
    """What may be skipped of a vision tower."""
    if not model.processor.takes_images:
        return "none"
    try:
        tower = model.with_vision().vlm.capabilities.tower
    except ValueError as error:
        return f"none: {str(error).partition('. Leave')[0]}"
    why = dict.fromkeys(tower.protected.values())
    told = [f"{', '.join(str(p) for p, r in tower.protected.items() if r == reason)} ({reason})" for reason in why]
    return f"all but {' and '.join(told)}" if told else "all"


def row_of(name: str, folder: Path, driven: Driven | None) -> str:
    """Return a line of the table, without its part about the vision tower."""
    if driven is None:
        with pytest.raises(ValueError, match="supported") as error:
            load_vlm(folder)
        kind, why = AutoConfig.from_pretrained(folder).model_type, str(error.value).split("supported: ")[1]
        return f"| {kind} | none: {why} | - | - |"
    traits, kind = driven.vlm.capabilities, driven.vlm.model.config.model_type
    layers = "all"
    if traits.protected:
        which = f"the first {len(traits.protected)}" if 0 in traits.protected else "the last"
        layers = f"all but {which} ({next(iter(traits.protected.values()))})"
    apart = "no" if name in tiny.WHOLE_ONLY else "yes"
    shares = "text only" if not driven.processor.takes_images else "yes" if traits.shares_prefix else "no"
    return f"| {kind} | {layers} | {apart} | {shares} |"


@pytest.mark.slow
def test_models_page_lists_what_each_type_can_do(folder_of, driven, tmp_path):
    rows = [row_of(name, folder_of(name), None if name == "blip_2" else driven(name)) for name in tiny.MAKERS]
    for name in tiny.WORKING_APART:
        assert len(driven(name, "sublayers").vlm.layers) == 2 * len(driven(name).vlm.layers)
    header, lines = measured_table(PAGE.read_text(encoding="utf-8"))
    assert header == HEADER
    assert [line.rpartition(" |")[0].rpartition("|")[0] + "|" for line in lines] == rows
    for name, line in zip(tiny.MAKERS, lines, strict=True):
        if name in SEEN:  # of the others, main() alone looks at the tower
            assert line.endswith(f"| {vision_of(driven(name))} |")


def test_whole_types_are_those_of_the_table():
    _, lines = measured_table(PAGE.read_text(encoding="utf-8"))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in cells if row[1] == "all"] == list(MODELS["VLM"].whole_types)


def measured_table(page: str) -> tuple[str, list[str]]:
    """Header and lines of the table."""
    lines = page.split(START)[1].split(END)[0].strip().splitlines()
    return "\n".join(lines[:2]), lines[2:]


def main() -> None:
    """Write the table."""
    rows = []
    for name in tiny.MAKERS:
        with tempfile.TemporaryDirectory() as folder:
            tiny.save(name, Path(folder))
            model = None if name == "blip_2" else Driven.load(Path(folder))
            rows.append(f"{row_of(name, Path(folder), model)} {'-' if model is None else vision_of(model)} |")
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    after = rest.split(END)[1]
    PAGE.write_text("\n".join([f"{before}{START}", HEADER, *rows, f"{END}{after}"]), encoding="utf-8")


if __name__ == "__main__":
    main()
