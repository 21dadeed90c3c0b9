"""The command ``symphony apply``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from symphony_dask.errors import BadInput


def apply_file(path: Path, scheduler: str, dry_run: bool, yes: bool, as_json: bool, force: bool = False) -> None:
    """Show what a declaration file changes on a cluster, and do it; raises ``SymphonyError``."""
    from symphony_dask.cli.scheduler_address import connected
    from symphony_dask.client import declarations

    try:
        wanted = declarations.read(path.read_text())
    except (OSError, BadInput) as error:
        raise BadInput(f"{path}: {error}") from None
    if as_json and not dry_run and not yes:
        raise BadInput("--json cannot ask whether to go on: add --yes or --dry-run")
    with connected(scheduler, install=True) as serving:
        actions = declarations.plan(wanted, serving.declared())
        todo = [action for action in actions if action.what != "keep"]
        for action in actions:
            click.echo("\n".join(action.lines()), err=as_json)
        applied = bool(todo) and not dry_run
        if applied and not yes:
            click.confirm(f"{len(todo)} of {len(actions)} models change; go on?", abort=True)
        for action in todo if applied else []:
            carry_out(serving, action, wanted, force)
            click.echo(f"{action.what} {action.name}: done", err=True)
    if as_json:
        from symphony_dask.cli.serve import print_json

        print_json({"actions": [asdict(action) for action in actions], "applied": applied})
    elif not todo:
        click.echo("nothing to do")


def carry_out(serving: Any, action: Any, wanted: dict[str, Any], force: bool = False) -> None:
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
