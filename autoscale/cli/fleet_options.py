"""Options that fleet commands share: which fleet, its caps, and how long EC2 and drains take."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from symphony_dask.cli.options import gathered, seconds
from symphony_dask.errors import BadInput

if TYPE_CHECKING:
    from autoscale.fleet.controller import Notices
    from autoscale.fleet.fleet import FleetProtocol
    from autoscale.fleet.view import Settings

R = TypeVar("R")


@dataclass(frozen=True)
class WhichFleet:
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

    def make(self, scheduler: str | None) -> FleetProtocol:
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

    def notices(self) -> Notices | None:
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


def fleet_options(function: Callable[..., R]) -> Callable[..., R]:
    """Add the options of ``WhichFleet``; the command takes it as ``which_fleet``."""
    options = [
        click.option(
            "--fleet", default="symphony", show_default=True,
            help="Name the fleet by this tag of its instances.",
        ),
        click.option(
            "--provider", type=click.Choice(["ec2", "local"]), default="ec2", show_default=True,
            help="Launch EC2 instances, or processes on this machine.",
        ),
        click.option(
            "--stack", help="Take template, subnets and spot notices from this CloudFormation stack of "
            "infra/template.yaml.",
        ),
        click.option(
            "--launch-template", help="Launch by this EC2 template, a name or an id. By default, use the stack's."
        ),
        click.option(
            "--type", "types", multiple=True, help="Launch this EC2 instance type. Repeat it, the preferred one first."
        ),
        click.option(
            "--market", "markets", multiple=True, type=click.Choice(["on-demand", "spot"]),
            help="Launch on this market. Repeat it, the preferred one first.",
        ),
        click.option(
            "--zone", "zones", multiple=True, metavar="ZONE[=SUBNET]",
            help="Launch in this availability zone. Repeat it for several. By default, use the stack's.",
        ),
        click.option("--region", help="Use this AWS region. By default, use the one of your AWS settings."),
        click.option(
            "--price", "prices", multiple=True, metavar="TYPE=USD",
            help="Take this as the price of an hour on demand, before the price table. Repeat it for several types.",
        ),
        click.option(
            "--local-usd-per-hour", type=float, default=0.0, help="Take a local process to cost this much.",
        ),
    ]  # fmt: skip
    decorated = gathered(WhichFleet, "which_fleet")(function)
    for option in reversed(options):
        decorated = option(decorated)
    return decorated


@dataclass(frozen=True)
class Caps:
    """What a fleet may never exceed."""

    max_instances: int
    max_usd_per_hour: float


def caps_options(function: Callable[..., R]) -> Callable[..., R]:
    """Add the options of ``Caps``; the command takes it as ``caps``."""
    instances = click.option(
        "--max-instances", type=click.IntRange(min=0), required=True, help="Never have more instances than this."
    )
    usd = click.option(
        "--max-usd-per-hour", type=float, default=math.inf, help="Never spend more than this. By default, no limit."
    )
    decorated: Callable[..., R] = instances(usd(gathered(Caps, "caps")(function)))
    return decorated


dry_run_option = click.option("--dry-run", is_flag=True, help="Show the plan and do nothing.")
settle_option = click.option(
    "--settle", "settle_s", default="90s", show_default=True, callback=seconds,
    metavar="DURATION",
    help="Expect EC2 to list what it launched within this time; launch nothing until the scheduler is that old.",
)  # fmt: skip
drain_option = click.option(
    "--drain", "drain_s", default="60s", show_default=True, callback=seconds,
    metavar="DURATION", help="Give batches on a worker that goes this long to end; then run them elsewhere.",
)  # fmt: skip


def settings_of(which_fleet: WhichFleet, caps: Caps, **times_s: Any) -> Settings:
    """What a step goes by. times_s: of ``Settings``, as the options give them."""
    from autoscale.fleet.view import Settings

    # A new process is listed at once, so nothing has to settle.
    quick = {"settle_s": 5.0, "retry_s": 1.0} if which_fleet.provider == "local" else {}
    return Settings(caps.max_instances, caps.max_usd_per_hour, **{**times_s, **quick})
