"""Training: scan a data set, render it once, fit a model, measure it on what was held out, write a bundle.

trainer   the order of the steps below, the only module that knows it
settings  what was asked for                       dataset   folders to classes and sources
tensors, cache      every image rendered once, by an engine's workers, into a file mapped to memory
identity, grouping  what must stay on one side     splitting  what is held out, and what an image weighs
architectures, lite0, torchfile, keras_networks    the networks, as a table
fit, whole, staged  the recipes: end to end, or behind a frozen beginning, both with checkpoints; views: what that sees
starting, restore   going on from a bundle, and the weights in its LiteRT model; comparing: what that made better
head, remembered    that model without its last layer, or with another; what a bundle keeps of some images
tune, trying        the search for a recipe, and one trial of it
feeding, augment    what Keras is fed
predictions, calibration         what a model says of images, and how far its confidence can be believed
distance, outputs                how far an image lies from those of the training; what a LiteRT model gives
metrics, tally, bootstrap        the figures and their intervals
quantize, export    the network in integers, and which is kept
writing, plots, pictures, card     what lies in a bundle
evaluate, judging, crossing      a bundle, or its recipe without some sources, judges a data set
reporting, cardtables            what training and evaluation tell alike
shortcuts, seen     changes that must not matter; whether an image was trained on

TensorFlow, Keras and matplotlib are imported inside functions only.
"""

from __future__ import annotations

PACKAGES = frozenset({"keras", "matplotlib", "tensorflow"})  # which an installation for sorting alone does without
