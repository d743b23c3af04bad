"""YAML files: read safely, no key twice, and errors that name the file."""

from collections.abc import Callable
from pathlib import Path

import yaml

from utils.errors import UserError
from utils.json_file import one_line


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
        return parse_yaml(Path(path).read_text(encoding="utf-8"), where, include)
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: no valid YAML ({one_line(error)})") from None


def parse_yaml(text: str, where: str, include: Callable | None = None):
    """The value in a YAML text; otherwise as `read_yaml`."""
    try:
        loader = _Loader(text)
        loader.include = include
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_duplicates(node, where, "", set())
        return loader.construct_document(node)
    except UserError:
        raise
    # the others are what PyYAML lets out of a wrong date or !!tag, and of nesting without end
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise UserError(f"{where}: no valid YAML ({one_line(error)})") from None


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
