"""The nodes inside the real ComfyUI, over its API: what they give, and what they say to bad input."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from comfy_host import NodeFailed, PromptRejected
from PIL import Image
from plyfile import PlyData, PlyElement

OBJECT = {"seed": 3, "variant": 1, "variants": 3, "size": 48, "background": "white"}
MODEL = {
    "kind": "analytic", "resolution": 48, "window": 0, "kappa": 1.0, "front_bias": 0.0, "seed": 3, "families": 2,
    "variants": 3,
}  # fmt: skip
FIT = {
    "iterations": 30, "seed": 5, "start": "hull", "background": "auto", "points": 300, "max_points": 2000,
    "sh_degree": 0, "weight_l1": 1.0, "weight_ms_ssim": 0.2, "weight_mask": 1.0,
}  # fmt: skip
ORBIT = {
    "preset": "demo", "views": 6, "preset_elevation": True, "elevation": 0.0, "start_azimuth": 0.0, "span": 360.0,
    "radius": 1.5, "fov": 49.13, "aspect": 1.0,
}  # fmt: skip


def node(class_type, /, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def scene(**model) -> dict:
    """Six small views of a toy: cameras 'c', object 'o', model 'm', conditioning 'v'."""
    return {
        "c": node("MVOrbitCameras", **ORBIT),
        "o": node("MVDemoObject", cameras=["c", 0], **OBJECT),
        "m": node("MVLoadDemoModel", cameras=["c", 0], **{**MODEL, **model}),
        "v": node("MVViewConditioning", image=["o", 0], vae=["m", 1], cameras=["c", 0], width=48, height=48),
    }


def sampled(name="euler", scheduler="karras", steps=8, cfg=1.0, seed=1, latent=("v", 2), **model) -> dict:
    return {
        **scene(**model),
        "k": node(
            "KSampler", model=["m", 0], positive=["v", 0], negative=["v", 1], latent_image=list(latent), seed=seed,
            steps=steps, cfg=cfg, sampler_name=name, scheduler=scheduler, denoise=1.0,
        ),
        "d": node("VAEDecode", samples=["k", 0], vae=["m", 1]),
        "j": node("MVDemoJudge", model=["m", 0], views=["d", 0]),
    }  # fmt: skip


def verdict(result, key="j") -> str:
    return result.outputs[key]["text"][0]


def overall_psnr(result, key: str) -> float:
    """The last line of MVCompareViews' table: all views together."""
    line = result.outputs[key]["text"][0].splitlines()[-1]
    return float(re.fullmatch(r"\| all \| ([\d.]+) \| [\d.]+ \|", line)[1])


def inspect(host, prompt: dict, source, key="i"):
    result = host.run({**prompt, key: node("TestInspect", value=list(source))})
    return result.outputs[key]["report"][0]


def said(host, prompt: dict) -> str:
    """The sentence a node answered bad input with; the server must live on."""
    with pytest.raises((NodeFailed, PromptRejected)) as caught:
        host.run(prompt)
    assert host.alive()
    error = caught.value
    text = error.exception_message if isinstance(error, NodeFailed) else str(error)
    if isinstance(error, NodeFailed):
        assert error.exception_type in ("ValueError", "RuntimeError"), error.exception_type
    return text


# --- cameras ---------------------------------------------------------------------------------------------------------


def test_cameras_node_and_round_trip_through_load3d(host):
    prompt = {
        "c": node("MVOrbitCameras", **{**ORBIT, "preset": "syncdreamer", "views": 0}),
        "l": node("MVCameraToLoad3D", cameras=["c", 0], view=3),
        "b": node("MVCameraFromLoad3D", camera_info=["l", 0], aspect=0.0),
    }
    cameras = inspect(host, prompt, ("c", 0))
    assert cameras["c2w"]["shape"] == [16, 4, 4] and cameras["closed"] is True
    info = inspect(host, prompt, ("l", 0))
    # 3 x 22.5 degrees, elevation 30, radius 1.5, in three.js' frame (y up, front towards +z).
    assert info["position"]["y"] == pytest.approx(0.75, abs=1e-5)
    assert info["position"]["x"] == pytest.approx(1.5 * np.cos(np.pi / 6) * np.sin(np.radians(67.5)), abs=1e-5)
    assert info["position"]["z"] == pytest.approx(1.5 * np.cos(np.pi / 6) * np.cos(np.radians(67.5)), abs=1e-5)
    assert info["fov"] == pytest.approx(49.134, abs=1e-3)
    assert inspect(host, prompt, ("b", 0))["c2w"]["shape"] == [1, 4, 4]


