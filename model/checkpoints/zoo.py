"""The public checkpoints: where they are, how large they are, and how to be sure of having the right bytes.

A download goes to `NAME.part`, with the server's validator beside it in `NAME.part.validator`. If it is cut
off, the next attempt asks for the rest, on the condition (If-Range) that the file is still the same one; a
server that ignores the question starts from the beginning, and so do we. Attempts go on as long as each gets
further than all before it. Only a file of the right size and digest gets its final name.

Sizes and digests are those that public projects recorded of the same files; where none was found the entry
says None, and the digest of what arrived is logged instead of compared. (The hexadecimal digits in the
official file names are not the beginning of the SHA-256.)
"""

from __future__ import annotations

import difflib
import hashlib
import http.client
import logging
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from .errors import CheckpointError

WEIGHTS = Path(__file__).parents[1] / "weights"
CHUNK = 1 << 20
TIMEOUT_S = 30.0  # of silence, not of the whole download

log = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and the bytes that there will be (None: the server does not say)."""


@dataclass(frozen=True)
class PublicCheckpoint:
    """A file of weights that anyone may download."""

    name: str
    """What `maskmill models get` calls it."""
    model: str
    """The configuration it belongs to, a key of `MODELS`."""
    url: str
    file_name: str
    """Its name in the cache folder."""
    size: int | None
    """Bytes."""
    sha256: str | None
    licence: str = "Apache-2.0"


def _official(name: str, model: str, file_name: str, size: int, sha256: str) -> PublicCheckpoint:
    url = f"https://dl.fbaipublicfiles.com/segment_anything/{file_name}"
    return PublicCheckpoint(name, model, url, file_name, size, sha256)


def _hugging_face(repo: str, revision: str, model: str, sha256: str | None) -> PublicCheckpoint:
    url = f"https://huggingface.co/{repo}/resolve/{revision}/model.safetensors"
    file_name = repo.split("/")[1] + ".safetensors"
    return PublicCheckpoint(repo, model, url, file_name, None, sha256)


CHECKPOINTS: dict[str, PublicCheckpoint] = {
    checkpoint.name: checkpoint
    for checkpoint in (
        _official(
            "sam_vit_b",
            "vit_b",
            "sam_vit_b_01ec64.pth",
            375_042_383,
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
        _official(
            "sam_vit_l",
            "vit_l",
            "sam_vit_l_0b3195.pth",
            1_249_524_607,
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
        _official(
            "sam_vit_h",
            "vit_h",
            "sam_vit_h_4b8939.pth",
            2_564_550_879,
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
        PublicCheckpoint(
            "mobile_sam",
            "vit_t",
            "https://github.com/ChaoningZhang/MobileSAM/raw/"
            "f706ad9c4eb7f219c00d9050e46328518ffb65d2/weights/mobile_sam.pt",
            "mobile_sam.pt",
            40_728_226,
            "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        ),
        _hugging_face("facebook/sam-vit-base", "70c1a07f894ebb5b307fd9eaaee97b9dfc16068f", "vit_b", None),
        _hugging_face(
            "facebook/sam-vit-large",
            "6851e0441005b0fb96f2cc4dfac472f3d1b14af1",
            "vit_l",
            "a57e1b13cd1545938dfcbc9fb26df7f60de6650237a9383382a874a623564b81",
        ),
        _hugging_face(
            "facebook/sam-vit-huge",
            "87aecf0df4ce6b30cd7de76e87673c49644bdf67",
            "vit_h",
            "edfb0462392541fca9af44ff039bfb32dbd0c939997f3abb77a26e23af7afd7c",
        ),
    )
}


def cache_folder() -> Path:
    """Where downloads go: `MASKMILL_CACHE`, or the user's cache folder.

    Raises CheckpointError where there is no home folder either.
    """
    try:
        return Path(os.environ.get("MASKMILL_CACHE") or platformdirs.user_cache_dir("maskmill")).expanduser()
    except RuntimeError as error:
        raise CheckpointError(f"no cache folder: {error}; set MASKMILL_CACHE to one") from None


def bundled(model: str) -> Path | None:
    """The weights of this model that come with the package; None where there are none."""
    path = WEIGHTS / f"{model}.safetensors"
    return path if path.is_file() else None


def cached(model: str, folder: Path | None = None) -> Path | None:
    """Find a downloaded checkpoint for this model, the official one first; None when there is none."""
    paths = ((folder or cache_folder()) / c.file_name for c in CHECKPOINTS.values() if c.model == model)
    return next((path for path in paths if path.is_file()), None)


def how_to_get(model: str) -> str:
    """One line for a person who has no weights for this model."""
    known = [checkpoint for checkpoint in CHECKPOINTS.values() if checkpoint.model == model]
    if not known:
        return f"give a checkpoint file: there is no public one for {model!r}"
    first = known[0]
    return (
        f"`maskmill models get {first.name}` downloads it; or put {first.url} into {cache_folder()}; "
        "or give a checkpoint file"
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """“known: a, b; did you mean b?”: the end of a message about an unknown name."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return f"known: {', '.join(names)}" + (f"; did you mean {close[0]}?" if close else "")


