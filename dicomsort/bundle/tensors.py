"""Reads operators, sizes and outputs of a LiteRT file from its flatbuffer, without running it.

Nothing is allocated that the file does not hold already.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

PROBABILITIES, DISTANCE, MAPS = "probabilities", "distance", "maps"
MAX_BYTES = 1 << 30  # of all tensors whose content is not in the file; VGG-16 needs 0.6 GB, unpacked weights included
MAX_TENSORS = 20_000
MAX_SIDE = 1024  # of a class map
ELEMENT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as the file declares it: its index in the graph, and its shape with -1 for an open dimension."""

    index: int
    shape: tuple[int, ...]
    is_float32: bool


class UnfitModelError(ValueError):
    """A model that must not be run; ``args`` are two phrases: what was expected, and what was received."""


def read_outputs(model: bytes) -> dict[str, Tensor]:
    """Check a model file and return its outputs by name; a sole output is ``probabilities`` whatever it is called.

    Raises UnfitModelError where it is no LiteRT model, has custom operators, would take much memory, or has outputs of
    other names.
    """
    from ai_edge_litert import schema_py_generated as schema

    try:
        flat = schema.Model.GetRootAs(model, 0)
        custom = [name for i in range(flat.OperatorCodesLength()) if (name := flat.OperatorCodes(i).CustomCode())]
        size = sum(_sizes(flat))
        outputs = dict(_outputs(flat))
    except UnfitModelError:
        raise
    except Exception as error:
        raise UnfitModelError("a LiteRT model", f"{type(error).__name__}: {error}") from error
    if custom:
        raise UnfitModelError("builtin operators only", f"{custom[0]!r}")
    if size > MAX_BYTES:
        raise UnfitModelError(f"tensors of at most {MAX_BYTES} bytes in all", f"{size}")
    return outputs


def check_outputs(outputs: Mapping[str, Tensor], classes: int, *, distance: bool) -> None:
    """Raise UnfitModelError unless the outputs are those of a bundle of so many classes, with a distance or not.

    ``probabilities`` float32 (N, classes); ``distance``, required where there is a threshold for it, float32 (N,);
    ``maps`` float32 (N, height, width, classes), optional.
    """
    wanted = {PROBABILITIES, DISTANCE} if distance else {PROBABILITIES}
    if not wanted <= set(outputs) <= {PROBABILITIES, DISTANCE, MAPS}:
        raise UnfitModelError(f"outputs {', '.join(sorted(wanted))}", ", ".join(sorted(outputs)) or "none")
    shapes = {PROBABILITIES: f"(N, {classes})", DISTANCE: "(N,)", MAPS: f"(N, height, width, {classes})"}
    for name, tensor in outputs.items():
        inner = tensor.shape[1:]
        if name == MAPS:
            fits = inner[2:] == (classes,) and all(0 < side <= MAX_SIDE for side in inner[:2])
        else:
            fits = inner == ((classes,) if name == PROBABILITIES else ())
        if not tensor.shape or not fits or not tensor.is_float32:
            kind = "float32" if tensor.is_float32 else "another type"
            raise UnfitModelError(f"output {name} {shapes[name]} float32", f"{tensor.shape} {kind}")


def _sizes(flat: Any) -> Iterator[int]:
    """Yield the bytes of every tensor whose content the file does not hold, for a batch of one image."""
    count = 0
    for i in range(flat.SubgraphsLength()):
        graph = flat.Subgraphs(i)
        count += graph.TensorsLength()
        if count > MAX_TENSORS:
            raise UnfitModelError(f"at most {MAX_TENSORS} tensors", f"{count}")
        for j in range(graph.TensorsLength()):
            tensor = graph.Tensors(j)
            if not flat.Buffers(tensor.Buffer()).DataLength():
                yield math.prod(abs(n) for n in _shape(tensor)) * ELEMENT_BYTES


def _outputs(flat: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the outputs of the first graph, by the names that the first signature gives them."""
    graph = flat.Subgraphs(0)
    indices = [int(graph.Outputs(i)) for i in range(graph.OutputsLength())]
    names = {}
    if flat.SignatureDefsLength():
        signature = flat.SignatureDefs(0)
        maps = [signature.Outputs(i) for i in range(signature.OutputsLength())]
        names = {int(each.TensorIndex()): each.Name().decode("utf-8", "replace") for each in maps}
    for index in indices:
        name = PROBABILITIES if len(indices) == 1 else names.get(index, f"number {index}")
        tensor = graph.Tensors(index)
        yield name, Tensor(index, _shape(tensor), tensor.Type() == 0)


def _shape(tensor: Any) -> tuple[int, ...]:
    """Return the shape, with -1 for an open dimension."""
    signature = [int(tensor.ShapeSignature(i)) for i in range(tensor.ShapeSignatureLength())]
    return tuple(signature or [int(tensor.Shape(i)) for i in range(tensor.ShapeLength())])