def test_camera_preview_is_a_picture(host):
    result = host.run(
        {"c": node("MVOrbitCameras", **ORBIT), "p": node("MVCamerasPreview", cameras=["c", 0], size=256)}
    )
    (file,) = result.files("p")
    assert Image.open(_open(host, file)).size == (512, 288)


# --- demo models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "scheduler", "cfg"),
    [
        ("euler", "karras", 1.0),
        ("dpmpp_2m", "karras", 1.0),
        ("ddim", "ddim_uniform", 1.0),
        ("euler_ancestral", "karras", 1.0),
        ("euler", "normal", 2.0),
    ],
)
def test_ksampler_draws_one_known_toy(host, sampler, scheduler, cfg):
    report = verdict(host.run(sampled(sampler, scheduler, steps=12, cfg=cfg)))
    assert "nearest toy: seed 3," in report  # the family of the input picture
    assert "agreement 1.00" in report and "second faces: 0" in report
    assert float(report.split("nearest toy ")[1].split(" dB")[0]) > 30


def test_custom_sampling_equals_ksampler(host):
    """SamplerCustomAdvanced with core's CFGGuider takes the same steps as KSampler: the same pictures, exactly."""
    prompt = sampled(cfg=2.0)
    prompt |= {
        "n": node("RandomNoise", noise_seed=1),
        "g": node("CFGGuider", model=["m", 0], positive=["v", 0], negative=["v", 1], cfg=2.0),
        "s": node("KSamplerSelect", sampler_name="euler"),
        "t": node("BasicScheduler", model=["m", 0], scheduler="karras", steps=8, denoise=1.0),
        "a": node(
            "SamplerCustomAdvanced", noise=["n", 0], guider=["g", 0], sampler=["s", 0], sigmas=["t", 0],
            latent_image=["v", 2],
        ),
        "e": node("VAEDecode", samples=["a", 0], vae=["m", 1]),
        "x": node("MVCompareViews", views=["d", 0], reference=["e", 0], title="same", cameras=["c", 0]),
    }  # fmt: skip
    result = host.run(prompt)
    assert result.outputs["x"]["text"][0].splitlines()[-1] == "| all | 99.00 | 1.0000 |"


def test_same_seed_same_views_and_another_seed_other_views(host):
    """The free back takes another variant for some seed: the prompt's seed, not chance, decides."""
    first, again = (verdict(host.run(sampled(seed=7))) for _ in range(2))
    assert first == again
    assert len({verdict(host.run(sampled(seed=s))).splitlines()[0] for s in range(6)}) > 1


def test_dropping_the_reference_frees_the_family(host):
    """Conditioned on the negative (no picture), the model draws any toy of its bank."""
    families = set()
    for seed in range(8):
        prompt = sampled(seed=seed)
        prompt["k"]["inputs"]["positive"] = ["v", 1]
        families.add(verdict(host.run(prompt)).split(",")[0])
    assert len(families) == 2


def test_core_sv3d_conditioning_drives_the_demo_model(host):
    """Core's node needs a CLIP vision model; what matters is that ours feeds the keys core's does."""
    report = inspect(host, scene(), ("v", 0))
    settings = report[0][1]
    assert settings["azimuth"] == pytest.approx([0, 60, 120, 180, 240, 300], abs=1e-3)
    assert settings["elevation"] == pytest.approx([15] * 6, abs=1e-3)
    assert settings["concat_latent_image"]["shape"] == [1, 3, 48, 48]
    assert inspect(host, scene(), ("v", 1))[0][1]["concat_latent_image"]["max"] == 0


# --- splats ----------------------------------------------------------------------------------------------------------


def fitted(**fit) -> dict:
    return {
        **scene(),
        "r": node("MVGaussianReconstruct", images=["o", 1], cameras=["c", 0], masks=["o", 2], **{**FIT, **fit}),
    }


