"""The boot program, from settings to started units, on an instance that does not exist."""

from __future__ import annotations

import importlib.resources
import os
import pwd
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from infra.worker import boot
from symphony_dask.errors import BadInput
from tests.helpers.aws.account import Aws
from tests.helpers.aws.imds import Instance
from tests.helpers.certificates import cluster_material

ME = pwd.getpwuid(os.getuid()).pw_name


class Machine:
    """A root folder, and a folder of commands that write down what they were called with."""

    def __init__(self, folder: Path, gpus: int) -> None:
        self.root, self._bin, self._calls = folder / "root", folder / "bin", folder / "calls"
        for path in (self._bin, self.root / "etc/symphony", self.root / "etc/systemd/system", self.root / "run"):
            path.mkdir(parents=True)
        for name in ("systemctl", "useradd"):
            self.command(name, f'echo "{name} $*" >> {self._calls}')
        listing = "\n".join(f"GPU {i}: NVIDIA A10G (UUID: GPU-{i})" for i in range(gpus))
        self.command("nvidia-smi", f"echo '{listing or 'No devices were found'}'")

    def command(self, name: str, script: str) -> None:
        path = self._bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def settings(self, **values: str) -> None:
        lines = {"SYMPHONY_CLUSTER": "demo", "AWS_DEFAULT_REGION": "us-east-1", **values}
        (self.root / "etc/symphony/settings.env").write_text("".join(f"{k}={v}\n" for k, v in lines.items()))

    def boot(self, **environment: str) -> subprocess.CompletedProcess[str]:
        path = f"{self._bin}:{os.environ['PATH']}"
        command = [sys.executable, "-m", "infra.worker.boot", "--root", str(self.root), "--user", ME]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path, **environment})

    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines() if self._calls.exists() else []

    def environment(self) -> dict[str, str]:
        return boot.read_environment(self.root / "run/symphony/worker.env")


def test_an_instance_of_four_gpus_starts_four_workers_and_two_watchers(
    aws: Aws, metadata: Instance, tmp_path: Path
) -> None:
    aws.client("secretsmanager").create_secret(Name="symphony/tls", SecretString=cluster_material())
    machine = Machine(tmp_path, gpus=4)
    machine.settings(SYMPHONY_SCHEDULER="tls://10.0.0.5:8786", SYMPHONY_SECRET="symphony/tls")
    metadata.values["local-ipv4"] = "10.0.0.7"
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    done = machine.boot(AWS_ENDPOINT_URL=aws.url, **keys)
    assert done.returncode == 0, done.stderr
    assert machine.calls() == [
        f"useradd --system --user-group --create-home {ME}",
        "systemctl daemon-reload",
        "systemctl start symphony-watchdog.service symphony-spot.service symphony-worker@0.service "
        "symphony-worker@1.service symphony-worker@2.service symphony-worker@3.service",
    ]
    found = machine.environment()
    assert found["SYMPHONY_SCHEDULER"] == "tls://10.0.0.5:8786"
    assert found["SYMPHONY_INSTANCE"] == "i-0abc"
    assert found["SYMPHONY_HOST"] == "10.0.0.7"
    assert found["DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION"] == "true"
    key = Path(found["DASK_DISTRIBUTED__COMM__TLS__WORKER__KEY"])
    assert key == machine.root / "run/symphony/tls/key.pem"
    assert "PRIVATE KEY" in key.read_text()
    written = "".join(p.read_text() for p in (machine.root / "etc").rglob("*") if p.is_file())
    assert "PRIVATE KEY" not in written + done.stdout + done.stderr


def test_the_tag_of_the_instance_names_the_scheduler(metadata: Instance, tmp_path: Path) -> None:
    machine = Machine(tmp_path, gpus=1)
    machine.settings(SYMPHONY_SCHEDULER="tcp://10.0.0.5:8786")
    metadata.values["tags/instance/symphony:scheduler"] = "tcp://10.0.0.99:8786"
    assert machine.boot().returncode == 0
    assert machine.environment()["SYMPHONY_SCHEDULER"] == "tcp://10.0.0.99:8786"


@pytest.mark.parametrize(
    ("gpus", "scheduler", "secret", "message"),
    [
        (0, "tcp://10.0.0.5:8786", "", "nvidia-smi found no GPU"),
        (1, "", "", "nothing says which scheduler this instance is to join"),
        (1, "tls://10.0.0.5:8786", "", "says tls, but the stack's TLS secret is not set"),
    ],
)
def test_what_cannot_work_starts_nothing(
    metadata: Instance, tmp_path: Path, gpus: int, scheduler: str, secret: str, message: str
) -> None:
    machine = Machine(tmp_path, gpus)
    machine.settings(SYMPHONY_SCHEDULER=scheduler, SYMPHONY_SECRET=secret)
    done = machine.boot()
    assert done.returncode != 0
    assert message in done.stderr
    assert not any("start" in call for call in machine.calls())


def test_a_value_that_would_begin_another_setting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no line break"):
        boot.write_environment(tmp_path / "worker.env", {"SYMPHONY_SCHEDULER": "tcp://a\nLD_PRELOAD=/tmp/x.so"})


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_the_units_are_sound(tmp_path: Path) -> None:
    folder = importlib.resources.files("infra.worker").joinpath("units")
    names = {unit: unit.replace("@", "@0") for unit in boot.UNITS}
    for unit, name in names.items():
        # The environment of the instance is not here, nor its user.
        text = folder.joinpath(unit).read_text().replace("/opt/symphony/bin/python", sys.executable)
        (tmp_path / name).write_text(text)
    paths = [str(tmp_path / name) for name in names.values()]
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *paths], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_worker_has_one_gpu_its_instances_name_and_a_limit_on_waiting() -> None:
    unit = importlib.resources.files("infra.worker").joinpath("units", boot.UNITS[0]).read_text()
    command = unit.split("ExecStart=")[1].split("\n#")[0].replace("\\\n", " ").split()
    assert "Environment=CUDA_VISIBLE_DEVICES=%i" in unit
    options = dict(pairwise(command))
    assert options["--name"] == "${SYMPHONY_INSTANCE}-%i"
    assert options["--resources"] == "GPU=1"
    assert options["--death-timeout"] == "120"
