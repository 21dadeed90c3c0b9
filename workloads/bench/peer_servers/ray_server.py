"""Runs Ray Serve over HTTP with ``@serve.batch``: max_batch_size and batch_wait_timeout_s; one replica a GPU.

The replica's event loop stays free while a batch runs in a thread, so that it can take in requests meanwhile.
"""

import asyncio
import os
import sys
import threading

import emulated_gpu
import ray
from ray import serve
from starlette.responses import Response


@serve.deployment(
    num_replicas=emulated_gpu.GPUS,
    max_ongoing_requests=4 * emulated_gpu.MAX_BATCH,
    ray_actor_options={"num_cpus": 0.1},
)
class Model:
    @serve.batch(max_batch_size=emulated_gpu.MAX_BATCH, batch_wait_timeout_s=emulated_gpu.WAIT_MS / 1000)
    async def infer(self, bodies):
        await asyncio.to_thread(emulated_gpu.run, len(bodies))
        return [b"ok"] * len(bodies)

    async def __call__(self, request):
        return Response(await self.infer(await request.body()))


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(__file__))
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        logging_level="error",
        runtime_env={"env_vars": {"PYTHONPATH": os.path.dirname(os.path.abspath(__file__))}},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": emulated_gpu.PORT, "access_log": False})
    serve.run(Model.bind(), route_prefix="/inference")
    threading.Event().wait()
