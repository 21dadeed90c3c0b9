"""Launches, lists and ends a fleet of EC2 instances, found by their tags.

One ``RunInstances`` call an instance, from a launch template, with every tag in the call: an instance without tags
cannot come to be. Launch calls are sent once, since botocore would send capacity and throttling errors five times; what
to do about those is for ``act``. A client token is of slot and generation; EC2 keeps tokens by zone where the zone is
named in the call, as it always is here, so a launch is only ever repeated in its zone (``reconcile``, rule 3).
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from autoscale.fleet.fleet import (
    ENDED,
    LAUNCHING,
    MARKETS,
    RUNNING,
    STOPPING,
    FleetError,
    Instance,
    InstanceType,
    Launch,
    NoCapacity,
    Offer,
    SlotEnded,
    SlotTaken,
    Throttled,
    Unanswered,
    token,
)
from autoscale.providers.prices import prices
from symphony_dask.cli.error_line import aws_error
from symphony_dask.cli.scheduler_check import ANSWER_S, resolve
from symphony_dask.errors import BadInput
from symphony_dask.names import name_list

if TYPE_CHECKING:
    from botocore.client import BaseClient

TAG_CLUSTER, TAG_SLOT, TAG_GENERATION = "symphony:cluster", "symphony:slot", "symphony:generation"
TAG_SCHEDULER = "symphony:scheduler"

_STATES = {
    "pending": LAUNCHING,
    "running": RUNNING,
    "stopped": RUNNING,  # it costs, and has no worker: it will be ended for that
    "stopping": STOPPING,
    "shutting-down": STOPPING,
    "terminated": ENDED,
}

#: Error codes of RunInstances that a launch elsewhere may get round, and what they are of (``NoCapacity.scope``).
_NO_CAPACITY = {
    "InsufficientInstanceCapacity": "offer",
    "InsufficientHostCapacity": "offer",
    "InsufficientReservedInstanceCapacity": "offer",
    "SpotMaxPriceTooLow": "offer",
    "Unsupported": "offer",
    "UnsupportedOperation": "offer",
    "InstanceLimitExceeded": "type",
    "VcpuLimitExceeded": "type",
    "InsufficientFreeAddressesInSubnet": "zone",
    "InsufficientAddressCapacity": "zone",
    "MaxSpotInstanceCountExceeded": "market",
    "MaxSpotFleetRequestCountExceeded": "market",
}

_THROTTLED = {"RequestLimitExceeded", "Throttling", "ThrottlingException", "EC2ThrottledException", "TooManyRequests"}

#: A launch call may take so long, s; ``view.Settings.settle_s`` must be longer.
CALL_S = 25.0


def client(
    service: str, *, region: str | None = None, endpoint_url: str | None = None, attempts: int = 4
) -> BaseClient:
    """A boto3 client whose calls are sent ``attempts`` times at most; raises ``BadInput`` without boto3 or region."""
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, NoRegionError
    except ImportError as error:
        raise BadInput('fleets on EC2 need boto3: pip install "symphony-dask[aws]"') from error
    retries = {"total_max_attempts": attempts, "mode": "standard"}
    config = Config(retries=retries, connect_timeout=5, read_timeout=CALL_S - 5, user_agent_extra="symphony-dask")
    try:
        return boto3.client(service, region_name=region, endpoint_url=endpoint_url, config=config)
    except NoRegionError as error:
        raise BadInput("no AWS region is set: give --region, or set AWS_DEFAULT_REGION") from error
    except (BotoCoreError, ValueError) as error:  # a profile, a region or an endpoint that cannot be
        raise BadInput(aws_error(error)) from error


def check_reachable(service: str, *, region: str | None = None) -> None:
    """Have AWS take a connection for ``service``, without botocore's patience; raises ``BadInput``."""
    from botocore.utils import get_environ_proxies

    url = client(service, region=region).meta.endpoint_url
    parts = urlsplit(url)
    if get_environ_proxies(url):
        return
    try:
        resolve(parts.hostname or "")
        port = parts.port or (80 if parts.scheme == "http" else 443)
        socket.create_connection((parts.hostname or "", port), timeout=ANSWER_S).close()
    except OSError as error:
        why = (error.strerror or "no answer").lower()
        remedy = "check the network, the region (--region) and AWS_ENDPOINT_URL"
        raise BadInput(f"AWS cannot be reached at {url} ({why}): {remedy}") from error


