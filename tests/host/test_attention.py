"""Cross-frame attention and hard-attention guidance in the real ComfyUI, on narrow random-weight models of true
architectures (helper_pack/tiny_unets.py). What every layer gives is compared with sums written out in float64."""

import pytest
import torch
from comfy_host import NodeFailed
from safetensors.torch import save_file

MIDDLE, DECODER = {"middle_block.1"}, {f"output_blocks.{i}.1" for i in range(3, 12)}
ENCODER = {f"input_blocks.{i}.1" for i in (1, 2, 4, 5, 7, 8)}
SMALL, LARGE = 1e-4, 0.05


def node(kind, /, **inputs):
    return {"class_type": kind, "inputs": inputs}


def tiny(kind="sd15", views=3, side=8) -> dict:
    """Model 'm' with its conditionings and latent."""
    return {"m": node("TestTinyUNet", kind=kind, seed=0, views=views, side=side)}


def cross_frame(model=("m", 0), **values):
    settings = {
        "reference_views": "0", "blocks": "middle and decoder", "strength": 1.0, "start_percent": 0.0,
        "end_percent": 1.0, "views": 0, "listed_blocks": "",
    }  # fmt: skip
    return node("MVCrossFrameAttention", model=list(model), **(settings | values))


def hard(gamma, model=("c", 0), start=0.0, end=1.0):
    return node("MVHardAttentionGuidance", model=list(model), gamma=gamma, start_percent=start, end_percent=end)


def probe(model="c", positive=("m", 1), negative=("m", 2), latent=("m", 3), **values):
    settings = {
        "steps": 1, "cfg": 3.0, "split": False, "references": "0", "views": 3, "explain": True, "strength": 1.0,
        "factor": "",
    }  # fmt: skip
    return node(
        "TestProbeSampling", model=[model, 0], positive=list(positive), negative=list(negative), latent=list(latent),
        **(settings | values),
    )  # fmt: skip


def run(host, prompt, key="p"):
    return host.run(prompt).outputs[key]["report"]


def layers_that(report, label, part=None, most=SMALL) -> set[str]:
    """Blocks of one run of the UNet whose pictures agree with own, cross, ... up to rounding in all parts."""
    return {
        name.partition(".transformer_blocks")[0]
        for name, layer in report["layers"].items()
        if layer["pictures"] and all(p[label] < most for i, p in enumerate(layer["parts"]) if part in (None, i))
    }


def check_run(report, patched, part=None):
    """The patched blocks attend to the reference, all others and the references to themselves; and it matters."""
    everywhere = {name.partition(".transformer_blocks")[0] for name, y in report["layers"].items() if y["pictures"]}
    assert layers_that(report, "cross", part) == patched
    assert layers_that(report, "own", part) == everywhere - patched
    assert layers_that(report, "own", part, LARGE) == everywhere - patched
    assert layers_that(report, "reference", part) == everywhere


# --- every layer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [False, True])
def test_layers_of_sd15_attend_to_the_reference(host, split):
    """Both parts of the batch, whether the host runs positive and negative together or apart; and two references."""
    prompt = {
        **tiny(side=16),
        "c": cross_frame(reference_views="1"), "p": probe(references="1", split=split),
        "c2": cross_frame(reference_views="0, 2"), "p2": probe("c2", references="0,2", split=split),
    }  # fmt: skip
    result = host.run(prompt)
    for key in ("p", "p2"):
        runs = result.outputs[key]["report"]
        assert sorted(r["cond_or_uncond"] for r in runs) == ([[0], [1]] if split else [[1, 0]])
        for one in runs:
            check_run(one, MIDDLE | DECODER)


@pytest.mark.parametrize(
    ("blocks", "listed", "patched"),
    [
        ("encoder", "", ENCODER),
        ("all", "", ENCODER | MIDDLE | DECODER),
        ("listed", "middle, Output 9\ninput2", MIDDLE | {"output_blocks.9.1", "input_blocks.2.1"}),
    ],
)
def test_chosen_blocks(host, blocks, listed, patched):
    (one,) = run(host, {**tiny(side=16), "c": cross_frame(blocks=blocks, listed_blocks=listed), "p": probe()})
    check_run(one, patched)


