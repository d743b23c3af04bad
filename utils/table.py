"""Small tables of results for people."""


def format_table(columns: list[str], rows: list[list]) -> str:
    """Right-aligned text columns; numbers keep the form they come in."""
    cells = [columns, *[[("-" if cell is None else str(cell)) for cell in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
