"""The promises of docs/operations.md, checked on one run."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from symphony_dask import errors
from symphony_dask.trace import open_run
from symphony_dask.trace.validate import problems
from symphony_dask.units import NS_PER_MS, NS_PER_S
from tests.faults.harness import BACK, Bed, Run
from workloads.analysis.verify import verify
from workloads.faults.kinds import KINDS
from workloads.faults.models import executed
from workloads.faults.traffic import Sent

#: How a request may be recorded that ended so for its user.
RECORDED = {
    "": {"ok", "late"},
    "DeadlineExceeded": {"dropped"},
    "Overloaded": {"rejected"},
    "NoGPUWorker": {"rejected"},
    "ModelError": {"failed"},
    "WorkerLost": {"failed"},
    "PayloadLost": {"failed"},
    # Where the scheduler is silent the client says so by itself, whatever becomes of the request there.
    "NoAnswer": {"failed", "cancelled", "ok", "late", "dropped", "rejected"},
    "ConnectionLost": {"failed", "cancelled", "ok", "late", "dropped", "rejected"},
}

#: After its deadline, a request has ended within this; and what this process may be late by itself, ns.
END_NS, NOISE_NS = NS_PER_S, 60 * NS_PER_MS

#: Errors that nobody is to see whose model does nothing wrong.
_OF_THE_MODEL = "ModelError"

#: Statuses that the gateway may answer with.
_STATUSES = {"200", "429", "500", "502", "503", "504"}


def broken(run: Run, bed: Bed) -> list[str]:
    """Which promises a run broke, a sentence each."""
    return [*_one_end(run, bed), *_executed_once(run, bed), *_over_http(run, bed), *_goodput(run), *_adds_up(run)]


def _one_end(run: Run, bed: Bed) -> Iterator[str]:
    """Every request has one reply or a named error within its deadline and a second."""
    for sent in run.hanging:
        yield f"request {sent.sample} to {sent.load.model} has not ended"
    for sent in run.sent:
        if not sent.ended_ns:
            continue
        what = f"request {sent.sample} to {sent.load.model}"
        if sent.ends != 1:
            yield f"{what} ended {sent.ends} times"
        if not sent.right:
            yield f"{what} got a wrong answer"
        kind = getattr(errors, sent.error, None) if sent.error else errors.RequestError
        if kind is None or not issubclass(kind, errors.RequestError):
            yield f"{what} ended as {sent.error}: {sent.text}, which is no error of a request"
        if sent.error == _OF_THE_MODEL and sent.load.model != "odd":
            yield f"{what} ended as {sent.error}: {sent.text[-300:]}, and its model did nothing wrong"
        late_ns = sent.took_ns - sent.load.slo_ns - bed.lags.between(sent.sent_ns, sent.ended_ns)
        if late_ns > END_NS + NOISE_NS:
            how = sent.error or sent.outcome
            yield f"{what} ended as {how} {late_ns / NS_PER_S:.2f} s after its deadline: {sent.text[:150]}"


def _executed_once(run: Run, bed: Bed) -> Iterator[str]:
    """A request is executed again only where its worker was lost, and answered only if it was executed."""
    times: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for pid, rows in executed(str(bed.models)).items():
        for sample, time_ns in rows[rows["sample"] >= run.first_sample].tolist():
            times[sample].append((time_ns, pid))
    for sent in run.sent:
        there = times.get(sent.sample, [])
        # A worker that stood still may run what it was sent when others have answered it.
        stayed = [pid for _, pid in there if pid not in run.lost]
        if len(stayed) > 1:
            what = f"request {sent.sample} to {sent.load.model}"
            yield f"{what} was executed {len(stayed)} times at workers that stayed"
        if sent.ended_ns and not sent.error and not there:
            yield f"request {sent.sample} to {sent.load.model} was answered and not executed"


def _over_http(run: Run, bed: Bed) -> Iterator[str]:
    """Every request over HTTP has a status in time, while the gateway itself is there."""
    gateway_hit = any("gateway" in kind for kind in run.kinds)
    for asked in run.asked:
        took_ns = asked.ended_ns - asked.sent_ns
        if not gateway_hit and asked.status not in _STATUSES:
            yield f"a request over HTTP ended as {asked.status}"
        late_ns = took_ns - run.sent[0].load.slo_ns - bed.lags.between(asked.sent_ns, asked.ended_ns)
        if not gateway_hit and late_ns > END_NS + 2 * NOISE_NS:
            yield f"a request over HTTP took {took_ns / NS_PER_S:.2f} s, and ended as {asked.status}"


def _goodput(run: Run) -> Iterator[str]:
    """After the last fault was cleared, goodput is back soon."""
    if run.back_s is None or run.back_s > run.back_within_s:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in run.shares.items())
        text = f"goodput was not back at {BACK:.0%} in {run.back_within_s:g} s after the last fault, but at {shares}"
        yield f"{text}; {run.state}"
    if run.still_busy:
        yield f"when nobody asked any more, there was left: {run.still_busy}"
    if run.invalid:
        yield f"the engine's state is invalid: {run.invalid}"


def _adds_up(run: Run) -> Iterator[str]:
    """The recording has every request once, as it ended, and the scheduler's counts are its rows."""
    rows, info, sizes = _read(run.folder)
    lost = int(info.get("lost_rows", 0))
    if not run.another_scheduler:
        if not info.get("closed") and not lost:
            yield "the recording was not closed"
        if not lost:
            # Ids are of connections, so several clients have the same.
            yield from (text for text in problems(run.folder) if "occur twice" not in text)
            yield from _counts_are_rows(run, rows)
            if verify(run.folder).differing:
                yield "the recording's decisions are not those that the engine makes again"
        elif not any("disk" in kind for kind in run.kinds):
            yield f"the recording lost {lost} rows, and its disk was well"
    twice = rows.group_by("client", "id").len().filter(pl.col("len") > 1)
    if twice.height:
        yield f"{twice.height} requests are recorded twice"
    whole = sizes.filter((pl.col("outcome") != "lost") & (pl.col("size") != pl.col("rows")))
    if whole.height and not lost and not run.another_scheduler:
        yield f"batches have other sizes than rows: {whole.head(3).to_dicts()}"


