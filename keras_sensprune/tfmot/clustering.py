"""Weight clustering by TF-MOT that keeps zeros."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_sensprune.errors import ModelError, argument_error
from keras_sensprune.tfmot.backward import from_tf_keras
from keras_sensprune.tfmot.fitting import fit_keeping_zeros, fit_options, training_data
from keras_sensprune.tfmot.forward import to_tf_keras, weights_of
from keras_sensprune.tfmot.importing import import_cluster_weights, import_tf_keras, import_tfmot, quiet_warnings

_KERNELS = ("Dense", "Conv2D")


def cluster_preserving(
    model: Any,
    data: Any,
    *,
    loss: Any,
    clusters: int = 16,
    optimizer: Any = "adam",
    epochs: int = 1,
    batch_size: int = 32,
    verbose: int = 0,
) -> keras.Model:
    """Cluster the weights of a pruned model with TF-MOT, train it further, and keep its zeros.

    The kernels of Dense and Conv2D layers end with at most `clusters` values each, zero among them; other layers are
    trained as they are. Zeros that the training moves are set back. The result is a Keras 3 model again, so it can be
    reported and exported: `export_tflite(clustered, path, quantize="int8", representative_data=x)`.

    Args:
        model: a pruned Keras 3 or tf_keras model, Sequential or functional. It is not changed.
        data: training examples (x, y), or a `tf.data.Dataset` of batches.
        loss: name of a loss, a loss of tf_keras, or a function (y, y_pred).
        clusters: values per weight, zero among them, at least 3.
        optimizer: name of an optimizer of tf_keras, or such an optimizer.
        epochs: passes over the data; 0 clusters without training.
        batch_size: examples per step, if `data` are arrays.
        verbose: what `fit` prints, as in Keras.

    Returns:
        A functional Keras 3 model.

    Raises:
        ArgumentError: if an argument is not allowed.
        ModelError: if a layer cannot be moved to tf_keras, nothing can be clustered, or a zero was lost.
        MissingPackageError: if TF-MOT is not installed.

    Example:
        >>> import keras, numpy as np
        >>> from keras_sensprune import cluster_preserving
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="fc")])
        >>> kernel = np.random.default_rng(0).normal(size=(8, 4)) * (np.arange(32).reshape(8, 4) % 2)
        >>> model.set_weights([kernel, np.zeros(4)])
        >>> x = np.random.default_rng(1).normal(size=(32, 8)).astype("float32")
        >>> clustered = cluster_preserving(model, (x, x[:, :4]), loss="mse", clusters=4)
        >>> values = np.unique(clustered.layers[1].kernel.numpy())
        >>> len(values) <= 4, 0.0 in values
        (True, True)
    """
    options = fit_options(loss, optimizer, epochs, batch_size, verbose)
    if not isinstance(clusters, int) or isinstance(clusters, bool) or not 3 <= clusters <= 256:
        raise argument_error("clusters", "an integer from 3 to 256", clusters)
    examples = training_data(data)
    tf_keras, tfmot = import_tf_keras(), import_tfmot()
    source = to_tf_keras(from_tf_keras(model) if isinstance(model, tf_keras.Model) else model)
    masks = {layer.name: layer.kernel.numpy() != 0 for layer in source.layers if type(layer).__name__ in _KERNELS}
    if not masks:
        raise ModelError(f"Model {source.name!r} has no Dense or Conv2D layer to be clustered.")
    others = {
        f"{layer.name}/{i}": (variable, variable.numpy() != 0)
        for layer in source.layers
        if layer.name not in masks
        for i, variable in enumerate(weights_of(layer))
        if len(variable.shape) >= 2
    }
    with quiet_warnings():
        wrapped = _wrapped(tf_keras, tfmot, source, clusters, masks)
        kept = {name: (_original(wrapped, name), mask) for name, mask in masks.items()} | others
        fit_keeping_zeros(wrapped, examples, kept, options)
        result = from_tf_keras(tfmot.clustering.keras.strip_clustering(wrapped))
    for name, mask in masks.items():
        value = result.get_layer(name).kernel.numpy()
        if np.any(value[~mask] != 0) or len(np.unique(value)) > clusters:
            raise ModelError(f"Layer {name!r} has lost zeros or clusters in the training.")
    for name, (_, mask) in others.items():
        layer, number = name.rsplit("/", 1)
        if np.any(weights_of(result.get_layer(layer))[int(number)].numpy()[~mask] != 0):
            raise ModelError(f"Layer {layer!r} has lost zeros in the training.")
    return result


def _wrapped(tf_keras: Any, tfmot: Any, source: Any, clusters: int, masks: dict[str, np.ndarray]) -> Any:
    """The model with clustering around its layers; TF-MOT reads the centroids off their weights."""
    cluster = import_cluster_weights()
    start = tfmot.clustering.keras.CentroidInitialization.LINEAR

    def wrap(layer: Any) -> Any:
        if layer.name not in masks:
            return layer
        return cluster(layer, number_of_clusters=clusters, cluster_centroids_init=start, preserve_sparsity=True)

    return tf_keras.models.clone_model(source, clone_function=wrap)


def _original(model: Any, name: str) -> Any:
    """The variable that is trained; TF-MOT replaces the layer's own attribute by a clustered tensor."""
    found = [w for w in model.layers if getattr(getattr(w, "layer", None), "name", None) == name]
    return found[0].original_clusterable_weights["kernel"]
