"""``predict``: what a bundle's model sees in files, as lines and, where asked, as pictures.

A picture shows the image beside the same with a class map over it: Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391),
computed within the model itself.
"""

from __future__ import annotations

import csv
import json
import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomsort.cli.options import bundle_of, open_workers, with_options
from dicomsort.config.settings import PREDICT, PredictSettings
from dicomsort.errors import UsageError, escaped

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from dicomsort.bundle import Bundle
    from dicomsort.errors import WorkerLost
    from dicomsort.records import Prediction
    from dicomsort.tasks import ExplainedPrediction

BATCH = 8  # files a task

# Of the pictures of --explain.
ZOOM = 2
MARGIN, CAPTION, KEY_WIDTH = 8, 24, 80
STRENGTH = 0.5  # how far evidence of 1 covers the image
STOPS = ((0, 0, 80), (0, 90, 255), (0, 220, 200), (255, 225, 0), (255, 30, 0))  # evidence from 0 to 1


@with_options(PREDICT)
def predict(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="DICOM, PNG or JPEG files.")], **flags: Any
) -> None:
    """Classify files by their pixels alone, one line per file.

    The line is CSV: path, class, confidence, probabilities, abstained, reason.

    Example: dicomsort predict --explain pictures/ scan.dcm photo.jpg
    """
    settings = PredictSettings(**flags)
    bundle, folder = bundle_of(settings.model), settings.explain
    if folder is not None:
        from dicomsort.outputs import Gate

        gate = Gate({f"FILE {path!r}": path for path in files})
        folder = Path(gate.check_folder("--explain", folder))  # no folder is made that a path only passes
        _prepare(folder, bundle)
    write = _write_json if settings.json else _write_csv
    for path, explained in zip(files, _explained(files, bundle), strict=True):
        answer = _answer(path, explained.prediction, bundle)
        write(answer)
        if folder is not None:
            _draw(folder, answer, explained, bundle)


def _explained(files: Sequence[str], bundle: Bundle) -> Iterator[ExplainedPrediction]:
    """Yield what the model sees in the middle frame of each file; a hostile file costs its own worker alone."""
    from dicomsort.bundle import require_answer
    from dicomsort.engines.engine import batched, map_in_order
    from dicomsort.engines.processes import usable_cores
    from dicomsort.records import Prediction
    from dicomsort.tasks import ExplainedPrediction, explain

    lost: list[WorkerLost] = []

    def on_lost(_: tuple[str, None], error: WorkerLost) -> ExplainedPrediction:
        lost.append(error)
        return ExplainedPrediction(Prediction(problem=str(error)))

    here = "" if all(map(os.path.isabs, files)) else os.getcwd()  # the working folder may be gone
    frames = [(os.path.join(here, path).lstrip("/"), None) for path in files]
    batches = list(batched(frames, BATCH))
    has_answered = False
    with open_workers(min(usable_cores(), len(batches))) as engine:
        for predictions in map_in_order(engine, partial(explain, bundle.reference, ""), batches, on_lost):
            has_answered = has_answered or any(each.prediction.probabilities for each in predictions)
            yield from predictions
        if lost and not has_answered:
            require_answer(bundle, engine.submit)


def _answer(path: str, prediction: Prediction, bundle: Bundle) -> dict[str, Any]:
    """Return the line of one file, its cells in the order of the columns."""
    from dicomsort.classify import is_out_of_distribution

    best = max(prediction.probabilities, default=0.0)
    class_ = bundle.labels[prediction.probabilities.index(best)] if prediction.probabilities else ""
    reason = prediction.problem
    if not reason and prediction.too_small:
        reason = "too-small"
    elif not reason and is_out_of_distribution(class_, prediction.distance, bundle.distance):
        reason = "out-of-distribution"
    elif not reason and best < bundle.decide:
        reason = "unsure"
    return {
        "path": path,
        "class": class_,
        "confidence": round(best, 6),
        "probabilities": dict(zip(bundle.labels, prediction.probabilities, strict=False)),
        "abstained": bool(reason),
        "reason": reason,
    }