def test_fit_render_save_load_round_trip(host):
    prompt = fitted(iterations=80) | {
        "w": node("MVSaveSplat", splat=["r", 0], filename_prefix="3d/round trip"),
        "g": node("MVGaussianRender", splat=["r", 0], cameras=["c", 0], width=48, height=48, background="white"),
        "x": node("MVCompareViews", views=["g", 0], reference=["o", 1], title="fit", cameras=["c", 0]),
        "y": node("MVCompareViews", views=["g", 0], reference=["r", 1], title="same", cameras=["c", 0]),
    }
    result = host.run(prompt)
    file = result.outputs["w"]["3d"][0]
    path = Path(host.output_path(file))
    assert path.suffix == ".ply" and path.parent.name == "3d"
    assert not list(path.parent.glob("*.tmp*"))
    vertex = PlyData.read(path)["vertex"]
    assert len(vertex) > 100 and {"x", "f_dc_0", "opacity", "scale_0", "rot_0"} <= set(vertex.data.dtype.names)
    assert overall_psnr(result, "x") > 22
    assert overall_psnr(result, "y") == 99
    loaded = {
        "f": node("MVLoadSplat", file=f"{file['subfolder']}/{file['filename']} [output]"),
        "g": node("MVGaussianRender", splat=["f", 0], cameras=["c", 0], width=48, height=48, background="white"),
        "x": node("MVCompareViews", views=["g", 0], reference=["h", 0], title="loaded", cameras=["c", 0]),
        "h": prompt["g"],
    }
    again = host.run({**fitted(iterations=80), **loaded})
    assert overall_psnr(again, "x") > 60


def test_render_gives_metric_depth_and_coordinates(host):
    prompt = fitted(iterations=60) | {
        "g": node("MVGaussianRender", splat=["r", 0], cameras=["c", 0], width=48, height=48, background="black")
    }
    depth = inspect(host, prompt, ("g", 2))
    assert depth["depth"]["shape"] == [6, 48, 48] and 1.8 < depth["depth"]["max"] + 0.5 and depth["depth"]["max"] < 2.1
    assert inspect(host, prompt, ("g", 1))["max"] == pytest.approx(1, abs=0.05)
    coordinates = inspect(host, prompt, ("g", 3))
    assert coordinates["shape"] == [6, 48, 48, 3] and 0 <= coordinates["min"] < coordinates["max"] <= 1


def test_same_seed_same_splat(host):
    """Two nodes of one prompt that differ in nothing the cache could use: their files are equal byte by byte."""
    prompt = fitted()
    prompt["r2"] = node("MVGaussianReconstruct", **{**prompt["r"]["inputs"], "max_points": FIT["max_points"] + 1})
    for key, source in (("w", "r"), ("w2", "r2")):
        prompt[key] = node("MVSaveSplat", splat=[source, 0], filename_prefix="3d/same")
    result = host.run(prompt)
    first, second = (Path(host.output_path(result.outputs[k]["3d"][0])).read_bytes() for k in ("w", "w2"))
    assert first == second


def test_core_renders_our_file_and_our_splat_as_we_do(host, object_info):
    """Core's own reader and renderer (hosts >= 0.23) as the independent witness of colours and orientation.

    Core blends in linear light and has no low-pass filter, so the pictures differ a little; mirrored or turned ones
    would differ a lot, which the last comparison shows.
    """
    if "RenderSplat" not in object_info:
        pytest.skip("this ComfyUI has no native splat nodes; run with COMFYUI_PATH on 0.23 or newer")
    ours = node("MVGaussianRender", splat=["r", 0], cameras=["one", 0], width=96, height=96, background="white")
    core = {
        "width": 96, "height": 96, "frames": 1, "splat_scale": 1.0, "sharpen": 1.0, "headlight_shading": 0.0,
        "opacity_threshold": 0.0, "render_style": "color", "background": "#ffffff", "camera_info": ["l", 0],
    }  # fmt: skip
    prompt = fitted(iterations=80) | {
        # A view from the upper right: neither mirror nor half turn maps it to itself.
        "one": node("MVOrbitCameras", **{**ORBIT, "preset": "custom orbit", "views": 1, "start_azimuth": 40.0,
                                         "preset_elevation": False, "elevation": 25.0}),
        "l": node("MVCameraToLoad3D", cameras=["one", 0], view=0),
        "w": node("MVSaveSplat", splat=["r", 0], filename_prefix="3d/core"),
    }  # fmt: skip
    path = Path(host.output_path(host.run(prompt).outputs["w"]["3d"][0]))
    (Path(host.base) / "input" / "3d").mkdir(exist_ok=True)
    (Path(host.base) / "input" / "3d" / "core.ply").write_bytes(path.read_bytes())
    # What Load3D's viewer would send from the browser; only its file matters here.
    Image.new("RGB", (8, 8)).save(Path(host.base) / "input" / "blank.png")
    viewer = {"image": "blank.png", "mask": "blank.png", "normal": "blank.png", "recording": "", "camera_info": {}}
    prompt |= {
        "g": ours,
        "native": node("RenderSplat", splat=["r", 0], **core),
        "load": node("Load3D", model_file="3d/core.ply", image=viewer, width=64, height=64),
        "read": node("File3DToSplat", model_3d=["load", 6]),
        "file": node("RenderSplat", splat=["read", 0], **core),
        "flip": node("ImageRotate", image=["file", 0], rotation="180 degrees"),
    }  # fmt: skip
    for key, other in (("x1", "native"), ("x2", "file"), ("x3", "flip")):
        prompt[key] = node("MVCompareViews", views=["g", 0], reference=[other, 0], title=other)
    result = host.run(prompt)
    native, file, flipped = (overall_psnr(result, k) for k in ("x1", "x2", "x3"))
    assert min(native, file) > 21 and flipped < min(native, file) - 4, (native, file, flipped)


