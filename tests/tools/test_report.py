"""One page that shows what runs did."""

import json
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import asdict
from html.parser import HTMLParser

import numpy as np
import pytest

import msunas
from model.spaces.elastic.kind import ElasticKind, ElasticSpec
from model.spaces.elastic.space import ElasticArchitecture, ElasticSpace
from model.spaces.paths import Architecture
from tests.support import refused
from tools import report
from tools.reporting import figures, pictures
from tools.reporting.figures import COLOURS, INK
from tools.reporting.rank_tables import RankedTraining
from tools.reporting.run_results import read_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
VOID = {"meta", "link", "br", "input"}


class Page(HTMLParser):
    """The elements of a page as (tag, attributes, text inside); what is opened must be closed."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])
        if tag not in VOID:
            self.open.append(self.elements[-1])

    def handle_startendtag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, tag: str) -> list:
        return [(attributes, text) for name, attributes, text in self.elements if name == tag]

    def rows(self) -> list[dict[str, str]]:
        """The table: what its cells sort by, under the titles of their columns."""
        titles = [title for title, *_ in report.COLUMNS]
        values = [attributes["data-value"] for attributes, _ in self.all("td")]
        rows = np.reshape(values, (-1, len(titles))).tolist()
        return [dict(zip(titles, row, strict=True)) for row in rows]


def made(*folders, out) -> Page:
    report.main([*map(str, folders), "--out", str(out)])
    return Page(out.read_text())


@pytest.fixture(scope="module")
def evolution(searched, tmp_path_factory):
    """A short evolutionary search on the supernet of the run."""
    folder = tmp_path_factory.mktemp("evolution") / "found"
    line = f"--supernet_path {searched}/logs/tiny/checkpoints/supernet_best.pth --n_epochs 0"
    line += f" --cfg {searched}/tiny.yml --save {folder} --n_doe 6 --n_iter 2 --iterations 2"
    msunas.main(f"{line} --vld_size 40".split())
    return folder


@pytest.fixture(scope="module")
def trained(net):
    return net


@pytest.fixture
def run(searched, tmp_path):
    """A copy of the search, to be broken."""
    return copied(searched / "logs" / "tiny", tmp_path / "tiny")


def copied(folder, target):
    return shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.pth"))


# -- figures ---------------------------------------------------------------------------------------


def drawn_line(figure, gid: str) -> list[tuple]:
    [line] = figure.findobj(lambda artist: artist.get_gid() == gid)
    return list(zip(*map(list, line.get_data()), strict=True))


def test_the_fronts_that_are_drawn_are_the_naive_ones():
    rng = np.random.default_rng(0)
    # with ties
    series = {name: rng.integers(0, 30, (40, 2)).astype(float) for name in ("some", "others")}
    figure = figures.fronts(series, "M")
    for index, points in enumerate(series.values()):
        pairs = [(cost, top1) for cost, top1 in points.tolist()]
        naive = {
            a for a in pairs if not any(b[0] <= a[0] and b[1] >= a[1] and b != a for b in pairs)
        }
        line = drawn_line(figure, f"front-{index}")
        assert set(line) == naive
        assert line == sorted(line)


def painted(svg: str) -> Counter:
    """How many bars of each kind a picture has: by their ids, and by their fills."""
    bars = re.findall(r'id="a-(k\d+|skip)-\d+-\d+">\s*<path [^>]*style="fill: ([^;"]*)', svg)
    for kind, fill in bars:
        assert fill == ("none" if kind == "skip" else figures.kernel_colour(int(kind[1:])))
    return Counter(kind for kind, _ in bars)


def test_an_architecture_has_as_many_bars_of_each_kernel_as_sub_blocks():
    choices = ((3, None, 7, 7), (5, 3, None, None), (7, 5, 3, 3))
    svg = figures.svg(figures.sub_blocks(choices), "a", "")
    assert painted(svg) == {"k3": 4, "k5": 2, "k7": 3, "skip": 3}


def test_a_block_is_as_high_as_its_expansion_ratio():
    architecture = ElasticArchitecture((3, 7, 5, 3), (6, 3, 4, 6), (1, 3), 40)
    design = ElasticKind().design_of(ElasticSpec(ElasticSpace(), architecture))
    assert design.stages == (((3, 6),), ((7, 3), (5, 4), (3, 6)))
    figure = figures.blocks(design.stages)
    assert painted(figures.svg(figure, "a", "")) == {"k3": 2, "k5": 1, "k7": 1}
    bars = {bar.get_gid(): bar for bar in figure.axes[0].patches}
    assert {gid: bar.get_height() for gid, bar in bars.items()} == {
        "k3-0-0": 6, "k7-1-0": 3, "k5-1-1": 4, "k3-1-2": 6
    }  # fmt: skip
    assert bars["k7-1-0"].get_x() - bars["k3-0-0"].get_x() > 1  # stages lie apart


def test_the_band_holds_what_misses_by_half_a_percent():
    points = np.array([[100, 100.5], [100, 100.51], [200, 199.0], [200, 198.9], [3, 3.0]])
    assert figures.within(points).tolist() == [True, False, True, False, True]
    figure = figures.misses({"a": points}, "M")
    [band] = figure.findobj(lambda artist: artist.get_gid() == "band")
    extent = band.get_window_extent().transformed(figure.axes[1].transData.inverted())
    assert (extent.y0, extent.y1) == pytest.approx((-0.5, 0.5))


def luminance(colour: str) -> float:
    """As WCAG 2 defines it."""
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("page", ["#ffffff", "#14171b"])
def test_all_colours_stand_out_on_white_and_on_near_black(page):
    for colour in COLOURS:
        dark, light = sorted((luminance(colour), luminance(page)))
        assert (light + 0.05) / (dark + 0.05) >= 3  # what WCAG 2 asks of graphics


def test_a_picture_takes_the_text_colour_of_the_page_and_shows_names_as_they_are():
    figure = figures.curves({"$x_1$ <b>": {1: 2.0, 2: 1000.0}, "日本": {1: 1.0}}, "loss")
    svg = figures.svg(figure, "a", 'say "<>"')
    assert INK not in svg
    assert "currentColor" in svg
    assert "$x_1$ &lt;b&gt;" in svg
    assert '<svg viewBox="0 0 360 ' in svg
    assert 'aria-label="say &quot;&lt;&gt;&quot;"' in svg
    assert svg.count('id="') == svg.count('id="a-')
    assert ">100</text>" in svg  # a logarithmic axis has plain numbers


# -- the page --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_page_shows_what_the_files_of_its_runs_hold(searched, trained, evolution, tmp_path):
    run = searched / "logs" / "tiny"
    page = made(run, trained, evolution, out=tmp_path / "report.html")
    rows = page.rows()
    generated = [row for row in rows if row["file"] == "architectures.json"]
    assert [(float(row["target"]), float(row["cost"])) for row in generated] == [
        (found["target"], found["macs_m"])
        for found in json.loads((run / "architectures.json").read_text())
    ]
    for row in generated:
        miss = 100 * (float(row["cost"]) / float(row["target"]) - 1)
        assert float(row["miss %"]) == pytest.approx(miss)
    result = json.loads((trained / "result.json").read_text())
    nets = [row for row in rows if row["run"] == "net"]
    reached = [result["top1"], result["ema"]["top1"]]
    assert [float(row["test top-1 %"]) for row in nets] == reached
    assert [row["validation top-1 %"] for row in nets] == ["", ""]
    archive = json.loads((evolution / "iter_2.stats").read_text())["archive"]
    evolved = [row for row in rows if row["run"] == "found"]
    assert [(float(row["cost"]), float(row["validation top-1 %"])) for row in evolved] == [
        (cost, 100 - error) for _, error, cost in archive
    ]
    assert all(row["test top-1 %"] == "" for row in evolved)
    headings = ["Runs", "Curves", "Targets and costs", "Accuracy on held-out images"]
    headings += ["Test accuracy after training", "The evolutionary search", "Architectures"]
    assert [text for _, text in page.all("h2")] == [*headings, "All architectures"]
    environment = json.loads((run / "environment.json").read_text())
    values = {text for _, text in page.all("dd")}
    assert {environment["torch"], environment["commit"], "search", "msunas"} <= values
    assert str(environment["processes"]) in values
    assert (run / "config.yml").read_text() in [text for _, text in page.all("pre")]


def test_curves_of_a_search_and_of_its_surrogate(searched, evolution):
    run = read_run(searched / "logs" / "tiny", "tiny")
    text = (searched / "logs" / "tiny" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    losses = {line["epoch"]: line["loss"] for line in lines if "loss" in line}
    assert run.curves["warm-up"]["loss"] == losses
    assert run.curves["generator"]["hardware_loss"].keys() == {1, 2}
    stats = [json.loads((evolution / f"iter_{k}.stats").read_text()) for k in range(3)]
    iterations = read_run(evolution, "found").iterations
    assert iterations["hv"] == {k: record["hv"] for k, record in enumerate(stats)}
    # the first knows no candidates
    assert iterations["rmse"] == {k: stats[k]["surrogate"]["rmse"] for k in (1, 2)}


@pytest.mark.slow
def test_a_page_needs_no_other_file_and_has_its_pictures_in_words(searched, evolution, tmp_path):
    out = tmp_path / "report.html"
    page = made(searched / "logs" / "tiny", evolution, out=out)
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes, _ in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "base")
        assert "src" not in attributes
        if "href" in attributes:
            assert attributes["href"][0] == "#"
            assert attributes["href"][1:] in ids
    text = out.read_text()
    assert all(target in ids for target in re.findall(r"url\(#([^)]*)\)", text))
    assert text.count("url(") == text.count("url(#")
    assert not any(outside in text for outside in ("http://", "https://", "@import"))
    pictures_in_words = [attributes.get("aria-label") for attributes, _ in page.all("svg")]
    assert len(pictures_in_words) > 10
    assert all(pictures_in_words)
    captions = [text for _, text in page.all("figcaption") if text.strip()]
    assert len(page.all("figure")) == len(captions)
    meta = [(tags.get("name"), tags.get("content")) for tags, _ in page.all("meta")]
    assert ("viewport", "width=device-width, initial-scale=1") in meta


@pytest.mark.slow
def test_the_same_runs_give_the_same_bytes(searched, evolution, tmp_path):
    folders = [str(searched / "logs" / "tiny"), str(evolution)]
    for name in ("a.html", "b.html"):
        report.main([*folders, "--out", str(tmp_path / name)])
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@pytest.mark.slow
def test_the_page_goes_into_the_first_run(run, evolution):
    before = sorted(evolution.rglob("*"))
    report.main([str(run), str(evolution), str(run)])
    assert len([text for _, text in Page((run / "report.html").read_text()).all("h3")]) == 2
    assert sorted(evolution.rglob("*")) == before


@pytest.mark.slow
def test_text_from_files_stays_text(run, tmp_path):
    evil = "<script>alert(1)</script>"
    (run / "config.yml").write_text(f"dataset: '{evil}'\n")
    environment = json.loads((run / "environment.json").read_text()) | {"device": evil}
    (run / "environment.json").write_text(json.dumps(environment))
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"stage": evil, "epoch": 1, evil: 1.0}) + "\n")
    named = run.rename(tmp_path / "a<b>&'\"$1$")
    page = made(named, out=tmp_path / "report.html")
    assert len(page.all("script")) == 1
    assert all("data-value" not in attributes for attributes, _ in page.all("b"))
    assert page.all("h1")[0][1] == named.name
    assert f"dataset: '{evil}'\n" in [text for _, text in page.all("pre")]


# -- which architectures are drawn -----------------------------------------------------------------


def test_pictures_are_those_of_the_architectures(searched, tmp_path):
    run = searched / "logs" / "tiny"
    page = made(run, out=tmp_path / "report.html")
    rows = json.loads((run / "architectures.json").read_text())
    found = [Architecture.of(row["architecture"]) for row in rows]
    cards = [attributes for attributes, _ in page.all("figure") if "id" in attributes]
    assert len(cards) == len(set(found))
    text = (tmp_path / "report.html").read_text()
    total = sum(len(re.findall(rf'id="f\d+-k{kernel}-', text)) for kernel in (3, 5, 7))
    assert total == sum(len(layer) for architecture in set(found) for layer in architecture.kernels)
    linked = {row["picture"] for row in page.rows() if row["file"] == "architectures.json"}
    assert linked == {str(number + 1) for number in range(len(cards))}


def test_of_many_architectures_the_front_is_drawn_evenly_by_cost(tmp_path):
    choices = [
        [kernel if i >> bit & 1 else None for bit, kernel in enumerate((3, 5, 7, 3, 5, 7))]
        for i in range(1, 61)
    ]
    # a front of all
    rows = [[{"choices": [row]}, 60.0 - i, float(i)] for i, row in enumerate(choices)]
    rows += [[{"choices": [[9]]}, 99.0, 70.0]]  # and one beyond it
    surrogate = {"model": "ard", "rmse": None, "rho": None, "tau": None}
    record = {"archive": rows, "hv": 0.5, "surrogate": surrogate}
    (tmp_path / "iter_0.stats").write_text(json.dumps(record))
    cards, different = pictures.gallery(read_run(tmp_path, "many").found, pictures.Drawing())
    assert different == 61
    assert len(cards) == pictures.MOST_DRAWN
    costs = [float(card.facts[0].split()[0]) for card in cards]
    assert costs == np.linspace(0, 59, 24).round().tolist()


def test_cells_are_written_as_their_strings(tmp_path):
    cell = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|avg_pool_3x3~1|nor_conv_1x1~2|"
    record = {"archive": [[{"cell": cell}, 10.0, 50.0]], "hv": 0.5, "surrogate": {"model": "ard"}}
    (tmp_path / "iter_0.stats").write_text(json.dumps(record))
    page = made(tmp_path, out=tmp_path / "report.html")
    assert [text for _, text in page.all("code")] == [cell]
    assert any("iter_0.stats: left out ('rmse')" in text for _, text in page.all("li"))


# -- what is compared ------------------------------------------------------------------------------


def ranking(folder, dataset: str = "digits") -> None:
    """What tools.rank leaves: four random architectures, trained with two seeds each."""
    (folder / "net-seed0").mkdir(parents=True)
    (folder / "net-seed0" / "config.yml").write_text(f"dataset: {dataset}\n")
    (folder / "net-seed0" / "environment.json").write_text('{"stage": "train_cifar", "torch": "2"}')
    lines = []
    for i, (cost, kernel) in enumerate(((4.0, 3), (3.0, 5), (2.0, 7), (1.0, None))):
        given = ("random", None, f"n{i}", cost, 0.1, 1, 0.1, 8, 50.0 + i)
        choices = ((3, 5, None, 7), (kernel, None, None, 3))
        lines += [
            RankedTraining(*given, seed, 90.0 + i + seed, "unified", choices) for seed in (0, 1)
        ]
    text = "".join(json.dumps(asdict(line)) + "\n" for line in lines)
    (folder / "results.jsonl").write_text(text)


def test_supernet_accuracy_is_compared_with_test_accuracy(tmp_path):
    ranking(tmp_path / "rank")
    page = made(tmp_path / "rank", out=tmp_path / "report.html")
    assert [row["test top-1 %"] for row in page.rows()] == ["90.5", "91.5", "92.5", "93.5"]
    [caption] = [text for _, text in page.all("figcaption") if "Kendall tau" in text]
    assert "the supernet 1.000, cost alone -1.000." in caption  # of four: no interval
    facts = {text for _, text in page.all("dd")}
    assert {"tools.rank", "8"} <= facts
    assert "train_cifar" not in facts  # the stage of its networks


def test_accuracies_on_different_images_are_never_in_one_picture(tmp_path):
    for name, dataset in (("a", "digits"), ("b", "cifar10"), ("c", "digits")):
        ranking(tmp_path / name, dataset)
    runs = [read_run(tmp_path / name, name) for name in "abc"]
    found = [one for run in runs for one in run.found]
    shown = pictures.accuracy_pictures(found, "test", pictures.Drawing())
    said = [re.search(r"on (\w+)\..*Points: (.*)\.", picture.caption) for picture in shown]
    assert [match.groups() for match in said] == [
        ("digits", "tools.rank: random (a): 4; tools.rank: random (c): 4"),
        ("cifar10", "tools.rank: random: 4"),
    ]


def test_candidates_that_were_fine_tuned_are_a_method_of_their_own(evolution, tmp_path):
    tuned = shutil.copytree(evolution, tmp_path / "tuned")
    record = json.loads((tuned / "search.json").read_text())
    record["settings"]["n_epochs"] = 5
    (tuned / "search.json").write_text(json.dumps(record))
    runs = [read_run(evolution, "found"), read_run(tuned, "tuned")]
    assert [{one.method for one in run.found} for run in runs] == [
        {"msunas.py"},
        {"msunas.py, fine-tuned for 5 epochs"},
    ]
    [one] = pictures.accuracy_pictures(runs[0].found, "validation", pictures.Drawing())
    found = [*runs[0].found, *runs[1].found]
    [both] = pictures.accuracy_pictures(found, "validation", pictures.Drawing())
    assert "Runs may differ" in both.caption
    assert "Runs may differ" not in one.caption


# -- broken files ----------------------------------------------------------------------------------


def test_a_line_that_a_kill_cut_short_is_left_out(run, tmp_path):
    metrics = run / "metrics.jsonl"
    whole = read_run(run, "tiny").curves
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([*lines, lines[-1][:25]]))
    assert read_run(run, "tiny").curves == whole
    page = made(run, out=tmp_path / "report.html")
    assert "metrics.jsonl: 1 broken line left out" in [text for _, text in page.all("li")]


def test_a_later_line_of_an_epoch_counts(run):
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"stage": "warm-up", "epoch": 2, "loss": 7.0, "top1": NaN}\n')
    curves = read_run(run, "tiny").curves["warm-up"]
    assert curves["loss"][2] == 7.0
    assert all(np.isfinite(list(curve.values())).all() for curve in curves.values())


def test_an_unfinished_training_has_a_picture_and_no_accuracy(trained, tmp_path):
    net = copied(trained, tmp_path / "net")
    (net / "result.json").unlink()
    page = made(net, out=tmp_path / "report.html")
    [row] = page.rows()
    assert row["method"] == "trained from scratch, not finished"
    assert (row["test top-1 %"], row["picture"]) == ("", "1")
    assert "not there, or not yet: result.json" in [text for _, text in page.all("li")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"a": 1}', b"[[1], 2]", b"\xff\xfe\x00", b"<b>1,2\n3", None]
)
def test_broken_and_missing_files_leave_the_rest(searched, trained, evolution, tmp_path, content):
    tables = ("architectures.json", "supernet_evaluate.csv", "environment.json", "found.json")
    names = {
        searched / "logs" / "tiny": tables,
        trained: ("result.json", "architecture.json", "config.yml"),
        evolution: ("search.json", "iter_2.stats"),
    }
    folders = []
    for source, broken in names.items():
        folders.append(copied(source, tmp_path / source.name))
        for name in broken:
            (folders[-1] / name).unlink(missing_ok=True)
            if content is not None:
                (folders[-1] / name).write_bytes(content)
    page = made(*folders, out=tmp_path / "report.html")
    assert len(page.all("h3")) == 3
    assert "The evolutionary search" in [text for _, text in page.all("h2")]
    said = " ".join(text for _, text in page.all("li"))
    assert all(name in said for name in ("architectures.json", "result.json"))
    archive = json.loads((evolution / "iter_1.stats").read_text())["archive"]
    assert sum(row["run"] == "found" for row in page.rows()) == len(archive)


def test_a_foreign_folder_is_refused_and_nothing_is_written(run, tmp_path, capsys):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.yml").write_text("a: 1\n")
    line = refused(capsys, report.main, run, foreign)
    assert f"{foreign}: no folder of search.py" in line
    assert not (run / "report.html").exists()
    assert [file.name for file in foreign.iterdir()] == ["config.yml"]
    assert "there is no such folder" in refused(capsys, report.main, tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    assert "it is a folder" in refused(capsys, report.main, run, "--out", foreign)


# -- in a browser ----------------------------------------------------------------------------------

CLICKS = """
<script>
const said = [], table = document.querySelector("table");
addEventListener("error", event => said.push("error " + event.message));
for (const column of [3, 3, 1, 8]) {
  const head = table.tHead.rows[0].cells[column];
  head.firstElementChild.click();
  const sorted = [...table.tHead.rows[0].cells].map(cell => cell.getAttribute("aria-sort"));
  const values = [...table.tBodies[0].rows].map(row => row.cells[column].dataset.value);
  said.push([column, sorted, values]);
}
const out = document.createElement("output");
out.textContent = JSON.stringify(said);
document.body.append(out);
</script>
"""


def test_a_click_on_a_header_sorts_the_table(searched, trained, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"there is no browser: none of {', '.join(BROWSERS)} is on the PATH")
    out = tmp_path / "report.html"
    rows = made(searched / "logs" / "tiny", trained, out=out).rows()
    out.write_text(out.read_text().replace("</body>", CLICKS + "</body>"))
    options = "--headless --no-sandbox --disable-gpu --enable-logging=stderr --dump-dom"
    line = [browser, *options.split(), f"--user-data-dir={tmp_path / 'profile'}", out.as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    said = json.loads(Page(done.stdout).all("output")[0][1])
    states = [sorted_by[column] for column, sorted_by, _ in said]
    assert states == ["ascending", "descending", "ascending", "ascending"]
    titles = ("cost", "cost", "method", "test top-1 %")
    for (_, sorted_by, values), title in zip(said, titles, strict=True):
        assert sorted_by.count("none") == len(sorted_by) - 1
        expected = [row[title] for row in rows]
        if title == "method":
            assert values == sorted(expected)
            continue
        filled = sorted(filter(None, expected), key=float, reverse="descending" in sorted_by)
        # what has no value comes last
        assert values == filled + [""] * (len(expected) - len(filled))
