"""Help texts: whole sentences, none cut, every command under a purpose, and shown fast."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from symphony_dask.cli.command_group import PURPOSES
from symphony_dask.cli.main import symphony

#: A text that begins so is no sentence.
FRAGMENTS = {"After", "As", "At", "Before", "By", "From", "How", "Its", "Of", "On", "To", "What", "Where", "Whether"}

#: What click leaves of a terminal of 80 columns.
WIDTH = 78


def commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


COMMANDS: dict[tuple[str, ...], click.Command] = {(): symphony, **dict(commands(symphony))}
GROUPS = [path for path, command in COMMANDS.items() if isinstance(command, click.Group)]


def is_sentence(text: str) -> bool:
    """Whether it begins with a capital and ends with a full stop, and its first word begins a whole sentence."""
    return text[:1].isupper() and text.endswith(".") and text.split()[0] not in FRAGMENTS


def test_every_purpose_has_commands() -> None:
    shown = CliRunner().invoke(symphony, ["--help"], terminal_width=WIDTH).output
    places = [shown.index(f"\n{purpose}:\n") for purpose in PURPOSES]
    assert places == sorted(places)


@pytest.mark.parametrize("path", GROUPS, ids=" ".join)
def test_no_summary_is_cut_at_eighty_columns(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(symphony, [*path, "--help"], terminal_width=WIDTH).output
    assert "..." not in shown.partition("\n\nOptions:\n")[2]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_a_command_says_what_it_does_in_sentences(path: tuple[str, ...]) -> None:
    paragraphs = (COMMANDS[path].help or "").split("\n\n")
    assert is_sentence(" ".join(paragraphs[0].split()))
    assert all(paragraph.strip().endswith(".") for paragraph in paragraphs)


@pytest.mark.parametrize("path", [path for path, command in COMMANDS.items() if command.params], ids=" ".join)
def test_every_option_says_what_it_does_in_sentences(path: tuple[str, ...]) -> None:
    helps = {p.opts[0]: p.help or "" for p in COMMANDS[path].params if isinstance(p, click.Option)}
    assert {name: text for name, text in helps.items() if not is_sentence(text)} == {}


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from symphony_dask.cli.main import symphony\n"
        f"for path in {[list(path) for path in COMMANDS]}:\n"
        "    assert CliRunner().invoke(symphony, [*path, '--help']).exit_code == 0\n"
        "heavy = ('asyncio', 'dask', 'distributed', 'numba', 'numpy', 'polars', 'pyarrow', 'rich', 'torch')\n"
        "print([m for m in heavy if m in sys.modules])\n"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
