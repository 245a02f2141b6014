"""Pictures read back."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree


def texts(svg: Path) -> set[str]:
    """The words of a picture."""
    found = ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")
    return {"".join(text.itertext()) for text in found}
