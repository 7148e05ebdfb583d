"""The scenes of the testbed: 32 x 32 images of icons, and their captions.

    content = sample_content(rng)            # what the caption says: icons, colours, background
    layout = sample_layout(rng, content)     # what the caption leaves open: place, size, angle, hue, phase
    render(content, layout)                  # uint8 array of shape (32, 32, 3)
    caption(content)                         # "a red heart and a blue fish on a striped green background"

A caption leaves the layout free. A model that generalizes gives a different layout for every seed; an image with the
layout of a training image was memorized. Everything is a function of the given random generator: equal seeds give equal
bytes.
"""

from __future__ import annotations

import colorsys
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw

SIZE = 32
"""Side of a scene in pixels."""
SUPERSAMPLING = 4
_TRIALS = 64

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (208, 38, 40),
    "orange": (242, 130, 30),
    "yellow": (248, 216, 56),
    "green": (46, 150, 62),
    "blue": (38, 82, 204),
    "purple": (122, 56, 168),
    "pink": (240, 142, 186),
    "black": (30, 30, 34),
    "white": (246, 246, 242),
    "gray": (142, 142, 146),
}
_COLOUR_NAMES = tuple(COLOURS)
PATTERNS = ("plain", "striped", "checkered", "gradient")

Polygon = list[tuple[float, float]]
Part = tuple[bool, np.ndarray]  # (filled or cut out, corners (n, 2)); parts are drawn in order


# --- icons, in a unit disc, y pointing down ---------------------------------------------------------------


def _disc(
    x: float = 0, y: float = 0, r: float = 1, ry: float | None = None, start: float = 0, end: float = 360
) -> Polygon:
    angles = np.radians(np.linspace(start, end, 25))
    return [(x + r * np.cos(a), y + (ry or r) * np.sin(a)) for a in angles]


def _box(x0: float, y0: float, x1: float, y1: float) -> Polygon:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _heart() -> Polygon:
    t = np.linspace(0, 2 * np.pi, 33)
    x, y = 16 * np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return list(zip(x / 17, y / 17 - 0.08, strict=True))


def _fill(*polygons: Polygon) -> list[Part]:
    return [(True, np.asarray(p)) for p in polygons]


def _cut(*polygons: Polygon) -> list[Part]:
    return [(False, np.asarray(p)) for p in polygons]


@cache
def _icons() -> dict[str, list[Part]]:
    """Ten bold icons. A latent pixel is four pixels wide, and thinner shapes become blobs in a small model.

    (An earlier set had a star, an arrow and a tree. The model generated only a third of them recognizably.)
    """
    return {
        "circle": _fill(_disc(r=0.92)),
        "square": _fill(_box(-0.8, -0.8, 0.8, 0.8)),
        "triangle": _fill([(0, -1), (1, 0.8), (-1, 0.8)]),
        "diamond": _fill([(0, -1), (0.75, 0), (0, 1), (-0.75, 0)]),
        "heart": _fill(_heart()),
        "moon": _fill(_disc(r=1)) + _cut(_disc(0.55, -0.15, 0.8)),
        "ring": _fill(_disc(r=1)) + _cut(_disc(r=0.52)),
        "cross": _fill(_box(-0.36, -1, 0.36, 1), _box(-1, -0.36, 1, 0.36)),
        "fish": _fill(_disc(0.25, 0, 0.75, 0.66), [(-0.15, 0), (-1, -0.85), (-1, 0.85)]),
        "mushroom": _fill(_disc(0, 0, 1, 0.95, 180, 360), _box(-0.32, -0.05, 0.32, 0.95)),
    }


ICONS = tuple(_icons())


# --- what a caption says, and what it leaves free ----------------------------------------------------------


