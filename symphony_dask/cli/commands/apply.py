"""``symphony apply``: has a cluster serve the models that a YAML file declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import gathered, json_option, yes_option
from symphony_dask.cli.output import print_json
from symphony_dask.cli.scheduler_address import scheduler_option
from symphony_dask.errors import BadInput

if TYPE_CHECKING:
    from symphony_dask.client.declarations import Action, Declared
    from symphony_dask.client.serving import Serving


@dataclass(frozen=True)
class ApplyOptions:
    """Which cluster is to serve what a file declares, and what need not be asked."""

    file: Path
    scheduler: str
    dry_run: bool
    yes: bool
    force: bool


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@scheduler_option()
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@yes_option
@click.option(
    "--force",
    is_flag=True,
    help="Deploy versions that take other samples too, and change or remove models that pipelines use.",
)
@json_option
@gathered(ApplyOptions)
@command
def apply(options: ApplyOptions, as_json: bool) -> None:
    """Deploy, update and remove models as a YAML FILE declares.

    Shows what it changes first: it deploys new models, gives models whose declaration changed a new version, and
    undeploys models that the file no longer declares. It leaves models alone that programs deployed.
    """
    wanted = read_file(options.file)
    if as_json and not options.dry_run and not options.yes:
        raise BadInput("--json cannot ask whether to go on: add --yes or --dry-run")
    actions, applied = apply_declared(wanted, options, err=as_json)
    if as_json:
        print_json({"actions": [asdict(action) for action in actions], "applied": applied})
    elif all(action.what == "keep" for action in actions):
        click.echo("nothing to do")


def apply_declared(
    wanted: Mapping[str, Declared], options: ApplyOptions, *, err: bool
) -> tuple[Sequence[Action], bool]:
    """Show what declarations change on a cluster, and do it; gives the actions and whether they were done.

    err: show on standard error. Raises ``SymphonyError``.
    """
    from symphony_dask.cli.scheduler_check import connected
    from symphony_dask.client import declarations

    with connected(options.scheduler, install=True) as serving:
        actions = declarations.plan(wanted, serving.declared())
        todo = [action for action in actions if action.what != "keep"]
        for action in actions:
            click.echo("\n".join(action.lines()), err=err)
        if not todo or options.dry_run:
            return actions, False
        if not options.yes:
            click.confirm(f"{len(todo)} of {len(actions)} models change; go on?", abort=True)
        for action in todo:
            carry_out(serving, action, wanted, options.force)
            click.echo(f"{action.what} {action.name}: done", err=True)
    return actions, True


def carry_out(serving: Serving, action: Action, wanted: Mapping[str, Declared], force: bool = False) -> None:
    """Do what one action says (force: as of ``Serving.deploy`` and ``undeploy``); raises ``SymphonyError``."""
    from symphony_dask.client import declarations

    name = action.name
    if action.what in ("deploy", "update"):
        serving.deploy(name, declarations.model_of(wanted[name]), force=force, **declarations.options_of(wanted[name]))
    elif action.what == "share":
        serving.set_canary(name, wanted[name]["canary"])
    elif action.what == "undeploy":
        serving.undeploy(name, force=force)
    else:
        {"promote": serving.promote, "rollback": serving.rollback}[action.what](name)


def read_file(file: Path) -> dict[str, Declared]:
    """What the file declares; raises ``BadInput`` that names the file."""
    from symphony_dask.client import declarations

    try:
        return declarations.read(file.read_text())
    except (OSError, BadInput) as error:
        raise BadInput(f"{file}: {error}") from None
