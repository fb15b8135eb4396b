"""What the tests of a pretended GPU need of the machine."""

import pytest

from tests.support.device_guard import NoGuardError, load_guard


@pytest.fixture
def device_guard():
    """Skips where PyTorch cannot be made to accept a device that is not there."""
    try:
        load_guard()
    except NoGuardError as reason:
        pytest.skip(f"no pretended GPU: {reason}")
