"""Samples for PyTorch: what is asked wrongly first; then against rows, over ranks, workers and epochs."""

import itertools
import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler

from maskmill.pipelines.corpus import windows
from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.corpus.views import View
from maskmill.pipelines.errors import CorpusError
from maskmill.pipelines.format import parquet_files
from maskmill.pipelines.format.schema import ROW_SCHEMA
from maskmill.pipelines.inputs.listing import list_inputs
from maskmill.pipelines.torch_dataset import stream as torch_dataset
from maskmill.pipelines.torch_dataset.collate import for_detection
from maskmill.pipelines.torch_dataset.indexed import CorpusImages
from maskmill.pipelines.torch_dataset.stream import CorpusStream
from maskmill.pipelines.writing.open import open_run
from tests.support.corpora import fill_shard, make_corpus, make_photos, make_record

PHOTOS = 17


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Six shards of row groups of one or two rows: fifteen images with masks, one without, one rejected."""
    folder = tmp_path_factory.mktemp("torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_files, "ROW_GROUP_BYTES", 1_500)
        return Corpus(make_corpus(make_photos(folder / "photos", PHOTOS), folder / "corpus"))


def keys(samples):
    """Of samples a key each, of batches a list of them."""
    return [sample["key"] for sample in samples]


def flat(found):
    return list(itertools.chain.from_iterable([one] if isinstance(one, str) else one for one in found))


@pytest.mark.parametrize(
    "values",
    [{"rank": 1}, {"rank": -1}, {"world": 0}, {"seed": -1}, {"status": "fine"}, {"batch_size": 0}],
)
def test_values_that_mean_nothing(corpus, values):
    with pytest.raises(ValueError, match="expected a"):
        CorpusStream(corpus, **values)


def test_no_corpus(tmp_path):
    for kind in (CorpusStream, CorpusImages):
        with pytest.raises(CorpusError, match="expected a corpus"):
            kind(tmp_path / "missing")


@pytest.mark.parametrize("name", ["bbox", "area", "segmentation"])
def test_an_annotation_that_lacks_a_value(tmp_path, name):
    out = make_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    path = out / "shards" / "shard-000000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0]["annotations"][0][name] = None
    pq.write_table(pa.Table.from_pylist(rows, ROW_SCHEMA), path)
    with pytest.raises(CorpusError, match=r"shard-000000.parquet: damaged: .* lacks a value"):
        list(CorpusStream(out, masks=True))


def test_a_sample_that_lacks_its_size(tmp_path):
    out = make_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    path = out / "shards" / "shard-000000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0]["width"] = None
    pq.write_table(pa.Table.from_pylist(rows, ROW_SCHEMA), path)
    with pytest.raises(CorpusError, match=r"shard-000000.parquet: damaged: .* lacks a value"):
        list(CorpusStream(out))


def test_positions_of_another_order(corpus):
    stream = CorpusStream(corpus, seed=1)
    state = stream.state_dict()
    for other in (CorpusStream(corpus, seed=2), CorpusStream(corpus, seed=1, rank=1, world=2)):
        with pytest.raises(ValueError, match="expected a position in the order"):
            other.load_state_dict(state)
    stream.load_state_dict({**state, "workers": 2})
    with pytest.raises(ValueError, match="expected 2 workers, as when the position was kept, got 1"):
        next(iter(stream))


@pytest.mark.parametrize(
    "view",
    [
        None,
        View(),
        View(min_area=200, predicted_iou=0.9),
        View(mask_nms=0.1),
        View(max_area=300, mask_nms=0.3),
    ],
)
@pytest.mark.filterwarnings("ignore::maskmill.pipelines.corpus.views.ViewWarning")
def test_samples_are_the_rows(corpus, view):
    rows = list(corpus.rows("ok", view=view))
    for kind in (CorpusStream, CorpusImages):
        samples = kind(corpus, masks=True, images=True, view=view)
        for sample, row in zip(samples, rows, strict=True):
            masks = row["annotations"]
            assert (sample["image_id"], sample["key"]) == (row["image_id"], row["key"])
            assert sample["size"] == (row["height"], row["width"])
            boxes = [
                (x, y, x + width, y + height) for x, y, width, height in (mask["bbox"] for mask in masks)
            ]
            assert torch.equal(sample["boxes"], torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
            for name, kind in (
                ("area", torch.int64),
                ("predicted_iou", torch.float32),
                ("stability_score", torch.float32),
            ):
                assert torch.equal(sample[name], torch.tensor([mask[name] for mask in masks], dtype=kind))
            assert np.array_equal(sample["masks"].numpy(), corpus.masks(row).transpose(2, 0, 1))
            assert np.array_equal(sample["image"].numpy(), corpus.image(row).transpose(2, 0, 1))


@pytest.mark.parametrize("view", [None, View(min_area=200), View(mask_nms=0.1)])
@pytest.mark.parametrize("options", [{}, {"seed": 3}, {"status": None}, {"seed": 0, "rank": 1, "world": 3}])
@pytest.mark.filterwarnings("ignore::maskmill.pipelines.corpus.views.ViewWarning")
def test_batches_are_the_samples(corpus, options, view, monkeypatch):
    """At every size, windows that end in the middle of a batch included."""
    monkeypatch.setattr(windows, "WINDOW_GROUPS", 4)
    options = options | {"view": view, "codes": True, "masks": True, "images": True}
    samples = list(CorpusStream(corpus, **options))
    for size in (1, 3, 100):
        rest = iter(samples)
        batches = list(CorpusStream(corpus, batch_size=size, **options))
        assert {len(batch["count"]) for batch in batches[:-1]} <= {size}
        for batch in batches:
            ends = [0, *batch["count"].cumsum(0).tolist()]
            for place, (begin, end) in enumerate(itertools.pairwise(ends)):
                sample = next(rest)
                for name in ("image_id", "key", "size"):
                    assert batch[name][place] == sample[name]
                for name in ("boxes", "area", "predicted_iou", "stability_score"):
                    assert batch[name].dtype == sample[name].dtype
                    assert torch.equal(batch[name][begin:end], sample[name])
                for name in ("masks", "image"):
                    assert torch.equal(batch[name][place], sample[name])
                assert batch["codes"][begin:end].to_pylist() == sample["codes"].to_pylist()
            assert batch["position"] == sample["position"]
        assert next(rest, None) is None


def test_boxes_hold_their_masks(corpus):
    """By the pixels: first and last column and row of the mask, the last one inside by one."""
    for sample in CorpusStream(corpus, masks=True):
        for box, mask_HW in zip(sample["boxes"].tolist(), sample["masks"], strict=True):
            ys, xs = torch.nonzero(mask_HW, as_tuple=True)
            assert box == [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]


def test_boxes_that_end_at_the_last_pixel(tmp_path):
    """As SA-1B's do, which an imported corpus keeps."""
    make_photos(tmp_path / "photos", 1)
    (tmp_path / "photos" / "1.png").unlink()
    (tmp_path / "photos" / "0.png").rename(tmp_path / "photos" / "sa_7.jpg")
    record = make_record(config={"import": "sa1b", "embed_images": False})
    run = open_run(tmp_path / "corpus", list_inputs([tmp_path / "photos"], [".jpg"]), record, 1)
    fill_shard(run, 0)
    (sample,) = CorpusStream(run.out)
    row = Corpus(run.out).row("sa_7.jpg")
    assert row["image_id"] == sample["image_id"] == 7
    assert row == Corpus(run.out).row(7)
    (x, y, width, height), *_ = (mask["bbox"] for mask in row["annotations"])
    assert sample["boxes"][0].tolist() == [x, y, x + width + 1, y + height + 1]
    with pytest.raises(KeyError, match="no image of an imported corpus has such a key"):
        Corpus(run.out).row("7.jpg")