def _counts_are_rows(run: Run, rows: pl.DataFrame) -> Iterator[str]:
    for name, counts in run.counts.items():
        there = Counter(rows.filter(pl.col("model") == name)["outcome"].to_list())
        if there != +counts:
            yield f"model {name}: counted {dict(+counts)}, recorded {dict(there)}"
    mine = rows.filter(pl.col("client").is_in(sorted(run.clients)))
    outcome = {(client, i): outcome for client, i, outcome in mine.select("client", "id", "outcome").iter_rows()}
    by_id: dict[int, list[str]] = defaultdict(list)
    for (_, i), how in outcome.items():
        by_id[i].append(how)
    for sent in run.sent:
        if sent.ended_ns:
            yield from _recorded_as_seen(sent, by_id.get(sent.future.request, []))


def _recorded_as_seen(sent: Sent, recorded: list[str]) -> Iterator[str]:
    allowed = RECORDED.get(sent.error)
    what = f"request {sent.sample} to {sent.load.model} ended as {sent.error or sent.outcome}"
    if allowed is None:
        return
    if not recorded and sent.error not in ("NoAnswer", "ConnectionLost"):
        yield f"{what} and was not recorded"
    elif recorded and not set(recorded) & allowed:
        yield f"{what} and was recorded as {recorded[0]}"


def _read(folder: Path) -> tuple[pl.DataFrame, dict[str, Any], pl.DataFrame]:
    """Rows of the requests, run.json, and batches with how many rows each has."""
    run = open_run(folder)
    text = pl.col("model", "outcome").cast(pl.String)
    rows = run.requests.with_columns(text).collect()
    batches = run.batches.with_columns(text).collect()
    counted = rows.filter(pl.col("batch").is_not_null()).group_by("batch").agg(pl.len().alias("rows"))
    sizes = batches.join(counted, on="batch", how="left").with_columns(pl.col("rows").fill_null(0))
    return rows, json.loads((folder / "run.json").read_text()), sizes


def needs_other_workers(run: Run) -> bool:
    """Whether threads hang for ever in the workers that are left."""
    return "model-stuck" in run.kinds


def words(kind: str) -> str:
    return KINDS[kind].words
