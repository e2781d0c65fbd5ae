"""Pose clustering on pictures whose colours are the place on the object, so that masks, boxes and poses are known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mvpack.multiview import pose_clusters as pc
from sklearn.decomposition import PCA

SIDE, GRID, WIDTH = 72, 24, 24
POSES = 8
SETTINGS = pc.ClusterSettings(clusters=POSES, side=SIDE, batch=50)


def category(count: int, seed: int = 0):
    """Pictures of ellipsoids, each with its own proportions, size, place and azimuth (one of 8 directions, off by up to
    6 degrees). Colours are the point of the object's own frame that a pixel shows, so a part has the same colour in
    every pose; the background is grey. Returns pictures, pose, true masks."""
    rng = np.random.default_rng(seed)
    pose = rng.integers(POSES, size=count)
    azimuth = np.deg2rad(pose * 360 / POSES + rng.uniform(-6, 6, count))
    axes = np.array([1.0, 0.7, 0.85]) * rng.uniform(0.9, 1.1, (count, 3))
    size, shift = rng.uniform(0.4, 0.65, count), rng.uniform(-0.25, 0.25, (count, 2))
    line = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
    v, u = np.meshgrid(line, line, indexing="ij")
    x = (u[None] - shift[:, :1, None]) / size[:, None, None]
    y = (v[None] - shift[:, 1:, None]) / size[:, None, None]
    c, s = np.cos(azimuth)[:, None, None], np.sin(azimuth)[:, None, None]
    a, b, d = (axes[:, i, None, None] for i in range(3))
    # Rays x, y + z t of a parallel camera, turned into the object's frame: p = (c x + s z, y, -s x + c z).
    qa = (s / a) ** 2 + (c / d) ** 2
    qb = 2 * x * (c * s / a**2 - s * c / d**2)
    qc = (c * x / a) ** 2 + (y / b) ** 2 + (s * x / d) ** 2 - 1
    root = qb**2 - 4 * qa * qc
    hit = root > 0
    z = (-qb - np.sqrt(np.where(hit, root, 0))) / (2 * qa)
    point = np.stack([(c * x + s * z) / a, y / b + 0 * z, (-s * x + c * z) / d], axis=-1)
    pictures = np.where(hit[..., None], 0.5 + 0.5 * point, 0.02)
    return torch.from_numpy(pictures).float(), torch.from_numpy(pose), torch.from_numpy(hit)


def features_of(pictures):
    """Patches of 3 x 3 pixels: the part seen (smooth in the colour), object or not, and a little noise everywhere."""
    small = F.avg_pool2d(pictures.movedim(-1, 1), SIDE // GRID).movedim(1, -1)
    inside = (small.sum(-1, keepdim=True) > 0.2).float()
    mix = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(5))
    place = torch.cat([small - 0.5, (small - 0.5) ** 2], dim=-1) @ mix
    noise = 0.05 * torch.randn(place.shape, generator=torch.Generator().manual_seed(int(small.sum() * 1000) % 1000))
    onto = torch.zeros(WIDTH)
    onto[0] = 6.0
    return inside * (place + onto) + noise


def purity(labels, truth) -> float:
    return sum(int(torch.bincount(truth[labels == k]).max()) for k in labels.unique()) / len(labels)


@pytest.fixture(scope="module")
def found():
    pictures, pose, masks = category(600)
    return pictures, pose, masks, pc.fit_pose_clusters(pictures, features_of, SETTINGS)


def test_pictures_of_one_pose_get_one_label(found):
    _, pose, _, result = found
    assert purity(result.labels, pose) > 0.97
    assert purity(pose, result.labels) > 0.97
    assert result.counts() == sorted(result.counts(), reverse=True) and sum(result.counts()) == 600
    # The same measure on labels without meaning, so that a high value above says something.
    assert purity(torch.randint(POSES, (600,), generator=torch.Generator().manual_seed(1)), pose) < 0.25


def test_masks_are_where_the_objects_are(found):
    _, _, true, result = found
    ours = pc.pixel_masks(result, SIDE, SIDE) > 0.5
    overlap = (ours & true).sum((1, 2)) / (ours | true).sum((1, 2))
    assert float(overlap.median()) > 0.75 and float(overlap.min()) > 0.5
    assert result.missed == []


def test_cut_outs_are_centred_and_scaled(found):
    pictures, _, _, result = found
    crops = pc.cut(pictures, result.boxes, 96)
    inside = crops.sum(-1) > 0.2
    for mask in inside[::40]:
        rows, columns = mask.nonzero(as_tuple=True)
        height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
        # A patch of the smallest objects is 9 pixels of the cut-out.
        assert max(height, width) / 96 == pytest.approx(SETTINGS.fill, abs=0.15)
        assert float(rows.min() + rows.max()) / 2 == pytest.approx(47.5, abs=9)
        assert float(columns.min() + columns.max()) / 2 == pytest.approx(47.5, abs=9)


def test_scaling_and_centring_are_needed(found, monkeypatch):
    """With whole pictures in place of cut-outs the same features do not tell the poses."""
    pictures, pose, _, _ = found
    monkeypatch.setattr(pc, "_objects", lambda images, positive, fill: (positive, pc.whole(images), []))
    plain = pc.fit_pose_clusters(pictures[:200], features_of, SETTINGS)
    assert purity(plain.labels, pose[:200]) < 0.7


def test_same_seed_same_labels_and_new_pictures_fit_in(found):
    pictures, pose, _, result = found
    part = pc.fit_pose_clusters(pictures[:120], features_of, SETTINGS)
    again = pc.fit_pose_clusters(pictures[:120], features_of, SETTINGS)
    assert torch.equal(part.labels, again.labels) and torch.equal(part.clusters.centres, again.clusters.centres)
    more, true, _ = category(80, seed=9)
    given = pc.assign_poses(more, features_of, result.clusters)
    majority = torch.stack([torch.bincount(pose[result.labels == k], minlength=POSES).argmax() for k in range(POSES)])
    assert float((majority[given.labels] == true).float().mean()) > 0.97
    same = pc.assign_poses(pictures[:50], features_of, result.clusters)
    assert torch.equal(same.labels, result.labels[:50])


def test_features_that_do_not_fit_into_memory_give_the_same(found, monkeypatch):
    pictures = found[0][:60]
    steps = []
    kept = pc.fit_pose_clusters(pictures, features_of, SETTINGS, steps.append)
    assert sum(steps) == 2 * 60
    monkeypatch.setattr(pc, "KEEP_BYTES", 0)
    steps.clear()
    repeated = pc.fit_pose_clusters(pictures, features_of, SETTINGS, steps.append)
    assert sum(steps) == 4 * 60
    assert torch.equal(kept.labels, repeated.labels) and torch.equal(kept.maps, repeated.maps)


def test_projection_is_the_pca_of_everything_at_once():
    """Against scikit-learn's exact PCA, up to sign."""
    g = torch.Generator().manual_seed(2)
    tokens = torch.randn(9000, 24, generator=g) @ torch.diag(torch.linspace(3, 0.1, 24)) + 5
    batches = [tokens[i : i + 1500] for i in range(0, 9000, 1500)]
    ours = pc.fit_projection(batches, 3, g)
    exact = PCA(3).fit(tokens.double().numpy())
    alignment = np.abs((ours.components.numpy() * exact.components_).sum(1))
    assert alignment.min() > 0.98
    assert np.allclose(ours.mean.numpy(), exact.mean_, atol=1e-3)


