"""The HTTP formats of requests and answers: Open Inference Protocol v2, and TensorFlow Serving's v1."""
