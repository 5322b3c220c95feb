"""Which weights of a model are pruned: found through `variable.regularizer`; and how to mark them afterwards."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import keras

from keras_sensprune.errors import BackendError, ModelError, argument_error
from keras_sensprune.training.regularizer import SensitivityRegularizer

# Weight of a layer -> the layer's attributes that hold its regularizer (the first one that exists).
_REGULARIZER_OF = {
    "kernel": ("kernel_regularizer", "depthwise_regularizer"),
    "depthwise_kernel": ("depthwise_regularizer",),
    "pointwise_kernel": ("pointwise_regularizer",),
    "recurrent_kernel": ("recurrent_regularizer",),
    "embeddings": ("embeddings_regularizer",),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """A weight to be pruned.

    Attributes:
        variable: the Keras variable; its identity is the key in memory.
        regularizer: the `SensitivityRegularizer` on it.
        layer: the layer that owns it, or the model itself.
        label: its path, for messages only (two weights can share it).
    """

    variable: Any
    regularizer: SensitivityRegularizer
    layer: Any
    label: str


def check_model(model: Any) -> None:
    """Refuses what can never work: another backend, no Keras model, an unbuilt one.

    Raises:
        BackendError: if Keras does not run on TensorFlow.
        ArgumentError: if `model` is no Keras model.
        ModelError: if the model has no weights yet.
    """
    if keras.config.backend() != "tensorflow":
        raise BackendError(
            f"keras_sensprune needs the TensorFlow backend of Keras, but Keras runs on {keras.config.backend()!r}. "
            'Set the environment variable KERAS_BACKEND="tensorflow" before Keras is imported.'
        )
    if not isinstance(model, keras.Model):
        raise argument_error("model", "a Keras model", model)
    if not model.built:
        raise ModelError(
            f"Model {model.name!r} is not built, so it has no weights yet. "
            "Give it an input shape (`keras.Input`), call it once on data, or call `model.build(input_shape)`."
        )


def owners(model: Any) -> dict[int, Any]:
    """id(variable) -> the layer that owns it directly; nested layers before the layers that contain them."""
    found: dict[int, Any] = {}
    outer_first = list(model._flatten_layers(include_self=True))  # a layer comes before those inside it
    for layer in reversed(outer_first):
        for variable in layer._trainable_variables:
            found.setdefault(id(variable), layer)
    return found


def parameters(model: Any) -> int:
    """Number of parameters, as `sparsity_report` counts them: frozen ones are some, moving statistics are not."""
    layers = model._flatten_layers(include_self=True)
    return sum(math.prod(v.shape) for v in {id(v): v for layer in layers for v in layer._trainable_variables}.values())


def prunable_weights(model: Any) -> list[Target]:
    """The weights that carry a `SensitivityRegularizer`, in the order of `model.trainable_variables`.

    Args:
        model: a built Keras model of any kind.

    Returns:
        One `Target` per weight; a shared weight once.

    Raises:
        BackendError, ArgumentError, ModelError: see `check_model`; ModelError also if there is no such weight.
    """
    check_model(model)
    layers = owners(model)
    targets = [
        Target(v, v.regularizer, layers.get(id(v), model), v.path)
        for v in model.trainable_variables
        if isinstance(v.regularizer, SensitivityRegularizer)
    ]
    if not targets:
        raise ModelError(
            f"Model {model.name!r} has no trainable weight with a SensitivityRegularizer, so there is nothing to "
            "prune. Build its layers with `kernel_regularizer=SensitivityRegularizer(1e-4)`, or call "
            "`add_regularizer(model, SensitivityRegularizer(1e-4))`."
        )
    return targets


def add_regularizer(model: Any, regularizer: SensitivityRegularizer, layers: Iterable[Any] | None = None) -> list[str]:
    """Puts a regularizer on the kernels of a model that is already built, so that `fit`, save and clone keep it.

    Args:
        model: a built Keras model: Sequential, functional, subclassed, pretrained.
        regularizer: one `SensitivityRegularizer`, shared by all these weights.
        layers: layers or layer names; None means every layer with a kernel (Dense, convolutions, recurrent layers,
            attention projections), but frozen ones that have another regularizer. Embeddings are taken only if they
            are named here.

    Returns:
        The paths of the weights that now carry the regularizer.

    Raises:
        ArgumentError: if `regularizer` or a name in `layers` is wrong, if a named layer has no kernel, or if a
            weight that is trained has another regularizer already.
        ModelError: if the model is not built or has no such layer.

    Example:
        >>> import keras
        >>> from keras_sensprune import SensitivityRegularizer, add_regularizer
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")], name="net")
        >>> add_regularizer(model, SensitivityRegularizer(1e-4), layers=["head"])
        ['net/head/kernel']
    """
    check_model(model)
    if not isinstance(regularizer, SensitivityRegularizer):
        raise argument_error("regularizer", "a SensitivityRegularizer", regularizer)
    everything = list(model._flatten_layers(include_self=False))
    chosen = everything if layers is None else _named_layers(everything, layers)
    plan = [entry for layer in chosen for entry in _kernels(layer, embeddings=layers is not None)]
    if layers is None:
        plan = [entry for entry in plan if entry[1].trainable or not _has_another(entry[1])]
    for layer, variable, _ in plan:
        if _has_another(variable):
            raise argument_error(
                "layers",
                "layers without another regularizer",
                f"{layer.name}: {type(variable.regularizer).__name__}",
                "Remove that regularizer first, or leave the layer out.",
            )
    if not plan:
        raise ModelError(f"Model {model.name!r} has no layer with a kernel among those asked for.")
    for layer, variable, attribute in plan:
        setattr(layer, attribute, regularizer)
        variable.regularizer = regularizer
    _keep_in_config(everything, regularizer, {id(variable) for _, variable, _ in plan})
    return list(dict.fromkeys(variable.path for _, variable, _ in plan))


def _has_another(variable: Any) -> bool:
    return variable.regularizer is not None and not isinstance(variable.regularizer, SensitivityRegularizer)


def _named_layers(everything: list[Any], layers: Iterable[Any]) -> list[Any]:
    """The layers meant by names or objects, each with the layers inside it."""
    if isinstance(layers, (str, keras.layers.Layer)):
        layers = [layers]
    by_name: dict[str, list[Any]] = {}
    for layer in everything:
        by_name.setdefault(layer.name, []).append(layer)
    chosen: list[Any] = []
    for layer in layers:
        found = by_name.get(layer, []) if isinstance(layer, str) else [x for x in everything if x is layer]
        if not found:
            names = ", ".join(sorted(by_name))
            raise argument_error("layers", "names or layers of this model", layer, f"Its layers are: {names}.")
        inside = [part for outer in found for part in outer._flatten_layers()]
        if not any(_kernels(part, embeddings=True) for part in inside):
            raise argument_error("layers", "layers with a kernel", layer, "Leave it out.")
        chosen.extend(inside)
    return chosen


def _kernels(layer: Any, embeddings: bool) -> list[tuple[Any, Any, str]]:
    """(layer, variable, name of the regularizer's attribute) for each kernel that `layer` owns directly."""
    return [found[:3] for found in _named_kernels(layer) if embeddings or found[3] != "embeddings"]


def _named_kernels(layer: Any) -> list[tuple[Any, Any, str, str]]:
    """(layer, variable, name of the regularizer's attribute, name of the variable's) for each kernel of `layer`."""
    own = {id(v) for v in layer._trainable_variables}
    found = []
    for name, attributes in _REGULARIZER_OF.items():
        variable = getattr(layer, "_" + name, None)
        variable = getattr(layer, name, None) if variable is None else variable
        attribute = next((a for a in attributes if hasattr(layer, a)), None)
        if id(variable) in own and attribute:
            found.append((layer, variable, attribute, name))
    return found


def kernel_name(target: Target) -> str | None:
    """Under which name (`"kernel"`, `"recurrent_kernel"`, ...) the target's layer holds it; None for anything else."""
    found = (name for _, variable, _, name in _named_kernels(target.layer) if variable is target.variable)
    return next(found, None)


def holds_kernel(layer: Any) -> bool:
    """Whether a layer owns a kernel directly, regularized or not."""
    return bool(_named_kernels(layer))


def _keep_in_config(everything: list[Any], regularizer: SensitivityRegularizer, marked: set[int]) -> None:
    """Layers such as MultiHeadAttention build their inner layers from a private copy of the argument."""
    for layer in everything:
        inner = {id(v) for v in layer.trainable_variables} & marked
        if inner and not layer._trainable_variables and hasattr(layer, "_kernel_regularizer"):
            layer._kernel_regularizer = regularizer
