"""Origin and licence of every shipped file are documented."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "das_gym"


def test_shipped_assets_document_their_origin():
    told = (PACKAGE / "assets" / "README.md").read_text(encoding="utf-8")
    assert "under its own licence, MIT" in told
    folders = {path.parent.name for path in (PACKAGE / "assets").rglob("*") if path.is_file()} - {"assets"}
    assert folders
    assert all(f"`{folder}/" in told for folder in folders)


def test_vendored_files_have_licences():
    vendor = PACKAGE / "drawing" / "pages" / "vendor"
    licences = (vendor / "LICENSES.txt").read_text(encoding="utf-8")
    files = {path.name for path in vendor.iterdir()} - {"LICENSES.txt"}
    assert files
    assert all(f"{name}: " in licences for name in files)
    others = [path for path in PACKAGE.rglob("*.min.js") if path.parent != vendor]
    assert others == []
