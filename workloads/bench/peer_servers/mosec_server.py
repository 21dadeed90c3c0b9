"""Runs Mosec with dynamic batching: max_batch_size and max_wait_time; raw bytes in and out."""

import sys

import emulated_gpu
from mosec import Server, Worker


class Model(Worker):
    def deserialize(self, data):
        return data

    def serialize(self, data):
        return data

    def forward(self, data):
        emulated_gpu.run(len(data))
        return [b"ok"] * len(data)


if __name__ == "__main__":
    sys.argv[1:] = ["--port", str(emulated_gpu.PORT), "--timeout", "10000", "--log-level", "error"]
    server = Server()
    wait_ms = max(1, round(emulated_gpu.WAIT_MS))  # whole ms, and 0 would mean "for ever"
    server.append_worker(Model, num=emulated_gpu.GPUS, max_batch_size=emulated_gpu.MAX_BATCH, max_wait_time=wait_ms)
    server.run()