class Ec2Fleet:
    """The instances tagged ``symphony:cluster`` = ``name`` in one region.

    launch_template: name or id ("lt-...") of what ``infra/template.yaml`` makes. Its latest version is used:
        CloudFormation makes a new one of each change, and leaves the default as it was.
    types, markets: in order of preference; each market is tried with all types before the next one.
    zones: where to launch; a mapping gives the subnet of each, otherwise the account's default one is taken.
    scheduler: what workers connect to, if it is not in the template.
    given_prices: "TYPE=USD" an hour, before the price table.
    page_size: instances in one answer to ``list``.
    """

    def __init__(
        self,
        name: str,
        *,
        launch_template: str,
        types: Sequence[str],
        zones: Sequence[str] | Mapping[str, str],
        markets: Sequence[str] = ("on-demand",),
        scheduler: str | None = None,
        region: str | None = None,
        endpoint_url: str | None = None,
        given_prices: Sequence[str] = (),
        page_size: int = 200,
    ) -> None:
        markets, types = name_list(markets, "market"), name_list(types, "instance type")
        zones = zones if isinstance(zones, Mapping) else name_list(zones, "zone")
        unknown = [m for m in markets if m not in MARKETS]
        if unknown or not markets:
            raise BadInput(f"markets {markets}: give some of {', '.join(MARKETS)}")
        if not types or not zones:
            raise BadInput(f"types {types}, zones {list(zones)}: give at least one instance type and one zone")
        self.name = name
        self._template = launch_template
        self._types = types
        self._markets = markets
        self._zones = list(zones)
        self._subnets = dict(zones) if isinstance(zones, Mapping) else {}
        self._scheduler = scheduler
        self._prices = prices([given_prices] if isinstance(given_prices, str) else given_prices)
        self._page_size = page_size
        self._once = client("ec2", region=region, endpoint_url=endpoint_url, attempts=1)
        self._ec2 = client("ec2", region=region, endpoint_url=endpoint_url)
        self._known: dict[str, InstanceType] = {}

    def offers(self) -> Sequence[Offer]:
        known = self.describe_types(self._types)
        return [
            Offer(t, zone, market, known[t].gpus, known[t].usd_per_hour)
            for market in self._markets
            for t in self._types
            for zone in self._zones
        ]

    def describe_types(self, names: Sequence[str]) -> Mapping[str, InstanceType]:
        missing = [n for n in names if n not in self._known]
        if missing:
            with _answers("describe instance types"):
                pages = self._ec2.get_paginator("describe_instance_types").paginate(InstanceTypes=missing)
                found = [t for page in pages for t in page["InstanceTypes"]]
            for described in found:
                self._known[described["InstanceType"]] = self._type(described)
        return {n: self._known[n] for n in names}

    def _type(self, described: Mapping[str, Any]) -> InstanceType:
        name, gpus = described["InstanceType"], described.get("GpuInfo", {}).get("Gpus", [])
        if not gpus:
            raise BadInput(f"instance type {name} has no GPU: choose another, such as g5.xlarge")
        rented = self._prices.find(name)
        if rented is None:
            raise BadInput(f"no price is known of {name}: give --price {name}=USD (an hour, on demand)")
        return InstanceType(name, sum(g["Count"] for g in gpus), gpus[0]["Name"], rented.usd_per_hour)

    def launch(self, launch: Launch) -> Instance:
        offer = launch.offer
        tags = {
            TAG_CLUSTER: self.name,
            TAG_SLOT: str(launch.slot),
            TAG_GENERATION: str(launch.generation),
            "Name": f"{self.name}-{launch.slot}",
            **({TAG_SCHEDULER: self._scheduler} if self._scheduler else {}),
        }
        by_id = self._template.startswith("lt-")
        asked: dict[str, Any] = {
            "LaunchTemplate": {
                "LaunchTemplateId" if by_id else "LaunchTemplateName": self._template,
                "Version": "$Latest",
            },
            "InstanceType": offer.instance_type,
            "MinCount": 1,
            "MaxCount": 1,
            "ClientToken": token(self.name, launch.slot, launch.generation),
            "InstanceInitiatedShutdownBehavior": "terminate",
            "TagSpecifications": [
                {"ResourceType": kind, "Tags": [{"Key": k, "Value": v} for k, v in tags.items()]}
                for kind in ("instance", "volume")
            ],
        }
        if offer.zone in self._subnets:
            asked["SubnetId"] = self._subnets[offer.zone]
        else:
            asked["Placement"] = {"AvailabilityZone": offer.zone}
        if offer.market == "spot":
            # No price limit of ours: EC2's own is the price on demand, which is what caps count.
            options = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
            asked["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": options}
        with _answers(f"launch {offer}"):
            reply = self._once.run_instances(**asked)
        return self._instance(reply["Instances"][0])

    def list(self) -> Sequence[Instance]:
        with _answers("list instances"):
            pages = self._ec2.get_paginator("describe_instances").paginate(
                Filters=[{"Name": f"tag:{TAG_CLUSTER}", "Values": [self.name]}],
                PaginationConfig={"PageSize": self._page_size},
            )
            found = [i for page in pages for r in page["Reservations"] for i in r["Instances"]]
        # The scheduler's own machine may bear the cluster's tag too; only what has a slot is of the fleet.
        ours = [i for i in found if _tags(i).get(TAG_SLOT, "").isdecimal()]
        self.describe_types(sorted({i["InstanceType"] for i in ours}))
        return sorted((self._instance(i) for i in ours), key=lambda i: (i.slot, i.generation, i.id))

    def terminate(self, ids: Sequence[str]) -> None:
        ids = name_list(ids, "instance")
        for start in range(0, len(ids), 100):
            some = ids[start : start + 100]
            try:
                with _answers(f"terminate {', '.join(some)}"):
                    self._ec2.terminate_instances(InstanceIds=some)
            except _Unknown:  # one that is gone has the call fail for all
                for one in some:
                    try:
                        with _answers(f"terminate {one}"):
                            self._ec2.terminate_instances(InstanceIds=[one])
                    except _Unknown:
                        continue

    def _instance(self, described: Mapping[str, Any]) -> Instance:
        tags = _tags(described)
        kind = self.describe_types([described["InstanceType"]])[described["InstanceType"]]
        return Instance(
            id=described["InstanceId"],
            slot=int(tags[TAG_SLOT]),
            generation=int(tags.get(TAG_GENERATION, "0")),
            instance_type=kind.name,
            zone=described["Placement"]["AvailabilityZone"],
            market="spot" if described.get("InstanceLifecycle") == "spot" else "on-demand",
            state=_STATES[described["State"]["Name"]],
            launched_s=described["LaunchTime"].timestamp(),
            gpus=kind.gpus,
            usd_per_hour=kind.usd_per_hour,
        )


