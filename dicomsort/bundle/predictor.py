"""Runs a bundle's model on LiteRT: one thread, calibrated probabilities, builtin operators only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dicomsort.bundle.spec import MODEL_NAME, Bundle, read_model
from dicomsort.errors import BundleError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK = 1  # images a step: on one core larger batches are no faster, and each change of size costs 0.2 s


class Predictor:
    """A bundle's model, ready to run in this process; not to be shared between threads or pickled.

    Raises BundleError where the model's file is not the one the bundle pins, is no LiteRT model, takes or gives other
    tensors than bundle.json says, or has operators beyond LiteRT's builtin ones.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Load the model; nothing is allocated before its tensors are found to be what the bundle says."""
        from ai_edge_litert.interpreter import Interpreter

        model = read_model(bundle)
        try:
            _check_operators(model, bundle)
            self._interpreter: Any = Interpreter(model_content=model, num_threads=1)
        except (ValueError, RuntimeError) as error:
            raise BundleError(_message(bundle, "a LiteRT model", str(error))) from error
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        _check_tensors(bundle, inputs, outputs)
        self.bundle = bundle
        self._input, self._output = inputs[0]["index"], outputs[0]["index"]
        self._batch = 0

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return calibrated class probabilities for rendered images.

        ``images``: uint8 (N, height, width, 3), 0..255, as ``pixels.render`` gives them; N may be 0. Returns float32
        (N, classes) in the order of ``bundle.labels``; rows sum to 1. Raises ValueError for another shape or dtype.
        """
        import numpy as np

        if images.dtype != np.uint8 or images.shape[1:] != self.bundle.input_shape:
            msg = f"images: expected uint8 (N, {self.bundle.input_shape}), received {images.dtype} {images.shape}"
            raise ValueError(msg)
        raw = [self._invoke(images[start : start + CHUNK]) for start in range(0, len(images), CHUNK)]
        if not raw:
            return np.zeros((0, len(self.bundle.labels)), np.float32)
        return calibrate(np.concatenate(raw), self.bundle.temperature)

    def _invoke(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the model's own output for one chunk, float32 (n, classes)."""
        try:
            if len(images) != self._batch:
                self._interpreter.resize_tensor_input(self._input, images.shape)
                self._interpreter.allocate_tensors()
                self._batch = len(images)
            self._interpreter.set_tensor(self._input, images.astype("float32"))
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise BundleError(_message(self.bundle, f"a model for batches of {len(images)}", str(error))) from error
        output: NDArray[np.float32] = self._interpreter.get_tensor(self._output)
        return output


def calibrate(probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Return softmax(log(p) / temperature) row by row: (N, classes) float32, 0..1, rows sum to 1.

    A row that is no distribution (NaN, all zero) becomes uniform, so that nothing downstream takes it for confidence.
    """
    import numpy as np

    p = np.asarray(probabilities, np.float64)
    p = np.where(np.isfinite(p).all(axis=1, keepdims=True) & (p.sum(axis=1, keepdims=True) > 0), p, 1.0)
    logits = np.log(np.maximum(p, 1e-30)) / temperature
    scaled = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: NDArray[np.float32] = (scaled / scaled.sum(axis=1, keepdims=True)).astype(np.float32)
    return result


def _check_tensors(bundle: Bundle, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
    """Raise BundleError unless there is one float32 input and one float32 output of the bundle's shapes."""
    for what, tensors, shape in (
        ("input", inputs, bundle.input_shape),
        ("output", outputs, (len(bundle.labels),)),
    ):
        if len(tensors) != 1:
            raise BundleError(_message(bundle, f"one {what} tensor", f"{len(tensors)}"))
        got, dtype = tuple(int(n) for n in tensors[0]["shape"][1:]), tensors[0]["dtype"].__name__
        if got != shape or dtype != "float32":
            raise BundleError(_message(bundle, f"{what} (N, {shape}) float32", f"(N, {got}) {dtype}"))


def _check_operators(model: bytes, bundle: Bundle) -> None:
    """Raise BundleError for a custom operator: a model must run on LiteRT alone, without loadable code."""
    from ai_edge_litert import schema_py_generated as schema

    try:
        flat = schema.Model.GetRootAs(model, 0)
        custom = [name for i in range(flat.OperatorCodesLength()) if (name := flat.OperatorCodes(i).CustomCode())]
    except Exception as error:
        raise BundleError(_message(bundle, "a LiteRT model", f"{type(error).__name__}: {error}")) from error
    if custom:
        raise BundleError(_message(bundle, "builtin operators only", f"{custom[0]!r}"))


def _message(bundle: Bundle, expected: str, received: str) -> str:
    return f"bundle {str(bundle.folder)!r}: {MODEL_NAME}: expected {expected}, received {received[:200]}"