def test_sign_of_the_first_component_puts_the_object_in_the_middle():
    values = torch.zeros(3, 8, 8)
    values[:, 2:6, 2:6] = 1
    assert not pc.border_outshines_centre(values) and pc.border_outshines_centre(-values)


def test_only_the_largest_part_of_a_mask_stays():
    mask = torch.zeros(1, 6, 6, dtype=torch.bool)
    mask[0, 0, 0] = mask[0, 3:5, 3:5] = True
    assert pc.largest_part(mask).sum() == 4 and not pc.largest_part(mask)[0, 0, 0]
    assert not pc.largest_part(torch.zeros_like(mask)).any()


def test_masks_and_boxes_of_wide_pictures_are_in_their_own_pixels():
    """20 x 40 pixels with the object's columns 28..32, rows 8..12: the padded square starts 10 rows above."""
    picture = torch.zeros(1, 20, 40, 3)
    positive = torch.zeros(1, 10, 10, dtype=torch.bool)
    positive[0, 4:6, 7:8] = True  # patches of 4 pixels: rows 16..24 of the square, 6..14 of the picture
    masks, boxes, missed = pc._objects(picture, positive, 0.5)
    assert boxes.tolist() == [[30.0, 10.0, 16.0]] and missed == []
    found = pc.Found(None, None, masks, boxes, None, missed, None)
    pixels = pc.pixel_masks(found, 20, 40)
    assert pixels.shape == (1, 20, 40) and pixels.sum() == 8 * 4 and pixels[0, 6:14, 28:32].all()


def test_cutting_goes_on_with_the_border():
    picture = torch.zeros(1, 10, 10, 3)
    picture[:, :, 0] = 1.0
    square = pc.cut(picture, torch.tensor([[0.0, 5.0, 10.0]]), 10)
    assert torch.equal(square[0, :, :6, 0], torch.ones(10, 6)) and square[0, :, 6:].sum() == 0


def test_patches_without_class_and_register_tokens():
    tokens = torch.arange(5 + 36).float()[None, :, None]
    assert pc.patch_grid(tokens)[0, 0, 0] == 5 and pc.patch_grid(tokens).shape == (1, 6, 6, 1)
    assert pc.patch_grid(tokens[:, 4:])[0, 0, 0] == 5
    with pytest.raises(ValueError, match="no square of patches"):
        pc.patch_grid(torch.zeros(1, 48, 4))


@pytest.mark.parametrize(
    ("pictures", "settings", "words"),
    [
        (torch.rand(3, 48, 48, 3), SETTINGS, "8 clusters need at least as many pictures, got 3"),
        (torch.zeros(9, 48, 48, 3), pc.ClusterSettings(2, side=48), "same features"),
        (torch.rand(9, 48, 48), SETTINGS, "batch of colour pictures"),
    ],
)
def test_what_cannot_be_clustered_is_said(pictures, settings, words):
    with pytest.raises(ValueError, match=words):
        pc.fit_pose_clusters(pictures, lambda p: p.movedim(-1, 1)[:, :, ::6, ::6].movedim(1, -1) * 1.0, settings)


def test_clusters_of_another_network_are_refused(found):
    with pytest.raises(ValueError, match="fitted on 24 features a patch"):
        pc.assign_poses(found[0][:2], lambda p: torch.zeros(len(p), 16, 16, 8), found[3].clusters)
