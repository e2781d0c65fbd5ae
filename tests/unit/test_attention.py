"""Cross-frame and hard attention against sums written out in float64."""

import pytest
import torch
from mvpack.multiview import attention

VIEWS, TOKENS, HEADS, WIDTH = 3, 20, 2, 8


def tokens(rows=VIEWS, count=TOKENS, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, count, HEADS * WIDTH, generator=generator, dtype=dtype) for _ in range(3)]


def weights(q, k):
    """(heads, T, S) of one view, softmax written out."""
    scores = torch.einsum("thd,shd->hts", q.view(-1, HEADS, WIDTH), k.view(-1, HEADS, WIDTH)) / WIDTH**0.5
    powers = (scores - scores.amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


def attended(q, k, v, hard=False):
    """One view, (T,C) each."""
    w = weights(q, k)
    if hard:
        w = (w == w.amax(-1, keepdim=True)).to(w.dtype)
    return torch.einsum("hts,shd->thd", w, v.view(-1, HEADS, WIDTH)).flatten(1)


def soft(q, k, v):
    return attention.soft_attention(q, k, v, HEADS)


def test_soft_attention_is_equation_5():
    q, k, v = tokens()
    expected = torch.stack([attended(*row) for row in zip(q, k, v, strict=True)])
    torch.testing.assert_close(soft(q, k, v), expected, rtol=1e-12, atol=1e-12)


def fill(q, k, v, out):
    out.copy_(soft(q, k, v))


@pytest.mark.parametrize(("filled", "whole"), [(False, True), (True, False), (True, True)])
@pytest.mark.parametrize("references", [[0], [1], [2, 0]])
@pytest.mark.parametrize("groups", [1, 2])
def test_views_attend_to_the_references_of_their_group(filled, whole, references, groups):
    q, k, v = tokens(groups * VIEWS)
    out = attention.cross_frame(q, k, v, VIEWS, references, soft, fill if filled else None, whole=whole)
    for row in range(groups * VIEWS):
        first = row // VIEWS * VIEWS
        if row - first in references:
            expected = attended(q[row], k[row], v[row])
        else:
            seen = [first + i for i in references]
            expected = attended(q[row], torch.cat([k[i] for i in seen]), torch.cat([v[i] for i in seen]))
        torch.testing.assert_close(out[row], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("filled", [False, True])
def test_strength_blends_with_the_views_own_attention(filled):
    q, k, v = tokens()
    out = attention.cross_frame(q, k, v, VIEWS, [1], soft, fill if filled else None, strength=0.3)
    expected = 0.7 * attended(q[0], k[0], v[0]) + 0.3 * attended(q[0], k[1], v[1])
    torch.testing.assert_close(out[0], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out[1], attended(q[1], k[1], v[1]), rtol=1e-12, atol=1e-12)
    assert torch.equal(attention.cross_frame(q, k, v, VIEWS, [1], soft, strength=0.0), soft(q, k, v))


@pytest.mark.parametrize("references", [[1], [1, 2]])
def test_reference_is_bit_for_bit_its_own_attention(references):
    """Also for a function that rounds differently in batches of another size."""

    def fussy(q, k, v):
        return soft(q, k, v) * (1 + 1e-6 * q.shape[0])

    q, k, v = tokens(2 * VIEWS, 70, torch.float32)
    out = attention.cross_frame(q, k, v, VIEWS, references, fussy)
    own = fussy(q, k, v)
    for i in references:
        assert torch.equal(out[[i, i + VIEWS]], own[[i, i + VIEWS]])
    assert not torch.allclose(out[0], own[0], atol=0.1)


def test_inputs_stay_as_they_are():
    given = tokens()
    kept = [x.clone() for x in given]
    attention.cross_frame(*given, VIEWS, [0], soft, strength=0.5)
    assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))


