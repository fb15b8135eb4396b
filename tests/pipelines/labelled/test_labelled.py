"""Labelled images from JSON and from corpora: what is wrong first, then masks against numpy and OpenCV."""

import json
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from maskmill.pipelines.cli import main
from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.errors import ConfigError, CorpusError
from maskmill.pipelines.labelled.load import read_labelled
from tests.support.corpora import make_corpus, make_photos

pytestmark = pytest.mark.usefixtures("one_thread")

HEIGHT, WIDTH = 20, 30


def square(left, top, side):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def compressed(mask):
    code = mask_utils.encode(np.asfortranarray(mask))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def runs(mask):
    """Run lengths down the columns, background first, by numpy."""
    flat = np.concatenate([[0], mask.T.flatten(), [1 - mask.T.flatten()[-1]]])
    ends = (
        np.flatnonzero(np.diff(flat))
        if flat[1] == 0
        else np.concatenate([[0], np.flatnonzero(np.diff(flat))[1:]])
    )
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(ends, prepend=0).tolist()}


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(HEIGHT * WIDTH * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3)).save(path)


def coco(folder, segmentations, **more):
    """A COCO JSON of one photograph; returns its path."""
    picture(folder / "photos" / "one.png")
    image = {"id": 7, "file_name": "photos/one.png", "height": HEIGHT, "width": WIDTH}
    annotations = [
        {"id": 100 + n, "image_id": 7, "category_id": 1, "iscrowd": 0, "segmentation": segmentation}
        for n, segmentation in enumerate(segmentations)
    ]
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": [image], "annotations": annotations, "categories": []} | more))
    return path


GOOD = compressed(square(2, 3, 5))


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        (
            {"size": [HEIGHT, WIDTH + 1], "counts": GOOD["counts"]},
            r"the mask is for 20×31, its image is 20×30",
        ),
        ({"size": [HEIGHT], "counts": GOOD["counts"]}, r"the size is \[20\], not \[height, width\]"),
        ({"size": [HEIGHT, WIDTH], "counts": "52203"}, "runs must be ≥ 0 and add up to 20×30"),
        ({"size": [HEIGHT, WIDTH], "counts": "\x7f\x7f"}, "not a compressed run-length string"),
        ({"size": [HEIGHT, WIDTH], "counts": [5, 5]}, "run lengths must be whole numbers ≥ 0 that add up"),
        (
            {"size": [HEIGHT, WIDTH], "counts": [-5, HEIGHT * WIDTH + 5]},
            "run lengths must be whole numbers ≥ 0",
        ),
        ({"size": [HEIGHT, WIDTH]}, "no 'counts'"),
        ([[1, 1, 5, 5]], "polygon 0: expected at least three x, y pairs"),
        ([[1, 1, 5, 5, 1, 5], [1, 1, 5, 5, 1, 5, 3]], "polygon 1: expected at least three x, y pairs"),
        ([[1, 1, 5, float("nan"), 1, 5]], "polygon 0: a coordinate is not a finite number"),
        ("nothing", r"expected polygons or \{size, counts\}, got 'nothing'"),
        (None, r"expected polygons or \{size, counts\}, got None"),
        ({"size": [HEIGHT], "counts": [50, 50]}, r"the mask is for \[20\], its image is 20×30"),
        ({"size": [], "counts": [0]}, r"the mask is for \[\], its image is 20×30"),
        ({"size": [10**20, 10**20], "counts": [10**40]}, "the mask is for .*, its image is 20×30"),
        ([[1, 1, 5, 10**400, 1, 5]], "too large"),
        (
            [[-1e308, -1e308, 1e308, 1e308, 1e308, -1e308]],
            r"polygon 0: a coordinate is more than 1e\+12 pixels",
        ),
    ],
)
def test_a_mask_that_is_not_right_is_named(tmp_path, segmentation, expected):
    path = coco(tmp_path, [GOOD, segmentation])
    with pytest.raises(ConfigError, match=rf"annotations\.json: annotation 101: .*{expected}"):
        read_labelled(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b"[]", "expected an object of JSON, got list"),
        (b"{}", "not COCO's JSON: it has no lists of images and annotations"),
        (b'{"images": [{"file_name": "a"}], "annotations": []}', "an image has no id"),
        (b'{"images": [], "annotations": [{"id": 1, "image_id": 3}]}', "annotation 1: there is no image 3"),
        (
            b'{"images": [{"id": 3, "file_name": "a", "height": 0, "width": 4}],'
            b' "annotations": [{"id": 1, "image_id": 3, "segmentation": []}]}',
            "image a: a size of 0×4 pixels",
        ),
        (
            b'{"images": [{"id": 3, "file_name": "a", "height": 10, "width": 1000000000}], "annotations": '
            b'[{"id": 1, "image_id": 3, "segmentation": [[0, 0, 1000000000, 5, 1000000000, 9]]}]}',
            "image a: a size of 10×1000000000 pixels",
        ),
        (
            b'{"images": [{"id": 3, "file_name": "' + b"a" * 5000 + b'", "height": 4, "width": 4}],'
            b' "annotations": [{"id": 1, "image_id": 3,'
            b' "segmentation": {"size": [4, 4], "counts": [4, 12]}}]}',
            "image 3: no file ",
        ),
    ],
)
def test_json_of_something_else_is_named(tmp_path, content, expected):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"a\.json: {expected}"):
        read_labelled(tmp_path / "a.json")


