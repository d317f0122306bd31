"""What a card keeps of its source's."""

import pytest
import yaml
from das_gym.adapt.card import model_card, source_front_matter

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
    lines = source_front_matter(tmp_path, "AutoModelForImageTextToText", ["smaller"]).splitlines()
    assert lines[3 : lines.index("tags:")] == kept


HOSTILE = {
    "other fields on further lines": 'license: mit\n"pipeline_tag": evil\n"widget":\n- text: x\n',
    "HTML": "license: mit\n<script>alert(1)</script>\n",
    "HTML in a value": "license: <script>alert(1)</script>\nbase_model: [a/b, '<b>']\n",
    "no YAML": "license: mit\n\t: {[\n",
    "other types": "license: {a: 1}\nlicense_name: [[1]]\nlicense_link: 3\nbase_model: [1, a/b]\n",
    "lines within a value": "license: 'mit\n\n  pipeline_tag: evil'\n",
    "link": "license_link: javascript:alert(1)\n",
    "alias": "a: &a [x]\nlicense: *a\n",
    "bomb": "a: &a [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else '*a'] * 9)}]\n" for n in range(20)),
    "merged bomb": "a: &a {x: 1}\n" + "b: &b {<<: [*a, *a]}\n" * 40 + "license: mit\n",
    "deep": "license: " + "[" * 20_000 + "\n",
    "object": "license: !!python/object/apply:os.system ['touch EXECUTED']\n",
    **{f"wrong {tag}": f"license: !!{tag} x\n" for tag in ("int", "timestamp", "bool", "float", "binary", "map")},
    "empty number": "license: !!int ''\n",
    "long": f"license: {'x' * 1000}\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_front_matter_has_known_fields_alone(tmp_path, name):
    (tmp_path / "README.md").write_text(f"---\n{HOSTILE[name]}---\n# Mine\n")
    text = source_front_matter(tmp_path, "AutoModelForCausalLM", ())
    fields = yaml.safe_load(text.removeprefix("---").removesuffix("---"))
    license = {"license": "mit"} if name == "other fields on further lines" else {}
    assert fields == {"library_name": "transformers", "pipeline_tag": "text-generation", **license, "tags": ["das_gym"]}


def test_text_of_a_card_has_no_html():
    text = model_card("---\n---", "<script>", ["a < b <b>"], "x < y", None, "")
    assert "# &lt;script>\n\na < b &lt;b>" in text


def test_front_matter_names_the_source_of_the_hub(tmp_path):
    source = tmp_path / "models--owner--name" / "snapshots" / "0123"
    source.mkdir(parents=True)
    (source / "README.md").write_text(f"---\n{LIST}---\n")
    lines = source_front_matter(source, "AutoModelForCausalLM", ()).splitlines()
    assert [line for line in lines if "owner/" in line] == ["base_model: owner/name"]
