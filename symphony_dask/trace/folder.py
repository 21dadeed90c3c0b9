"""Names the files of a run folder, local or on S3, and has them appear whole or not at all.

Rule 1: every path of a trace goes through here.
Rule 2: a file is written beside its place and renamed (local), or uploaded as one object (S3), so readers and killed
        writers see all of it or nothing.
Rule 3: a folder takes one run: of several writers that begin at once at most one goes on, the others are refused.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import platform
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from symphony_dask.errors import BadInput
from symphony_dask.trace.described import wrong_info
from symphony_dask.trace.schema import OLDEST_VERSION, SCHEMA_VERSION, SCHEMAS

INFO_NAME = "run.json"

#: Rows of a row group at most: what a reader holds at a time.
ROW_GROUP = 1_000_000

_REMEDY = "give a local path or s3://BUCKET/FOLDER"


@dataclass(frozen=True)
class S3Path:
    """A folder or an object on S3, with as much of ``Path`` as run folders use.

    key: "BUCKET/FOLDER", without the scheme; fs: a ``pyarrow.fs.S3FileSystem``.
    """

    key: str
    fs: pa.fs.FileSystem = field(repr=False, compare=False)

    def __str__(self) -> str:
        return f"s3://{self.key}"

    def __truediv__(self, name: str) -> S3Path:
        return S3Path(f"{self.key}/{name}", self.fs)

    @property
    def name(self) -> str:
        return self.key.rsplit("/", 1)[-1]

    def read_bytes(self) -> bytes:
        with self.fs.open_input_stream(self.key) as file:
            return bytes(file.readall())

    def write_bytes(self, data: bytes) -> None:
        with self.fs.open_output_stream(self.key) as file:
            file.write(data)

    def list(self) -> list[S3Path]:
        """What lies in this folder."""
        from pyarrow.fs import FileSelector

        found = self.fs.get_file_info(FileSelector(self.key, allow_not_found=True))
        return [S3Path(info.path, self.fs) for info in found]


#: Where a run folder, or a file of it, lies.
Place = Path | S3Path


def place(path: str | os.PathLike[str]) -> Place:
    """``path`` as a local path, or as one on S3 if it is an s3:// URL.

    Credentials, region and endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL, ...),
    as pyarrow reads it, or from the URL's query ("?region=eu-west-1"). Raises ``BadInput`` for other URLs, or one that
    pyarrow does not take.
    """
    text = os.fspath(path)
    if "://" not in text:
        return Path(text)
    if not text.startswith("s3://"):
        raise BadInput(f"trace path {text!r} has a scheme that is not supported: {_REMEDY}")
    from pyarrow.fs import FileSystem

    try:
        fs, key = FileSystem.from_uri(text)
    except (pa.ArrowException, OSError, ValueError) as exc:
        raise BadInput(f"trace path {text!r} cannot be used ({exc}): {_REMEDY}") from exc
    return S3Path(key.rstrip("/"), fs)


def is_file(path: Place) -> bool:
    """Whether ``path`` is a file or an object, not a folder."""
    if isinstance(path, Path):
        return path.is_file()
    try:
        return bool(path.fs.get_file_info(path.key).is_file)
    except OSError as exc:
        raise BadInput(f"trace path {str(path)!r} cannot be reached ({exc}): {_REMEDY}") from exc


def create(folder: Place) -> None:
    """Claim ``folder`` for a new run, by a run.json that is not closed.

    Raises ``BadInput`` if the folder holds a run already, cannot be made, or another writer claims it meanwhile.
    """
    try:
        taken = not (_claim_local(folder) if isinstance(folder, Path) else _claim_s3(folder))
    except OSError as exc:
        raise BadInput(f"trace folder {str(folder)!r} cannot be used ({exc}): give a writable folder") from exc
    if taken:
        raise BadInput(f"trace folder {str(folder)!r} already holds a run: give a new folder, or empty this one")


def release(folder: Place) -> None:
    """Give up a folder that ``create`` claimed and that has no parts; raises nothing."""
    try:
        if isinstance(folder, Path):
            (folder / INFO_NAME).unlink()
            folder.rmdir()
        else:
            folder.fs.delete_file((folder / INFO_NAME).key)
    except OSError:
        pass


def _first_info() -> bytes:
    return _to_json({"schema_version": SCHEMA_VERSION, "started_at": None, "closed": False, "counts": None})


def _claim_local(folder: Path) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    if any(parts(folder, table) for table in SCHEMAS):
        return False
    temporary = folder / f"{INFO_NAME}.{uuid.uuid4().hex}.tmp"
    temporary.write_bytes(_first_info())
    try:
        # Unlike a rename, a link fails where the name exists.
        os.link(temporary, folder / INFO_NAME)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True


def _claim_s3(folder: S3Path) -> bool:
    # S3 lists what was written before: of two writers, the one that lists later sees the other's claim or run.json.
    mine = folder / f"claim-{uuid.uuid4().hex}.tmp"
    mine.write_bytes(b"")
    try:
        others = [file.name for file in folder.list() if file.name != mine.name]
        if any(name == INFO_NAME or name.startswith("claim-") or name.endswith(".parquet") for name in others):
            return False
        (folder / INFO_NAME).write_bytes(_first_info())
        return True
    finally:
        folder.fs.delete_file(mine.key)


def parts(folder: Place, table: str) -> list[Any]:
    """The complete parts of ``table``, oldest first: paths of the kind of ``folder``."""
    if isinstance(folder, Path):
        found: list[Any] = list(folder.glob(f"{table}-*.parquet"))
    else:
        found = [f for f in folder.list() if f.name.startswith(f"{table}-") and f.name.endswith(".parquet")]
    return sorted(found, key=lambda part: (len(part.name), part.name))


def short(error: BaseException) -> str:
    """The text of an error that a file has caused: on one line, and no longer than that."""
    return " ".join(str(error).split())[:200]


def open_part(part: Place) -> Any:
    """``part`` as an open ``pyarrow.parquet.ParquetFile``, a context manager; raises ``BadInput`` if it is none."""
    try:
        if isinstance(part, Path):
            return pq.ParquetFile(part)
        return pq.ParquetFile(part.fs.open_input_file(part.key))
    except (OSError, pa.ArrowException, UnicodeDecodeError, MemoryError) as exc:
        text = f"{str(part)!r} cannot be read as Parquet ({short(exc)}): give a run folder or a Parquet file"
        raise BadInput(text) from exc


def rows(part: Place) -> int:
    """How many rows ``part`` has, from its footer."""
    with open_part(part) as file:
        return int(file.metadata.num_rows)


def scan(parts: list[Any]) -> pl.LazyFrame:
    """The rows of ``parts`` (at least one), in their order, not yet read."""
    if isinstance(parts[0], S3Path):
        import pyarrow.dataset as ds

        return pl.scan_pyarrow_dataset(ds.dataset([part.key for part in parts], filesystem=parts[0].fs))
    return pl.scan_parquet(parts, glob=False)


def write_part(folder: Place, table: str, number: int, rows: pa.Table) -> None:
    """Write the Arrow table ``rows`` as part ``number`` (from 1) of ``table``; readers see all of it or nothing."""
    final = folder / f"{table}-{number:06d}.parquet"
    if isinstance(final, S3Path):
        buffer = io.BytesIO()
        _write_parquet(rows, buffer)
        # An object appears when its upload is complete.
        final.write_bytes(buffer.getvalue())
        return
    temporary = final.with_name(final.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            _write_parquet(rows, file)
            # Without this a power failure can leave the final name on an empty file.
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_parquet(rows: pa.Table, file: object) -> None:
    # Times and numbers mostly rise: their differences take half the space of zstd alone, in a third of the time.
    deltas = {f.name: "DELTA_BINARY_PACKED" for f in rows.schema if pa.types.is_integer(f.type)}
    labels = [f.name for f in rows.schema if f.name not in deltas]
    pq.write_table(
        rows, file, compression="zstd", use_dictionary=labels or False, column_encoding=deltas, row_group_size=ROW_GROUP
    )


def plain(info: dict[str, Any]) -> dict[str, Any]:
    """A deep copy of ``info`` as JSON keeps it; raises ``BadInput`` for a value that JSON has no form for."""
    try:
        copy: dict[str, Any] = json.loads(json.dumps(info, allow_nan=False))
    except (TypeError, ValueError) as exc:
        raise BadInput(f"run info cannot be written as JSON ({exc}): use plain finite values") from exc
    return copy


def _to_json(info: dict[str, Any]) -> bytes:
    return (json.dumps(info, indent=2) + "\n").encode()


def write_info(folder: Place, info: dict[str, Any]) -> None:
    """Replace run.json by ``info``; readers see the old or the new one."""
    if isinstance(folder, S3Path):
        (folder / INFO_NAME).write_bytes(_to_json(info))
        return
    temporary = folder / f"{INFO_NAME}.tmp"
    temporary.write_bytes(_to_json(info))
    temporary.replace(folder / INFO_NAME)


def read_info(folder: Place) -> dict[str, Any]:
    """run.json of ``folder``; raises ``BadInput`` if there is none, or if this version cannot read the run."""
    path = folder / INFO_NAME
    try:
        info: dict[str, Any] = json.loads(path.read_bytes())
        version = int(info["schema_version"])
    except OSError as exc:
        raise BadInput(f"{str(folder)!r} is not a run folder ({exc}): give the folder that holds {INFO_NAME}") from exc
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as exc:
        text = f"{str(path)!r} is not the description of a run ({type(exc).__name__}: {short(exc)})"
        raise BadInput(f"{text}: give a folder of a run") from exc
    if version > SCHEMA_VERSION:
        raise BadInput(
            f"{str(folder)!r} has trace schema version {version}, and this symphony-dask reads up to {SCHEMA_VERSION}: "
            "upgrade symphony-dask"
        )
    if version < OLDEST_VERSION:
        raise BadInput(
            f"{str(folder)!r} has trace schema version {version}, and this symphony-dask reads none before "
            f"{OLDEST_VERSION}: read it with the release that wrote it (see run.json), or record or import it again"
        )
    if wrong := wrong_info(info):
        raise BadInput(f"{str(path)!r} is damaged, or not the description of a run: {wrong}")
    return info


def software() -> dict[str, str | None]:
    """Versions of what decides how a run behaves; None for a distribution that is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("symphony-dask", "dask", "distributed", "numpy", "numba"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions
