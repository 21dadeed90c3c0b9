"""Defines the messages of the lane: what each says, and how it is written into a frame and read out of one.

Rule 1. Each message is a class here. Nothing else writes or reads a frame's fields.
Rule 2. ``encode`` gives the fields of a frame's header, its op first. ``decode`` takes those after the op and the
        frame's blob, and raises ``BadInput`` for whatever ``encode`` does not write.
Rule 3. What may come from whom is a ``directions.Direction``; anything else is refused before it is read.
Rule 4. Payloads are not part of a message: they are the blob beside it, one after the other.
Rule 5. A change of what a frame means gives it a new version (``hello.VERSIONS``).

Columns and records are arrays on both ends (``records``). Times are ns, sizes bytes.

    message   direction                       says
    HELLO     to a server                     who connects, with the cluster's token (``hello``)
    WELCOME   from a server                   that it may, and the version they speak
    REFUSED   from a server                   that it may not, and why
    PING      from a server                   answered by PONG with the same
    SUBMIT    client to scheduler             requests; their payloads, but for those that the client holds
    CANCEL    client to scheduler             that nobody waits for these requests any more
    PLACE     scheduler to client             to which worker the payloads that it holds go
    DATA      client to worker                held payloads, on the client's own connection or by way of the scheduler
    EXECUTE   scheduler to worker             a batch; its payloads, but for those that clients hold
    GONE      scheduler to worker             that what a client holds will not come
    ASIDE     scheduler to worker             to go on without a batch that hangs, unless it has ended
    IS_ASIDE  worker to scheduler             that it does: no batch of the slot is begun before RESUME
    RESUME    scheduler to worker             that batches from here on are to run
    ANSWER    worker to client                large answers, on the client's connection or by way of the scheduler
    DONE      worker to scheduler             how a batch ended; answers that did not leave as ANSWER
    RESULT    scheduler to client             how requests ended; answers that did not come as ANSWER
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from symphony_dask.errors import BadInput
from symphony_dask.wire.error_codes import ErrorCode, Failure
from symphony_dask.wire.fields import (
    MOST_31,
    MOST_NS,
    bad_field,
    check_texts,
    exact_sum,
    fields_of,
    read_failures,
    whole,
)
from symphony_dask.wire.records import (
    DONE_ROW,
    EXECUTE_ROW,
    RESULT_ROW,
    SUBMIT_ROW,
    Column,
    Records,
    read_column,
    read_records,
)

#: A frame of payloads or answers ends with the one that reaches so many bytes.
PART_BYTES = 1 << 24

#: In place of a link's number: the answer comes by way of the scheduler.
RELAYED = (1 << 31) - 1

#: A request is waited for so long after its deadline, ns.
OVERDUE_NS = 500_000_000

_OF_WORKERS: set[int] = {ErrorCode.MODEL_ERROR, ErrorCode.TASK_LATE}


class Op:
    """The number that a frame begins with: plain integers, as one is looked up for each frame."""

    HELLO = 1
    WELCOME = 2
    PING = 3
    PONG = 4
    SUBMIT = 5
    CANCEL = 6
    RESULT = 7
    EXECUTE = 8
    DONE = 9
    PLACE = 10
    DATA = 11
    GONE = 12
    ANSWER = 13
    ASIDE = 14
    RESUME = 15
    IS_ASIDE = 16
    REFUSED = 17


class Ping(NamedTuple):
    """Asks for a ``Pong`` with the same; t_ns: when it was sent, on the sender's clock."""

    t_ns: int

    def encode(self) -> list[Any]:
        return [Op.PING, self.t_ns]

    @classmethod
    def decode(cls, fields: list[Any], blob: memoryview) -> Ping:
        (t_ns,) = fields_of("PING", fields, 1)
        return cls(whole("PING", "time", t_ns))


class Pong(NamedTuple):
    """Answers a ``Ping``, once what came before it is in hand."""

    t_ns: int

    def encode(self) -> list[Any]:
        return [Op.PONG, self.t_ns]

    @classmethod
    def decode(cls, fields: list[Any], blob: memoryview) -> Pong:
        (t_ns,) = fields_of("PONG", fields, 1)
        return cls(whole("PONG", "time", t_ns))


class Submit(NamedTuple):
    """Requests (``SUBMIT_ROW``). blob: the payloads that are not held."""

    rows: Records

    def encode(self) -> list[Any]:
        return [Op.SUBMIT, self.rows.tobytes()]

    @classmethod
    def decode(cls, fields: list[Any], blob: memoryview) -> Submit:
        (rows,) = fields_of("SUBMIT", fields, 1)
        return cls(read_records(rows, SUBMIT_ROW))


class Cancel(NamedTuple):
    """Requests that nobody waits for any more."""

    ids: Column

    def encode(self) -> list[Any]:
        return [Op.CANCEL, self.ids.tobytes()]

    @classmethod
    def decode(cls, fields: list[Any], blob: memoryview) -> Cancel:
        (ids,) = fields_of("CANCEL", fields, 1)
        return cls(read_column(ids))


