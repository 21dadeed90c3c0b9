"""The options that say which fleet a command is about, and the fleet that they make."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import click

from symphony_dask.errors import BadInput


@dataclass(frozen=True)
class Which:
    """The options, as given."""

    fleet: str
    provider: str
    stack: str | None
    launch_template: str | None
    types: tuple[str, ...]
    markets: tuple[str, ...]
    zones: tuple[str, ...]
    region: str | None
    prices: tuple[str, ...]
    local_usd_per_hour: float

    def make(self, scheduler: str | None) -> Any:
        """The fleet; raises ``BadInput``."""
        if self.provider == "local":
            from autoscale.providers.local import LocalFleet

            return LocalFleet(self.fleet, scheduler or "", usd_per_hour=self.local_usd_per_hour)
        from autoscale.providers.ec2 import Ec2Fleet, check_reachable

        template, zones = self.launch_template, self._zones()
        if self.stack is None and not (template and zones):
            raise BadInput("EC2 needs --stack NAME, or --launch-template and --zone: say what to launch, and where")
        check_reachable("ec2", region=self.region)
        if self.stack is not None:
            from autoscale.clusters.ec2_cluster import stack_outputs, zones_of

            check_reachable("cloudformation", region=self.region)
            outputs = stack_outputs(self.stack, region=self.region)
            template = template or outputs["LaunchTemplateId"]
            zones = zones or zones_of(outputs["SubnetIds"].split(","), region=self.region)
        assert template is not None
        return Ec2Fleet(
            self.fleet,
            launch_template=template,
            types=self.types or ("g4dn.xlarge",),
            zones=zones,
            markets=self.markets or ("on-demand",),
            scheduler=scheduler,
            region=self.region,
            given_prices=self.prices,
        )

    def notices(self) -> Any:
        """Where the stack's spot notices come; None without a stack."""
        if self.provider == "local" or self.stack is None:
            return None
        from autoscale.clusters.ec2_cluster import stack_outputs
        from autoscale.providers.ec2 import SpotNotices

        return SpotNotices(stack_outputs(self.stack, region=self.region)["NoticesQueueUrl"], region=self.region)

    def _zones(self) -> Sequence[str] | Mapping[str, str]:
        pairs = [text.partition("=") for text in self.zones]
        if any(subnet for _, _, subnet in pairs):
            return {zone: subnet for zone, _, subnet in pairs}
        return [zone for zone, _, _ in pairs]


def which_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of ``Which``; the command takes it as ``which``."""
    options = [
        click.option(
            "--fleet", default="symphony", show_default=True, help="The fleet's name, a tag of its instances."
        ),
        click.option("--provider", type=click.Choice(["ec2", "local"]), default="ec2", show_default=True),
        click.option("--stack", help="CloudFormation stack of infra/template.yaml: template, subnets, spot notices."),
        click.option("--launch-template", help="EC2 launch template, by name or id; by default the stack's."),
        click.option("--type", "types", multiple=True, help="EC2 instance type, the preferred one first; repeat."),
        click.option("--market", "markets", multiple=True, type=click.Choice(["on-demand", "spot"]), help="Repeat."),
        click.option("--zone", "zones", multiple=True, help="ZONE or ZONE=SUBNET; by default the stack's. Repeat."),
        click.option("--region", help="AWS region; by default the one of your AWS settings."),
        click.option("--price", "prices", multiple=True, help="TYPE=USD an hour on demand, before the price table."),
        click.option("--local-usd-per-hour", type=float, default=0.0, help="What a local process is taken to cost."),
    ]

    @wraps(function)
    def with_which(**given: Any) -> Any:
        which = Which(**{name: given.pop(name) for name in Which.__dataclass_fields__})
        return function(which=which, **given)

    wrapped: Callable[..., Any] = with_which
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def caps_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The hard caps."""
    most = click.option("--max-instances", type=click.IntRange(min=0), required=True, help="Never more than these.")
    usd = click.option(
        "--max-usd-per-hour", type=float, default=math.inf, help="Never more than this; by default no limit."
    )
    capped: Callable[..., Any] = most(usd(function))
    return capped


def seconds(ctx: Any, parameter: Any, value: str) -> float:
    """An option's duration, "60s" or "2min", in s."""
    from symphony_dask.units import NS_PER_S, parse_duration_ns

    try:
        return parse_duration_ns(value, parameter.opts[0]) / NS_PER_S
    except BadInput as error:
        raise click.BadParameter(str(error)) from None
