"""Tables in HTML, for what `explain` and `describe` return in a notebook."""

import html
from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], total: Sequence[str] = ()) -> str:
    """Returns a table of text.

    Args:
        heads: the titles of the columns.
        rows: the cells. The first may start with spaces, which are kept, and end with lines of its own.
        total: the cells of a last row.

    >>> table(["a"], [["<1>"]])
    '<table><thead><tr><th>a</th></tr></thead><tbody><tr><td>&lt;1&gt;</td></tr></tbody></table>'
    """
    body = "".join(_row("td", cells) for cells in rows)
    foot = f"<tfoot>{_row('th', total)}</tfoot>" if total else ""
    return f"<table><thead>{_row('th', heads)}</thead><tbody>{body}</tbody>{foot}</table>"


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{_cell(cell)}</{tag}>' for cell in cells)}</tr>"


def _cell(text: str) -> str:
    indent = len(text) - len(text.lstrip(" "))
    return "&emsp;" * (indent // 2) + html.escape(text.lstrip(" ")).replace("\n", "<br>")


def paragraphs(lines: Iterable[str]) -> str:
    """Returns a paragraph for each line.

    >>> paragraphs(["a < b"])
    '<p>a &lt; b</p>'
    """
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines)
