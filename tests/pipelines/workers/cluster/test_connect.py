"""The Ray a run is on: addresses that are no cluster's, and signals while it starts."""

import signal
import sys
from types import SimpleNamespace

import pytest

from maskmill.pipelines.config.run import load_config
from maskmill.pipelines.errors import IncompleteRun, UsageError
from maskmill.pipelines.signals import orderly


def test_a_ray_of_our_own_has_the_cpus_that_one_worker_asks_for(monkeypatch):
    from maskmill.pipelines.workers.cluster import connect, own_ray

    asked, host = {}, "127.0.0.1"

    def init(**options):
        asked.update(options)
        return SimpleNamespace(address_info={"gcs_address": f"{host}:6379"})

    monkeypatch.setattr(connect.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(own_ray.ray, "init", init)
    monkeypatch.setattr(own_ray.ray, "shutdown", lambda: None)
    monkeypatch.setattr(own_ray, "_read_again", lambda: None)  # the tests' Ray keeps its token
    monkeypatch.setattr(connect, "_placement", lambda *_given, **_options: None)
    monkeypatch.setattr(connect, "usable_cpus", lambda: 2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for threads, expected in ((8, 8), (1, 2)):
        with connect.connect(load_config(None, [f"threads_per_worker={threads}"]), None):
            assert asked["num_cpus"] == expected
    host = "10.0.0.1"
    elsewhere = pytest.raises(
        IncompleteRun, match=r"to listen on 127\.0\.0\.1 only, and it is at 10\.0\.0\.1"
    )
    with elsewhere, connect.connect(load_config(None, []), None):
        pass


def test_rays_client_is_refused():
    from maskmill.pipelines.workers.cluster.connect import join

    with pytest.raises(
        UsageError, match=r"^--ray ray://127\.0\.0\.1:1: expected auto or HOST:PORT.*ray job submit"
    ):
        join("ray://127.0.0.1:1")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:port", "no.such.host.invalid:6379"])
def test_an_address_where_no_cluster_answers_is_wrong_use(address):
    from maskmill.pipelines.workers.cluster.connect import join

    with pytest.raises(UsageError, match=f"^--ray {address}: expected a running Ray cluster's address"):
        join(address)


@pytest.mark.parametrize(
    ("given", "named"), [(None, "RAY_ADDRESS 127.0.0.1:1"), ("127.0.0.1:2", "--ray 127.0.0.1:2")]
)
def test_an_address_that_does_not_answer_is_named_by_where_it_was_given(monkeypatch, given, named):
    from maskmill.pipelines.workers.cluster import connect

    monkeypatch.setattr(connect.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connect.ray, "shutdown", lambda: None)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UsageError, match=f"^{named}: "), connect.connect(load_config(None, []), given):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_ray_starts_is_an_interruption_and_its_handler_comes_back(monkeypatch, number):
    from maskmill.pipelines.workers.cluster import connect, own_ray

    def init(**_options):  # Ray's own handler of SIGTERM is in place before it is ready
        signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(number))
        signal.raise_signal(number)

    monkeypatch.setattr(own_ray, "_read_again", lambda: None)
    ended = []
    monkeypatch.setattr(connect.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connect.ray, "init", init)
    monkeypatch.setattr(connect.ray, "shutdown", lambda: ended.append(signal.getsignal(signal.SIGTERM)))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with orderly():
        mine = signal.getsignal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), connect.connect(load_config(None, []), None):
            pass
    assert ended == [mine], "a second signal, while Ray is being ended, is maskmill's"
