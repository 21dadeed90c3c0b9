"""A torch network that classifies images, with an SLO of 500 ms: ``python docs/examples/torch_image_model.py``.

Starts a Dask cluster of processes on this machine, has l(b) of the network measured there, asks for 200 images as they
would come one by one, and compares each answer with the network's own. Needs the extra torch.
"""

import time

import torch
from dask.distributed import Client, LocalCluster

from symphony_dask import Serving, as_completed

CLASSES = ("horizontal", "vertical", "diagonal")


def network() -> torch.nn.Module:
    """A small convolutional network for images of shape (1, 32, 32), with fixed weights: three directions of edges."""
    kernels = torch.tensor([
        [[-1.0, -1, -1], [2, 2, 2], [-1, -1, -1]],
        [[-1.0, 2, -1], [-1, 2, -1], [-1, 2, -1]],
        [[2.0, -1, -1], [-1, 2, -1], [-1, -1, 2]],
    ])  # fmt: skip
    edges = torch.nn.Conv2d(1, 3, 3, padding=1, bias=False)
    edges.weight.data = kernels[:, None]
    return torch.nn.Sequential(edges, torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()


def image(kind: int, at: int) -> torch.Tensor:
    """A bright line of one direction on noise."""
    x = torch.rand(1, 32, 32) * 0.2
    rows = torch.arange(32)
    if kind == 0:
        x[0, at] += 1
    elif kind == 1:
        x[0, :, at] += 1
    else:
        x[0, rows, (rows + at) % 32] += 1
    return x


def main() -> None:
    torch.manual_seed(0)
    net = network()
    images = [image(i % 3, i % 32) for i in range(200)]
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, resources={"GPU": 1}, dashboard_address=None)
    with cluster, Client(cluster) as client, Serving(client) as serving:
        model = serving.deploy("edges", net, slo="500ms", example=images[0], max_batch=32)
        for gpu_class, profile in model.profiles.items():
            print(f"measured on {gpu_class}: l(b) = {profile.alpha_ms:.3f} b + {profile.beta_ms:.3f} ms")

        begin = time.perf_counter()
        futures = []
        for x in images:
            futures.append(model.submit(x))
            time.sleep(0.002)
        in_time = sum(future.outcome == "ok" for future in as_completed(futures))
        print(f"measured: {in_time} of {len(images)} in time, in {time.perf_counter() - begin:.1f} s")

        with torch.inference_mode():
            expected = net(torch.stack(images))
        found = torch.stack([future.result() for future in futures])
        assert torch.allclose(found, expected, atol=1e-5)
        counts = {name: int((found.argmax(1) == i).sum()) for i, name in enumerate(CLASSES)}
        print(f"classes: {counts}")
        status = serving.status()["models"]["edges"]
        print(f"measured: {status['batches']} batches of {status['mean_batch']:.1f} on average")


if __name__ == "__main__":
    main()
