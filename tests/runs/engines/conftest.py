import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _interrupts_are_enabled() -> Iterator[None]:
    """Restore ctrl-C, which a suite started in the background ignores, together with all processes that tests start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
