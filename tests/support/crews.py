"""A crew's events, taken as a run takes them."""

from maskmill.pipelines.workers.events import Progress


def outcomes_of(crew, goes_on=lambda _progress: True):
    """The outcomes of all shards; the crew is stopped where `goes_on` says no to how far it is."""
    outcomes = []
    for event in crew.run():
        if not isinstance(event, Progress):
            outcomes.append(event)
        elif not goes_on(event):
            crew.stop()
    return outcomes
