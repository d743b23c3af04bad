"""Small tables of results for people."""


def format_table(columns: list[str], rows: list[list]) -> str:
    """Right-aligned text columns; None is a dash."""
    cells = [columns, *[[("-" if cell is None else str(cell)) for cell in row] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.rjust, row, widths)) for row in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
