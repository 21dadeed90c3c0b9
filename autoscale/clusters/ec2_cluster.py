"""Presents the instances of a CloudFormation stack as a Dask cluster object, ``EC2GPUCluster``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from autoscale.clusters.fleet_cluster import FleetCluster
from autoscale.fleet.view import Settings
from autoscale.providers.ec2 import Ec2Fleet, SpotNotices, client
from symphony_dask.cli.error_line import aws_error
from symphony_dask.errors import BadInput


class EC2GPUCluster(FleetCluster):
    """GPU instances of a CloudFormation stack (``infra/template.yaml``, docs/operations.md) as a Dask cluster.

    >>> cluster = EC2GPUCluster("symphony", types=["g5.xlarge"], max_instances=4, max_usd_per_hour=6)  # doctest: +SKIP
    >>> client = Client(cluster)                                                                   # doctest: +SKIP
    >>> cluster.adapt(minimum=0, maximum=4)                                                        # doctest: +SKIP

    stack: its name. types, markets ("on-demand", "spot"): what to launch, in order of preference.
    max_instances, max_usd_per_hour: caps, never passed; more in ``settings``.
    prices: "TYPE=USD" an hour on demand, before the price table.
    options: of ``FleetCluster``. With TLS, instances have their material from the stack's secret, and ``security`` must
        be of the same authority.

    The first launch waits for ``Settings.settle_s`` after the start of the scheduler, so that no launch of an earlier
    controller is overlooked. Raises ``BadInput``, ``FleetError``.
    """

    def __init__(
        self,
        stack: str = "symphony",
        *,
        types: Sequence[str] = ("g4dn.xlarge",),
        markets: Sequence[str] = ("on-demand",),
        max_instances: int,
        max_usd_per_hour: float,
        prices: Sequence[str] = (),
        settings: Settings | None = None,
        region: str | None = None,
        endpoint_url: str | None = None,
        **options: Any,
    ) -> None:
        where: dict[str, Any] = {"region": region, "endpoint_url": endpoint_url}
        outputs = stack_outputs(stack, **where)
        zones = zones_of(outputs["SubnetIds"].split(","), **where)

        def fleet(scheduler: str) -> Ec2Fleet:
            return Ec2Fleet(
                outputs["ClusterName"],
                launch_template=outputs["LaunchTemplateId"],
                types=types,
                zones=zones,
                markets=markets,
                scheduler=scheduler,
                given_prices=prices,
                **where,
            )

        caps: dict[str, Any] = {"max_instances": max_instances, "max_usd_per_hour": max_usd_per_hour}
        super().__init__(
            fleet,
            replace(settings, **caps) if settings is not None else Settings(**caps),
            name=outputs["ClusterName"],
            notices=SpotNotices(outputs["NoticesQueueUrl"], **where),
            **options,
        )


def stack_outputs(stack: str, *, region: str | None = None, endpoint_url: str | None = None) -> dict[str, str]:
    """What a stack of ``infra/template.yaml`` says of itself; raises ``BadInput`` where there is none of that name."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        found = client("cloudformation", region=region, endpoint_url=endpoint_url).describe_stacks(StackName=stack)
    except (ClientError, BotoCoreError) as error:
        text = f"the CloudFormation stack {stack!r} cannot be read: {aws_error(error)}"
        raise BadInput(f"{text}; docs/operations.md tells how to deploy it") from error
    outputs = {o["OutputKey"]: o["OutputValue"] for o in found["Stacks"][0].get("Outputs", [])}
    missing = {"ClusterName", "LaunchTemplateId", "SubnetIds", "NoticesQueueUrl"} - set(outputs)
    if missing:
        raise BadInput(f"stack {stack!r} has no output {', '.join(sorted(missing))}: deploy infra/template.yaml")
    return outputs


def zones_of(subnets: Sequence[str], *, region: str | None = None, endpoint_url: str | None = None) -> dict[str, str]:
    """The subnets by availability zone; raises ``BadInput`` where they cannot be read."""
    from botocore.exceptions import BotoCoreError, ClientError

    ec2 = client("ec2", region=region, endpoint_url=endpoint_url)
    try:
        found = ec2.describe_subnets(SubnetIds=list(subnets))["Subnets"]
    except (ClientError, BotoCoreError) as error:
        raise BadInput(f"the stack's subnets cannot be read: {aws_error(error)}") from error
    return {s["AvailabilityZone"]: s["SubnetId"] for s in found}
