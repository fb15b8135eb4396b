"""The end of an interrupted command's last line: what is there by then, and what to type to go on."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

# Commands that go on where they stopped, and what stays of their work.
_STAYS = {
    "generate": "committed shards stay",
    "resume": "committed shards stay",
    "import": "committed shards stay",
    "export": "what is written stays",
}


class GoOn:
    """Told by a command how far it is; as text, the end of its last line if it were interrupted now.

    Attributes:
        has_shards: whether the corpus has any; None as long as that is not known.
        differs: whether the command to suggest is another one than was typed.

    """

    def __init__(self, words: Sequence[str] = ()) -> None:
        self.has_shards: bool | None = None
        self.differs = False
        self._words = list(words)
        self._stays = _STAYS.get(self._words[0]) if self._words else None
        self._resume: list[str] = []

    def without_overwrite(self) -> None:
        """From here on `--overwrite` would remove what this very command has made."""
        self.differs = "--overwrite" in self._words
        self._words = [word for word in self._words if word != "--overwrite"]

    def offer_resume(self, out: Path, options: Sequence[str]) -> None:
        """`maskmill resume` will go on once there is a plan, with these options."""
        self._resume = ["resume", str(out), *options]

    def planned(self, changes: Sequence[str], moved: Sequence[tuple[str, str]]) -> None:
        """There is a plan; `changes` (`key=value`) are what this run was told otherwise than `run.json`, and
        `moved` where it reads what was planned elsewhere.
        """
        if self._resume:
            given = [
                *(("--set", change) for change in changes),
                *(("--moved", f"{old or '/'}={new or '/'}") for old, new in moved),
            ]
            self._words = [*self._resume, *(word for option in given for word in option)]

    def __str__(self) -> str:
        if self._stays is None:
            return ""
        stays = self._stays
        if self.has_shards is False:
            stays = "nothing was committed yet"
        elif "--overwrite" in self._words:
            stays = "the old corpus was not removed yet"
        return f"; {stays}, go on with: {shlex.join(['maskmill', *self._words])}"
