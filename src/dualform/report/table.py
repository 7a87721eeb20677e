"""One table, declared once: on the terminal, on a page, in Markdown, in LaTeX and as a data frame.

A `Table` holds typed cells, each with its value, its interval and the n that it rests on; how a number is written
follows from its kind. So a study declares what a row holds, and every renderer shows the same numbers.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup, escape
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from dualform.plain_text import plain
from dualform.report.measures import is_count, score
from dualform.report.numerals import (
    MISSING,
    Interval,
    count,
    decimal,
    decimal_interval,
    finite,
    known,
    percent,
    percent_interval,
    significant,
)
from dualform.report.palette import learner_style
from dualform.report.phrases import (
    difference,
    difference_interval,
    hundredths,
    hundredths_interval,
    is_few,
    points,
    points_interval,
    share,
)
from dualform.result import Estimate

if TYPE_CHECKING:
    import pyarrow

Kind = Literal["text", "share", "points", "difference", "score", "ratio", "nats", "number", "seconds", "count", "p"]
"""What a number is, which decides how it is written:

- `share`: a part of one, `72.1 %`
- `points`: a width or deviation of a share, in hundredths, `4.1`
- `difference`: a signed difference of two shares, in hundredths, `+4.1`
- `score`, `nats`: three decimals, `0.186`
- `ratio`: two decimals, `0.33`
- `number`, `seconds`: three significant digits, `12.3`
- `count`: a whole number, `1,158`
- `p`: a p-value, `< 0.001`
"""

Where = Literal["everywhere", "page", "terminal"]
"""Where a column or a row is shown. Data frames, Markdown and LaTeX hold what the page holds."""


def p_value(p: Any) -> str:
    """`0.012`, `< 0.001`, or `no test`."""
    number = finite(p)
    if number is None:
        return "no test"
    return "< 0.001" if number < 0.001 else f"{number:.3g}"


def _significant_interval(interval: Any) -> str:
    ends = known(interval)
    return MISSING if ends is None else f"{significant(ends[0])} to {significant(ends[1])}"


def _count_interval(interval: Any) -> str:
    ends = known(interval)
    return MISSING if ends is None else f"{count(ends[0])} to {count(ends[1])}"


_FORMATS: dict[str, tuple[Callable[[Any], str], Callable[[Any], str]]] = {
    "share": (percent, percent_interval),
    "points": (points, points_interval),
    "difference": (difference, difference_interval),
    "score": (decimal, decimal_interval),
    "nats": (decimal, decimal_interval),
    "ratio": (hundredths, hundredths_interval),
    "number": (significant, _significant_interval),
    "seconds": (significant, _significant_interval),
    "count": (count, _count_interval),
    "p": (p_value, lambda _: MISSING),
}


@dataclass(frozen=True)
class Cell:
    """One value of a table."""

    value: Any = ""
    kind: Kind = "text"
    ci95: Interval | None = None
    n: int | None = None
    """How many numbers the value is a mean of."""
    shown: str | None = None
    """What is written in the value's place, such as `3 of 4` or `never`; the data frame keeps the value."""
    short: str | None = None
    """What the terminal writes in the value's place, where that is shorter."""
    shown_interval: str | None = None
    """What is written in the interval's place, in a unit that no kind has."""
    notes: tuple[str, ...] = ()
    """Short lines below the value, on the page, and on the terminal where the column says so."""
    link: str = ""
    """Address that the value leads to on the page: a place of the page, or a file next to it."""
    flag: str = ""
    """A word of warning about this value, such as `collapsed`; on the terminal an exclamation mark."""
    colour: str = ""
    """CSS colour of a dot before the value, on the page only."""
    tone: Literal["", "good", "bad", "best"] = ""
    """Whether it is as it should be, or the best of its row: coloured, and said in words as well; the best has an
    asterisk on the terminal."""

    @property
    def text(self) -> str:
        """The value as text; a dash for a number that does not exist."""
        if self.shown is not None:
            return self.shown
        return str(self.value) if self.kind == "text" else _FORMATS[self.kind][0](self.value)

    @property
    def interval(self) -> str:
        """The interval as text; empty without one."""
        if self.kind == "text" or known(self.ci95) is None:
            return ""
        if self.shown_interval is not None:
            return self.shown_interval
        return _FORMATS[self.kind][1](self.ci95)


BLANK = Cell()
"""Nothing to show."""


