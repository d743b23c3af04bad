"""YAML files: values as PyYAML has them, but no key twice, and one line when there is none."""

import pytest

from utils.errors import UserError
from utils.yaml_file import parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: 1\n1: {a: 2}\n'1': 3", {"a": 1, 1: {"a": 2}, "1": 3}),
        ("- {a: 1}\n- {a: 2}", [{"a": 1}, {"a": 2}]),
        # what is merged is no second value, in whichever order the mappings are made
        ("p: {q: {r: &r {<<: {a: 1}, a: 2}}}\ns: {<<: *r, a: 3}", None),
    ],
)
def test_valid_yaml_is_read(text, value):
    found = parse_yaml(text, "f.yml")
    assert value is None or found == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 1", "f.yml: a: this key is given twice, in lines 1 and 3"),
        ("a: 1\n'a': 1", "f.yml: a: this key is given twice, in lines 1 and 2"),
        ("a:\n- x\n- b: 1\n  b: 2", r"f.yml: a\[1\].b: this key is given twice, in lines 3 and 4"),
        ("a: {b: {c: 1, c: 2}}", "f.yml: a.b.c: this key is given twice, in lines 1 and 1"),
        ("a: [", "f.yml: no valid YAML"),
        ("a: 2024-13-45", "f.yml: no valid YAML .*month"),
        ("a: !!bool perhaps", "f.yml: no valid YAML"),
        ("a: !include b.yml", "f.yml: no valid YAML .*!include"),
        ("[" * 100000, "f.yml: no valid YAML"),
        ("a: &a [*a]", "f.yml: no valid YAML .nested more than"),
        ("a: \0", "f.yml: no valid YAML"),
    ],
)
def test_other_text_is_refused_in_one_line(text, says):
    with pytest.raises(UserError, match=says) as error:
        parse_yaml(text, "f.yml")
    assert "\n" not in str(error.value)


def test_errors_of_files_have_their_name(tmp_path):
    with pytest.raises(UserError, match=r"table x: cannot be read \(No such file"):
        read_yaml(tmp_path / "x", "table x")
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="x: no valid YAML"):
        read_yaml(tmp_path / "x")
    (tmp_path / "y").write_text("a: !include x")
    assert read_yaml(tmp_path / "y", include=str.upper) == {"a": "X"}
