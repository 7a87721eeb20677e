"""Tables that can be rendered on the terminal, on a page, in Markdown, in LaTeX and as a data frame.

A `Table` consists of typed cells, each with a value, an interval and its n. The kind of a cell determines the format of
its numbers, so that every renderer shows the same ones.
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
"""Kind of a value, which determines its format:

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
"""Where a column or a row is displayed. Data frames, Markdown and LaTeX contain what the page contains."""


def p_value(p: Any) -> str:
    """A p-value such as `0.012` or `< 0.001`; `no test` if it is missing."""
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
    """Number of values that the mean is taken over."""
    override: str | None = None
    """Text to display instead of the formatted value wherever the table is shown, such as `3 of 4` or `never`; the
    data frame keeps the value. None to format the value by `kind`."""
    short: str | None = None
    """Shorter text to display on the terminal instead of the value."""
    shown_interval: str | None = None
    """Text to display instead of the interval, for a unit that has no kind."""
    notes: tuple[str, ...] = ()
    """Short lines below the value on the page, and on the terminal if the column says so."""
    link: str = ""
    """Target of a link on the value on the page: an anchor, or a file in the same folder."""
    flag: str = ""
    """A warning about this value, such as `collapsed`; an exclamation mark on the terminal."""
    colour: str = ""
    """CSS colour of a dot before the value, on the page only."""
    tone: Literal["", "good", "bad", "best"] = ""
    """Highlights a good, bad or best value by colour, in addition to words; the best of a row has an asterisk on the
    terminal."""

    @property
    def text(self) -> str:
        """The value as text; a dash for a missing number."""
        if self.override is not None:
            return self.override
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
"""An empty cell."""


def estimate_cell(estimate: Estimate | None, kind: Kind = "score", *, notes: Iterable[str] = ()) -> Cell:
    """A cell with an estimate, its interval and its n; blank for None.

    Args:
        estimate: The estimate. A share of fewer than ten answers is written as a count, without an interval.
        kind: Kind of the mean.
        notes: Short lines below the value.
    """
    if estimate is None:
        return BLANK
    if kind == "share":
        few = is_few(estimate)
        override = share(estimate) if few else None
        return Cell(estimate.mean, kind, None if few else estimate.ci95, estimate.n, override, notes=tuple(notes))
    return Cell(estimate.mean, kind, estimate.ci95, estimate.n, notes=tuple(notes))


def score_cell(key: str, estimate: Estimate | None, notes: tuple[str, ...] = ()) -> Cell:
    """A cell with the value of a measure of similarity; a share of few answers is a count, without an interval.

    Args:
        key: The measure.
        estimate: Value of the measure; the cell is blank for None.
        notes: Short lines below the value.
    """
    if estimate is None:
        return BLANK
    if is_count(key, estimate):
        return Cell(estimate.mean, "score", None, estimate.n, score(key, estimate), notes=notes)
    return Cell(estimate.mean, "score", estimate.ci95, estimate.n, notes=notes)


@dataclass(frozen=True)
class Column:
    """Heading and layout of a column."""

    title: str
    kind: Kind = "text"
    """Kind of most cells: text is aligned left, numbers right."""
    short: str = ""
    """Shorter heading for the terminal, which has 80 columns; empty to use the title."""
    interval: bool | Literal["below"] = False
    """Whether the terminal shows the intervals: in a separate column, or below the values as on a page."""
    notes: bool = False
    """Whether the terminal shows the notes."""
    where: Where = "everywhere"
    widest: int | None = None
    """Width on the terminal at which the text is wrapped, in characters."""


@dataclass(frozen=True)
class Row:
    """A row; its first cell is its heading."""

    cells: tuple[Cell, ...]
    style: Literal["", "companion", "reference", "group"] = ""
    """`companion`: belongs to the row above. `reference`: a level to compare with, such as chance, or a mean. `group`:
    only a heading for the rows below."""
    where: Where = "everywhere"


def learner_cell(key: str, after: str = "", notes: tuple[str, ...] = ()) -> Cell:
    """A cell with the name and colour of a learner.

    Args:
        key: Key of the learner in a result.
        after: Text after the name, such as `, calibrated`.
        notes: Short lines below the name.
    """
    style = learner_style(key)
    return Cell(style.title + after, notes=notes, colour=style.colour)