class Result(NamedTuple):
    """How requests ended (``RESULT_ROW``). failures: by the place in ``rows``. blob: the answers not sent on links."""

    rows: Records
    failures: Mapping[int, Failure]

    def encode(self) -> list[Any]:
        return [Op.RESULT, self.rows.tobytes(), self.failures]

    @classmethod
    def decode(cls, fields: list[Any], blob: memoryview) -> Result:
        rows, failures = fields_of("RESULT", fields, 2)
        records = read_records(rows, RESULT_ROW)
        if failures or type(failures) is not dict:
            failures = read_failures("RESULT", failures, len(records))
        return cls(records, failures)


class Execute(NamedTuple):
    """A batch to run (``EXECUTE_ROW``).

    wait_ns: for how long to wait for payloads that come as ``Data``, 0 if none do. tasks: the name of each request that
    is a held Dask task, by its place in ``rows``, empty if it does not come. blob: the payloads that are not held.
    """

    batch: int
    slot: int
    model_id: int
    rows: Records
    wait_ns: int
    tasks: Mapping[int, str] = {}

    def encode(self) -> list[Any]:
        return [Op.EXECUTE, self.batch, self.slot, self.model_id, self.rows.tobytes(), self.wait_ns, self.tasks]

    @classmethod
    def decode(cls, fields: list[Any], blob: memoryview) -> Execute:
        batch, slot, model_id, rows, wait_ns, tasks = fields_of("EXECUTE", fields, 6)
        try:  # one look at all: a frame for each batch has to be read soon
            wrong = (batch | wait_ns) >> 60 or (slot | model_id) >> 31
        except TypeError:  # one is no whole number
            wrong = 1
        if wrong:
            whole("EXECUTE", "batch", batch)
            whole("EXECUTE", "slot", slot, 0, MOST_31)
            whole("EXECUTE", "model", model_id, 0, MOST_31)
            whole("EXECUTE", "wait", wait_ns, 0, MOST_NS)
        records = read_records(rows, EXECUTE_ROW)
        if tasks or type(tasks) is not dict:
            check_texts("EXECUTE", tasks, len(records))
        return cls(batch, slot, model_id, records, wait_ns, tasks)


class Done(NamedTuple):
    """How a batch ended (``DONE_ROW``).

    queued_ns: from EXECUTE to the run. run_ns: the run. held_ns: from EXECUTE to DONE. failures: by the place in
    ``rows``; codes are MODEL_ERROR and TASK_LATE. lost: places of requests whose payload did not come. spent_ns: what
    the run took on samples, on the model and on answers. blob: the answers not sent on links.
    """

    batch: int
    slot: int
    queued_ns: int
    run_ns: int
    held_ns: int
    rows: Records
    failures: Mapping[int, Failure]
    lost: Column
    spent_ns: tuple[int, int, int]

    def encode(self) -> list[Any]:
        batch, slot, queued_ns, run_ns, held_ns, rows, failures, lost, spent_ns = self
        times = queued_ns, run_ns, held_ns
        return [Op.DONE, batch, slot, *times, rows.tobytes(), failures, lost.tobytes(), spent_ns]

    @classmethod
    def decode(cls, fields: list[Any], blob: memoryview) -> Done:
        batch, slot, queued_ns, run_ns, held_ns, rows, failures, lost, spent_ns = fields_of("DONE", fields, 9)
        if type(spent_ns) is not list or len(spent_ns) != 3:
            raise bad_field("DONE", "times spent", spent_ns, "give three")
        input_ns, infer_ns, output_ns = spent_ns
        try:
            wrong = (batch | queued_ns | run_ns | held_ns | input_ns | infer_ns | output_ns) >> 60 or slot >> 31
        except TypeError:  # one is no whole number
            wrong = 1
        if wrong:
            whole("DONE", "batch", batch)
            whole("DONE", "slot", slot, 0, MOST_31)
            for time_ns in (queued_ns, run_ns, held_ns, *spent_ns):
                whole("DONE", "time", time_ns, 0, MOST_NS)
        records = read_records(rows, DONE_ROW)
        if failures or type(failures) is not dict:
            failures = read_failures("DONE", failures, len(records))
            if odd := {failure.code for failure in failures.values()} - _OF_WORKERS:
                raise bad_field("DONE", "error code", min(odd), f"give one of {sorted(map(int, _OF_WORKERS))}")
        places = read_column(lost)
        if len(places) and not (places.min() >= 0 and places.max() < len(records)):
            raise bad_field("DONE", "lost payloads", places.tolist(), f"the batch has {len(records)} requests")
        spent = input_ns, infer_ns, output_ns
        return cls(batch, slot, queued_ns, run_ns, held_ns, records, failures, places, spent)


class Place(NamedTuple):
    """The worker at ``host`` and ``port`` has requests in ``batch`` whose payloads the client holds; or, with batch -1
    and no ids, it has large answers for the client, which had better connect.
    """

    batch: int
    host: str
    port: int
    ids: Column

    def encode(self) -> list[Any]:
        return [Op.PLACE, self.batch, self.host, self.port, self.ids.tobytes()]

    @classmethod
    def decode(cls, fields: list[Any], blob: memoryview) -> Place:
        batch, host, port, ids = fields_of("PLACE", fields, 4)
        whole("PLACE", "batch", batch, -1)
        if type(host) is not str:
            raise bad_field("PLACE", "host", host, "give a text")
        return cls(batch, host, whole("PLACE", "port", port, 0, 65_535), read_column(ids))


