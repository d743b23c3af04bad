"""Every code block of README and docs runs, or is marked by what it needs, and then understood.

A mark is a comment above it: <!-- needs a GPU -->, <!-- needs a download: WHAT --> or
<!-- takes N min -->.
"""

import importlib
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml

from model.spaces.registry import KINDS, open_problem
from tests.conftest import TINY_CONFIG
from tools import config_page
from utils.command import Parser
from utils.config import Config, keys_of

ROOT = Path(__file__).parent.parent
TOP = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")
PAGES = [*(ROOT / name for name in TOP), *ROOT.glob("docs/*.md")]
FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
MARK = re.compile(r"needs a GPU|needs a download: .+|takes \d+ min")
NAMED = re.compile(r"`(test_\w+)`")
BY_RUN_TESTS = ("bash run_tests.sh", "bash run_example.sh")


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    mark: str | None
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text, name = page.read_text(), str(page.relative_to(ROOT))
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start("language")) + 1
            found.append(Block(name, line, match["mark"], match["language"], match["text"]))
    return found


BLOCKS = blocks()


def of(language: str, marked: bool | None = None) -> list[Block]:
    """The blocks in a language, all or those with or without a mark."""
    found = [block for block in BLOCKS if block.language == language]
    return [block for block in found if marked in (None, block.mark is not None)]


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> None:
    """An empty working directory, except for what the pages name of the repository."""
    monkeypatch.chdir(tmp_path)
    for name in ("config_file", "release", "hubconf.py"):
        (tmp_path / name).symlink_to(ROOT / name)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_says_its_language_and_its_mark_is_known(block):
    assert block.language in ("bash", "python", "yaml", "text")
    assert block.mark is None or MARK.fullmatch(block.mark)


def test_no_block_is_overlooked():
    fences = sum(page.read_text().count("\n```") for page in PAGES)
    assert fences == 2 * len(BLOCKS)


# -- commands --------------------------------------------------------------------------------------

RECORD = r"""
note() { printf '%s\0' "$@"; printf '\n\0'; }
python3() { note python3 "$@"; }
torchrun() { note torchrun "$@"; }
bash() { note bash "$@"; }
"""


def commands(block: Block) -> list[list[str]]:
    """What a shell would run, with loops unrolled and lines joined."""
    shell = ["bash", "-euc", RECORD + block.text]
    done = subprocess.run(shell, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [part.split("\0")[:-1] for part in done.stdout.split("\n\0") if part]


class UnderstoodError(Exception):
    """A command line was parsed."""


def script(command: list[str]) -> tuple[str, list[str]]:
    """The module that a command runs, and its arguments."""
    launcher, *rest = command
    while launcher == "torchrun" and rest[0].startswith("--"):
        rest = rest[1:]
    if rest[0] == "-m":
        return rest[1], rest[2:]
    return rest[0].removesuffix(".py").replace("/", "."), rest[1:]


@pytest.mark.parametrize("block", of("bash"), ids=str)
def test_every_command_is_understood(block, monkeypatch):
    """By the parser of its script; and the files of the repository that it names are there."""
    parse = Parser.parse_args

    def only_parse(self, *arguments):
        parse(self, *arguments)
        raise UnderstoodError

    monkeypatch.setattr(Parser, "parse_args", only_parse)
    found = commands(block)
    assert found
    for command in found:
        folders = ("config_file/", "benchmarks/", "release/")
        named = [word for word in command if word.startswith(folders)]
        assert all((ROOT / word).exists() for word in named), command
        if command[0] == "bash":
            assert (ROOT / command[1]).exists()
            continue
        module, arguments = script(command)
        with pytest.raises(UnderstoodError):
            importlib.import_module(module).main(arguments)


# What makes a command short, behind its own flags.
QUICK = {
    "search": ["--set", "warmup_epochs=1", "epochs=1", "search_epochs=1", "validation_paths=1"],
    "tools.profile_latency": [
        *("--runs", "1", "--calibration", "1", "--networks", "2"),
        *("--set", "l_cfgs=[[6, 32, [3, 5, skip], 2, 3, false]]", "static_layers=[0]"),
    ],
}


SHORT = [block for block in of("bash", False) if not block.text.startswith(BY_RUN_TESTS)]


@pytest.mark.slow
@pytest.mark.parametrize("block", SHORT, ids=str)
@pytest.mark.usefixtures("checkout")
def test_what_is_not_marked_runs(block):
    """With fewer epochs."""
    for command in commands(block):
        module, arguments = script(command)
        importlib.import_module(module).main([*arguments, *QUICK.get(module, [])])


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in of("python", False)}))
@pytest.mark.usefixtures("checkout")
def test_python_runs(page):
    """The blocks of a page one after another; a kind of space that they add is forgotten again."""
    namespace = {"__name__": "docs"}
    with patch.dict(KINDS):
        for block in of("python", False):
            if block.page == page:
                exec(compile(block.text, str(block), "exec"), namespace)


@pytest.mark.parametrize("block", of("python", True), ids=str)
def test_marked_python_compiles(block):
    compile(block.text, str(block), "exec")


SPACES = [block for block in of("yaml") if block.page == "docs/search_space.md"]


@pytest.mark.parametrize("block", SPACES, ids=str)
def test_spaces_are_spaces(block):
    """Each of them completes a config, here one of images of 56 pixels."""
    values = yaml.safe_load(TINY_CONFIG.format(log_dir="logs"))
    for key in ("l_cfgs", "static_layers", "low_flops", "high_flops"):
        values.pop(key)
    config = Config.from_dict({**values, "input_size": 56, **yaml.safe_load(block.text)})
    open_problem(config).supernet(config)


# -- links, tests and keys that are named ----------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tests_that_are_named_exist(page):
    for row in page.read_text().splitlines():
        files = [ROOT / file for file in re.findall(r"`(tests/[\w/]+\.py)`", row)]
        assert all(file.exists() for file in files), row
        for name in NAMED.findall(row) if files else ():
            pattern = rf"^def {name}\("
            assert any(re.search(pattern, f.read_text(), re.MULTILINE) for f in files), name


def test_numbers_are_checked_by_tests():
    assert len(NAMED.findall((ROOT / "docs" / "numbers.md").read_text())) > 5


def test_the_page_of_config_keys_is_what_its_tool_prints(capsys):
    config_page.main([])
    assert (ROOT / "docs" / "configuration.md").read_text() == capsys.readouterr().out


def test_each_key_of_a_config_has_a_row_with_its_default():
    text = (ROOT / "docs" / "configuration.md").read_text().split("## The key space")[0]
    rows = re.findall(r"^\| `([\w.]+)` \|[^|]*\| ([^|]*) \| [^|]+ \|$", text, re.MULTILINE)
    assert [name for name, _ in rows if "." not in name] == list(keys_of(Config))
    needed = [name for name, default in rows if default == "-"]
    assert needed == ["dataset", "classes", "input_size"]
    config = Config.from_dict(dict.fromkeys(needed, 1) | {"dataset": "-"}).to_dict()
    for name, default in rows:
        key, _, inner = name.partition(".")
        if name not in needed and not default.startswith("as below"):
            value = None if default == "none" else yaml.safe_load(default.strip("`"))
            assert value == (config[key][inner] if inner else config[key]), name
