"""Which levels an inversion visits, against lists written out by hand."""

import math

import pytest
from mvpack.multiview.inversion_levels import plan

SCHEDULE = [8.0, 4.0, 2.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("arguments", "rising", "falling", "step"),
    [
        ({}, [0, 1, 2, 4, 8], [8, 4, 2, 1, 0], 0),
        ({"stop_step": 2}, [0, 1, 2], [2, 1, 0], 2),
        ({"stop_sigma": 4.0001}, [0, 1, 2, 4], [4, 2, 1, 0], 1),
        ({"stop_sigma": 3.0}, [0, 1, 2, 3], [3, 2, 1, 0], None),
        ({"stop_sigma": 0.5}, [0, 0.5], [0.5, 0], None),
        ({"start": 1.0}, [1, 2, 4, 8], [8, 4, 2, 1, 0], 0),
        ({"start": 1.5, "stop_step": 1}, [1.5, 2, 4], [4, 2, 1.5, 1, 0], 1),
        ({"start": 8.0 - 1e-6, "schedule": [9.0, 8.0, 0.0]}, [8, 9], [9, 8, 0], 0),
        # The upper part of a split schedule still samples to a clean latent.
        ({"schedule": [8.0, 4.0]}, [0, 4, 8], [8, 4, 0], 0),
        ({"schedule": [8.0]}, [0, 8], [8, 0], 0),
    ],
)
def test_levels(arguments, rising, falling, step):
    found = plan(**({"schedule": SCHEDULE} | arguments))
    assert list(found.rising) == rising
    assert list(found.falling) == falling
    assert found.step == step


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"schedule": []}, "above 0"),
        ({"schedule": [0.0]}, "above 0"),
        ({"schedule": [1.0, 2.0]}, "fall"),
        ({"schedule": [2.0, 2.0, 0.0]}, "fall"),
        ({"schedule": [math.nan, 1.0]}, "finite"),
        ({"schedule": [math.inf, 1.0]}, "finite"),
        ({"schedule": [1.0, -1.0]}, "0 or more"),
        ({"stop_step": 4}, "4 steps"),
        ({"stop_sigma": 9.0}, "begins at 8"),
        ({"start": 8.0}, "not between"),
        ({"start": 2.0, "stop_step": 3}, "not between"),
    ],
)
def test_refusals_are_one_sentence(arguments, words):
    with pytest.raises(ValueError, match=words) as caught:
        plan(**({"schedule": SCHEDULE} | arguments))
    assert str(caught.value).count(". ") == 0
