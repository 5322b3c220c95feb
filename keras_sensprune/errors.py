"""The exception types of the package, and the one function that words an argument error."""

from __future__ import annotations


class SensPruneError(Exception):
    """Base of every error that the package raises on purpose."""


class ArgumentError(SensPruneError, ValueError):
    """An argument has a value that is not allowed."""


class ModelError(SensPruneError, ValueError):
    """The model cannot be used as it is (unbuilt, nothing to prune, no gradients to be had)."""


class BackendError(SensPruneError, RuntimeError):
    """Keras runs on a backend other than TensorFlow."""


class DataError(SensPruneError, ValueError):
    """A data file or data set cannot be used."""


class TrainingError(SensPruneError, RuntimeError):
    """Training met a value that is not finite, or a label out of range."""


class ExportError(SensPruneError, RuntimeError):
    """The exported file could not be made, or it does not agree with the Keras model."""


class MissingPackageError(SensPruneError, ImportError):
    """An optional package is needed for what was asked."""


def argument_error(name: str, allowed: str, received: object, remedy: str = "") -> ArgumentError:
    """The error for argument `name`: what is allowed, what came, and what to do.

    Args:
        name: the argument as the user typed it.
        allowed: what would have been accepted, as the end of "must be ...".
        received: the value that came; shown by `repr`, cut to 120 characters.
        remedy: one sentence that says what to do; may be empty.

    Returns:
        An `ArgumentError`, to be raised by the caller.
    """
    shown = repr(received)
    if len(shown) > 120:
        shown = shown[:117] + "..."
    text = f"Argument `{name}` must be {allowed}. Received: {shown}."
    return ArgumentError(f"{text} {remedy}" if remedy else text)


def number_argument(name: str, value: object, allowed: str, low: float = 0.0) -> float:
    """`value` as a Python float if it is a finite number of at least `low`.

    Args:
        name: the argument as the user typed it.
        value: what came; booleans are not numbers here.
        allowed: what is accepted, for the message.
        low: the smallest allowed value.

    Returns:
        The value as a Python float, so that configurations are plain JSON.

    Raises:
        ArgumentError: if the value is no number, not finite, or below `low`.
    """
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise argument_error(name, allowed, value) from None
    finite = number == number and abs(number) != float("inf")
    if isinstance(value, (bool, str)) or not finite or number < low:
        raise argument_error(name, allowed, value)
    return number


def fraction_argument(name: str, value: object, remedy: str = "") -> float:
    """`value` as a Python float if it is a fraction in [0, 1), such as a sparsity.

    Args:
        name: the argument as the user typed it.
        value: what came.
        remedy: one sentence that says what to do about a value of 1 or more; may be empty.

    Returns:
        The value.

    Raises:
        ArgumentError: if the value is no such fraction.
    """
    allowed = "a fraction in [0, 1)"
    number = number_argument(name, value, allowed)
    if number >= 1.0:
        raise argument_error(name, allowed, value, remedy)
    return number


def integer_argument(name: str, value: object, low: int) -> int:
    """`value` if it is an integer of at least `low`.

    Args:
        name: the argument as the user typed it.
        value: what came; booleans are no integers here.
        low: the smallest allowed value.

    Returns:
        The value.

    Raises:
        ArgumentError: if the value is no such integer.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        remedy = "Pass int(...) of it." if hasattr(value, "__index__") and not isinstance(value, (bool, int)) else ""
        raise argument_error(name, f"an integer of at least {low}", value, remedy)
    return value


def choice_argument(name: str, value: object, choices: tuple[str, ...]) -> str:
    """`value` if it is one of `choices`.

    Args:
        name: the argument as the user typed it.
        value: what came.
        choices: the allowed strings.

    Returns:
        The value.

    Raises:
        ArgumentError: if the value is none of the choices.
    """
    if not isinstance(value, str) or value not in choices:
        raise argument_error(name, "one of " + ", ".join(repr(c) for c in choices), value)
    return value
