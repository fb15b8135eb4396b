"""A corpus in the formats that others read: SA-1B's tar files, or one COCO JSON.

    hold the corpus against its record → write down what is exported → each part that is not there yet →
    (COCO) put the parts together

Each part, a tar file of so many images or a shard's entries, becomes visible whole or not at all, and holds
no date, no owner and no path of this machine: a killed export that is started again goes on with the next
part and ends with the bytes that it would have had. `export.json`, written first, says what is exported, so
that two exports do not mix in one folder.

Rows are read a row group at a time and written as they come: memory does not grow with the corpus.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

from ..corpus.masks import Priority, label_map
from ..corpus.reader import Corpus
from ..corpus.views import View
from ..errors import CorpusError, CorpusUnavailable, IncompleteRun, UsageError
from ..format.layout import shard_path
from ..format.tally import Tally
from ..storage import atomic
from ..storage.json_files import as_bytes, read_json
from ..storage.paths import is_remote, refuse_inside
from ..writing.progress import Display, LiveLine
from . import coco
from .encode import label_png, upright_jpeg
from .export_rows import Source
from .sa1b import add_member, entry_json, file_stem

EXPORT = "export.json"
ANNOTATIONS = "annotations.json"
PARTS = "parts"
LABELS = "labels"
IMAGES_PER_TAR = 1000

_COCO_COLUMNS = ("image_id", "key", "width", "height", "annotations")

Format = Literal["sa1b", "coco"]


@dataclass(frozen=True, slots=True)
class Options:
    """What is written.

    Attributes:
        format: SA-1B's tar files, or COCO's JSON.
        images_per_tar: of SA-1B's; the last tar file may have fewer.
        polygons: COCO's outlines in place of run-length codes.
        view: which masks.
        non_overlapping: a label map for each image, in which the smaller mask shows, or the one of higher
            predicted IoU; None: no label maps.

    """

    format: Format
    images_per_tar: int = IMAGES_PER_TAR
    polygons: bool = False
    view: View = field(default_factory=View)
    non_overlapping: Priority | None = None

    def __post_init__(self) -> None:
        if self.images_per_tar < 1:
            raise ValueError(f"expected at least 1 image in a tar file, got {self.images_per_tar}")


@dataclass(slots=True)
class Exported:
    """What a call wrote, besides what was there already.

    Attributes:
        images, masks: in the parts that it wrote.
        parts: tar files, or shards of COCO's entries and the JSON that has them all.
        left_out: images whose files are missing or have changed.
        rejected: rows of the whole corpus that are in no export.

    """

    images: int = 0
    masks: int = 0
    parts: int = 0
    left_out: int = 0
    rejected: int = 0


def export(
    corpus_path: str | Path,
    out: Path,
    options: Options,
    *,
    unfinished: bool = False,
    skip_missing: bool = False,
    moved: Mapping[str, str] | None = None,
    note: Callable[[str], None] = lambda _: None,
    display: Display | None = None,
) -> Exported:
    """Write a corpus into the folder `out`, or what is missing of it there.

    With `unfinished` a corpus without `corpus.json` is exported as far as it is committed. An image whose
    file is missing or has changed ends the export of SA-1B's files; with `skip_missing` it is left out, and
    `note` is told. Images that the corpus rejected are in no export. `moved` is as `Corpus` has it, and
    `display` says whether progress is shown.

    Raises CorpusError for a corpus that is unfinished, damaged or not to be read, and for an image as said;
    UsageError where `out` is not this export's folder; IncompleteRun where storage fails.
    """
    corpus = Corpus(corpus_path, moved)
    _refuse_place(out, corpus, options)
    source = Source(corpus, options.view, unfinished=unfinished)
    with atomic.failing_as(IncompleteRun, out, refused=UsageError):
        _begin(
            out,
            {"format": "maskmill-export", "format_version": 1, "options": asdict(options)}
            | source.identity(),
        )
        for caveat in options.view.caveats(corpus.run.config):
            note(f"note: {caveat}")
        with (display or Display()).live_line(source.images) as line:
            writer = _Writer(source, out, options, line, note if skip_missing else None)
            (writer.tars if options.format == "sa1b" else writer.coco)()
    return writer.done


def _refuse_place(out: Path, corpus: Corpus, options: Options) -> None:
    if is_remote(out) and options.format == "coco":
        raise UsageError(f"{out}: COCO's JSON is put together on a disk; choose a local folder for --out")
    refuse_inside(out, corpus.path)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: expected a folder for the export, this is a file; choose another --out")


def _begin(out: Path, description: dict[str, Any]) -> None:
    """Write `export.json`, or find that it is this export's; UsageError where the folder is another's."""
    path = out / EXPORT
    if not path.exists():
        if out.is_dir() and any(not atomic.is_temporary(entry.name) for entry in out.iterdir()):
            raise UsageError(f"{out}: the folder is neither empty nor an export; choose another --out")
        atomic.create(path, as_bytes(description))
    found = read_json(path)
    if changed := [name for name, value in description.items() if found.get(name) != value]:
        raise UsageError(
            f"{out}: an export with different {' and '.join(changed)} was begun here; "
            "choose another --out, or remove that folder"
        )
    for folder in (out, out / PARTS, out / LABELS):
        atomic.sweep(folder)


class _Writer:
    """An export on its way out."""

    def __init__(
        self,
        source: Source,
        out: Path,
        options: Options,
        line: LiveLine,
        left_out: Callable[[str], None] | None,
    ) -> None:
        self._source = source
        self._out = out
        self._options = options
        self._line = line
        self._left_out = left_out
        self._imported = source.corpus.run.is_imported
        self._tally = Tally()
        self.done = Exported(rejected=source.rejected)

    def tars(self) -> None:
        """SA-1B's files, so many images to a tar file."""
        size, images = self._options.images_per_tar, self._source.images
        for number, first in enumerate(range(0, images, size)):
            rows = self._source.rows(first, min(first + size, images))
            made = atomic.create(self._out / f"sa_{number:06d}.tar", partial(self._write_tar, rows))
            self._count_part(made, min(size, images - first))

    def coco(self) -> None:
        """COCO's JSON: entries shard by shard, then the whole; the parts are removed."""
        whole, folder = self._out / ANNOTATIONS, self._out / PARTS
        images, annotations = [], []
        shards = [] if whole.exists() else zip(self._source.shards, self._source.images_by_shard, strict=True)
        for shard, usable in shards:
            name = shard_path(folder, shard).stem
            images.append(folder / f"{name}.images")
            annotations.append(folder / f"{name}.annotations")
            made = False
            if not images[-1].exists():  # it comes last
                found: list[bytes] = []
                atomic.replace(annotations[-1], coco.joined(self._entries(shard, found)))
                made = atomic.create(images[-1], coco.joined(iter(found)))
            self._count_part(made, usable)
        info = {"description": "exported by maskmill", "run_digest": self._source.corpus.run.digest}
        self.done.parts += atomic.create(
            whole, lambda file: coco.write_whole(file, info, images, annotations)
        )
        if folder.is_dir():
            atomic.remove(*folder.iterdir())
            folder.rmdir()

    def _entries(self, shard: int, images: list[bytes]) -> Iterator[bytes]:
        """The annotations of a shard; `images` gets its images."""
        for row in self._source.shard_rows(shard, _COCO_COLUMNS):
            images.append(coco.image_json(row))
            for index in range(len(row["annotations"])):
                with _naming(row):
                    entry = coco.annotation_json(
                        row, index, imported=self._imported, as_polygons=self._options.polygons
                    )
                yield entry
            if self._options.non_overlapping:
                png = self._labels(row)
                atomic.create(self._out / LABELS / f"{row['image_id']}.png", png)
            self._count(row)

    def _write_tar(self, rows: Iterator[Mapping[str, Any]], file: BinaryIO) -> None:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for row in rows:
                try:
                    picture = upright_jpeg(self._source.corpus, row)
                except CorpusUnavailable:
                    raise
                except CorpusError as error:
                    self._leave_out(error)
                    continue
                stem = file_stem(row["image_id"])
                with _naming(row):
                    entry = entry_json(row, row["annotations"], self._imported)
                add_member(tar, f"{stem}.jpg", picture)
                add_member(tar, f"{stem}.json", entry)
                if self._options.non_overlapping:
                    add_member(tar, f"{stem}.png", self._labels(row))
                self._count(row)

    def _labels(self, row: Mapping[str, Any]) -> bytes:
        assert self._options.non_overlapping is not None
        return label_png(label_map(row, row["annotations"], self._options.non_overlapping), row["key"])

    def _leave_out(self, error: CorpusError) -> None:
        if self._left_out is None:
            raise CorpusError(
                f"{error}; bring it back and run this again to go on, or leave such images out with "
                "--skip-missing"
            )
        self._left_out(f"left out: {error}")
        self.done.left_out += 1

    def _count(self, row: Mapping[str, Any]) -> None:
        """Count an image that was written."""
        self.done.images += 1
        self.done.masks += len(row["annotations"])
        self._tally.statuses["ok"] += 1
        self._tally.masks += len(row["annotations"])
        self._line.show(self._tally, 1)

    def _count_part(self, made: bool, images: int) -> None:
        """Count a part; where it was there already, its images are done."""
        self.done.parts += made
        if not made:
            self._tally.statuses["ok"] += images
            self._line.show(self._tally, 1)


@contextmanager
def _naming(row: Mapping[str, Any]) -> Iterator[None]:
    """Raise a ValueError of the block, about a row's values, as a CorpusError that names the row."""
    try:
        yield
    except ValueError as error:
        raise CorpusError(f"{row['key']}: {error}") from None
