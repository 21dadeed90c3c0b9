"""The plan: what is, compared with what should be, gives what to do."""

from __future__ import annotations

import random
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscale.fleet.act import step
from autoscale.fleet.fleet import Instance, Launch, Offer
from autoscale.fleet.reconcile import INTERRUPTED, SURPLUS, Action, Drain, Plan, Retire, Terminate, Undrain, plan
from autoscale.fleet.view import Draining, Intent, Memory, Settings, View, Worker
from tests.helpers.aws.fleet_world import BIG, SMALL, SMALL_B, Clock, FakeCloud, FakeScheduler

NOW_S = 10_000.0
CAPS = Settings(max_instances=4, max_usd_per_hour=100.0)


def instance(slot: int, **fields: Any) -> Instance:
    made = Instance(f"i{slot}", slot, 1, "small", "a", "on-demand", "running", NOW_S - 500, 1, 1.0)
    return replace(made, **fields)


def view(*workers: Worker, **fields: Any) -> View:
    return View(workers=workers, **fields)


def worker(slot: int, *, rank: int | None = None, in_flight: int = 0) -> Worker:
    return Worker(f"i{slot}", 1, slot if rank is None else rank, in_flight)


def planned(
    target: int,
    instances: list[Instance],
    seen: View,
    *,
    caps: Settings = CAPS,
    offers: tuple[Offer, ...] = (SMALL,),
    memory: Memory = Memory(),  # noqa: B008
    **options: Any,
) -> Plan:
    return plan(caps, NOW_S, instances, seen, offers, memory, target, **options)


def actions(*args: Any, **options: Any) -> tuple[Action, ...]:
    return planned(*args, **options).actions


# Launching


def test_what_lacks_is_launched_into_the_lowest_free_slots() -> None:
    found = actions(3, [instance(1)], view(worker(1)))
    assert [(a.slot, a.offer) for a in found if isinstance(a, Launch)] == [(0, SMALL), (2, SMALL)]


def test_a_slot_is_free_once_its_instance_has_ended_but_not_while_it_stops() -> None:
    found = actions(4, [instance(0, state="stopping"), instance(1, state="ended")], view())
    assert [a.slot for a in found if isinstance(a, Launch)] == [1, 2, 3]


def test_an_intent_counts_as_its_instance_until_the_cloud_must_have_listed_it() -> None:
    asked = Launch(0, 7, SMALL)
    assert actions(1, [], view(intents=(Intent(asked, 5.0),))) == ()
    assert actions(1, [], view(intents=(Intent(asked, 89.0),)), memory=Memory(known=frozenset({(0, 7)}))) == ()
    (again,) = actions(1, [], view(intents=(Intent(asked, 91.0),)))
    assert isinstance(again, Launch)
    assert again.generation != 7


def test_an_intent_that_nobody_has_heard_of_is_asked_for_once_more_just_as_it_was() -> None:
    asked = Launch(2, 7, SMALL_B)
    assert actions(1, [], view(intents=(Intent(asked, 11.0),))) == (asked,)
    assert actions(0, [], view(intents=(Intent(asked, 11.0),))) == ()


def test_an_instance_and_its_intent_are_one() -> None:
    found = actions(1, [instance(0, generation=7)], view(worker(0), intents=(Intent(Launch(0, 7, SMALL), 5.0),)))
    assert found == ()


def test_nothing_is_launched_while_the_ledger_is_younger_than_a_launch_may_be() -> None:
    found = planned(1, [], view(age_s=80.0))
    assert found.actions == ()
    assert found.why == "the scheduler has just started: no launches before it is 90 s old"


def test_the_cap_of_instances_holds_also_for_those_on_their_way_out() -> None:
    found = planned(9, [instance(0), instance(1, state="stopping")], view(worker(0)))
    assert [a.slot for a in found.actions if isinstance(a, Launch)] == [2, 3]
    assert found.why == "the cap of 4 instances"


