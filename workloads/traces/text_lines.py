"""Reads the lines of a text file in blocks, and notes what went wrong in which of them."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import polars as pl

from symphony_dask.errors import BadInput
from symphony_dask.text import plain, shown

BLOCK_BYTES = 16 << 20

#: A longer line is none of a trace.
MOST_LINE_BYTES = 16 << 20

_KEPT_EXAMPLES = 5

#: Characters of an example, and of a value in it.
_MOST_EXAMPLE, _MOST_VALUE = 300, 80

#: How files begin that are no text, and what to do about it.
_NOT_TEXT = (
    (b"\x1f\x8b", "is compressed by gzip: unpack it first (gunzip)"),
    (b"PK\x03\x04", "is a zip archive: unpack it first (unzip)"),
    (b"\xfd7zXZ\x00", "is compressed by xz: unpack it first (unxz)"),
    (b"BZh", "is compressed by bzip2: unpack it first (bunzip2)"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd: unpack it first (unzstd)"),
    (b"PAR1", "is a Parquet file: import it by the format parquet"),
    (b"ARROW1", "is an Arrow file: write it as Parquet, and import it by the format parquet"),
)

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


class BadRows:
    """Counts the rows that could not be read, and keeps the first few as "line 7: what is wrong", printable and short.

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
            first = bad.head(_KEPT_EXAMPLES - len(self.examples)).select("line", "wrong").rows()
            self.examples += tuple(
                plain(f"line {line}: {wrong}", _MOST_EXAMPLE).replace("\n", "\\n") for line, wrong in first
            )
            if self.strict:
                raise BadInput(f"{self.path}, {self.examples[0]}; mend it, or leave out strict to skip such rows")
        return rows.filter(pl.col("wrong").is_null())

    def nothing_left(self) -> BadInput:
        """What to raise when the file has no good row."""
        found = f"all {self.count} rows are bad, the first at {self.examples[0]}" if self.count else "it has no rows"
        return BadInput(f"{self.path} has no request: {found}")


def value(text: pl.Expr) -> pl.Expr:
    """The text of a field, as much of it as an example bears."""
    return pl.when(text.str.len_chars() > _MOST_VALUE).then(text.str.slice(0, _MOST_VALUE) + "...").otherwise(text)


def line_blocks(
    path: str | Path, on_progress: Callable[[int], None] | None = None, block_bytes: int = BLOCK_BYTES
) -> Iterator[pl.DataFrame]:
    """The lines of the file at ``path``, blank ones left out: columns line (from 1), text (trimmed) and wrong (null,
    but of lines that are no text).

    Whole lines, and not the fields that a CSV reader would find, because a reader that meets a bad row either stops or
    forgets its line. UTF-8 or, with a byte order mark, UTF-16; lines end in LF, CRLF or CR. on_progress: is told how
    many bytes were read.

    Raises ``BadInput`` if there is no such file, or it is no text.
    """
    line, rest = 1, b""
    for read in _utf8(path, on_progress, block_bytes):
        whole, end, after = (rest + read).rpartition(b"\n")
        if end:
            yield _block(whole, line)
            line += whole.count(b"\n") + 1
        rest = after
        if len(rest) > MOST_LINE_BYTES:
            text = f"line {line} of {str(path)!r} is longer than {MOST_LINE_BYTES >> 20} MiB"
            raise BadInput(f"{text}: give a text file of lines")
    if rest:
        yield _block(rest, line)


def _utf8(path: str | Path, on_progress: Callable[[int], None] | None, block_bytes: int) -> Iterator[bytes]:
    """The file as UTF-8 without byte order mark and with LF alone, bytes that are no text left as they are."""
    if not Path(path).is_file():
        raise BadInput(f"trace file {str(path)!r} does not exist: give the path of a file")
    try:
        with Path(path).open("rb") as file:
            head = file.read(8)
            for magic, text in _NOT_TEXT:
                if head.startswith(magic):
                    raise BadInput(f"trace file {str(path)!r} {text}")
            mark, encoding = next(((m, e) for m, e in _BOMS if head.startswith(m)), (b"", "utf-8"))
            file.seek(len(mark))
            # Surrogates that stand alone are no text; written so, they are found as such later.
            decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
            held = b""
            while read := file.read(block_bytes):
                if encoding != "utf-8":
                    read = decoder.decode(read).encode(errors="surrogatepass")
                read = held + read
                held = b"\r" if read.endswith(b"\r") else b""  # LF may follow
                read = read[: len(read) - len(held)]
                yield read.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in read else read
                if on_progress is not None:
                    on_progress(file.tell())
    except OSError as error:
        raise BadInput(f"trace file {str(path)!r} cannot be read ({error.strerror}): check the disk") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"trace file {str(path)!r} begins as {encoding}, but is not ({error.reason})") from None


