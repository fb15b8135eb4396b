"""SA-1B's files become a corpus: the same plan, shards and closing as a run has, and no network.

    list the JSON and JPEG files → pair them → take the lease → plan → for each shard that is not there yet:
    read, hold JSON, JPEG and masks against each other, commit → corpus.json

Nothing is changed on the way: ids, boxes and scores are the source's (`run_record.IMPORTED`), and the bytes
of the JPEG files are kept in the rows, unless the user would rather leave them where they are. What is wrong
with one image makes it a rejected row; what is wrong with the collection, two images of one id or a file
without its partner, is told before anything is written.

The masks of a shard are looked at all at once, by what `maskmill verify` uses, and only those in doubt one by
one. Nothing is unpacked from a tar file: members are read by range, and their paths are only names.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from ...engine.records import MaskRecord, Rle
from ..config.run import digest_of
from ..decoding.jpeg import read_jpeg
from ..decoding.tiff_directory import orientation
from ..errors import IncompleteRun, InputRejected
from ..format import run_record
from ..format.layout import CORPUS
from ..format.records import ImageRow, PlannedImage
from ..format.rows import rejected_row, table_from_rows
from ..format.run_record import SA1B, SOURCE
from ..format.shards import commit_table, shard_metadata
from ..format.tally import Tally
from ..inputs.reader import read_input
from ..prefetch import in_order
from ..storage import atomic
from ..storage.json_files import sha256_hex
from ..storage.retries import COMMIT_ATTEMPTS, retrying
from ..text import redacted
from ..verification.masks import doubtful_rows
from ..verification.rows import mask_problems
from ..writing import close
from ..writing.go_on import GoOn
from ..writing.open import Mode, Run, open_run
from ..writing.progress import Display, LiveLine, named, next_commands, print_summary
from ..writing.session import Session
from .sa1b import MAX_JSON_BYTES, Entry, bad_annotations, numbers, read_entry
from .sa1b_pairs import paired, refuse_left_over

SHARD_SIZE = 64
_READERS = 4  # threads; reading waits for disks and stores, and hashing lets go of the interpreter


def import_sa1b(
    inputs: Sequence[str],
    out: Path,
    *,
    embed: bool = True,
    mode: Mode = "resume",
    go_on: GoOn | None = None,
    display: Display | None = None,
    shard_size: int = SHARD_SIZE,
) -> Tally:
    """Make the corpus `out` of SA-1B's files, or what is missing of it; return what this call did.

    `inputs` are folders, globs and tar files, as `listing.list_inputs` takes them; files of other names than
    `sa_NUMBER.jpg` and `.json` are passed over. With `embed` the JPEG files are kept in the rows. `mode` is
    that of `open_run`; `go_on` is told what there is by now, `display` says how much is shown. Raises
    UsageError and CorpusError before any work, IncompleteRun where storage fails.
    """
    go_on, display = go_on or GoOn(), display or Display()
    console = display.console(stderr=True)
    with Session(out, go_on, console.print) as session:
        out = session.out
        pairs = paired(inputs, console.print)
        record = _record(embed, shard_size)
        session.look()
        run = session.open(partial(_open, out, pairs, record, shard_size, mode, go_on))
        todo = session.left(run)
        if not todo and (out / CORPUS).exists():
            console.print(f"{named(out)}: complete, nothing to do")
            return Tally()
        started = time.monotonic()
        done = _Import(session, run, pairs, embed)
        with display.live_line(run.plan.size(todo)) as line:
            done.do(todo, line)
        corpus = session.finish(run)
        seconds = time.monotonic() - started
        print_summary(console, out, done.tally, seconds, corpus, verbose=display.verbose)
        if done.rounded:
            console.print(f"{done.rounded} numbers were not 32-bit floats, as SA-1B's are, and were rounded")
        close.check_usable(out, corpus.statuses)
        console.print(next_commands(out))
        return done.tally


def _open(
    out: Path, pairs: pa.Table, record: run_record.RunRecord, shard_size: int, mode: Mode, go_on: GoOn
) -> Run:
    """Plan the corpus of these pairs, or find that it is planned."""
    if mode == "extend":
        refuse_left_over(out, pairs["key"])
    inputs = pairs.select(["key", "uri"])
    return open_run(out, inputs, record, shard_size, mode, go_on.without_overwrite)


def _record(embed: bool, shard_size: int) -> run_record.RunRecord:
    config = {SOURCE: SA1B, "embed_images": embed, "shard_size": shard_size}
    return run_record.RunRecord(
        config=config,
        config_digest=digest_of(config),
        model_name="unknown",
        weights_sha256="",
        software=run_record.software_versions(),
    )


class _Import:
    """Imports shards, and counts what it has done.

    Attributes:
        tally: what was done so far.
        rounded: numbers that were no 32-bit floats.

    """

    def __init__(self, session: Session, run: Run, pairs: pa.Table, embed: bool) -> None:
        self._session = session
        self._run = run
        self._keys, self._json_uris = pairs["key"], pairs["json"]
        self._embed = embed
        self.tally = Tally()
        self.rounded = 0

    def do(self, todo: Sequence[int], line: LiveLine) -> None:
        """Commit these shards, one after another."""
        plan, out = self._run.plan, self._run.out
        with ThreadPoolExecutor(_READERS, "import") as pool:
            for shard in todo:
                started = time.monotonic()
                rows = self._checked(list(self._read(pool, plan.images(shard))))
                seconds = {"read": time.monotonic() - started}
                self._session.check()
                commit = partial(
                    commit_table,
                    out,
                    shard,
                    table_from_rows(rows),
                    shard_metadata(self._run.record.digest, shard, seconds),
                )
                with atomic.failing_as(IncompleteRun, out):
                    retrying(commit, COMMIT_ATTEMPTS)
                self._session.committed()
                for row in rows:
                    self.tally.add_row(row)
                line.show(self.tally, 1)

    def _read(self, pool: ThreadPoolExecutor, images: Sequence[PlannedImage]) -> Iterator[ImageRow]:
        for future in in_order(pool, self._row, images, _READERS):
            row, rounded = future.result()
            self.rounded += rounded
            yield row

    def _row(self, planned: PlannedImage) -> tuple[ImageRow, int]:
        """Make the row of an image, its masks not checked yet; count its numbers that were rounded."""
        data = None
        try:
            data = _bytes_of(planned.uri)
            entry = read_entry(_bytes_of(self._json_uri(planned.key), MAX_JSON_BYTES))
            turned = _check_image(planned, entry, data)
        except InputRejected as error:
            return rejected_row(planned, error, data), 0
        given = np.fromiter(numbers(entry), np.float64)
        with np.errstate(over="ignore"):  # what is too large is infinite, and rejected with the masks
            rounded = int((given.astype(np.float32) != given).sum())
        masks = _masks(entry)
        row = ImageRow(
            row=planned.row,
            image_id=planned.image_id,
            key=planned.key,
            uri=planned.uri,
            status="ok" if masks else "empty",
            width=entry.image.width,
            height=entry.image.height,
            orientation=turned,
            image_sha256=sha256_hex(data),
            candidates=len(masks),
            image=data if self._embed else None,
            masks=masks,
            annotation_ids=[one.id for one in entry.annotations],
        )
        return row, rounded

    def _json_uri(self, key: str) -> str:
        place = bisect_left(range(len(self._keys)), key, key=lambda row: self._keys[row].as_py())
        return str(self._json_uris[place])

    def _checked(self, rows: Sequence[ImageRow]) -> list[ImageRow]:
        """Return the rows; those whose masks are not what is said of them are rejected."""
        annotations = table_from_rows([replace(row, image=None) for row in rows])["annotations"]
        column = annotations.combine_chunks()
        plan_rows_R = np.array([row.row for row in rows], np.int64)
        heights_R, widths_R = (
            np.array([getattr(row, side) or 0 for row in rows], np.int64) for side in ("height", "width")
        )
        doubt_R = doubtful_rows(column, plan_rows_R, heights_R, widths_R, imported=True)
        checked = []
        for row, doubt, masks in zip(rows, doubt_R, column, strict=True):
            doubted = masks.as_py() if doubt else ()
            problem = next(mask_problems(doubted, row.row, row.height, row.width, imported=True), None)
            checked.append(row if problem is None else _rejected(row, problem))
        return checked


def _bytes_of(uri: str, *limit: int) -> bytes:
    """Read a source file. Raises InputRejected where it is at fault, IncompleteRun where storage is."""
    try:
        return retrying(lambda: read_input(uri, *limit))
    except OSError as error:
        reason = redacted(error.strerror or str(error) or type(error).__name__)
        raise IncompleteRun(
            f"{redacted(uri)}: cannot be read: {reason}; run the same command again to go on"
        ) from None


def _check_image(planned: PlannedImage, entry: Entry, data: bytes) -> int:
    """Hold the JSON and the JPEG against each other; returns the EXIF orientation, which turns nothing.

    The JPEG's structure is walked, from its header to its end; its pixels are not decoded. Raises
    InputRejected.
    """
    image, name = entry.image, f"sa_{planned.image_id}.jpg"
    if (image.image_id, image.file_name) != (planned.image_id, name):
        raise bad_annotations(f"it is of image {image.image_id}, {image.file_name}, and not of {name}")
    if not data.startswith(b"\xff\xd8\xff"):
        raise InputRejected("decode", "NotAnImage", "no JPEG file, as SA-1B's are")
    jpeg = read_jpeg(data)
    if (jpeg.width, jpeg.height) != (image.width, image.height):
        raise bad_annotations(
            f"it is for {image.width}×{image.height} pixels, the image has {jpeg.width}×{jpeg.height}"
        )
    turned = orientation(jpeg.exif)
    if turned in range(2, 9):
        raise InputRejected(
            "decode", "Unsupported", f"EXIF turns it (orientation {turned}); SA-1B's images are upright"
        )
    return turned


def _masks(entry: Entry) -> list[MaskRecord]:
    return [
        MaskRecord(
            segmentation=Rle(one.segmentation.size, one.segmentation.counts),
            area=one.area,
            bbox=one.bbox,
            predicted_iou=one.predicted_iou,
            stability_score=one.stability_score,
            crop_box=one.crop_box,
            point_coords=tuple(one.point_coords),
        )
        for one in entry.annotations
    ]


def _rejected(row: ImageRow, problem: str) -> ImageRow:
    return ImageRow(
        row=row.row,
        image_id=row.image_id,
        key=row.key,
        uri=row.uri,
        status="rejected",
        image_sha256=row.image_sha256,
        error=bad_annotations(problem),
    )
