"""How to draw invertebrates: animalia, arachnida, insecta, mollusca. Each draws one individual.

"animalia" is the left-over group, as in the folders this data set imitates: it also has the fish, whose class
has no folder of its own.
"""

# An outline reads as rows of points; the formatter would put every point, and every number, on its own line.
# fmt: off
from __future__ import annotations

import math

import numpy as np

from imret.demo.pen import Mark, Pen, Rgb, accent, crease, ellipse, luminance, mix, pale, tone


def jellyfish(pen: Pen) -> None:
    """A bell with frilled arms and trailing tentacles."""
    bell, drift = pen.look.main, pen.jitter(0.2)
    for k in range(7):
        x, low = -0.6 + 0.2 * k, pen.rng.uniform(0.7, 1.0)
        wave = pen.jitter(0.12)
        pen.limb([(x, -0.1), (x * 0.95 + wave, 0.25), (x * 0.9 - wave + drift * 0.5, 0.6),
                  (x * 0.9 + drift, low)], [0.09, 0.08, 0.06, 0.03], tone(bell, 0.18), shade=0.3)
    for x in (-0.2, 0.06, 0.26):
        wave = pen.rng.uniform(0.06, 0.12) * pen.rng.choice((-1, 1))
        pen.limb([(x, -0.1), (x + wave, 0.12), (x - wave, 0.34), (x + wave + drift * 0.5, 0.56),
                  (x + drift * 0.6, 0.76)], [0.22, 0.24, 0.18, 0.16, 0.04], pale(bell, 0.4))
    high = pen.rng.uniform(0.86, 1.0)
    pen.blob([(-0.84, -0.02), (-0.78, -0.45 * high), (-0.42, -0.9 * high), (0, -high), (0.42, -0.9 * high),
              (0.78, -0.45 * high), (0.84, -0.02), (0.56, 0.1), (0.28, 0.0), (0, 0.1), (-0.28, 0.0),
              (-0.56, 0.1)], bell, marked=True)
    for side in (-1, 1):
        pen.eye(0.26 * side, -0.28, 0.1)
    pen.thread([(-0.1, -0.2), (0, -0.14), (0.1, -0.2)], crease(bell), 0.03)


def spider(pen: Pen) -> None:
    """Eight bent legs around two body parts; seen from above."""
    coat, plump = pen.look.main, pen.rng.uniform(0.34, 0.44)
    for side in (-1, 1):
        for knee, foot in (((0.46, -0.72), (0.34, -1.04)), ((0.66, -0.52), (0.96, -0.8)), ((0.68, -0.16),
                                                                                           (1.02, 0.16)),
                           ((0.6, 0.1), (0.78, 0.86))):
            bend, reach = pen.jitter(0.06), pen.rng.uniform(0.94, 1.05)
            pen.limb([(0.12 * side, -0.26), (knee[0] * side, knee[1] + bend),
                      (foot[0] * reach * side, foot[1] * reach)], [0.1, 0.1, 0.045], coat, shade=0.5)
    pen.oval(0, -0.26, 0.25, 0.26, accent(coat, 0.16))
    pen.oval(0, 0.28, plump, plump * 1.2, coat, marked=True)
    for side in (-1, 1):
        pen.limb([(0.07 * side, -0.46), (0.1 * side, -0.58)], [0.1, 0.06], accent(coat, 0.3), shade=0)
        pen.eye(0.1 * side, -0.38, 0.075)
        pen.dot(0.21 * side, -0.3, 0.035, (255, 255, 255))


