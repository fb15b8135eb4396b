"""Two corpora held against each other, and predictions against the truth: cases worked out by hand."""

import json

import numpy as np
import pytest

from maskmill.engine.codes import single
from maskmill.pipelines.cli import main
from maskmill.pipelines.errors import UsageError
from maskmill.pipelines.evaluation.agreement import agreement
from maskmill.pipelines.evaluation.calibration import plot_format, reliability
from maskmill.pipelines.format.layout import shard_path
from maskmill.pipelines.format.schema import ROW_SCHEMA
from tests.support.corpora import make_corpus, make_photos


def test_nothing_predicted_has_no_bins():
    assert reliability(np.zeros((0, 2))) == []


def test_bins_by_hand():
    pairs = np.array([[-0.2, 0.1], [0.05, 0.3], [0.61, 0.5], [0.69, 0.7], [1.0, 0.9], [1.3, 0.8]])
    first, middle, last = reliability(pairs)
    assert (first["from"], first["to"], first["masks"]) == (0, 0.1, 2)
    assert first["true"] == pytest.approx(0.2)
    assert (middle["from"], middle["masks"]) == (0.6, 2)
    assert (middle["predicted"], middle["true"]) == (pytest.approx(0.65), pytest.approx(0.6))
    assert (last["from"], last["masks"]) == (0.9, 2)


@pytest.mark.parametrize("name", ["plot", "plot.docx"])
def test_a_plot_of_no_format_is_refused_before_anything_is_scored(tmp_path, name):
    with pytest.raises(UsageError, match=r"expected a file that ends in one of .*png"):
        plot_format(tmp_path / name)
    assert plot_format(tmp_path / "plot.PNG") == "png"


@pytest.fixture
def corpus(tmp_path):
    return make_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")


def changed(corpus, out, change):
    """The corpus, with what `change` makes of each row."""
    import shutil

    import pyarrow as pa
    import pyarrow.parquet as pq

    shutil.copytree(corpus, out)
    for shard in range(len(list((corpus / "shards").iterdir()))):
        path = shard_path(out, shard)
        rows = [change(row) for row in pq.read_table(path).to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, schema=ROW_SCHEMA), path)
    return out


def test_a_corpus_agrees_with_itself(corpus):
    result = agreement(corpus, corpus)
    assert (result["images"], result["images_left_out"]) == (6, 1), "one is no photograph"
    assert result["masks"]["ours"] == result["masks"]["theirs"] > 5
    assert result["mean_best_iou"] == {"ours": 1, "theirs": 1}
    assert result["matched"]["0.99"] == {"ours": 1, "theirs": 1}
    assert result["predicted_iou_difference"] == 0


def test_a_mask_that_is_missing_and_one_that_is_halved(corpus, tmp_path):
    def change(row):
        if row["key"] == "5.png":  # three masks
            row["annotations"] = row["annotations"][:2]
            code = row["annotations"][1]["segmentation"]
            mask = single.decode(single.Rle(tuple(code["size"]), code["counts"])).copy()
            ys, xs = np.nonzero(mask)
            mask[ys[::2], xs[::2]] = False
            code["counts"] = single.encode(mask).counts
            row["annotations"][0]["predicted_iou"] += 0.25
        return row

    result = agreement(corpus, changed(corpus, tmp_path / "other", change))
    assert result["masks"]["theirs"] == result["masks"]["ours"] - 1
    ours = result["masks"]["ours"]
    assert result["matched"]["0.99"]["theirs"] == pytest.approx((ours - 2) / (ours - 1))
    assert result["matched"]["0.99"]["ours"] == pytest.approx((ours - 2) / ours)
    assert result["predicted_iou_difference"] > 0


def test_corpora_of_other_photographs_are_refused(corpus, tmp_path):
    def change(row):
        return row | {"key": f"other/{row['key']}"}

    with pytest.raises(UsageError, match=r"have no image in common \(by key\)"):
        agreement(corpus, changed(corpus, tmp_path / "other", change))


def test_the_command_compares_two_corpora(corpus, capsys):
    command = ["evaluate", "--data", str(corpus), "--against", str(corpus)]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["matched"]["0.95"]["ours"] == 1
    assert main(command) == 0
    assert "6 images, 1 left out" in capsys.readouterr().out
    assert main(["evaluate", "--data", str(corpus), "--against", str(corpus.parent / "photos")]) == 2
    assert main([*command, "--validation"]) == 2
    assert "compares two corpora and runs no model: leave out --validation" in capsys.readouterr().err
