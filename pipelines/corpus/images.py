"""The photograph behind a row: its file's own bytes, and no others.

They come from the row itself where the run embedded them, else from where the run read them. What is read is
held against the row's `image_sha256`: masks belong to the pixels that they were made from, and a file that
was edited since would carry them wrongly without anyone noticing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ..errors import CorpusError, CorpusUnavailable, InputRejected
from ..inputs.reader import read_input
from ..text import redacted


def original(row: Mapping[str, Any]) -> bytes:
    """The bytes of a row's image file, orientation tag and all.

    `row` has the columns `key`, `uri` and `image_sha256`; `image` where images may be embedded. Raises
    CorpusError where the file is missing, cannot be read, or is not the one that the row was made from, and
    for a row whose file never could be read; CorpusUnavailable where its storage fails, or its whole folder,
    archive or bucket is gone.
    """
    key, sha256, image = row["key"], row["image_sha256"], row.get("image")
    if sha256 is None:
        raise CorpusError(f"{key}: its file could not be read when the corpus was made")
    if image is not None and image["bytes"] is not None:
        data, where = bytes(image["bytes"]), "the embedded image"
    else:
        data, where = _read(key, row["uri"]), redacted(row["uri"])
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CorpusError(f"{key}: {where} has changed: it is not the image that the masks were made from")
    return data


def _read(key: str, uri: str) -> bytes:
    try:
        return read_input(uri)
    except InputRejected as error:
        raise CorpusError(f"{key}: {redacted(uri)}: {error.message}") from None
    except OSError as error:
        reason = redacted(error.strerror or str(error) or type(error).__name__)
        raise CorpusUnavailable(f"{key}: {redacted(uri)}: cannot be read: {reason}", error.errno) from None
