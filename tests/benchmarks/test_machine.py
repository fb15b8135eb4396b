"""What the benchmarks say of the machine."""

import sys
import threading

import pytest

from benchmarks.support.machine import Watch, forget_peak, matrix_rate, peak_since, short_name


@pytest.mark.parametrize(
    ("processor", "name"),
    [
        ("", "unknown"),
        ("AMD EPYC", "amd-epyc"),
        ("AMD EPYC 9R14 96-Core Processor", "amd-epyc-9r14"),
        ("Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz", "intel-xeon-platinum-8375c"),
        ("Apple M2", "apple-m2"),
    ],
)
def test_a_short_name_is_a_file_name(processor, name):
    assert short_name(processor) == name


def test_a_rate_is_of_something():
    assert 1e6 < matrix_rate((16, 64), 0.01) < 1e15


@pytest.mark.skipif(sys.platform != "linux", reason="told by Linux only")
def test_the_peak_can_be_forgotten():
    held = bytearray(b"x" * (64 << 20))
    before = peak_since()
    del held
    if not forget_peak():
        pytest.skip("the kernel does not let us")
    assert peak_since() < before


@pytest.mark.skipif(sys.platform != "linux", reason="told by Linux only")
def test_ones_own_work_is_not_others():
    def burn():
        end = threading.Event()
        threading.Timer(0.3, end.set).start()
        while not end.is_set():
            sum(range(1000))

    with Watch() as watch:
        burn()
    assert watch.others is not None
    assert 0 <= watch.others <= 1
    assert watch.quiet == (watch.others < 0.05)
