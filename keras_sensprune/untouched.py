"""The user's model comes back as it was, whatever was done with it meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras


@contextlib.contextmanager
def model_untouched(model: keras.Model) -> Iterator[None]:
    """Give the model back what calling it changes: recurrent states, collected losses, marks set on its layers."""
    saved = [(variable, variable.numpy().copy()) for variable in model.non_trainable_variables]
    layers = [(layer, dict(vars(layer)), list(layer._losses)) for layer in model._flatten_layers()]
    try:
        yield
    finally:
        for variable, value in saved:
            if variable.numpy().tobytes() != value.tobytes():
                variable.assign(value)
        for layer, attributes, losses in layers:
            for name in vars(layer).keys() - attributes.keys():
                del vars(layer)[name]
            vars(layer).update(attributes)
            layer._losses[:] = losses