def _write_json(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def _write_csv(answer: dict[str, Any]) -> None:
    from dicomsort.report.text import cell

    path, class_, confidence, probabilities, abstained, reason = answer.values()
    shares = " ".join(f"{label}={share:.4f}" for label, share in probabilities.items())
    cells = (cell(path), class_, f"{confidence:.4f}", shares, "yes" if abstained else "no", cell(reason))
    csv.writer(sys.stdout, lineterminator="\n").writerow(map(escaped, cells))


def _prepare(folder: Path, bundle: Bundle) -> None:
    """Make the folder; UsageError where it cannot be made, or the bundle's model cannot be explained."""
    from dicomsort.bundle import Predictor
    from dicomsort.files import Files, missing_folders

    if not Predictor(bundle).explains:
        raise UsageError(
            f"--explain: expected a bundle whose model gives class maps, received {str(bundle.folder)!r}, which has "
            "none; one that this version trains has them, for networks that end in pooled or flattened features "
            "and dense layers"
        )
    try:
        for missing in missing_folders(str(folder)):
            Files().make_folder(missing)
    except OSError as error:
        message = f"--explain {str(folder)!r}: expected a folder that can be written, received {error.strerror}"
        raise UsageError(message) from error


def _draw(folder: Path, answer: dict[str, Any], explained: ExplainedPrediction, bundle: Bundle) -> None:
    """Write the picture of one answer, and say on stderr where none was written."""
    from dicomsort.report import visible

    problem = explained.prediction.problem
    if explained.image is not None and explained.maps is not None:
        map_ = explained.maps[..., bundle.labels.index(answer["class"])]
        picture = draw_overlay(_caption(answer), explained.image, map_, answer["confidence"])
        problem = _write_picture(folder, _picture_name(answer["path"]), picture)
    if problem:
        print(f"dicomsort: {visible(answer['path'])}: no picture: {problem}", file=sys.stderr)


def _write_picture(folder: Path, name: str, picture: Image.Image) -> str:
    """Write a picture as PNG, never over a file; return why there is none, else an empty text."""
    from dicomsort.files import Files, closing_descriptor

    stream, files, target = BytesIO(), Files(), str(folder / name)
    picture.save(stream, "PNG")
    try:
        with closing_descriptor(files.create(target, 0o666)) as descriptor:
            try:
                files.write(descriptor, stream.getbuffer())
            except OSError:
                files.unlink(target)  # do not leave a partial picture
                raise
    except FileExistsError:
        return f"{name} is there already, and stays as it is"
    except OSError as error:
        message = f"--explain {str(folder)!r}: expected a folder with room for {name}, received {error.strerror}"
        raise UsageError(message) from error
    return ""


def _picture_name(path: str) -> str:
    """Return the name of the file made harmless, with 8 digits of its whole path's SHA-256."""
    import hashlib

    from dicomsort.plan.layout import harmless, with_suffix

    key = hashlib.sha256(os.path.abspath(path).encode(errors="surrogateescape")).hexdigest()
    return with_suffix(f"{harmless(path.rpartition('/')[2])}.png", key)


def draw_overlay(caption: str, image: NDArray[np.uint8], map_: NDArray[np.float32], confidence: float) -> Image.Image:
    """Return the image, the image under its map, and the caption below: RGB, twice as large as the image.

    ``image``: uint8 (height, width, 3), as the model was shown it; ``map_``: float32 (h, w), 0 or more. Colours stand
    for evidence from 0 to 1: the map as a share of its most, times the class's probability (``confidence``, 0 to 1). So
    a map that is even looks even, and that of an unsure class is paler than that of a sure one; no colour depends on
    the other images of a run.
    """
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    size = (image.shape[1] * ZOOM, image.shape[0] * ZOOM)
    plain = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    most = float(map_.max()) if np.isfinite(map_).all() else 0.0
    evidence = np.asarray(map_ / most * confidence if most > 0 else np.zeros_like(map_), np.float32)
    smooth = Image.fromarray(evidence).resize(size, Image.Resampling.BICUBIC)
    share = np.clip(np.asarray(smooth), 0, 1)[..., None]
    covered = np.asarray(plain) * (1 - STRENGTH * share) + _coloured(share[..., 0]) * (STRENGTH * share)
    sheet = Image.new("RGB", (2 * size[0] + 3 * MARGIN, size[1] + 2 * MARGIN + CAPTION), "white")
    sheet.paste(plain, (MARGIN, MARGIN))
    sheet.paste(Image.fromarray(covered.astype(np.uint8)), (size[0] + 2 * MARGIN, MARGIN))
    draw, font, below = ImageDraw.Draw(sheet), ImageFont.load_default(14), size[1] + MARGIN + 5
    # macOS writes accents as characters of their own, which the font has not.
    draw.text((MARGIN, below), unicodedata.normalize("NFC", caption), "black", font)
    left = sheet.width - MARGIN - KEY_WIDTH
    words = (
        f"evidence here {evidence.min():.2f} to {evidence.max():.2f}; colours: 0 to 1" if most > 0 else "no evidence"
    )
    words_left = left - MARGIN - int(draw.textlength(words, font))
    draw.rectangle((words_left - MARGIN, below, sheet.width, sheet.height), "white")  # a long name ends here
    draw.text((words_left, below), words, "black", font)
    key = _coloured(np.linspace(0, 1, KEY_WIDTH, dtype=np.float32)[None]).astype(np.uint8)
    sheet.paste(Image.fromarray(key).resize((KEY_WIDTH, CAPTION - 10)), (left, below + 2))
    return sheet


def _coloured(share: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the colours, float (h, w, 3), 0 to 255, of shares from 0 to 1."""
    import numpy as np

    places = np.linspace(0, 1, len(STOPS))
    return np.stack([np.interp(share, places, channel) for channel in zip(*STOPS, strict=True)], axis=-1)


def _caption(answer: dict[str, Any]) -> str:
    from dicomsort.report import visible

    reason = f"; abstained: {answer['reason']}" if answer["abstained"] else ""
    name = visible(answer["path"].rpartition("/")[2])
    return f"{answer['class']}, confidence {answer['confidence']:.3f}{reason}; {name}"
