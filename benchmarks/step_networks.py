"""The networks whose training step is timed, on random data of the right shape."""

NETWORKS = ("lenet-300-100", "lenet-5", "vgg", "lstm", "mobilenet-v2")
BATCH = {"mobilenet-v2": 16}


def build(name: str, outputs: int, regularizer, batch: int | None = None):
    """(model that ends in logits, x, y) with the regularizer on every kernel."""
    import keras
    import tensorflow as tf
    from keras import layers

    def dense(units, activation=None):
        return layers.Dense(units, activation, kernel_regularizer=regularizer)

    def conv(filters, size):
        return layers.Conv2D(filters, size, padding="same", activation="relu", kernel_regularizer=regularizer)

    if name == "lenet-300-100":
        shape, body = (28, 28), [layers.Flatten(), dense(300, "relu"), dense(100, "relu"), dense(outputs)]
    elif name == "lenet-5":
        shape = (28, 28, 1)
        body = [conv(20, 5), layers.MaxPooling2D(), conv(50, 5), layers.MaxPooling2D(), layers.Flatten()]
        body += [dense(500, "relu"), dense(outputs)]
    elif name == "vgg":
        shape, body = (32, 32, 3), []
        for filters in (16, 32, 64):
            body += [conv(filters, 3), conv(filters, 3), layers.MaxPooling2D()]
        body += [layers.Flatten(), dense(256, "relu"), dense(outputs)]
    elif name == "lstm":
        recurrent = layers.LSTM(128, kernel_regularizer=regularizer, recurrent_regularizer=regularizer)
        shape, body = (28, 28), [recurrent, dense(outputs)]
    else:
        shape, body = (96, 96, 3), None
    if body is not None:
        model = keras.Sequential([keras.Input(shape), *body])
    else:
        model = keras.applications.MobileNetV2(
            shape, weights=None, classes=outputs, classifier_activation=None, pooling="avg"
        )
        for layer in model._flatten_layers():
            for variable in layer.trainable_variables if regularizer is not None else ():
                if len(variable.shape) > 1:
                    variable.regularizer = regularizer
    batch = batch or BATCH.get(name, 128)
    keras.utils.set_random_seed(1)
    x = tf.random.normal((batch, *shape))
    return model, x, tf.random.uniform((batch,), 0, outputs, "int32")


def count(name: str, outputs: int) -> int:
    """Entries of all kernels."""
    import math

    model, _, _ = build(name, outputs, None, 1)
    return sum(math.prod(v.shape) for v in model.trainable_variables if len(v.shape) > 1)
