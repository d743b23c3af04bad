"""Latency tables as files."""

import pytest

from model.costs.latency import Latencies
from tests.support import latency_file
from utils.errors import UserError


def test_a_table_gives_the_mean_of_a_part_and_knows_its_file(tmp_path):
    file = latency_file(tmp_path / "lut.yaml", ["a", "b"], lambda key: {"a": 1.5, "b": 2.0}[key])
    table = Latencies.read(file)
    assert (table("a"), table("b"), table.text) == (1.5, 2.0, file.read_text())
    other = Latencies.read(latency_file(tmp_path / "other.yaml", ["a", "b"]))
    assert table.digest != other.digest
    with pytest.raises(UserError, match=r"latency table .*lut\.yaml: it lacks c"):
        table("c")


@pytest.mark.parametrize("mean", ["-1", ".inf", ".nan"])
def test_what_is_no_time_is_refused(tmp_path, mean):
    (tmp_path / "lut.yaml").write_text(f"a: {{mean: {mean}}}\n")
    with pytest.raises(UserError, match=r"lut\.yaml: a: .* is no time"):
        Latencies.read(tmp_path / "lut.yaml")("a")


@pytest.mark.parametrize("text", ["", "3", "a: 3", "a: {mean: fast}", "a: {var: 1}", "a: ["])
def test_a_file_that_is_no_table_is_refused(tmp_path, text):
    (tmp_path / "lut.yaml").write_text(text)
    said = r"latency table .*lut\.yaml: (not a table of KEY|no valid YAML)"
    with pytest.raises(UserError, match=said):
        Latencies.read(tmp_path / "lut.yaml")
    with pytest.raises(UserError, match=r"nowhere\.yaml: cannot be read"):
        Latencies.read(tmp_path / "nowhere.yaml")