def test_warm_start_goes_on(host):
    prompt = fitted(iterations=20)
    prompt["s"] = node("MVGaussianReconstruct", **{**prompt["r"]["inputs"], "start_from": ["r", 0], "iterations": 20})
    cold, warm = (_report_psnr(inspect(host, prompt, (k, 3))) for k in ("r", "s"))
    assert warm > cold + 1


def test_contact_sheet_puts_rows_under_each_other(host):
    prompt = scene() | {
        "s": node(
            "MVContactSheet", views=["o", 1], views_title="a", columns=3, second=["o", 1], second_title="b",
            third_title="", fourth_title="", cameras=["c", 0],
        )
    }  # fmt: skip
    (file,) = host.run(prompt).files("s")
    width, height = Image.open(_open(host, file)).size
    assert width > 3 * 48 and height > 4 * 48


# --- bad input: one sentence, before heavy work ---------------------------------------------------------------------


def bad_fit(**change) -> dict:
    prompt = fitted()
    prompt["r"]["inputs"].update(change)
    return prompt | {"p": node("PreviewAny", source=["r", 3])}


def altered(prompt: dict, source: str, slot: int, how: str) -> dict:
    return prompt | {"bad": node("TestAlter", value=[source, slot], how=how)}


@pytest.mark.parametrize(
    ("slot", "change", "how", "expected"),
    [
        (1, "images", "drop", "5 .* 6"),
        (1, "images", "first", "1 "),
        (1, "images", "nan", "NaN"),
        (2, "masks", "clear", "[Mm]ask"),
        (2, "masks", "drop", "[Mm]ask"),
    ],
)
def test_fit_refuses_bad_views(host, slot, change, how, expected):
    text = said(host, altered(bad_fit(**{change: ["bad", 0]}), "o", slot, how))
    assert re.search(expected, text), text
    assert "Traceback" not in text and text.count("\n") == 0


def test_fit_refuses_a_single_view(host):
    prompt = bad_fit(images=["bad", 0], cameras=["one", 0])
    del prompt["r"]["inputs"]["masks"]
    prompt["one"] = node("MVOrbitCameras", **{**ORBIT, "views": 1})
    assert "view" in said(host, altered(prompt, "o", 1, "first"))


def test_model_refuses_a_latent_of_another_count_or_size(host):
    text = said(host, altered(sampled(latent=("bad", 0)), "v", 2, "drop"))
    assert "sets of 6 views" in text and "5" in text
    wrong = sampled()
    wrong["v"]["inputs"].update(width=64, height=64)
    assert "48 x 48" in said(host, wrong)


def test_sizes_must_be_multiples_of_eight(host):
    prompt = scene() | {"i": node("TestInspect", value=["v", 0])}
    prompt["v"]["inputs"].update(width=50)
    assert "multiple of 8" in said(host, prompt) and "48" in said(host, prompt)


