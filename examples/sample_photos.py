"""Save real photographs to try maskmill on: those that the installed scikit-image carries inside its package.

    python examples/sample_photos.py out/photos

The files are copied byte for byte and nothing is downloaded.
"""

import argparse
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

PHOTOGRAPHS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)


def find_photographs() -> list[Path]:
    """The files inside the installed package; exits with one line where the package or a file is absent."""
    package = find_spec("skimage")
    if package is None or package.origin is None:
        sys.exit("scikit-image is not installed: pip install scikit-image")
    folder = Path(package.origin).parent / "data"
    absent = [name for name in PHOTOGRAPHS if not (folder / name).is_file()]
    if absent:
        sys.exit(f"this scikit-image does not carry {', '.join(absent)} (expected in {folder})")
    return [folder / name for name in PHOTOGRAPHS]


def main() -> None:
    """Copy them and print what was written."""
    parser = argparse.ArgumentParser(description="Save the photographs that scikit-image carries.")
    parser.add_argument("folder", type=Path, help="where to save them; made where it is missing")
    folder: Path = parser.parse_args().folder
    sources = find_photographs()
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        path = Path(shutil.copyfile(source, folder / source.name))
        print(f"{path}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