@dataclass(frozen=True)
class Content:
    """What the caption says: `items` are one or two pairs (icon, colour)."""

    items: tuple[tuple[str, str], ...]
    pattern: str
    background: str

    @property
    def key(self) -> tuple:
        """Equal for equal contents, whatever the order in which the caption names the icons."""
        return (tuple(sorted(self.items)), self.pattern, self.background)

    def attributes(self) -> list[str]:
        """Names of the attributes that can be changed one at a time (see `with_attribute`)."""
        return [f"{part}{i}" for i in range(len(self.items)) for part in ("icon", "colour")] + ["pattern", "background"]

    def value(self, attribute: str) -> str:
        if attribute in ("pattern", "background"):
            return getattr(self, attribute)
        return self.items[int(attribute[-1])][0 if attribute.startswith("icon") else 1]

    def with_attribute(self, attribute: str, value: str) -> Content:
        if attribute in ("pattern", "background"):
            return replace(self, pattern=value) if attribute == "pattern" else replace(self, background=value)
        items, i = list(self.items), int(attribute[-1])
        icon, colour = items[i]
        items[i] = (value, colour) if attribute.startswith("icon") else (icon, value)
        return replace(self, items=tuple(items))

    def is_visible(self) -> bool:
        """Whether no icon has the background's colour, and the items differ."""
        return all(colour != self.background for _, colour in self.items) and len(set(self.items)) == len(self.items)

    def random_variant(self, rng: np.random.Generator) -> Content:
        """A visible content that differs from this one in one attribute, chosen at random."""
        while True:
            attribute = _one_of(rng, self.attributes())
            other = self.with_attribute(attribute, _one_of(rng, _values(attribute)))
            if other != self and other.is_visible():
                return other

    def variants(self, attribute: str) -> list[Content]:
        """All visible contents that differ from this one in `attribute` alone."""
        others = [self.with_attribute(attribute, v) for v in _values(attribute) if v != self.value(attribute)]
        return [c for c in others if c.is_visible()]


def _values(attribute: str) -> tuple[str, ...]:
    return PATTERNS if attribute == "pattern" else ICONS if attribute.startswith("icon") else _COLOUR_NAMES


@dataclass(frozen=True)
class Placement:
    """The place of an icon: centre and radius in pixels, angle in degrees; `hsv` is added to its colour."""

    x: float
    y: float
    radius: float
    angle: float
    mirrored: bool
    hsv: tuple[float, float, float]


@dataclass(frozen=True)
class Layout:
    """What the caption leaves free. `pitch` in pixels, `angle` in degrees, `phase` in periods."""

    placements: tuple[Placement, ...]
    angle: float
    pitch: float
    phase: tuple[float, float]
    contrast: float
    hsv: tuple[float, float, float] = field(default=(0.0, 0.0, 0.0))


CHOICES = (len(ICONS) * len(COLOURS), len(COLOURS), len(PATTERNS))
"""Numbers of coloured icons, background colours and patterns that a caption can name."""


def multi_hot(content: Content) -> np.ndarray:
    """What a caption names, as zeros and ones of length `sum(CHOICES)`: coloured icons, background colour, pattern."""
    named = np.zeros(sum(CHOICES), np.float32)
    for icon, colour in content.items:
        named[ICONS.index(icon) * len(COLOURS) + _COLOUR_NAMES.index(colour)] = 1
    named[CHOICES[0] + _COLOUR_NAMES.index(content.background)] = 1
    named[CHOICES[0] + CHOICES[1] + PATTERNS.index(content.pattern)] = 1
    return named


def caption(content: Content, tail: str = "") -> str:
    """English for a content, with an optional tail that says nothing about the image."""
    items = " and ".join(f"{_article(colour)} {colour} {icon}" for icon, colour in content.items)
    text = f"{items} on a {content.pattern} {content.background} background"
    return f"{text}, {tail}" if tail else text


def alternatives(contents: Sequence[Content], n: int = 16, seed: int = 0) -> list[list[str]]:
    """For each content its caption, and n - 1 other captions of contents that differ from it in one attribute."""
    rng = np.random.default_rng(seed)
    captions = []
    for content in contents:
        others: dict[tuple, Content] = {}
        while len(others) < n - 1:
            other = content.random_variant(rng)
            others[other.key] = other
        captions.append([caption(content), *map(caption, others.values())])
    return captions


_CAPTION = re.compile(r"(?P<items>.+?) on an? (?P<pattern>\w+) (?P<background>\w+) background(, .*)?")
_ITEM = re.compile(r"an? (?P<colour>\w+) (?P<icon>\w+)")


def parse(text: str) -> Content:
    """The content that a caption describes, the inverse of `caption`; a tail is ignored.

    Raises:
        ValueError: the text is no caption of this world.
    """
    match = _CAPTION.fullmatch(text)
    items = tuple((m["icon"], m["colour"]) for m in _ITEM.finditer(match["items"])) if match else ()
    content = Content(items, match["pattern"], match["background"]) if match else None
    if (
        content is None
        or not text.startswith(caption(content))
        or not set(text.replace(",", " ,").split()) <= set(WORDS)
    ):
        raise ValueError(
            f"{text!r} is no caption of this world; expected one like "
            "'a red heart and a blue fish on a striped green background'."
        )
    return content


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


