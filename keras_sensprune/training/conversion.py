"""AutoGraph: the user's functions as the caller has it, ours never: converting what needs no conversion takes seconds.

Keras does the same: `fit` converts nothing, and a loop of one's own in `tf.function` converts that loop, not Keras.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

_autograph = tf.__internal__.autograph
unconverted: Callable[[Any], Any] = tf.autograph.experimental.do_not_convert


def conversion() -> Callable[[Any], Any]:
    """What AutoGraph does where this is called, for functions that are called later, within `unconverted` ones.

    Returns:
        A function that takes a function, and gives it back such that AutoGraph converts it if it would here.
    """
    status = _autograph.control_status_ctx()
    return lambda function: _autograph.tf_convert(function, status)
