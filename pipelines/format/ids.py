"""What the numbers of a corpus mean, in words and for those who check them: in one that a run of ours made,
and in one that was imported from SA-1B.

An import keeps what its source says: the ids of images and annotations, and boxes as SA-1B measures them,
from the first pixel to the last, so that a mask of one pixel has a box of width 0. Its configuration says
that it is one, hence the run digest too; `run.json` tells the same in words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .schema import image_id

CONVENTIONS: dict[str, str] = {
    "image_id": "first 63 bits of the SHA-256 of the key's UTF-8",
    "annotation_id": "(row in the plan << 20) + mask index + 1",
    "coordinates": "pixels of the upright image; x to the right, y down, origin at the top left corner",
    "orientation": "EXIF tag as read; it is applied before anything is measured",
    "bbox": "x, y, width, height; width = x_max - x_min + 1",
    "crop_box": "x, y, width, height",
    "point_coords": "x, y",
    "segmentation": "COCO compressed RLE, column by column; size = height, width",
    "colour": "RGB, 8 bits; transparency over white; 16 bits >> 8; ICC profiles are not applied",
}
IMPORTED: dict[str, str] = CONVENTIONS | {
    "image_id": "that of SA-1B: the number in the name sa_NUMBER.jpg",
    "annotation_id": "that of SA-1B; no two of one image are the same",
    "bbox": "as SA-1B has it: x, y, width, height; width = x_max - x_min",
}
SOURCE = "import"
"""The key of the configuration that says from which format a corpus was imported."""

SA1B = "sa1b"

_NAME = re.compile(r"sa_(0|[1-9][0-9]{0,18})\.(?:jpg|json)")
_LARGEST_ID = 2**63 - 1


def is_imported(config: Mapping[str, Any]) -> bool:
    """Whether a corpus with this configuration in its `run.json` was imported from SA-1B."""
    return config.get(SOURCE) == SA1B


def released_id(key: str) -> int | None:
    """The image_id in a key whose last part is `sa_NUMBER.jpg` or `.json`, as SA-1B names its files; None
    for any other name.
    """
    found = _NAME.fullmatch(re.split("[/#]", key)[-1])
    number = int(found[1]) if found else -1
    return number if 0 <= number <= _LARGEST_ID else None


def identify(key: str, imported: bool) -> int | None:
    """The image_id that belongs to a key; None where an imported corpus cannot have such a key."""
    return released_id(key) if imported else image_id(key)
