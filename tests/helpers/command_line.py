"""Commands: run in this process, what they print as JSON, how they refuse; and where installed programs are."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from symphony_dask.cli.main import symphony


def printed(*arguments: str) -> Any:
    """The JSON that a command prints, which must end well."""
    result = CliRunner().invoke(symphony, list(arguments))
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refusal(*arguments: str) -> str:
    """What a command says that must end with 1."""
    result = CliRunner().invoke(symphony, list(arguments))
    assert result.exit_code == 1, result.output
    return result.output


def tool(name: str) -> str:
    """The path of a program that the test extra installs, whether its environment is activated or not."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name) or name