def _block(data: bytes, first: int) -> pl.DataFrame:
    text = pl.col("text").str.strip_chars()
    try:
        lines = pl.DataFrame({"text": [data.decode()]}).select(pl.col("text").str.split("\n").explode())
        wrong = pl.lit(None, pl.String)
    except UnicodeDecodeError:
        found = [_decoded(part) for part in data.split(b"\n")]
        lines = pl.DataFrame(found, schema={"text": pl.String, "wrong": pl.String}, orient="row")
        wrong = pl.col("wrong")
    nul = pl.when(text.str.contains("\x00", literal=True)).then(pl.lit("it has NUL bytes: is it text, in UTF-8?"))
    return (
        lines.with_row_index("line", first)
        .with_columns(text, wrong=pl.coalesce(wrong, nul))
        .filter(pl.col("text").str.len_bytes() > 0)
    )


def _decoded(line: bytes) -> tuple[str, str | None]:
    try:
        return line.decode(), None
    except UnicodeDecodeError as error:
        wrong = line[error.start : error.start + 1].hex()
        return line.decode(errors="backslashreplace"), f"byte 0x{wrong} at {error.start} is no UTF-8: save it as UTF-8"


def field_blocks(
    path: str | Path, names: Sequence[str], on_progress: Callable[[int], None] | None = None
) -> Iterator[pl.DataFrame]:
    """The comma-separated lines after the header, in blocks.

    Columns: line, wrong (null unless the line is no text, or has too many or too few fields), fields (all, a list), and
    "field NAME" of each of ``names``. Fields in double quotes may hold commas, but no line ends. Raises ``BadInput`` if
    the file is missing or empty, or the header lacks a name or has one twice.
    """
    header: list[str] = []
    for block in line_blocks(path, on_progress):
        lines = block
        if not header:
            if block.is_empty():
                continue
            header = _header(path, block, names)
            lines = block.slice(1)
        width = pl.col("fields").list.len()
        yield lines.with_columns(fields=_split(lines["text"])).with_columns(
            *(
                pl.col("fields").list.get(header.index(name), null_on_oob=True).str.strip_chars().alias(f"field {name}")
                for name in names
            ),
            wrong=pl.when(pl.col("wrong").is_not_null())
            .then(pl.col("wrong"))
            .when(width != len(header))
            .then(pl.format("{} fields where the header has {}", width, pl.lit(len(header)))),
        )
    if not header:
        raise BadInput(f"trace file {str(path)!r} is empty")


def _header(path: str | Path, block: pl.DataFrame, names: Sequence[str]) -> list[str]:
    line, wrong = block["text"][0], block["wrong"][0]
    if wrong is not None:
        raise BadInput(f"{path}, line {block['line'][0]}: {wrong}")
    header = [name.strip() for name in _quoted(line)]
    said = shown(",".join(header), _MOST_EXAMPLE)
    missing = [name for name in names if name not in header]
    if missing:
        raise BadInput(f"{path} has no column {', '.join(missing)}: its first line is {said}")
    for name in names:
        if header.count(name) > 1:
            raise BadInput(f"{path} has the column {name} {header.count(name)} times: its first line is {said}")
    return header


def _split(lines: pl.Series) -> pl.Series:
    fields = lines.str.split(",")
    if not lines.str.contains('"', literal=True).any():
        return fields
    return pl.Series("fields", [_quoted(line) for line in lines], dtype=pl.List(pl.String))


def _quoted(line: str) -> list[str]:
    try:
        return next(csv.reader([line], strict=True, skipinitialspace=True))
    except csv.Error:
        return line.split(",")
