"""An image as it is planned, the row that it becomes, and the shard of them that a worker is given."""

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
        width, height: the upright image's size in pixels; None if the image was not decoded.
        orientation: the EXIF tag as read, 1 if there is none; None if the image was not decoded.
        image_sha256: the SHA-256 of the file's bytes, in hex; None if they were not read.
        error: None unless the status is "rejected".
        image: the file's own bytes, where images are embedded.
        annotation_ids: the masks' ids, if they are not those that `annotation_id` gives.

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
    """What a worker is told of a shard.

    Attributes:
        deadly: ids of images that ended their workers; they are rejected without being read.
        probe: whether to try the images and commit nothing.
        replaces: the SHA-256 of the committed shard in which the rows of `images` are made anew; empty if
            the whole shard is made.

    """

    shard: int
    images: tuple[PlannedImage, ...]
    deadly: frozenset[int] = frozenset()
    probe: bool = False
    replaces: str = ""
