"""YAML files: read safely, no key twice, and errors that name the file."""

from collections.abc import Callable
from pathlib import Path

import yaml

from utils.errors import UserError, one_line
from utils.plain_values import TooMuch, check_nesting, check_plain

# What PyYAML lets out of a wrong date or !!tag, of 5,000 digits, and of nesting without end.
WRONG_VALUES = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Safe YAML; `!include NAME` is the value of `include(NAME)`, where there is one."""

    include: Callable[[str], object] | None = None

    def included(self, node: yaml.Node):
        if self.include is None:
            raise yaml.constructor.ConstructorError(None, None, "!include is for configs only")
        return self.include(str(self.construct_scalar(node)))


_Loader.add_constructor("!include", _Loader.included)


def read_yaml(path: str | Path, where: str | None = None, include: Callable | None = None):
    """The value in a YAML file.

    Args:
        where: what errors call the file; None: its path.
        include: what `!include NAME` stands for; None: it is refused.

    Raises:
        UserError: the file cannot be read, is no YAML, or has a mapping with a key twice.
    """
    where = where or str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # no UTF-8, or a NUL in the path
        raise UserError(f"{where}: no valid YAML ({one_line(error)})") from None
    return parse_yaml(text, where, include)


def parse_yaml(text: str, where: str, include: Callable | None = None):
    """The value in a YAML text; otherwise as `read_yaml`."""
    try:
        loader = _Loader(text)
        loader.include = include
        node = loader.get_single_node()
        if node is None:
            return None
        check_nesting(node, _parts)  # before what is merged is copied
        _refuse_duplicates(node, where, "", set())
        value = loader.construct_document(node)
        check_plain(value)
        return value
    except TooMuch as error:
        raise UserError(f"{where}: no valid YAML ({error})") from None
    except UserError:
        raise
    except (yaml.YAMLError, *WRONG_VALUES) as error:
        raise UserError(f"{where}: no valid YAML ({one_line(error)})") from None


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _refuse_duplicates(node: yaml.Node, where: str, prefix: str, seen: set[int]) -> None:
    """UserError when a mapping in `node`, at any depth, has a key twice."""
    if isinstance(node, yaml.ScalarNode) or id(node) in seen:
        return
    seen.add(id(node))  # an alias may lead back to a node around it
    if isinstance(node, yaml.SequenceNode):
        for index, part in enumerate(node.value):
            _refuse_duplicates(part, where, f"{prefix.removesuffix('.')}[{index}].", seen)
        return
    lines = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode):
            if (first := lines.setdefault((key.tag, key.value), (key, line)))[0] is not key:
                given = f"this key is given twice, in lines {first[1]} and {line}"
                raise UserError(f"{where}: {prefix}{key.value}: {given}")
            _refuse_duplicates(value, where, f"{prefix}{key.value}.", seen)