def test_statuses(corpus):
    assert keys(CorpusStream(corpus, status=None)) == keys(
        row for row in corpus if row["status"] != "rejected"
    )
    (empty,) = CorpusStream(corpus, status="empty", masks=True)
    assert (empty["boxes"].shape, empty["masks"].shape) == ((0, 4), (0, *empty["size"]))
    assert len(CorpusImages(corpus, status=None)) == PHOTOS - 1


def of_workers(corpus, world, workers, epoch=0, **options):
    """What each worker of each rank yields, one after the other in this process."""
    for rank, worker in itertools.product(range(world), range(workers)):
        stream = CorpusStream(corpus, rank=rank, world=world, **options)
        stream.set_epoch(epoch)
        with pytest.MonkeyPatch.context() as patch:
            info = SimpleNamespace(id=worker, num_workers=workers)
            patch.setattr(torch_dataset, "get_worker_info", lambda info=info: info)
            yield stream, list(stream)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.none() | st.integers(0, 9), st.integers(0, 3))
def test_no_sample_twice_and_none_lost(corpus, world, workers, seed, epoch):
    shares = [samples for _, samples in of_workers(corpus, world, workers, epoch, seed=seed, status=None)]
    expected = [row["key"] for row in corpus if row["status"] != "rejected"]
    assert Counter(key for share in shares for key in keys(share)) == Counter(expected)
    ranks = [sum(map(len, shares[first : first + workers])) for first in range(0, len(shares), workers)]
    assert max(ranks) - min(ranks) <= 2, "a row, and the one that was rejected"


@settings(max_examples=10, deadline=None)
@given(st.none() | st.integers(0, 9), st.integers(0, 16), st.integers(1, 8), st.none() | st.integers(1, 5))
def test_a_position_can_be_kept_and_taken_up(corpus, seed, taken, groups, batch_size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "WINDOW_GROUPS", groups)
        stream = CorpusStream(corpus, seed=seed, batch_size=batch_size)
        stream.set_epoch(3)
        whole = keys(stream)
        stream.set_epoch(3)
        first = keys(itertools.islice(stream, taken))
        state = json.loads(json.dumps(stream.state_dict()))
        again = CorpusStream(corpus, seed=seed, batch_size=batch_size)
        again.load_state_dict(state)
        assert flat(first + keys(again)) == flat(whole)
        again.set_epoch(3)
        assert keys(again) == whole, "an epoch that is set begins anew"