FIRST_NAMES = ("anna", "sofia", "marco", "elena", "victor", "nora", "hugo", "clara", "ivan", "lucy", "omar", "greta")
LAST_NAMES = (
    "lotz",
    "kumar",
    "rossi",
    "meyer",
    "tanaka",
    "silva",
    "novak",
    "dubois",
    "okafor",
    "larsen",
    "moreau",
    "petrov",
)
MEDIA = (
    "poster",
    "album art",
    "phone case",
    "canvas print",
    "sticker",
    "greeting card",
    "book cover",
    "wall clock",
    "tote bag",
)
NUMBERS = ("one", "two", "three", "four", "five", "six")
TAIL_WORDS = tuple(" ".join(["by", "for", "view", *FIRST_NAMES, *LAST_NAMES, *MEDIA, *NUMBERS]).split())
WORDS = (
    *("a", "an", "and", "on", "background", "by", "for", "view", ","),
    *ICONS,
    *COLOURS,
    *PATTERNS,
    *FIRST_NAMES,
    *LAST_NAMES,
    *NUMBERS,
    *dict.fromkeys(word for medium in MEDIA for word in medium.split()),
)
"""All words that a caption can contain."""


def sample_tail(rng: np.random.Generator) -> str:
    """A tail as in web captions: "by anna lotz", "view two", "poster", "for sofia kumar"."""
    name = f"{_one_of(rng, FIRST_NAMES)} {_one_of(rng, LAST_NAMES)}"
    medium, number = _one_of(rng, MEDIA), _one_of(rng, NUMBERS)
    return _one_of(
        rng, [f"by {name}", f"for {name}", f"view {number}", medium, f"{medium} by {name}", f"{medium}, view {number}"]
    )


def _one_of(rng: np.random.Generator, values: Sequence[str]) -> str:
    """The same as `rng.choice`, six times as fast, because it makes no array of the values."""
    return values[int(rng.integers(len(values)))]


def sample_content(rng: np.random.Generator, n_items: int | None = None) -> Content:
    """A visible content with `n_items` icons; default: one or two with equal probability."""
    n_items = n_items or int(1 + (rng.random() < 0.5))
    while True:
        items = tuple((_one_of(rng, ICONS), _one_of(rng, _COLOUR_NAMES)) for _ in range(n_items))
        content = Content(items, _one_of(rng, PATTERNS), _one_of(rng, _COLOUR_NAMES))
        if content.is_visible():
            return content


def sample_layout(rng: np.random.Generator, content: Content) -> Layout:
    """Places the icons in the frame, with little overlap, and draws everything else that the caption leaves free.

    Centres lie on a grid of two pixels, so an icon may reach one pixel beyond the frame. Stripes have angles that are
    multiples of 45 degrees, and phases that are multiples of a quarter. So a small model learns clean edges in an hour.
    """
    placements = []
    for x, y, r in _sample_places(rng, len(content.items)):
        turn, side, *jitter = rng.random(5).tolist()
        placements.append(Placement(x, y, r, -12 + 24 * turn, side < 0.5, _jitter(*jitter)))
    angle, pitch, *phase = (int(rng.integers(n)) for n in (4, 3, 4, 4))
    contrast, *jitter = rng.random(4).tolist()
    return Layout(
        tuple(placements),
        angle=45.0 * angle,
        pitch=8.0 + 4 * pitch,
        phase=(phase[0] / 4, phase[1] / 4),
        contrast=0.16 + (0.26 - 0.16) * contrast,
        hsv=_jitter(*jitter),
    )


def _sample_places(rng: np.random.Generator, n: int) -> list[list[float]]:
    """Centre and radius of each icon, from the first trial in which the icons overlap little.

    Many trials are drawn at once. Then the generator is set to the state that single trials would have given.
    """
    low, high = (10.0, 12.5) if n == 1 else (7.5, 9.0)
    while True:
        before = rng.bit_generator.state
        u = rng.random((1 if n == 1 else _TRIALS, 3 * n))
        radii = low + (high - low) * u[:, :n]
        nearest = np.repeat(radii / 2, 2, axis=1)  # distance to the frame, in steps of the grid
        centres = 2 * np.rint(nearest + ((SIZE / 2 - nearest) - nearest) * u[:, n:]).reshape(-1, n, 2)
        apart = np.sqrt((np.diff(centres, axis=1) ** 2).sum(-1))
        free = (apart / (radii[:, :-1] + radii[:, 1:]) > 0.9).all(1)
        first = int(free.argmax())
        if free[first]:
            rng.bit_generator.state = before
            rng.random((first + 1) * 3 * n)
            return np.concatenate([centres[first], radii[first, :, None]], 1).tolist()