def test_the_cap_of_cost_has_a_cheaper_offer_taken_and_then_none() -> None:
    caps = replace(CAPS, max_usd_per_hour=4.5)
    found = planned(8, [], view(), caps=caps, offers=(BIG, SMALL))
    assert [a.offer.instance_type for a in found.actions if isinstance(a, Launch)] == ["big", "small"]
    assert found.why == "the cap of 4.5 USD an hour"


def test_an_offer_of_no_more_gpus_than_needed_is_preferred() -> None:
    assert [a.offer for a in actions(1, [], view(), offers=(BIG, SMALL)) if isinstance(a, Launch)] == [SMALL]
    assert [a.offer for a in actions(1, [], view(), offers=(BIG,)) if isinstance(a, Launch)] == [BIG]


def test_slots_take_turns_in_the_zones() -> None:
    found = actions(3, [], view(), offers=(SMALL, SMALL_B))
    assert [a.offer.zone for a in found if isinstance(a, Launch)] == ["a", "b", "a"]


def test_a_banned_offer_is_left_alone_until_its_ban_is_over() -> None:
    memory = Memory().ban(SMALL, "type", NOW_S + 1)
    found = planned(1, [], view(), offers=(SMALL, SMALL_B, BIG), memory=memory)
    assert [a.offer for a in found.actions if isinstance(a, Launch)] == [BIG]
    later = Memory().ban(SMALL, "type", NOW_S)
    assert [a.offer for a in actions(1, [], view(), offers=(SMALL, BIG), memory=later)] == [SMALL]  # type: ignore[union-attr]


# Going


def test_the_highest_ranks_go_first_and_are_drained_not_ended() -> None:
    running = [instance(0), instance(1), instance(2)]
    seen = view(worker(0, rank=2), worker(1, rank=0), worker(2, rank=1))
    assert actions(1, running, seen) == (Drain("i0", SURPLUS), Drain("i2", SURPLUS))


def test_an_instance_that_has_not_joined_goes_before_one_that_has() -> None:
    assert actions(1, [instance(0), instance(1)], view(worker(1))) == (Drain("i0", SURPLUS),)


def test_an_instance_stays_when_without_it_there_were_too_few() -> None:
    running = [instance(0, gpus=4), instance(1)]
    seen = view(Worker("i0-0", 1, 1, 0), Worker("i0-3", 1, 4, 0), worker(1, rank=0))
    assert actions(2, running, seen) == (Drain("i1", SURPLUS),)
    assert actions(4, running, seen) == (Drain("i1", SURPLUS),)
    assert actions(5, running, seen) == ()


def test_nothing_goes_where_a_fleet_is_only_to_grow() -> None:
    assert actions(0, [instance(0)], view(worker(0)), shrink=False) == ()


@pytest.mark.parametrize(
    ("drain", "then"),
    [
        (Draining(5.0, SURPLUS, in_flight=1), ()),
        (Draining(5.0, SURPLUS, closing=True), ()),
        (Draining(5.0, SURPLUS), (Retire("i0", False),)),
        (Draining(61.0, SURPLUS, in_flight=1), (Retire("i0", True),)),
        (Draining(61.0, SURPLUS, closing=True), ()),
        (Draining(61.0, INTERRUPTED, closing=True), (Retire("i0", True),)),
        (Draining(5.0, SURPLUS, state="retiring"), ()),
        (Draining(121.0, SURPLUS, state="retiring"), (Terminate("i0"),)),
        (Draining(5.0, SURPLUS, state="retired"), (Terminate("i0"),)),
    ],
)
def test_a_drain_goes_from_idle_to_retired_to_ended(drain: Draining, then: tuple[Action, ...]) -> None:
    assert actions(0, [instance(0)], view(worker(0), drains={"i0": drain})) == then


def test_a_drained_instance_is_no_part_of_the_target_and_is_taken_back_before_another_is_launched() -> None:
    drained = view(worker(0), worker(1), drains={"i1": Draining(5.0, SURPLUS)})
    assert actions(2, [instance(0), instance(1)], drained) == (Undrain("i1"),)
    taken_back = view(worker(0), worker(1), drains={"i1": Draining(5.0, INTERRUPTED)})
    found = actions(2, [instance(0), instance(1)], taken_back)
    assert [type(a) for a in found] == [Retire, Launch]


