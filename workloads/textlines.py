"""Lines of a text file in blocks, and what went wrong in which of them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import polars as pl

from symphony_dask.errors import BadInput

BLOCK_BYTES = 16 << 20

_KEPT_EXAMPLES = 5


class BadRows:
    """Counts the rows that could not be read, and keeps the first few as "line 7: what is wrong".

    strict: the first bad row raises ``BadInput``.
    """

    def __init__(self, path: str | Path, *, strict: bool = False) -> None:
        self.path = path
        self.strict = strict
        self.count = 0
        self.examples: tuple[str, ...] = ()

    def leave_out(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The ``rows`` whose column ``wrong`` is null; the others are counted by their column ``line``."""
        bad = rows.filter(pl.col("wrong").is_not_null())
        if bad.height:
            self.count += bad.height
            shown = bad.head(_KEPT_EXAMPLES - len(self.examples))
            self.examples += tuple(shown.select(pl.format("line {}: {}", "line", "wrong")).to_series())
            if self.strict:
                raise BadInput(f"{self.path}, {self.examples[0]}; mend it, or leave out strict to skip such rows")
        return rows.filter(pl.col("wrong").is_null())

    def nothing_left(self) -> BadInput:
        """What to raise when the file has no good row."""
        found = f"all {self.count} rows are bad, the first at {self.examples[0]}" if self.count else "it has no rows"
        return BadInput(f"{self.path} has no request: {found}")


def line_blocks(
    path: str | Path, on_progress: Callable[[int], None] | None = None, block_bytes: int = BLOCK_BYTES
) -> Iterator[pl.DataFrame]:
    """The lines of the file at ``path``, blank ones left out: columns line (from 1) and text (trimmed).

    Whole lines, and not the fields that a CSV reader would find, because a reader that meets a bad row either stops or
    forgets its line. Bytes that are no UTF-8 become U+FFFD. on_progress: is told how many bytes were read.

    Raises ``BadInput`` if there is no such file.
    """
    if not Path(path).is_file():
        raise BadInput(f"trace file {str(path)!r} does not exist: give the path of a file")
    line, rest, done = 1, b"", 0
    with Path(path).open("rb") as file:
        while read := file.read(block_bytes):
            done += len(read)
            whole, end, after = read.rpartition(b"\n")
            if end:
                yield _block(rest + whole, line)
                line += rest.count(b"\n") + whole.count(b"\n") + 1
                rest = after
            else:
                rest += read
            if on_progress is not None:
                on_progress(done)
    if rest:
        yield _block(rest, line)


def _block(data: bytes, first: int) -> pl.DataFrame:
    lines = pl.DataFrame({"text": [data.decode(errors="replace")]}).select(pl.col("text").str.split("\n").explode())
    text = pl.col("text").str.strip_chars()
    return lines.with_row_index("line", first).with_columns(text).filter(text.str.len_bytes() > 0)


def field_blocks(
    path: str | Path, names: Sequence[str], on_progress: Callable[[int], None] | None = None
) -> Iterator[pl.DataFrame]:
    """The comma-separated lines after the header, in blocks.

    Columns: line, wrong (null unless the line has too many or too few fields), fields (all, a list), and "field NAME"
    of each of ``names``. Fields in double quotes may hold commas, but no line ends. Raises ``BadInput`` if the file is
    missing or empty, or the header lacks a name.
    """
    header: list[str] = []
    for block in line_blocks(path, on_progress):
        lines = block
        if not header:
            if block.is_empty():
                continue
            header = [name.strip().strip('"') for name in block["text"][0].lstrip("\ufeff").split(",")]
            missing = [name for name in names if name not in header]
            if missing:
                raise BadInput(f"{path} has no column {', '.join(missing)}: its first line is {','.join(header)!r}")
            lines = block.slice(1)
        width = pl.col("fields").list.len()
        yield lines.with_columns(fields=_split(lines["text"])).with_columns(
            *(
                pl.col("fields").list.get(header.index(name), null_on_oob=True).str.strip_chars().alias(f"field {name}")
                for name in names
            ),
            wrong=pl.when(width != len(header)).then(
                pl.format("{} fields where the header has {}", width, pl.lit(len(header)))
            ),
        )
    if not header:
        raise BadInput(f"trace file {str(path)!r} is empty")


def _split(lines: pl.Series) -> pl.Series:
    fields = lines.str.split(",")
    if not lines.str.contains('"', literal=True).any():
        return fields
    return pl.Series("fields", [_quoted(line) for line in lines], dtype=pl.List(pl.String))


def _quoted(line: str) -> list[str]:
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error:
        return line.split(",")
