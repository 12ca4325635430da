"""Training: scan a data set, render it once, fit a model, measure it on what was held out, write a bundle.

trainer   the order of the steps below, the only module that knows it
dataset   folders to classes, sources, splits      tensors   every image rendered once, into a file mapped to memory
architectures, lite0, torchfile   the networks     fit       the two recipes: end to end, or a head on frozen features
predictions, calibration          what a model says of images, and how far its confidence can be believed
metrics, tally, bootstrap         the figures and their intervals
export, plots, pictures, card     what lies in a bundle
evaluate, judging, crossing       a bundle, or its recipe without some sources, judges a data set
reporting, cardtables             what training and evaluation tell alike
shortcuts, seen                   changes that must not matter; whether an image was trained on

TensorFlow, Keras and matplotlib are imported inside functions only.
"""
