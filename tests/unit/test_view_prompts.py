"""Words, prompts, joined embeddings and shared noise."""

import math

import pytest
import torch
from mvpack.multiview.cameras import orbit
from mvpack.multiview.view_prompts import join_tokens, make_prompts, shared_noise, view_lines, words_for


@pytest.mark.parametrize(
    ("azimuth", "elevation", "words"),
    [
        (0, 0, "front view"),
        (-22, 0, "front view"),
        (360, 0, "front view"),
        (45, 0, "three-quarter front view, facing left"),
        (90, 0, "side view, facing left"),
        (135, 10, "three-quarter back view, facing left"),
        (180, -10, "back view"),
        (225, 0, "three-quarter back view, facing right"),
        (-90, 0, "side view, facing right"),
        (315, 30, "three-quarter front view, facing right, from above"),
        (0, -30, "front view, from below"),
        (90, 80, "view from above"),
        (90, -60, "view from below"),
    ],
)
def test_words(azimuth, elevation, words):
    assert words_for(azimuth, elevation) == words


@pytest.mark.parametrize("azimuth", [45, 90, 135, 225, 270, 315])
def test_facing_is_where_a_camera_of_ours_sees_the_front(azimuth):
    """The object's front points to -z (docs/conventions.md); project that direction with the camera itself."""
    cameras = orbit([azimuth], 0.0, 2.0, 40.0)
    right = cameras.c2w[0, :3, 0]
    front_goes_right = float(right @ torch.tensor([0.0, 0.0, -1.0], dtype=right.dtype)) > 0
    assert words_for(azimuth).endswith("facing right" if front_goes_right else "facing left")


def test_prompts_share_the_subject():
    assert make_prompts("a robot, {view},\n white", ["front view", "back view"]) == [
        "a robot, front view, white", "a robot, back view, white",
    ]  # fmt: skip
    assert make_prompts("a robot.", ["back view"]) == ["a robot, back view"]
    assert view_lines("front\n\n  back \n") == ["front", "back"]


@pytest.mark.parametrize(
    ("subject", "views", "message"),
    [
        ("a robot", [], "There are no views to write prompts for; write one line for each, or connect cameras."),
        (" {view} ", ["front"], "The subject is empty; describe the object that all views show."),
    ],
)
def test_nothing_to_write_is_told(subject, views, message):
    with pytest.raises(ValueError) as caught:
        make_prompts(subject, views)
    assert str(caught.value) == message


def test_repeated_tokens_change_nothing_in_cross_attention():
    generator = torch.Generator().manual_seed(0)
    short, long = (torch.randn(1, n, 8, generator=generator, dtype=torch.float64) for n in (4, 6))
    joined = join_tokens([short, long, short])
    assert joined.shape == (3, 12, 8)
    q = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    for row, original in zip(joined, (short, long, short), strict=True):
        expected = (q @ original[0].T).softmax(-1) @ original[0]
        torch.testing.assert_close((q @ row.T).softmax(-1) @ row, expected, rtol=1e-12, atol=1e-12)


def test_lengths_that_would_blow_up_are_told():
    with pytest.raises(ValueError) as caught:
        join_tokens([torch.zeros(1, 77, 2), torch.zeros(1, 80, 2)])
    assert str(caught.value) == (
        "The prompts of the views have very different lengths (77 to 80 tokens); make them about equally long."
    )


def test_same_noise_is_the_same_and_what_torch_gives_one_picture():
    noise = shared_noise((3, 4, 8, 8), 7)
    alone = torch.randn(1, 4, 8, 8, generator=torch.manual_seed(7))
    assert all(torch.equal(row, alone[0]) for row in noise)
    assert torch.equal(shared_noise((3, 4, 8, 8), 7), noise)
    assert not torch.equal(shared_noise((3, 4, 8, 8), 8), noise)


@pytest.mark.parametrize("independence", [0.25, 0.5, 1.0])
def test_blended_noise_is_standard_normal_and_correlates_as_said(independence):
    noise = shared_noise((4, 4, 100, 100), 1, independence).flatten(1).double()
    error = 5 / math.sqrt(noise.shape[1])
    assert (noise.mean(1).abs() < error).all()
    assert ((noise.std(1) - 1).abs() < error).all()
    correlation = torch.corrcoef(noise)
    expected = torch.full((4, 4), 1 - independence, dtype=torch.float64).fill_diagonal_(1)
    assert ((correlation - expected).abs() < error).all()


def test_sets_have_noise_of_their_own():
    noise = shared_noise((6, 4, 8, 8), 0, views=3)
    assert torch.equal(noise[0], noise[2])
    assert torch.equal(noise[3], noise[5])
    assert not torch.equal(noise[2], noise[3])


def test_wrong_numbers_are_told():
    with pytest.raises(ValueError) as caught:
        shared_noise((4, 4, 8, 8), 0, 1.5)
    assert str(caught.value) == "independence is 1.5; it must be from 0 (same noise) to 1 (independent)."
    with pytest.raises(ValueError) as caught:
        shared_noise((4, 4, 8, 8), 0, views=3)
    assert str(caught.value) == (
        "The batch of 4 latents cannot be divided into sets of 3 views; correct the number of views."
    )
