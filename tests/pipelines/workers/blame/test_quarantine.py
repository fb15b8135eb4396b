"""Who killed the worker: the trial, step by step, without any worker."""

from maskmill.pipelines.format.records import PlannedImage, ShardTask
from maskmill.pipelines.workers.blame.quarantine import LOST_NODES, ROUNDS, SOLITARY_DEATHS, Suspect

A, B, C = (PlannedImage(number, f"{number}.png", f"/{number}.png", 0, number) for number in (10, 11, 12))
TASK = ShardTask(0, (A, B, C))


def tried(suspect):
    task = suspect.next_task()
    return task.images, task.probe


def test_a_shard_is_tried_alone_and_as_it_is_first():
    assert Suspect(TASK).next_task() == TASK


def test_a_lost_node_accuses_nobody():
    suspect = Suspect(TASK)
    assert suspect.died(proof=False) is None
    assert tried(suspect) == ((A, B, C), False)


def test_a_shard_whose_nodes_are_lost_again_and_again_is_given_up():
    suspect = Suspect(TASK)
    verdicts = [suspect.died(proof=False) for _ in range(LOST_NODES)]
    assert verdicts[:-1] == [None] * (LOST_NODES - 1)
    assert "lost" in verdicts[-1]


def test_an_image_is_refused_after_three_solitary_deaths_and_the_others_survive():
    suspect = Suspect(TASK)
    suspect.died(proof=True)
    assert tried(suspect) == ((A,), True)
    suspect.survived()
    for _ in range(SOLITARY_DEATHS):
        assert tried(suspect) == ((B,), True)
        assert suspect.died(proof=True) is None
    assert tried(suspect) == ((C,), True)
    suspect.survived()
    final = suspect.next_task()
    assert (final.images, final.probe, final.deadly) == (TASK.images, False, {B.image_id})


def test_a_death_with_the_node_is_no_strike_against_the_image():
    suspect = Suspect(ShardTask(0, (A,)))
    suspect.died(proof=True)
    for proof in (True, True, False):
        suspect.died(proof)
    assert tried(suspect) == ((A,), True)
    suspect.died(proof=True)
    assert suspect.next_task().deadly == {A.image_id}


def test_a_shard_that_dies_though_no_image_of_it_does_is_given_up():
    suspect = Suspect(TASK)
    for _ in range(ROUNDS):
        assert suspect.died(proof=True) is None
        for _ in TASK.images:
            suspect.survived()
        assert tried(suspect) == ((A, B, C), False)
    assert "no single image" in suspect.died(proof=True)
