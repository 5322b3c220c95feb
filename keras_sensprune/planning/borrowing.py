"""A model is trained in phases, and afterwards is as it was before, apart from its weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from keras import Variable

from keras_sensprune.errors import ModelError
from keras_sensprune.training.machines import refuse_several_machines
from keras_sensprune.training.regularizer import SensitivityRegularizer
from keras_sensprune.training.session import detach
from keras_sensprune.training.targets import Target, check_model


@contextlib.contextmanager
def borrowed(model: Any) -> Iterator[list[tuple[Any, Any]]]:
    """A block after which everything but the weights is as before, however it is left.

    Args:
        model: a built and compiled Keras model.

    Returns:
        A context manager that yields (variable, value) of the optimizer's state at the beginning.

    Raises:
        ModelError: if the model is not compiled, or its optimizer has a learning rate that cannot be set.
    """
    check_compiled(model)
    optimizer = model.optimizer
    if not optimizer.built:
        with model.distribute_strategy.scope():
            optimizer.build(model.trainable_variables)
    state = [(variable, variable.numpy().copy()) for variable in optimizer.variables]
    on_layers = [
        (layer, name, value)
        for layer in model._flatten_layers()
        for name, value in vars(layer).items()
        if name.endswith("regularizer")
    ]
    on_variables = [(variable, variable.regularizer) for variable in model.weights]
    try:
        yield state
    finally:
        detach(model)
        for layer, name, value in on_layers:
            if getattr(layer, name) is not value:
                setattr(layer, name, value)
        for variable, value in on_variables:
            variable.regularizer = value
        put_back(state)
        forget_functions(model)


def check_compiled(model: Any) -> None:
    """Refuses a model that `sparsify` cannot train.

    Raises:
        BackendError, ArgumentError: see `check_model`.
        ModelError: if it is not built, not compiled, its learning rate is a schedule, or it is on several machines.
    """
    check_model(model)
    refuse_several_machines(model.distribute_strategy)
    if not model.compiled or model.optimizer is None:
        raise ModelError(f"Model {model.name!r} is not compiled. Call model.compile(optimizer, loss, metrics=[...]).")
    if not isinstance(model.optimizer.learning_rate, Variable):
        raise ModelError(
            f"The optimizer of model {model.name!r} has a learning rate schedule, but sparsify lets the rate fall in "
            "each phase itself. Compile the model with a number as learning rate."
        )


def put_back(state: Sequence[tuple[Any, Any]]) -> None:
    """Assigns each variable its value."""
    for variable, value in state:
        variable.assign(value)


@contextlib.contextmanager
def strength_of(model: Any, targets: Sequence[Target], strength: float | None) -> Iterator[None]:
    """A block in which the prunable weights have another strength; None leaves each its own.

    Keras builds the penalties into its compiled functions, so the block has functions of its own.
    """
    coupled = not all(target.regularizer.decoupled for target in targets)
    forget_functions(model, coupled)
    if strength is not None:
        for target in targets:
            target.variable.regularizer = SensitivityRegularizer(strength)
    try:
        yield
    finally:
        for target in targets:
            target.variable.regularizer = target.regularizer
        forget_functions(model, coupled)


def forget_functions(model: Any, of_evaluation: bool = True) -> None:
    """The next `fit` compiles again, and the next `evaluate` too."""
    model.train_function = None
    if of_evaluation:
        model.test_function = None
