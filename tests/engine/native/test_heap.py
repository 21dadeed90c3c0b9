from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from symphony_dask.engine.native import heap
from symphony_dask.engine.state import State, make_state

ITEMS = 12


def fresh() -> State:
    return make_state(requests=1, models=1, gpus=ITEMS, classes=1, max_batch=1)


def push(s: State, *keys: int) -> None:
    for item, key in enumerate(keys):
        heap.push(s.open, s.gpu, item, key)


def popped(s: State) -> list[int]:
    items = []
    while heap.size(s.open) > 0:
        items.append(heap.top(s.open))
        heap.remove(s.open, items[-1])
    return items


def test_items_come_out_by_key() -> None:
    s = fresh()
    push(s, 30, 10, 20)
    assert popped(s) == [1, 2, 0]


def test_equal_keys_come_out_by_item_number() -> None:
    s = fresh()
    push(s, 7, 7, 3, 7)
    assert popped(s) == [2, 0, 1, 3]


def test_an_item_moves_when_its_key_changes() -> None:
    s = fresh()
    push(s, 10, 20, 30)
    heap.rekey(s.open, s.gpu, 2, 5)
    heap.rekey(s.open, s.gpu, 0, 40)
    assert popped(s) == [2, 1, 0]


def test_an_item_that_was_taken_out_stands_nowhere() -> None:
    s = fresh()
    push(s, 10, 20, 30)
    heap.remove(s.open, 1)
    assert heap.row_of(s.open, 1) == 0
    assert popped(s) == [0, 2]


@settings(max_examples=100, deadline=None, print_blob=True)
@given(st.lists(st.tuples(st.integers(0, ITEMS - 1), st.integers(-5, 5), st.booleans()), max_size=80))
def test_a_heap_is_a_sorted_list_of_its_items(events: list[tuple[int, int, bool]]) -> None:
    s = fresh()
    model: dict[int, int] = {}
    for item, key, take_out in events:
        if item not in model:
            heap.push(s.open, s.gpu, item, key)
            model[item] = key
        elif take_out:
            heap.remove(s.open, item)
            del model[item]
        else:
            heap.rekey(s.open, s.gpu, item, key)
            model[item] = key
        assert heap.size(s.open) == len(model)
        if model:
            assert heap.top(s.open) == min(model, key=lambda i: (model[i], i))
        for at in range(heap.ROOT, heap.ROOT + len(model)):
            assert heap.row_of(s.open, int(s.open[at, heap.ITEM])) == at
    assert popped(s) == sorted(model, key=lambda i: (model[i], i))
