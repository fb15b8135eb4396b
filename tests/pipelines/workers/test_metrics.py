"""Metrics: what is counted of what is told, the dashboard that shows them, and a real run that is scraped."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.format.tally import Tally
from maskmill.pipelines.workers.events import Loss
from maskmill.pipelines.workers.metrics import METRICS, RUN_CHARACTERS, Metrics
from maskmill.pipelines.workers.tasks import ShardFailure, ShardReceipt, WorkerPlace
from tests.support.commands import start, words

DASHBOARD = Path(__file__).parents[3] / "examples" / "grafana" / "maskmill.json"
EXPORTS = {f"ray_{metric.name}": metric for metric in METRICS}


class Written:
    """Instruments that write down what they are given."""

    def __init__(self):
        self.given = defaultdict(list)

    def make(self, metric):
        def take(value, labels=None):
            labels = labels or {}
            assert tuple(labels) == metric.labels
            assert metric.kind != "counter" or value > 0, "Ray refuses it"
            self.given[metric.name].append((value, *labels.values()))

        return take


@pytest.fixture
def written():
    return Written()


def test_a_run_in_which_nothing_happens_counts_nothing(written):
    Metrics(written.make)
    assert not written.given


def test_a_shard_left_undone_counts_as_that_and_so_do_its_retries(written):
    failure = ShardFailure(3, "the disk is full", retries=Counter(read=0, write=5))
    Metrics(written.make).ended(failure)
    assert written.given == {
        "maskmill_shards_total": [(1, "undone")],
        "maskmill_storage_retries_total": [(5, "write")],
    }


@pytest.mark.parametrize(("committed", "outcome"), [(True, "committed"), (False, "found")])
def test_a_shard_counts_once_with_all_that_is_in_it(written, committed, outcome):
    tally = Tally(Counter(ok=2, empty=0, rejected=1), masks=40, retries=Counter(read=2))
    tally.add_seconds({"encode": 1.5, "write": 0.25, "table": 0.0})
    Metrics(written.make).ended(ShardReceipt(3, committed, tally))
    assert written.given == {
        "maskmill_shards_total": [(1, outcome)],
        "maskmill_images_total": [(2, "ok"), (1, "rejected")],
        "maskmill_masks_total": [(40,)],
        "maskmill_stage_seconds_total": [(1.5, "encode"), (0.25, "write")],
        "maskmill_commit_seconds": [(0.25,)],
        "maskmill_storage_retries_total": [(2, "read")],
    }


def test_deaths_by_phase_and_the_load(written):
    metrics = Metrics(written.make)
    metrics.worker_lost(Loss(None, "gone", (), starting=True))
    metrics.worker_lost(Loss(WorkerPlace("n", "h", 1), "gone", (3, 4), starting=False))
    metrics.load(queued=0, in_hand=4, workers=2)
    assert written.given == {
        "maskmill_worker_deaths_total": [(1, "starting"), (1, "working")],
        "maskmill_shards_queued": [(0,)],
        "maskmill_shards_in_hand": [(4,)],
        "maskmill_workers": [(2,)],
    }


def test_what_goes_on_side_by_side_is_busy_once_and_a_pause_is_not():
    from maskmill.pipelines.workers.generator_queue import _Busy

    told, both = [], threading.Barrier(2)

    def work():
        with busy.counted():
            both.wait()
            time.sleep(0.2)

    busy = _Busy(told.append)
    with contextlib.suppress(ZeroDivisionError), busy.counted():
        time.sleep(0.1)
        raise ZeroDivisionError
    time.sleep(0.5)
    began = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    passed = time.perf_counter() - began
    assert 0.1 <= told[0] < 0.5
    assert 0.2 <= sum(told[1:]) <= passed


@pytest.fixture(scope="module")
def dashboard():
    return json.loads(DASHBOARD.read_text())


def expressions(dashboard):
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def exported_name(name):
    """A histogram is three series."""
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    return base if EXPORTS.get(base) and EXPORTS[base].kind == "histogram" else name


def test_the_dashboard_shows_every_metric_and_no_other(dashboard):
    shown = {exported_name(name) for e in expressions(dashboard) for name in re.findall(r"\bray_\w+", e)}
    assert shown == set(EXPORTS)


def test_the_dashboard_groups_by_labels_that_there_are(dashboard):
    for expression in expressions(dashboard):
        (grouped,) = re.findall(r"sum by \((\w+)\)", expression) or [None]
        known = {label for name in re.findall(r"\bray_\w+", expression) for label in labels_of(name)}
        assert grouped is None or grouped in known, expression
        assert expression.count('{run=~"$run"}') == len(re.findall(r"\bray_\w+", expression))


def labels_of(name):
    is_bucket = exported_name(name) != name
    return {*EXPORTS[exported_name(name)].labels, *(["le"] if is_bucket else [])}


def test_the_dashboard_can_be_imported_anywhere(dashboard):
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    asked = [panel["datasource"] for panel in dashboard["panels"]]
    asked += [target["datasource"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in asked)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    areas = [panel["gridPos"] for panel in dashboard["panels"]]
    taken = [(a["x"] + x, a["y"] + y) for a in areas for x in range(a["w"]) for y in range(a["h"])]
    assert len(set(taken)) == len(taken), "panels do not overlap"
    assert max(x for x, _ in taken) < 24


RUN = """
import json, sys, time, urllib.request
import maskmill.pipelines.workers.ray_actors
import ray
from maskmill.pipelines.config.run import load_config
from maskmill.pipelines.generation.generate import generate
from pathlib import Path