class Data(NamedTuple):
    """Payloads of a client for a batch; sizes: -1 of one that will not come. blob: the others."""

    batch: int
    client: int
    ids: Column
    sizes: Column

    def encode(self) -> list[Any]:
        return [Op.DATA, self.batch, self.client, self.ids.tobytes(), self.sizes.tobytes()]

    @classmethod
    def decode(cls, fields: list[Any], blob: memoryview) -> Data:
        batch, client, ids_raw, sizes_raw = fields_of("DATA", fields, 4)
        whole("DATA", "batch", batch, -1)
        whole("DATA", "client", client, 0, MOST_31)
        ids, sizes = read_column(ids_raw), read_column(sizes_raw)
        if len(ids) != len(sizes) or (sizes < -1).any() or exact_sum(np.maximum(sizes, 0)) != len(blob):
            text = f"lane DATA of batch {batch} has {len(ids)} ids, {len(sizes)} sizes and {len(blob)} bytes"
            raise BadInput(f"{text}: they must fit each other")
        return cls(batch, client, ids, sizes)


class Gone(NamedTuple):
    """A client is lost, and what it held."""

    client: int

    def encode(self) -> list[Any]:
        return [Op.GONE, self.client]

    @classmethod
    def decode(cls, fields: list[Any], blob: memoryview) -> Gone:
        (client,) = fields_of("GONE", fields, 1)
        return cls(whole("GONE", "client", client, 0, MOST_31))


class Answer(NamedTuple):
    """Answers to a client. blob: the answers."""

    client: int
    ids: Column
    sizes: Column

    def encode(self) -> list[Any]:
        return [Op.ANSWER, self.client, self.ids.tobytes(), self.sizes.tobytes()]

    @classmethod
    def decode(cls, fields: list[Any], blob: memoryview) -> Answer:
        client, ids_raw, sizes_raw = fields_of("ANSWER", fields, 3)
        whole("ANSWER", "client", client, 0, MOST_31)
        ids, sizes = read_column(ids_raw), read_column(sizes_raw)
        if len(ids) != len(sizes) or (sizes < 0).any() or exact_sum(sizes) != len(blob):
            text = f"lane ANSWER has {len(ids)} ids, {len(sizes)} sizes and {len(blob)} bytes"
            raise BadInput(f"{text}: they must fit each other")
        return cls(client, ids, sizes)

    def payloads(self, blob: memoryview) -> list[tuple[int, memoryview]]:
        """(id, answer) of each."""
        sizes = self.sizes.tolist()
        ends = accumulate(sizes)
        return [(i, blob[end - size : end]) for i, size, end in zip(self.ids.tolist(), sizes, ends, strict=True)]


class Aside(NamedTuple):
    """A slot is to go on without a batch that hangs, and without its model."""

    slot: int
    batch: int
    model_id: int

    def encode(self) -> list[Any]:
        return [Op.ASIDE, self.slot, self.batch, self.model_id]

    @classmethod
    def decode(cls, fields: list[Any], blob: memoryview) -> Aside:
        slot, batch, model_id = fields_of("ASIDE", fields, 3)
        whole("ASIDE", "slot", slot, 0, MOST_31)
        return cls(slot, whole("ASIDE", "batch", batch), whole("ASIDE", "model", model_id, 0, MOST_31))


class IsAside(NamedTuple):
    """A slot does go on without a batch, and begins none before ``Resume``."""

    slot: int
    batch: int

    def encode(self) -> list[Any]:
        return [Op.IS_ASIDE, self.slot, self.batch]

    @classmethod
    def decode(cls, fields: list[Any], blob: memoryview) -> IsAside:
        slot, batch = fields_of("IS_ASIDE", fields, 2)
        return cls(whole("IS_ASIDE", "slot", slot, 0, MOST_31), whole("IS_ASIDE", "batch", batch))


class Resume(NamedTuple):
    """Batches from here on are to run. model_id: which stays aside, -1: it does not."""

    slot: int
    model_id: int

    def encode(self) -> list[Any]:
        return [Op.RESUME, self.slot, self.model_id]

    @classmethod
    def decode(cls, fields: list[Any], blob: memoryview) -> Resume:
        slot, model_id = fields_of("RESUME", fields, 2)
        return cls(whole("RESUME", "slot", slot, 0, MOST_31), whole("RESUME", "model", model_id, -1, MOST_31))


def in_parts(sizes: list[int]) -> Iterator[slice]:
    """Which payloads, of these sizes, go into one frame each."""
    start = filled = 0
    for i, size in enumerate(sizes):
        filled += max(size, 0)
        if filled >= PART_BYTES:
            yield slice(start, i + 1)
            start, filled = i + 1, 0
    if start < len(sizes):
        yield slice(start, len(sizes))
