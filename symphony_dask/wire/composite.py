"""Checks and stacks samples of several inputs: a dict of arrays by name, or a tuple or list by position.

Their payload is plain data (``codec``) in which each array is an extension. Two samples of one *signature* (the
entries, and each one's dtype and shape) have the same bytes but for the arrays' data, so that a batch of them is
stacked with one comparison and one copy for each entry.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import msgpack
import numpy as np
import numpy.typing as npt

from symphony_dask.errors import BadInput
from symphony_dask.wire import array_codec, batch_codec, codec

#: No more of an entry's name is shown than so many characters, and no more entries than so many.
_SHOWN_NAME = 60
_SHOWN_ENTRIES = 12


class Entries(NamedTuple):
    """kind: "dict", "tuple" or "list". headers: the signature of each entry, by name or position."""

    kind: str
    headers: tuple[tuple[Any, bytes], ...]

    @property
    def named(self) -> bool:
        return self.kind == "dict"

    def __str__(self) -> str:
        """For people: "a dict of 'x' float32 (3,) and 'mask' bool (3,)"."""
        names = [f"{_name(name)} " if self.named else "" for name, _ in self.headers]
        shown = [name + codec.describe(h) for name, (_, h) in zip(names, self.headers[:_SHOWN_ENTRIES], strict=False)]
        shown += ["..."] * (len(self.headers) > _SHOWN_ENTRIES)
        return f"a {self.kind} of {', '.join(shown[:-1])}{' and ' * (len(shown) > 1)}{shown[-1]}"


def entries_of(payload: bytes | memoryview) -> Entries | None:
    """What a sample is made of; None if it is no dict with string keys, tuple or list, or not all in it are arrays.

    Scalars of numpy and tensors are arrays here; one that is empty has no entries.
    """
    if not len(payload) or payload[0] != array_codec.PLAIN:
        return None
    try:
        found = codec.parts(payload)
    except BadInput:
        return None
    if isinstance(found, dict):
        kind, items = "dict", list(found.items())
        if not all(type(name) is str for name in found):
            return None
    elif isinstance(found, (tuple, list)):
        kind, items = type(found).__name__, list(enumerate(found))
    else:
        return None
    if not items or not all(isinstance(entry, codec.Part) for _, entry in items):
        return None
    return Entries(kind, tuple((name, entry.header) for name, entry in items))


def signature(payload: bytes | memoryview) -> bytes | None:
    """Tells samples of several inputs apart that do not stack; None where ``entries_of`` is."""
    entries = entries_of(payload)
    return None if entries is None else codec.encode([entries.kind, [list(item) for item in entries.headers]])


@lru_cache(maxsize=256)
def read(signature: bytes) -> Entries:
    """What ``signature`` says."""
    kind, headers = codec.decode(signature)
    return Entries(kind, tuple((name, header) for name, header in headers))


def group_of(payload: bytes | memoryview) -> Any:
    """Equal for samples that ``join`` stacks, in whatever order their dicts are; None where ``entries_of`` is."""
    entries = entries_of(payload)
    return None if entries is None else (entries.named, *_sorted(entries))


def mismatch(expected: bytes, payload: bytes | memoryview) -> str:
    """How a sample differs from its model's ``signature``; empty if it does not.

    A list passes for a tuple, names may come in any order, and arrays and tensors of one dtype and shape pass for each
    other.
    """
    takes = read(expected)
    if _template(takes).fits(payload):
        return ""
    got = entries_of(payload)
    if got is None or got.named != takes.named:
        return f"got {codec.describe(payload) if got is None else got}"
    wanted, given = dict(takes.headers), dict(got.headers)
    for name in wanted:
        if name not in given:
            return f"entry {_name(name)} is missing"
    for name, header in given.items():
        if name not in wanted:
            return f"entry {_name(name)} is unknown"
        if codec.describe(header) != codec.describe(wanted[name]):
            return f"entry {_name(name)} is {codec.describe(header)}"
    return ""


def stack(blob: batch_codec.Blob, sizes: npt.NDArray[np.int64]) -> Any | None:
    """The n samples of a batch as a dict, or a tuple, of one array or CPU tensor of shape (n, ...) for each entry.

    They own their memory. None unless all n >= 1 samples have one signature, dicts in one order.
    """
    n = len(sizes)
    if n == 0 or not np.all(sizes == sizes[0]) or batch_codec.blob_bytes(blob) != n * int(sizes[0]):
        return None
    size = int(sizes[0])
    payloads = batch_codec.split(blob, sizes)
    entries = entries_of(payloads[0])
    if entries is None:
        return None
    template = _template(entries)
    if template.size != size:
        return None
    if isinstance(blob, list):
        same = all(payload[at : at + len(text)] == text for payload in payloads for at, text in template.texts)
        parts = [[payload[start:end] for payload in payloads] for start, end in template.data]
        return _made(entries, [_column(column) for column in parts]) if same else None
    rows = np.frombuffer(memoryview(blob).cast("B"), np.uint8).reshape(n, size)
    if not all((rows[:, at : at + len(text)] == np.frombuffer(text, np.uint8)).all() for at, text in template.texts):
        return None
    columns = [rows[:, start:end].copy() for start, end in template.data]
    return _made(entries, columns)


def join(payloads: list[memoryview]) -> Any:
    """As ``stack``, of samples of one ``group_of``."""
    samples = [codec.parts(payload) for payload in payloads]
    entries = entries_of(payloads[0])
    assert entries is not None
    return _made(entries, [_column([sample[name].data for sample in samples]) for name, _ in entries.headers])


def _column(parts: list[memoryview]) -> npt.NDArray[np.uint8]:
    """Parts of one size as rows, copied without the interpreter's lock."""
    column = np.empty((len(parts), len(parts[0])), np.uint8)
    for row, part in zip(column, parts, strict=True):
        row[:] = np.frombuffer(part, np.uint8)
    return column


