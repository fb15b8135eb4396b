"""Runs that go on with inputs that lie elsewhere now: other images of the same names first, then the same."""

import shlex
import shutil
import tarfile
from pathlib import Path

import pytest

from maskmill.pipelines.cli import main
from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.errors import CorpusError
from maskmill.pipelines.format.layout import shard_path
from maskmill.pipelines.inputs.listing import list_inputs
from maskmill.pipelines.workers import local_crew
from maskmill.pipelines.writing.moves import moves
from maskmill.pipelines.writing.open import open_run
from tests.support.commands import words
from tests.support.corpora import fill_shard, make_photos, make_record, open_corpus

pytestmark = pytest.mark.usefixtures("one_thread")


def content(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mode", ["resume", "extend"])
def test_other_images_of_the_same_names(tmp_path, mode):
    run = open_corpus(make_photos(tmp_path / "a"), tmp_path / "corpus")
    fill_shard(run, 0)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "0.png").write_bytes((tmp_path / "a" / "6.png").read_bytes())
    before = content(tmp_path / "corpus")
    with pytest.raises(CorpusError, match=r"0\.png lies at .*/b/0\.png now, and is not the image"):
        open_corpus(tmp_path / "b", tmp_path / "corpus", mode)
    assert content(tmp_path / "corpus") == before


def test_no_row_that_could_tell(tmp_path):
    open_corpus(make_photos(tmp_path / "a"), tmp_path / "corpus")
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(CorpusError, match=r"lay at .*/a and lie at .*/b now, and there is no row yet"):
        open_corpus(tmp_path / "b", tmp_path / "corpus")


def test_images_that_are_scattered_are_not_followed(tmp_path):
    run = open_corpus(make_photos(tmp_path / "a", 20), tmp_path / "corpus")
    fill_shard(run, 0)
    inputs = list_inputs([tmp_path / "a"], [".png"]).to_pydict()
    for number, uri in enumerate(inputs["uri"]):
        place = tmp_path / str(number) / Path(uri).name
        place.parent.mkdir()
        inputs["uri"][number] = str(shutil.copy(uri, place))
    scattered = list_inputs([tmp_path / "a"], [".png"]).from_pydict(inputs)
    with pytest.raises(CorpusError, match=r"0\.png \(and 19 more\) now lies elsewhere: start anew"):
        open_run(tmp_path / "corpus", scattered, make_record(), 3)


def test_an_archive_that_moved_has_other_keys_until_it_is_linked(tmp_path):
    make_photos(tmp_path / "photos")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "photos", "photos")
    planned = open_run(tmp_path / "corpus", list_inputs([tmp_path / "a.tar"], [".png"]), make_record(), 3)
    (tmp_path / "a.tar").rename(tmp_path / "b.tar")
    with pytest.raises(CorpusError, match="if an archive was moved, link it to where it was"):
        open_run(tmp_path / "corpus", list_inputs([tmp_path / "b.tar"], [".png"]), make_record(), 3)
    (tmp_path / "a.tar").symlink_to(tmp_path / "b.tar")
    again = open_run(tmp_path / "corpus", list_inputs([tmp_path / "a.tar"], [".png"]), make_record(), 3)
    assert again.todo() == planned.todo()


@pytest.mark.parametrize(
    "uris",
    [
        {"/a/1/x.jpg": "/b/1/x.jpg", "/a/2/x.jpg": "/b/2/x.jpg"},  # one pair does
        {"/a/1/x.jpg": "/b/1/x.jpg", "/a/2/x.jpg": "/a/2/x.jpg"},  # a part stayed
        {"/a/1/x.jpg": "/a/1/x.jpg", "/a/2/x.jpg": "/c/2/x.jpg", "/a/3/x.jpg": "/a/3/x.jpg"},
        {"/a/1/x.jpg": "/b/1/x.jpg", "/a/2/x.jpg": "/c/2/x.jpg"},
        {"/a/x.jpg": "s3://b/a/x.jpg", "s3://b/100%25.jpg": "/a/100%.jpg"},
        {"/data/x.jpg": "/data/old/x.jpg", "/data/old/y.jpg": "/data/old/y.jpg"},  # grown since it moved
    ],
)
def test_what_leads_from_where_inputs_were_to_where_they_are(uris):
    moved = moves(uris.items)
    assert {uri: moved.apply(uri) for uri in uris} == uris


@pytest.fixture
def project(photos, tiny_settings, tmp_path):
    """A run over five images and one that is none, killed before its last shard, then moved."""
    made = tmp_path / "made"
    shutil.copytree(photos / "coffee", made / "photos" / "coffee")
    shutil.copytree(photos / "rocket", made / "photos" / "rocket")
    (made / "photos" / "coffee" / "0.png").write_bytes(b"no image yet")
    assert main(words(made / "photos", made / "corpus", tiny_settings, "--workers", "0")) == 0
    for path in (shard_path(made / "corpus", 2), made / "corpus" / "corpus.json"):
        path.unlink()
    return made.rename(tmp_path / "mounted")


def test_a_run_goes_on_where_it_and_its_inputs_are_now(
    project, photos, tiny_settings, tmp_path, capsys, monkeypatch
):
    was, out = tmp_path / "made", project / "corpus"
    before = {shard: shard_path(out, shard).read_bytes() for shard in (0, 1)}
    monkeypatch.chdir(project)
    typed = words("photos", "corpus", tiny_settings, "--workers", "0")
    assert main(typed) == 0
    assert f"corpus: planned at {was}, read at {project} now" in capsys.readouterr().out
    assert {shard: shard_path(out, shard).read_bytes() for shard in before} == before
    assert main(["verify", "corpus"]) == 0
    assert [row["uri"] for row in Corpus("corpus")] == [
        f"{was}/photos/{row['key']}" for row in Corpus("corpus")
    ]
    assert [row["status"] == "rejected" for row in Corpus("corpus")] == [True, *[False] * 5]

    shutil.copy(photos / "coffee" / "0.png", "photos/coffee/0.png")
    shutil.copy(photos / "coffee" / "0.png", "photos/coffee/9.png")
    assert main([*typed, "--extend", "--retry-rejects", "NotAnImage"]) == 0
    assert main(["verify", "corpus"]) == 0
    rows = {row["key"]: row for row in Corpus("corpus")}
    assert len(rows) == 7
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert rows["coffee/0.png"]["uri"] == f"{was}/photos/coffee/0.png"
    assert rows["coffee/9.png"]["uri"] == f"{project}/photos/coffee/9.png"
    assert all(Corpus("corpus").image(row).any() for row in rows.values())
    capsys.readouterr()
    assert main(typed) == 0
    assert "complete, nothing to do" in capsys.readouterr().out


def test_what_is_said_to_have_moved_is_held_to_the_plan_and_suggested_again(project, monkeypatch, capsys):
    out, was = project / "corpus", project.with_name("made")
    (project / "photos").rename(project / "away")
    assert main(["resume", str(out), "--moved", f"{was}/foto={project}/away"]) == 2
    assert f"no input of the plan lay at {was}/foto" in capsys.readouterr().err

    def interrupt(*_arguments):
        raise KeyboardInterrupt

    typed = ["resume", str(out), "--moved", f"{was}/photos={project}/away"]
    with monkeypatch.context() as broken:
        broken.setattr(local_crew, "shard_steps", interrupt)
        assert main(typed) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(f"; committed shards stay, go on with: {shlex.join(['maskmill', *typed])}")
    assert main(typed) == 0
    assert main(["verify", str(out)]) == 0
