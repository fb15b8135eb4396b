"""SA-1B's files in pairs: each JPEG file with the JSON file beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import UsageError
from ..format.plan import part_names, read_plan
from ..format.shards import committed_shards
from ..inputs.listing import list_inputs
from ..text import counted, redacted

_NAME = r"(?:^|[/#])sa_(?P<number>0|[1-9][0-9]{0,18})\.(?:jpg|json)$"
_LARGEST = str(2**63 - 1)


def paired(inputs: Sequence[str], note: Callable[[str], None]) -> pa.Table:
    """Every image once: its key, the uri of its JPEG file, and that of its JSON file (`json`).

    Raises UsageError where a file has no partner beside it, and where there are none at all.
    """
    listed = list_inputs(inputs, [".jpg", ".json"], note=note)
    named = pc.extract_regex(listed["key"], _NAME)
    digits = pc.utf8_lpad(pc.struct_field(named, "number"), width=len(_LARGEST), padding="0")
    is_ours = pc.fill_null(pc.less_equal(digits, _LARGEST), False)
    ours = listed.filter(is_ours)
    if not ours.num_rows:
        raise UsageError(
            f"no image found in {redacted(str(inputs[0]))}; looked for sa_NUMBER.jpg and sa_NUMBER.json"
        )
    if others := listed.num_rows - ours.num_rows:
        note(f"{counted(others, 'file')} passed over, not named sa_NUMBER.jpg or sa_NUMBER.json")
    # By key, `x.jpg` and `x.json` are neighbours: no other name begins with `x.j`.
    stems = pc.replace_substring_regex(ours["key"], r"\.jpg$|\.json$", "")
    starts = np.ones(len(stems), np.bool_)
    starts[1:] = pc.not_equal(stems.slice(1), stems.slice(0, len(stems) - 1)).to_numpy()
    (first,) = np.nonzero(starts)
    size = np.diff(first, append=len(stems))
    (alone,) = np.nonzero(size == 1)
    if len(alone):
        more = f", nor have {len(alone) - 1} others" if len(alone) > 1 else ""
        key, uri = (str(ours[name][int(first[alone[0]])]) for name in ("key", "uri"))
        partner = f"{stems[int(first[alone[0]])]}.{'json' if key.endswith('.jpg') else 'jpg'}"
        raise UsageError(f"{redacted(uri)}: there is no {partner} for it{more}; SA-1B's files come in pairs")
    pictures, texts = ours.take(pa.array(first)), ours.take(pa.array(first + 1))
    return pictures.append_column("json", texts["uri"])


def refuse_left_over(out: Path, keys: pa.ChunkedArray) -> None:
    """Raise UsageError where a planned image is not imported yet, and its files are not among these."""
    if not part_names(out):
        return  # killed before it was planned: nothing is left over
    plan = read_plan(out)
    for shard in sorted(set(plan.shards) - committed_shards(out)):
        planned = pa.array([image.key for image in plan.images(shard)])
        if len(left := planned.filter(pc.invert(pc.is_in(planned, value_set=keys)))):
            raise UsageError(
                f"{out}: {redacted(left[0].as_py())} is planned and not imported yet; first finish that "
                "import with its own inputs, then add these with --extend"
            )
