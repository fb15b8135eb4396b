"""The rejected images of a corpus, listed as they are read, so that a million of them take no memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any, TextIO

from ..text import redacted, visible
from .reader import Corpus

_CLASS_CHARACTERS = 16  # a column; no class has more


def rejected_lines(corpus: Corpus, classes: Collection[str], file: TextIO) -> None:
    """Write a line for each rejected image of these classes, or of any: class, key and message; and a sum.

    Raises CorpusError where a shard is damaged.
    """
    counts = Counter[str]()
    for row in _rejected(corpus, counts, classes):
        why = f"{row['class']:<{_CLASS_CHARACTERS}}{row['key']}: {row['message']}"
        file.write(f"{visible(redacted(why))}\n")
    so_far = "" if corpus.complete else " so far"
    found = ", ".join(f"{count} {visible(name)}" for name, count in counts.most_common())
    if not counts:
        file.write(f"{corpus.path}: no image was rejected{so_far}\n")
    elif classes and not counts.keys() & set(classes):
        names = " or ".join(map(visible, classes))
        file.write(f"{corpus.path}: no image was rejected as {names}{so_far}; rejected: {found}\n")
    else:
        file.write(f"rejected{so_far}: {found}\n")


def rejected_json(corpus: Corpus, classes: Collection[str], file: TextIO) -> None:
    """Write the same as one line of JSON: `images`, and what was counted of all classes. Raises as above."""
    counts = Counter[str]()
    file.write('{"images": [')
    for number, row in enumerate(_rejected(corpus, counts, classes)):
        file.write(f"{', ' if number else ''}{json.dumps(row)}")
    rest = {"rejected": counts.total(), "rejects": dict(counts.most_common()), "complete": corpus.complete}
    file.write(f"], {json.dumps(rest)[1:]}\n")


def _rejected(corpus: Corpus, counts: Counter[str], classes: Collection[str]) -> Iterator[dict[str, Any]]:
    """Key, class, message and stage of each rejected image of the classes; every one is counted."""
    for row in corpus.rows("rejected", columns=["error"]):
        error = row["error"]
        counts[error["class"]] += 1
        if not classes or error["class"] in classes:
            yield {"key": row["key"], **{name: error[name] for name in ("class", "message", "stage")}}
