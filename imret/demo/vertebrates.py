"""How to draw vertebrates: amphibia, aves, mammalia, reptilia, fish. Each draws one individual."""

# An outline reads as rows of points; the formatter would put every point, and every number, on its own line.
# fmt: off
from __future__ import annotations

import math

from imret.demo.pen import CREAM, INK, Pen, Rgb, accent, crease, luminance, mix, pale, tone

BEAK: Rgb = (244, 166, 52)
ROSE: Rgb = (240, 150, 160)


def frog(pen: Pen) -> None:
    """Sitting, seen from the front: eyes on top, a wide mouth, folded hind legs."""
    skin = pen.look.main
    belly = tone(mix(skin, CREAM, 0.55), 0.25)
    for side in (-1, 1):
        pen.oval(0.62 * side, 0.5, 0.34, 0.4, tone(skin, -0.1), turn=-0.35 * side, marked=True)
        pen.blob([(0.45 * side, 0.84), (0.98 * side, 0.82), (1.02 * side, 0.96), (0.78 * side, 0.93),
                  (0.6 * side, 1.0), (0.4 * side, 0.95)], skin)
    pen.blob([(-0.52, 0.0), (-0.6, 0.5), (-0.4, 0.9), (0, 0.96), (0.4, 0.9), (0.6, 0.5), (0.52, 0.0)], skin,
             marked=True)
    pen.oval(0, 0.52, 0.36, 0.38, belly, shade=0.4, line=False)
    for side in (-1, 1):
        pen.limb([(0.4 * side, 0.3), (0.46 * side, 0.65), (0.3 * side, 0.9)], [0.2, 0.16, 0.14], skin)
        pen.blob([(0.16 * side, 0.9), (0.3 * side, 0.84), (0.46 * side, 0.92), (0.42 * side, 1.0),
                  (0.3 * side, 0.95), (0.18 * side, 1.0)], skin)
    for side in (-1, 1):
        pen.oval(0.42 * side, -0.56, 0.25, 0.25, skin)
    wide = pen.rng.uniform(0.74, 0.84)
    pen.blob([(-wide, -0.14), (-0.6, -0.46), (0, -0.5), (0.6, -0.46), (wide, -0.14), (0.5, 0.18), (0, 0.25),
              (-0.5, 0.18)], skin, marked=True)
    for side in (-1, 1):
        pen.eye(0.43 * side, -0.58, 0.17)
        pen.dot(0.09 * side, -0.24, 0.024, crease(skin))
    grin = pen.rng.uniform(0.06, 0.16)
    pen.thread([(-0.56, -0.1), (-0.3, -0.04 + grin * 0.6), (0, grin), (0.3, -0.04 + grin * 0.6),
                (0.56, -0.1)], crease(skin), 0.035)


def axolotl(pen: Pen) -> None:
    """A broad smiling head with three feathery gills a side, and a finned tail; seen from above."""
    skin, bend = pen.look.main, pen.jitter(0.22)
    plume: Rgb = (232, 92, 122) if not (skin[0] > 180 and skin[1] < 150) else (150, 70, 150)
    fin = pale(skin, 0.35)
    pen.limb([(0, 0.2), (bend, 0.6), (-bend * 1.2, 0.98)], [0.5, 0.42, 0.05], fin)
    for side in (-1, 1):
        for y, reach in ((-0.06, 0.46), (0.46, 0.42)):
            pen.limb([(0.14 * side, y), ((reach - 0.1) * side, y + 0.02), (reach * side, y + 0.16)],
                     [0.13, 0.12, 0.1], skin)
    pen.limb([(0, -0.4), (bend * 0.2, 0.1), (bend, 0.6), (-bend, 0.92)], [0.44, 0.52, 0.24, 0.04], skin,
             marked=True)
    for side in (-1, 1):
        for a, long in ((-0.55, 0.44), (-0.05, 0.5), (0.42, 0.42)):
            x, y = 0.4 * side, -0.52 + 0.12 * a
            tip = (x + long * math.cos(a) * side, y + long * math.sin(a) + pen.jitter(0.04))
            middle = ((x + tip[0]) / 2, (y + tip[1]) / 2 - 0.05)
            pen.limb([(x, y), middle, tip], [0.14, 0.17, 0.07], plume)
            pen.thread([(x, y), middle, tip], tone(plume, -0.3), 0.02)
    pen.blob([(-0.5, -0.56), (-0.36, -0.84), (0, -0.94), (0.36, -0.84), (0.5, -0.56), (0.34, -0.32),
              (0, -0.24), (-0.34, -0.32)], skin, marked=pen.look.pattern == "spots")
    for side in (-1, 1):
        pen.eye(0.29 * side, -0.66, 0.075, white=False)
        pen.dot(0.3 * side, -0.5, 0.05, mix(skin, ROSE, 0.6))
    pen.thread([(-0.16, -0.52), (-0.08, -0.47), (0, -0.46), (0.08, -0.47), (0.16, -0.52)], crease(skin),
               0.028)