def estimate_cell(estimate: Estimate | None, kind: Kind = "score", *, notes: Iterable[str] = ()) -> Cell:
    """An estimate with its interval and n; blank without one.

    Args:
        estimate: The estimate. A share of fewer than ten answers is written as a count, without an interval.
        kind: What its mean is.
        notes: Short lines below it.
    """
    if estimate is None:
        return BLANK
    if kind == "share":
        few = is_few(estimate)
        shown = share(estimate) if few else None
        return Cell(estimate.mean, kind, None if few else estimate.ci95, estimate.n, shown, notes=tuple(notes))
    return Cell(estimate.mean, kind, estimate.ci95, estimate.n, notes=tuple(notes))


def score_cell(key: str, estimate: Estimate | None, notes: tuple[str, ...] = ()) -> Cell:
    """The value of a measure of similarity; a share of few answers as a count, without an interval.

    Args:
        key: The measure.
        estimate: Its value; blank without one.
        notes: Short lines below it.
    """
    if estimate is None:
        return BLANK
    if is_count(key, estimate):
        return Cell(estimate.mean, "score", None, estimate.n, score(key, estimate), notes=notes)
    return Cell(estimate.mean, "score", estimate.ci95, estimate.n, notes=notes)


@dataclass(frozen=True)
class Column:
    """A column: its heading, and how its cells stand."""

    title: str
    kind: Kind = "text"
    """Of most of its cells: text stands on the left, numbers on the right."""
    short: str = ""
    """Its heading on the terminal, where 80 columns must do; the title where it is empty."""
    interval: bool | Literal["below"] = False
    """Whether the terminal shows the intervals: in a column of their own, or below the values as on a page."""
    notes: bool = False
    """Whether the terminal shows the notes."""
    where: Where = "everywhere"
    widest: int | None = None
    """Columns of the terminal that its text may take before it is wrapped."""


@dataclass(frozen=True)
class Row:
    """One row; its first cell is its heading."""

    cells: tuple[Cell, ...]
    style: Literal["", "companion", "reference", "group"] = ""
    """`companion`: belongs to the row above it. `reference`: a level to compare with, such as chance, or a mean.
    `group`: heads the rows below it with its first cell alone."""
    where: Where = "everywhere"


def learner_cell(key: str, after: str = "", notes: tuple[str, ...] = ()) -> Cell:
    """A learner's name with its colour.

    Args:
        key: Its key in a result.
        after: What follows the name, such as `, calibrated`.
        notes: Short lines below it.
    """
    style = learner_style(key)
    return Cell(style.title + after, notes=notes, colour=style.colour)


def learner_row(key: str, *cells: Cell, **changes: Any) -> Row:
    """A row headed by a learner's name, with its colour.

    Args:
        key: Its key in a result.
        cells: The other cells.
        changes: Other fields of `Row`.
    """
    return Row((learner_cell(key), *cells), **changes)


