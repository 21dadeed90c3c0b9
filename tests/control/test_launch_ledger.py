"""The ledger of launches: of two controllers that saw the same, one goes ahead."""

from __future__ import annotations

from symphony_dask.control.launch_ledger import Ledger


def test_only_who_has_seen_the_last_launch_can_write_the_next() -> None:
    ledger = Ledger(clock=lambda: 0.0)
    assert ledger.intend(0, 3, 17, {"zone": "a"}) == 1
    assert ledger.intend(0, 4, 17, {"zone": "a"}) is None
    assert ledger.intend(1, 4, 17, {"zone": "a"}) == 2
    assert [e["slot"] for e in ledger.entries()] == [3, 4]


def test_entries_tell_their_age_which_begins_anew_when_they_are_written_again() -> None:
    now = [100.0]
    ledger = Ledger(clock=lambda: now[0])
    ledger.intend(0, 3, 17, {"zone": "a"})
    now[0] = 130.0
    assert ledger.entries() == [{"slot": 3, "generation": 17, "age_s": 30.0, "launch": {"zone": "a"}}]
    ledger.intend(1, 3, 17, {"zone": "a"})
    assert ledger.entries()[0]["age_s"] == 0.0


def test_entries_go_when_nothing_came_of_them_and_after_an_hour() -> None:
    now = [0.0]
    ledger = Ledger(clock=lambda: now[0])
    ledger.intend(0, 3, 17, {})
    ledger.intend(1, 4, 17, {})
    ledger.forget(3, 17)
    ledger.forget(9, 9)
    assert [e["slot"] for e in ledger.entries()] == [4]
    now[0] = 3600.0
    assert ledger.entries() == []


def test_the_last_report_tells_its_age() -> None:
    now = [5.0]
    ledger = Ledger(clock=lambda: now[0])
    assert ledger.last_report() is None
    ledger.set_report({"gpus": 3})
    now[0] = 7.5
    assert ledger.last_report() == {"gpus": 3, "age_s": 2.5}
