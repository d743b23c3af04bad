"""Print docs/configuration.md: every key of a config, by `utils/config.py`.

python3 -m tools.config_page > docs/configuration.md
"""

import dataclasses
import sys
from pathlib import Path

# as a command, this file is found in its folder, and the rest one folder up
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from model.spaces.registry import KINDS
from utils.command import Parser, command
from utils.config import NEEDED, UNREAD, Config, in_words, keys_of, types_of

PAGE = """# Every key of a config

<!-- Printed by `python3 -m tools.config_page`: change utils/config.py instead. -->

A config is a YAML file with the published keys; `!include` reads another file of the same folder
tree. Where a command takes a config (`--help` says so), `--set key=value` overrides a key, and
`--set key.inner=value` one inside it; text is taken as it is, other values are YAML. Unknown keys,
keys that are given twice, wrong types and impossible values are refused in one line before anything
is written. Paths are relative to the working directory; `~` is your home folder, as on command
lines. `config_file/` has one for each experiment; those of the published release load unchanged. A
default of `-` means that the key is needed.

M is millions of multiply-adds; with `cost: latency` whatever is in M below is in milliseconds.
"""

# What stands between the heading of a section and its table.
NOTES = {
    "The search space": """`l_cfgs` and the keys after it describe a `unified` space, `space` one of
another kind, [below](#the-key-space); [search_space.md](search_space.md) has examples. With
`supernet: none` there is no space, but the network of `network_config`.""",
    "Supernet warm-up": """Training from scratch reads these keys, too, except `warmup_epochs` and
those from `paths_per_step` to `bn_recalibration_images`.""",
    "Generator training": """What the keys that are not published are for:
[cifar10.md](cifar10.md#what-it-takes-to-hit-targets), and for `straight_through`, `sampled_paths`
and `logit_decay` [nasbench201.md](nasbench201.md#settings-and-how-they-were-chosen).""",
    "Files written": "Copies of what the run folder has.",
    "The key space": """What is inside `space`, by the kind of `supernet`. The older spellings
`elastic` and `cell` of the key itself are read, too.""",
}


@command
def main(argv: list[str] | None = None) -> None:
    Parser(__doc__).parse_args(argv)
    print(page(), end="")


def page() -> str:
    """The text of docs/configuration.md."""
    section, sections = "", {}
    for name, part in keys_of(Config).items():
        section = part.metadata["section"] or section
        sections.setdefault(section, []).extend(rows(name, part, types_of(Config)[name]))
    parts = [PAGE]
    parts += [section_of(heading, lines) for heading, lines in sections.items()]
    parts.append(f"## The key space\n\n{NOTES['The key space']}\n")
    described = {name: one.keys for name, one in KINDS.items() if one.keys is not None}
    for supernet, keys in described.items():
        hints = types_of(keys)
        lines = [rows(name, part, hints[name])[0] for name, part in keys_of(keys).items()]
        parts.append(section_of(f"`supernet: {supernet}`", lines, level=3))
    return "\n".join(parts)


def section_of(heading: str, lines: list[str], level: int = 2) -> str:
    """A heading, its note and a table of keys."""
    note = f"{NOTES[heading]}\n\n" if heading in NOTES else ""
    table = "\n".join(["| key | allowed | default | meaning |", "|---|---|---|---|", *lines])
    return f"{'#' * level} {heading}\n\n{note}{table}\n"


def rows(name: str, part: dataclasses.Field, hint: type) -> list[str]:
    """The row of a key, and those of the keys inside it."""
    meaning = "accepted and not used: " * (name in UNREAD) + part.metadata["meaning"]
    if not dataclasses.is_dataclass(hint):
        return [f"| `{name}` | {in_words(hint)} | {value_text(part.default)} | {meaning} |"]
    lines = [f"| `{name}` | mapping | as below | {meaning} |"]
    for inner, about in keys_of(hint).items():
        default = value_text(getattr(part.default, inner))
        words, meaning = in_words(types_of(hint)[inner]), about.metadata["meaning"]
        lines.append(f"| `{name}.{inner}` | {words} | {default} | {meaning} |")
    return lines


def value_text(value) -> str:
    """A default as YAML has it."""
    if value is NEEDED:
        return "-"
    if isinstance(value, str):
        return f"`{value}`"
    if isinstance(value, tuple):
        return f"[{', '.join(map(value_text, value))}]"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}"


if __name__ == "__main__":
    main()
