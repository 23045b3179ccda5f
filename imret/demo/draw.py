"""Decide what one picture shows, and draw it.

`Attributes` is what the picture shows, in words; `draw` makes an image of it. All that is not an attribute
(place, pose, shade, light, grain, focus, shape of the frame) varies freely and is hidden here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageFilter

from imret.demo import invertebrates, plants_and_fungi, scenes, vertebrates
from imret.demo.pen import COLORS, Look, Pen, Rgb, luminance, mix, pool, shade_of

PATTERNS = ("plain", "spots", "stripes")
SIZES = ("small", "medium", "large")
_SUPERSAMPLING = 2


@dataclass(frozen=True)
class Subject:
    """One kind of thing: its words, how to draw it, and where and how it is usually seen."""

    name: str
    plural: str
    category: str
    draw: Callable[[Pen], None]
    home: tuple[str, ...]  # backgrounds it is seen on more often than on others
    turn: float = 0.15  # most that it is rotated, radians
    stands: bool = True  # throws a shadow on the ground below it


_SEEN_FROM_ABOVE = 0.6  # more would need more pictures than a small model has time for
_LAND, _WATER = ("forest", "meadow", "desert", "snow"), ("sea",)
SUBJECTS = (
    Subject("frog", "frogs", "amphibia", vertebrates.frog, ("forest", "meadow")),
    Subject("axolotl", "axolotls", "amphibia", vertebrates.axolotl, _WATER, 0.4, False),
    Subject("jellyfish", "jellyfish", "animalia", invertebrates.jellyfish, _WATER, 0.25, False),
    Subject("fish", "fish", "animalia", vertebrates.fish, _WATER, 0.25, False),
    Subject(
        "spider", "spiders", "arachnida", invertebrates.spider, ("forest", "plain"), _SEEN_FROM_ABOVE, False
    ),
    Subject("scorpion", "scorpions", "arachnida", invertebrates.scorpion, ("desert",), 0.4, False),
    Subject("sparrow", "sparrows", "aves", vertebrates.sparrow, _LAND),
    Subject("flamingo", "flamingos", "aves", vertebrates.flamingo, ("sea", "meadow"), 0.1),
    Subject("mushroom", "mushrooms", "fungi", plants_and_fungi.mushroom, ("forest", "meadow")),
    Subject("chanterelle", "chanterelles", "fungi", plants_and_fungi.chanterelle, ("forest", "meadow")),
    Subject(
        "butterfly", "butterflies", "insecta", invertebrates.butterfly, ("meadow", "forest"), 0.35, False
    ),
    Subject("dragonfly", "dragonflies", "insecta", invertebrates.dragonfly, ("meadow", "sea"), 0.5, False),
    Subject("cat", "cats", "mammalia", vertebrates.cat, ("meadow", "plain")),
    Subject("rabbit", "rabbits", "mammalia", vertebrates.rabbit, ("meadow", "snow", "forest")),
    Subject("snail", "snails", "mollusca", invertebrates.snail, ("forest", "meadow")),
    Subject("octopus", "octopuses", "mollusca", invertebrates.octopus, _WATER, 0.25, False),
    Subject("flower", "flowers", "plantae", plants_and_fungi.flower, ("meadow", "forest")),
    Subject("cactus", "cactuses", "plantae", plants_and_fungi.cactus, ("desert", "plain"), 0.1),
    Subject("turtle", "turtles", "reptilia", vertebrates.turtle, ("sea", "desert", "meadow")),
    Subject(
        "lizard", "lizards", "reptilia", vertebrates.lizard, ("desert", "forest"), _SEEN_FROM_ABOVE, False
    ),
)
CATEGORIES = tuple(sorted({subject.category for subject in SUBJECTS}))
_BY_NAME = {subject.name: subject for subject in SUBJECTS}

# what a pattern may be drawn in, so that it can be told from the colour below it
_MARKS = dict.fromkeys(COLORS, ("white", "yellow")) | {
    "yellow": ("black", "red"), "white": ("black", "red"), "orange": ("white", "black"),
    "pink": ("white", "black"), "red": ("white", "black"), "green": ("white", "yellow"),
}  # fmt: skip


@dataclass(frozen=True)
class Attributes:
    """What one picture shows. `pattern_color` is "" if the pattern is plain; several are "medium" in size."""

    category: str
    subject: str
    color: str
    pattern: str
    pattern_color: str
    count: int
    size: str
    background: str


def subject_named(name: str) -> Subject:
    """Return the subject of that name; KeyError if there is none."""
    return _BY_NAME[name]


def choose(index: int, rng: Random) -> Attributes:
    """Choose what picture `index` of a split shows.

    Categories take turns by index, and so do the subjects within a category. Colour, pattern, count and size
    are drawn at random whatever the subject; the background leans towards where the subject lives. Several
    are of medium size, as they share the frame.
    """
    category = CATEGORIES[index % len(CATEGORIES)]
    kinds = [subject for subject in SUBJECTS if subject.category == category]
    subject = kinds[(index // len(CATEGORIES)) % len(kinds)]
    color = rng.choice(tuple(COLORS))
    pattern = rng.choices(PATTERNS, (0.46, 0.27, 0.27))[0]
    count = rng.choices((1, 2, 3, 4), (0.62, 0.19, 0.11, 0.08))[0]
    size = rng.choice(SIZES) if count == 1 else "medium"
    weights = [3.0 if place in subject.home else 1.0 for place in scenes.BACKGROUNDS]
    return Attributes(
        category=category,
        subject=subject.name,
        color=color,
        pattern=pattern,
        pattern_color="" if pattern == "plain" else rng.choice(_MARKS[color]),
        count=count,
        size=size,
        background=rng.choices(scenes.BACKGROUNDS, weights)[0],
    )


# side of a subject's box over the short side of the frame: (smallest, largest)
_EXTENT = {"small": (0.5, 0.62), "medium": (0.66, 0.78), "large": (0.82, 0.95)}  # of one alone
_EXTENT_OF_SEVERAL = {2: (0.46, 0.62), 3: (0.43, 0.54), 4: (0.41, 0.5)}  # by count


def _arrange(
    count: int, frame: tuple[int, int], box: float, rng: Random, *, top: float
) -> list[tuple[float, float]]:
    """Return centres for `count` boxes of side `box` that stay in the frame and hardly overlap.

    `top` is the share of the free height, from above, that is left empty if it can be.
    """
    w, h = frame
    room = (max(0.0, w - box), max(0.0, h - box))
    best: list[tuple[float, float]] = []
    best_gap = -1.0
    for _ in range(1 if count == 1 else 14):
        places = [
            (box / 2 + rng.random() * room[0], box / 2 + rng.uniform(top, 1) * room[1]) for _ in range(count)
        ]
        gap = min((math.dist(a, b) for i, a in enumerate(places) for b in places[:i]), default=math.inf)
        if gap > best_gap:
            best, best_gap = places, gap
    if best_gap < box * 0.92:  # chance found no room: the corners and edges always have it
        inset_x, inset_y = (max(0.0, side - 2 * box) / 2 * rng.random() for side in frame)
        x0, x1, y0, y1 = box / 2 + inset_x, w - box / 2 - inset_x, box / 2 + inset_y, h - box / 2 - inset_y
        corners = [(x0, y0), (x1, y1), (x1, y0), (x0, y1)]
        if rng.random() < 0.5:
            corners = [(w - x, y) for x, y in corners]
        if count == 3:
            corners = (
                [(x0, y0), (x1, y0), (w / 2, y1)] if rng.random() < 0.5 else [(x0, y1), (x1, y1), (w / 2, y0)]
            )
        slack = 0.04 * box
        best = [(x + rng.uniform(-slack, slack), y + rng.uniform(-slack, slack)) for x, y in corners[:count]]
    return sorted(best, key=lambda place: place[1])  # the nearer ones are drawn over the farther


def _veil(scene: Image.Image, main: Rgb, rng: Random) -> Image.Image:
    """Lighten or darken a scene away from the subject's own lightness, so that the two do not melt."""
    light = luminance(main)
    if light < 0.34:
        return Image.blend(scene, Image.new("RGB", scene.size, (236, 238, 240)), rng.uniform(0.16, 0.3))
    if light > 0.82:
        return Image.blend(scene, Image.new("RGB", scene.size, (52, 66, 84)), rng.uniform(0.28, 0.4))
    return scene


