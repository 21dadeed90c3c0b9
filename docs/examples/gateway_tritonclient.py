"""A model behind the gateway, asked with Triton's own HTTP client: ``python docs/examples/gateway_tritonclient.py``.

Starts a Dask cluster of processes on this machine, deploys a small torch network, starts the gateway, and infers.
Needs the extras torch and gateway, and tritonclient[http].
"""

import subprocess
import sys
import time

import numpy as np
import torch
import tritonclient.http
from dask.distributed import Client, LocalCluster

from symphony_dask import Serving


def main() -> None:
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, resources={"GPU": 1}, dashboard_address=None)
    with Client(cluster) as client, Serving(client) as serving:
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4)).eval()
        serving.deploy("net", net, slo="500ms", example=torch.zeros(16))

        # In a shell: dask symphony gateway --scheduler tcp://127.0.0.1:8786 --port 8000
        command = [sys.executable, "-m", "dask", "symphony", "gateway", "--scheduler", cluster.scheduler_address]
        gateway = subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True)
        try:
            url = gateway.stderr.readline().split()[2].rstrip(",")
            ask(url.removeprefix("http://"), net)
        finally:
            gateway.terminate()
            gateway.wait()


def ask(address: str, net: torch.nn.Module) -> None:
    with tritonclient.http.InferenceServerClient(address) as client:
        while not client.is_server_ready():  # it connects to the scheduler meanwhile
            time.sleep(0.05)
        print(client.get_model_metadata("net")["inputs"])
        x = np.random.default_rng(0).standard_normal((8, 16), np.float32)  # eight samples in one request
        given = tritonclient.http.InferInput("input", x.shape, "FP32")
        given.set_data_from_numpy(x)
        found = client.infer("net", [given], priority=1).as_numpy("output")
        print(found.argmax(axis=1))
        with torch.no_grad():
            assert np.allclose(found, net(torch.from_numpy(x)).numpy(), atol=1e-5)


if __name__ == "__main__":
    main()
