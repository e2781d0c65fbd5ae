"""LPIPS on random weights of the true layout, against torchvision's networks and the formula written out in float64."""

import pytest
import torch
import torchvision
from mvpack.multiview.lpips import Lpips, find_weights, load_lpips
from safetensors.torch import save_file

# torchvision's indices of the ReLUs that LPIPS compares, and their channels (Zhang et al. 2018, released code).
COMPARED = {"alex": ((1, 4, 7, 9, 11), (64, 192, 384, 256, 256)), "vgg": ((3, 8, 15, 22, 29), (64, 128, 256, 512, 512))}


def vgg_features():
    """VGG-16 without the classifier, whose 120 million weights would only cost time."""
    from torchvision.models.vgg import cfgs, make_layers

    return make_layers(cfgs["D"])


def random_files(kind, folder, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        features = torchvision.models.alexnet(weights=None).features if kind == "alex" else vgg_features()
        heads = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(COMPARED[kind][1])}
    state = {f"features.{k}": v.clone() for k, v in features.state_dict().items()}
    torch.save(state, folder / f"{kind}net-backbone.pth")
    save_file(heads, folder / f"{kind}_lpips_heads.safetensors")
    return features.double().eval(), heads


def written_out(features, heads, kind, first, second):
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64)
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64)
    total = torch.zeros(len(first), dtype=torch.float64)
    a, b = (((x.double() * 2 - 1 - shift) / scale).permute(0, 3, 1, 2) for x in (first, second))
    with torch.no_grad():
        for index, layer in enumerate(features[: COMPARED[kind][0][-1] + 1]):
            a, b = layer(a.clone()), layer(b.clone())
            if index in COMPARED[kind][0]:
                gap = (a / a.norm(dim=1, keepdim=True) - b / b.norm(dim=1, keepdim=True)) ** 2
                weight = heads[f"lin{COMPARED[kind][0].index(index)}.model.1.weight"].double()
                total += (gap * weight).sum(1).flatten(1).mean(1)
    return total


@pytest.mark.parametrize("kind", ["alex", "vgg"])
def test_agrees_with_torchvision_and_the_formula(kind, tmp_path):
    features, heads = random_files(kind, tmp_path)
    network = load_lpips(find_weights([tmp_path / "missing", tmp_path]))
    assert network.kind == kind
    pictures = torch.rand(2, 2, 48, 64, 3, generator=torch.Generator().manual_seed(1))
    expected = written_out(features, heads, kind, *pictures)
    assert float(expected.min()) > 0.01
    assert torch.allclose(network(*pictures).double(), expected, rtol=1e-4)
    assert torch.equal(network(pictures[0], pictures[0]), torch.zeros(2))


def test_weights_are_known_by_what_they_hold(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    random_files("alex", folders[0])
    (folders[0] / "alex_lpips_heads.safetensors").rename(folders[1] / "lpips.safetensors")
    (folders[0] / "alexnet-backbone.pth").rename(folders[2] / "AlexNet-owt.pth")
    assert find_weights(folders[:2]) is None
    found = find_weights(folders)
    assert (found.backbone.name, found.heads.name) == ("AlexNet-owt.pth", "lpips.safetensors")
    # Broken files and other networks under the same names are passed over.
    (folders[0] / "vgg_broken.pth").write_bytes(b"no weights")
    save_file({"features.0.weight": torch.rand(64, 3, 3, 3)}, folders[0] / "vgg19.safetensors")
    assert find_weights(folders) == found


def test_pickles_with_code_are_not_run(tmp_path):
    class Bad:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"lin0.model.1.weight": Bad()}, tmp_path / "lpips.pth")
    assert find_weights([tmp_path]) is None
    assert not (tmp_path / "ran").exists()


def test_small_pictures_and_wrong_shapes_are_answered(tmp_path):
    with pytest.raises(ValueError, match="at least 31 pixels"):
        Lpips("alex")(torch.rand(1, 24, 40, 3), torch.rand(1, 24, 40, 3))
    _, heads = random_files("alex", tmp_path)
    heads["lin4.model.1.weight"] = torch.rand(1, 99, 1, 1)
    save_file(heads, tmp_path / "alex_lpips_heads.safetensors")
    with pytest.raises(ValueError, match=r"heads\.4"):
        load_lpips(find_weights([tmp_path]))