def test_what_the_cloud_takes_back_is_drained_and_replaced_at_once() -> None:
    found = actions(1, [instance(0, interrupted=True)], view(worker(0)))
    assert found[0] == Drain("i0", INTERRUPTED)
    assert [a.slot for a in found if isinstance(a, Launch)] == [1]


def test_an_instance_whose_workers_somebody_drains_goes_and_is_replaced() -> None:
    found = actions(
        1, [instance(0)], view(Worker("i0-0", 1, 0, 0, draining=True), Worker("i0-1", 1, 1, 0, draining=True))
    )
    assert found[0] == Drain("i0", "its workers are drained")
    assert [a.slot for a in found if isinstance(a, Launch)] == [1]
    one_left = view(Worker("i0-0", 1, 0, 0, draining=True), Worker("i0-1", 1, 1, 0))
    assert actions(1, [instance(0)], one_left) == ()


def test_who_does_not_join_in_time_is_replaced_and_its_offer_banned() -> None:
    memory = Memory(alone={"i0": NOW_S - 601})
    found = planned(1, [instance(0)], view(), offers=(SMALL, BIG), memory=memory)
    assert found.actions[0] == Drain("i0", "no worker for 600 s")
    assert [a.offer for a in found.actions if isinstance(a, Launch)] == [BIG]


def test_the_time_to_join_counts_from_when_the_worker_was_last_there() -> None:
    seen = planned(1, [instance(0)], view(worker(0)), memory=Memory(alone={"i0": NOW_S - 601}))
    assert seen.actions == ()
    assert seen.memory.alone == {}
    gone = planned(1, [instance(0)], view(), memory=seen.memory)
    assert gone.actions == ()
    assert gone.memory.alone == {"i0": NOW_S}


def test_of_two_instances_in_a_slot_the_one_that_has_joined_stays() -> None:
    twins = [instance(0), instance(0, id="i9", generation=2)]
    assert actions(2, twins, view(Worker("i9", 1, 0, 0)))[0] == Drain("i0", "slot 0 has another instance")


def test_a_lowered_cap_has_the_highest_slots_go() -> None:
    caps = replace(CAPS, max_instances=1)
    assert actions(2, [instance(0), instance(3)], view(worker(0), worker(3)), caps=caps) == (
        Drain("i3", "beyond the caps"),
    )


# What holds for every world


@st.composite
def worlds(draw: Any) -> tuple[list[Instance], View]:
    instances, workers, drains, intents = [], [], {}, []
    for slot in range(draw(st.integers(0, 6))):
        state = draw(st.sampled_from(["launching", "running", "stopping", "ended"]))
        offer = draw(st.sampled_from([SMALL, BIG]))
        instances.append(
            instance(
                slot, state=state, instance_type=offer.instance_type, gpus=offer.gpus, usd_per_hour=offer.usd_per_hour,
                interrupted=draw(st.booleans()),
            )
        )  # fmt: skip
        if state == "running" and draw(st.booleans()):
            workers.append(Worker(f"i{slot}", offer.gpus, draw(st.integers(0, 9)), draw(st.integers(0, 2))))
        if draw(st.booleans()):
            kind = draw(st.sampled_from(["draining", "retiring", "retired"]))
            drains[f"i{slot}"] = Draining(
                draw(st.floats(0, 200)), draw(st.sampled_from([SURPLUS, INTERRUPTED])), kind, draw(st.integers(0, 1))
            )
    for slot in range(draw(st.integers(0, 3))):
        asked = Launch(slot + 4, 99, draw(st.sampled_from([SMALL, BIG])))
        intents.append(Intent(asked, draw(st.floats(0, 120))))
    return instances, View(tuple(workers), drains, tuple(intents), age_s=draw(st.sampled_from([10.0, 1000.0])))


