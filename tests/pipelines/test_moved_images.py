"""Images that were moved after their corpus was made, by real folders, through everything that reads them:
where nobody says so, where the new place is wrong, where it is right, and moved together with the corpus.
"""

import json
import pickle
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmill.pipelines.cli import main
from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.errors import ConfigError, CorpusError, CorpusUnavailable, UsageError
from maskmill.pipelines.gallery.server import GalleryServer
from maskmill.pipelines.inputs.listing import list_inputs
from maskmill.pipelines.labelled.load import read_labelled
from maskmill.pipelines.torch_dataset.indexed import CorpusImages
from maskmill.pipelines.torch_dataset.stream import CorpusStream
from maskmill.pipelines.writing.close import finish_corpus
from maskmill.pipelines.writing.open import open_run
from tests.support.corpora import fill_shard, make_corpus, make_photos, make_record

KINDS = ("photos", "photos.tar", "photos.parquet")


def pack(folder, images):
    """The images as a folder, a tar file and a Parquet file."""
    (folder / "photos").mkdir(exist_ok=True)
    with tarfile.open(folder / "photos.tar", "w") as tar:
        for name, data in sorted(images.items()):
            (folder / "photos" / name).write_bytes(data)
            tar.add(folder / "photos" / name, name)
    pq.write_table(pa.table({"image": [images[name] for name in sorted(images)]}), folder / "photos.parquet")


@pytest.fixture(scope="module")
def was(tmp_path_factory):
    """Where three corpora of the same images were made: of a folder, of a tar and of a Parquet file. Nothing
    is there any more: all of it was moved, to where `now` says.
    """
    project = tmp_path_factory.mktemp("made") / "project"
    pack(project, {path.name: path.read_bytes() for path in make_photos(project / "photos").iterdir()})
    for kind in KINDS:
        run = open_run(project / f"of-{kind}", list_inputs([project / kind], [".png"]), make_record(), 3)
        for shard in run.todo():
            fill_shard(run, shard)
        finish_corpus(run.out, run.plan.shards)
    project.rename(project.parent / "moved")
    return project


@pytest.fixture(scope="module")
def now(was):
    return was.parent / "moved"


@pytest.fixture
def alone(now, tmp_path):
    """The corpus of the folder, with no image near it."""
    return copied(now, tmp_path, "photos")


def copied(now, folder, kind):
    return shutil.copytree(now / f"of-{kind}", folder / "alone" / "corpus")


def pixels_of(corpus):
    return [corpus.image(row) for row in corpus if row["status"] != "rejected"]


def same(ours, theirs):
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_each_reader_names_the_place_that_is_gone(was, alone, tmp_path, capsys):
    hint = f"--moved {was}=NEW (in Python and YAML: moved)"
    with pytest.raises(CorpusUnavailable) as caught:
        pixels_of(Corpus(alone))
    assert hint in str(caught.value)
    assert main(["export", str(alone), "--format", "sa1b", "--out", str(tmp_path / "out")]) == 4
    assert hint in capsys.readouterr().err
    assert main(["gallery", str(alone), "--out", str(tmp_path / "page.html")]) == 0
    told = capsys.readouterr().err
    assert "6 of 6 images cannot be shown; the first: 0.png" in told
    assert hint in told
    assert main(["evaluate", "--data", str(alone), "--no-automatic"]) == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_place_with_other_images_of_the_same_names(was, now, tmp_path, kind):
    corpus = copied(now, tmp_path, kind)
    (others := tmp_path / "others").mkdir()
    files = sorted((now / "photos").iterdir())
    swapped = dict(
        zip([path.name for path in files], [path.read_bytes() for path in files[::-1]], strict=True)
    )
    pack(others, swapped)
    row = next(Corpus(corpus).rows("ok"))
    with pytest.raises(CorpusError, match=rf"/others/{kind}.* \(moved from .*it is not the image that the"):
        Corpus(corpus, {str(was): str(others)}).image(row)


