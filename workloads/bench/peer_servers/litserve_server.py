"""Runs LitServe: max_batch_size and batch_timeout; one worker a GPU."""

import emulated_gpu
import litserve


class Model(litserve.LitAPI):
    def setup(self, device):
        pass

    def decode_request(self, request):
        return request["x"]

    def batch(self, inputs):
        return list(inputs)

    def predict(self, x):
        n = len(x) if isinstance(x, list) else 1
        emulated_gpu.run(n)
        return ["ok"] * n if isinstance(x, list) else "ok"

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return {"answer": output}


if __name__ == "__main__":
    api = Model(max_batch_size=emulated_gpu.MAX_BATCH, batch_timeout=emulated_gpu.WAIT_MS / 1000, api_path="/inference")
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=emulated_gpu.GPUS, timeout=10)
    server.run(host="127.0.0.1", port=emulated_gpu.PORT, log_level="error", generate_client_file=False)
