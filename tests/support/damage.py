"""Ways of damaging a corpus, each drawn at random: what happens to disks, to copies, and in editors."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maskmill.engine.codes import single
from maskmill.engine.records import Rle
from maskmill.pipelines.format.layout import CORPUS
from maskmill.pipelines.format.parquet_files import write_parquet
from maskmill.pipelines.storage.json_files import as_bytes, fingerprint, sealed

PLAN = "plan/part-000000.parquet"


def rewrite(path: Path, change, footer=None) -> None:
    """Write a shard or plan part again, its rows changed as Python values, its footer kept."""
    with pq.ParquetFile(path) as file:
        table, said = file.read(), file.metadata.metadata
    rows = table.to_pylist()
    changed = change(rows)
    rows = changed if isinstance(changed, list) else rows
    metadata = {key.decode(): value.decode() for key, value in said.items() if key.startswith(b"maskmill.")}
    with path.open("wb") as file:
        write_parquet(file, pa.Table.from_pylist(rows, schema=table.schema), {**metadata, **(footer or {})})


def seal(corpus: Path) -> None:
    """Make `corpus.json`'s checksums right again: what is found after this is found in the contents alone."""
    path = corpus / CORPUS
    content = json.loads(path.read_bytes())
    for entry in content["files"]:
        entry |= asdict(fingerprint(corpus / entry["path"]))
    path.write_bytes(as_bytes(sealed(content)))


@dataclass(frozen=True)
class Kind:
    """A kind of damage.

    `damage(corpus, rng)` does it and returns the file that a report has to name. `alone`: whether it is found
    where there is no checksum; None where that depends on the place, or does not apply.
    """

    damage: Callable[[Path, random.Random], str]
    alone: bool | None


def some_file(corpus: Path, rng: random.Random) -> str:
    names = sorted(path.relative_to(corpus).as_posix() for path in corpus.rglob("*") if path.is_file())
    return rng.choice(names)


def some_shard(corpus: Path, rng: random.Random) -> str:
    return rng.choice(sorted(f"shards/{path.name}" for path in (corpus / "shards").iterdir()))


# Bytes