def sparrow(pen: Pen) -> None:
    """A small round bird, seen from the side."""
    coat, lift = pen.look.main, pen.jitter(0.08)
    belly = pale(mix(coat, CREAM, 0.5), 0.3)
    for x in (-0.08, 0.16):
        pen.limb([(x, 0.5), (x + 0.04, 0.92)], [0.06, 0.05], (176, 108, 52), shade=0)
        for toe in (-0.13, 0.0, 0.1):
            pen.limb([(x + 0.04, 0.92), (x + 0.04 + toe - 0.04, 0.98)], [0.045, 0.035], (176, 108, 52),
                     shade=0)
    pen.blob([(0.4, 0.1), (0.98, -0.1 + lift), (1.04, 0.06 + lift), (0.5, 0.36)], tone(coat, -0.22),
             corners=True)
    pen.blob([(-0.72, -0.02), (-0.5, -0.4), (-0.05, -0.36), (0.36, -0.1), (0.6, 0.14), (0.4, 0.46),
              (0.02, 0.62), (-0.42, 0.5), (-0.68, 0.25)], coat, marked=True)
    pen.blob([(-0.66, 0.14), (-0.4, 0.1), (-0.1, 0.4), (0.1, 0.58), (-0.2, 0.58), (-0.5, 0.44)], belly,
             shade=0.4, line=False)
    pen.blob([(-0.82, -0.56), (-1.1, -0.46), (-0.82, -0.38)], BEAK, corners=True)
    pen.oval(-0.54, -0.5, 0.36, 0.34, coat)
    if pen.rng.random() < 0.4:
        pen.blob([(-0.6, -0.8), (-0.42, -1.02), (-0.3, -0.96), (-0.34, -0.74)], tone(coat, -0.2))
    pen.eye(-0.66, -0.55, 0.085, white=luminance(coat) < 0.3)
    wing = accent(coat, 0.3)
    pen.blob([(-0.28, -0.12), (0.1, -0.16), (0.5, 0.08), (0.76, 0.24), (0.3, 0.36), (-0.1, 0.3), (-0.3, 0.1)],
             wing, marked=True)
    for y in (0.06, 0.18):
        pen.thread([(0.02, y), (0.3, y + 0.06), (0.58, y + 0.1 - y * 0.2)], crease(wing), 0.025)


