"""The one kind of error that is meant for the person at the keyboard."""


class UserError(ValueError):
    """Bad input. The message is one line: what is refused, where, and what is allowed.

    `utils.command.command` prints it and exits with status 2.
    """