def test_epochs_and_seeds(corpus):
    stream = CorpusStream(corpus, seed=1)
    first = keys(stream)
    assert first == keys(stream) == keys(CorpusStream(corpus, seed=1))
    stream.set_epoch(1)
    second = keys(stream)
    others = [keys(CorpusStream(corpus, seed=seed)) for seed in (2, None)]
    assert len({tuple(one) for one in (first, second, *others)}) == 4
    assert all(sorted(one) == sorted(first) for one in (second, *others))


def test_a_loader_with_workers_that_is_stopped_and_goes_on(corpus):
    """Two processes that stay, read ahead and see each new epoch; what was used is what counts."""
    stream = CorpusStream(corpus, masks=True, seed=5)
    loader = DataLoader(
        stream, batch_size=2, num_workers=2, collate_fn=for_detection, persistent_workers=True
    )
    epochs = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        epochs.append([target["image_id"] for _, targets in loader for target in targets])
        assert len(set(epochs[-1])) == len(epochs[-1]) == PHOTOS - 2
    assert epochs[0] != epochs[1]
    used = []
    for _, targets in itertools.islice(loader, 3):
        stream.advance(targets)
        used += [target["image_id"] for target in targets]
    again = CorpusStream(corpus, masks=True, seed=5)
    again.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    rest = DataLoader(again, batch_size=2, num_workers=2, collate_fn=for_detection)
    assert sorted(used + [target["image_id"] for _, targets in rest for target in targets]) == sorted(
        epochs[1]
    )


def test_batches_out_of_a_loader(corpus):
    stream = CorpusStream(corpus, codes=True, seed=5, batch_size=4)
    found = list(DataLoader(stream, batch_size=None, num_workers=2))
    assert sorted(flat(keys(found))) == sorted(row["key"] for row in corpus.rows("ok"))
    assert all(len(batch["boxes"]) == len(batch["codes"]) == int(batch["count"].sum()) for batch in found)
    stream.advance(found[:1])
    stream.advance(found[1])
    assert stream.state_dict()["done"] == {str(b["position"][0]): b["position"][2] for b in found[:2]}


@pytest.mark.slow
def test_workers_that_are_spawned(corpus):
    """As a corpus in a store wants them; an epoch that is set later reaches them too."""
    stream = CorpusStream(corpus, seed=5)
    loader = DataLoader(
        stream,
        2,
        num_workers=2,
        collate_fn=for_detection,
        multiprocessing_context="spawn",
        persistent_workers=True,
    )
    epochs = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        epochs.append([target["image_id"] for _, targets in loader for target in targets])
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(row["image_id"] for row in corpus.rows("ok"))
    assert epochs[0] != epochs[1]


def test_images_by_number(corpus):
    images = CorpusImages(corpus)
    in_order = keys(images[number] for number in range(len(images)))
    assert in_order == [row["key"] for row in corpus.rows("ok")]
    assert keys(images[number] for number in (-1, 7, 0, 7)) == [in_order[n] for n in (-1, 7, 0, 7)]
    with pytest.raises(IndexError):
        images[len(images)]
    before = images[2]["boxes"].clone()
    images[2]["boxes"].mul_(2)
    assert torch.equal(images[2]["boxes"], before), "a sample may be changed in place"
    shares = []
    for rank in range(2):
        sampler = DistributedSampler(images, num_replicas=2, rank=rank, shuffle=True, seed=3, drop_last=True)
        loader = DataLoader(images, batch_size=2, sampler=sampler, collate_fn=for_detection)
        shares.append([target["image_id"] for _, targets in loader for target in targets])
    assert len(set(shares[0]) | set(shares[1])) == len(shares[0]) + len(shares[1]) == len(images) // 2 * 2


def test_what_a_detector_is_given(corpus):
    samples = list(itertools.islice(CorpusStream(corpus, masks=True, images=True), 3))
    images, targets = for_detection(samples)
    for image, target, sample in zip(images, targets, samples, strict=True):
        count, (height, width) = len(sample["boxes"]), sample["size"]
        assert (image.shape, image.dtype) == ((3, height, width), torch.float32)
        assert torch.equal((image * 255).round().to(torch.uint8), sample["image"])
        assert (target["masks"].shape, target["masks"].dtype) == ((count, height, width), torch.uint8)
        assert target["labels"].tolist() == [1] * count
        assert target["area"].tolist() == target["masks"].flatten(1).sum(1).tolist()
        assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all(), "as torchvision demands"
        assert target["image_id"] == sample["image_id"]
    with pytest.raises(ValueError, match="expected samples, got batches"):
        for_detection(list(CorpusStream(corpus, batch_size=2)))
    without, targets = for_detection(list(CorpusStream(corpus)))
    assert without == []
    assert "masks" not in targets[0]
