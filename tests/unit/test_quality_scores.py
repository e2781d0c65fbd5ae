"""CD score and E_flow against formulas written out in numpy, and RAFT's loading on random weights."""

import math
import statistics

import numpy as np
import pytest
import torch
from mvpack.multiview.cd_score import CODE, PAPER, cd_score, prompt_of
from mvpack.multiview.flow_error import flow, flow_error, load_raft
from torchvision.models.optical_flow import raft_small

# --- CD score ---------------------------------------------------------------------------------------------------------


def known(seed: int, n: int = 16, width: int = 768):
    """Embeddings as CLIP's: of one object, so close to each other, and at a wide angle to the words. Own lengths."""
    rng = np.random.default_rng(seed)
    centre, words = rng.normal(size=(2, width))
    views = (centre + 0.5 * rng.normal(size=(n, width)) + 0.3 * words) * rng.uniform(5, 15, (n, 1))
    return views, words, centre + 0.3 * rng.normal(size=width)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


@pytest.mark.parametrize("seed", [0, 1])
def test_paper_reading_is_equations_8_to_10(seed):
    views, words, reference = known(seed)
    d = sum(1 - cosine(reference, v) for v in views) / len(views)
    s = [cosine(words, v) for v in views]
    variance = sum((x - sum(s) / len(s)) ** 2 for x in s) / len(s)
    ours = cd_score(*map(torch.from_numpy, (views, words, reference)), PAPER)
    assert ours.diversity == pytest.approx(d, rel=1e-9) and ours.variance == pytest.approx(variance, rel=1e-7)
    assert ours.score == pytest.approx(d / variance, rel=1e-7)


@pytest.mark.parametrize("seed", [0, 1])
def test_code_reading_sums_and_takes_percent(seed):
    views, words, _ = known(seed)
    d = sum(1 - cosine(views[0], v) for v in views)
    variance = statistics.variance([max(cosine(words, v), 0) * 100 for v in views])
    ours = cd_score(torch.from_numpy(views), torch.from_numpy(words), None, CODE)
    assert ours.diversity == pytest.approx(d, rel=1e-9) and ours.score == pytest.approx(d / variance, rel=1e-7)
    assert ours.image[0] == pytest.approx(1)


def test_code_reading_clips_what_points_away():
    """cos with the words 0.6, -0.8 and 0.28 by hand: 60, 0, 28 percent; variance 900.44 with n - 1."""
    views = torch.tensor([[0.6, 0.8], [-0.8, 0.6], [0.28, 0.96]])
    ours = cd_score(views, torch.tensor([1.0, 0.0]), None, CODE)
    assert ours.variance == pytest.approx(2704 / 3, rel=1e-5)
    assert ours.diversity == pytest.approx((1 - 0.0) + (1 - (0.168 + 0.768)), rel=1e-5)


def test_readings_differ_in_magnitude_as_documented():
    """Population of N against N-1 and percent: the code's variance is 10^4 N/(N-1) times the paper's."""
    views, words, _ = map(torch.from_numpy, known(3))
    paper, code = cd_score(views, words, views[0], PAPER), cd_score(views, words, None, CODE)
    assert code.variance / paper.variance == pytest.approx(1e4 * 16 / 15, rel=1e-9)
    assert code.diversity / paper.diversity == pytest.approx(16, rel=1e-9)


def test_prompts():
    assert prompt_of("teddy_bear_02", CODE) == "An image of teddy bear"
    assert prompt_of("teddy_bear_02", PAPER) == "An image of teddy_bear_02"
    for name, reading in (("  ", PAPER), ("007", CODE)):
        with pytest.raises(ValueError, match="no name"):
            prompt_of(name, reading)


