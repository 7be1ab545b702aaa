"""Draws scenes with signed distance functions: anti-aliased, fast and the same on every machine.

Each shape is a function of local coordinates ``u`` (right) and ``v`` (down), in which the thing fills about
[-1, 1] x [-1, 1]. It returns layers ``(distance, tone)``: where the distance is negative the layer is painted, in the
thing's own colour (``tone`` a brightness factor) or in a fixed RGB triple.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .scene import COLOUR_NUANCES, OBJECT_NUANCES, SIZE, Scene, Thing

Array = NDArray[np.float32]
Tone = float | tuple[float, float, float]
Layers = list[tuple[Array, Tone]]

RGB: dict[str, tuple[float, float, float]] = {
    "red": (0.82, 0.13, 0.12),
    "green": (0.10, 0.56, 0.20),
    "blue": (0.13, 0.25, 0.82),
    "yellow": (0.93, 0.78, 0.10),
    "purple": (0.55, 0.16, 0.66),
    "white": (0.90, 0.90, 0.90),
}
BROWN = (0.40, 0.26, 0.13)
CREAM = (0.90, 0.83, 0.68)
OUTLINE = 0.25
"""Brightness of the outline, as a factor of the thing's colour."""
STRIPE, DOT = 0.38, OUTLINE
"""Brightness of stripes and dots, as a factor of the thing's colour."""
STRIPE_PERIOD, DOT_SPACING, DOT_ROWS, DOT_RADIUS = 0.8, 1.0, 0.68, 0.28
"""In halves of a thing's size. Every other row of dots is shifted by half the spacing."""

_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + np.float32(0.5)


def _circle(u: Array, v: Array, cx: float, cy: float, r: float) -> Array:
    return np.hypot(u - cx, v - cy) - r


def _rectangle(u: Array, v: Array, cx: float, cy: float, half_w: float, half_h: float) -> Array:
    return np.maximum(np.abs(u - cx) - half_w, np.abs(v - cy) - half_h)


def _triangle(u: Array, v: Array, top: float, bottom: float, half_w: float) -> Array:
    """Upright isosceles triangle with its tip at ``v = top``."""
    slope = half_w / (bottom - top)
    side = (np.abs(u) - (v - top) * slope) / math.hypot(1.0, slope)
    return np.maximum(side, v - bottom)


def _star(u: Array, v: Array, points: int, outer: float, inner: float) -> Array:
    """Star polygon; the distance is exact along the edges."""
    sector = 2 * math.pi / points
    angle = np.mod(np.arctan2(u, -v) + sector / 2, sector) - sector / 2
    r = np.hypot(u, v)
    x, y = r * np.cos(angle), np.abs(r * np.sin(angle))
    tip, notch = (outer, 0.0), (inner * math.cos(sector / 2), inner * math.sin(sector / 2))
    ex, ey = notch[0] - tip[0], notch[1] - tip[1]
    return ((x - tip[0]) * ey - (y - tip[1]) * ex) / math.hypot(ex, ey)


def ball(u: Array, v: Array) -> Layers:
    return [(_circle(u, v, 0, 0, 1.0), 1.0), (_circle(u, v, -0.35, -0.4, 0.22), (1.0, 1.0, 1.0))]


def ring(u: Array, v: Array) -> Layers:
    return [(np.abs(_circle(u, v, 0, 0, 0.76)) - 0.24, 1.0)]


def box(u: Array, v: Array) -> Layers:
    return [(_rectangle(u, v, 0, 0, 0.85, 0.85), 1.0)]


def house(u: Array, v: Array) -> Layers:
    roof = np.maximum(_triangle(u, v, -1.15, -0.2, 1.05), v + 0.2)
    return [(_rectangle(u, v, 0, 0.35, 0.75, 0.6), 1.0), (roof, 0.55), (_rectangle(u, v, 0, 0.62, 0.2, 0.34), BROWN)]


def pyramid(u: Array, v: Array) -> Layers:
    return [(_triangle(u, v, -1.0, 0.85, 1.05), 1.0)]


def tree(u: Array, v: Array) -> Layers:
    upper, lower = _triangle(u, v, -1.1, 0.0, 0.62), _triangle(u, v, -0.6, 0.6, 0.9)
    return [(_rectangle(u, v, 0, 0.85, 0.17, 0.3), BROWN), (np.minimum(upper, lower), 1.0)]


def star(u: Array, v: Array) -> Layers:
    return [(_star(u, v, 5, 1.12, 0.5), 1.0)]


def flower(u: Array, v: Array) -> Layers:
    petals = [_circle(u, v, 0.6 * math.sin(a), -0.6 * math.cos(a), 0.42) for a in np.arange(6) * math.pi / 3]
    return [
        (np.minimum.reduce([*petals, _circle(u, v, 0, 0, 0.4)]), 1.0),
        (_circle(u, v, 0, 0, 0.3), (0.98, 0.86, 0.25)),
    ]


def moon(u: Array, v: Array) -> Layers:
    return [(np.maximum(_circle(u, v, 0, 0, 1.0), -_circle(u, v, 0.48, -0.12, 0.82)), 1.0)]


def boat(u: Array, v: Array) -> Layers:
    hull = np.maximum.reduce([_circle(u, v, 0, -0.15, 1.05), 0.2 - v, v - 0.8])
    sail = np.maximum.reduce([0.08 - u, v - 0.1, (u * 1.1 - v - 1.05) / 1.5])
    return [(_rectangle(u, v, 0, -0.4, 0.07, 0.65), BROWN), (hull, 1.0), (sail, 1.0)]


