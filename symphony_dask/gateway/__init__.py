"""An HTTP front for models on a Dask cluster: the Open Inference Protocol v2, and TensorFlow Serving's ``predict``.

``upstream`` holds the lane to the scheduler, ``tensors`` and ``infer`` read and write what v2 puts on the wire,
``predict`` what TensorFlow Serving does, ``samples`` turns tensors into samples of a model and answers into tensors,
``app`` is the ASGI application, ``protocol`` the limits on connections, ``server`` the processes.
"""