def flamingo(pen: Pen) -> None:
    """Long legs, one often bent, and an S of a neck; seen from the side."""
    coat, sway = pen.look.main, pen.jitter(0.05)
    leg = mix(coat, (226, 120, 120), 0.6)
    pen.limb([(0.18, 0.2), (0.2, 0.6), (0.18, 0.98)], [0.08, 0.07, 0.065], leg, shade=0.3)
    pen.limb([(0.18, 0.96), (0.05, 0.99)], [0.08, 0.06], leg, shade=0.3)
    if pen.rng.random() < 0.6:
        pen.limb([(0.34, 0.2), (0.4, 0.5)], [0.08, 0.07], leg, shade=0.3)
        pen.limb([(0.4, 0.5), (0.14, 0.62)], [0.07, 0.06], leg, shade=0.3)
    else:
        pen.limb([(0.36, 0.2), (0.4, 0.6), (0.46, 0.96)], [0.08, 0.07, 0.065], leg, shade=0.3)
    pen.limb([(-0.14, 0.06), (-0.46, -0.06), (-0.42 + sway, -0.38), (-0.2 + sway, -0.62),
              (-0.34 + sway, -0.86)], [0.26, 0.18, 0.15, 0.14, 0.17], coat)
    pen.blob([(-0.7 + sway, -0.86), (-0.86 + sway, -0.66), (-0.78 + sway, -0.58), (-0.62 + sway, -0.72)], INK)
    pen.blob([(-0.46 + sway, -0.94), (-0.74 + sway, -0.86), (-0.66 + sway, -0.74), (-0.44 + sway, -0.76)],
             (250, 232, 214), shade=0.3)
    pen.oval(-0.36 + sway, -0.84, 0.2, 0.165, coat)
    pen.eye(-0.42 + sway, -0.88, 0.06)
    pen.blob([(-0.34, 0.0), (-0.1, -0.3), (0.34, -0.28), (0.84, 0.12), (0.5, 0.28), (0.1, 0.36),
              (-0.22, 0.26)], coat, marked=True)
    pen.blob([(-0.02, -0.06), (0.34, -0.14), (0.72, 0.1), (0.92, 0.26), (0.4, 0.24), (0.08, 0.16)],
             accent(coat, 0.2), marked=True)


def _sitting(pen: Pen, coat: Rgb) -> None:
    """The body and paws of a small mammal that sits facing us."""
    pen.blob([(-0.32, -0.1), (-0.52, 0.5), (-0.46, 0.9), (0, 0.98), (0.46, 0.9), (0.52, 0.5), (0.32, -0.1)],
             coat, marked=True)
    bib = pale(mix(coat, CREAM, 0.5), 0.3)
    pen.oval(0, 0.42, 0.24, 0.36, bib, line=False, shade=0.3)
    for side in (-1, 1):
        pen.limb([(0.17 * side, 0.4), (0.17 * side, 0.9)], [0.18, 0.19], coat)
        pen.oval(0.18 * side, 0.92, 0.15, 0.09, bib, shade=0.3)


def cat(pen: Pen) -> None:
    """Sitting, facing us: pointed ears, whiskers, a curling tail."""
    coat, tilt = pen.look.main, pen.jitter(0.05)
    pen.limb([(0.3, 0.84), (0.72, 0.82), (0.88, 0.5), (0.72, 0.24 + tilt)], [0.2, 0.19, 0.17, 0.13], coat,
             marked=True)
    _sitting(pen, coat)
    for side in (-1, 1):
        pen.blob([(0.5 * side, -0.44), (0.5 * side, -1.0), (0.06 * side, -0.72)], coat, corners=True)
        pen.blob([(0.42 * side, -0.6), (0.43 * side, -0.86), (0.2 * side, -0.72)], ROSE, corners=True,
                 shade=0, line=False)
    pen.blob([(-0.56, -0.32), (-0.44, -0.68), (0, -0.78), (0.44, -0.68), (0.56, -0.32), (0.34, -0.02),
              (0, 0.06), (-0.34, -0.02)], coat, marked=True)
    muzzle = pale(mix(coat, CREAM, 0.5), 0.3)
    for side in (-1, 1):
        pen.oval(0.11 * side, -0.12, 0.14, 0.1, muzzle, line=False, shade=0)
        pen.dot(0.25 * side, -0.38, 0.135, INK)
        pen.dot(0.25 * side, -0.38, 0.115, (176, 214, 96))
        pen.oval(0.25 * side, -0.38, 0.05, 0.1, (22, 20, 24), line=False, shade=0)
        pen.dot(0.22 * side, -0.43, 0.03, (255, 255, 255))
        for y, rise in ((-0.14, -0.06), (-0.08, 0.03)):
            pen.thread([(0.2 * side, y), (0.68 * side, y + rise)], crease(coat), 0.018, curved=False)
    pen.blob([(-0.07, -0.22), (0.07, -0.22), (0, -0.14)], ROSE, corners=True)
    pen.thread([(-0.1, -0.08), (-0.04, -0.05), (0, -0.12), (0.04, -0.05), (0.1, -0.08)], INK, 0.022)