def obstacle(payload: bytes | memoryview) -> str:
    """Why a torch module cannot take a sample, and the remedy; empty for an array or tensor, or for ``entries_of``."""
    if array_codec.signature(payload) is not None or entries_of(payload) is not None:
        return ""
    found = codec.parts(payload)
    items: list[tuple[Any, Any]] = []
    if isinstance(found, dict):
        items = list(found.items())
    elif isinstance(found, (tuple, list)):
        items = list(enumerate(found))
    what = f"an empty {type(found).__name__}" if isinstance(found, (dict, tuple, list)) else type(found).__name__
    for name, entry in items:
        if isinstance(found, dict) and type(name) is not str:
            what = f"a dict whose key {name!r:.60} is no string"
        elif not isinstance(entry, codec.Part):
            what = f"a {type(found).__name__} whose entry {_name(name)} is a {type(entry).__name__}"
        else:
            continue
        break
    remedy = "send one, or a dict, tuple or list of them, or pass collate= for a function that makes a batch of samples"
    return f"a torch module takes arrays or tensors; got {what}: {remedy}"


def describe(payload: bytes | memoryview) -> str:
    """``codec.describe``, which tells the entries too of a sample of several inputs."""
    entries = entries_of(payload)
    return codec.describe(payload) if entries is None else str(entries)


def _made(entries: Entries, columns: list[npt.NDArray[np.uint8]]) -> Any:
    """Names come in alphabetical order, whatever the samples' was: a call looks the same to what compiles it."""
    made = {
        name: batch_codec.stacked(header, data) for (name, header), data in zip(entries.headers, columns, strict=True)
    }
    return {name: made[name] for name, _ in _sorted(entries)} if entries.named else tuple(made.values())


def _sorted(entries: Entries) -> Iterable[tuple[Any, bytes]]:
    return sorted(entries.headers) if entries.named else entries.headers


def _name(name: object) -> str:
    return f"{name!r:.{_SHOWN_NAME}}" if isinstance(name, str) else str(name)


class _Template(NamedTuple):
    """What the payloads of one signature have in common. texts: (where, bytes); data: (start, end) of each entry's."""

    size: int
    texts: tuple[tuple[int, bytes], ...]
    data: tuple[tuple[int, int], ...]

    def fits(self, payload: bytes | memoryview) -> bool:
        return len(payload) == self.size and all(payload[at : at + len(text)] == text for at, text in self.texts)


@lru_cache(maxsize=256)
def _template(entries: Entries) -> _Template:
    zeros = {
        name: codec.Part(h, memoryview(bytes(array_codec.read_header(h).data_bytes))) for name, h in entries.headers
    }
    whole = codec.encode_fields(zeros) if entries.named else codec.encode_entries([*zeros.values()], entries.kind)
    # The entries lie at the end of the payload, one after the other.
    at = len(whole)
    data = []
    for name, part in reversed(zeros.items()):
        data.append((at - len(part.data), at))
        length = len(part.header) + len(part.data)
        at -= length + _extension_bytes(length) + (len(msgpack.packb(name)) if entries.named else 0)
    data.reverse()
    starts = [0, *(end for _, end in data)]
    ends = [*(start for start, _ in data), len(whole)]
    texts = tuple((start, whole[start:end]) for start, end in zip(starts, ends, strict=True) if start < end)
    return _Template(len(whole), texts, tuple(data))


def _extension_bytes(length: int) -> int:
    """How many bytes msgpack writes before the ``length`` bytes of an extension."""
    if length in (1, 2, 4, 8, 16):
        return 2
    return 3 if length < 1 << 8 else 4 if length < 1 << 16 else 6
