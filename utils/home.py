"""The home folder in paths: `~` is expanded where a path comes in, and nowhere else."""

import os

from utils.errors import UserError


def expand_home(path: str) -> str:
    """A path with the home folder in place of a leading `~` or `~user`, else as it is.

    UserError when there is no such user: a folder would be called `~user`.
    """
    if not path.startswith("~"):
        return path
    expanded = os.path.expanduser(path)
    if expanded == path:
        user = path.split(os.sep)[0]
        raise UserError(f"{path}: {user} is no home folder; a folder of that name is ./{user}")
    return expanded


def expand_argument(word: str) -> str:
    """A word of a command line, of which a shell expands `~/x`, but not `--flag=~/x`.

    UserError for a `~user` that there is not.
    """
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return flag + equals + expand_home(value) if value.startswith("~") else word
