"""The generator's promise: one front per family, clearly different backs, all inside the sphere of radius 0.5."""

from itertools import combinations

import numpy as np
import pytest
import torch
from mvpack.multiview.cameras import orbit
from mvpack.multiview.demo.objects import FRONT_BOUND, HELD_OUT_SEED, KINDS, MAX_VARIANTS, make_object
from mvpack.multiview.demo.raycast import render_object
from mvpack.multiview.demo.shapes import PATTERNS, surface_points

ELEVATIONS = (0.0, 5.0, 15.0, 20.0, 30.0)


def front_pictures(spec, size=40):
    normal = orbit([0.0] * 5, list(ELEVATIONS), 1.5, 49.13)
    closest = orbit([0.0] * 2, [-5.0, 35.0], 1.4, 60.0)
    return torch.cat([render_object(spec, cams, size).rgb for cams in (normal, closest)])


def back_picture(spec, size=48):
    shot = render_object(spec, orbit([180.0], 15.0, 1.5, 49.13), size)
    return shot.rgb[0], shot.alpha[0]


@pytest.mark.parametrize("seed", [*range(20), 21, 23, 30, 38, 56, HELD_OUT_SEED, HELD_OUT_SEED + 7])
def test_every_variant_of_a_family_has_the_same_front_to_the_last_bit(seed):
    first = front_pictures(make_object(seed, 0, 8))
    for variant in (1 + seed % 3, 4 + seed % 4):
        assert torch.equal(front_pictures(make_object(seed, variant, 8)), first)


def test_the_number_of_variants_does_not_change_the_front():
    assert torch.equal(front_pictures(make_object(5, 1, 2)), front_pictures(make_object(5, 15, 16)))


@pytest.mark.parametrize("seed", [0, 1, 5, 9, 13, 16])
def test_variants_of_a_family_look_clearly_different_from_behind(seed):
    backs = [back_picture(make_object(seed, v, 6)) for v in range(6)]
    for (a, alpha), (b, _) in combinations(backs, 2):
        assert (a - b).abs()[alpha > 0.5].mean() > 0.08


def test_sixteen_variants_are_still_told_apart_from_behind():
    backs = [back_picture(make_object(23, v, 16)) for v in range(16)]
    for (a, alpha), (b, _) in combinations(backs, 2):
        assert (a - b).abs()[alpha > 0.5].mean() > 0.04


def test_families_have_different_fronts():
    shots = [render_object(make_object(s), orbit([0.0], 15.0, 1.5, 49.13), 32).rgb for s in range(12)]
    for a, b in combinations(shots, 2):
        assert (a - b).abs().mean() > 0.005


def test_the_front_is_not_the_back():
    for seed in range(6):
        spec = make_object(seed)
        front = render_object(spec, orbit([0.0], 15.0, 1.5, 49.13), 48)
        back, _ = back_picture(spec)
        assert (front.rgb[0] - back).abs()[front.alpha[0] > 0.5].mean() > 0.08


def test_all_kinds_of_things_appear_and_most_carry_something_on_their_back():
    specs = [make_object(seed, seed % 6) for seed in range(120)]
    assert {s.name for s in specs} == set(KINDS)
    assert np.mean([s.hidden > 0 for s in specs]) > 0.9


def test_objects_stay_inside_the_sphere():
    for seed in range(40):
        spec = make_object(seed, seed % 6)
        for i, part in enumerate(spec.parts):
            bound = 0.5 if i >= len(spec.parts) - spec.hidden else FRONT_BOUND + 0.01
            assert np.linalg.norm(surface_points(part, 400), axis=1).max() <= bound, (seed, part)


def test_the_same_request_gives_the_same_object():
    assert make_object(11, 3, 6) == make_object(11, 3, 6)
    assert make_object(11, 3, 6) != make_object(11, 2, 6)
    assert make_object(11, 3, 6) != make_object(12, 3, 6)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((-1, 0, 6), "seed must be 0 or more"),
        ((0, 6, 6), "Variant 6 does not exist"),
        ((0, 0, MAX_VARIANTS + 1), "1 to 16 variants"),
        ((0, 0, 0), "1 to 16 variants"),
    ],
)
def test_wrong_requests_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_object(*arguments)


def test_every_pattern_paints_some_but_not_all_of_a_cap():
    from mvpack.multiview.demo.shapes import pattern_mask

    p = torch.nn.functional.normalize(torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    p = p[p[:, 2] > 0.4]
    for pattern in PATTERNS[1:]:
        assert 0.05 < pattern_mask(pattern, p, p[:, 2]).float().mean() < 0.95, pattern
