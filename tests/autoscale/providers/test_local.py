"""A fleet of processes on this machine, as a fleet: no scheduler is there for its workers to join."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoscale.fleet.fleet import Launch, SlotEnded, instance_of, token
from autoscale.providers.local import LocalFleet
from symphony_dask.errors import BadInput
from tests.helpers.cluster import wait_until


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LocalFleet]:
    """Its workers only sleep, which is their boot."""
    fleet = LocalFleet("test", "tcp://127.0.0.1:1", gpus=2, usd_per_hour=0.5, boot_s=600.0, folder=tmp_path / "fleet")
    yield fleet
    fleet.terminate([i.id for i in fleet.list()])
    wait_until(lambda: not [i for i in fleet.list() if i.live], "the end of all processes")


def launch(fleet: LocalFleet, slot: int, generation: int = 1) -> Launch:
    return Launch(slot, generation, fleet.offers()[0])


def test_a_process_is_listed_until_it_has_ended_and_then_as_ended(fleet: LocalFleet) -> None:
    made = fleet.launch(launch(fleet, 3, 1700000000000))
    assert (made.id, made.slot, made.gpus, made.usd_per_hour) == ("test.3.1700000000000", 3, 2, 0.5)
    assert [(i.id, i.state) for i in fleet.list()] == [(made.id, "running")]
    fleet.terminate([made.id])
    wait_until(lambda: fleet.list()[0].state == "ended", "its end")


def test_the_same_launch_twice_is_one_process_and_none_once_it_has_ended(fleet: LocalFleet) -> None:
    assert fleet.launch(launch(fleet, 0)).id == fleet.launch(launch(fleet, 0)).id
    assert len(fleet.list()) == 1
    fleet.terminate(["test.0.1"])
    wait_until(lambda: fleet.list()[0].state == "ended", "its end")
    with pytest.raises(SlotEnded):
        fleet.launch(launch(fleet, 0))
    assert fleet.launch(launch(fleet, 0, 2)).generation == 2


def test_processes_outlive_who_launched_them_and_are_found_by_others(fleet: LocalFleet, tmp_path: Path) -> None:
    folder = str(tmp_path / "fleet")
    program = (
        "import os, signal\n"
        "from autoscale.fleet.fleet import Launch\n"
        "from autoscale.providers.local import LocalFleet\n"
        f"fleet = LocalFleet('test', 'tcp://127.0.0.1:1', boot_s=600.0, folder={folder!r})\n"
        "fleet.launch(Launch(1, 1, fleet.offers()[0]))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [(i.id, i.state) for i in fleet.list()] == [("test.1.1", "running")]


def test_a_process_that_ends_by_itself_has_ended(fleet: LocalFleet, tmp_path: Path) -> None:
    fleet.launch(launch(fleet, 0))
    pid = wait_until(lambda: (tmp_path / "fleet" / "0-1").read_text().strip(), "its pid")
    os.killpg(int(pid), signal.SIGKILL)
    wait_until(lambda: fleet.list()[0].state == "ended", "its end")


def test_fleets_in_other_folders_are_other_fleets(fleet: LocalFleet, tmp_path: Path) -> None:
    fleet.launch(launch(fleet, 0))
    assert LocalFleet("other", "tcp://127.0.0.1:1", folder=tmp_path / "other").list() == []


def test_what_a_local_fleet_cannot_be(fleet: LocalFleet, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="fleet name 'a/b': give one without a slash"):
        LocalFleet("a/b", "tcp://127.0.0.1:1", folder=tmp_path)
    with pytest.raises(BadInput, match=r"instance types \['g5.xlarge'\] are not local"):
        fleet.describe_types(["g5.xlarge"])


def test_a_workers_name_speaks_of_its_instance() -> None:
    assert [instance_of(n) for n in ("i-0abc", "i-0abc-3", "live.0.17", "i-7")] == [
        "i-0abc",
        "i-0abc",
        "live.0.17",
        "i",
    ]


def test_tokens_are_of_slot_and_generation_and_short_enough_for_ec2() -> None:
    assert token("a", 1, 2) == token("a", 1, 2)
    assert len({token("a", 1, 2), token("b", 1, 2), token("a", 1, 3), token("a", 12, 3)}) == 4
    assert len(token("a" * 200, 10**6, 10**13)) <= 64


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shared = tmp_path / f"symphony-fleet-{os.getuid()}"
    LocalFleet("mine", "tcp://127.0.0.1:1")
    assert shared.stat().st_mode & 0o777 == 0o700
    shared.chmod(0o777)
    with pytest.raises(BadInput, match="not this user's alone"):
        LocalFleet("mine", "tcp://127.0.0.1:1")
    shared.rename(tmp_path / "elsewhere")
    shared.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="not this user's alone"):
        LocalFleet("mine", "tcp://127.0.0.1:1")
