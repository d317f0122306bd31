"""What a card keeps of its source's."""

import pytest
from das_gym.adapt.card import front_matter

LIST = "license: other\nlanguage:\n- en\nbase_model:\n- owner/tower\n- owner/decoder\nlicense_link: LICENSE\nlicense_name:\n"


@pytest.mark.parametrize(
    ("yaml", "kept"),
    [
        (LIST, ["license: other", "license_link: LICENSE", "base_model:", "- owner/tower", "- owner/decoder"]),
        ("base_model: owner/name\ntags:\n- x\n", ["base_model: owner/name"]),
        ("pipeline_tag: x\n", []),
    ],
)
def test_front_matter_keeps_license_and_base_models(tmp_path, yaml, kept):
    (tmp_path / "README.md").write_text(f"---\n{yaml}---\n# Mine\n")
    lines = front_matter(tmp_path, "AutoModelForImageTextToText", ["smaller"]).splitlines()
    assert lines[3 : lines.index("tags:")] == kept


def test_front_matter_names_the_source_of_the_hub(tmp_path):
    source = tmp_path / "models--owner--name" / "snapshots" / "0123"
    source.mkdir(parents=True)
    (source / "README.md").write_text(f"---\n{LIST}---\n")
    lines = front_matter(source, "AutoModelForCausalLM", ()).splitlines()
    assert [line for line in lines if "owner/" in line] == ["base_model: owner/name"]
