"""Photographs with masks, from what people keep them in; `read_labelled` tells which it is.

- a folder of tables: `{source}.parquet` with one row an image, `image_id`, `file_name` (relative to the
  folder), `source` and `masks`, a list of COCO RLE {size, counts}; the photographs beside them;
- a COCO JSON, and a folder of SA-1B (`pipelines.labelled.json`);
- a corpus of ours (`pipelines.labelled.corpus`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ConfigError
from ..format.layout import RUN
from .corpus import read_corpus
from .image import LabelledImage, PhotographFile, checked_rle
from .json import read_coco, read_sa1b

COLUMNS = ["image_id", "file_name", "source", "masks"]
"""What is read of a table."""


def read_labelled(
    data: Path, photographs: Path | None = None, moved: Mapping[str, str] | None = None
) -> list[LabelledImage]:
    """Every image that has a mask; `photographs` is where those of a COCO JSON are, if not beside it, `moved`
    where those of a corpus are, if not where its run read them.

    Raises ConfigError where there is none, and for what is damaged, saying where.
    """
    if moved and not (data / RUN).is_file():
        raise ConfigError(f"moved: only for the images of a corpus, and data is {data}")
    if data.suffix.lower() == ".json" and data.is_file():
        found = read_coco(data, photographs or data.parent)
    elif photographs is not None:
        raise ConfigError(f"photographs: {photographs}: only for a COCO JSON, and data is {data}")
    elif (data / RUN).is_file():
        found = read_corpus(data, moved)
    elif not any(data.glob("*.parquet")) and any(data.glob("*.json")):
        found = read_sa1b(data)
    else:
        found = [image for table in sorted(data.glob("*.parquet")) for image in _read_table(table, data)]
    if not found:
        raise ConfigError(
            f"{data}: no labelled images; expected {{source}}.parquet files beside images/, a COCO JSON, a "
            f"folder of SA-1B's .jpg and .json, or a corpus"
        )
    twice = [name for name, count in Counter(image.name for image in found).items() if count > 1]
    if twice:
        raise ConfigError(
            f"{data}: two images are {twice[0]} (source/id): expected an id for each image of a source"
        )
    return found


def _read_table(table: Path, folder: Path) -> Iterator[LabelledImage]:
    try:
        rows = pq.read_table(table)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{table}: cannot be read as Parquet: {error}") from error
    missing = [name for name in COLUMNS if name not in rows.column_names]
    if missing:
        raise ConfigError(f"{table}: no column {', '.join(missing)}; expected {', '.join(COLUMNS)}")
    for row in rows.select(COLUMNS).to_pylist():
        if not (isinstance(row["file_name"], str) and isinstance(row["source"], str)):
            raise ConfigError(f"{table}: image {row['image_id']}: expected text as file_name and source")
        try:
            masks = row["masks"]
            size = tuple(masks[0]["size"]) if masks else None
            rles = [checked_rle(mask["size"], mask["counts"], size) for mask in masks]
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{table}: image {row['image_id']}: expected masks as a list of {{size, counts}}: {error}"
            ) from error
        if kept := tuple(mask for mask in rles if mask is not None):
            photograph = PhotographFile(folder / row["file_name"], table.name)
            yield LabelledImage(str(row["image_id"]), photograph, row["source"], kept)
