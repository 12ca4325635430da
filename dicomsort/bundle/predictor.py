"""Runs a bundle's model on LiteRT: one thread, calibrated probabilities, builtin operators only."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from dicomsort.bundle.spec import MODEL_NAME, Bundle, BundleReference, load_reference, read_model
from dicomsort.bundle.tensors import DISTANCE, MAPS, PROBABILITIES, UnfitModelError, check_outputs, read_outputs
from dicomsort.errors import BundleError, DicomsortError, WorkerLost
from dicomsort.records import INPUT_SHAPE

if TYPE_CHECKING:
    from concurrent.futures import Future

    import numpy as np
    from numpy.typing import NDArray


class LiteRTModel:
    """A LiteRT model, given as its file's content, in this process; not to be shared between threads or pickled.

    ``inputs`` are LiteRT's details of its inputs, ``outputs`` its outputs by name. Raises UnfitModelError for what
    ``read_outputs`` refuses, ValueError or RuntimeError for what LiteRT refuses. Tensors are allocated by ``run``.
    """

    def __init__(self, model: bytes) -> None:
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


class ModelOutput(NamedTuple):
    """Predictions for N images.

    ``probabilities``: calibrated, float32 (N, classes), rows sum to 1. ``distances``: float32 (N,), Mahalanobis
    distance of the features to the nearest class, about 1 for images like the training's; NaN where the model has none.
    ``maps``: class maps (Grad-CAM), float32 (N, height, width, classes), 0 or more; None where the model has none.
    """

    probabilities: NDArray[np.float32]
    distances: NDArray[np.float32]
    maps: NDArray[np.float32] | None


class Predictor:
    """A bundle's model, ready to run in this process; not to be shared between threads or pickled.

    Raises BundleError where the model's file is not the one that the bundle pins, is no LiteRT model, has other inputs
    or outputs than bundle.json says, operators beyond LiteRT's builtin ones, or tensors beyond any image network's.
    Nothing is allocated before these checks.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        model = read_model(bundle)
        try:
            self._running = LiteRTModel(model)
            _check_input(self._running.inputs)
            check_outputs(self._running.outputs, len(bundle.labels), distance=bundle.distance is not None)
        except UnfitModelError as error:
            raise self._error(*error.args) from error
        except (ValueError, RuntimeError) as error:
            raise self._error("a LiteRT model", str(error)) from error
        self._outputs = {name: tensor.shape[1:] for name, tensor in self._running.outputs.items()}

    @property
    def explains(self) -> bool:
        """Whether the model gives class maps."""
        return MAPS in self._outputs

    def predict(self, images: NDArray[np.uint8]) -> ModelOutput:
        """Return the predictions for rendered images.

        ``images``: uint8 (N, height, width, 3), 0..255, as ``pixels.render`` returns them; N may be 0. Classes are in
        the order of ``bundle.labels``. Raises ValueError for another shape or dtype, BundleError where the model fails.
        """
        import numpy as np

        if images.dtype != np.uint8 or images.shape[1:] != INPUT_SHAPE:
            msg = f"images: expected uint8 (N, {INPUT_SHAPE}), received {images.dtype} {images.shape}"
            raise ValueError(msg)
        # One by one: on one core larger batches are no faster, and each change of size costs 0.2 s.
        steps = [self._invoke(image[None]) for image in images]
        outputs = {
            name: np.concatenate([step[name] for step in steps]) if steps else np.zeros((0, *inner), np.float32)
            for name, inner in self._outputs.items()
        }
        distances = outputs.get(DISTANCE, np.full(len(images), np.nan, np.float32))
        if DISTANCE in outputs:
            distances = np.where(np.isnan(distances), np.float32(np.inf), distances)  # NaN must not pass for near
        return ModelOutput(calibrate(outputs[PROBABILITIES], self.bundle.temperature), distances, outputs.get(MAPS))

    def _invoke(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Return the model's own outputs for a batch, by name."""
        try:
            outputs = self._running.run(images.astype("float32"))
        except (ValueError, RuntimeError) as error:
            raise self._error(f"a model for batches of {len(images)}", str(error)) from error
        for name, inner in self._outputs.items():
            if outputs[name].shape != (len(images), *inner):
                raise self._error(f"output {name} {(len(images), *inner)}", str(outputs[name].shape))
        return outputs

    def _error(self, expected: str, received: str) -> BundleError:
        where = str(self.bundle.folder)
        return BundleError(f"bundle {where!r}: {MODEL_NAME}: expected {expected}, received {received[:200]}")


@lru_cache(maxsize=1)  # loaded when it is first needed: most workers of a small sort never need it
def predictor_of(reference: BundleReference) -> Predictor:
    """Return the predictor of the bundle that is meant, in a worker; BundleChanged where it is there no more."""
    return Predictor(load_reference(reference))


def require_answer(
    bundle: Bundle, submit: Callable[[Callable[[BundleReference], None], BundleReference], Future[None]]
) -> None:
    """Raise DicomsortError where the model kills a worker even with a black image, so that no image is at fault.

    ``submit`` is an engine's.
    """
    try:
        submit(_predict_black, bundle.reference).result()
    except WorkerLost as error:
        msg = f"bundle {str(bundle.folder)!r}: {MODEL_NAME}: expected a model that can be run, received: {error}"
        raise DicomsortError(msg) from error


def _predict_black(reference: BundleReference) -> None:
    import numpy as np

    predictor_of(reference).predict(np.zeros((1, *INPUT_SHAPE), np.uint8))


def calibrate(probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Return softmax(log(p) / temperature) row by row: (N, classes) float32, 0..1, rows sum to 1.

    A row that is no distribution (NaN, all zero) becomes uniform, so that nothing takes it for confident.
    """
    import numpy as np

    p = np.asarray(probabilities, np.float64)
    p = np.where(np.isfinite(p).all(axis=1, keepdims=True) & (p.sum(axis=1, keepdims=True) > 0), p, 1.0)
    logits = np.log(np.maximum(p, 1e-30)) / temperature
    scaled = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(scaled / scaled.sum(axis=1, keepdims=True), np.float32)


def _check_input(inputs: list[dict[str, Any]]) -> None:
    """Raise UnfitModelError unless there is one input, float32 (N, height, width, 3)."""
    if len(inputs) != 1:
        raise UnfitModelError("one input tensor", f"{len(inputs)}")
    got, dtype = tuple(int(n) for n in inputs[0]["shape"][1:]), inputs[0]["dtype"].__name__
    if got != INPUT_SHAPE or dtype != "float32":
        raise UnfitModelError(f"input (N, {INPUT_SHAPE}) float32", f"(N, {got}) {dtype}")