@dataclass(frozen=True)
class Table:
    """Rows of typed cells under named columns."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    caption: str = ""
    """A sentence below it, everywhere."""
    note: str = ""
    """A sentence below it on the page alone."""
    groups: tuple[tuple[str, int], ...] = ()
    """Headings above several columns, each with their number; the first covers the first column."""
    blocks: bool = False
    """Whether its rows are long: ruled off on the terminal, and each a block of lines on the screen of a phone."""

    @property
    def row_count(self) -> int:
        """Rows of the terminal's table; such a table without rows is not printed."""
        return sum(row.where != "page" for row in self.rows)

    def __bool__(self) -> bool:
        return bool(self.rows)

    def terminal(self) -> RichTable:
        """The table for rich, at most 80 columns wide where the declaration allows it."""
        drawn = RichTable(
            title=Text(self.title) if self.title else None,
            title_justify="left",
            caption=Text(self.caption) if self.caption else None,
            caption_justify="left",
            show_lines=self.blocks,
        )
        places = [(at, column) for at, column in enumerate(self.columns) if column.where != "page"]
        for _, column in places:
            number = column.kind != "text"
            drawn.add_column(
                Text(column.short or column.title),
                justify="right" if number else "left",
                no_wrap=number,
                overflow="fold",
                max_width=column.widest,
            )
            if column.interval is True:
                drawn.add_column("95 % interval", justify="right", no_wrap=True)
        for row in self.rows:
            if row.where == "page":
                continue
            line: list[Any] = []
            for at, column in places:
                cell = row.cells[at]
                lines = [
                    cell.text if cell.short is None else cell.short,
                    *([cell.interval] if column.interval == "below" and cell.interval else []),
                ]
                lines += cell.notes if column.notes else ()
                content = "\n".join(lines) + "*" * (cell.tone == "best")
                text = Text(f"{content} !" if cell.flag else content, style=_style(cell))
                # Padding and no spaces, so that a second line stands below the first.
                line.append(Padding(text, (0, 0, 0, 2)) if at == 0 and row.style == "companion" else text)
                if column.interval is True:
                    blank = cell.kind == "text" or row.style == "reference"
                    line.append(Text(cell.interval or ("" if blank else MISSING)))
            drawn.add_row(*line, style="italic" if row.style == "reference" else None)
        return drawn

    def html(self) -> Markup:
        """The table as HTML, in a box of its own that scrolls sideways where the screen is narrow."""
        columns, rows = self._of("page")
        headed = any(column.title for column in columns)
        shape = "blocks" if self.blocks else "wide" if len(columns) > 8 else "" if headed else "facts"
        kind = Markup(' class="{}"').format(shape) if shape else Markup("")
        head = Markup("")
        if self.groups:
            cells = (
                Markup('<th scope="colgroup" colspan="{}">{}</th>').format(span, _html_text(name))
                for name, span in self.groups
            )
            head += Markup("<tr>") + Markup("").join(cells) + Markup("</tr>\n")
        titles = (
            Markup('<th scope="col"{}>{}</th>').format(_number(column.kind), _html_text(column.title))
            for column in columns
        )
        head += Markup("<tr>") + Markup("").join(titles) + Markup("</tr>")
        head = Markup("<thead>") + head + Markup("</thead>\n") if headed else Markup("")
        body = Markup("\n").join(_html_row(row, columns) for row in rows)
        # What scrolls must be reached by keyboard, and then has to have a name.
        name = (
            Markup(' tabindex="0" role="region" aria-label="{}"').format(_visible(self.title))
            if self.title
            else Markup("")
        )
        drawn = Markup('<div class="scroll"{}><table{}>\n{}<tbody>\n{}\n</tbody></table></div>').format(
            name, kind, head, body
        )
        for line in (self.caption, self.note):
            drawn += Markup('\n<p class="note">{}</p>').format(_visible(line)) if line else Markup("")
        return drawn

    def markdown(self) -> str:
        """The table in Markdown's pipe notation; intervals in parentheses."""
        columns, rows = self._of("page")
        rule = ["---" if column.kind == "text" else "---:" for column in columns]
        lines = [[column.title for column in columns], *([_inline(cell) for cell in row.cells] for row in rows)]
        escaped = [[_escape_markdown(text) for text in line] for line in lines]
        return "\n".join("| " + " | ".join(line) + " |" for line in [escaped[0], rule, *escaped[1:]]) + "\n"

    def latex(self) -> str:
        r"""The table as a `tabular` in the manner of booktabs (`\usepackage{booktabs}`); intervals in parentheses."""
        columns, rows = self._of("page")
        alignment = "".join("l" if column.kind == "text" else "r" for column in columns)
        head = " & ".join(_escape_latex(column.title) for column in columns)
        body = [" & ".join(_escape_latex(_inline(cell)) for cell in row.cells) + r" \\" for row in rows]
        lines = [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", rf"{head} \\", r"\midrule", *body]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def arrow(self) -> "pyarrow.Table":
        """The table as pyarrow's, unrounded: a column a heading, with `... low`, `... high` and `... n` where known.

        A share, and a difference of shares, is in [0, 1]. A column of text holds text; one of numbers holds
        floats, null where there is no number.
        """
        import pyarrow

        columns, rows = self._of("page")
        found: dict[str, Any] = {}
        for at, column in enumerate(columns):
            cells = [row.cells[at] for row in rows]
            name = column.title if column.title not in found else f"{column.title} ({at + 1})"
            if column.kind == "text":
                found[name] = pyarrow.array([cell.text for cell in cells], pyarrow.string())
                continue
            found[name] = pyarrow.array([finite(cell.value) for cell in cells], pyarrow.float64())
            ends = [known(cell.ci95) or (None, None) for cell in cells]
            if any(low is not None for low, _ in ends):
                found[f"{name} low"] = pyarrow.array([low for low, _ in ends], pyarrow.float64())
                found[f"{name} high"] = pyarrow.array([high for _, high in ends], pyarrow.float64())
            if any(cell.n is not None for cell in cells):
                found[f"{name} n"] = pyarrow.array([cell.n for cell in cells], pyarrow.int64())
        return pyarrow.table(found)

    def frame(self) -> Any:
        """The same as a `pandas.DataFrame`."""
        return self.arrow().to_pandas()

    def _of(self, where: Where) -> tuple[list[Column], list[Row]]:
        """Columns and rows that are shown there, each row with the cells of those columns."""
        places = [at for at, column in enumerate(self.columns) if column.where in ("everywhere", where)]
        rows = [row for row in self.rows if row.where in ("everywhere", where)]
        return [self.columns[at] for at in places], [
            replace(row, cells=tuple(row.cells[at] for at in places)) for row in rows
        ]


def without_columns(table: Table, titles: Collection[str]) -> Table:
    """A table without the columns of these titles, in which there is nothing to show."""
    places = [at for at, column in enumerate(table.columns) if column.title not in titles]
    rows = tuple(replace(row, cells=tuple(row.cells[at] for at in places)) for row in table.rows)
    return replace(table, columns=tuple(table.columns[at] for at in places), rows=rows)


def facts_table(rows: Sequence[tuple[str, str]]) -> Table:
    """A table of two columns without headings: name and text."""
    return Table("", (Column(""), Column("")), tuple(Row((Cell(name), Cell(text))) for name, text in rows))


def _visible(text: str) -> str:
    """`text` with characters that steer instead of being seen written out."""
    return plain(text, lines=True)


def _style(cell: Cell) -> str:
    """How the terminal shows a cell that is not as it should be, or is the best of its row."""
    if cell.flag or cell.tone == "bad":
        return "bold red"
    return "bold" if cell.tone == "best" else ""


def _classes(column: Column, cell: Cell) -> Markup:
    names = [*([] if column.kind == "text" else ["number"]), *([cell.tone] if cell.tone else [])]
    return Markup(' class="{}"').format(" ".join(names)) if names else Markup("")


def _number(kind: str) -> Markup:
    return Markup("") if kind == "text" else Markup(' class="number"')


def _html_text(text: str) -> Markup:
    """Text of a heading; a line break in it is one on the page."""
    return Markup("<br>").join(escape(_visible(line)) for line in text.split("\n"))


def _html_row(row: Row, columns: Sequence[Column]) -> Markup:
    kind = Markup(' class="{}"').format(row.style) if row.style else Markup("")
    if row.style == "group":
        heading = Markup('<th scope="rowgroup" colspan="{}">{}</th>').format(len(columns), _html_cell(row.cells[0]))
        return Markup("<tr{}>{}</tr>").format(kind, heading)
    first, *rest = row.cells
    # A row whose heading explains itself needs room for it; short names are kept on one line.
    width = Markup(' class="measure"') if sum(map(len, first.notes)) > 40 else Markup("")
    cells = Markup("").join(
        Markup('<td{} data-label="{}">{}</td>').format(_classes(column, cell), column.title, _html_cell(cell))
        for cell, column in zip(rest, columns[1:], strict=True)
    )
    return Markup('<tr{}><th scope="row"{}>{}</th>{}</tr>').format(kind, width, _html_cell(first), cells)


def _html_cell(cell: Cell) -> Markup:
    # A space between value and interval: what is copied from the page keeps them apart.
    dot = (
        Markup('<span class="swatch" style="background:{}"></span>').format(cell.colour) if cell.colour else Markup("")
    )
    text = escape(_visible(cell.text))
    drawn = dot + (Markup('<a href="{}">{}</a>').format(cell.link, text) if cell.link else text)
    if cell.flag:
        drawn += Markup(' <strong class="fallen">{}</strong>').format(_visible(cell.flag))
    for line in (cell.interval, *cell.notes):
        drawn += Markup(' <span class="under">{}</span>').format(_visible(line)) if line else Markup("")
    return drawn


def _inline(cell: Cell) -> str:
    text = f"{cell.text} ({cell.interval})" if cell.interval else cell.text
    return _visible(f"{text} {cell.flag}" if cell.flag else text)


def _escape_markdown(text: str) -> str:
    escaped = re.sub(r"([\\`*_{}\[\]|#])", r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    MISSING: "--",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