def scorpion(pen: Pen) -> None:
    """Two pincers, eight legs, and a jointed tail that curls to a sting; seen from above."""
    shell = pen.look.main
    joint, curl = accent(shell, 0.18), pen.rng.choice((-1, 1))
    for side in (-1, 1):
        for k in range(4):
            y, a = -0.2 + 0.15 * k, -0.5 + 0.36 * k + pen.jitter(0.08)
            pen.limb([(0.14 * side, y), (0.42 * side, y + 0.18 * math.sin(a) - 0.06),
                      (0.66 * side, y + 0.46 * math.sin(a) + 0.08)], [0.085, 0.075, 0.04], joint, shade=0.4)
        pen.limb([(0.14 * side, -0.3), (0.48 * side, -0.36), (0.52 * side, -0.62)], [0.12, 0.12, 0.12], joint)
        claw = pen.jitter(0.04)
        pen.blob([(0.42 * side, -0.58), (0.36 * side, -0.8), (0.44 * side, -1.02), (0.5 * side, -0.84),
                  (0.54 * side, -0.8), (0.64 * side, -1.0 + claw), (0.74 * side, -0.8), (0.64 * side, -0.56)],
                 shell)
    tail = [(0, 0.3), (0.04 * curl, 0.56), (0.22 * curl, 0.78), (0.5 * curl, 0.86), (0.76 * curl, 0.72),
            (0.84 * curl, 0.46)]
    pen.limb([(0.84 * curl, 0.48), (0.8 * curl, 0.28), (0.62 * curl, 0.22)], [0.2, 0.13, 0.03], accent(shell,
                                                                                                       0.4))
    for k, (x, y) in enumerate(reversed(tail)):
        r = 0.115 + 0.012 * k
        pen.oval(x, y, r, r, shell, shade=0.8)
    pen.blob([(-0.2, -0.44), (-0.28, -0.05), (-0.22, 0.3), (0, 0.42), (0.22, 0.3), (0.28, -0.05),
              (0.2, -0.44), (0, -0.5)], shell, marked=True)
    for y in (-0.12, 0.04, 0.2):
        pen.thread([(-0.25, y), (0, y + 0.05), (0.25, y)], crease(shell), 0.025)
    for side in (-1, 1):
        pen.eye(0.09 * side, -0.36, 0.055)


def butterfly(pen: Pen) -> None:
    """Four wings spread, marked alike on both sides; seen from above."""
    wing, rim = pen.look.main, accent(pen.look.main, 0.5)
    spread, tail = pen.rng.uniform(0.88, 1.0), pen.rng.uniform(0.6, 0.86)
    upper = [(0.05, -0.1), (0.3, -0.56), (0.7, -0.86), (0.98, -0.72), (0.94, -0.3), (0.6, 0.02), (0.2, 0.08)]
    lower = [(0.05, 0.0), (0.4, 0.06), (0.72, 0.22), (0.74, 0.54), (0.5, tail), (0.24, 0.58), (0.08, 0.26)]
    for outline in (lower, upper):
        hub = (0.12, 0.0)
        inner = [(hub[0] + 0.84 * (x - hub[0]), hub[1] + 0.84 * (y - hub[1])) for x, y in outline]
        for side in (-1, 1):
            pen.blob([(x * spread * side, y) for x, y in outline], rim, shade=0.5)
            decoration = _wing_marks(pen, outline, spread * side)
            pen.blob([(x * spread * side, y) for x, y in inner], wing, marks=decoration, line=False)
    body: Rgb = (72, 56, 52) if luminance(wing) > 0.2 else (176, 150, 130)
    for side in (-1, 1):
        pen.thread([(0.02 * side, -0.42), (0.12 * side, -0.7), (0.26 * side, -0.86)], body, 0.03)
        pen.dot(0.26 * side, -0.86, 0.045, body)
    pen.limb([(0, -0.36), (0, 0.0), (0, 0.5)], [0.13, 0.17, 0.06], body)
    pen.oval(0, -0.42, 0.105, 0.1, body)


def _wing_marks(pen: Pen, outline: list[tuple[float, float]], mirror: float) -> list[Mark]:
    """The pattern of a wing as a function of its outline only, so that left and right agree."""
    look = pen.look
    xs, ys = [x for x, _ in outline], [y for _, y in outline]
    x0, y0, wide, high = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    if look.pattern == "spots":
        places = ((0.8, 0.3, 0.1), (0.72, 0.62, 0.085), (0.5, 0.42, 0.11), (0.5, 0.76, 0.07),
                  (0.3, 0.66, 0.08))
        return [(ellipse((x0 + u * wide) * mirror, y0 + v * high, r, r,
                         n=14), look.mark) for u, v, r in places]
    if look.pattern == "stripes":
        bands: list[Mark] = []
        for k in range(4):
            r = 0.3 + 0.22 * k
            a = np.linspace(-1.4, 1.6, 14)
            ring = [np.stack([q * np.cos(a) * mirror, q * np.sin(a)], axis=1) for q in (r, r + 0.085)]
            bands.append((np.concatenate([ring[0], ring[1][::-1]]), look.mark))
        return bands
    return []