@given(worlds(), st.integers(0, 30), st.integers(0, 12), st.sampled_from([0.0, 2.0, 6.0, 50.0]))
def test_no_plan_passes_a_cap_or_ends_what_is_not_retired(
    world: tuple[list[Instance], View], target: int, most: int, usd: float
) -> None:
    instances, seen = world
    caps = replace(CAPS, max_instances=most, max_usd_per_hour=usd)
    made = planned(target, instances, seen, caps=caps, offers=(SMALL, BIG))
    live = [i for i in instances if i.live]
    pending = [i for i in seen.intents if i.age_s < caps.settle_s]
    asked = {(i.launch.slot, i.launch.generation) for i in pending}
    new = [a for a in made.actions if isinstance(a, Launch) and (a.slot, a.generation) not in asked]
    if new:
        assert len(live) + len(pending) + len(new) <= most
        cost = sum(i.usd_per_hour for i in live) + sum(i.launch.offer.usd_per_hour for i in pending)
        assert cost + sum(a.offer.usd_per_hour for a in new) <= usd
    taken = [i.slot for i in live] + [i.launch.slot for i in pending] + [a.slot for a in new]
    assert len({a.slot for a in new} & set(taken[: len(live) + len(pending)])) == 0
    for a in made.actions:
        if isinstance(a, Terminate):
            assert seen.drains[a.id].state in ("retired", "retiring")
        if isinstance(a, Retire):
            assert a.force or not seen.drains[a.id].in_flight
            assert a.force == (seen.drains[a.id].age_s > 60)


@settings(deadline=None, max_examples=60)
@given(st.randoms(use_true_random=False), st.integers(0, 2**32))
def test_through_faults_and_changing_targets_caps_hold_work_is_not_lost_and_the_target_is_reached(
    chance: random.Random, seed: int
) -> None:
    clock = Clock()
    cloud = FakeCloud(
        clock,
        (SMALL, SMALL_B, BIG),
        lag_s=chance.choice([0.0, 5.0, 40.0]),
        lose=chance.choice([0.0, 0.3]),
        throttle=chance.choice([0.0, 0.3]),
        chance=random.Random(seed),
    )
    scheduler = FakeScheduler(clock, cloud)
    caps = Settings(max_instances=6, max_usd_per_hour=9.0)
    # Two controllers, each of which is now and then started anew, knowing nothing.
    memories = [Memory(), Memory()]
    target = 0

    def tick() -> list[str]:
        clock.now_s += chance.uniform(0.5, 8.0)
        which = chance.randrange(2)
        memory = Memory() if chance.random() < 0.1 else memories[which]
        done = step(caps, cloud, scheduler, memory, target, clock=clock)
        memories[which] = done.memory
        for i in cloud.live():
            ended = cloud.state(i.id) == "stopping"
            assert not ended or scheduler.retired(i.id)
        return done.actions

    for _ in range(chance.randrange(60)):
        if chance.random() < 0.2:
            target = chance.randrange(10)
        if chance.random() < 0.1:
            cloud.empty = {chance.choice(["small", "big"])}
        for i in cloud.live():
            if scheduler.joined(i) and chance.random() < 0.2:
                scheduler.in_flight[i.id] = 2
        tick()
        assert cloud.most <= 6
        assert cloud.most_usd_per_hour <= 9.0
    assert scheduler.killed == []
    cloud.empty, cloud.lose, cloud.throttle = set(), 0.0, 0.0
    target = chance.randrange(7)
    for _ in range(200):
        tick()
    up = [i for i in cloud.live() if i.state == "running"]
    assert target <= sum(i.gpus for i in up) <= target + 3
    assert all(scheduler.joined(i) for i in up)
    assert cloud.most <= 6
    assert cloud.most_usd_per_hour <= 9.0
    for _ in range(10):
        assert tick() == []


def test_the_ledger_keeps_offers_as_they_are() -> None:
    assert Offer(**asdict(SMALL)) == SMALL