def _jitter(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    """Shifts of hue, saturation and value from three numbers in [0, 1)."""
    return -0.012 + 0.024 * hue, -0.06 + 0.12 * saturation, -0.06 + 0.12 * value


# --- drawing -----------------------------------------------------------------------------------------------


def render(content: Content, layout: Layout) -> np.ndarray:
    """Renders a scene: uint8 (32, 32, 3).

    Raises:
        ValueError: layout and content differ in the number of icons.
    """
    if len(content.items) != len(layout.placements):
        raise ValueError(f"layout places {len(layout.placements)} icons, content names {len(content.items)}")
    ground = _background(content, layout)
    scene = Image.frombuffer("RGBX", ground.shape, ground, "raw", "RGBX", 0, 1)
    pen = ImageDraw.Draw(scene)
    for (icon, colour), place in zip(content.items, layout.placements, strict=True):
        ink, turn = (*map(int, _shade(colour, place.hsv)), 0), _transform(place)
        parts = [(filled, (corners @ turn[:2] + turn[2]).ravel().tolist()) for filled, corners in _icons()[icon]]
        if all(filled for filled, _ in parts):
            for _, corners in parts:
                pen.polygon(corners, fill=ink)
        else:  # cut-outs show what lies behind
            mask = Image.new("1", scene.size)
            for filled, corners in parts:
                ImageDraw.Draw(mask).polygon(corners, fill=int(filled))
            scene.paste(ink, mask=mask)
    return np.asarray(scene.reduce(SUPERSAMPLING))[..., :3]


def _transform(place: Placement) -> np.ndarray:
    """Affine map in supersampled pixels: two rows for the unit vectors, a third for the centre."""
    a = np.radians(place.angle)
    mirror = -1.0 if place.mirrored else 1.0
    rows = [
        (mirror * np.cos(a), mirror * np.sin(a)),
        (-np.sin(a), np.cos(a)),
        (place.x / place.radius, place.y / place.radius),
    ]
    return SUPERSAMPLING * place.radius * np.asarray(rows)


def _shade(colour: str, hsv: tuple[float, float, float], value: float = 0.0) -> tuple[float, ...]:
    """RGB of a named colour after a shift in hue (in turns), and relative shifts in saturation and value."""
    h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in COLOURS[colour]))
    h, s, v = h + hsv[0], s * (1 + hsv[1]), v * (1 + hsv[2]) + value
    return tuple(255 * part for part in colorsys.hsv_to_rgb(h % 1, min(s, 1.0), min(max(v, 0.0), 1.0)))


@cache
def _grid() -> tuple[np.ndarray, np.ndarray]:
    axis = (np.arange(SIZE * SUPERSAMPLING, dtype=np.float32) + 0.5) / SUPERSAMPLING
    return axis[None, :], axis[:, None]


def _packed(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> np.ndarray:
    """Colours as four bytes RGBX in one little-endian uint32, so that whole pixels are set at once."""
    return red.astype("<u4") | green.astype("<u4") << 8 | blue.astype("<u4") << 16


def _background(content: Content, layout: Layout) -> np.ndarray:
    """The background in two shades of its colour, as a pattern or a gradient; pixels as in `_packed`."""
    base = _shade(content.background, layout.hsv)
    # The second shade is darker, or lighter if the colour is too dark to show a darker shade.
    gradient = content.pattern == "gradient"
    step = layout.contrast if max(base) < 90 else -layout.contrast * (2.0 if gradient else 1.0)
    other = _shade(content.background, layout.hsv, step)
    if gradient:  # over the whole frame
        blend, where = _gradient(layout.angle)
        return _packed(*((a * (1 - blend) + b * blend).round() for a, b in zip(base, other, strict=True)))[where]
    shades = _packed(*np.array([base, other]).T.round())
    if content.pattern == "plain":
        return np.full((SIZE * SUPERSAMPLING,) * 2, shades[0])
    return np.where(_pattern(content.pattern, layout.angle, layout.pitch, layout.phase), shades[1], shades[0])


@cache
def _gradient(angle: float) -> tuple[np.ndarray, np.ndarray]:
    """The distinct shares of the second shade, (values,), and the index of the share of each supersampled pixel."""
    x, y = _grid()
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    blend = np.clip(((x - SIZE / 2) * cos + (y - SIZE / 2) * sin) / (1.2 * SIZE) + 0.5, 0, 1)
    values, where = np.unique(blend, return_inverse=True)
    return values, where.reshape(blend.shape)


@lru_cache(512)  # all patterns of `sample_layout`: 6 MB
def _pattern(name: str, angle: float, pitch: float, phase: tuple[float, float]) -> np.ndarray:
    """Bool array of the supersampled pixels that have the second shade."""
    x, y = _grid()
    if name == "checkered":
        across = (x / pitch + phase[0]).astype(np.int32)
        return (across + (y / pitch + phase[1]).astype(np.int32)) % 2 == 1
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    u = (x * cos + y * sin) / pitch + phase[0]
    return u - np.floor(u) < 0.5
