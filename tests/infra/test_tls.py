"""TLS material: made by infra/tls.sh, kept in Secrets Manager, fetched by the worker, used by Dask."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from distributed.security import Security

from infra.worker import tls
from symphony_dask.errors import BadInput
from tests.helpers.aws.account import Aws
from tests.helpers.certificates import SCRIPT, cluster_material
from tests.helpers.cluster import Cluster
from tests.helpers.command_line import tool


@pytest.fixture
def secret(aws: Aws) -> str:
    """The name of a secret that has nothing in it yet."""
    aws.client("secretsmanager").create_secret(Name="symphony/tls")
    return "symphony/tls"


def test_the_scripts_are_sound() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    checked = subprocess.run([tool("shellcheck"), str(SCRIPT)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_material_from_the_secret_makes_a_dask_cluster_with_tls(aws: Aws, secret: str, tmp_path: Path) -> None:
    manager = aws.client("secretsmanager")
    manager.put_secret_value(SecretId=secret, SecretString=cluster_material())
    found = tls.fetch(secret, tmp_path / "tls", client=manager)
    ca, cert, key = (str(tmp_path / "tls" / f"{name}.pem") for name in ("ca", "cert", "key"))
    assert found == tls.settings(ca, cert, key)
    security = Security(tls_ca_file=ca, tls_client_cert=cert, tls_client_key=key, require_encryption=True)
    options = ["--tls-ca-file", ca, "--tls-cert", cert, "--tls-key", key]
    with Cluster(1, preload=False, tls=options, security=security) as cluster:
        client = cluster.client()
        client.wait_for_workers(1, timeout=30)
        assert client.submit(sum, [1, 2]).result(timeout=30) == 3


def test_the_key_is_readable_by_owner_and_group_only(aws: Aws, secret: str, tmp_path: Path) -> None:
    manager = aws.client("secretsmanager")
    manager.put_secret_value(SecretId=secret, SecretString=cluster_material())
    tls.fetch(secret, tmp_path / "tls", client=manager)
    assert (tmp_path / "tls" / "key.pem").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "tls").stat().st_mode & 0o007 == 0


def test_new_material_replaces_old(aws: Aws, secret: str, tmp_path: Path) -> None:
    manager = aws.client("secretsmanager")
    for _ in range(2):
        text = cluster_material()
        manager.put_secret_value(SecretId=secret, SecretString=text)
        tls.fetch(secret, tmp_path, client=manager)
        assert (tmp_path / "key.pem").read_text() == json.loads(text)["key"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ca.pem", "cert.pem", "key.pem"]


@pytest.mark.parametrize("text", ["hunter2", '{"ca": "hunter2"}', '["hunter2"]'])
def test_a_secret_of_another_shape_is_refused_without_being_quoted(
    aws: Aws, secret: str, tmp_path: Path, text: str
) -> None:
    manager = aws.client("secretsmanager")
    manager.put_secret_value(SecretId=secret, SecretString=text)
    with pytest.raises(BadInput, match="has no TLS material") as raised:
        tls.fetch(secret, tmp_path, client=manager)
    assert "hunter2" not in str(raised.value)
    assert raised.value.__cause__ is None
