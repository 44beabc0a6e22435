"""Boxes and labels on a canvas, written as SVG text.

Coordinates are pixels from the top left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape, quoteattr

FONT: Final = "DejaVu Sans"


class PictureError(ValueError):
    """A picture that cannot be written as it was asked for."""


@dataclass(frozen=True)
class Box:
    """A rectangle; title is shown by viewers when the pointer rests on it."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    stroke: str = "none"
    radius: float = 0.0
    title: str = ""


@dataclass(frozen=True)
class Label:
    """A line of text. y: of its baseline; anchor: "start", "middle" or "end"."""

    x: float
    y: float
    text: str
    size: float = 12.0
    fill: str = "#222222"
    anchor: str = "start"
    is_bold: bool = False


Shape = Box | Label


@dataclass(frozen=True)
class Canvas:
    """Shapes in the order in which they are painted."""

    width: float
    height: float
    shapes: Sequence[Shape]

    def write(self, path: Path) -> None:
        """Write an .svg file. PictureError for other names."""
        if path.suffix.lower() != ".svg":
            raise PictureError(f"{path.name}: a picture of a plan is an .svg file")
        path.write_text(self.svg(), encoding="utf-8")

    def svg(self) -> str:
        """The picture as an SVG document."""
        width, height = f"{self.width:g}", f"{self.height:g}"
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="{FONT}, Verdana, sans-serif">'
        )
        return "\n".join([head, *map("".join, map(_svg, self.shapes)), "</svg>\n"])


def _svg(shape: Shape) -> Iterator[str]:
    if isinstance(shape, Label):
        bold = ' font-weight="bold"' if shape.is_bold else ""
        yield f'<text x="{shape.x:g}" y="{shape.y:g}" font-size="{shape.size:g}" '
        yield f'text-anchor="{shape.anchor}" fill="{shape.fill}"{bold}>{escape(shape.text)}</text>'
        return
    yield f'<rect x="{shape.x:g}" y="{shape.y:g}" width="{shape.width:g}" '
    yield f'height="{shape.height:g}" rx="{shape.radius:g}" fill="{shape.fill}" '
    yield f"stroke={quoteattr(shape.stroke)}"
    yield f"><title>{escape(shape.title)}</title></rect>" if shape.title else "/>"
