"""The recipes by name.

Imports Keras: import this module inside a function, after everything that can fail early.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras

from dicomsort.training.fit.full import fit_whole
from dicomsort.training.fit.transfer import fit_staged

if TYPE_CHECKING:
    from collections.abc import Callable

    from dicomsort.training.data.rendered import Rendered
    from dicomsort.training.fit.recipe import Fitted, Recipe
    from dicomsort.training.models.architectures import Architecture
    from dicomsort.training.progress import Reporter

RECIPES: dict[str, Callable[[Architecture, Rendered, Recipe, Reporter], Fitted]] = {
    "whole": fit_whole,
    "staged": fit_staged,
}


def fit(architecture: Architecture, rendered: Rendered, recipe: Recipe, reporter: Reporter) -> Fitted:
    """Train ``architecture`` on rendered images by its recipe; the seed fixes splits, weights and order."""
    keras.utils.set_random_seed(recipe.seed)
    return RECIPES[architecture.recipe](architecture, rendered, recipe, reporter)
