"""A fleet that follows the load, of processes on this machine: ``python docs/examples/autoscale_local.py``.

A controller starts a first emulated GPU because a model waits for one, more when requests come faster than it can
serve, and ends them all when nobody asks any more. On AWS the same loop runs EC2 instances (``symphony autoscale``).
"""

import tempfile
import threading
import time

from dask.distributed import Client, LocalCluster

from autoscale.fleet.controller import Controller, by_policy
from autoscale.fleet.scheduler_view import DaskCluster
from autoscale.fleet.view import Settings
from autoscale.policies import registry
from autoscale.providers.local import LocalFleet
from symphony_dask import Serving
from symphony_dask.backends import Emulated

RATE_HZ = 150  # at batches of 8 (100 ms of an SLO of 200 ms) a GPU serves 80 a second


def main() -> None:
    scheduler = LocalCluster(n_workers=0, dashboard_address=None, worker_dashboard_address=None)
    with (
        scheduler,
        Client(scheduler) as client,
        Serving(client) as serving,
        DaskCluster(scheduler.scheduler_address) as seen,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
    ):
        fleet = LocalFleet("example", scheduler.scheduler_address, usd_per_hour=0.5, folder=folder)
        # All times some twenty times shorter than in life, so that this ends soon.
        caps = Settings(max_instances=3, max_usd_per_hour=2.0, settle_s=1.0, drain_s=5.0, retire_s=5.0)
        wanted = registry.Settings(maximum=3, boot_s=5.0, scale_in_window_s=4.0, last_delay_s=4.0)
        decide = by_policy("load_proportional", wanted, seen.signals)
        controller = Controller(caps, fleet, seen, decide, interval_s=0.5)
        loop = threading.Thread(target=controller.run)
        loop.start()
        try:
            follow(serving, fleet)
        finally:
            controller.stopped = True
            loop.join()
            fleet.terminate([instance.id for instance in fleet.list() if instance.live])
            wait(lambda: not live(fleet))


def follow(serving: Serving, fleet: LocalFleet) -> None:
    begin = time.perf_counter()

    def show(text: str) -> None:
        print(f"{time.perf_counter() - begin:5.1f} s  {len(live(fleet))} processes  {text}", flush=True)

    show("emulated GPUs; a model is to be deployed, and there is none")
    model = serving.deploy("m", Emulated(5.0, 60.0), slo="200ms", max_batch=16, timeout="60s")
    show("deployed on the first GPU")
    futures = []
    while serving.wait_ready() < 2 or len(futures) < 5 * RATE_HZ:
        futures += model.map([b""] * (RATE_HZ // 10), slo="200ms")
        time.sleep(0.1)
        if time.perf_counter() - begin > 90:
            raise TimeoutError("no second GPU within 90 s")
    show(f"{RATE_HZ} requests a second (emulated) for {len(futures) / RATE_HZ:.0f} s need a second GPU")
    recent = model.map([b""] * 8)
    in_time = sum(future.exception() is None for future in recent)
    show(f"{in_time} of the last {len(recent)} requests answered; now there are no more")
    wait(lambda: not live(fleet))
    show("all ended")


def live(fleet: LocalFleet) -> list:
    return [instance for instance in fleet.list() if instance.live]


def wait(condition, limit_s: float = 90.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the fleet did not end")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
