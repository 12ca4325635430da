"""Random variations of rendered images, as other scanners, windows, exports and photographs would show them.

They are made with Pillow on the rendering (``pixels.render``): by the threads that feed, or by an engine's workers
where threads cannot use all cores.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from dicomsort.engines.engine import Engine
from dicomsort.errors import WorkerLost
from dicomsort.training.data import robustness

Images = NDArray[np.uint8]
Random = np.random.Generator
Step = Callable[[Image.Image, Random], Image.Image]
Vary = Callable[[Images, "Strength", Sequence[tuple[int, ...]]], Images]

# Measured: a strong variation holds the interpreter's lock for a quarter of its time, a light one for a fifth, so that
# threads use this many cores at most.
THREADS_USE = 4
# As PET, SPECT, perfusion and thermal images are shown (PS3.6 Annex B has the first two and others like them).
COLOUR_MAPS = ("hot", "gist_rainbow_r", "jet", "turbo", "inferno", "nipy_spectral", "plasma", "bone", "copper")
MATRIX = 48, 160  # pixels of a side, the fewest and the most, of a small image
MOSTLY, EVEN, AT_TIMES = 0.7, 0.5, 0.3  # how often one kind of a change is drawn rather than another


@dataclass(frozen=True, slots=True)
class Strength:
    """How far an augmentation goes.

    ``rotation`` in degrees; ``shift`` and ``zoom`` as shares of the side and of the size; ``contrast`` as the largest
    change of the exponent of a gamma curve; ``window`` as the largest share cut off the grey scale's ends. The others
    are probabilities, 0..1.
    """

    rotation: float
    shift: float
    zoom: float
    contrast: float
    window: float
    turn: float
    flip: float
    invert: float
    crop: float
    text: float
    border: float
    quality: float
    resolution: float
    noise: float
    photograph: float
    colour: float


STRENGTHS: dict[str, Strength | None] = {
    "none": None,
    "light": Strength(
        10, 0.05, 0.1, 0.2, 0.1, turn=0, flip=0.5, invert=0, crop=0, text=0, border=0, quality=0.3, resolution=0.1,
        noise=0, photograph=0, colour=0,
    ),
    "strong": Strength(
        20, 0.1, 0.25, 0.6, 0.3, turn=0.15, flip=0.5, invert=0.2, crop=0.4, text=0.3, border=0.3, quality=0.4,
        resolution=0.4, noise=0.2, photograph=0.12, colour=0.05,
    ),
}  # fmt: skip


def augment(image: Images, strength: Strength, random: Random) -> Images:
    """Return a variation of ``image``, both uint8 (side, side, 3), 0..255; ``random`` decides which."""
    picture = Image.fromarray(image)
    for step in _steps(strength, random):
        picture = step(picture, random)
    return np.asarray(picture)


def vary(images: Images, strength: Strength, seeds: Sequence[tuple[int, ...]]) -> Images:
    """Return a variation of each image, uint8 (n, side, side, 3), decided by its own seed alone."""
    pairs = zip(images, seeds, strict=True)
    return np.stack([augment(image, strength, np.random.default_rng(seed)) for image, seed in pairs])


def varied_by(engine: Engine, augment: str) -> Vary:
    """Return what varies images by the strength of that name, in the engine's workers where that is of use.

    Else the engine is closed: its workers would wait in vain.
    """
    if STRENGTHS[augment] is None or engine.workers <= THREADS_USE:
        engine.close()
        return vary
    return partial(_vary_by, engine)


def _vary_by(engine: Engine, images: Images, strength: Strength, seeds: Sequence[tuple[int, ...]]) -> Images:
    try:
        return engine.submit(_vary_task, (images, strength, seeds)).result()
    except WorkerLost:  # to whatever: the images are no hostile file's
        return vary(images, strength, seeds)


def _vary_task(task: tuple[Images, Strength, Sequence[tuple[int, ...]]]) -> Images:
    return vary(*task)  # a worker keeps each function that it was sent, and no task


def _steps(s: Strength, random: Random) -> list[Step]:
    """Return the steps for an image, in the order in which they would happen: anatomy, window, text, photograph."""
    chances: tuple[tuple[float, Step], ...] = (
        (s.crop, crop),
        (1.0, lambda picture, rng: move(picture, rng, s)),
        (s.flip, lambda picture, _: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        (s.turn, turn),
        (1.0, lambda picture, rng: window(picture, rng, s)),
        (s.invert, invert),
        (s.colour, colour),
        (s.border, border),
        (s.text, text),
        (s.resolution, lower),
        (s.noise, noise),
        (s.photograph, photograph),
        (s.quality, recompress),
    )
    return [step for chance, step in chances if random.random() < chance]


def move(picture: Image.Image, random: Random, s: Strength) -> Image.Image:
    """Rotate, zoom and shift at once; what comes in from outside is black."""
    angle = np.deg2rad(random.uniform(-s.rotation, s.rotation))
    zoom = np.exp(random.uniform(-s.zoom, s.zoom))
    side, centre = picture.width, picture.width / 2
    right, down = random.uniform(-s.shift, s.shift, 2) * side
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    left = centre - cos * (centre + right) - sin * (centre + down)
    top = centre + sin * (centre + right) - cos * (centre + down)
    matrix = (cos, sin, left, -sin, cos, top)
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def turn(picture: Image.Image, random: Random) -> Image.Image:
    """Turn by a quarter, a half or three quarters, or upside down."""
    kinds = Image.Transpose
    ways = (kinds.ROTATE_90, kinds.ROTATE_180, kinds.ROTATE_270, kinds.FLIP_TOP_BOTTOM)
    return picture.transpose(ways[random.integers(len(ways))])


def crop(picture: Image.Image, random: Random) -> Image.Image:
    """Cut out a rectangle of 50 to 90 % of each side, fitted as the rendering fits: to the longer side, on black."""
    side = picture.width
    wide, high = (round(side * share) for share in random.uniform(0.5, 0.9, 2))
    x, y = int(random.integers(side - wide + 1)), int(random.integers(side - high + 1))
    scale = side / max(wide, high)
    size = (max(1, round(wide * scale)), max(1, round(high * scale)))
    cut = picture.crop((x, y, x + wide, y + high)).resize(size, Image.Resampling.BILINEAR)
    canvas = Image.new(picture.mode, picture.size)
    canvas.paste(cut, ((side - size[0]) // 2, (side - size[1]) // 2))
    return canvas


def window(picture: Image.Image, random: Random, s: Strength) -> Image.Image:
    """Cut off the ends of the grey scale and bend the rest: another window, another display curve."""
    low, high = random.uniform(0, s.window * 255), 255 - random.uniform(0, s.window * 255)
    exponent = np.exp(random.uniform(-s.contrast, s.contrast))
    curve = np.clip((np.arange(256) - low) / max(high - low, 1), 0, 1) ** exponent * 255
    return picture.point(3 * np.round(curve).astype(int).tolist())


def invert(picture: Image.Image, random: Random) -> Image.Image:
    """Invert the whole picture, or only the image between its black bars."""
    if random.random() < EVEN:
        return ImageChops.invert(picture)
    return Image.fromarray(robustness.invert(np.asarray(picture)))


def colour(picture: Image.Image, random: Random) -> Image.Image:
    """Show grey in false colours."""
    table = _colour_map(COLOUR_MAPS[random.integers(len(COLOUR_MAPS))])
    return Image.fromarray(table[np.asarray(picture.convert("L"))])


@lru_cache(maxsize=len(COLOUR_MAPS))
def _colour_map(name: str) -> Images:
    """Return the colours of 256 levels of grey, uint8 (256, 3)."""
    import matplotlib as mpl

    return mpl.colormaps[name](np.arange(256), bytes=True)[:, :3]


def text(picture: Image.Image, random: Random) -> Image.Image:
    """Burn in a few random words, light or dark, as scanners and exporters do."""
    drawn = picture.copy()
    draw = ImageDraw.Draw(drawn)
    letters = list(string.ascii_uppercase + string.digits + ":./- ")
    colour = (255, 255, 255) if random.random() < MOSTLY else tuple(int(v) for v in random.integers(0, 256, 3))
    font = robustness.default_font(float(random.integers(7, 18)))
    for _ in range(random.integers(1, 9)):
        words = "".join(random.choice(letters, random.integers(1, 16)))
        # Mostly near the edges, where annotations are.
        x, y = np.where(random.random(2) < MOSTLY, random.choice([0.02, 0.6, 0.9], 2), random.uniform(0, 0.9, 2))
        draw.text((float(x) * picture.width, float(y) * picture.height), words, fill=colour, font=font)
    return drawn


def border(picture: Image.Image, random: Random) -> Image.Image:
    """Lay a frame of one grey around the picture, or a shutter over its sides."""
    side = picture.width
    grey = (0, 0, 255, int(random.integers(256)))[random.integers(4)]
    left, top, right, bottom = (int(v) for v in random.uniform(0, 0.15, 4) * side * (random.random(4) < MOSTLY))
    box = (left, top, max(left + 1, side - right), max(top + 1, side - bottom))
    canvas = Image.new(picture.mode, picture.size, (grey, grey, grey))
    inside = picture.resize((box[2] - box[0], box[3] - box[1])) if random.random() < EVEN else picture.crop(box)
    canvas.paste(inside, box[:2])
    return canvas


def lower(picture: Image.Image, random: Random) -> Image.Image:
    """Pass the picture through a smaller matrix of 48 to 160 pixels, or blur it."""
    if random.random() < AT_TIMES:
        return picture.filter(ImageFilter.GaussianBlur(random.uniform(0.5, 1.8)))
    side = round(np.exp(random.uniform(*np.log(MATRIX))))
    ways = (Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    small = picture.resize((side, side), Image.Resampling.BILINEAR)
    return small.resize(picture.size, ways[random.integers(len(ways))])


def noise(picture: Image.Image, random: Random) -> Image.Image:
    """Add grey noise."""
    pixels = np.asarray(picture, np.float32)
    grain = random.normal(0, random.uniform(2, 16), pixels.shape[:2]).astype(np.float32)
    return Image.fromarray(np.clip(pixels + grain[..., None], 0, 255).astype(np.uint8))


def photograph(picture: Image.Image, random: Random) -> Image.Image:
    """Show the picture as a photograph of a screen: at an angle, unevenly lit, tinted, with the screen's pattern."""
    side = picture.width
    square = np.array([(0, 0), (side, 0), (side, side), (0, side)], float)
    corners = square + random.uniform(-0.12, 0.12, (4, 2)) * side
    # x = (a x' + b y' + c) / (g x' + h y' + 1), and y likewise: eight equations for eight coefficients.
    rows = [(*p, 1, 0, 0, 0, -p[0] * q[0], -p[1] * q[0]) for p, q in zip(corners, square, strict=True)]
    rows += [(0, 0, 0, *p, 1, -p[0] * q[1], -p[1] * q[1]) for p, q in zip(corners, square, strict=True)]
    matrix = np.linalg.solve(np.array(rows), square.T.ravel())
    room = tuple(int(v) for v in random.integers(0, 60, 3))
    tilted = picture.transform(
        picture.size, Image.Transform.PERSPECTIVE, tuple(matrix), Image.Resampling.BILINEAR, fillcolor=room
    )
    down, right = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    light = 1 + random.uniform(-0.3, 0.3) * down + random.uniform(-0.3, 0.3) * right
    across = right * np.cos(angle := random.uniform(0, np.pi)) + down * np.sin(angle)
    pattern = random.uniform(0, 10) * np.sin(across * side * random.uniform(0.3, 2.5))
    tint, glow = random.uniform(0.8, 1.1, 3), random.uniform(0, 40)
    lit = (np.asarray(tilted, float) * light[..., None] + pattern[..., None] + glow) * tint
    return Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))


def recompress(picture: Image.Image, random: Random) -> Image.Image:
    """Save as JPEG of quality 25 to 90, and load again."""
    return robustness.as_jpeg(picture, int(random.integers(25, 91)))
