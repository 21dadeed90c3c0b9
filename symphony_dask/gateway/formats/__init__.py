"""Reads and writes HTTP requests and answers: the Open Inference Protocol v2, TensorFlow Serving's v1."""
