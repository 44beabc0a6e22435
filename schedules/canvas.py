"""Boxes and labels on a canvas, written as SVG text or, through matplotlib, as PNG.

Coordinates are pixels from the top left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape, quoteattr

FONT: Final = "DejaVu Sans"
PNG_SCALE: Final = 2  # pixels of a PNG for one of the canvas


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
        """Write an .svg or .png file. PictureError for other names, or without matplotlib."""
        match path.suffix.lower():
            case ".svg":
                path.write_text(self.svg(), encoding="utf-8")
            case ".png":
                self._write_png(path)
            case _:
                raise PictureError("a picture is an .svg or a .png file")

    def svg(self) -> str:
        """The picture as an SVG document."""
        width, height = f"{self.width:g}", f"{self.height:g}"
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="{FONT}, Verdana, sans-serif">'
        )
        return "\n".join([head, *map("".join, map(_svg, self.shapes)), "</svg>\n"])

    def _write_png(self, path: Path) -> None:
        try:
            from matplotlib.figure import Figure
            from matplotlib.patches import FancyBboxPatch, Rectangle
        except ImportError as error:
            raise PictureError(
                f"a PNG needs matplotlib (pip install 'sandwich-llm[plot]'): "
                f"write {path.with_suffix('.svg')} instead"
            ) from error
        inch = 72.0  # so that sizes of text, which are points, are pixels
        figure = Figure(figsize=(self.width / inch, self.height / inch))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, self.width)
        axes.set_ylim(self.height, 0)
        axes.axis("off")
        aligned = {"start": "left", "middle": "center", "end": "right"}
        for shape in self.shapes:
            if isinstance(shape, Label):
                axes.text(
                    shape.x,
                    shape.y,
                    shape.text,
                    fontsize=shape.size,
                    color=shape.fill,
                    ha=aligned[shape.anchor],
                    va="baseline",
                    family=FONT,
                    weight="bold" if shape.is_bold else "normal",
                    parse_math=False,
                )
                continue
            r = min(shape.radius, shape.width / 2, shape.height / 2)
            style: dict[str, Any] = {"facecolor": shape.fill, "edgecolor": shape.stroke}
            if r:
                corner = shape.x + r, shape.y + r
                size = shape.width - 2 * r, shape.height - 2 * r
                rounded = f"round,pad={r}"
                axes.add_patch(FancyBboxPatch(corner, *size, boxstyle=rounded, **style))
            else:
                corner = shape.x, shape.y
                axes.add_patch(Rectangle(corner, shape.width, shape.height, **style))
        figure.savefig(path, dpi=inch * PNG_SCALE, facecolor="white")


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