def test_single_layer_of_a_deep_block(host):
    prompt = {**tiny("deep"), "c": cross_frame(blocks="listed", listed_blocks="output 4.1"), "p": probe()}
    (one,) = run(host, prompt)
    changed = [name for name, layer in one["layers"].items() if max(p["own"] for p in layer["parts"]) > LARGE]
    assert changed == ["output_blocks.4.1.transformer_blocks.1"]
    assert max(p["cross"] for p in one["layers"][changed[0]]["parts"]) < SMALL


@pytest.mark.slow  # 860 million random weights: 3.4 GB, half a minute
def test_layers_of_sd15_at_its_full_width(host):
    prompt = {**tiny("sd15_full", 2), "c": cross_frame(), "p": probe(views=2, cfg=1.0)}
    (one,) = run(host, prompt)
    # At 8 x 8 the middle has a single token: attention over one key, own or reference, is still told apart.
    check_run(one, MIDDLE | DECODER)
    host.free()


def test_attention_over_time_is_left_alone(host):
    """8 x 8, 4 x 4, 2 x 2 pixels and 4 views: in one level pixels and views are equally many. The reference's latents
    may change here, as layers over time hand on what other views have become."""
    views = 4
    (one,) = run(host, {**tiny("sv3d_p", views), "c": cross_frame(reference_views="2"),
                        "p": probe(views=views, references="2")})  # fmt: skip
    check_run(one, MIDDLE | DECODER)
    over_time = {name: layer for name, layer in one["layers"].items() if ".time_stack." in name}
    assert len(over_time) == 16
    assert {layer["tokens"] for layer in over_time.values()} == {views}
    assert max(p["own"] for layer in over_time.values() for p in layer["parts"]) < SMALL


def test_strength_blends(host):
    (one,) = run(host, {**tiny(), "c": cross_frame(strength=0.4), "p": probe(strength=0.4)})
    assert layers_that(one, "cross") >= MIDDLE | DECODER
    assert layers_that(one, "own", most=LARGE) == ENCODER


# --- whole samplings --------------------------------------------------------------------------------------------------


def test_reference_view_is_untouched_bit_for_bit(host):
    """Three steps with CFG, also with guidance, ControlNet and strength 0."""
    quick = {"steps": 3, "explain": False}
    control = {"positive": ("n", 0), "negative": ("u", 0)}
    prompt = {
        **tiny(),
        "n": node("TestTinyControl", conditioning=["m", 1], views=3, side=8),
        "u": node("TestTinyControl", conditioning=["m", 2], views=3, side=8),
        "c": cross_frame(reference_views="1"),
        "h": hard(1.5),
        "off": cross_frame(strength=0.0),
        "plain": probe("m", **quick), "soft": probe(**quick), "guided": probe("h", **quick),
        "nothing": probe("off", **quick),
        "plain_control": probe("m", **quick, **control), "control": probe(**quick, **control),
        "a": node("TestCompareRows", a=["plain", 0], b=["soft", 0]),
        "b": node("TestCompareRows", a=["plain", 0], b=["guided", 0]),
        "d": node("TestCompareRows", a=["plain_control", 0], b=["control", 0]),
        "e": node("TestCompareRows", a=["plain", 0], b=["nothing", 0]),
        "f": node("TestCompareRows", a=["plain", 0], b=["plain_control", 0]),
    }  # fmt: skip
    outputs = host.run(prompt).outputs
    for key in "abd":
        (told,) = outputs[key]["report"]
        assert told["equal"] == [False, True, False], key
        assert min(told["apart"][0], told["apart"][2]) > LARGE
    assert outputs["e"]["report"][0]["equal"] == [True] * 3
    assert outputs["f"]["report"][0]["equal"] == [False] * 3, "the ControlNet does nothing"


def test_batched_and_split_evaluations_agree(host):
    """Up to what the same model without the patch differs by: rounding, which random networks enlarge."""
    prompt = {
        **tiny(), "c": cross_frame(),
        "together": probe(explain=False), "apart": probe(explain=False, split=True),
        "plain": probe("m", explain=False), "plain_apart": probe("m", explain=False, split=True),
        "a": node("TestCompareRows", a=["together", 0], b=["apart", 0]),
        "b": node("TestCompareRows", a=["plain", 0], b=["plain_apart", 0]),
    }  # fmt: skip
    outputs = host.run(prompt).outputs
    (patched,), (plain,) = outputs["a"]["report"], outputs["b"]["report"]
    assert max(patched["apart"]) < 3 * max(plain["apart"])
    assert max(patched["apart"]) < 2e-3 * patched["largest"]


