"""Reading a corpus: rows in order, shuffled, or by their id; masks and images when they are asked for.

Rows come as plain dicts with the columns of `docs/format.md`, a few row groups at a time, so that memory does
not grow with the corpus. Shards that are not committed yet are simply not there: a corpus may be read while
it is made. Nothing here needs torch or Ray.

    corpus = Corpus("out/corpus")
    for row in corpus.rows(status="ok", view=View(min_area=100)):
        masks_HWN = corpus.masks(row)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from ..errors import CorpusError, InputRejected
from ..format import run_record
from ..format.ids import identify
from ..format.layout import CORPUS, RUN, shard_path
from ..format.parquet_files import open_parquet
from ..format.plan import Plan, read_plan
from ..format.schema import STATUSES
from ..format.shards import committed_shards
from ..inputs.moved import Moved
from ..storage.paths import place, scheme_of
from .columns import as_dict, check_status, parquet_columns
from .masks import Cutout, checked_lengths, cutout, paint
from .order import Order, Stretch
from .views import View, warn_of
from .windows import Window, pieces, windows

if TYPE_CHECKING:
    from .images import Originals


class Corpus:
    """A corpus folder, complete or still in the making.

    Attributes:
        path: the folder.
        run: what decided every row, from `run.json`.

    `path` may be a local path, an address of a store (`s3://`, `gs://`, `hf://`), `memory://…`, which is
    fsspec's store in this process, or a `UPath` of any other store that fsspec knows. `moved` says where
    images lie now that were moved since the run, as `{"/data/photos": "s3://bucket/photos"}`
    (`pipelines.inputs.moved`); images that moved together with the corpus are found without.
    Raises CorpusError where the folder is missing, is no corpus, or is of another format version; UsageError
    where images were moved to a place that is not there.

    """

    def __init__(self, path: str | Path, moved: Mapping[str, str] | None = None) -> None:
        self.path = _in_memory(path) if scheme_of(str(path)) == "memory" else place(path)
        if not self.path.is_dir():
            raise CorpusError(f"{path}: there is no such folder; expected a corpus")
        if not (self.path / RUN).is_file():
            raise CorpusError(f"{path}: not a corpus: it has no {RUN}")
        self.run = run_record.read_run(self.path)
        self._moved = Moved.of(moved or {})

    @property
    def complete(self) -> bool:
        """Whether the run that makes it has finished."""
        return (self.path / CORPUS).is_file()

    @cached_property
    def shards(self) -> list[int]:
        """The shards that were committed when first asked; a new `Corpus` sees those that came since."""
        return sorted(committed_shards(self.path))

    def __len__(self) -> int:
        """How many rows `iter` gives."""
        return self._rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.rows()

    def rows(
        self,
        status: str | None = None,
        *,
        columns: Sequence[str] | None = None,
        view: View | None = None,
        seed: int | None = None,
        epoch: int = 0,
    ) -> Iterator[dict[str, Any]]:
        """The rows, in plan order, or shuffled by a seed, and differently in each epoch
        (`pipelines.corpus.order`).

        Args:
            status: only those that are "ok", "empty" or "rejected".
            columns: what is read of each row, as `["width", "annotations.area"]`; everything by default.
                `image_id`, `key` and `status` are always there.
            view: which annotations of a row are handed out. A row that has none left stays. Where a run with
                the view's thresholds could have other masks, a `ViewWarning` says why.
            seed: at least 0. Equal seeds give equal orders, whatever columns are read.
            epoch: at least 0.

        Raises ValueError for another status, column, seed or epoch, CorpusError where a shard is damaged, or
        a row so that it has no known status, no size or no error.

        """
        check_status(status)
        warn_of(view, self.run.config, stacklevel=2)
        return self._as_dicts(self.windows(Order(seed, epoch), parquet_columns(columns, view)), status, view)

    def row(
        self, image: int | str, *, columns: Sequence[str] | None = None, view: View | None = None
    ) -> dict[str, Any]:
        """The row of an image, by its `image_id` or its key. `columns` and `view` as `rows` has them, without
        the warning.

        The plan tells where it is: the ids in it are read once, 16 bytes an image in memory, and of the shard
        one row group. Raises KeyError for an image that is not planned, or whose shard is not there yet;
        CorpusError where plan or shard is damaged.
        """
        number = identify(image, self.run.is_imported) if isinstance(image, str) else image
        if number is None:
            raise KeyError(f"{image}: no image of an imported corpus has such a key")
        shard, offset = self._lookup.find(number)
        if not shard_path(self.path, shard).is_file():
            raise KeyError(f"{image}: its shard, {shard}, is not committed yet")
        row = self._row_at(shard, offset, columns, view)
        if row["image_id"] != number:
            raise CorpusError(f"{shard_path(self.path, shard)}: row {offset} is not the one that was planned")
        return row

    def __getitem__(self, position: int) -> dict[str, Any]:
        """The row that `iter` gives at this position, from its row group alone; IndexError past the end."""
        ends = self._ends
        if not -len(self) <= position < len(self):
            raise IndexError(f"expected a position below {len(self)}, got {position}")
        position %= len(self)
        at = int(np.searchsorted(ends, position, side="right"))
        return self._row_at(self.shards[at], position - (int(ends[at - 1]) if at else 0), None, None)

    def windows(self, order: Order, columns: Sequence[str] | None = None, skip: int = 0) -> Iterator[Window]:
        """The rows of one part of an order, as Arrow has them, window by window, but for the first `skip`.

        `columns` are paths as Parquet has them (see `parquet_columns`). Raises CorpusError where a shard is
        damaged.
        """
        stretches = order.stretches(self.shards, lambda: read_plan(self.path).sizes(self.shards).tolist())
        return windows(self.path, stretches, order, columns, skip)

    def masks(self, row: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
        """The masks of a row, H×W×N, in the order of its annotations; N is 0 for an empty image.

        Raises ValueError for a rejected image, which has no size; CorpusError where a mask's code is damaged.
        """
        height, width = _size(row)
        pixels_NP = np.zeros((len(row["annotations"]), width * height), np.bool_)
        for index, annotation in enumerate(row["annotations"]):
            paint(pixels_NP[index], checked_lengths(row, index, annotation), True)
        return pixels_NP.reshape(-1, width, height).transpose(2, 1, 0)

    def cutouts(self, row: Mapping[str, Any]) -> list[Cutout]:
        """The masks of a row, each in its own box: far less memory than `masks`, which raises the same."""
        _size(row)
        return [cutout(row, index) for index in range(len(row["annotations"]))]

    def image(self, row: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
        """The upright photograph of a row, H×W×3 RGB: the pixels that the masks were made from.

        It comes from the row itself, where images are embedded, or else from its uri, or from where it was
        moved. Raises ValueError for a rejected image; CorpusError where the source is not there, or its bytes
        are not those of the run.
        """
        from ..decoding.image import decode_image  # loads Pillow

        height, width = _size(row, "pixels")
        limit = self.run.config.get("input", {}).get("max_pixels") or 2 * height * width
        try:
            decoded = decode_image(self.originals.read(row), limit)
        except InputRejected as error:
            raise CorpusError(f"{row['key']}: the image cannot be decoded: {error}") from None
        if (decoded.height, decoded.width) != (height, width):
            raise CorpusError(
                f"{row['key']}: the image is {decoded.width}×{decoded.height}, not {width}×{height}"
            )
        return decoded.pixels_HW3

    @cached_property
    def originals(self) -> Originals:
        """The image files behind the rows, as the run read them."""
        from .images import Originals  # loads Pillow

        return Originals(self.path, self._moved)

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup(read_plan(self.path))

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        """How many rows there are up to the end of each shard, by the shards' own footers."""
        counts = []
        for shard in self.shards:
            with open_parquet(shard_path(self.path, shard)) as file:
                counts.append(file.metadata.num_rows)
        return np.cumsum(np.array(counts, np.int64))

    @property
    def _rows(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def _row_at(
        self, shard: int, offset: int, columns: Sequence[str] | None, view: View | None
    ) -> dict[str, Any]:
        (piece,) = pieces(self.path, Stretch(shard, offset, offset + 1))
        return as_dict(piece.path, piece.read(parquet_columns(columns, view)), piece.first, view)

    def _as_dicts(
        self, read: Iterator[Window], status: str | None, view: View | None
    ) -> Iterator[dict[str, Any]]:
        for window in read:
            statuses = [batch["status"].to_pylist() for batch in window.batches]
            for at, row in window.rows_K2.tolist():
                if status is None or statuses[at][row] == status or statuses[at][row] not in STATUSES:
                    yield as_dict(window.paths[at], window.batches[at], row, view)


class Lookup:
    """From an `image_id` to a shard and a row of it: the plan's ids in memory, sorted, 16 bytes an image.

    Raises CorpusError where the plan is damaged.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        ids = plan.column("image_id").to_numpy()
        self._rows = np.argsort(ids, kind="stable")
        self._ids = ids[self._rows]

    def find(self, image_id: int) -> tuple[int, int]:
        """The shard, and which row of the shard it is; KeyError for an image that is not planned."""
        at = int(np.searchsorted(self._ids, image_id))
        if at == len(self._ids) or self._ids[at] != image_id:
            raise KeyError(f"{image_id}: there is no such image in the plan")
        return self._plan.place(int(self._rows[at]))


def _size(row: Mapping[str, Any], what: str = "masks") -> tuple[int, int]:
    """Height and width; ValueError for a rejected image, which has no such thing."""
    height, width = row["height"], row["width"]
    if height is None or width is None:
        raise ValueError(f"{row['key']}: a rejected image has no {what}")
    return height, width


def _in_memory(path: str | Path) -> Path:
    from upath import UPath

    return cast(Path, UPath(path))
