"""How to draw plants and fungi. Each draws one individual."""

# An outline reads as rows of points; the formatter would put every point, and every number, on its own line.
# fmt: off
from __future__ import annotations

import math

import numpy as np

from imret.demo.pen import CREAM, LEAF, Pen, accent, luminance, mix, tone


def mushroom(pen: Pen) -> None:
    """A cap on a pale stem: round, flat or pointed."""
    cap, bend, wide = pen.look.main, pen.jitter(0.12), pen.rng.uniform(0.85, 1.0)
    high = pen.rng.uniform(0.62, 0.98)
    stem = mix(CREAM, tone(cap, 0.5), pen.rng.uniform(0, 0.25))
    if luminance(cap) > 0.85:
        stem = tone(stem, -0.16)
    thick = pen.rng.uniform(0.26, 0.44)
    pen.limb([(bend, 0.98), (bend * 0.3, 0.5), (0, -0.1)], [thick * 1.35, thick, thick * 0.85], stem)
    pen.oval(0, 0.02, wide * 0.82, 0.17, tone(stem, -0.32), shade=0.4)
    for k in range(-6, 7):
        pen.thread([(k * 0.02, 0.02), (k * 0.118 * wide, 0.02 + 0.15 * math.sqrt(1 - (k / 7) ** 2))],
                   tone(stem, -0.55), 0.018, curved=False)
    if pen.rng.random() < 0.6:
        pen.blob([(-thick * 0.7, 0.36), (0, 0.28), (thick * 0.7, 0.36), (thick * 0.4, 0.44), (0, 0.41),
                  (-thick * 0.4, 0.44)], tone(stem, 0.3), shade=0.3)
    top = -high
    pen.blob([(-wide, 0.02), (-wide * 0.9, top * 0.48), (-wide * 0.5, top * 0.9), (0, top * 1.02),
              (wide * 0.5, top * 0.9), (wide * 0.9, top * 0.48), (wide, 0.02), (wide * 0.55, 0.02),
              (0, -0.04), (-wide * 0.55, 0.02)], cap, marked=True)


def chanterelle(pen: Pen) -> None:
    """A funnel with a wavy rim and ridges running down it."""
    cap, wide = pen.look.main, pen.rng.uniform(0.82, 0.96)
    rim = [(wide * math.cos(a), -0.58 + 0.24 * math.sin(a) + 0.05 * math.sin(5 * a + pen.jitter(0.3)))
           for a in np.linspace(0, 2 * math.pi, 16, endpoint=False)]
    lean = pen.jitter(0.1)
    pen.blob([(-wide, -0.58), (-wide * 0.62, -0.12), (-0.24, 0.3), (-0.2 + lean, 0.92), (lean, 1.0),
              (0.2 + lean, 0.92), (0.24, 0.3), (wide * 0.62, -0.12), (wide, -0.58), (0, -0.42)], cap,
             marked=True)
    crease = accent(cap, 0.45)
    for k in (-3, -2, -1, 0, 1, 2, 3):
        pen.thread([(k * wide * 0.27, -0.4 + 0.03 * k * k * -0.9), (k * 0.12, 0.1),
                    (k * 0.045 + lean * 0.5, 0.6)], crease, 0.022)
    pen.blob(rim, accent(cap, 0.16))
    pen.blob([(x * 0.55, (y + 0.58) * 0.5 - 0.55) for x, y in rim], tone(cap, -0.42), shade=0.3, line=False)


def flower(pen: Pen) -> None:
    """Petals around a heart, on a stem with two leaves."""
    petals, bend = pen.rng.randint(5, 8), pen.jitter(0.15)
    pen.limb([(bend, 1.0), (bend * 0.4, 0.4), (0, -0.3)], [0.1, 0.09, 0.08], LEAF)
    for side in (-1, 1):
        y = 0.62 + pen.jitter(0.12)
        pen.blob([(0.02 * side, y + 0.1), (0.3 * side, y - 0.18), (0.62 * side, y - 0.22),
                  (0.42 * side, y + 0.06)], tone(LEAF, pen.jitter(0.12)))
    start, long = pen.rng.uniform(0, 6.28), pen.rng.uniform(0.56, 0.66)
    plump = 1.12 * math.sin(math.pi / petals) * long * 0.6
    for k in range(petals):
        a = start + 2 * math.pi * k / petals
        c, s = math.cos(a), math.sin(a)
        petal = [(0.1, 0.0), (long * 0.55, -plump), (long * 0.92, -plump * 0.62), (long, 0.0),
                 (long * 0.92, plump * 0.62), (long * 0.55, plump)]
        pen.blob([(x * c - y * s, -0.34 + x * s + y * c) for x, y in petal], pen.look.main, marked=True,
                 shade=0.8)
    heart = (120, 78, 40) if luminance(pen.look.main) > 0.6 else (250, 204, 70)
    pen.oval(0, -0.34, 0.2, 0.2, heart)
    for k in range(9):
        pen.dot(0.1 * math.cos(2.4 * k) * math.sqrt(k / 5),
                -0.34 + 0.1 * math.sin(2.4 * k) * math.sqrt(k / 5), 0.018, tone(heart, -0.4))


def cactus(pen: Pen) -> None:
    """A ribbed column with raised arms, thorns, and often a blossom."""
    body = pen.look.main
    rib = accent(body, 0.36)
    for side in pen.rng.choice([(-1, 1), (-1, 1), (1, -1), (1,)]):
        y, rise = pen.rng.uniform(-0.05, 0.4), pen.rng.uniform(0.42, 0.62)
        pen.limb([(0.1 * side, y + 0.04), (0.42 * side, y), (0.6 * side, y - 0.16), (0.62 * side, y - rise)],
                 [0.24, 0.25, 0.27, 0.24], body, marked=True)
        pen.thread([(0.4 * side, y), (0.59 * side, y - 0.15), (0.62 * side, y - rise)], rib, 0.02)
    wide = pen.rng.uniform(0.46, 0.6)
    pen.limb([(0, 0.92), (0, 0.2), (pen.jitter(0.05), -0.66)], [wide * 1.05, wide * 1.1, wide * 0.9], body,
             marked=True)
    for k in (-1, 0, 1):
        pen.thread([(k * wide * 0.27, 0.95), (k * wide * 0.29, 0.2), (k * wide * 0.2, -0.72)], rib, 0.02)
    thorn = (70, 60, 50) if luminance(body) > 0.5 else (250, 244, 225)
    for side in (-1, 1):
        for y in np.arange(-0.6, 0.95, 0.2):
            x = wide * 0.53 * side
            pen.thread([(x, y), (x + 0.1 * side, y - 0.06)], thorn, 0.02, curved=False)
    if pen.rng.random() < 0.6:
        bloom = (240, 120, 160) if pen.look.main[0] < 190 else (252, 214, 90)
        for a in (-2.5, -2.0, -1.57, -1.1, -0.6):
            pen.oval(0.12 * math.cos(a), -0.9 + 0.1 * math.sin(a), 0.12, 0.055, bloom, turn=a, shade=0.3)