def download(name: str, folder: Path | None = None, progress: Progress | None = None) -> Path:
    """Fetch a public checkpoint by name, unless it is there already, and return its path.

    Raises CheckpointError for an unknown name, for want of network, and for bytes that are not the right ones
    (what was downloaded is removed then; a file that lay there before is left).
    """
    if name not in CHECKPOINTS:
        raise CheckpointError(f"unknown checkpoint {name!r}; {nearest(name, CHECKPOINTS)}")
    return fetch(CHECKPOINTS[name], folder, progress)


def fetch(checkpoint: PublicCheckpoint, folder: Path | None = None, progress: Progress | None = None) -> Path:
    """`download`, for any entry."""
    folder = folder or cache_folder()
    target = folder / checkpoint.file_name
    if target.exists():
        _verify(target, checkpoint, "move it away to download it again")
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"cannot create the folder {folder}: {error.strerror}; set MASKMILL_CACHE to another"
        ) from error

    part = _Part(target)
    if checkpoint.size is None or part.size != checkpoint.size:
        _receive_all(checkpoint, part, target, progress)
    try:
        _verify(part.path, checkpoint, "it was removed")
    except CheckpointError:
        part.discard()
        raise
    part.publish(target)
    return target


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, checkpoint: PublicCheckpoint, advice: str) -> None:
    size = path.stat().st_size
    if checkpoint.size is not None and size != checkpoint.size:
        raise CheckpointError(f"{path} has {size} bytes, {checkpoint.name} has {checkpoint.size}: {advice}")
    digest = sha256_of(path)
    if checkpoint.sha256 is None:
        log.warning("%s: no published digest to compare with; its sha256 is %s", path, digest)
    elif digest != checkpoint.sha256:
        raise CheckpointError(
            f"{path} has sha256 {digest}, {checkpoint.name} has {checkpoint.sha256}: {advice}"
        )


class _Part:
    """A download that is not complete: its bytes, and what the server calls their version."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(target.name + ".part")
        self.validator_path = target.with_name(target.name + ".part.validator")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def validator(self) -> str:
        """Empty where the server gave none: such bytes cannot be continued."""
        return self.validator_path.read_text("utf-8").strip() if self.validator_path.exists() else ""

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.validator_path.unlink(missing_ok=True)

    def begin(self, response: http.client.HTTPResponse) -> None:
        """Forget what is there; remember the version that now arrives. A weak ETag promises too little."""
        self.discard()
        etag = response.headers.get("ETag", "")
        strong = "" if etag.startswith("W/") else etag
        validator = strong or response.headers.get("Last-Modified", "")
        if validator:
            self.validator_path.write_text(validator, "utf-8")

    def publish(self, target: Path) -> None:
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        self.path.replace(target)
        self.validator_path.unlink(missing_ok=True)


def _receive_all(checkpoint: PublicCheckpoint, part: _Part, target: Path, progress: Progress | None) -> None:
    """Receive until the file is whole; give up at the first attempt that gets no further than the others."""
    furthest = 0
    while True:
        if not part.validator:
            part.discard()
        furthest = max(furthest, part.size)
        try:
            _receive(checkpoint, part, progress)
            return
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"the server answered {error.code} {error.reason}"
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and part.size:
                if error.headers.get("Content-Range") == f"bytes */{part.size}":
                    return  # nothing was missing
                part.discard()  # longer than the file there is now
                continue
        except urllib.error.URLError as error:
            reason = str(error.reason)
        except (TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
        if part.size <= furthest:
            kept = (
                f" ({part.size} bytes are kept for the next attempt)" if part.size and part.validator else ""
            )
            raise CheckpointError(
                f"cannot download {checkpoint.url}: {reason}{kept}; "
                f"or fetch that file by other means and put it at {target}"
            )


def _receive(checkpoint: PublicCheckpoint, part: _Part, progress: Progress | None) -> None:
    """Ask once: for the whole file, or for the rest of it. Raises as urllib does, or ConnectionError."""
    headers = {"User-Agent": "maskmill", "Accept-Encoding": "identity"}
    if part.size:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": part.validator}
    request = urllib.request.Request(checkpoint.url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        continues = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if continues and not response.headers.get("Content-Range", "").startswith(f"bytes {part.size}-"):
            part.discard()
            raise ConnectionError("the server sent a different part than the one requested")
        if not continues:
            part.begin(response)
        length = response.headers.get("Content-Length")
        total = part.size + int(length) if length else checkpoint.size
        if checkpoint.size is not None and total != checkpoint.size:
            raise ConnectionError(f"the file there has {total} bytes, not {checkpoint.size}")
        with part.path.open("ab") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                if progress:
                    progress(file.tell(), total)
    if total is not None and part.size < total:
        raise ConnectionError(f"the connection was cut off after {part.size} of {total} bytes")