def test_a_photograph_that_is_not_there_or_of_another_size_is_named(tmp_path):
    path = coco(tmp_path, [GOOD])
    Image.new("RGB", (WIDTH, HEIGHT + 2)).save(tmp_path / "photos" / "one.png")
    with pytest.raises(ConfigError, match=r"coco/7: the image has 22×30 pixels .* for 20×30"):
        read_labelled(path)[0].pixels()
    (tmp_path / "photos" / "one.png").unlink()
    with pytest.raises(
        ConfigError, match=r"image 7: no file .*one\.png; set photographs to the folder of the images"
    ):
        read_labelled(path)
    with pytest.raises(ConfigError, match="only for a COCO JSON"):
        read_labelled(tmp_path, tmp_path)


def test_all_of_cocos_kinds_of_mask_are_read(tmp_path):
    inside, corner = square(4, 3, 6), square(0, 0, 4)
    polygon = [[10, 5, 20, 5, 20, 15, 10, 15], [-50, -50, 3, -50, 3, 3, -50, 3]]  # two parts, one goes beyond
    path = coco(tmp_path, [compressed(inside), runs(inside), runs(corner), polygon, [[1, 1, 1, 1, 1, 1]]])
    [image] = read_labelled(path)
    assert image.name == "coco/7"
    first, second, third, drawn = image.masks(range(len(image.rles)))
    assert (first == inside).all()
    assert (second == inside).all()
    assert (third == corner).all()
    assert (drawn[5:15, 10:20] == 1).all()
    assert (drawn[:3, :3] == 1).all()
    assert drawn.sum() == 109, "and nothing else; the polygon without a pixel is left out"
    assert (image.pixels() == cv2.imread(str(tmp_path / "photos" / "one.png"))[:, :, ::-1]).all()


@pytest.mark.parametrize(
    "polygon",
    [
        [-20, 10, 15, -20, 15, 25],  # a triangle across the left edge and the top
        [15, -30, 60, 10, 15, 50, -30, 10],  # a diamond about all of it
        [-10, -10, 40, -10, 40, 30, -10, 30, -10, 20, 25, 20, 25, 3, -10, 3],  # a C that opens to the left
        [5, 5, 500_000_000, 10, 5, 15],
        [40, 5, 50, 5, 50, 15],  # nothing of it is seen
    ],
    ids=["triangle", "diamond", "C", "far", "outside"],
)
def test_a_polygon_is_cut_off_at_the_photographs_edge(tmp_path, polygon):
    """Against the middles of pixels that OpenCV finds within it; those that its edge touches may differ."""
    corners = np.array(polygon, np.float32).reshape(-1, 1, 2)
    depths = np.array(
        [
            [cv2.pointPolygonTest(corners, (x + 0.5, y + 0.5), measureDist=True) for x in range(WIDTH)]
            for y in range(HEIGHT)
        ]
    )
    images = read_labelled(coco(tmp_path, [GOOD, [polygon]]))
    masks = images[0].masks(range(len(images[0].rles)))
    drawn = masks[1] if len(masks) == 2 else np.zeros((HEIGHT, WIDTH), np.uint8)
    certain = np.abs(depths) > 0.75
    assert certain.mean() > 0.7
    assert (drawn[certain] == (depths[certain] > 0)).all()


def test_two_images_of_one_name_are_refused(tmp_path):
    path = coco(tmp_path, [GOOD])
    content = json.loads(path.read_text())
    content["images"].append(content["images"][0] | {"id": "7"})
    content["annotations"].append(content["annotations"][0] | {"image_id": "7"})
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"annotations\.json: two images are coco/7 \(source/id\)"):
        read_labelled(path)


def test_data_that_moves_sets_the_same_images_aside(tmp_path):
    make_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    before = [coco(tmp_path / "a", [GOOD]), sa1b(tmp_path / "b"), tmp_path / "corpus"]
    names = [[image.name for image in read_labelled(path)] for path in before]
    moved = [path.rename(path.with_name(f"moved_{path.name}")) for path in before]
    assert [[image.name for image in read_labelled(path)] for path in moved] == names
    assert [found[0].partition("/")[0] for found in names] == ["coco", "sa1b", "corpus"]


