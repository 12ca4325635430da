"""Recipes: a whole network, the end of a pretrained one, or a bundle trained further."""