def test_start_and_end(host):
    """Two steps: the noise level of the first is in the first half of the sampling, that of the second is not."""
    prompt = {
        **tiny(side=16), "c": cross_frame(start_percent=0.4), "p": probe(steps=2),
        "c2": cross_frame(end_percent=0.4), "p2": probe("c2", steps=2),
    }  # fmt: skip
    outputs = host.run(prompt).outputs
    first, second = outputs["p"]["report"]
    assert first["sigma"] > second["sigma"]
    check_run(first, set())
    check_run(second, MIDDLE | DECODER)
    first, second = outputs["p2"]["report"]
    check_run(first, MIDDLE | DECODER)
    check_run(second, set())


def test_two_sets_of_views_and_the_later_of_two_nodes(host):
    """A batch of 4 as two objects of 2 views; a second node on the decoder decides there."""
    prompt = {
        **tiny(views=4, side=16), "c": cross_frame(views=2), "p": probe(views=2),
        "c2": cross_frame(("c", 0), views=2, reference_views="1", blocks="decoder"),
        "p2": probe("c2", views=2, references="1"),
    }  # fmt: skip
    outputs = host.run(prompt).outputs
    check_run(outputs["p"]["report"][0], MIDDLE | DECODER)
    (one,) = outputs["p2"]["report"]
    assert layers_that(one, "cross") == DECODER
    # In the middle the first node still acts: there view 0 keeps to itself and view 1 does not.
    assert layers_that(one, "own") == ENCODER | MIDDLE
    assert layers_that(one, "reference") == ENCODER | DECODER


def test_prompts_of_a_batch_go_to_their_views(host):
    """A conditioning whose batch is the views reaches the UNet row by row."""
    prompt = {**tiny(), "p": probe("m", explain=False)}
    (one,) = run(host, prompt)
    negative, positive = one["context"][:3], one["context"][3:]
    assert len(set(negative)) == 1
    assert len(set(positive)) == 3


# --- hard-attention guidance ------------------------------------------------------------------------------------------


def test_guidance_costs_one_run_whose_layers_take_the_best_match(host):
    prompt = {**tiny(side=16), "c": cross_frame(reference_views="1"), "h": hard(1.5),
              "p": probe("h", references="1", steps=2), "off": hard(1.0), "q": probe("off", explain=False, steps=2),
              "late": hard(1.5, start=0.4), "r": probe("late", explain=False, steps=2)}  # fmt: skip
    outputs = host.run(prompt).outputs
    kinds = [(r["cond_or_uncond"], bool(r["mv_hard_attention"])) for r in outputs["p"]["report"]]
    assert kinds == 2 * [([1, 0], False), ([0], True)]
    soft, best = outputs["p"]["report"][:2]
    check_run(soft, MIDDLE | DECODER)
    assert layers_that(best, "hard") == MIDDLE | DECODER
    assert layers_that(best, "cross") == set()
    assert layers_that(best, "reference") == ENCODER | MIDDLE | DECODER
    assert len(outputs["q"]["report"]) == 2
    assert [bool(r["mv_hard_attention"]) for r in outputs["r"]["report"]] == [False, False, True]


def test_guidance_is_equation_7(host):
    """In one step of euler the result is the denoised prediction. soft and hard are those of gamma 1 and 0."""
    quick = {"explain": False}
    prompt = {
        **tiny(), "c": cross_frame(),
        "h0": hard(0.0), "h15": hard(1.5),
        "soft": probe(cfg=1.0, **quick), "hard": probe("h0", cfg=1.0, **quick),
        "ours": probe("h15", cfg=1.0, **quick), "ours_cfg": probe("h15", **quick), "cfg": probe(**quick),
        "half_soft": node("LatentMultiply", samples=["soft", 0], multiplier=0.5),
        "half_hard": node("LatentMultiply", samples=["hard", 0], multiplier=0.5),
        "push": node("LatentSubtract", samples1=["half_soft", 0], samples2=["half_hard", 0]),
        "expected": node("LatentAdd", samples1=["soft", 0], samples2=["push", 0]),
        "expected_cfg": node("LatentAdd", samples1=["cfg", 0], samples2=["push", 0]),
        "a": node("TestCompareRows", a=["ours", 0], b=["expected", 0]),
        "b": node("TestCompareRows", a=["ours_cfg", 0], b=["expected_cfg", 0]),
        "d": node("TestCompareRows", a=["soft", 0], b=["hard", 0]),
    }  # fmt: skip
    outputs = host.run(prompt).outputs
    (difference,) = outputs["d"]["report"]
    assert difference["equal"] == [True, False, False]
    assert min(difference["apart"][1:]) > LARGE
    for key in "ab":
        (told,) = outputs[key]["report"]
        # With CFG the soft form is computed in a batch with the negative, which rounds differently.
        assert max(told["apart"]) < (1e-5 if key == "a" else 1e-3) * told["largest"]


