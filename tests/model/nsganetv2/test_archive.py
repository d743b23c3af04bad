"""The files of a search: what is written is read again, and what is broken ends in one line."""

import json

import numpy as np
import pytest

from model.nsganetv2.archive import SearchFolder, last_archive
from tests.model.nsganetv2.problems import searched, toy_search
from utils.errors import UserError


@pytest.fixture
def written(tmp_path):
    """A search of two iterations, the last one written, and its folder."""
    search = searched(2, predictor="rbf")
    search.failed = {search.archive[0].genes}
    folder = SearchFolder.open(tmp_path, {"seed": 0}, "auto")
    assert folder.restore(toy_search()) == -1, "nothing is there"
    folder.reference = search.worst()
    folder.write_iteration(2, search, search.archive[-4:], 0.5, {"model": "rbf", "tau": np.nan})
    return search


def restored(path, resume="auto"):
    search, folder = toy_search(), SearchFolder.open(path, {"seed": 0}, resume)
    return folder.restore(search), search, folder.reference


def change(file, old: str, new: str, to=None) -> None:
    text = file.read_text()
    assert old in text
    (to or file).write_text(text.replace(old, new, 1))


def test_a_search_is_restored_as_it_was_written(written, tmp_path):
    number, search, reference = restored(tmp_path)
    assert (number, reference) == (2, written.worst())
    assert (search.archive, search.failed) == (written.archive, written.failed)
    assert search.predictions == written.predictions
    assert last_archive(tmp_path)[-1][1] == written.archive[-1].error
    assert json.loads((tmp_path / "iter_2.stats").read_text())["surrogate"]["tau"] is None


def test_older_searches_call_predictions_foretold(written, tmp_path):
    change(tmp_path / "iter_2.stats", '"predictions"', '"foretold"')
    assert restored(tmp_path)[1].predictions == written.predictions


def test_older_searches_have_failures_in_files_alone_and_any_number_of_iterations(
    written, tmp_path
):
    change(tmp_path / "iter_2.stats", '"failed"', '"other"', tmp_path / "iter_99999999999999.stats")
    record = written.genome.to_json(written.archive[3].genes)
    SearchFolder(tmp_path, {}).write_failure(7, 0, record, "broken on purpose")
    number, search, _ = restored(tmp_path)
    assert number == 99999999999999
    assert search.failed == {written.archive[3].genes}


BROKEN = {
    "NaN": ("}, 50.0", "}, NaN", "not the iter_k.stats of a search (JSON is malformed"),
    "an error that is null": ("}, 50.0", "}, null", "archive[0][1]"),
    "another space": ('[[{"ks"', '[[{"x"', "no architectures of this space"),
    "no archive": ('"archive"', '"other"', "it holds no archive"),
    "no predictions": ('"predictions"', '"other"', "it lacks predictions"),
    "failures of another space": ('"failed": [{"ks"', '"failed": [{"x"', "of this space"),
    "no record": ("{", "[{", "not the iter_k.stats of a search"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_no_search_can_resume_from_is_said_in_a_line(written, tmp_path, case):
    old, new, line = BROKEN[case]
    change(tmp_path / "iter_2.stats", old, new)
    with pytest.raises(UserError) as error:
        restored(tmp_path)
    assert str(tmp_path / "iter_2.stats") in str(error.value)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("stats", ['{"top1": NaN}', '{"top1": null}', "{}", '{"top1": 9', "[]"])
def test_networks_without_a_top1_are_refused_as_a_start_and_evaluated_again_in_a_search(
    tmp_path, stats
):
    record = toy_search().genome.to_json(toy_search().genome.extremes()[0])
    (tmp_path / "iter_1").mkdir()
    for name, text in (("net_0.subnet", json.dumps(record)), ("net_0.stats", stats)):
        (tmp_path / "iter_1" / name).write_text(text)
    assert SearchFolder(tmp_path, {}).stats(1, 0, record) is None
    folder = SearchFolder.open(tmp_path / "new", {}, str(tmp_path / "iter_1"))
    with pytest.raises(UserError, match=r"net_0.stats: not the .stats of a network"):
        folder.first_archive(toy_search())
    (tmp_path / "iter_1/net_0.stats").write_text('{"top1": 60.0}')
    assert SearchFolder(tmp_path, {}).stats(1, 0, record) == {"top1": 60.0}
    assert [found.error for found in folder.first_archive(toy_search())] == [40.0]
