"""The configuration of a run that is resumed: what `run.json` says, but for values that decide no row."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

from ...model.checkpoints.errors import CheckpointError
from ..config.loading import settings_of
from ..config.run import RunConfig, digest
from ..errors import ConfigError, CorpusError
from ..format.layout import RUN
from ..workers.loading import weights_sha256
from ..writing.open import Run

_WEIGHTS = "--set model.checkpoint=FILE names the file that the run began with"


def recorded_config(run: Run, changes: Sequence[str]) -> RunConfig:
    """The run's configuration with `changes` (`key=value`).

    Raises ConfigError where one of them decides rows, or this maskmill understands the configuration
    otherwise than the one that wrote it; CorpusError where the run's weights are not here.
    """
    record, source = run.record, f"{run.out / RUN}{' with the options given' if changes else ''}"
    config = settings_of(RunConfig, copy.deepcopy(dict(record.config)), changes, source)
    now = replace(record, config=config.model_dump(mode="json"), config_digest=digest(config))
    if differences := record.differences(now):
        raise ConfigError(
            f"{run.out}: this corpus was begun differently: {'; '.join(differences)}: expected "
            "options that decide no row (--workers, --set of cluster.… or breaker.…), or a new corpus"
        )
    try:
        here = weights_sha256(config.model)
    except CheckpointError as error:
        raise CorpusError(f"{run.out}: the run's weights are not here: {error}; {_WEIGHTS}") from None
    if differences := record.differences(replace(now, weights_sha256=here)):
        raise CorpusError(f"{run.out}: {differences[0]}; {_WEIGHTS}")
    return config
