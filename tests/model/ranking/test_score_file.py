"""Scores that grow, resume, and are refused where something else gave them."""

import json

import pytest

from model.ranking import score_file
from model.ranking.score_file import ScoreFile
from utils.errors import UserError

BY = {"supernet": "0123456789abcdef", "images": 10, "norms": 5, "seed": 1}


def lengths(ids: list[str]) -> list[dict]:
    return [{"length": float(len(name)), "first": float(ord(name[0]))} for name in ids]


def test_scores_are_kept_in_their_order_and_never_made_again(tmp_path):
    file, asked = tmp_path / "new" / "scores.jsonl", []

    def score(ids: list[str]) -> list[dict]:
        asked.append(ids)
        return lengths(ids)

    ScoreFile.open(file, BY).fill(["bb", "a"], score, "some")
    again = ScoreFile.open(file, BY)
    assert again.missing(["a", "ccc", "bb", "ccc"]) == ["ccc"]
    again.fill(["a", "ccc", "bb"], score, "more")
    assert asked == [["bb", "a"], ["ccc"]]
    assert list(again.values) == ["bb", "a", "ccc"]
    assert again.values["bb"] == {"length": 2, "first": 98}
    assert ScoreFile.open(file).values == again.values
    assert [json.loads(line)["by"] for line in file.read_text().splitlines()] == 3 * [BY]


def test_a_kill_loses_at_most_a_group(tmp_path, monkeypatch):
    monkeypatch.setattr(score_file, "GROUP", 2)

    def killed(ids: list[str]) -> list[dict]:
        if "e" in ids:
            raise KeyboardInterrupt
        return lengths(ids)

    with pytest.raises(KeyboardInterrupt):
        ScoreFile.open(tmp_path / "s.jsonl", BY).fill("abcdef", killed, "some")
    assert list(ScoreFile.open(tmp_path / "s.jsonl").values) == list("abcd")


def test_a_line_that_a_kill_cut_is_dropped(tmp_path):
    file = tmp_path / "s.jsonl"
    ScoreFile.open(file, BY).fill("ab", lengths, "some")
    whole = file.read_text()
    for length in range(1, len(whole.splitlines()[0])):
        file.write_text(whole + whole[:length])
        assert list(ScoreFile.open(file).values) == ["a", "b"]
    ScoreFile.open(file, BY).add("c", {"length": 1.0})
    assert file.read_text().startswith(whole)
    assert list(ScoreFile.open(file).values) == ["a", "b", "c"]


@pytest.mark.parametrize("other", [{**BY, "images": 11}, {"method": "another"}, {**BY, "more": 1}])
def test_scores_of_something_else_are_refused(tmp_path, other):
    file = tmp_path / "s.jsonl"
    ScoreFile.open(file, BY).fill("a", lengths, "some")
    before = file.read_bytes()
    with pytest.raises(UserError, match=r"it was scored in another way: .* now it is"):
        ScoreFile.open(file, other)
    assert file.read_bytes() == before


@pytest.mark.parametrize("line", ["{", "[]", "\xff", '{"id": "a"}', '{"cell": "a", "top1": "b"}'])
def test_a_broken_line_is_named(tmp_path, line):
    file = tmp_path / "s.jsonl"
    ScoreFile.open(file, BY).fill("ab", lengths, "some")
    file.write_bytes(file.read_bytes() + line.encode("latin-1") + b"\n")
    with pytest.raises(UserError, match="line 3: not a score of an architecture"):
        ScoreFile.open(file, BY)


def test_older_formats_are_converted(tmp_path):
    """By a digest of 64 digits in one piece, and by lines that do not say their seed."""
    whole = {**BY, "supernet": BY["supernet"] + 48 * "0", "top1": {"a": 50.0, "b": 60.0}}
    (tmp_path / "supernet.json").write_text(json.dumps(whole))
    lines = [{"cell": name, "top1": top1} for name, top1 in whole["top1"].items()]
    by = {key: BY[key] for key in ("supernet", "images", "norms")}
    (tmp_path / "ranking.jsonl").write_text(
        "".join(json.dumps({**line, **by}) + "\n" for line in lines)
    )
    for name in ("supernet.jsonl", "ranking.jsonl"):
        with pytest.raises(UserError, match="images was 10, now it is 9"):
            ScoreFile.open(tmp_path / name, {**BY, "images": 9})
        scores = ScoreFile.open(tmp_path / name, BY)
        assert scores.values == {"a": {"supernet": 50.0}, "b": {"supernet": 60.0}}
        scores.add("c", {"supernet": 1.0})
        assert list(ScoreFile.open(tmp_path / name, BY).values) == ["a", "b", "c"]
    (tmp_path / "supernet.json").write_text("{}")
    (tmp_path / "supernet.jsonl").unlink()
    with pytest.raises(UserError, match=r"supernet\.json: not scores of architectures"):
        ScoreFile.open(tmp_path / "supernet.jsonl", BY)


def test_a_line_holds_names_and_values_side_by_side(tmp_path):
    """And the architecture, where it was given; nested values, as older files have them, too."""
    file = tmp_path / "s.jsonl"
    ScoreFile.open(file, BY).fill("a", lengths, "some", {"a": [[3, None]]})
    [line] = file.read_text().splitlines()
    assert json.loads(line) == {
        **{"id": "a", "length": 1, "first": 97},
        **{"architecture": [[3, None]], "by": BY},
    }
    older = {"id": "b", "values": {"top1": 7.5}, "by": BY}
    file.write_text(f"{line}\n{json.dumps(older)}\n")
    scores = ScoreFile.open(file, BY)
    assert scores.values == {"a": {"length": 1, "first": 97}, "b": {"supernet": 7.5}}
    assert scores.architectures == {"a": [[3, None]]}


def test_lines_that_lack_a_column_are_scored_again(tmp_path):
    file = tmp_path / "s.jsonl"
    ScoreFile.open(file, BY).fill("ab", lambda ids: [{"length": 1.0} for _ in ids], "some")
    ScoreFile.open(file, BY).add("c", {"length": 1.0, "first": 2.0})
    scores = ScoreFile.open(file, BY, ("first", "length"))
    assert scores.missing("abc") == ["a", "b"]
    scores.fill("abc", lengths, "again")
    assert ScoreFile.open(file).values["a"] == {"length": 1, "first": 97}
    assert len(file.read_text().splitlines()) == 3