def test_whole_batches_where_row_numbers_matter():
    """A function that treats one row differently, as regional patches do."""
    q, k, v = tokens()
    seen = []

    def by_row(q, k, v):
        seen.append(q.shape[0])
        return soft(q, k, v) * torch.tensor([1.0, 2.0, 3.0], dtype=q.dtype)[:, None, None]

    for hard in (None, fill):
        out = attention.cross_frame(q, k, v, VIEWS, [0], by_row, hard, whole=True)
        assert set(seen) == {VIEWS}
        expected = (3 if hard is None else 1) * attended(q[2], k[0], v[0])
        torch.testing.assert_close(out[2], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("filled", [False, True])
def test_tiles_of_a_view_see_that_tile_of_the_reference(filled):
    """q cut into two tiles for each view, k and v not: what core's HyperTile hands to attention, which cuts k and v."""
    q, k, v = tokens(VIEWS, 10)
    tiled = q.reshape(2 * VIEWS, 5, -1)
    own = lambda q, k, v: soft(q, *(x.reshape(q.shape[0], -1, x.shape[-1]) for x in (k, v)))  # noqa: E731
    out = attention.cross_frame(tiled, k, v, VIEWS, [0], own, fill if filled else None)
    assert out.shape == tiled.shape
    for row in range(2 * VIEWS):
        keys = slice(5, 10) if row % 2 else slice(0, 5)
        torch.testing.assert_close(out[row], attended(tiled[row], k[0, keys], v[0, keys]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("keys", [20, 1024, 1057, 2048])
def test_hard_attention_is_one_hot_attention(keys):
    q = tokens(2, 33)[0]
    _, k, v = tokens(2, keys, seed=1)
    out = attention.hard_attention(q, k, v, HEADS)
    expected = torch.stack([attended(*row, hard=True) for row in zip(q, k, v, strict=True)])
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_hard_attention_is_the_limit_of_a_cold_softmax():
    q, k, v = tokens(1)
    torch.testing.assert_close(
        attention.hard_attention(q, k, v, HEADS), soft(1e6 * q, k, v), rtol=0, atol=1e-9
    )


def test_hard_attention_in_blocks_and_in_half_precision(monkeypatch):
    q, k, v = tokens(1, 100, torch.float32)
    whole = attention.hard_attention(q, k, v, HEADS)
    monkeypatch.setattr(attention, "CACHED_SCORES", 700)
    assert torch.equal(attention.hard_attention(q, k, v, HEADS), whole)
    low = [x.bfloat16() for x in (q, k, v)]
    expected = attention.hard_attention(*(x.float() for x in low), HEADS).bfloat16()
    assert torch.equal(attention.hard_attention(*low, HEADS, upcast=True), expected)


def test_hard_attention_scores_do_not_overflow_half_precision():
    """Q K^T is 8 * 100 * 100 = 80000 for the best key, more than float16 holds; divided by sqrt(8) it fits."""
    q = torch.full((1, 1, 8), 100.0, dtype=torch.float16)
    k = torch.stack([torch.full((8,), 99.0), torch.full((8,), 100.0)])[None].half()
    v = torch.tensor([[[1.0] * 8, [2.0] * 8]], dtype=torch.float16)
    assert attention.hard_attention(q, k, v, 1).unique().tolist() == [2.0]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("apart", [[False, False], [True, False], [False, True], [True, True]])
def test_parts_that_are_apart_keep_to_themselves(apart, whole):
    given = tokens(2 * VIEWS)

    def talking(q, k, v):
        return attention.cross_frame(q, k, v, VIEWS, [0], soft)

    out = attention.in_parts(apart, given, talking, soft, whole)
    for part, alone in enumerate(apart):
        rows = slice(part * VIEWS, (part + 1) * VIEWS)
        expected = (soft if alone else talking)(*(x[rows] for x in given))
        torch.testing.assert_close(out[rows], expected, rtol=1e-12, atol=1e-12)


def test_guidance_is_equation_7_and_leaves_references_alone():
    generator = torch.Generator().manual_seed(3)
    soft_, hard = (torch.randn(2 * VIEWS, 4, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    out = attention.guide_away(soft_, soft_, hard, 1.5, VIEWS, [1])
    torch.testing.assert_close(out[0], (1 - 1.5) * hard[0] + 1.5 * soft_[0], rtol=1e-12, atol=1e-12)
    assert torch.equal(out[[1, 4]], soft_[[1, 4]])
    assert torch.equal(attention.guide_away(soft_, soft_, hard, 1.0, VIEWS, [1]), soft_)


@pytest.mark.parametrize(
    ("views", "references", "message"),
    [
        (3, [], "No reference view is named; give the number of at least one, for example 0."),
        (3, [3], "There is no view 3 among 3 views to take as reference; the first is 0, the last 2."),
        (3, [-1], "There is no view -1 among 3 views to take as reference; the first is 0, the last 2."),
        (2, [0], "The batch of 3 pictures cannot be divided into sets of 2 views; give the latent one entry for each "
                 "view, or correct the number of views."),
    ],
)
def test_wrong_numbers_are_told(views, references, message):
    with pytest.raises(ValueError) as caught:
        attention.cross_frame(*tokens(), views, references, soft)
    assert str(caught.value) == message