def flip(where: Callable[[Path, random.Random], str]):
    def damage(corpus, rng):
        name = where(corpus, rng)
        data = bytearray((corpus / name).read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (corpus / name).write_bytes(data)
        return name

    return damage


def flip_in_page(corpus, rng):
    """In the second half of the run-length codes' pages: past their headers."""
    name = some_shard(corpus, rng)
    with pq.ParquetFile(corpus / name) as file:
        group = file.metadata.row_group(0)
        columns = [group.column(index) for index in range(group.num_columns)]
    (codes,) = (column for column in columns if column.path_in_schema.endswith("counts"))
    data = bytearray((corpus / name).read_bytes())
    start, size = codes.data_page_offset, codes.total_compressed_size
    data[rng.randrange(start + size // 2, start + size)] ^= 1 << rng.randrange(8)
    (corpus / name).write_bytes(data)
    return name


def truncate(corpus, rng):
    name = some_file(corpus, rng)
    data = (corpus / name).read_bytes()
    (corpus / name).write_bytes(data[: rng.randrange(len(data))])
    return name


def append(corpus, rng):
    name = some_file(corpus, rng)
    with (corpus / name).open("ab") as file:
        file.write(rng.randbytes(rng.randint(1, 600)))
    return name


def blank(corpus, rng):
    """A stretch of zeros, as from a file system that lost a block."""
    name = some_file(corpus, rng)
    data = (corpus / name).read_bytes()
    at = rng.randrange(len(data) - 3)
    length = rng.randint(4, 512)
    (corpus / name).write_bytes(data[:at] + bytes(len(data[at : at + length])) + data[at + length :])
    return name


# Files


def remove_shard(corpus, rng):
    name = some_shard(corpus, rng)
    (corpus / name).unlink()
    return name


def remove_other(corpus, rng):
    name = rng.choice([name for name in (PLAN, "run.json", "corpus.json") if (corpus / name).exists()])
    (corpus / name).unlink()
    return "plan" if name == PLAN else name


def foreign_shard(corpus, rng):
    name = f"shards/shard-{rng.randint(4, 10**6 - 1):06d}.parquet"
    shutil.copy(corpus / some_shard(corpus, rng), corpus / name)
    return name


def foreign_file(corpus, rng):
    name = rng.choice(["", "plan/", "shards/"]) + rng.choice(["notes.txt", "part-1.parquet"])
    (corpus / name).write_bytes(rng.randbytes(20))
    return name


def exchange_shards(corpus, rng):
    one, other = rng.sample(sorted((corpus / "shards").iterdir()), 2)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    return f"shards/{one.name}"


# Rows, in Parquet that is sound


def rows(change: Callable[[list[dict], random.Random], object]):
    """A change of the rows of a shard, in place or to the rows that are returned."""

    def damage(corpus, rng):
        name = some_shard(corpus, rng)
        rewrite(corpus / name, lambda rows: change(rows, rng))
        return name

    return damage


def masks(change: Callable[[dict, random.Random], object]):
    """A change of one mask."""
    return rows(lambda rows, rng: change(rng.choice([m for row in rows for m in row["annotations"]]), rng))


def edit_area(mask, rng):
    mask["area"] += rng.choice([-1, 1, 1000])


def edit_box(mask, rng):
    mask["bbox"][rng.randrange(4)] += rng.choice([-1, 0.5, 1])


def edit_code(mask, rng):
    """One pixel more, or one less."""
    mask_HW = single.decode(Rle(tuple(mask["segmentation"]["size"]), mask["segmentation"]["counts"])).copy()
    pixel = tuple(rng.randrange(side) for side in mask_HW.shape)
    mask_HW[pixel] ^= True
    mask["segmentation"]["counts"] = single.encode(mask_HW).counts


def edit_code_in_secret(mask, rng):
    """Another mask of the same area and box: two pixels inside the box change places."""
    mask_HW = single.decode(Rle(tuple(mask["segmentation"]["size"]), mask["segmentation"]["counts"])).copy()
    x, y, width, height = (int(value) for value in mask["bbox"])
    inner_hw = mask_HW[y + 1 : y + height - 1, x + 1 : x + width - 1]
    one, other = (rng.choice(np.argwhere(inner_hw == value).tolist()) for value in (True, False))
    inner_hw[tuple(one)], inner_hw[tuple(other)] = False, True
    mask["segmentation"]["counts"] = single.encode(mask_HW).counts


def edit_score(mask, rng):
    mask["predicted_iou"] = mask["predicted_iou"] / 2


def edit_point(mask, rng):
    mask["point_coords"] = [[mask["point_coords"][0][0] / 2, 1.0]]


def edit_id(mask, rng):
    mask["id"] += rng.choice([-1, 1, 1 << 20])


def double_row(rows, rng):
    return [*rows, rng.choice(rows)] if rng.random() < 0.5 else [rows[0], *rows]


def drop_row(rows, rng):
    rows.pop(rng.randrange(len(rows)))


def exchange_rows(rows, rng):
    one = rng.randrange(len(rows) - 1)
    rows[one], rows[one + 1] = rows[one + 1], rows[one]


def edit_key(rows, rng):
    rows[rng.randrange(len(rows))][rng.choice(["key", "uri", "file_name"])] += "x"


def edit_status(rows, rng):
    row = rng.choice(rows)
    row["status"] = rng.choice([status for status in ("ok", "empty", "rejected") if status != row["status"]])


def edit_drops(rows, rng):
    rng.choice(rows)["drops"]["nms"] += 1


def lose_mask(rows, rng):
    rng.choice([row for row in rows if row["annotations"]])["annotations"].pop(0)


def lose_mask_in_secret(rows, rng):
    """The last mask, and it was never a candidate."""
    row = rng.choice([row for row in rows if len(row["annotations"]) > 1])
    row["annotations"].pop()
    row["candidates"] -= 1


def edit_sha256(rows, rng):
    row = rng.choice(rows)
    row["image_sha256"] = row["image_sha256"][::-1]


def edit_plan(corpus, rng):
    def change(rows):
        rows[rng.randrange(len(rows))][rng.choice(["key", "uri"])] += "x"

    rewrite(corpus / PLAN, change)
    return "shards" if not (corpus / "corpus.json").exists() else PLAN


def edit_seconds(corpus, rng):
    name = some_shard(corpus, rng)
    rewrite(corpus / name, list, {"maskmill.seconds": json.dumps({"decode": rng.random()})})
    return name


def edit_totals(corpus, rng):
    """By somebody who knows how the file is sealed."""
    path = corpus / "corpus.json"
    content = json.loads(path.read_bytes())
    content["totals"][rng.choice(["images", "ok", "masks", "candidates", "shards"])] += 1
    path.write_bytes(as_bytes(sealed(content)))
    return "corpus.json"


KINDS: dict[str, Kind] = {
    "bit flipped in a shard": Kind(flip(some_shard), None),
    "bit flipped in a page": Kind(flip_in_page, True),
    "bit flipped in the plan": Kind(flip(lambda *_: PLAN), None),
    "bit flipped in run.json": Kind(flip(lambda *_: "run.json"), None),
    "bit flipped in corpus.json": Kind(flip(lambda *_: "corpus.json"), None),
    "file cut short": Kind(truncate, True),
    "bytes appended": Kind(append, True),
    "stretch of zeros": Kind(blank, None),
    "missing shard": Kind(remove_shard, True),
    "missing plan or JSON": Kind(remove_other, True),
    "foreign shard": Kind(foreign_shard, True),
    "foreign file": Kind(foreign_file, True),
    "shards exchanged": Kind(exchange_shards, True),
    "wrong area": Kind(masks(edit_area), True),
    "wrong box": Kind(masks(edit_box), True),
    "wrong code": Kind(masks(edit_code), True),
    "code of the same area and box": Kind(masks(edit_code_in_secret), False),
    "wrong score": Kind(masks(edit_score), False),
    "wrong point": Kind(masks(edit_point), False),
    "wrong id": Kind(masks(edit_id), True),
    "duplicate image": Kind(rows(double_row), True),
    "missing image": Kind(rows(drop_row), True),
    "rows exchanged": Kind(rows(exchange_rows), True),
    "wrong key, uri or name": Kind(rows(edit_key), True),
    "wrong status": Kind(rows(edit_status), True),
    "wrong drops": Kind(rows(edit_drops), True),
    "missing mask": Kind(rows(lose_mask), True),
    "missing mask, not counted": Kind(rows(lose_mask_in_secret), False),
    "wrong image_sha256": Kind(rows(edit_sha256), False),
    "wrong key or uri in the plan": Kind(edit_plan, True),
    "wrong seconds": Kind(edit_seconds, False),
    "wrong totals, sealed": Kind(edit_totals, None),
}
