"""Networks: their architectures, their weights, and what a model that ships gives beside probabilities."""
