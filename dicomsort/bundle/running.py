"""Runs a LiteRT file on one thread: what a bundle predicts by, and what is measured while a bundle is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dicomsort.bundle.tensors import read_outputs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Running:
    """A LiteRT model in this process; not to be shared between threads or pickled.

    ``inputs`` tells its inputs as LiteRT does, ``outputs`` its outputs by their names. Raises UnfitModelError for what
    ``read_outputs`` refuses, ValueError or RuntimeError where LiteRT does not take it. Nothing is allocated before it
    is run.
    """

    def __init__(self, model: bytes) -> None:
        """Load the file's content."""
        from ai_edge_litert.interpreter import Interpreter

        self.outputs = read_outputs(model)
        self._interpreter: Any = Interpreter(model_content=model, num_threads=1)
        self.inputs: list[dict[str, Any]] = self._interpreter.get_input_details()
        self._batch = 0

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the outputs by name for images float32 (n, height, width, 3), n from 1; ValueError, RuntimeError.

        A change of n costs time.
        """
        index = self.inputs[0]["index"]
        if len(images) != self._batch:
            self._interpreter.resize_tensor_input(index, images.shape)
            self._interpreter.allocate_tensors()
            self._batch = len(images)
        self._interpreter.set_tensor(index, images)
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(tensor.index) for name, tensor in self.outputs.items()}
