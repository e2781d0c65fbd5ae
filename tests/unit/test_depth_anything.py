"""Loading Depth-Anything-V2, MiDaS and DPT: names, completeness, preprocessing.

The oracle is transformers' own network: its random weights are written in the original repository's layout by a table
of names made from that repository's modules (tests/helpers/depth_layout.py), and must come back through our loader
with equal answers. Run once by hand beside the public code with the same weights (docs/depth.md), they were equal too.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from depth_layout import REDUCED, SMALL, original_layout, transformers_network
from mvpack.multiview.depth_anything import Preparation, estimate, load_depth_model, to_transformers
from PIL import Image
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def reduced(tmp_path_factory):
    """The reduced network, and its file in the original layout."""
    network = transformers_network(**REDUCED)
    path = tmp_path_factory.mktemp("depth") / "depth_anything_v2_vits_fp32.safetensors"
    save_file(original_layout(network.state_dict()), str(path))
    return network, path


@pytest.mark.parametrize(("sizes", "side"), [(REDUCED, 98), (SMALL, 56)], ids=["reduced", "true Small"])
def test_original_files_give_what_the_network_gives(sizes, side, tmp_path):
    """Every tensor used, none left, equal numbers bit for bit; the position table is interpolated on the way."""
    network = transformers_network(**sizes)
    layout = original_layout(network.state_dict())
    # 14 tensors a block, the other parts of the encoder, the decoder.
    assert len(layout) == 12 * 14 + 7 + (8 + 6 + 4 + 4 * 10 + 6)
    path = tmp_path / "depth_anything_v2_vits_fp32.safetensors"
    save_file(layout, str(path))
    loaded = load_depth_model(path)
    assert loaded.kind == "disparity"
    state = loaded.network.state_dict()
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in network.state_dict().items())
    pixels = torch.randn(1, 3, side, side + 14, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = network(pixel_values=pixels).predicted_depth
        assert torch.equal(loaded.network(pixel_values=pixels).predicted_depth, expected)
    assert float(expected.std()) > 1e-4


def test_large_is_tapped_where_it_was_trained(tmp_path):
    """24 layers: after blocks 5, 12, 18 and 24, as in the original (4, 11, 17, 23 counted from 0)."""
    network = transformers_network(**REDUCED, layers=24, tapped=(5, 12, 18, 24))
    save_file(original_layout(network.state_dict(), 24), str(tmp_path / "vitl.safetensors"))
    loaded = load_depth_model(tmp_path / "vitl.safetensors")
    pixels = torch.randn(1, 3, 70, 70, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(loaded.network(pixel_values=pixels).predicted_depth, network(pixels).predicted_depth)


def test_half_precision_files_load_as_float(reduced, tmp_path):
    state = {key: tensor.half() for key, tensor in load_file(str(reduced[1])).items()}
    save_file(state, str(tmp_path / "half.safetensors"))
    assert next(load_depth_model(tmp_path / "half.safetensors").network.parameters()).dtype == torch.float32


def test_metric_variants_are_depth(reduced, tmp_path):
    path = tmp_path / "depth_anything_v2_metric_hypersim_vits_fp32.safetensors"
    path.write_bytes(reduced[1].read_bytes())
    loaded = load_depth_model(path)
    assert loaded.kind == "depth"
    answer = estimate(loaded, torch.rand(1, 40, 40, 3), side=70)
    assert 0 <= float(answer.min()) and float(answer.max()) <= 1  # a sigmoid


def test_names_for_transformers_5(reduced):
    names = to_transformers(load_file(str(reduced[1])), newer=True).keys()
    layer = "backbone.encoder.layer.11.attention."
    assert {f"{layer}{p}_proj.{k}" for p in "qkvo" for k in ("weight", "bias")} <= names
    assert not [name for name in names if "attention.attention" in name or "output.dense" in name]


# --- estimating -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(96, 128), (128, 96), (120, 120)])
def test_preprocessing_is_that_of_transformers(shape):
    """Against DPTImageProcessor, which works on 8-bit pictures: their rounding is what is left."""
    from transformers import DPTImageProcessor

    low = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(low, size=shape, mode="bicubic").clamp(0, 1)[0].movedim(0, -1)
    bytes_ = (image * 255).round().to(torch.uint8)
    prepare = Preparation(side=154)
    theirs = DPTImageProcessor(
        size={"height": 154, "width": 154}, keep_aspect_ratio=True, ensure_multiple_of=14,
        image_mean=prepare.mean, image_std=prepare.std, resample=Image.Resampling.BICUBIC,
    )(Image.fromarray(bytes_.numpy()), return_tensors="pt")["pixel_values"]  # fmt: skip
    ours = prepare(bytes_[None].float() / 255)
    if shape[0] == shape[1]:
        assert ours.shape == theirs.shape == (1, 3, 154, 154)
        assert float((ours - theirs).abs().max()) < 2.5 / 255 / 0.224
    # The original repository fits the shorter side to 154; transformers scales as little as possible.
    assert min(ours.shape[2:]) == 154
    assert ours.shape[2] % 14 == ours.shape[3] % 14 == 0


def test_answers_come_in_order_at_the_pictures_size(reduced):
    loaded = load_depth_model(reduced[1])
    images = torch.rand(5, 50, 60, 3, generator=torch.Generator().manual_seed(3))
    kept, steps = images.clone(), []
    maps = estimate(loaded, images, side=70, batch=2, on_step=lambda done, total: steps.append((done, total)))
    assert maps.shape == (5, 50, 60)
    assert steps == [(2, 5), (4, 5), (5, 5)]
    assert torch.allclose(maps[3], estimate(loaded, images[3:4], side=70)[0], atol=1e-5)
    assert torch.equal(images, kept)


def test_nan_in_the_answer_is_told(reduced):
    loaded = load_depth_model(reduced[1])
    loaded.network.head.conv3.bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="gave NaN or infinity"):
        estimate(loaded, torch.rand(1, 32, 32, 3), side=28)


# --- folders --------------------------------------------------------------------------------------------------------


def test_hugging_face_folder_of_depth_anything(reduced, tmp_path):
    network, path = reduced
    network.save_pretrained(str(tmp_path / "small"))
    loaded = load_depth_model(tmp_path / "small")
    images = torch.rand(2, 40, 40, 3, generator=torch.Generator().manual_seed(4))
    assert torch.equal(estimate(loaded, images, side=70), estimate(load_depth_model(path), images, side=70))
    assert loaded.prepare == Preparation()


def test_hugging_face_folder_of_dpt_with_its_own_preprocessing(tmp_path):
    from transformers import DPTConfig, DPTForDepthEstimation

    torch.manual_seed(0)
    config = DPTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16, image_size=64,
        patch_size=16, is_hybrid=False,
    )  # fmt: skip
    network = DPTForDepthEstimation(config).eval()
    network.save_pretrained(str(tmp_path))
    plain = load_depth_model(tmp_path)
    assert plain.prepare == Preparation(384, 32, False, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    said = {"size": {"height": 64, "width": 64}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said), encoding="utf-8")
    loaded = load_depth_model(tmp_path)
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(5))
    pixels = (image.numpy() - np.array(said["image_mean"])) / np.array(said["image_std"])
    with torch.no_grad():
        expected = network(torch.from_numpy(pixels).float().movedim(-1, 1)).predicted_depth
    assert torch.allclose(estimate(loaded, image), expected, atol=1e-5)


# --- bad files ------------------------------------------------------------------------------------------------------


def refused(path) -> str:
    with pytest.raises(ValueError) as caught:
        load_depth_model(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_are_not_the_model(reduced, tmp_path):
    assert "There is no depth model at" in refused(tmp_path / "nothing.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(reduced[1].read_bytes()[:5000])
    assert "not a readable safetensors file" in refused(tmp_path / "torn.safetensors")
    save_file({"weight": torch.zeros(3)}, str(tmp_path / "other.safetensors"))
    assert "not a Depth-Anything-V2" in refused(tmp_path / "other.safetensors")
    state = load_file(str(reduced[1]))
    short = {key: tensor for key, tensor in state.items() if key != "depth_head.scratch.output_conv1.bias"}
    save_file({**short, "extra": torch.zeros(1)}, str(tmp_path / "short.safetensors"))
    assert "1 tensors are missing and 1 unknown (such as head.conv1.bias, extra)" in refused(
        tmp_path / "short.safetensors"
    )
    save_file({**state, "pretrained.norm.weight": torch.zeros(3)}, str(tmp_path / "odd.safetensors"))
    assert "does not fit together: backbone.layernorm.weight" in refused(tmp_path / "odd.safetensors")


def test_folders_that_are_not_the_model(reduced, tmp_path):
    assert "does not hold a Depth Anything or DPT model" in refused(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    assert "is bert" in refused(tmp_path)
    reduced[0].config.save_pretrained(str(tmp_path))
    assert "holds no .safetensors file" in refused(tmp_path)
    state = {key: t for key, t in reduced[0].state_dict().items() if key != "head.conv1.bias"}
    save_file(state, str(tmp_path / "model.safetensors"), metadata={"format": "pt"})
    assert "1 tensors are missing (such as head.conv1.bias)" in refused(tmp_path)
