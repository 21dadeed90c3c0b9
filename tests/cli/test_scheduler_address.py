"""Which scheduler a command is about, and that commands say in one line that it cannot be reached."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import dask.config
import pytest
from click.testing import CliRunner

from autoscale.cli.down import down
from autoscale.cli.orphans import orphans
from autoscale.cli.run import run as autoscale_run
from autoscale.cli.up import up
from symphony_dask.cli.commands.apply import apply
from symphony_dask.cli.commands.status import status
from symphony_dask.cli.commands.top import top
from symphony_dask.cli.scheduler_address import address_of
from symphony_dask.errors import BadInput
from workloads.cli.replay import replay

CLOSED = "tcp://127.0.0.1:9"
UNREACHABLE = (
    "Error: no scheduler can be reached at tcp://127.0.0.1:9 (connection refused): start it there, or give another "
    "address\n"
)


def told(command: click.Command, *arguments: str) -> str:
    result = CliRunner().invoke(command, list(arguments))
    assert result.exit_code == 1, result.output
    return result.stderr


FLEET = ["--provider", "local", "--fleet", "none"]


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (status, []),
        (top, []),
        (apply, ["{folder}/serving.yaml"]),
        (replay, ["{folder}"]),
        (up, [*FLEET, "--gpus", "1", "--max-instances", "1"]),
        (down, [*FLEET, "--yes"]),
        (orphans, FLEET),
        (autoscale_run, [*FLEET, "--max-instances", "1"]),
    ],
    ids=lambda value: value.name if isinstance(value, click.Command) else "",
)
def test_each_command_names_the_scheduler_that_cannot_be_reached_which_dask_s_setting_gives(
    command: click.Command, arguments: list[str], tmp_path: Path
) -> None:
    (tmp_path / "serving.yaml").write_text("models: {m: {emulated: '1,1', slo: 1s}}")
    given = [text.format(folder=tmp_path) for text in arguments]
    with dask.config.set({"scheduler-address": CLOSED}):
        if command is replay:
            from workloads.traces.transform import synth

            synth(tmp_path / "trace", requests=3, rate_hz=10.0)
            given = [str(tmp_path / "trace")]
        assert told(command, *given) == UNREACHABLE


def test_the_environment_names_the_scheduler_and_dask_s_own_half_minute_is_not_waited_for() -> None:
    program = "import os; os.environ['DASK_SCHEDULER_ADDRESS'] = 'tcp://127.0.0.1:9'; "
    program += "from symphony_dask.cli.main import main; main()"
    command = [sys.executable, "-c", program, "status"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", UNREACHABLE)


def test_without_any_scheduler_both_ways_to_name_one_are_told() -> None:
    result = CliRunner().invoke(status, [])
    assert result.exit_code == 2
    assert (
        "no scheduler is named: give --scheduler tcp://127.0.0.1:8786, or set DASK_SCHEDULER_ADDRESS" in result.output
    )


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("127.0.0.1", "scheduler address '127.0.0.1' names no port"),
        ("tcp://:8786", "scheduler address 'tcp://:8786' names no host"),
        ("tcp://a b:8786", "scheduler address 'tcp://a b:8786' names no host"),
        (
            "tcp://127.0.0.1:99999",
            "scheduler address 'tcp://127.0.0.1:99999' cannot be read (Port out of range 0-65535)",
        ),
        ("tcp://[::1:8786", "scheduler address 'tcp://[::1:8786' cannot be read (Invalid IPv6 URL)"),
        ("http://127.0.0.1:8786", "scheduler address 'http://127.0.0.1:8786' begins with 'http'"),
        ("missing.json", "scheduler file 'missing.json' cannot be read (No such file or directory)"),
    ],
)
def test_an_address_that_is_none_is_refused_with_what_one_looks_like(given: str, text: str) -> None:
    error = told(status, "--scheduler", given)
    assert error.startswith(f"Error: {text}")
    assert len(error.splitlines()) == 1
    with pytest.raises(BadInput):
        address_of(given)


def test_a_scheduler_file_stands_for_its_address(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"address": "tcp://10.0.0.1:1234"}))
    assert address_of(str(file)) == "tcp://10.0.0.1:1234"
    assert address_of("10.0.0.1:1234") == "tcp://10.0.0.1:1234"
    file.write_text("{}")
    with pytest.raises(BadInput, match="holds no address of a scheduler"):
        address_of(str(file))
