"""Files as SA-1B's release has them, made by Pillow, numpy and pycocotools."""

import io
import json
import tarfile

import numpy as np
from PIL import Image
from pycocotools import mask as coco


def jpeg_of(number, size=(20, 30), **options):
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


def entry_of(number, size=(20, 30), masks=3):
    rng = np.random.default_rng(number)
    height, width = size
    annotations = []
    for index in range(masks):
        mask_HW = np.zeros(size, np.uint8)
        y, x = rng.integers(0, height - 1), rng.integers(0, width - 1)
        mask_HW[y : y + 1 + index * 3, x : x + 1 + index * 4] = 1
        ys, xs = np.nonzero(mask_HW)
        code = coco.encode(np.asfortranarray(mask_HW))
        annotations.append(
            {
                "bbox": [float(value) for value in (xs.min(), ys.min(), np.ptp(xs), np.ptp(ys))],
                "area": int(mask_HW.sum()),
                "segmentation": {"size": [height, width], "counts": code["counts"].decode()},
                "predicted_iou": float(np.float32(rng.uniform(0.88, 1.02))),
                "point_coords": [[float(np.float32(rng.uniform(0, width))), float(y)]],
                "crop_box": [0.0, 0.0, float(width), float(height)],
                "id": int(rng.integers(0, 2**40)),
                "stability_score": float(np.float32(rng.uniform(0.95, 1))),
            }
        )
    image = {"image_id": number, "width": width, "height": height, "file_name": f"sa_{number}.jpg"}
    return {"image": image, "annotations": annotations}


def release(folder, numbers, **options):
    """A folder of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"sa_{number}.jpg").write_bytes(jpeg_of(number))
        (folder / f"sa_{number}.json").write_text(json.dumps(entry_of(number, **options)))
    return folder


def pack(folder, path, prefix="./"):
    """A folder's files as a tar file."""
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, prefix + file.name)
    return path


def unpacked(folder):
    """Member → bytes of the tar files in a folder."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found