# --- company ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "factor", "agree"),
    [("replace", "rows", DECODER), ("override", "twice", MIDDLE | DECODER), ("widen", "", MIDDLE | DECODER)],
)
def test_patches_of_another_pack_stay_in_effect(host, how, factor, agree):
    prompt = {**tiny(side=16), "o": node("TestOtherPack", model=["m", 0], how=how), "c": cross_frame(("o", 0)),
              "p": probe(factor=factor)}  # fmt: skip
    (one,) = run(host, prompt)
    assert layers_that(one, "cross") == agree
    assert layers_that(one, "reference") >= agree


def test_hypertile_and_perturbed_attention_of_core(host):
    """HyperTile cuts queries into tiles, PAG replaces the middle in a run of its own."""
    prompt = {
        **tiny(side=16),
        "t": node("HyperTile", model=["m", 0], tile_size=32, swap_size=2, max_depth=0, scale_depth=False),
        "c": cross_frame(("t", 0)),
        "g": node("PerturbedAttentionGuidance", model=["c", 0], scale=3.0),
        "tiled": probe("m", explain=False), "p": probe("g", explain=False),
        "untiled": node("TestCompareRows", a=["p", 0], b=["tiled", 0]),
    }  # fmt: skip
    outputs = host.run(prompt).outputs
    assert len(outputs["p"]["report"]) == 2
    assert outputs["untiled"]["report"][0]["largest"] > 0


@pytest.fixture
def lora(host):
    """A LoRA that changes the keys of two decoder layers, where the host looks for it."""
    generator = torch.Generator().manual_seed(4)
    names = [f"diffusion_model.output_blocks.{i}.1.transformer_blocks.0.attn1.to_k.diff" for i in (3, 4)]
    path = host.base / "models" / "loras" / "tiny.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.randn(128, 128, generator=generator) * 0.3 for name in names}, path)
    yield path.name
    path.unlink()


def test_a_lora_counts_before_and_after(host, lora):
    """The layers it changes still attend to the reference, whose latents are those of the LoRA alone."""

    def load(model):
        return node("LoraLoaderModelOnly", model=[model, 0], lora_name=lora, strength_model=1.0)

    prompt = {
        **tiny(side=16), "l": load("m"), "c": cross_frame(("l", 0)), "after": load("plainly"), "plainly": cross_frame(),
        "p": probe(), "p2": probe("after", explain=False), "alone": probe("l", explain=False),
        "without": probe("plainly", explain=False),
        "a": node("TestCompareRows", a=["p", 0], b=["p2", 0]), "b": node("TestCompareRows", a=["p", 0], b=["alone", 0]),
        "d": node("TestCompareRows", a=["p", 0], b=["without", 0]),
    }  # fmt: skip
    outputs = host.run(prompt).outputs
    check_run(outputs["p"]["report"][0], MIDDLE | DECODER)
    assert outputs["a"]["report"][0]["equal"] == [True] * 3
    assert outputs["b"]["report"][0]["equal"] == [True, False, False]
    assert outputs["d"]["report"][0]["equal"] == [False] * 3, "the LoRA does nothing"


