"""Serves the models of a cluster over HTTP: the Open Inference Protocol v2, and TensorFlow Serving's ``predict``.

``upstream`` holds the lane to the scheduler, ``formats`` reads requests and writes responses of each protocol,
``app`` is the ASGI application, ``routes`` what it answers without asking a model, ``protocol`` the limits on
connections, ``server`` the processes.
"""
