"""The one kind of error that is meant for the person at the keyboard."""


class UserError(ValueError):
    """Bad input. The message is one line: what is refused, where, and what is allowed.

    `utils.command.command` prints it and exits with status 2.
    """


def one_line(error: BaseException | str, most: int = 200) -> str:
    """The text of an error without line breaks, at most so many characters of it."""
    text = " ".join(str(error).split())
    return text if len(text) <= most else text[: most - 4] + " ..."


def printable(text: str, most: int = 2000) -> str:
    """`text` as one line that any terminal takes: control characters and surrogates escaped.

    At most so many characters of it, from both ends: a message may hold what a file holds.
    """
    if len(text) > most:
        text = f"{text[: most // 2]} ... {text[-most // 2 + 5 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
