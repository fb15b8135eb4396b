"""Workers whose GPU fails: what that says of the images, and of the GPU."""

import pickle
import re

import pytest
import torch

import maskmill.model
from maskmill.model.failures import is_device_failure, is_out_of_memory
from maskmill.pipelines.cli import main
from maskmill.pipelines.config.run import load_config
from maskmill.pipelines.errors import BreakerTripped, GpuFailed, UsageError
from maskmill.pipelines.format.ids import image_id
from maskmill.pipelines.format.records import PlannedImage, ShardTask
from maskmill.pipelines.workers import local_crew
from maskmill.pipelines.workers.blame.gpu_faults import gpu_failed
from maskmill.pipelines.workers.crew import WorkerLost
from maskmill.pipelines.workers.loading import make_generator
from maskmill.pipelines.workers.shard import run_shard
from maskmill.pipelines.workers.tasks import Job, WorkerPlace
from tests.pipelines.workers.test_dispatcher import Actors, dispatch, ids, tasks_of
from tests.support.commands import words

ILLEGAL = "CUDA error: an illegal memory access was encountered\nCompile with `TORCH_USE_CUDA_DSA`"
MEMORY = [
    "CUDA error: out of memory\nCUDA kernel errors might be reported later",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "CUDA driver error: out of memory",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
]
FAULTS = [
    ILLEGAL,
    "CUDA error: uncorrectable ECC error encountered",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
    "CUDA driver error: an illegal memory access was encountered",
    "Triton Error [CUDA]: unspecified launch failure",
]
WRONG_CALLS = [
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input.",
    "CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm(...)`",
    "CUDA error: invalid configuration argument",
    "CUDA error: device-side assert triggered",
]


@pytest.mark.parametrize("message", MEMORY)
def test_memory_that_runs_out_in_cudas_libraries_is_memory(message):
    error = RuntimeError(message)
    assert is_out_of_memory(error)
    assert not is_device_failure(error)


@pytest.mark.parametrize("message", FAULTS)
def test_any_other_error_of_cuda_is_the_gpus(message):
    error = RuntimeError(message)
    assert is_device_failure(error)
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("message", WRONG_CALLS)
def test_a_call_that_would_fail_on_every_gpu_is_a_bug(message):
    error = RuntimeError(message)
    assert not is_device_failure(error)
    assert not is_out_of_memory(error)


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="torch before 2.8 has none")
@pytest.mark.parametrize(("message", "memory"), [(ILLEGAL, False), ("odd words", False), (MEMORY[0], True)])
def test_torchs_own_class_for_them(message, memory):
    error = torch.AcceleratorError(message)
    assert (is_out_of_memory(error), is_device_failure(error)) == (memory, not memory)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), OSError("CUDA error"), MemoryError()])
def test_other_errors_are_no_gpus(error):
    assert gpu_failed(error) is None


class OnGpus(Actors):
    """Each worker takes the first free GPU; whatever is computed on one of `broken` fails there."""

    def __init__(self, gpus=2, broken=(), deadly=(), loads=True):
        super().__init__(deadly)
        self.free = [str(gpu) for gpu in range(gpus)]
        self.broken, self.loads = frozenset(broken), loads
        self.tried = []

    def start(self):
        return [self.free.pop(0)]

    def call(self, worker, method, *arguments):
        return super().call(worker, method, worker[0], *arguments)

    def end(self, workers, _refs):
        self.free = sorted(self.free + [gpu for worker in workers for gpu in worker])

    def hello(self, gpu):
        return WorkerPlace("node", "host", 1, (gpu,))

    def load(self, gpu):
        if gpu in self.broken and not self.loads:
            raise WorkerLost("an ECC error", gpu_failed=True)

    def stats(self, _gpu):
        return {}

    def run(self, gpu, task):
        self.tried.append((gpu, task))
        if gpu in self.broken:
            raise WorkerLost("an ECC error", gpu_failed=True)
        try:
            return super().run(task)
        except WorkerLost as lost:
            raise WorkerLost(str(lost), gpu_failed=True) from None


def rejected(outcomes):
    return {outcome.shard: outcome.tally.statuses["rejected"] for outcome in outcomes}


@pytest.mark.parametrize("broken", ["0", "1"])
def test_a_gpu_on_which_work_keeps_failing_is_left_out_and_costs_no_image(tmp_path, broken, caplog):
    actors = OnGpus(2, {broken})
    outcomes = dispatch(actors, tasks_of(40, 4), tmp_path, workers=2)
    assert rejected(outcomes) == dict.fromkeys(range(40), 0)
    assert f"host, GPU {broken} is left out" in caplog.text
    assert sum(gpu == broken for gpu, _ in actors.tried) <= 8  # two shards in hand, up to four workers


def test_a_gpu_on_which_no_worker_loads_is_left_out_too(tmp_path, caplog):
    actors = OnGpus(2, {"1"}, loads=False)
    outcomes = dispatch(actors, tasks_of(10, 4), tmp_path, workers=2)
    assert rejected(outcomes) == dict.fromkeys(range(10), 0)
    assert "host, GPU 1 is left out" in caplog.text


