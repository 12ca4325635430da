"""What a training leaves: LiteRT and Keras models, and the bundle that they lie in."""