def _develop(picture: Image.Image, rng: Random) -> Image.Image:
    """Light, grain and focus of a photograph."""
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.BoxBlur(rng.uniform(0.3, 1.0)))
    w, h = picture.size
    warmth, gain = rng.uniform(-0.05, 0.05), rng.uniform(0.88, 1.1)
    slope_x, slope_y = rng.uniform(-0.1, 0.1), rng.uniform(-0.08, 0.08)
    light = gain + slope_x * np.linspace(-1, 1, w, dtype=np.float32)[None, :]
    light = light + slope_y * np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    noise = np.random.default_rng(rng.getrandbits(64))
    grain = noise.integers(-8, 9, size=(h, w), dtype=np.int8) * np.float32(rng.choice((0.0, 0.4, 0.9)))
    pixels = np.array(picture, dtype=np.float32)
    for channel, share in enumerate((1 + warmth, 1.0, 1 - warmth)):
        plane = pixels[:, :, channel]
        plane *= light * np.float32(share)
        plane += grain
    return Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))


def _ground(
    scene: Image.Image, attributes: Attributes, main: Rgb, place: tuple[float, float], unit: float
) -> None:
    """Lay on the unscaled scene a halo, so that the subject's edge shows, and the shadow it throws."""
    x, y, unit = place[0] / _SUPERSAMPLING, place[1] / _SUPERSAMPLING, unit / _SUPERSAMPLING
    if luminance(main) < 0.6:
        pool(scene, (x, y), 1.6 * unit, 1.6 * unit, (255, 253, 244), 0.4)
    else:
        pool(scene, (x, y), 1.6 * unit, 1.6 * unit, (40, 46, 60), 0.24)
    if subject_named(attributes.subject).stands:
        pool(scene, (x, y + unit * 0.95), unit * 0.95, unit * 0.22, (30, 28, 40), 0.62)
    elif attributes.background not in ("sea", "night"):
        pool(scene, (x + unit * 0.08, y + unit * 0.14), unit * 1.05, unit, (30, 28, 40), 0.42)


