"""Fleets on EC2, against moto behind a front that goes wrong as EC2 does (``aws.AwsFront``). Emulated, not measured."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from autoscale.fleet.act import Backoff, Step, step
from autoscale.fleet.controller import Controller, fixed
from autoscale.fleet.fleet import (
    FleetError,
    Launch,
    NoCapacity,
    Offer,
    SlotEnded,
    SlotTaken,
    Throttled,
    Unanswered,
)
from autoscale.fleet.view import Memory
from autoscale.providers.ec2 import Ec2Fleet, SpotNotices
from symphony_dask.errors import BadInput
from tests.helpers.aws.controller_process import QUICK, fleet
from tests.helpers.aws.ec2 import REGION, TEMPLATE, ZONES, AwsFront, tagged
from tests.helpers.aws.fleet_world import FakeScheduler
from tests.helpers.cluster import wait_until

CAPS = replace(QUICK, max_usd_per_hour=100.0)
A10G = Offer("g5.xlarge", ZONES[0], "on-demand", 1, 1.006)


@pytest.fixture
def front() -> Iterator[AwsFront]:
    with AwsFront() as front:
        yield front


@pytest.fixture
def scheduler(front: AwsFront) -> FakeScheduler:
    return FakeScheduler(time.time, front, boot_s=0.0)


def described(front: AwsFront) -> list[dict[str, Any]]:
    pages = front.client("ec2").get_paginator("describe_instances").paginate()
    return [i for page in pages for r in page["Reservations"] for i in r["Instances"]]


def reach(found: Ec2Fleet, scheduler: FakeScheduler, gpus: int, steps: int = 1) -> Step:
    """So many steps towards a target."""
    memory = Memory()
    for _ in range(steps):
        done = step(CAPS, found, scheduler, memory, gpus)
        memory = done.memory
    return done


# One call


def test_an_instance_has_all_its_tags_from_the_launch_call_and_so_have_its_volumes(front: AwsFront) -> None:
    made = fleet(front.url, scheduler="tls://10.0.0.5:8786").launch(Launch(3, 77, A10G))
    wanted = {
        "symphony:cluster": "test",
        "symphony:slot": "3",
        "symphony:generation": "77",
        "symphony:scheduler": "tls://10.0.0.5:8786",
        "Name": "test-3",
    }
    assert tagged(described(front)) == [wanted]
    volumes = front.client("ec2").describe_volumes()["Volumes"]
    assert [v for v in tagged(volumes) if v == wanted]
    assert (made.slot, made.generation, made.instance_type, made.gpus, made.usd_per_hour) == (
        3,
        77,
        "g5.xlarge",
        1,
        1.006,
    )
    assert fleet(front.url).list() == [replace(made, state="running")]


def test_the_same_launch_again_is_the_same_instance(front: AwsFront) -> None:
    ec2 = fleet(front.url)
    assert ec2.launch(Launch(0, 1, A10G)).id == ec2.launch(Launch(0, 1, A10G)).id
    with pytest.raises(SlotTaken):
        ec2.launch(Launch(0, 1, replace(A10G, instance_type="g4dn.xlarge")))
    ec2.terminate([ec2.list()[0].id])
    with pytest.raises(SlotEnded):
        ec2.launch(Launch(0, 1, A10G))
    assert len(front.made) == 1


def test_the_token_holds_for_one_zone_only_as_on_ec2(front: AwsFront) -> None:
    ec2 = fleet(front.url)
    first = ec2.launch(Launch(0, 1, A10G))
    assert ec2.launch(Launch(0, 1, replace(A10G, zone=ZONES[1]))).id != first.id


@pytest.mark.parametrize(
    ("code", "scope"),
    [
        ("InsufficientInstanceCapacity", "offer"),
        ("VcpuLimitExceeded", "type"),
        ("MaxSpotInstanceCountExceeded", "market"),
        ("InsufficientFreeAddressesInSubnet", "zone"),
        ("Unsupported", "offer"),
    ],
)
def test_an_error_of_capacity_says_what_it_is_of_and_is_sent_once(front: AwsFront, code: str, scope: str) -> None:
    front.empty, front.codes = {("g5.xlarge", "")}, {"g5.xlarge": code}
    with pytest.raises(NoCapacity, match=code) as raised:
        fleet(front.url).launch(Launch(0, 1, A10G))
    assert raised.value.scope == scope
    assert front.calls["RunInstances"] == 1


def test_a_throttled_launch_is_not_tried_again_by_itself(front: AwsFront) -> None:
    ec2 = fleet(front.url)
    ec2.offers()
    front.throttle = 1.0
    with pytest.raises(Throttled, match="RequestLimitExceeded"):
        ec2.launch(Launch(0, 1, A10G))
    assert front.calls["RunInstances"] == 1


def test_a_lost_answer_is_told_from_an_error(front: AwsFront) -> None:
    ec2 = fleet(front.url)
    ec2.offers()
    front.lose = 1.0
    with pytest.raises(Unanswered):
        ec2.launch(Launch(0, 1, A10G))
    assert front.calls["RunInstances"] == 1
    assert len(front.live()) == 1


def test_an_instance_that_is_gone_does_not_keep_others_from_being_ended(front: AwsFront) -> None:
    ec2 = fleet(front.url)
    made = ec2.launch(Launch(0, 1, A10G))
    ec2.terminate(["i-00000000000000000", made.id])
    assert front.live() == []


def test_other_machines_with_the_clusters_tag_are_no_part_of_the_fleet(front: AwsFront) -> None:
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "symphony:cluster", "Value": "test"}]}]
    front.client("ec2").run_instances(
        ImageId="ami-12345678", InstanceType="m5.large", MinCount=1, MaxCount=1, TagSpecifications=tags, ClientToken="x"
    )
    assert fleet(front.url).list() == []


def test_spot_instances_are_launched_as_such_and_counted_at_the_price_on_demand(front: AwsFront) -> None:
    made = fleet(front.url, markets=["spot"]).launch(Launch(0, 1, replace(A10G, market="spot")))
    assert (made.market, made.usd_per_hour) == ("spot", 1.006)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"types": ["m5.large"]}, "instance type m5.large has no GPU: choose another"),
        ({"types": ["g5g.xlarge"]}, "no price is known of g5g.xlarge: give --price g5g.xlarge=USD"),
        ({"types": ["g99.xlarge"]}, "InvalidInstanceType"),
    ],
)
def test_a_type_without_gpu_or_price_is_refused(front: AwsFront, options: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        fleet(front.url, **options).offers()


def test_a_price_that_is_given_goes_before_the_table(front: AwsFront) -> None:
    ec2 = fleet(front.url, types=["g5g.xlarge"], given_prices=["g5g.xlarge=0.42"])
    assert {o.usd_per_hour for o in ec2.offers()} == {0.42}


def test_without_boto3_it_is_said_what_to_install() -> None:
    program = (
        "import sys; sys.modules['boto3'] = None\n"
        "from autoscale.providers.ec2 import client\n"
        "try: client('ec2')\n"
        "except Exception as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert out.stdout == 'fleets on EC2 need boto3: pip install "symphony-dask[aws]"\n'


def test_an_endpoint_that_does_not_answer_is_an_error_of_the_fleet() -> None:
    with AwsFront() as front:
        url = front.url
        ec2 = fleet(url)
    with pytest.raises(FleetError, match="EC2 did not answer to: list instances"):
        ec2.list()


# A fleet


def test_no_capacity_falls_over_to_the_next_zone_and_then_to_the_next_type(
    front: AwsFront, scheduler: FakeScheduler
) -> None:
    front.empty = {("g5.xlarge", ZONES[0])}
    reach(fleet(front.url), scheduler, 2)
    assert [(i.instance_type, i.zone) for i in front.live()] == [("g5.xlarge", ZONES[1])] * 2
    front.empty = {("g5.xlarge", "")}
    done = reach(fleet(front.url), scheduler, 3)
    assert [i.instance_type for i in front.live()][2:] == ["g4dn.xlarge"]
    assert [f for f in done.faults if "InsufficientInstanceCapacity" in f]


def test_a_lost_answer_launches_nothing_twice(front: AwsFront, scheduler: FakeScheduler) -> None:
    front.lag_s = 3.0
    ec2 = fleet(front.url)
    ec2.offers()
    front.on_call = lambda action, stage: setattr(front, "lose", 1.0 if action == "RunInstances" else 0.0)
    done = reach(ec2, scheduler, 3)
    assert len([f for f in done.faults if "EC2 did not answer" in f]) == 3
    front.on_call, front.lose = lambda action, stage: None, 0.0
    # Not listed yet, and asked for again, by one that has forgotten all.
    wait_until(lambda: min(i.age_s for i in scheduler.view("test").intents) > QUICK.retry_s, "time to ask again")
    reach(ec2, scheduler, 3)
    assert front.calls["RunInstances"] == 6
    assert len(front.made) == 3
    wait_until(lambda: len(ec2.list()) == 3, "all listed")
    reach(ec2, scheduler, 3)
    assert len(front.made) == 3


def test_instances_that_are_not_listed_yet_are_not_launched_again(front: AwsFront, scheduler: FakeScheduler) -> None:
    front.lag_s = 2.0
    reach(fleet(front.url), scheduler, 4, steps=5)
    assert front.calls["RunInstances"] == 4
    for _ in range(5):  # by controllers that have forgotten all
        reach(fleet(front.url), scheduler, 4)
    assert len(front.made) == 4


@pytest.mark.parametrize(
    ("instances", "page_size", "pages"), [(11, 5, 3), pytest.param(200, 50, 4, marks=pytest.mark.slow)]
)
def test_instances_are_listed_page_by_page(front: AwsFront, instances: int, page_size: int, pages: int) -> None:
    ec2 = fleet(front.url, page_size=page_size)
    for slot in range(instances):
        ec2.launch(Launch(slot, 1, A10G))
    before = front.calls["DescribeInstances"]
    assert [i.slot for i in ec2.list()] == list(range(instances))
    assert front.calls["DescribeInstances"] - before == pages


def test_the_caps_hold_by_what_the_cloud_reports(front: AwsFront, scheduler: FakeScheduler) -> None:
    ec2 = fleet(front.url)
    caps = replace(CAPS, max_instances=3)
    assert step(caps, ec2, scheduler, Memory(), 9).why == "the cap of 3 instances"
    assert len(front.live()) == 3
    caps = replace(CAPS, max_usd_per_hour=4.5)
    assert step(caps, ec2, scheduler, Memory(), 9).why == "the cap of 4.5 USD an hour"
    assert [i.usd_per_hour for i in front.live()] == [1.006] * 3 + [1.006]


def test_a_spot_kill_is_replaced_and_a_notice_drains_first(front: AwsFront, scheduler: FakeScheduler) -> None:
    ec2 = fleet(front.url, markets=["spot"])
    reach(ec2, scheduler, 2, steps=2)
    killed, warned = (i.id for i in front.live())
    front.spot_kill(killed)
    reach(ec2, scheduler, 2, steps=2)
    assert [i.slot for i in front.live()] == [1, 0]

    queue = front.client("sqs").create_queue(QueueName="notices")["QueueUrl"]
    event = {"detail-type": "EC2 Spot Instance Interruption Warning", "detail": {"instance-id": warned}}
    other = {"detail-type": "EC2 Instance Rebalance Recommendation", "detail": {"instance-id": "i-1"}}
    for body in (json.dumps(event), json.dumps(other), "no event"):
        front.client("sqs").send_message(QueueUrl=queue, MessageBody=body)
    notices = SpotNotices(queue, region=REGION, endpoint_url=front.url)
    controller = Controller(CAPS, ec2, scheduler, fixed(2), notices=notices)
    first = controller.tick()
    assert first is not None
    assert f"drain {warned}: the cloud takes it back" in first.actions
    assert [a.split()[0] for a in first.actions] == ["drain", "launch"]
    second = controller.tick()
    assert second is not None
    assert second.actions == [f"terminate {warned}"]
    assert len(front.live()) == 2
    assert notices.poll() == frozenset()


def test_throttling_has_the_controller_back_off_for_longer_and_longer(
    front: AwsFront, scheduler: FakeScheduler
) -> None:
    ec2 = fleet(front.url)
    ec2.offers()
    controller = Controller(CAPS, ec2, scheduler, fixed(1), interval_s=0.01)
    controller.backoff = Backoff(first_s=0.2, most_s=0.8, chance=random.Random(3))
    controller.tick()
    front.times.clear()
    front.on_call = lambda action, stage: setattr(front, "throttle", 1.0 if action == "RunInstances" else 0.0)
    controller.decide = fixed(2)
    thread = threading.Thread(target=controller.run)
    thread.start()
    try:
        launches = lambda: [at for at, action, _ in front.times if action == "RunInstances"]  # noqa: E731
        wait_until(lambda: len(launches()) == 5, "five throttled launches")
    finally:
        controller.stopped = True
        thread.join()
    gaps = [b - a for a, b in itertools.pairwise(launches())]
    # Waits of 0.2, 0.4, 0.8 and 0.8 s, of which a part chosen by chance, at most half, is left out.
    for gap, wait_s in zip(gaps, (0.2, 0.4, 0.8, 0.8), strict=True):
        assert gap >= wait_s / 2
    assert sum(action == "DescribeInstances" for _, action, _ in front.times) <= 6
    front.on_call, front.throttle = lambda action, stage: None, 0.0
    controller.backoff = Backoff()
    controller.tick()
    assert len(front.live()) == 2


def test_two_controllers_at_once_do_no_harm(front: AwsFront, scheduler: FakeScheduler) -> None:
    front.pending_s, front.stop_s, front.lag_s = 0.05, 0.1, 0.3
    front.lose = front.throttle = 0.05
    controllers = []
    for seed in range(2):
        controller = Controller(QUICK, fleet(front.url), scheduler, fixed(0), interval_s=0.03)
        controller.backoff = Backoff(first_s=0.02, most_s=0.2, chance=random.Random(seed))
        controllers.append(controller)
    threads = [threading.Thread(target=c.run) for c in controllers]
    for thread in threads:
        thread.start()
    chance = random.Random(5)
    try:
        for _ in range(8):
            for controller in controllers:  # they need not agree
                controller.decide = fixed(chance.randrange(9))
            time.sleep(0.4)  # a time for them to disagree in
        for controller in controllers:
            controller.decide = fixed(2)
        wait_until(lambda: sum(i.gpus for i in front.live()) in range(2, 6) and len(front.live()) <= 2, "two GPUs", 60)
    finally:
        for controller in controllers:
            controller.stopped = True
        for thread in threads:
            thread.join()
    slots = [i.slot for i in front.live()]
    assert len(set(slots)) == len(slots)
    assert front.most <= QUICK.max_instances
    assert front.most_usd_per_hour <= QUICK.max_usd_per_hour
    assert [m.id for m in front.made.values() if m.ended_s and not scheduler.retired(m.id)] == []


def test_a_template_may_be_named_by_its_id(front: AwsFront) -> None:
    (template,) = front.client("ec2").describe_launch_templates(LaunchTemplateNames=[TEMPLATE])["LaunchTemplates"]
    ec2 = Ec2Fleet(
        "test", launch_template=template["LaunchTemplateId"], types=["g5.xlarge"], zones=ZONES, region=REGION,
        endpoint_url=front.url,
    )  # fmt: skip
    assert ec2.launch(Launch(0, 1, A10G)).slot == 0