def _tags(described: Mapping[str, Any]) -> dict[str, str]:
    return {t["Key"]: t["Value"] for t in described.get("Tags", [])}


class _Unknown(FleetError):
    """No such instance."""


@contextmanager
def _answers(what: str) -> Iterator[None]:
    """Have a call's errors be ours."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except ClientError as error:
        detail = error.response.get("Error", {})
        code, status = detail.get("Code", ""), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        text = f"EC2 did not {what}: {code}: {detail.get('Message', '')}"
        if code in _THROTTLED:
            raise Throttled(text) from error
        if code in _NO_CAPACITY:
            raise NoCapacity(text, _NO_CAPACITY[code]) from error
        if code == "IdempotentParameterMismatch":
            raise SlotTaken(text) from error
        if code == "IdempotentInstanceTerminated":
            raise SlotEnded(text) from error
        if code == "InvalidInstanceType":
            raise BadInput(f"{text}: choose another type, or another region") from error
        if code.startswith("InvalidInstanceID"):
            raise _Unknown(text) from error
        if status >= 500 or code in ("InternalError", "Unavailable"):
            raise Unanswered(text) from error
        raise FleetError(f"EC2 did not {what}: {aws_error(error)}") from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise BadInput(f"EC2 cannot be asked to {what}: {aws_error(error)}") from error
    except (BotoCoreError, ResponseParserError) as error:  # the latter for a page of some proxy's
        raise Unanswered(f"EC2 did not answer to: {what}: {aws_error(error)}") from error


class SpotNotices:
    """The queue that EventBridge puts EC2's spot interruption warnings into (``infra/template.yaml``).

    A notice stays in the queue until ``done``: a controller that is killed before it has drained the instance, or
    another one, gets it again.
    """

    def __init__(self, queue_url: str, *, region: str | None = None, endpoint_url: str | None = None) -> None:
        self._url = queue_url
        self._sqs = client("sqs", region=region, endpoint_url=endpoint_url)
        self._receipts: dict[str, str] = {}

    def poll(self) -> frozenset[str]:
        """Ids of instances that EC2 takes back within two minutes, of all notices that are not done."""
        while True:
            with _answers("read spot notices"):
                reply = self._sqs.receive_message(QueueUrl=self._url, MaxNumberOfMessages=10, WaitTimeSeconds=0)
            messages = reply.get("Messages", [])
            for message in messages:
                self._receipts[_noticed(message["Body"])] = message["ReceiptHandle"]
            if not messages:
                return frozenset(i for i in self._receipts if i)

    def done(self) -> None:
        """All that was polled has been acted upon."""
        for receipt in self._receipts.values():
            with _answers("remove a spot notice"):
                self._sqs.delete_message(QueueUrl=self._url, ReceiptHandle=receipt)
        self._receipts.clear()


def _noticed(body: str) -> str:
    """The instance that an event of EventBridge's warns of; "" if it is about something else."""
    try:
        event = json.loads(body)
        if event["detail-type"] == "EC2 Spot Instance Interruption Warning":
            return str(event["detail"]["instance-id"])
    except (ValueError, KeyError, TypeError):
        pass
    return ""