def rabbit(pen: Pen) -> None:
    """Sitting, facing us: long ears, round cheeks, two teeth."""
    coat = pen.look.main
    pen.oval(0.5, 0.7, 0.16, 0.16, pale(coat, 0.6))
    _sitting(pen, coat)
    for side in (-1, 1):
        lean = 0.08 + pen.rng.uniform(0, 0.16)
        droop = pen.rng.random() < 0.12
        path = [(0.16 * side, -0.46), ((0.2 + lean * 0.6) * side, -0.78), ((0.18 + lean * 1.4) * side, -1.02)]
        if droop:
            path[2] = ((0.56 + lean) * side, -0.7)
        pen.limb(path, [0.2, 0.25, 0.12], coat)
        pen.limb([path[0], path[1], ((path[1][0] + path[2][0]) / 2, (path[1][1] + path[2][1]) / 2)],
                 [0.08, 0.12, 0.07], ROSE, line=False, shade=0)
    pen.blob([(-0.46, -0.2), (-0.36, -0.5), (0, -0.6), (0.36, -0.5), (0.46, -0.2), (0.3, 0.06), (0, 0.12),
              (-0.3, 0.06)], coat, marked=True)
    muzzle = pale(mix(coat, CREAM, 0.5), 0.3)
    pen.blob([(-0.06, 0.0), (0.06, 0.0), (0.05, 0.14), (-0.05, 0.14)], (255, 255, 255), corners=True, shade=0)
    for side in (-1, 1):
        pen.oval(0.1 * side, -0.06, 0.13, 0.1, muzzle, line=False, shade=0)
        pen.eye(0.24 * side, -0.26, 0.085, white=False)
        pen.dot(0.32 * side, -0.1, 0.055, mix(coat, ROSE, 0.6))
    pen.blob([(-0.06, -0.16), (0.06, -0.16), (0, -0.08)], ROSE, corners=True)


def turtle(pen: Pen) -> None:
    """A domed shell of plates on four legs; seen from the side."""
    shell = pen.look.main
    skin: Rgb = (156, 170, 96) if shell[1] < shell[0] or shell[2] > shell[1] else (196, 164, 112)
    high, stretch = pen.rng.uniform(0.62, 0.8), pen.jitter(0.08)
    pen.blob([(0.6, 0.4), (0.98, 0.52), (0.6, 0.58)], skin, corners=True)
    for x in (-0.3, 0.5):
        pen.limb([(x, 0.36), (x + 0.03, 0.74)], [0.26, 0.22], tone(skin, -0.22))
    pen.limb([(-0.5, 0.4), (-0.76, 0.14 + stretch), (-0.84, 0.0 + stretch)], [0.28, 0.23, 0.24], skin)
    pen.oval(-0.84, -0.04 + stretch, 0.23, 0.19, skin)
    pen.eye(-0.9, -0.09 + stretch, 0.075)
    pen.thread([(-1.02, 0.04 + stretch), (-0.93, 0.07 + stretch), (-0.85, 0.04 + stretch)], crease(skin),
               0.025)
    for x in (-0.48, 0.32):
        pen.limb([(x, 0.4), (x - 0.03, 0.78)], [0.28, 0.25], skin)
    pen.blob([(-0.66, 0.46), (0, 0.56), (0.72, 0.46), (0.7, 0.36), (-0.66, 0.36)], tone(mix(shell, CREAM,
                                                                                            0.6), 0.1))
    top = 0.38 - high * 1.25
    pen.blob([(-0.72, 0.4), (-0.62, 0.0), (-0.34, top * 0.82), (0.03, top), (0.4, top * 0.82), (0.7, 0.0),
              (0.8, 0.4), (0.04, 0.47)], shell, marked=True)
    seam = crease(shell)
    pen.thread([(-0.62, 0.08), (-0.3, 0.0), (0.05, 0.02), (0.4, 0.0), (0.7, 0.08)], seam, 0.03)
    for x, slant in ((-0.3, -0.1), (0.05, 0.0), (0.4, 0.1)):
        pen.thread([(x, 0.0), (x - slant * 1.1, top * (0.86 - abs(slant)))], seam, 0.03, curved=False)
        pen.thread([(x, 0.0), (x + slant * 0.5, 0.43)], seam, 0.03, curved=False)