def test_together_with_mirrors_pull(host):
    """In either order. Pinned, MIRROR leaves view 0 as it is, and so does cross-frame attention: bit for bit."""

    def pull(model):
        return node(
            "MVMirrorRectify", model=[model, 0], cameras=["orbit", 0], preset="custom", strength=1.0,
            correspondence="identity", start_percent=0.0, end_percent=1.0, pin_input=True, occlusion=True,
            depth_error=0.02, jacobian=False, eta=0.5, start_noise=0.0, end_noise=0.0, softness=0.0, iterations=1,
            guidance=1.0, block=1, positive=0.5, negative="image", temperature=1.0, neighbours=1, falloff=1.0,
        )  # fmt: skip

    prompt = {
        **tiny(side=16),
        "orbit": node("MVOrbitCameras", preset="demo", views=3, preset_elevation=True, elevation=0.0, start_azimuth=0.0,
                      span=360.0, radius=1.5, fov=49.13, aspect=1.0),
        "c": cross_frame(), "first": pull("c"), "pulled": pull("m"), "second": cross_frame(("pulled", 0)),
        "plain": probe("m", explain=False), "crossed": probe(explain=False), "p": probe("first"),
        "p2": probe("second", explain=False),
        "a": node("TestCompareRows", a=["p", 0], b=["p2", 0]), "b": node("TestCompareRows", a=["p", 0], b=["plain", 0]),
        "d": node("TestCompareRows", a=["p", 0], b=["crossed", 0]),
    }  # fmt: skip
    outputs = host.run(prompt).outputs
    check_run(outputs["p"]["report"][0], MIDDLE | DECODER)
    assert outputs["a"]["report"][0]["equal"] == [True] * 3
    for key in "bd":
        assert outputs[key]["report"][0]["equal"] == [True, False, False], key


def test_views_kept_apart_in_one_part_only(host):
    """What the HarmonyView guider asks for."""
    prompt = {**tiny(side=16), "c": cross_frame(), "k": node("TestKeepApart", model=["c", 0]), "p": probe("k")}
    (one,) = run(host, prompt)
    assert one["cond_or_uncond"] == [1, 0]
    check_run(one, set(), part=0)
    check_run(one, MIDDLE | DECODER, part=1)


# --- bad input --------------------------------------------------------------------------------------------------------

NAMES = (
    "input 1, input 2, input 4, input 5, input 7, input 8, middle 0, output 3, output 4, output 5, output 6, output 7, "
    "output 8, output 9, output 10, output 11."
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"c": cross_frame(reference_views="3", views=3)},
         "There is no view 3 among 3 views to take as reference; the first is 0, the last 2."),
        ({"c": cross_frame(reference_views="5")},
         "There is no view 5 among 3 views to take as reference; the first is 0, the last 2."),
        ({"c": cross_frame(reference_views="front")},
         "reference_views is 'front'; write numbers of views separated by commas, as in 0 or 0, 3."),
        ({"c": cross_frame(views=2)},
         "The batch of 3 pictures cannot be divided into sets of 2 views; give the latent one entry for each view, or "
         "correct the number of views."),
        ({"four": tiny(views=4)["m"], "p": probe(latent=("four", 3), explain=False)},
         "There are prompts for 3 views but 4 views in the latent; connect the count of View Prompts to the batch size "
         "of the empty latent."),
        ({"c": cross_frame(blocks="listed", listed_blocks="output 2")},
         f"'output 2' is no self-attention of this model; it has {NAMES}"),
        ({"c": cross_frame(blocks="listed", listed_blocks="output 3.1")},
         f"'output 3.1' is no self-attention of this model; it has {NAMES}"),
        ({"c": cross_frame(start_percent=0.5, end_percent=0.2)},
         "end_percent 0.2 is before start_percent 0.5; the part of the sampling in which this acts would be empty."),
        ({"m": node("TestTinyUNet", kind="no_attention", seed=0, views=3, side=8)},
         "This model (BaseModel) has no self-attention layers of a UNet; cross-frame attention works with SD 1.5, "
         "SD 2, SDXL, Stable Zero123, SVD, SV3D and the trained demo model."),
        ({"c": hard(1.5, ("m", 0))},
         "This model has no cross-frame attention to compare with its hard form; put Cross-Frame Attention before "
         "Hard-Attention Guidance."),
        ({"w": node("ContextWindowsManual", model=["m", 0], context_length=2, context_overlap=1,
                    context_schedule="standard_static", context_stride=1, closed_loop=False, fuse_method="pyramid",
                    dim=0, freenoise=False, cond_retain_index_list="", split_conds_to_windows=False,
                    latent_retain_index_list="", causal_window_fix=True),  # the last five: newer hosts only
          "c": cross_frame(("w", 0))},
         "Context windows would cut views from their reference view; take the context windows off the model."),
    ],
)  # fmt: skip
def test_bad_input_is_told(host, changes, message):
    with pytest.raises(NodeFailed) as caught:
        host.run({**tiny(), "c": cross_frame(), "p": probe(explain=False), **changes})
    assert caught.value.exception_message.strip() == message
    assert host.alive()
