"""The analytic model against its own definition in float64 loops, and the behaviour that the definition promises."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from mvpack.multiview.cameras import orbit
from mvpack.multiview.demo.analytic import AnalyticModel, AnalyticOptions
from mvpack.multiview.demo.bank import Bank, build_bank
from mvpack.multiview.demo.measure import judge, telling_views, which_member


def random_bank(seed=0, families=2, variants=2, n=3, size=5) -> Bank:
    g = torch.Generator().manual_seed(seed)
    k = families * variants
    index = torch.arange(k)
    references = torch.randint(0, 256, (families, size, size, 3), generator=g, dtype=torch.uint8)[index // variants]
    views = torch.randint(0, 256, (k, n, size, size, 3), generator=g, dtype=torch.uint8)
    cams = orbit([360.0 * i / n for i in range(n)], 15.0, 1.5, 49.13)
    return Bank(views, references, index // variants, index % variants, index // variants, cams)


def noisy(bank, sigma, seed=1, member=1):
    z = bank.views[member].movedim(-1, 1).float() / 127.5 - 1
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed))
    return z + torch.as_tensor(sigma).reshape(-1, 1, 1, 1) * noise


def reference_of(bank, member):
    return bank.references[member].movedim(-1, 0).float() / 127.5 - 1


def literal(x, sigma, bank, options, reference=None, coupled=None):
    """The definition at the head of analytic.py, pixel by pixel in float64."""
    k_count, n, size = bank.views.shape[0], bank.views.shape[1], bank.views.shape[2]
    z = (bank.views.double() / 127.5 - 1).movedim(-1, 2)
    front = (bank.references.double() / 127.5 - 1).movedim(-1, 1)
    x = x.double()
    sigma = [float(s) for s in torch.as_tensor(sigma, dtype=torch.float64).expand(n)]
    coupled = [True] * n if coupled is None else coupled.tolist()
    reach = 10**6 if options.window == 0 else options.window // 2
    log_p = [
        0.0
        if reference is None
        else -float((reference.double() - front[k]).square().sum()) / (2 * options.reference_sigma**2)
        for k in range(k_count)
    ]
    bias = [0.0 if i == bank.cameras.input_view else options.front_bias for i in range(n)]

    def log(v):
        return math.log(v) if v > 0 else -math.inf

    def logsumexp(values):
        top = max(values)
        return top if top == -math.inf else top + math.log(sum(math.exp(v - top) for v in values))

    out = torch.zeros_like(x)
    for r in range(size):
        for c in range(size):
            rows, cols = slice(max(r - reach, 0), r + reach + 1), slice(max(c - reach, 0), c + reach + 1)

            def energy(j, picture, rows=rows, cols=cols):
                return float((x[j] - picture)[:, rows, cols].square().sum()) / (2 * sigma[j] ** 2)

            own = [[log(1 - bias[j]) - energy(j, z[k, j]) for j in range(n)] for k in range(k_count)]
            face = [[log(bias[j]) - energy(j, front[k]) for j in range(n)] for k in range(k_count)]
            for i in range(n):
                weights, pixels = [], []
                for k in range(k_count):
                    others = sum(logsumexp([own[k][j], face[k][j]]) for j in range(n) if j != i)
                    shared = log_p[k] + (options.kappa * others if coupled[i] else 0.0)
                    weights += [shared + own[k][i], shared + face[k][i]]
                    pixels += [z[k, i, :, r, c], front[k, :, r, c]]
                norm = logsumexp(weights)
                out[i, :, r, c] = sum(math.exp(w - norm) * p for w, p in zip(weights, pixels, strict=True))
    return out


@pytest.mark.parametrize("window", [0, 1, 3, 4, 9])
@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0, 1.5])
@pytest.mark.parametrize("bias", [0.0, 0.25])
def test_denoised_is_the_posterior_mean(window, kappa, bias):
    bank = random_bank()
    for sigma, given, flags in (
        (3.0, None, None),
        (0.7, 2, None),
        (1.5, None, torch.tensor([True, False, True])),
        (torch.tensor([0.4, 6.0, 1.2]), None, torch.tensor([False, True, True])),
        (40.0, 0, None),
    ):
        options = AnalyticOptions(window, kappa, bias, reference_sigma=4.0)
        reference = None if given is None else reference_of(bank, given)
        x = noisy(bank, sigma)
        got = AnalyticModel(bank, options).denoise(x, sigma, reference, flags)
        assert torch.allclose(got.double(), literal(x, sigma, bank, options, reference, flags), atol=2e-4)


def test_every_option_matters_in_that_comparison():
    bank, x = random_bank(), noisy(random_bank(), 3.0)
    base = AnalyticModel(bank, AnalyticOptions(3, 0.3, 0.25, 4.0))
    out = base.denoise(x, 3.0)
    for other in (AnalyticOptions(1, 0.3, 0.25), AnalyticOptions(3, 0.5, 0.25), AnalyticOptions(3, 0.3, 0.1)):
        assert (AnalyticModel(bank, other).denoise(x, 3.0) - out).abs().max() > 1e-3
    assert (base.denoise(x, 3.0, reference_of(bank, 0)) - out).abs().max() > 1e-3
    flags = torch.tensor([True, False, True])
    changed = (base.denoise(x, 3.0, None, flags) - out).abs().amax((1, 2, 3))
    assert changed[1] > 1e-3 and changed[0] == 0 and changed[2] == 0


def test_precise_at_extreme_noise_levels():
    """Real sizes: at sigma 700 the errors of 16 views add up to hundreds of thousands, and only their differences
    count.
    """
    cams = orbit([45.0 * i for i in range(8)], 15.0, 1.5, 49.13)
    bank = build_bank(cams, 48, 1, 3, seed=3)
    z = (bank.views.double() / 127.5 - 1).movedim(-1, 2)
    for sigma in (0.002, 0.05, 1.9, 2.1, 60.0, 700.0):
        x = noisy(bank, sigma)
        energy = (x.double() - z).square().sum((1, 2, 3, 4)) / (2 * sigma**2)
        weight = torch.softmax(-energy, 0)
        got = AnalyticModel(bank).denoise(x, sigma)
        assert torch.allclose(got.double(), torch.einsum("k,knchw->nchw", weight, z), atol=1e-3), sigma
        for options in (AnalyticOptions(9, 0.2, 0.1), AnalyticOptions(0, 1.0, 0.1)):
            assert torch.isfinite(AnalyticModel(bank, options).denoise(x, sigma)).all()


def test_no_noise_returns_the_member_and_endless_noise_the_prior_mean():
    bank = random_bank()
    model = AnalyticModel(bank, AnalyticOptions(3, 0.5, 0.2))
    z = (bank.views.float() / 127.5 - 1).movedim(-1, 2)
    assert torch.allclose(model.denoise(z[2], 0.0), z[2], atol=1e-6)
    fronts = (bank.references.float() / 127.5 - 1).movedim(-1, 1).mean(0)
    expected = 0.8 * z.mean(0) + 0.2 * fronts
    expected[0] = z[:, 0].mean(0)
    for x in (torch.zeros(3, 3, 5, 5), torch.full((3, 3, 5, 5), math.inf)):
        assert torch.allclose(model.denoise(x, math.inf), expected, atol=1e-5)
    assert torch.isfinite(model.denoise(torch.full((3, 3, 5, 5), 1e25), 0.01)).all()


def test_the_reference_chooses_the_family_and_nothing_else():
    bank = random_bank(variants=3)
    model = AnalyticModel(bank)
    prior = model.log_prior(reference_of(bank, 4))
    assert prior.tolist() == [-math.inf] * 3 + [0.0] * 3
    far = model.denoise(noisy(bank, 500.0), 500.0, reference_of(bank, 4))
    own_mean = (bank.views[3:].float() / 127.5 - 1).movedim(-1, 2).mean(0)
    assert (far - own_mean).abs().mean() < 0.02
    # Even when the noisy views are those of the other family.
    member = AnalyticModel(bank).denoise(noisy(bank, 0.01, member=0), 0.01, reference_of(bank, 4))
    z = (bank.views.float() / 127.5 - 1).movedim(-1, 2)
    assert (member - z[3:]).abs().mean((1, 2, 3, 4)).min() < 1e-3


def test_calls_are_pure_and_keep_dtype_and_size():
    bank = random_bank()
    model = AnalyticModel(bank, AnalyticOptions(3, 0.5, 0.2))
    x = noisy(bank, 2.0)
    before = x.clone()
    first = model.denoise(x, 2.0)
    larger = model.denoise(torch.randn(3, 3, 7, 9), 2.0)
    assert torch.equal(x, before) and torch.equal(model.denoise(x, 2.0), first)
    assert larger.shape == (3, 3, 7, 9)
    half = model.denoise(x.half(), 2.0)
    assert half.dtype == torch.float16 and torch.allclose(half.float(), first, atol=5e-3)
    with torch.inference_mode():
        assert torch.equal(model.denoise(x, 2.0), first)


def test_another_resolution_uses_area_resized_pictures():
    bank = random_bank(size=8)
    model = AnalyticModel(bank)
    small = (bank.views.float().movedim(-1, 2).reshape(4, 3, 3, 4, 2, 4, 2).mean((4, 6)).round()) / 127.5 - 1
    assert torch.allclose(model.denoise(small[1], 0.01), small[1], atol=1e-5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.denoise(torch.zeros(2, 3, 5, 5), 1.0), "3 views of 3 channels"),
        (lambda m: m.denoise(torch.zeros(3, 4, 5, 5), 1.0), "3 views of 3 channels"),
        (lambda m: m.denoise(torch.zeros(3, 3, 5, 5), -1.0), "sigma must be 0 or more"),
        (lambda m: m.denoise(torch.zeros(3, 3, 5, 5), math.nan), "sigma must be 0 or more"),
        (lambda m: m.denoise(torch.zeros(3, 3, 5, 5), 1.0, torch.zeros(3, 6, 6)), "resize it first"),
        (lambda m: m.denoise(torch.zeros(3, 3, 5, 5), 1.0, torch.zeros(2, 3, 5, 5)), "one picture"),
        (lambda m: m.denoise(torch.zeros(3, 3, 5, 5), 1.0, None, torch.ones(2)), "one flag for each"),
        (lambda m: AnalyticOptions(window=-1), "window"),
        (lambda m: AnalyticOptions(kappa=-0.1), "kappa"),
        (lambda m: AnalyticOptions(front_bias=1.0), "front_bias"),
        (lambda m: AnalyticOptions(reference_sigma=0.0), "reference_sigma"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(AnalyticModel(random_bank()))


def sample(model, seed, reference=None, steps=18):
    """Euler steps of the probability-flow ODE on Karras noise levels 700..0.02."""
    n, size = model.bank.views.shape[1:3]
    ramp = torch.linspace(700 ** (1 / 7), 0.02 ** (1 / 7), steps) ** 7
    sigmas = [*ramp.tolist(), 0.0]
    x = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * sigmas[0]
    for now, after in pairwise(sigmas):
        denoised = model.denoise(x, now, reference)
        x = denoised + (x - denoised) * (after / now)
    return (x / 2 + 0.5).clamp(0, 1).movedim(1, -1)


def test_exact_model_samples_whole_members_with_the_right_frequencies():
    """128 seeds, 2 families x 4 variants, reference given: every sample is one variant of its family in all views,
    and the
    four variants appear equally often (chi-square with 3 degrees of freedom, p > 0.01 means below 11.34)."""
    bank = random_bank(seed=5, families=2, variants=4, n=3, size=4)
    model = AnalyticModel(bank)
    counts = torch.zeros(4)
    for seed in range(128):
        picture = sample(model, seed, reference_of(bank, 4), 12)
        member = which_member(picture, bank)
        assert (member == member[0]).all() and bank.family[member[0]] == 1
        assert (picture - bank.views[member[0]].float() / 255).abs().max() < 0.01
        counts[bank.variant[member[0]]] += 1
    chi_square = float(((counts - 32) ** 2 / 32).sum())
    assert chi_square < 11.34, counts.tolist()


def test_without_the_reference_families_appear_equally_often():
    """Chi-square with 1 degree of freedom over 96 seeds: below 6.63 for p > 0.01."""
    bank = random_bank(seed=6, families=2, variants=2, n=3, size=4)
    model = AnalyticModel(bank)
    ones = sum(int(bank.family[which_member(sample(model, seed, None, 12), bank)[0]]) for seed in range(96))
    assert 2 * (ones - 48) ** 2 / 48 < 6.63, ones


@pytest.fixture(scope="module")
def toys() -> Bank:
    return build_bank(orbit([30.0 * i for i in range(12)], 15.0, 1.5, 49.13), 24, 1, 5, seed=23)


def verdicts(bank, options, seeds=4):
    model = AnalyticModel(bank, options)
    return [judge(sample(model, seed, reference_of(bank, 0)), bank, 0) for seed in range(seeds)]


def mean_of(found, name):
    return sum(getattr(v, name) for v in found) / len(found)


def test_exact_model_makes_whole_toys(toys):
    assert telling_views(toys, 0).sum() >= 6
    for found in verdicts(toys, AnalyticOptions()):
        assert found.agreement == 1.0 and found.second_faces == 0 and found.object_psnr > 40


def test_uncoupled_views_contradict_each_other(toys):
    free = verdicts(toys, AnalyticOptions(window=0, kappa=0.0))
    assert mean_of(free, "agreement") < 0.6
    assert mean_of(free, "view_psnr") > 40 and mean_of(free, "object_psnr") < 30
    patchy = verdicts(toys, AnalyticOptions(window=5, kappa=0.0))
    assert mean_of(patchy, "agreement") < 0.6 and mean_of(patchy, "view_psnr") < 32


def test_dropping_the_other_views_equals_kappa_0(toys):
    x = noisy(toys, 20.0)
    alone = AnalyticModel(toys, AnalyticOptions(7, 0.8)).denoise(x, 20.0, None, torch.zeros(12, dtype=torch.bool))
    assert torch.allclose(alone, AnalyticModel(toys, AnalyticOptions(7, 0.0)).denoise(x, 20.0), atol=1e-6)


def test_front_bias_makes_second_faces(toys):
    plain = verdicts(toys, AnalyticOptions(0, 0.0, 0.0))
    biased = verdicts(toys, AnalyticOptions(0, 0.0, 0.3))
    assert sum(v.second_faces for v in plain) == 0
    assert sum(v.second_faces for v in biased) >= 4
    assert all(not v.faces[0] for v in biased)


def test_consistency_rises_with_kappa(toys):
    scores = [mean_of(verdicts(toys, AnalyticOptions(0, kappa)), "agreement") for kappa in (0.0, 0.1, 0.4, 1.0)]
    assert all(b >= a - 0.05 for a, b in pairwise(scores)) and scores[-1] - scores[0] > 0.3, scores


def test_consistency_rises_with_the_window(toys):
    scores = [mean_of(verdicts(toys, AnalyticOptions(window, 1.0)), "object_psnr") for window in (1, 5, 15, 0)]
    assert all(b >= a - 0.5 for a, b in pairwise(scores)) and scores[-1] - scores[0] > 10, scores


def test_judge_on_pictures_with_a_known_verdict(toys):
    views = toys.views[2].float() / 255
    whole = judge(views, toys)
    assert whole.agreement == 1.0 and whole.second_faces == 0 and whole.object_psnr == pytest.approx(100)
    mixed = views.clone()
    telling = telling_views(toys, 0).nonzero()[:, 0].tolist()
    swapped = telling[:2]
    for view in swapped:
        mixed[view] = toys.views[0, view].float() / 255
    mixed[telling[3]] = toys.references[0].float() / 255
    found = judge(mixed, toys)
    assert found.second_faces == 1 and bool(found.faces[telling[3]])
    assert found.agreement == pytest.approx((len(telling) - 3) / len(telling))
    assert toys.variant[found.members[swapped[0]]] == 0
    with pytest.raises(ValueError, match="measure at the bank's size"):
        judge(views[:, :10], toys)
    with pytest.raises(ValueError, match="families 0 to 0"):
        which_member(views, toys, 3)


def test_no_input_view_means_every_view_may_show_the_front():
    bank = random_bank()
    bank = replace(bank, cameras=replace(bank.cameras, input_view=None))
    options = AnalyticOptions(3, 0.4, 0.3)
    x = noisy(bank, 1.0)
    assert torch.allclose(
        AnalyticModel(bank, options).denoise(x, 1.0).double(), literal(x, 1.0, bank, options), atol=2e-4
    )