def test_a_new_place_that_is_none_and_one_without_the_image(was, alone, tmp_path, capsys):
    with pytest.raises(UsageError, match=r"moved: .*/nowhere: there is no such file or folder"):
        Corpus(alone, moved={str(was): str(tmp_path / "nowhere")})
    words = ["export", str(alone), "--format", "sa1b", "--out", str(tmp_path / "out"), "--moved"]
    assert main([*words, f"{was}/photos={alone}"]) == 2
    assert f"{alone}/0.png (moved from {was}/photos/0.png): there is no such" in capsys.readouterr().err
    for typed in (words, ["view", str(alone), "--moved"]):
        assert main([*typed, "photos"]) == 2
        assert "--moved: expected OLD=NEW, got photos" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["export", "--format", "coco", "--out", "out"],
        ["evaluate", "--against", "corpus", "--data"],
        ["evaluate", "--data"],
    ],
)
def test_where_no_image_of_a_corpus_is_read(shapes, words, tmp_path, capsys):
    command, *more = words
    assert main([command, *more, str(shapes), "--moved", f"/a={tmp_path}"]) == 2
    assert "moved" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_moved_are_read_where_they_are_now(was, now, tmp_path, kind):
    """The folder, and a single archive; each of them alone, under another name."""
    corpus, place = copied(now, tmp_path, kind), tmp_path / f"new-{kind}"
    (shutil.copytree if kind == "photos" else shutil.copy)(now / kind, place)
    moved = {str(was / kind): str(place)}
    images = pixels_of(Corpus(now / "of-photos"))
    assert same(pixels_of(Corpus(corpus, moved)), images)
    assert same(pixels_of(pickle.loads(pickle.dumps(Corpus(corpus, moved)))), images)
    assert len(images) == 6
    for dataset in (CorpusStream, CorpusImages):
        samples = [sample["image"] for sample in dataset(corpus, status=None, images=True, moved=moved)]
        assert same([image.permute(1, 2, 0).numpy() for image in samples], images)
        with pytest.raises(ValueError, match="give it to the Corpus itself"):
            dataset(Corpus(corpus), moved=moved)
    with_masks = [Corpus(corpus, moved).image(row) for row in Corpus(corpus).rows("ok")]
    assert same([one.pixels() for one in read_labelled(corpus, moved=moved)], with_masks)


def test_commands_are_told_where_images_are_now(was, now, alone, tiny_weights, tmp_path, capsys):
    option = ["--moved", f"{was}/photos={now}/photos"]
    assert main(["export", str(alone), "--format", "sa1b", "--out", str(tmp_path / "tars"), *option]) == 0
    assert "6 images" in capsys.readouterr().out
    assert main(["gallery", str(alone), "--out", str(tmp_path / "page.html"), *option]) == 0
    assert capsys.readouterr().err == ""
    assert len(list((tmp_path / "page_files").glob("photo-*.jpg"))) == 6
    with GalleryServer(alone, moved={f"{was}/photos": f"{now}/photos"}) as server:
        assert server.files.content("photo-000000.jpg")
    score = ["evaluate", "--data", str(alone), "--checkpoint", str(tiny_weights), "--no-automatic", "--json"]
    assert main([*score, "--masks-per-image", "1", *option]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 5


@pytest.mark.slow
def test_training_is_told_by_its_configuration(was, now, alone, tiny_weights, tmp_path):
    settings = tmp_path / "settings.yaml"
    told = (
        f"{{data: {alone}, out: {tmp_path / 'run'}, initial: {tiny_weights}, clicks: 1, loader_workers: 0, "
        f"stages: [{{steps: 1, size: 64, images: 1, masks: 2, zoom: [1, 1]}}]"
    )
    settings.write_text(told + "}")
    assert main(["train", "--config", str(settings)]) == 2
    settings.write_text(f"{told}, moved: {{{was}: {now}}}}}")
    assert main(["train", "--config", str(settings)]) == 0


def test_labelled_images_of_no_corpus_did_not_move(shapes, tmp_path):
    with pytest.raises(ConfigError, match="moved: only for the images of a corpus"):
        read_labelled(shapes, moved={"/a": str(tmp_path)})


@pytest.mark.parametrize("kind", KINDS)
def test_a_corpus_and_images_that_moved_together(now, kind, capsys, tmp_path):
    corpus = now / f"of-{kind}"
    assert same(pixels_of(Corpus(corpus)), pixels_of(Corpus(now / "of-photos")))
    assert main(["export", str(corpus), "--format", "sa1b", "--out", str(tmp_path / "out")]) == 0
    assert "6 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("images", "corpus"),
    [
        ("photos", "corpus"),
        ("photos/2020/raw", "out/run/corpus"),
        ("photos", "photos/corpus"),
        (".", "corpus"),
    ],
)
def test_however_they_lie_in_their_common_folder(tmp_path, images, corpus, monkeypatch):
    project = tmp_path / "project"
    made = make_corpus(make_photos(project / images, 3), project / corpus)
    before = pixels_of(Corpus(made))
    project.rename(tmp_path / "mounted")
    monkeypatch.chdir(tmp_path / "mounted")
    assert same(pixels_of(Corpus(corpus)), before)
    assert len(before) == 2


def test_files_of_the_same_names_near_the_corpus_are_not_taken_for_the_images(was, alone):
    for folder in (alone / "photos", alone.parent):
        make_photos(folder)
        (folder / "6.png").rename(folder / "0.png")
    row = Corpus(alone).row("0.png")
    with pytest.raises(CorpusUnavailable, match=rf"0.png: {was}/photos/0.png: cannot be read"):
        Corpus(alone).image(row)


def test_images_that_moved_along_cost_one_look_each(now, monkeypatch):
    """Once one was found, where the others are is known."""
    from maskmill.pipelines.corpus import images

    looks = []
    isfile = images.os.path.isfile
    monkeypatch.setattr(images.os.path, "isfile", lambda path: looks.append(path) or isfile(path))
    corpus = Corpus(now / "of-photos")
    rows = list(corpus.rows("ok"))
    corpus.image(rows[0])
    assert looks
    looks.clear()
    for row in rows[1:]:
        corpus.image(row)
    assert looks == []
