"""How long tests wait: one environment variable stretches all their time-outs, for slow or busy machines.

Processes of pytest-xdist keep all cores busy, so with them the time-outs are twice as long.
"""

import os

PATIENCE = float(os.environ.get("LLC_TEST_PATIENCE", "1"))


def seconds(limit):
    """`limit` seconds times LLC_TEST_PATIENCE, and twice that beside other tests."""
    return limit * PATIENCE * (2 if "PYTEST_XDIST_WORKER" in os.environ else 1)