photos, out, port, *settings = sys.argv[1:]
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
         object_store_memory=100 * 2**20, _metrics_export_port=int(port))
generate([photos], Path(out), load_config(None, settings))
scraped = ""
for _ in range(60):
    try:
        scraped = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    except OSError:
        pass
    if "ray_maskmill_commit_seconds_count" in scraped and "ray_maskmill_busy" in scraped:
        break
    time.sleep(1)
time.sleep(15)  # what is counted twice would be by now
scraped = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
Path(out).with_name("scraped.txt").write_text(scraped)
"""


@pytest.mark.slow
def test_a_run_of_the_bundled_weights_is_scraped_as_the_corpus_has_it(photos, tmp_path):
    collection, out = tmp_path / "photos", tmp_path / "corpus"
    collection.mkdir()
    for number, path in enumerate(sorted(photos.rglob("*.png"))[:6]):
        (collection / f"{number}.png").write_bytes(path.read_bytes())
    (collection / "bad.png").write_text("not an image")
    settings = ["model.name=nano", "workers=2", "shard_size=2", "generator.points_per_side=8"]
    settings += ["generator.pred_iou_thresh=0.3", "generator.stability_score_thresh=0.5"]
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(collection), str(out), str(free_port()), *settings],
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_AUTH_MODE": "disabled"},
    )
    assert done.returncode == 0, done.stderr
    scraped = series(out.with_name("scraped.txt").read_text())
    assert {exported_name(name) for name, _, _ in scraped} >= set(EXPORTS) - {
        "ray_maskmill_storage_retries_total",  # nothing failed
        "ray_maskmill_worker_deaths_total",
    }
    digest = json.loads((out / "run.json").read_text())["run_digest"]
    assert {labels["run"] for _, labels, _ in scraped} == {digest[:RUN_CHARACTERS]}
    rows = list(Corpus(out))
    assert total(scraped, "ray_maskmill_images_total", "status") == Counter(row["status"] for row in rows)
    masks = sum(len(row["annotations"]) for row in rows)
    assert masks > 20
    assert total(scraped, "ray_maskmill_masks_total") == {None: masks}
    assert total(scraped, "ray_maskmill_shards_total", "outcome") == {"committed": 4}
    assert total(scraped, "ray_maskmill_commit_seconds_count") == {None: 4}
    assert total(scraped, "ray_maskmill_shards_queued") == {None: 0}
    assert total(scraped, "ray_maskmill_workers") == {None: 0}
    stages = total(scraped, "ray_maskmill_stage_seconds_total", "stage")
    assert {"read", "decode", "encode", "rle", "write"} <= set(stages)
    network = sum(stages[stage] for stage in ("encode", "prompt", "draw", "resample"))
    assert total(scraped, "ray_maskmill_busy_seconds_total")[None] >= 0.5 * network


def free_port():
    """A port outside of those of Ray's workers."""
    for _ in range(50):
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        if port not in range(10002, 20000):
            return port
    raise AssertionError("every free port is one of Ray's workers'")


def series(text):
    """Ours among a node's metrics: (name, labels, value) each."""
    lines = re.findall(r"^(ray_maskmill_\w+)\{(.*)\} (\S+)", text, re.MULTILINE)
    return [(name, dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(v)) for name, labels, v in lines]


def total(scraped, name, label=None):
    """The metric's values, summed by a label; over all processes, as a dashboard does it."""
    sums = defaultdict(float)
    for found, labels, value in scraped:
        if found == name:
            sums[labels.get(label)] += value
    return dict(sums)


HIDDEN = """
import sys

HIDDEN = {"aiohttp_cors", "colorful", "opencensus", "prometheus_client", "smart_open"}

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
"""


@pytest.mark.slow
def test_without_what_ray_default_brings_a_run_is_the_same(photos, tiny_settings, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HIDDEN)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    out, file = tmp_path / "corpus", tmp_path / "events.jsonl"
    typed = words(photos, out, tiny_settings, "--workers", "2", "--log-json", str(file))
    process = start(typed, PYTHONPATH=path)
    said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert json.loads(file.read_text().splitlines()[-1])["outcome"] == "complete"
    assert len(list(Corpus(out))) == 12
    hidden = subprocess.run(
        [sys.executable, "-c", "import prometheus_client"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        check=False,
    )
    assert b"ModuleNotFoundError" in hidden.stderr, "it was hidden"
