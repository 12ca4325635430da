"""The pictures of ``predict --explain``: an image beside the same with a class map over it.

The maps are Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391), computed within the model itself.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dicomsort.bundle import Predictor
from dicomsort.errors import UsageError
from dicomsort.files import Files
from dicomsort.plan.layout import harmless, with_suffix
from dicomsort.report import visible

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from dicomsort.bundle import Bundle

ZOOM = 2
MARGIN, CAPTION, KEY_WIDTH = 8, 24, 80
STRENGTH = 0.5  # how far evidence of 1 covers the image
STOPS = ((0, 0, 80), (0, 90, 255), (0, 220, 200), (255, 225, 0), (255, 30, 0))  # evidence from 0 to 1


def prepare(folder: Path, bundle: Bundle) -> None:
    """Make the folder; UsageError where it cannot be made, or the bundle's model cannot be explained."""
    if not Predictor(bundle).explains:
        msg = (
            f"--explain: expected a bundle whose model gives class maps, received {str(bundle.folder)!r}, which has "
            "none; one that this version trains has them, for networks that end in pooled or flattened features "
            "and dense layers"
        )
        raise UsageError(msg)
    try:
        for part in (*reversed(folder.parents), folder):
            if not part.is_dir():
                Files().make_folder(str(part))
    except OSError as error:
        msg = f"--explain {str(folder)!r}: expected a folder that can be written, received {error.strerror}"
        raise UsageError(msg) from error


def write_overlay(folder: Path, answer: dict[str, Any], image: NDArray[np.uint8], map_: NDArray[np.float32]) -> str:
    """Write the picture of one answer of ``predict``; return why there is none, else an empty text.

    ``image``: uint8 (height, width, 3), as the model was shown it; ``map_``: float32 (h, w), 0 or more. What has the
    picture's name already is never replaced.
    """
    name = overlay_name(answer["path"])
    stream = BytesIO()
    draw_overlay(_caption(answer), image, map_, answer["confidence"]).save(stream, "PNG")
    files, target = Files(), str(folder / name)
    try:
        descriptor = files.create(target, 0o666)
    except FileExistsError:
        return f"{name} is there already, and stays as it is"
    except OSError as error:
        raise UsageError(_no_room(folder, name, error)) from error
    try:
        files.write(descriptor, stream.getbuffer())
    except OSError as error:
        files.unlink(target)  # half a picture is none
        raise UsageError(_no_room(folder, name, error)) from error
    finally:
        os.close(descriptor)
    return ""


def _no_room(folder: Path, name: str, error: OSError) -> str:
    return f"--explain {str(folder)!r}: expected a folder with room for {name}, received {error.strerror}"


def overlay_name(path: str) -> str:
    """Return the picture's name: that of the file made harmless, with 8 digits of its whole path's SHA-256."""
    key = hashlib.sha256(os.path.abspath(path).encode(errors="surrogateescape")).hexdigest()
    return with_suffix(f"{harmless(path.rpartition('/')[2])}.png", key)


def draw_overlay(caption: str, image: NDArray[np.uint8], map_: NDArray[np.float32], confidence: float) -> Image.Image:
    """Return the image, the image under its map, and the caption below: RGB, twice as large as the image.

    Colours stand for evidence from 0 to 1: the map as a share of its most, times the class's probability
    (``confidence``, 0 to 1). So a map that is even looks even, and that of an unsure class is paler than that of a sure
    one; no colour depends on the other images of a run.
    """
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
    places = np.linspace(0, 1, len(STOPS))
    return np.stack([np.interp(share, places, channel) for channel in zip(*STOPS, strict=True)], axis=-1)


def _caption(answer: dict[str, Any]) -> str:
    reason = f"; abstained: {answer['reason']}" if answer["abstained"] else ""
    name = visible(answer["path"].rpartition("/")[2])
    return f"{answer['class']}, confidence {answer['confidence']:.3f}{reason}; {name}"
