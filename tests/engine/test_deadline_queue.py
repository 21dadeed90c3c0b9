from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from symphony_dask.engine import deadline_queue
from symphony_dask.engine.state import LEVELS, State, make_state


def fresh(requests: int = 40) -> State:
    return make_state(requests, models=2, gpus=1, classes=1, max_batch=1)


def insert(s: State, m: int, slot: int, deadline: int, seq: int) -> None:
    s.req["deadline"][slot] = deadline
    s.req["seq"][slot] = seq
    deadline_queue.insert(s, m, slot)


def forwards(s: State, m: int, level: int = 0) -> list[int]:
    slots = []
    at = int(s.head[m, level])
    while at >= 0:
        slots.append(at)
        at = int(s.nxt[at, level])
    return slots


def backwards(s: State, m: int) -> list[int]:
    slots = []
    at = int(s.tail[m, 0])
    while at >= 0:
        slots.append(at)
        at = int(s.req["prev"][at])
    return slots


def skip(s: State, m: int) -> None:
    deadline_queue.skip(s, m)


def first(s: State, m: int) -> tuple[int, int]:
    return int(s.mod["first"][m]), int(s.mod["skipped"][m])


def of(*deadlines: int) -> State:
    """A queue of model 0 with these deadlines; slots and seqs count from 0."""
    s = fresh()
    for slot, deadline in enumerate(deadlines):
        insert(s, 0, slot, deadline, slot)
    return s


def test_the_first_request_of_a_priority_above_0_is_known_as_requests_come_and_go() -> None:
    s = fresh()
    for slot, (deadline, priority) in enumerate([(10, 0), (30, 1), (20, 2), (40, 0)]):
        s.req["priority"][slot] = priority
        insert(s, 0, slot, deadline, slot)
    assert (s.mod["raised"][0], s.mod["first_raised"][0]) == (2, 2)
    deadline_queue.remove(s, 0, 2)
    assert (s.mod["raised"][0], s.mod["first_raised"][0]) == (1, 1)
    deadline_queue.pop(s, 0)
    deadline_queue.pop(s, 0)
    assert (s.mod["raised"][0], s.mod["first_raised"][0]) == (0, -1)


def test_the_earliest_deadline_comes_first_and_first_come_first_among_equals() -> None:
    assert forwards(of(30, 10, 20, 10), 0) == [1, 3, 2, 0]


def test_pop_takes_the_head() -> None:
    s = of(30, 10, 20)
    assert [deadline_queue.pop(s, 0), deadline_queue.pop(s, 0), deadline_queue.pop(s, 0)] == [1, 2, 0]
    assert s.mod["n"][0] == 0
    assert first(s, 0) == (-1, 0)


def test_requests_leave_the_head_without_a_word_to_the_output() -> None:
    s = of(10, 20, 30)
    s.drops[:] = s.members[:] = -7
    s.g["n_drops"] = len(s.drops) - 1
    deadline_queue.remove(s, 0, 0)
    assert deadline_queue.pop(s, 0) == 1
    assert set(s.drops.tolist()) == set(s.members.tolist()) == {-7}


def test_a_request_leaves_from_the_middle() -> None:
    s = of(10, 20, 30)
    deadline_queue.remove(s, 0, 1)
    assert forwards(s, 0) == [0, 2]
    assert backwards(s, 0) == [2, 0]


def test_skipped_heads_stand_before_first() -> None:
    s = of(10, 20, 30)
    skip(s, 0)
    assert first(s, 0) == (1, 1)
    deadline_queue.pop(s, 0)
    assert first(s, 0) == (1, 0)


def test_a_request_before_first_takes_all_skips_back() -> None:
    s = of(10, 20, 30)
    skip(s, 0)
    insert(s, 0, 3, deadline=15, seq=3)
    assert first(s, 0) == (0, 0)


def test_a_request_behind_first_leaves_the_skips() -> None:
    s = of(10, 20, 30)
    skip(s, 0)
    insert(s, 0, 3, deadline=25, seq=3)
    assert first(s, 0) == (1, 1)


def test_removing_a_skipped_head_leaves_first() -> None:
    s = of(10, 20, 30)
    skip(s, 0)
    skip(s, 0)
    deadline_queue.remove(s, 0, 1)
    assert first(s, 0) == (2, 1)


def test_removing_first_moves_it_on_or_back_to_the_head_when_it_was_last() -> None:
    s = of(10, 20, 30)
    skip(s, 0)
    deadline_queue.remove(s, 0, 1)
    assert first(s, 0) == (2, 1)
    deadline_queue.remove(s, 0, 2)
    assert first(s, 0) == (0, 0)


def test_one_request_in_four_rises_to_the_next_level() -> None:
    levels = [deadline_queue._levels(seq) for seq in range(16_384)]
    # 16384 / 4 = 4096 are on level 2 or above, 1024 on level 3, 256 on level 4; a hash is allowed a tenth either way.
    assert 3686 < sum(n > 1 for n in levels) < 4506
    assert 922 < sum(n > 2 for n in levels) < 1126
    assert 192 < sum(n > 3 for n in levels) < 320
    assert min(levels) == 1
    assert max(levels) <= LEVELS


EVENTS = st.tuples(
    st.sampled_from(["insert", "insert", "insert", "pop", "remove", "skip"]),
    st.integers(0, 1),
    st.integers(0, 9),
    st.integers(0, 39),
)


@settings(max_examples=100, deadline=None, print_blob=True)
@given(st.integers(0, 10_000), st.lists(EVENTS, max_size=100))
def test_a_queue_is_a_sorted_list(seq: int, events: list[tuple[str, int, int, int]]) -> None:
    s = fresh()
    free = list(range(40))
    model: list[list[tuple[int, int, int]]] = [[], []]  # (deadline, seq, slot) for each queue
    skipped = [0, 0]
    for kind, m, deadline, pick in events:
        line = model[m]
        if kind == "insert" and free:
            slot = free.pop(pick % len(free))
            entry = (deadline, seq, slot)
            if skipped[m] and entry < line[skipped[m]]:
                skipped[m] = 0
            line.append(entry)
            line.sort()
            insert(s, m, slot, deadline, seq)
            seq += 1
        elif kind == "pop" and line:
            slot = deadline_queue.pop(s, m)
            assert slot == line.pop(0)[2]
            skipped[m] = max(0, skipped[m] - 1)
            free.append(slot)
        elif kind == "remove" and line:
            at = pick % len(line)
            slot = line.pop(at)[2]
            skipped[m] -= at < skipped[m]
            skipped[m] *= skipped[m] < len(line)
            deadline_queue.remove(s, m, slot)
            free.append(slot)
        elif kind == "skip" and skipped[m] + 1 < len(line):
            skip(s, m)
            skipped[m] += 1
        for i in range(2):
            slots = [entry[2] for entry in model[i]]
            assert s.mod["n"][i] == len(slots)
            assert forwards(s, i) == slots
            assert backwards(s, i) == slots[::-1]
            for level in range(1, LEVELS):
                assert forwards(s, i, level) == [x for x in slots if s.req["levels"][x] > level]
            assert first(s, i) == ((slots[skipped[i]], skipped[i]) if slots else (-1, 0))
