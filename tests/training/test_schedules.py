"""Learning rate and resolution at their corner points."""

import pytest

from llc.recipe import Resolution
from llc.stages import Stage
from llc.training.schedules import learning_rate, resolution_at

CORNERS = [  # schedule, keys, (epoch, share of the peak)
    ("triangular", dict(lr_peak_epoch=2), [(0, 1e-4), (1, 0.50005), (2, 1), (6, 0.5), (10, 0)]),
    ("triangular", dict(), [(0, 1), (5, 0.5), (10, 0)]),
    ("cosine", dict(), [(0, 1), (5, 0.5), (10, 0), (2.5, 0.8535534)]),
    ("cosine", dict(lr_peak_epoch=4), [(0, 1e-4), (4, 1), (7, 0.5), (10, 0)]),
    ("step", dict(step_length=3, step_ratio=0.5), [(0, 1), (2.99, 1), (3, 0.5), (6, 0.25), (9, 0.125)]),
]


@pytest.mark.parametrize("kind, keys, corners", CORNERS)
def test_learning_rate_corners(kind, keys, corners):
    stage = Stage(epochs=10, lr=3.0, lr_schedule_type=kind, **keys)
    for epoch, share in corners:
        assert learning_rate(stage, round(epoch * 100), 100) == pytest.approx(
            3.0 * share, rel=1e-6, abs=1e-9
        ), epoch


def test_resolution_rises_in_multiples_of_32():
    ramp = Resolution(min_res=160, max_res=224, start_ramp=4, end_ramp=8)
    assert [resolution_at(ramp, e) for e in range(10)] == [160] * 5 + [192] * 3 + [
        224
    ] * 2  # 176 and 208 lie half-way: to the even multiple
    assert resolution_at(Resolution(min_res=28, max_res=28), 3) == 28
