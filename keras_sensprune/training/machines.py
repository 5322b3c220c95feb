"""Several machines: `fit` of Keras 3.15 cannot train there, and fails before it calls a callback."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context  # private: `_collective_ops_server_def` is named by a test

from keras_sensprune.errors import ModelError


def refuse_several_machines(strategy: Any | None = None) -> None:
    """Refuses a callback for `fit` where training is spread over several machines.

    Args:
        strategy: that of the model. None: the one whose scope this is called in; outside of any scope what counts is
            whether this process has joined other machines, which it does when it makes a MultiWorkerMirroredStrategy.

    Raises:
        ModelError: if there is more than one worker.
    """
    if strategy is None and tf.distribute.has_strategy():
        strategy = tf.distribute.get_strategy()
    if strategy is not None:
        resolver = strategy.cluster_resolver
        workers = 1 if resolver is None else len(resolver.cluster_spec().as_dict().get("worker", ()))
    else:
        server = context.context()._collective_ops_server_def
        workers = 1 if server is None else sum(len(job.tasks) for job in server.cluster.job if job.name == "worker")
    if workers > 1:
        raise ModelError(
            f"PruneAtEpochEnd works in `fit`, but `fit` of Keras 3.15 cannot train on {workers} machines "
            "(MultiWorkerMirroredStrategy). Use the step of make_pruning_step in a loop with strategy.run, as in "
            "examples/multi_worker.py. For a model that this machine trains alone, make the callback in the scope of "
            "its own strategy, for example tf.distribute.OneDeviceStrategy('CPU:0')."
        )