def test_a_splat_without_gaussians_is_refused(host):
    for how, expected in (("empty_splat", "no Gaussians"), ("nan_splat", "NaN")):
        for target in ("MVSaveSplat", "MVGaussianRender"):
            prompt = altered(fitted(), "r", 0, how)
            inputs = {"filename_prefix": "3d/never"} if target == "MVSaveSplat" else {
                "cameras": ["c", 0], "width": 48, "height": 48, "background": "white",
            }  # fmt: skip
            prompt["t"] = node(target, splat=["bad", 0], **inputs)
            prompt["i"] = node("PreviewAny", source=["t", 0])
            assert expected in said(host, prompt)
    assert not list((Path(host.base) / "output").rglob("never*"))


def test_wrong_ply_files_are_named(host):
    folder = Path(host.base) / "input"
    points = np.zeros(4, dtype=[("x", "f4"), ("y", "f4"), ("z", "f4"), ("red", "u1")])
    PlyData([PlyElement.describe(points, "vertex")]).write(str(folder / "points.ply"))
    (folder / "text.ply").write_text("hello")
    good = folder / "good.ply"
    result = host.run(fitted() | {"w": node("MVSaveSplat", splat=["r", 0], filename_prefix="3d/good")})
    data = Path(host.output_path(result.outputs["w"]["3d"][0])).read_bytes()
    good.write_bytes(data[: len(data) // 2])
    for name, expected in (("points.ply", "Gaussian"), ("text.ply", "ply"), ("good.ply", "cut off")):
        prompt = {"f": node("MVLoadSplat", file=name), "i": node("TestInspect", value=["f", 0])}
        assert re.search(expected, said(host, prompt)), name


def test_paths_outside_the_folders_are_refused(host):
    outside = Path(host.base).parent / "outside.ply"
    outside.write_bytes(b"ply\n")
    prompt = {"f": node("MVLoadSplat", file="../../outside.ply"), "i": node("TestInspect", value=["f", 0])}
    assert said(host, prompt)
    prompt = fitted() | {"w": node("MVSaveSplat", splat=["r", 0], filename_prefix="../../outside")}
    assert "outside" in said(host, prompt).lower()
    assert outside.read_bytes() == b"ply\n"


def test_output_that_cannot_be_written(host):
    """A file where a folder should be: as unwritable as a read-only disk, also for root."""
    (Path(host.base) / "output" / "blocked").write_text("a file")
    prompt = fitted() | {"w": node("MVSaveSplat", splat=["r", 0], filename_prefix="blocked/splat")}
    text = said(host, prompt)
    assert "blocked" in text and "cannot be used" in text


def test_truncated_trained_weights_and_missing_ones(host):
    prompt = scene(kind="trained") | {"i": node("TestInspect", value=["m", 0])}
    text = said(host, prompt)
    assert "trained" in text and "analytic" in text
    folder = Path(host.base) / "models" / "multiview" / "trained"
    try:
        header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
        for content in (b"", b"\x00" * 40, struct.pack("<Q", len(header)) + header + b"\x00" * 8):
            (folder / "broken.safetensors").write_bytes(content)
            assert "broken.safetensors" in said(host, {**prompt, "n": node("TestWait", steps=1, salt=len(content))})
    finally:
        (folder / "broken.safetensors").unlink()


def test_a_damaged_bank_is_drawn_again(host):
    host.run(sampled())
    folder = Path(host.base) / "models" / "multiview" / "banks"
    whole = {path: path.read_bytes() for path in folder.glob("*.safetensors")}
    for path, content in whole.items():
        path.write_bytes(content[: len(content) // 2])
    host.run(sampled(front_bias=0.01))
    # The order within the header is free, so only its length and what follows it are the same.
    after = {path: path.read_bytes() for path in whole}
    repaired = [len(after[p]) == len(content) and after[p][4096:] == content[4096:] for p, content in whole.items()]
    for path, content in whole.items():
        path.write_bytes(content)
    assert repaired.count(True) == 1


def test_judge_wants_the_analytic_model(host):
    prompt = sampled()
    prompt["j"]["inputs"]["views"] = ["bad", 0]
    assert "6" in said(host, altered(prompt, "d", 0, "drop"))


def _open(host, file):
    import io

    return io.BytesIO(host.download(file))


def _report_psnr(text: str) -> float:
    return float(text.split("PSNR against the views ")[1].split(" dB")[0])