@pytest.mark.parametrize("loads", [True, False])
def test_a_run_whose_only_gpu_is_left_out_stops_and_names_it(tmp_path, loads):
    actors = OnGpus(1, {"0"}, loads=loads)
    with pytest.raises(BreakerTripped, match=r"no GPU is left to the run: host, GPU 0: an ECC error"):
        dispatch(actors, tasks_of(9, 4), tmp_path)
    assert not any(task.deadly for _, task in actors.tried)
    assert actors.free == ["0"]


@pytest.mark.parametrize("row", [0, 1, 6])
@pytest.mark.parametrize("gpus", [1, 2])
def test_an_image_that_breaks_its_gpus_context_is_refused_and_no_gpu_left_out(tmp_path, gpus, row, caplog):
    tasks = tasks_of(9, 4)
    actors = OnGpus(gpus, deadly=ids(tasks[row // 4], [row]))
    outcomes = dispatch(actors, tasks, tmp_path, workers=gpus)
    assert rejected(outcomes) == {shard: int(shard == row // 4) for shard in range(9)}
    assert "left out" not in caplog.text


def test_workers_that_share_a_gpu_fail_once_together(tmp_path, caplog):
    """A GPU that falls off the bus takes all of its workers along: that is one failure."""
    actors = OnGpus(1)
    actors.free = ["0"] * 4
    actors.broken = frozenset("0")

    def mend(_progress):
        if actors.tried:
            actors.broken = frozenset()
        return True

    outcomes = dispatch(actors, tasks_of(20, 4), tmp_path, mend, workers=4)
    assert rejected(outcomes) == dict.fromkeys(range(20), 0)
    assert "left out" not in caplog.text


def test_a_worker_goes_on_where_its_gpu_takes_no_other(tmp_path, caplog):
    class Exclusive(OnGpus):
        """A GPU that serves the first process that comes, which has loaded when two others have failed."""

        first, failed = None, 0

        def call(self, worker, method, *arguments):
            ref = super().call(worker, method, *arguments)
            if method == "load" and self.first is None:
                self.first = ref
            return ref

        def answered(self, refs, _seconds):
            return [ref for ref in refs if ref is not self.first or self.failed == 2]

        def answer(self, ref):
            if ref is not self.first and self._calls[ref][0] == "load":
                self.failed += 1
                raise WorkerLost("CUDA-capable device(s) is/are busy or unavailable", gpu_failed=True)
            return super().answer(ref)

    crew = Exclusive()
    crew.free = ["0"] * 4
    outcomes = dispatch(crew, tasks_of(20, 4), tmp_path, workers=2)
    assert rejected(outcomes) == dict.fromkeys(range(20), 0)
    assert "host, GPU 0 is left out" in caplog.text
    assert not any(task.probe for _, task in crew.tried)


def test_a_run_that_waits_for_a_gpu_it_does_not_have_stops_in_time(tmp_path):
    class Scarce(OnGpus):
        """Workers beyond the GPUs wait to be placed."""

        def start(self):
            return super().start() if self.free else []

        def call(self, worker, method, *arguments):
            return super().call(worker, method, *arguments) if worker else object()

        def answered(self, refs, _seconds):
            return [ref for ref in refs if ref in self._calls]

    soon = ["cluster.start_seconds=0.1"]
    with pytest.raises(BreakerTripped, match=r"no GPU is left to the run: host, GPU 0: an ECC error"):
        dispatch(Scarce(1, {"0"}), tasks_of(9, 4), tmp_path, workers=3, settings=soon)


class Broken:
    def prepare(self, image_HW3):
        return image_HW3

    def generate_batch(self, _images):
        raise RuntimeError(ILLEGAL)


def test_in_one_process_it_ends_the_run_as_incomplete_in_one_line(photos, tmp_path, tiny_settings):
    job = Job(tmp_path / "corpus", load_config(None, tiny_settings), "f" * 64, threads=1)
    path = photos / "coffee" / "0.png"
    task = ShardTask(0, (PlannedImage(image_id("0"), "0", str(path), 0, 0),))
    with pytest.raises(GpuFailed, match=r"its GPU failed, .*: CUDA error: an illegal memory acc") as caught:
        run_shard(task, Broken(), job)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_gpu_that_fails_while_weights_are_loaded_is_named_too(tmp_path, tiny_settings, monkeypatch):
    def fail(*_arguments, **_options):
        raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable")

    monkeypatch.setattr(maskmill.model, "load_sam", fail)
    with pytest.raises(GpuFailed, match="busy or unavailable"):
        make_generator(Job(tmp_path, load_config(None, tiny_settings), "", threads=1))


def test_a_torch_for_other_gpus_is_wrong_use(tmp_path, tiny_settings, monkeypatch):
    def fail(*_arguments, **_options):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(maskmill.model, "load_sam", fail)
    with pytest.raises(
        UsageError, match=r"expected a build of torch with code for the GPU there, got torch \d"
    ):
        make_generator(Job(tmp_path, load_config(None, tiny_settings), "", threads=1))


def test_a_run_without_ray_ends_with_one_line_and_goes_on_later(
    photos, tiny_settings, tmp_path, monkeypatch, capsys
):
    arguments = words(photos, tmp_path / "corpus", tiny_settings, "--workers", "0")
    with monkeypatch.context() as patched:
        patched.setattr(local_crew, "make_generator", lambda _job: Broken())
        assert main(arguments) == 4
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("maskmill: ")]
    assert re.search(r"its GPU failed, process \d+ cannot use it any more: CUDA error: an illegal", line)
    assert main(arguments) == 0
