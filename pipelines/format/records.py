"""An image as it is planned, as it becomes a row, and a shard of them as a worker is given it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...engine.records import DROP_REASONS, MaskRecord
from ..errors import InputRejected


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """One input in its place. `row` is its position in the whole plan, 0 first."""

    image_id: int
    key: str
    uri: str
    shard: int
    row: int


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One row of a shard, before it is Arrow.

    Attributes:
        row: position in the plan; decides the annotations' ids.
        width, height: pixels of the upright image; None where the image was not decoded.
        orientation: the EXIF tag as read, 1 where there is none; None where the image was not decoded.
        image_sha256: of the file's bytes, in hex; None where they were not read.
        error: None unless the status is "rejected".
        image: the file's own bytes, where images are embedded.
        annotation_ids: of the masks, where they are not those of `annotation_id`.

    """

    row: int
    image_id: int
    key: str
    uri: str
    status: str
    width: int | None = None
    height: int | None = None
    orientation: int | None = None
    image_sha256: str | None = None
    error: InputRejected | None = None
    candidates: int = 0
    drops: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(DROP_REASONS, 0))
    image: bytes | None = None
    masks: Sequence[MaskRecord] = ()
    annotation_ids: Sequence[int] | None = None

    def __post_init__(self) -> None:
        expected = "rejected" if self.error else "ok" if self.masks else "empty"
        if self.status != expected:
            raise ValueError(f"{self.key}: expected status {expected!r}, got {self.status!r}")


@dataclass(frozen=True, slots=True)
class ShardTask:
    """A shard's description.

    Attributes:
        deadly: ids of images that ended their workers; refused without being read.
        probe: try the images and commit nothing.
        replaces: the SHA-256 of the shard that is there; `images` are those of its rows that are to be made
            anew. Empty where the whole shard is to be made.

    """

    shard: int
    images: tuple[PlannedImage, ...]
    deadly: frozenset[int] = frozenset()
    probe: bool = False
    replaces: str = ""
