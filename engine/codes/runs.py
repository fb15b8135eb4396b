"""A mask as runs of pixels down its columns: what is left of an object's area once its outline is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]
"""Pixels counted column after column, as COCO's runs are: position = x · height + y."""


@dataclass(frozen=True, slots=True)
class Runs:
    """Run r holds the pixels start_R[r] to stop_R[r] − 1 of an image whose (height, width) is `size`.

    Runs are in order, none is empty, none passes the end of its column, and between two of a column there is
    background.
    """

    start_R: Positions
    stop_R: Positions
    size: tuple[int, int]

    @classmethod
    def between(cls, x_E: Positions, y_E: Positions, size: tuple[int, int]) -> Runs:
        """From where runs start and end, in turn, column after column.

        (x_E, y_E) is the first pixel that differs from the one above it; y is the image's height where a run
        reaches the image's bottom.
        """
        start_R, stop_R = (x_E * size[0] + y_E).reshape(-1, 2).T.copy()
        return cls(start_R, stop_R, size)

    @classmethod
    def of(cls, mask_HW: npt.NDArray[np.bool_]) -> Runs:
        """The runs of an image's mask; raises ValueError unless that is a non-empty 2-D bool array."""
        if mask_HW.ndim != 2 or mask_HW.size == 0:
            raise ValueError(f"expected a non-empty mask of shape H×W, got shape {mask_HW.shape}")
        if mask_HW.dtype != np.bool_:
            raise ValueError(f"expected a bool mask, got {mask_HW.dtype}")
        height, width = mask_HW.shape
        changes = np.empty((width, height + 1), np.bool_)  # a row of background above and below
        changes[:, 0], changes[:, -1] = mask_HW[0], mask_HW[-1]
        np.not_equal(mask_HW[1:].T, mask_HW[:-1].T, out=changes[:, 1:-1])
        return cls.between(*np.divmod(np.flatnonzero(changes), height + 1), (height, width))

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return int((self.stop_R - self.start_R).sum())

    def box(self) -> tuple[int, int, int, int]:
        """The tight box, XYXY with both ends inside. The mask must not be empty."""
        x_R, top_R = np.divmod(self.start_R, self.size[0])
        bottom_R = top_R + (self.stop_R - self.start_R) - 1
        return int(x_R[0]), int(top_R.min()), int(x_R[-1]), int(bottom_R.max())

    def background(self) -> Runs:
        """The runs of what the mask leaves of the image."""
        from .loops import background_of  # loads Numba

        start_R, stop_R = background_of(self.start_R, self.stop_R, *self.size)
        return Runs(start_R, stop_R, self.size)

    def where(self, chosen_R: npt.NDArray[np.bool_]) -> Runs:
        """Some of the runs."""
        return Runs(self.start_R[chosen_R], self.stop_R[chosen_R], self.size)

    def __or__(self, other: Runs) -> Runs:
        """The union with a mask that has no pixel in common with this one."""
        start_R = np.sort(np.concatenate([self.start_R, other.start_R]))
        stop_R = np.sort(np.concatenate([self.stop_R, other.stop_R]))
        joined = (stop_R[:-1] == start_R[1:]) & (stop_R[:-1] % self.size[0] != 0)
        return Runs(
            np.delete(start_R, 1 + np.flatnonzero(joined)),
            np.delete(stop_R, np.flatnonzero(joined)),
            self.size,
        )
