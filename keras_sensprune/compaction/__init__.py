"""Dead units out: which units can go, and the smaller, equivalent Keras model."""
