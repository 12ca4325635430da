"""Training: scan a data set, render it once, fit a model, measure it on what was held out, write a bundle.

trainer   the order of the steps below, the only module that knows it
dataset   folders to classes, sources, splits      tensors   every image rendered once, into a file mapped to memory
architectures, lite0, torchfile   the networks     fit       the two recipes: end to end, or a head on frozen features
calibration, metrics              what held-out predictions tell
export, plots, card               what lies in a bundle

TensorFlow, Keras and matplotlib are imported inside functions only.
"""
