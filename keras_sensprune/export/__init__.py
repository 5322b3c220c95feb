"""All the TFLite: convert, rewrite the flatbuffer, check against Keras."""