def lizard(pen: Pen) -> None:
    """Four splayed legs with toes, a long curling tail; seen from above."""
    skin, curl = pen.look.main, pen.rng.uniform(0.2, 0.5) * pen.rng.choice((-1, 1))
    for side in (-1, 1):
        for y, ahead in ((-0.36, -1), (0.12, 1)):
            step = pen.jitter(0.08)
            foot = (0.56 * side, y + 0.26 * ahead + step)
            pen.limb([(0.1 * side, y), (0.4 * side, y + 0.04 * ahead + step), foot], [0.16, 0.13, 0.1], skin)
            for toe in (-0.7, 0.0, 0.7):
                a = math.atan2(0.26 * ahead, 0.2 * side) + toe
                pen.limb([foot, (foot[0] + 0.16 * math.cos(a), foot[1] + 0.16 * math.sin(a))], [0.055, 0.04],
                         skin, shade=0)
    pen.limb([(0, -0.55), (0.02, -0.2), (0, 0.15), (curl * 0.4, 0.5), (curl, 0.72), (curl * 1.3, 0.98),
              (curl * 0.7, 1.02)], [0.24, 0.36, 0.34, 0.24, 0.15, 0.1, 0.04], skin, marked=True)
    pen.blob([(-0.2, -0.6), (-0.21, -0.76), (-0.1, -1.0), (0, -1.04), (0.1, -1.0), (0.21, -0.76), (0.2, -0.6),
              (0, -0.5)], skin)
    for side in (-1, 1):
        pen.eye(0.14 * side, -0.78, 0.065)
        pen.dot(0.045 * side, -0.98, 0.016, crease(skin))


def fish(pen: Pen) -> None:
    """A fish from the side: fins, a forked tail, a round eye."""
    scale, deep, wag = pen.look.main, pen.rng.uniform(0.4, 0.56), pen.jitter(0.1)
    fin = accent(mix(scale, (250, 190, 90), 0.25), 0.12)
    pen.blob([(0.5, 0.0), (0.78, -0.24 + wag), (1.04, -0.56 + wag), (0.88, 0.0 + wag), (1.04, 0.56 + wag),
              (0.78, 0.24 + wag)], fin)
    pen.blob([(-0.3, -deep * 0.8), (-0.06, -deep - 0.28), (0.34, -deep - 0.12), (0.4, -deep * 0.5)], fin)
    pen.blob([(-0.1, deep * 0.8), (0.06, deep + 0.22), (0.28, deep + 0.08), (0.3, deep * 0.6)], fin)
    pen.blob([(-0.96, 0.04), (-0.78, -deep * 0.6), (-0.3, -deep), (0.2, -deep * 0.8), (0.62, -0.13),
              (0.66, 0.12), (0.2, deep * 0.8), (-0.3, deep), (-0.8, deep * 0.55)], scale, marked=True)
    pen.thread([(-0.48, -deep * 0.66), (-0.36, 0), (-0.48, deep * 0.66)], crease(scale), 0.03)
    pen.blob([(-0.22, 0.06), (0.1, 0.0), (0.18, 0.18), (0.02, 0.3)], fin)
    pen.eye(-0.66, -0.1, 0.12)
    pen.thread([(-0.94, 0.1), (-0.84, 0.16), (-0.76, 0.13)], crease(scale), 0.03)
