"""The bridge to TF-MOT and tf_keras (Keras 2): there and back, quantization-aware training, clustering; zeros kept."""
