"""Images to train on: found, rendered, grouped, split, varied, fed."""
