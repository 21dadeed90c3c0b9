"""Errors of whatever library end a command in one line."""

from __future__ import annotations

import click
import pytest
from botocore import exceptions as aws
from click.testing import CliRunner

from symphony_dask.cli.command import command
from symphony_dask.cli.error_line import in_one_line
from symphony_dask.errors import BadInput


def refused(code: str, text: str) -> aws.ClientError:
    return aws.ClientError({"Error": {"Code": code, "Message": text}}, "DescribeInstances")


class Unwritable(Exception):
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (BadInput("model 'x' is odd: mend it"), "model 'x' is odd: mend it"),
        (FileNotFoundError(2, "No such file or directory", "a.yaml"), "'a.yaml': no such file or directory"),
        (ModuleNotFoundError("No module named 'x'", name="x"), "x is not installed here"),
        (KeyError("lost"), "KeyError: 'lost' (not foreseen; SYMPHONY_DEBUG=1 shows where)"),
        (ValueError("a\nb\n" * 1000 + "\x00\udce9"), "ValueError: a b a b"),
        (Unwritable(), "Unwritable: Unwritable (not foreseen"),
        (aws.NoCredentialsError(), "AWS: Unable to locate credentials: set AWS_PROFILE, or AWS_ACCESS_KEY_ID"),
        (aws.NoRegionError(), "AWS: You must specify a region: give --region, or set AWS_DEFAULT_REGION"),
        (aws.ProfileNotFound(profile="x"), "AWS: The config profile (x) could not be found: check AWS_PROFILE"),
        (
            aws.EndpointConnectionError(endpoint_url="https://e"),
            'AWS: Could not connect to the endpoint URL: "https://e": check the network, the region (--region)',
        ),
        (
            refused("UnauthorizedOperation", "You are not authorized."),
            "AWS refused DescribeInstances (UnauthorizedOperation: You are not authorized): give the role",
        ),
        (
            refused("ExpiredToken", "The security token has expired"),
            "AWS refused DescribeInstances (ExpiredToken: The security token has expired): the credentials have",
        ),
        (
            refused("ValidationError", "Stack with id x does not exist"),
            "AWS refused DescribeInstances (ValidationError: Stack with id x does not exist): check its name, and",
        ),
    ],
)
def test_an_error_is_told_in_one_line_with_its_value_and_what_helps(error: Exception, text: str) -> None:
    said = in_one_line(error)
    assert said.startswith(text)
    assert len(said.splitlines()) == 1
    assert len(said) < 700
    assert said.isprintable()


@click.command()
@command
def broken() -> None:
    raise KeyError("lost")


def test_what_nobody_foresaw_shows_its_traceback_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(broken, [])
    assert (result.exit_code, result.stderr) == (
        1,
        "Error: KeyError: 'lost' (not foreseen; SYMPHONY_DEBUG=1 shows where)\n",
    )
    monkeypatch.setenv("SYMPHONY_DEBUG", "1")
    assert isinstance(CliRunner().invoke(broken, []).exception, KeyError)
