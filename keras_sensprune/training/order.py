"""Where our callback stands among the callbacks of a `fit`: first, with a closing one at the end of the list."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import keras


class Closing(keras.callbacks.Callback):
    """Comes last, so that it sees the weights which the other callbacks have restored at the end of training.

    Args:
        close: what is to be done then.
    """

    def __init__(self, close: Callable[[], None]):
        super().__init__()
        self._close = close

    def on_train_end(self, logs: Any = None) -> None:
        """Training is over."""
        self._close()


def stand_first(callback: Any, close: Callable[[], None], give_up: Callable[[], None]) -> bool:
    """Moves a callback to the front of the list in which Keras calls it, and puts a closing one at its end.

    Called from the callback's `set_model`. Keras walks through the old list meanwhile, which is left as it is.

    Args:
        callback: the callback.
        close: what the closing one does when training ends.
        give_up: what is done when any callback of the list raises, which ends the training.

    Returns:
        Whether the list was found; if not, nothing is changed.
    """
    found = _list_of(callback)
    if found is None:
        return False
    others = [other for other in found.callbacks if other is not callback and not isinstance(other, Closing)]
    found.callbacks = [callback, *others, Closing(close)]
    for name in [name for name in dir(found) if name.startswith("on_")]:
        setattr(found, name, _guarded(getattr(found, name), give_up))
    return True


def _guarded(hook: Callable[..., None], give_up: Callable[[], None]) -> Callable[..., None]:
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            hook(*args, **kwargs)
        except BaseException:
            give_up()
            raise

    return guarded


def _list_of(callback: Any) -> Any | None:
    """The CallbackList whose `set_model` is running and which holds the callback. Keras tells it to no callback."""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, keras.callbacks.CallbackList):
            return owner if any(other is callback for other in owner.callbacks) else None
        frame = frame.f_back  # type: ignore[assignment]
    return None
