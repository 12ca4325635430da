"""How right a model is: predictions on held-out images, calibration, metrics, tables, pictures."""
