"""Decides when a batch that does not come back hangs, and when a silent worker is lost. Times are ns on the host's
clock.

Rule 1. A request whose batch is at a worker ends as ``NoAnswer`` ``connection.OVERDUE_NS`` after its deadline; its
        batch goes on. (Where the scheduler is silent, the client does it by itself.)
Rule 2. A batch is *hung* when none of its requests is waited for any longer (rule 1), it has taken HUNG times as
        long as planned, and no other is before it in its slot, for which it may wait. The worker is asked to go on
        without it, and does if it has not ended meanwhile (ASIDE): it runs other batches in a new thread, and the model
        counts as not loaded there until the old thread comes back or the model was loaded anew (``Loader.set_aside``).
        Batches that waited behind it return to their queues, none of them begun; requests of the hung one are not run
        again.
Rule 3. A worker that has a batch that is late by its plan is pinged. It is *silent* when it has not answered for
        SILENT_NS, and has not sent anything either, nor taken what waited for it; and then lost: what it has returns to
        its queues, as if it had died. It may connect again. A batch counts as hung only at a worker that answers within
        ANSWERS_NS.
Rule 4. A look that comes STILL_NS after the last one judges nobody: this process stood still, and has not read yet what
        it was told meanwhile. Delays that were measured across such a time are no delays of others.
"""

from __future__ import annotations

from symphony_dask.dispatcher.run_log import Flight
from symphony_dask.units import NS_PER_S
from symphony_dask.wire.messages import OVERDUE_NS

#: How often it is looked for overdue batches, s.
LOOK_S = 0.1

#: A batch may take so many times as long as planned before its slot goes on without it.
HUNG = 16

#: A batch that should be back for so long is late, ns.
LATE_NS = NS_PER_S // 10

#: A worker that answers no ping for so long is silent, ns, and one with a ping no older than the other answers.
SILENT_NS, ANSWERS_NS = NS_PER_S, 3 * NS_PER_S // 10

#: A process that has not looked for so long stood still, ns.
STILL_NS = 4 * NS_PER_S // 10

#: A batch with Dask tasks may wait so long for them before it runs (``task_rendezvous.GATHER_S``), ns.
TASKS_WAIT_NS = NS_PER_S


def due_back_ns(last_deadline: int, planned_end: int, wait_ns: int, has_tasks: bool) -> int:
    """When a batch should be back at the latest, waits for payloads and tasks included."""
    return max(last_deadline, planned_end + max(wait_ns, TASKS_WAIT_NS if has_tasks else 0))


def is_late(flight: Flight, now: int) -> bool:
    """Whether a batch is later than planned by more than chance."""
    return now > flight.planned[1] + LATE_NS


def is_overdue(flight: Flight, now: int) -> bool:
    """Whether a batch is later than planned by what a request is waited for after its deadline."""
    return now > flight.planned[1] + OVERDUE_NS


def is_hung(flight: Flight, now: int) -> bool:
    """Rule 2."""
    run = flight.planned[1] - flight.planned[0]
    return now > flight.due_back_ns + max(OVERDUE_NS, HUNG * run)


def is_stalled(flight: Flight, now: int, wait_ns: int) -> bool:
    """Whether a batch is so late by its plan that its slot cannot be said to answer, whatever deadlines say.

    wait_ns: for how long it may wait for payloads.
    """
    run = flight.planned[1] - flight.planned[0]
    return now > flight.planned[1] + max(OVERDUE_NS, HUNG * run) + wait_ns