def test_a_picture_that_opencv_refuses_is_named(tmp_path):
    path = coco(tmp_path, [GOOD])
    header = b"IHDR" + struct.pack(">IIBBBBB", 70_000, 70_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "photos" / "one.png").write_bytes(data)
    with pytest.raises(ConfigError, match=r"one\.png: not an image that OpenCV reads, or missing"):
        read_labelled(path)[0].pixels()


def test_crowds_are_left_out_and_photographs_may_lie_elsewhere(tmp_path):
    path = coco(tmp_path / "labels", [GOOD, compressed(square(9, 9, 9))])
    content = json.loads(path.read_text())
    content["annotations"][1]["iscrowd"] = 1
    content["images"][0]["file_name"] = "one.png"
    path.write_text(json.dumps(content))
    [image] = read_labelled(path, tmp_path / "labels" / "photos")
    assert image.areas().tolist() == [25]


def sa1b(folder, **changes):
    picture(folder / "sa_12.png")
    image = {"image_id": 12, "file_name": "sa_12.png", "height": HEIGHT, "width": WIDTH} | changes
    content = {"image": image, "annotations": [{"id": 5, "segmentation": GOOD, "predicted_iou": 0.9}]}
    (folder / "sa_12.json").write_text(json.dumps(content))
    return folder


def test_a_folder_of_sa_1b_is_read(tmp_path):
    folder = sa1b(tmp_path / "sa_000020")
    [image] = read_labelled(folder)
    assert image.name == "sa1b/12"
    assert (image.masks([0])[0] == square(2, 3, 5)).all()
    assert image.pixels().shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"file_name": "sa_13.png"}, r"sa_12\.json: no file .*sa_13\.png"),
        ({"width": 31}, r"sa_12\.json: annotation 5: the mask is for 20×30, its image is 20×31"),
        ({"width": None}, r"sa_12\.json: an image has no width"),
    ],
)
def test_sa_1b_that_does_not_fit_together_is_named(tmp_path, changes, expected):
    with pytest.raises(ConfigError, match=expected):
        read_labelled(sa1b(tmp_path, **changes))


@pytest.fixture(params=[False, True], ids=["by uri", "embedded"])
def corpus(request, tmp_path):
    config = {"generator": {"points_per_side": 32}, "shard_size": 3, "embed_images": request.param}
    return make_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus", config=config)


def test_a_corpus_of_ours_is_read(corpus):
    images = {image.image_id: image for image in read_labelled(corpus)}
    rows = {str(row["image_id"]): row for row in Corpus(corpus).rows("ok")}
    assert images.keys() == rows.keys()
    assert len(images) == 5, "of seven, without the one that is no photograph and the one without masks"
    for name, row in rows.items():
        masks_NHW = images[name].masks(range(len(images[name].rles)))
        assert (masks_NHW.transpose(1, 2, 0) == Corpus(corpus).masks(row)).all()
        expected = cv2.imread(str(corpus.parent / "photos" / row["key"]))[:, :, ::-1]
        assert (images[name].pixels() == expected).all()


def test_a_corpus_whose_photographs_are_gone_says_which(corpus):
    embedded = Corpus(corpus).run.config["embed_images"]
    image = read_labelled(corpus)[0]
    path = corpus.parent / "photos" / "0.png"
    Image.new("RGB", (30, 20)).save(path)
    if embedded:
        assert image.pixels().any(), "the corpus has its own"
        return
    with pytest.raises(ConfigError, match=r"0\.png: .* has changed: it is not the image"):
        image.pixels()
    path.unlink()
    with pytest.raises(ConfigError, match=r"0\.png: .* there is no such file any more"):
        image.pixels()


def test_a_corpus_that_is_damaged_says_where(corpus):
    shard = min((corpus / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(CorpusError, match=shard.name):
        read_labelled(corpus)


def test_a_model_learns_from_a_corpus_and_is_scored_on_it(corpus, tiny_weights, tmp_path, capsys):
    settings = tmp_path / "settings.yaml"
    settings.write_text(
        f"{{data: {corpus}, out: {tmp_path / 'run'}, initial: {tiny_weights}, clicks: 1, loader_workers: 0, "
        f"stages: [{{steps: 1, size: 64, images: 1, masks: 2, zoom: [1, 1]}}]}}"
    )
    assert main(["train", "--config", str(settings)]) == 0
    weights = capsys.readouterr().out.strip()
    command = ["evaluate", "--data", str(corpus), "--checkpoint", weights, "--no-automatic", "--json"]
    assert main(command) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores["images"] == 5
    assert set(scores["by_source"]) == {"corpus"}