def test_scores_that_cannot_be_computed_are_refused():
    views = torch.eye(3)
    with pytest.raises(ValueError, match="connect it as reference"):
        cd_score(views, views[0], None, PAPER)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        cd_score(views[:1], views[0], None, CODE)
    with pytest.raises(ValueError, match="have 3 numbers but the text's 2"):
        cd_score(views, torch.ones(2), None, CODE)
    assert cd_score(views[[0, 0]], views[1], None, CODE).score == math.inf


# --- E_flow -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """raft_small's file with random weights, as torchvision's download would lie there."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("raft") / "raft_small_random.pth"
    torch.save(raft_small(weights=None).state_dict(), path)
    return path


def pictures(seed: int, n: int = 3, side: int = 64):
    small = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, (side, side), mode="bicubic").clamp(0, 1).movedim(1, -1)


def test_flow_is_that_of_torchvision_and_in_pixels_of_the_input(weights):
    network, views = load_raft(weights), pictures(0, 2, 128)
    direct = raft_small(weights=None)
    direct.load_state_dict(torch.load(weights, weights_only=True))
    a, b = (x[None].movedim(-1, 1) * 2 - 1 for x in views)
    with torch.no_grad():
        want = direct.eval()(a, b, num_flow_updates=3)[-1]
    assert torch.allclose(flow(network, views[:1], views[1:], 3), want, atol=1e-5)
    # 64 pixels are enlarged to 128 for the network: the flow comes back halved, in the small pictures' pixels.
    small = torch.nn.functional.interpolate(views.movedim(-1, 1), (64, 64), mode="area").movedim(1, -1)
    large = torch.nn.functional.interpolate(small.movedim(-1, 1), (128, 128), mode="bilinear").movedim(1, -1)
    direct_large = flow(network, large[:1], large[1:], 3)
    halved = torch.nn.functional.interpolate(direct_large, (64, 64), mode="bilinear") / 2
    assert torch.allclose(flow(network, small[:1], small[1:], 3), halved, atol=1e-4)


class Shift(torch.nn.Module):
    """Answers with known flows: the mean colour of the first picture to the right, of the second down."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, a, b, num_flow_updates):
        assert num_flow_updates == 20
        return [torch.stack([a.mean((1, 2, 3)), b.mean((1, 2, 3))], 1)[:, :, None, None].expand(-1, -1, *a.shape[2:])]


def test_error_is_the_cyclic_mean_of_both_directions():
    """The network above gives flows that can be written out: E = mean over i and directions of |differences| / 2."""
    views, truth = pictures(1, 4, 128), pictures(2, 4, 128)
    a, b = (np.array([float(x.double().mean()) * 2 - 1 for x in batch]) for batch in (views, truth))
    total = 0.0
    for i in range(4):
        for step in (1, -1):
            j = (i + step) % 4
            total += 0.5 * (abs(a[i] - b[i]) + abs(a[j] - b[j])) / 2
    ours = flow_error(Shift(), views, truth)
    assert ours.error == pytest.approx(total / 4, rel=1e-4)


def test_equal_views_have_no_error_and_others_have(weights):
    network, views = load_raft(weights), pictures(3, 2)
    steps = []
    assert flow_error(network, views, views.clone(), on_step=lambda *s: steps.append(s)).error == 0
    assert steps == [(1, 2), (2, 2)]
    assert flow_error(network, views, pictures(4, 2), iterations=2).error > 0


def test_wrong_weights_and_pictures_are_named(weights, tmp_path):
    with pytest.raises(ValueError, match="no RAFT weights at"):
        load_raft(tmp_path / "absent.pth")
    (tmp_path / "cut.pth").write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match="cannot be read"):
        load_raft(tmp_path / "cut.pth")
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not hold the weights"):
        load_raft(tmp_path / "other.pth")
    with pytest.raises(ValueError, match="3 pictures of 64 x 64 but the true views 2 pictures"):
        flow_error(Shift(), pictures(0), pictures(0)[:2])
    with pytest.raises(ValueError, match="at least 2 are needed"):
        flow_error(Shift(), pictures(0, 1), pictures(0, 1))
