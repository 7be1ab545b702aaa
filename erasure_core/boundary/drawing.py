"""A sheet of simple shapes that becomes SVG or a picture by Pillow: hosts have neither matplotlib nor a rasteriser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from PIL import Image, ImageDraw, ImageFont

SUPERSAMPLED = 2
BASELINE = 0.8
"""Share of a bitmap letter's height that is above the line it stands on."""
STRAIGHT = str.maketrans("“”", '""')
INK, DIM, FAINT, PAPER = "#1f2430", "#5b6270", "#c9ced8", "#ffffff"
WARN, SHADE = "#a23b2c", "#fdecea"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#5b3fd1", "#7a7a7a", "#8c1d40")
"""Okabe and Ito's colours, told apart with every kind of colour vision, and a few more."""
AT_NIGHT = {
    INK: "#e8eaf0", DIM: "#a0a7b5", FAINT: "#3d4452", PAPER: "#15181f", WARN: "#ff9a85", SHADE: "#3a2320",
    "#0072b2": "#3d9be0", "#5b3fd1": "#9d87f5", "#7a7a7a": "#9a9a9a", "#8c1d40": "#ff5c7a",
}  # fmt: skip
"""What takes a colour's place on a page in a dark theme; the others are seen on both."""

Place = tuple[float, float]


def night_style() -> str:
    """CSS for the drawings of a page that follows the theme. A drawing by itself stays on white paper."""
    rules = (
        f'svg [{what}="{day}"] {{ {what}: {night} }}' for day, night in AT_NIGHT.items() for what in ("fill", "stroke")
    )
    return f"@media (prefers-color-scheme: dark) {{ {' '.join(rules)} }}"


@dataclass(frozen=True)
class Shape:
    """One shape. ``kind`` is ``line``, ``circle``, ``ring``, ``rect`` or ``text``; ``places`` are its corners, centre
    or anchor; ``size`` is a line's width, a circle's radius or a text's height; ``anchor`` is start, middle or end."""

    kind: str
    places: tuple[Place, ...]
    colour: str
    size: float = 1.0
    text: str = ""
    anchor: str = "start"
    opacity: float = 1.0


@dataclass
class Sheet:
    """A drawing in the making; the origin is at the upper left, units are pixels."""

    width: int
    height: int
    shapes: list[Shape] = field(default_factory=list)

    def line(self, places: Sequence[Place], colour: str = INK, width: float = 1.0) -> None:
        self.shapes.append(Shape("line", tuple(places), colour, width))

    def circle(self, place: Place, radius: float, colour: str, opacity: float = 1.0) -> None:
        self.shapes.append(Shape("circle", (place,), colour, radius, opacity=opacity))

    def ring(self, place: Place, radius: float, colour: str) -> None:
        """A hollow circle."""
        self.shapes.append(Shape("ring", (place,), colour, radius))

    def rect(self, corner: Place, opposite: Place, colour: str, opacity: float = 1.0) -> None:
        self.shapes.append(Shape("rect", (corner, opposite), colour, opacity=opacity))

    def text(self, place: Place, text: str, size: float = 12, colour: str = INK, anchor: str = "start") -> None:
        self.shapes.append(Shape("text", (place,), colour, size, text, anchor))

    def svg(self, title: str = "") -> str:
        """The drawing as one SVG element; texts are escaped."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" font-family="system-ui, sans-serif" role="img">'
        )
        parts = [head, f"<title>{escape(title)}</title>", *map(_svg, self.shapes), "</svg>"]
        return "\n".join(parts)

    def picture(self) -> Image.Image:
        """The drawing as an RGB picture on white paper."""
        size = (self.width * SUPERSAMPLED, self.height * SUPERSAMPLED)
        image = Image.new("RGB", size, PAPER)
        draw = ImageDraw.Draw(image, "RGBA")
        for shape in self.shapes:
            _paint(draw, shape)
        return image.resize((self.width, self.height), Image.Resampling.LANCZOS)


def _svg(shape: Shape) -> str:
    (x, y), colour = shape.places[0], shape.colour
    faded = f' fill-opacity="{shape.opacity:g}"' if shape.opacity < 1 else ""
    if shape.kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{shape.size:g}" fill="{colour}"{faded}/>'
    if shape.kind == "ring":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{shape.size:g}" fill="none" stroke="{colour}"/>'
    if shape.kind == "rect":
        right, low = shape.places[1]
        return f'<rect x="{x:.1f}" y="{y:.1f}" width="{right - x:.1f}" height="{low - y:.1f}" fill="{colour}"{faded}/>'
    if shape.kind == "text":
        words = escape(shape.text)
        return (
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{shape.size:g}" fill="{colour}" '
            f'text-anchor="{shape.anchor}">{words}</text>'
        )
    points = " ".join(f"{px:.1f},{py:.1f}" for px, py in shape.places)
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{shape.size:g}"/>'


def _paint(draw: ImageDraw.ImageDraw, shape: Shape) -> None:
    places = [(x * SUPERSAMPLED, y * SUPERSAMPLED) for x, y in shape.places]
    red, green, blue = (int(shape.colour[i : i + 2], 16) for i in (1, 3, 5))
    colour, (x, y) = (red, green, blue, round(255 * shape.opacity)), places[0]
    size = shape.size * SUPERSAMPLED
    if shape.kind == "circle":
        draw.ellipse((x - size, y - size, x + size, y + size), fill=colour)
    elif shape.kind == "ring":
        draw.ellipse((x - size, y - size, x + size, y + size), outline=colour, width=SUPERSAMPLED)
    elif shape.kind == "rect":
        draw.rectangle((*places[0], *places[1]), fill=colour)
    elif shape.kind == "line":
        draw.line(places, fill=colour, width=max(1, round(size)))
    elif isinstance(font := _font(size), ImageFont.FreeTypeFont):
        anchor = {"start": "ls", "middle": "ms", "end": "rs"}[shape.anchor]
        draw.text((x, y), shape.text, fill=colour, font=font, anchor=anchor)
    else:
        mask = _written(font, shape.text, size)
        before = {"start": 0.0, "middle": 0.5, "end": 1.0}[shape.anchor]
        draw.bitmap((round(x - before * mask.width), round(y - BASELINE * mask.height)), mask, fill=colour)


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1, which AUTOMATIC1111 pins, has a bitmap of one size
        return ImageFont.load_default()


def _written(font: ImageFont.ImageFont, text: str, size: float) -> Image.Image:
    """A text so high in a bitmap font, which knows Latin-1 only, one size and no anchors."""
    known = text.translate(STRAIGHT).encode("latin-1", "replace").decode("latin-1")
    _, _, width, height = (round(edge) for edge in font.getbbox(known or " "))
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).text((0, 0), known, fill=255, font=font)
    return mask.resize((max(1, round(width * size / height)), round(size)), Image.Resampling.BICUBIC)