def learner_row(key: str, *cells: Cell, **changes: Any) -> Row:
    """A row headed by the name and colour of a learner.

    Args:
        key: Key of the learner in a result.
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
    """A sentence below the table."""
    note: str = ""
    """A sentence below the table, on the page only."""
    groups: tuple[tuple[str, int], ...] = ()
    """Headings above groups of columns, each with the number of columns; the first group begins with the first
    column."""
    blocks: bool = False
    """Whether rows are long: separated by lines on the terminal, and displayed as blocks on a phone."""

    @property
    def row_count(self) -> int:
        """Number of rows on the terminal, where a table without rows is not printed."""
        return sum(row.where != "page" for row in self.rows)

    def __bool__(self) -> bool:
        return bool(self.rows)

    def terminal(self) -> RichTable:
        """The table for rich, at most 80 characters wide if the columns allow it."""
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
                # Padding instead of spaces, so that a second line is indented too.
                line.append(Padding(text, (0, 0, 0, 2)) if at == 0 and row.style == "companion" else text)
                if column.interval is True:
                    blank = cell.kind == "text" or row.style == "reference"
                    line.append(Text(cell.interval or ("" if blank else MISSING)))
            drawn.add_row(*line, style="italic" if row.style == "reference" else None)
        return drawn

    def html(self) -> Markup:
        """The table as HTML, in a box that scrolls sideways on a narrow screen."""
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
        # A scrolling box must be reachable by keyboard and therefore needs a name.
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
        r"""The table as a `tabular` with rules of booktabs (`\usepackage{booktabs}`); intervals in parentheses."""
        columns, rows = self._of("page")
        alignment = "".join("l" if column.kind == "text" else "r" for column in columns)
        head = " & ".join(_escape_latex(column.title) for column in columns)
        body = [" & ".join(_escape_latex(_inline(cell)) for cell in row.cells) + r" \\" for row in rows]
        lines = [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", rf"{head} \\", r"\midrule", *body]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def arrow(self) -> "pyarrow.Table":
        """The table for pyarrow, unrounded, with one column per heading and `... low`, `... high` and `... n` if known.

        Shares and differences of shares are in [0, 1] and [-1, 1]. Missing numbers are null.
        """
        import pyarrow

        columns, rows = self._of("page")
        arrays: dict[str, Any] = {}
        for at, column in enumerate(columns):
            cells = [row.cells[at] for row in rows]
            name = column.title if column.title not in arrays else f"{column.title} ({at + 1})"
            if column.kind == "text":
                arrays[name] = pyarrow.array([cell.text for cell in cells], pyarrow.string())
                continue
            arrays[name] = pyarrow.array([finite(cell.value) for cell in cells], pyarrow.float64())
            ends = [known(cell.ci95) or (None, None) for cell in cells]
            if any(low is not None for low, _ in ends):
                arrays[f"{name} low"] = pyarrow.array([low for low, _ in ends], pyarrow.float64())
                arrays[f"{name} high"] = pyarrow.array([high for _, high in ends], pyarrow.float64())
            if any(cell.n is not None for cell in cells):
                arrays[f"{name} n"] = pyarrow.array([cell.n for cell in cells], pyarrow.int64())
        return pyarrow.table(arrays)

    def frame(self) -> Any:
        """The table as a `pandas.DataFrame`; see `arrow`."""
        return self.arrow().to_pandas()

    def _of(self, where: Where) -> tuple[list[Column], list[Row]]:
        """The columns and rows displayed at `where`, each row with the cells of these columns."""
        places = [at for at, column in enumerate(self.columns) if column.where in ("everywhere", where)]
        rows = [row for row in self.rows if row.where in ("everywhere", where)]
        return [self.columns[at] for at in places], [
            replace(row, cells=tuple(row.cells[at] for at in places)) for row in rows
        ]


def without_columns(table: Table, titles: Collection[str]) -> Table:
    """`table` without the columns of these titles."""
    places = [at for at, column in enumerate(table.columns) if column.title not in titles]
    rows = tuple(replace(row, cells=tuple(row.cells[at] for at in places)) for row in table.rows)
    return replace(table, columns=tuple(table.columns[at] for at in places), rows=rows)


def facts_table(rows: Sequence[tuple[str, str]]) -> Table:
    """A table of names and texts, without headings."""
    return Table("", (Column(""), Column("")), tuple(Row((Cell(name), Cell(text))) for name, text in rows))


def _visible(text: str) -> str:
    """`text` with control characters escaped."""
    return plain(text, lines=True)


def _style(cell: Cell) -> str:
    """Style of a cell on the terminal."""
    if cell.flag or cell.tone == "bad":
        return "bold red"
    return "bold" if cell.tone == "best" else ""


def _classes(column: Column, cell: Cell) -> Markup:
    names = [*([] if column.kind == "text" else ["number"]), *([cell.tone] if cell.tone else [])]
    return Markup(' class="{}"').format(" ".join(names)) if names else Markup("")


def _number(kind: str) -> Markup:
    return Markup("") if kind == "text" else Markup(' class="number"')


def _html_text(text: str) -> Markup:
    """Text of a heading as HTML, with its line breaks."""
    return Markup("<br>").join(escape(_visible(line)) for line in text.split("\n"))


def _html_row(row: Row, columns: Sequence[Column]) -> Markup:
    kind = Markup(' class="{}"').format(row.style) if row.style else Markup("")
    if row.style == "group":
        heading = Markup('<th scope="rowgroup" colspan="{}">{}</th>').format(len(columns), _html_cell(row.cells[0]))
        return Markup("<tr{}>{}</tr>").format(kind, heading)
    first, *rest = row.cells
    # A heading with long notes may be wrapped; short names stay on one line.
    width = Markup(' class="measure"') if sum(map(len, first.notes)) > 40 else Markup("")
    cells = Markup("").join(
        Markup('<td{} data-label="{}">{}</td>').format(_classes(column, cell), column.title, _html_cell(cell))
        for cell, column in zip(rest, columns[1:], strict=True)
    )
    return Markup('<tr{}><th scope="row"{}>{}</th>{}</tr>').format(kind, width, _html_cell(first), cells)


def _html_cell(cell: Cell) -> Markup:
    # Spaces separate value and interval when text is copied from the page.
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