def dragonfly(pen: Pen) -> None:
    """A long thin body, four narrow glassy wings, large eyes; seen from above."""
    body, bend = pen.look.main, pen.jitter(0.08)
    glass: Rgb = mix((226, 240, 246), body, 0.16)
    for side in (-1, 1):
        for y, lift in ((-0.18, 0.14), (-0.4, -0.16)):
            tip = y + lift + pen.jitter(0.05)
            pen.blob([(0.06 * side, y), (0.5 * side, tip - 0.1), (0.94 * side, tip - 0.1), (1.04 * side, tip),
                      (0.9 * side, tip + 0.1), (0.44 * side, tip + 0.1)], glass, shade=0.4)
            pen.thread([(0.1 * side, y), (0.5 * side, tip), (0.96 * side, tip)], tone(glass, -0.35), 0.02)
            pen.oval(0.88 * side, tip - 0.06, 0.06, 0.03, accent(body, 0.3), line=False, shade=0)
    pen.limb([(0, -0.1), (bend * 0.4, 0.4), (bend, 0.98)], [0.24, 0.17, 0.13], body, marked=True)
    pen.oval(0, -0.3, 0.2, 0.3, body, marked=True)
    pen.oval(0, -0.66, 0.17, 0.14, body)
    for side in (-1, 1):
        pen.oval(0.16 * side, -0.7, 0.14, 0.15, accent(body, 0.4))
        pen.dot(0.13 * side, -0.76, 0.04, (255, 255, 255))


def snail(pen: Pen) -> None:
    """A spiral shell on a soft foot, with two eyes on stalks; seen from the side."""
    shell, raise_head = pen.look.main, pen.jitter(0.08)
    flesh: Rgb = mix((226, 196, 150), shell, 0.12) if luminance(shell) < 0.75 else (186, 146, 110)
    for x, lean in ((-0.62, 0.02), (-0.78, -0.14)):
        pen.limb([(x, 0.14 + raise_head), (x + lean, -0.3 + raise_head)], [0.09, 0.06], flesh, shade=0.3)
        pen.eye(x + lean, -0.34 + raise_head, 0.085)
    pen.blob([(-0.94, 0.2 + raise_head), (-0.72, 0.04 + raise_head), (-0.46, 0.24), (-0.1, 0.5), (0.5, 0.6),
              (1.02, 0.78), (0.6, 0.84), (-0.5, 0.84), (-0.8, 0.66), (-0.92, 0.44)], flesh)
    pen.thread([(-0.9, 0.4), (-0.82, 0.44), (-0.74, 0.4)], crease(flesh), 0.03)
    r = pen.rng.uniform(0.58, 0.66)
    x, y = 0.16, 0.08
    pen.oval(x, y, r, r * 0.97, shell, marked=True)
    t = np.linspace(0, 1, 22)
    a, reach = 2.2 + t * 4.6 * math.pi, r * (0.97 - 0.93 * t)
    pen.thread(np.stack([x + reach * np.cos(a), y + reach * np.sin(a)], axis=1), crease(shell), 0.05)


def octopus(pen: Pen) -> None:
    """A large head above eight curling arms."""
    skin = pen.look.main
    suckers = pale(skin, 0.5)
    for k in (0, 7, 1, 6, 2, 5, 3, 4):
        u = (k - 3.5) / 3.5
        curl = pen.rng.uniform(0.1, 0.2) * (1 if u > 0 else -1)
        low = 0.96 - 0.62 * abs(u) ** 2.2 + pen.jitter(0.04)
        path = [(0.34 * u, 0.0), (0.62 * u, 0.34 - 0.06 * abs(u)), (0.9 * u, low),
                (0.94 * u + curl, low - 0.12), (0.88 * u + curl * 0.9, low - 0.22)]
        pen.limb(path, [0.26, 0.19, 0.15, 0.1, 0.05], skin)
        for share in (0.3, 0.6, 0.9):
            pen.dot((0.5 + 0.38 * share) * u, 0.16 + share * (low - 0.2), 0.026, suckers)
    high = pen.rng.uniform(0.92, 1.04)
    pen.blob([(-0.42, 0.14), (-0.56, -0.3), (-0.5, -0.72 * high), (0, -high), (0.5, -0.72 * high),
              (0.56, -0.3), (0.42, 0.14), (0, 0.26)], skin, marked=True)
    for side in (-1, 1):
        pen.eye(0.21 * side, -0.14, 0.14)
    pen.thread([(-0.1, 0.08), (0, 0.13), (0.1, 0.08)], crease(skin), 0.035)