def draw(attributes: Attributes, *, size: int, rng: Random) -> Image.Image:
    """Draw one picture of what `attributes` say.

    Args:
        attributes: What the picture shows.
        size: Long side in pixels; the aspect varies from 3:4 to 4:3.
        rng: Decides all that is not an attribute; the same state gives the same pixels.

    Returns:
        RGB image.
    """
    subject = subject_named(attributes.subject)
    aspect = math.exp(rng.uniform(-math.log(4 / 3), math.log(4 / 3)))  # width over height
    width, height = (size, round(size / aspect)) if aspect >= 1 else (round(size * aspect), size)
    frame = (width * _SUPERSAMPLING, height * _SUPERSAMPLING)
    main = shade_of(attributes.color, rng)
    mark = shade_of(attributes.pattern_color, rng) if attributes.pattern_color else main

    several = attributes.count > 1
    box = min(frame) * rng.uniform(
        *(_EXTENT_OF_SEVERAL[attributes.count] if several else _EXTENT[attributes.size])
    )
    unit = box * rng.uniform(0.92, 1.0) / (2.15 if subject.turn < 0.3 else 2.3)
    places = _arrange(attributes.count, frame, box, rng, top=0.55 if subject.stands else 0.0)
    ground = min(y + 0.8 * unit for _, y in places) / frame[1] if subject.stands else 1.0
    scene = _veil(scenes.paint(attributes.background, (width, height), rng, ground=ground), main, rng)
    for place in places:
        _ground(scene, attributes, main, place, unit)
    # What is out of focus needs no supersampling: doubling its pixels is undone exactly at the end.
    canvas = scene.resize(frame, Image.Resampling.NEAREST)

    light_left, line = rng.random() < 0.5, rng.uniform(0.022, 0.042)
    flip, turn = rng.random() < 0.5, rng.uniform(-subject.turn, subject.turn)
    slant = rng.uniform(0, math.pi)
    for place in places:
        pen = Pen(
            canvas,
            place,
            unit=unit * rng.uniform(0.92, 1.0),
            look=Look(mix(main, shade_of(attributes.color, rng), 0.3), attributes.pattern, mark, slant),
            rng=rng,
            turn=turn + rng.uniform(-0.12, 0.12),
            flip=flip if rng.random() < 0.75 else not flip,
            squash=rng.uniform(0.95, 1.06),
            line=line,
            light_left=light_left,
        )
        subject.draw(pen)
    scenes.overlay(canvas, attributes.background, rng)
    return _develop(canvas.reduce(_SUPERSAMPLING), rng)
