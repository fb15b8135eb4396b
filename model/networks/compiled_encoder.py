"""The image encoder through `torch.compile`, for batches of one size.

torch compiles for each number of images anew, a minute or more each time, and the last batch of a shard is
often short. So a short batch is filled up with black images, whose results are dropped: less than a batch's
work, where compiling takes hundreds of them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..failures import is_out_of_memory

log = logging.getLogger(__name__)


class CompiledEncoder:
    """An encoder that is compiled when it is first called; where that fails, it says so and runs as it is.

    Not a module: the encoder's weights keep their names.
    """

    def __init__(self, encoder: nn.Module, batch: int, backend: str | Callable[..., Any]) -> None:
        self._encoder = encoder
        self._batch = batch
        self._backend = backend
        self._run: Callable[[Tensor], Tensor] | None = None  # until the first call
        self._failed = False
        self._seen: set[torch.Size] = set()

    def __call__(self, pixels_BCHW: Tensor) -> Tensor:
        """Embeddings of B images."""
        if self._failed:
            return cast(Tensor, self._encoder(pixels_BCHW))
        count, batch = len(pixels_BCHW), self._batch
        filled_BCHW = F.pad(pixels_BCHW, (0, 0, 0, 0, 0, 0, 0, max(0, batch - count)))
        try:
            return self._compiled(filled_BCHW)[:count]
        except Exception as error:
            if is_out_of_memory(error):  # the caller tries smaller batches: let them be smaller
                self._batch = min(self._batch, max(1, batch // 2))
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())
        # After the handler, when the traceback no longer holds the tensors.
        embedding_BCHW: Tensor = self._encoder(pixels_BCHW)  # raises by itself what is not the compiler's
        log.warning("torch.compile failed, the image encoder runs uncompiled: %s", reason)
        self._failed = True
        return embedding_BCHW

    def _compiled(self, pixels_BCHW: Tensor) -> Tensor:
        began = time.perf_counter()
        if self._run is None:  # not before: some Pythons have no compiler, and that raises here
            self._run = torch.compile(self._encoder, backend=self._backend, dynamic=False)
        embedding_BCHW = self._run(pixels_BCHW)
        if pixels_BCHW.shape not in self._seen:
            self._seen.add(pixels_BCHW.shape)
            size, seconds = "×".join(map(str, pixels_BCHW.shape)), time.perf_counter() - began
            log.info("compiled the image encoder for batches of %s in %.1f s", size, seconds)
        return embedding_BCHW
