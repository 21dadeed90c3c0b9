"""Stands for a GPU in the servers beside: ``run(n)`` blocks for l(n), as our own emulated workers do.

These files run in the peers' own environments, without this project: settings come from the environment.
"""

import ctypes
import os
import threading
import time

ALPHA_MS = float(os.environ["ALPHA_MS"])
BETA_MS = float(os.environ["BETA_MS"])
GPUS = int(os.environ["GPUS"])
MAX_BATCH = int(os.environ["MAX_BATCH"])
WAIT_MS = float(os.environ["WAIT_MS"])
PORT = int(os.environ["PORT"])

_LAST_SLEEP_S = 0.0005
_this_thread = threading.local()


def run(n):
    """Take l(n) = alpha*n + beta, by ``symphony_dask.backends.emulated.sleep_until``'s method."""
    end = time.perf_counter() + (ALPHA_MS * n + BETA_MS) / 1000
    if not getattr(_this_thread, "on_time", False):
        _this_thread.on_time = True
        try:
            ctypes.CDLL(None).prctl(29, ctypes.c_ulong(1000), 0, 0, 0)  # timer slack of 1 us
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        except OSError:
            pass
    while (left := end - time.perf_counter()) > 0:
        time.sleep(left - _LAST_SLEEP_S if left > 2 * _LAST_SLEEP_S else left)
