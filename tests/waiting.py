"""How long tests wait: one environment variable stretches all their time-outs, for slow or busy machines."""

import os

PATIENCE = float(os.environ.get("LLC_TEST_PATIENCE", "1"))


def seconds(limit):
    """`limit` seconds times LLC_TEST_PATIENCE."""
    return limit * PATIENCE