def mushroom(u: Array, v: Array) -> Layers:
    cap = np.maximum(_circle(u, v * 1.15, 0, 0.0, 1.0), v - 0.08)
    return [(_rectangle(u, v, 0, 0.5, 0.3, 0.48), CREAM), (cap, 1.0)]


def umbrella(u: Array, v: Array) -> Layers:
    scallops = np.maximum.reduce([-_circle(u, v, c, 0.12, 0.34) for c in (-0.66, 0.0, 0.66)])
    canopy = np.maximum.reduce([_circle(u, v, 0, 0.05, 1.05), v - 0.1, scallops])
    hook = np.maximum(np.abs(_circle(u, v, 0.2, 0.75, 0.22)) - 0.08, 0.75 - v)
    return [(np.minimum(_rectangle(u, v, 0, 0.2, 0.075, 0.6), hook), (0.12, 0.12, 0.14)), (canopy, 1.0)]


def heart(u: Array, v: Array) -> Layers:
    lobes = np.minimum(_circle(u, v, -0.46, -0.32, 0.55), _circle(u, v, 0.46, -0.32, 0.55))
    tip = np.maximum((np.abs(u) + v * 0.88 - 0.9) / 1.33, -0.3 - v)
    return [(np.minimum(lobes, tip), 1.0)]


def fish(u: Array, v: Array) -> Layers:
    body = _circle(u, v * 1.55, 0.2, 0, 0.8)
    tail = np.maximum((np.abs(v) * 1.0 + u + 0.35) / 1.41, -1.1 - u)
    return [(np.minimum(body, tail), 1.0), (_circle(u, v, 0.6, -0.12, 0.12), (0.05, 0.05, 0.05))]


SHAPES: dict[str, Callable[[Array, Array], Layers]] = {
    shape.__name__: shape
    for shape in (ball, ring, box, house, pyramid, tree, star, flower, moon, boat, mushroom, umbrella, heart, fish)
}


def _surface(style: str, u: Array, v: Array, base: Array) -> Array:
    """The tone [64, 64, 3] of a thing's own colour ``base`` [3] under a surface style.

    Both patterns repeat more widely than a latent pixel (8 picture pixels): finer ones a latent model cannot place.
    """
    share, second = np.zeros_like(u), base
    if style == "striped":
        share, second = np.clip(0.5 + 2.2 * np.sin(2 * math.pi * v / STRIPE_PERIOD), 0, 1), base * STRIPE
    elif style == "dotted":
        row = np.round(v / DOT_ROWS)
        across = np.mod(u + (row % 2 + 1) * DOT_SPACING / 2, DOT_SPACING) - DOT_SPACING / 2
        share, second = np.clip((DOT_RADIUS - np.hypot(across, v - row * DOT_ROWS)) * 12 + 0.5, 0, 1), base * DOT
    return base + share[..., None] * (second - base)


def _background(name: str) -> Array:
    image = np.empty((SIZE, SIZE, 3), np.float32)
    ramp = (_Y / SIZE)[..., None]
    if name == "sky":
        image[:] = (0.52, 0.70, 0.84) + ramp * np.float32((0.20, 0.14, 0.08))
    elif name == "meadow":
        image[:] = np.where(ramp < 0.42, np.float32((0.80, 0.84, 0.80)), np.float32((0.58, 0.68, 0.42)))
    elif name == "desert":
        dune = 0.5 + 0.08 * np.sin(_X / SIZE * 2 * math.pi)[..., None]
        image[:] = np.where(ramp < dune, np.float32((0.93, 0.82, 0.70)), np.float32((0.80, 0.64, 0.44)))
    else:
        image[:] = (0.07, 0.08, 0.16) + (1 - ramp) * np.float32((0.05, 0.05, 0.10))
    return image


def _blend(image: Array, coverage: Array, paint: Array) -> None:
    image += coverage[..., None] * (paint - image)


def _draw(image: Array, thing: Thing) -> None:
    factor, aspect, tilt = OBJECT_NUANCES[thing.object_say]
    radius = thing.radius * factor
    dx, dy = (_X - thing.x) / radius, (_Y - thing.y) / radius
    u = (dx * math.cos(tilt) + dy * math.sin(tilt)) / math.sqrt(aspect)
    v = (-dx * math.sin(tilt) + dy * math.cos(tilt)) * math.sqrt(aspect)
    colour = np.float32(RGB[thing.colour]) * COLOUR_NUANCES[thing.colour_say]
    for distance, tone in SHAPES[thing.object](u, v):
        own = not isinstance(tone, tuple)
        base = colour * tone if own else np.float32(tone)
        surface = _surface(thing.style if own else "plain", u, v, base)
        _blend(image, np.clip(0.5 - distance * radius + 0.9, 0, 1), np.broadcast_to(base * OUTLINE, image.shape))
        _blend(image, np.clip(0.5 - distance * radius - 0.4, 0, 1), surface)


def render(scene: Scene) -> NDArray[np.uint8]:
    """Draw a scene. Returns an RGB picture of shape [64, 64, 3]."""
    image = _background(scene.background)
    for thing in scene.things:
        _draw(image, thing)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
