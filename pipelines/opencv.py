"""The one importer of OpenCV, which training and the scoring of a model compute with.

Its wheel wants a desktop's libraries, which a server or a slim container may lack. Corpora are made, checked,
viewed and exported there, so nothing else may need it.
"""

from .errors import UsageError

try:
    import cv2
except ImportError as error:
    raise UsageError(
        f"OpenCV is needed to train or to score a model, and cannot be loaded here: {error}; on Debian or "
        "Ubuntu run: apt install libgl1 libglib2.0-0; or take its build that needs no such libraries: "
        "pip install --force-reinstall opencv-python-headless"
    ) from None

__all__ = ["cv2"]
