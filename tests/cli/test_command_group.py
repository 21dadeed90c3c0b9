"""How packages bring their commands, and how ``symphony`` is started."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import click
import pytest
from click.testing import CliRunner

from symphony_dask import __version__
from symphony_dask.cli import command_group
from symphony_dask.cli.command_group import COMPARE, ENTRY_POINTS, SCALE, SERVE, CommandsByPurpose, merged
from symphony_dask.cli.main import symphony


def command(name: str, help: str = "Do this.") -> click.Command:
    return click.Command(name, help=help)


def test_groups_of_one_name_are_merged_whichever_comes_first() -> None:
    for _ in range(2):
        ours = click.Group("fleet", help="Scale.", commands=[command("run")])
        theirs = click.Group("fleet", commands=[command("simulate")])
        for first, second in ((ours, theirs), (theirs, ours)):
            group = CommandsByPurpose("symphony")
            ours.commands, theirs.commands = {"run": command("run")}, {"simulate": command("simulate")}
            group.add_by_purpose({SCALE: [first]})
            group.add_by_purpose({SCALE: [second]})
            assert group.commands == {"fleet": ours}
            assert sorted(ours.commands) == ["run", "simulate"]


def test_commands_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two packages bring a command 'x': only groups can be merged"):
        merged(command("x"), command("x"))
    with pytest.raises(ValueError, match=r"two packages bring a command 'fleet run': rename one"):
        merged(click.Group("fleet", commands=[command("run")]), click.Group("fleet", commands=[command("run")]))


def test_a_purpose_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"purpose 'Other' is unknown: use one of Serve models, "):
        CommandsByPurpose("symphony").add_by_purpose({"Other": [command("x")]})


def test_commands_are_listed_under_their_purposes_in_one_column() -> None:
    group = CommandsByPurpose("symphony")
    group.add_by_purpose({COMPARE: [command("bench")], SERVE: [command("b"), command("a", "Do that.")]})
    shown = CliRunner().invoke(group, ["--help"]).output
    assert shown.endswith(
        "Serve models:\n  a      Do that.\n  b      Do this.\n\nCompare and measure:\n  bench  Do this.\n"
    )


def test_commands_that_cannot_be_loaded_end_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("ours", "ours_that_is_gone.cli:COMMANDS", ENTRY_POINTS)
    monkeypatch.setattr(command_group, "entry_points", lambda group: [broken])
    result = CliRunner().invoke(CommandsByPurpose("symphony"), ["--help"])
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: the commands in ours_that_is_gone.cli:COMMANDS cannot be loaded (No module named 'ours_that_is_gone'): "
        "install ours_that_is_gone.cli again\n"
    )


@pytest.mark.parametrize("start", [["symphony_dask"], ["dask", "symphony"]])
def test_it_starts_as_a_module_and_as_a_command_of_dask(start: list[str]) -> None:
    program = [sys.executable, "-m", *start]
    shown = subprocess.run([*program, "--help"], capture_output=True, text=True, check=True).stdout
    assert "Serve models:\n" in shown
    assert "  demo  " in shown
    version = subprocess.run([*program, "--version"], capture_output=True, text=True, check=True).stdout
    assert version == f"symphony, version {__version__}\n"


def test_a_command_that_is_none_is_answered_with_the_one_that_is_near() -> None:
    assert "No such command 'statsu'. Did you mean 'status'?" in CliRunner().invoke(symphony, ["statsu"]).output
    wrong = CliRunner().invoke(symphony, ["autoscale", "simulat"])
    assert "No such command 'simulat'. Did you mean 'simulate'?" in wrong.output


@pytest.mark.parametrize(
    ("words", "number", "completions"), [("symphony tr", 1, ["trace"]), ("symphony autoscale s", 2, ["simulate"])]
)
def test_shells_complete_commands(words: str, number: int, completions: list[str]) -> None:
    result = CliRunner().invoke(
        symphony,
        prog_name="symphony",
        env={"_SYMPHONY_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(number)},
    )
    assert result.output.split() == [f"plain,{name}" for name in completions]
