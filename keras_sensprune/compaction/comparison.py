"""Both models on the same examples: which examples, and how far apart the answers may be."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_sensprune.errors import ModelError, argument_error

EXAMPLES = 16
# The two models add the same terms in another order, and constants that were added up position by position are added
# up once, in float64. float32's unit roundoff is u = 6e-8; 1e-4 of the largest output is u times 1700, the fan-in of a
# wide layer in the worst case, and 1e-5 is what is left where an output cancels to about 0. A unit that was wrongly
# removed or folded moves the outputs by its share of them, usually percents.
RELATIVE, ABSOLUTE = 1e-4, 1e-5
# Half precision: the kernels keep their sums in float32, so what differs is the rounding of each layer's result, of the
# folded bias and of the constants in it, a few u per layer to either side. Networks of 2 to 24 layers were up to 2 u
# apart; 8 u are 0.4 % in float16 (u = 2**-11) and 3 % in bfloat16 (u = 2**-8). That tells less than in float32.
HALF = {"float16": 8 * 2.0**-11, "bfloat16": 8 * 2.0**-8}


def example_inputs(model: Any, data: Any) -> Any:
    """Inputs in the structure of the model: the user's, or seeded random ones."""
    structure = model.input if not isinstance(model, keras.Sequential) else model.inputs[0]
    if data is not None:
        return _fitting(structure, data)
    generator = np.random.default_rng(0)

    def random(tensor: Any) -> Any:
        shape = tuple(tensor.shape)
        if None in shape[1:]:
            allowed = f"given, because an input has the shape {shape}, in which more than the batch is free"
            raise argument_error("data", allowed, None, "Pass a few example inputs, as for `model.predict`.")
        if tensor.dtype == "string":
            raise argument_error("data", "given, because an input takes strings", None, "Pass a few example inputs.")
        size = (shape[0] or EXAMPLES, *shape[1:])
        floats = keras.backend.is_float_dtype(tensor.dtype)
        values = generator.normal(size=size) if floats else generator.integers(0, 2, size)
        return values.astype(tensor.dtype)

    return keras.tree.map_structure(random, structure)


def _fitting(structure: Any, data: Any) -> Any:
    """The user's examples as arrays, if they fit the inputs."""
    wanted, given = keras.tree.flatten(structure), [np.asarray(leaf) for leaf in keras.tree.flatten(data)]
    fits = len(wanted) == len(given) and all(
        array.ndim == len(tensor.shape)
        and all(b is None or a == b for a, b in zip(array.shape, tensor.shape, strict=True))
        for tensor, array in zip(wanted, given, strict=True)
    )
    if not fits:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in wanted)
        raise argument_error("data", f"example inputs of the shapes {shapes}", [array.shape for array in given])
    arrays = [
        keras.ops.convert_to_tensor(array.tolist(), dtype="string")
        if tensor.dtype == "string"
        else array.astype(tensor.dtype)
        for tensor, array in zip(wanted, given, strict=True)
    ]
    return keras.tree.pack_sequence_as(structure, arrays)


def compare(model: Any, small: Any, inputs: Any, tolerance: float | None) -> tuple[float, float]:
    """Runs both models on the examples.

    Args:
        model: the given model.
        small: the compacted one.
        inputs: examples.
        tolerance: largest absolute difference allowed, or None for the default.

    Returns:
        (largest difference, what was allowed).

    Raises:
        ModelError: if a difference is larger, if only one of two answers is finite, or if an output is NaN throughout.
    """
    worst, widest, (relative, absolute) = 0.0, 0.0, default_tolerance(model)
    pairs = zip(*(keras.tree.flatten(m(inputs, training=False)) for m in (model, small)), strict=True)
    for number, (old, new) in enumerate(pairs):
        old, new = (np.asarray(keras.ops.cast(value, "float64")) for value in (old, new))
        finite = np.isfinite(old)
        if old.size and not finite.any():
            raise ModelError(
                f"Output {number} of {model.name!r} itself is NaN or infinite on all examples, so nothing can be "
                "compared. Pass `data=`, some real inputs."
            )
        largest = float(np.max(np.abs(old[finite]), initial=0.0))
        allowed = absolute + relative * largest if tolerance is None else tolerance
        with np.errstate(invalid="ignore"):
            equal = (old == new) | (np.isnan(old) & np.isnan(new))  # infinities too
            difference = float(np.max(np.where(equal, 0.0, np.abs(old - new)), initial=0.0))
        if not difference <= allowed:
            raise ModelError(
                f"The compacted model differs from {model.name!r} in output {number} by {difference:.3g}, more than "
                f"the tolerance {allowed:.3g}. A layer does not compute what it is expected to; nothing was changed."
            )
        worst, widest = max(worst, difference), max(widest, allowed)
    return worst, widest


def default_tolerance(model: Any) -> tuple[float, float]:
    """(share of the largest output, absolute part) for the coarsest dtype in which a layer computes."""
    dtypes = {layer.compute_dtype for layer in model._flatten_layers()}
    relative = max([RELATIVE, *(HALF[dtype] for dtype in dtypes & HALF.keys())])
    return relative, relative * ABSOLUTE / RELATIVE
