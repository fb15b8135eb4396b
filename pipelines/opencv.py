"""The one importer of OpenCV, for what cannot do without: training, scoring a model, the released generator.

Its wheel wants a desktop's libraries, which a server or a slim container may lack. Corpora are made, checked,
viewed and exported there, so nothing else may need it.
"""

from .errors import UsageError

try:
    import cv2
except ImportError as error:
    raise UsageError(
        f"this needs OpenCV, which cannot be loaded here: {error}; on Debian or Ubuntu run: apt install "
        "libgl1 libglib2.0-0; or take OpenCV's build that needs no such libraries: "
        "pip install --force-reinstall opencv-python-headless"
    ) from None

__all__ = ["cv2"]
