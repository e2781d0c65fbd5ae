"""Groups of nodes that several workflows share. Descriptions of whole workflows: build_workflows.py, workflows_*.py."""

from __future__ import annotations

from workflow_graph import Graph, Slot

GREEN, BLUE, PURPLE, BROWN = "#3f6f4a", "#3f789e", "#6b4f8f", "#8a6642"
PICTURE, WIDE_PICTURE, WIDE = 300, 700, 900


def turntable(graph: Graph, splat: Slot, prefix: str, size: int, elevation, radius: float, fov: float) -> None:
    """Once round the splat as an animation. elevation: a number or the slot of one."""
    with graph.group("Turntable", PURPLE):
        orbit = graph.node(
            "MVOrbitCameras", "Cameras of the turntable", preset="custom orbit", views=48, preset_elevation=False,
            elevation=elevation, radius=radius, fov=fov,
        )  # fmt: skip
        render = graph.node(
            "MVGaussianRender", "Render the turntable", splat=splat, cameras=orbit["cameras"], width=size, height=size
        )
        graph.column()
        graph.node(
            "SaveAnimatedWEBP", "Save the turntable", images=render["images"], filename_prefix=f"{prefix}/turntable",
            fps=16.0, lossless=False, quality=85,
        ).shows(360, 380)  # fmt: skip


def fitted(graph: Graph, views: Slot, cameras: Slot, prefix: str, title: str = "Splat", **settings):
    """The splat of the views, and its file. title: of the group."""
    with graph.group(title, GREEN):
        fit = graph.node("MVGaussianReconstruct", "Fit the splat", images=views, cameras=cameras, **settings).shows(
            PICTURE
        )
        graph.column()
        graph.node("MVSaveSplat", "Save the splat (.ply)", splat=fit["splat"], filename_prefix=f"{prefix}/splat")
        graph.node("PreviewAny", "What the fit reports", source=fit["report"]).shows(120)
        graph.node("PreviewImage", "How the losses fell", images=fit["loss_curve"]).shows(PICTURE, 400)
    return fit


def loaded_lgm(graph: Graph, file: str) -> Slot:
    loader = graph.node("MVLoadLGM", file=file)
    graph.node("PreviewAny", "What the file is", source=loader["report"]).shows(140)
    return loader["lgm"]


def lgm_splat(graph: Graph, lgm: Slot | None, views: Slot, cameras: Slot, prefix: str):
    """A group with the splat that an LGM makes of views, saved. lgm: None = it is loaded there."""
    with graph.group("Splat", GREEN):
        if lgm is None:
            lgm = loaded_lgm(graph, "model_fp16_fixrot.safetensors")
            graph.column()
        made = graph.node("MVLGMReconstruct", "Four views to a splat", lgm=lgm, images=views, cameras=cameras)
        made.shows(PICTURE)
        graph.node("PreviewAny", "Which views", source=made["report"]).shows(100)
        graph.node("MVSaveSplat", "Save the splat (.ply)", splat=made["splat"], filename_prefix=f"{prefix}/splat")
    return made


def contact_sheet(graph: Graph, prefix: str, cameras: Slot, columns: int, rows: dict[str, Slot]) -> None:
    names = ("views", "second", "third", "fourth")
    values = {}
    for name, (title, pictures) in zip(names, rows.items(), strict=False):
        values |= {name: pictures, f"{name}_title": title}
    sheet = graph.node("MVContactSheet", "Views side by side", columns=columns, cameras=cameras, **values)
    sheet.shows(WIDE_PICTURE, WIDE)
    graph.column()
    graph.node(
        "SaveImage", "Save the contact sheet", images=sheet["sheet"], filename_prefix=f"{prefix}/contact_sheet"
    ).shows(PICTURE, 400)
    graph.node("MVCamerasPreview", "Where the cameras stand", cameras=cameras).shows(PICTURE, 520)


def views_and_splat(graph: Graph, prefix: str, cameras: Slot, views: Slot, renders: Slot) -> None:
    """SV3D's views over those of their splat, in a new row."""
    graph.row()
    with graph.group("Look", BROWN):
        contact_sheet(graph, prefix, cameras, 7, {"views": views, "splat": renders})


def numbers(graph: Graph, title: str, views: Slot, reference: Slot, cameras: Slot) -> None:
    table = graph.node(
        "MVCompareViews", title[0].upper() + title[1:], views=views, reference=reference, cameras=cameras, title=title
    )
    graph.node("PreviewAny", "In numbers", source=table["table"]).shows(330, 400)


def white_background(graph: Graph) -> Slot:
    picture = graph.node("LoadImage", "Your picture", image="example.png").shows(PICTURE)
    white = graph.node("EmptyImage", "White", width=576, height=576, color=0xFFFFFF)
    return graph.node(
        "ImageCompositeMasked", "Transparent parts become white", destination=picture["IMAGE"], source=white["IMAGE"],
        mask=picture["MASK"], resize_source=True,
    )["IMAGE"]  # fmt: skip


def sv3d_picture(graph: Graph) -> tuple[Slot, Slot]:
    """(picture on white, its elevation)."""
    picture = white_background(graph)
    return picture, graph.node("PrimitiveFloat", "Elevation of the picture (degrees)", value=0.0)["FLOAT"]


def sv3d_loaded(graph: Graph, elevation: Slot):
    """(SV3D's checkpoint, the cameras it was trained on)."""
    loader = graph.node("ImageOnlyCheckpointLoader", "SV3D", ckpt_name="sv3d_p.safetensors")
    cameras = graph.node(
        "MVOrbitCameras", "Cameras SV3D was trained on", preset="sv3d_stability", views=21, preset_elevation=False,
        elevation=elevation,
    )["cameras"]  # fmt: skip
    return loader, cameras


def sv3d_conditioning(graph: Graph, picture: Slot, loader, cameras: Slot):
    return graph.node(
        "MVViewConditioning", image=picture, vae=loader["VAE"], cameras=cameras, width=576, height=576,
        clip_vision=loader["CLIP_VISION"],
    )  # fmt: skip


def contradicting_toy(graph: Graph, size: int):
    """(model, cameras, conditioning) of a toy whose views contradict each other, in a group."""
    with graph.group("Input", BLUE):
        seed = graph.node("PrimitiveInt", "Which toy", value=graph.default("MVDemoObject", "seed"))["INT"]
        toy = graph.node("MVDemoObject", seed=seed, size=size)
        graph.column()
        # The same sight in proportion at every size.
        model = graph.node(
            "MVLoadDemoModel", resolution=size, seed=seed, window=size // 2 - 1, kappa=0.02, front_bias=0.1
        )  # fmt: skip
        conditioning = graph.node(
            "MVViewConditioning", image=toy["image"], vae=model["vae"], cameras=model["cameras"], width=size,
            height=size,
        )  # fmt: skip
    return model, model["cameras"], conditioning


def measured(graph: Graph, titled: dict[str, Slot], cameras: Slot, picture: int) -> None:
    """Consistency of several sets of views. picture: its height."""
    for place, (title, views) in enumerate(titled.items()):
        if place:
            graph.column()
        metrics = graph.node(
            "MVConsistencyMetrics", f"Consistency {title}", views=views, cameras=cameras, title=title, held_out=False
        )  # fmt: skip
        metrics.shows(picture, 500)
        graph.node("PreviewAny", f"In numbers, {title}", source=metrics["table"]).shows(330, 400)


def sv3d_guided(graph: Graph, model: Slot) -> Slot:
    """SV3D's own guidance, which runs from 1 at the input view to the sampler's value behind it and back."""
    return graph.node("VideoTriangleCFGGuidance", "Guidance 1 to 2.5 to 1", model=model, min_cfg=1.0)["MODEL"]


def sv3d_sampled(graph: Graph, loader, conditioning, model: Slot | None = None, title: str = "Make the views") -> Slot:
    """Decoded views. model: the loader's, changed by another node."""
    sampled = graph.node(
        "KSampler", title, model=sv3d_guided(graph, model or loader["MODEL"]), positive=conditioning["positive"],
        negative=conditioning["negative"], latent_image=conditioning["latent"], seed=0, steps=30, cfg=2.5,
        sampler_name="euler", scheduler="karras",
    )  # fmt: skip
    return graph.node("VAEDecode", samples=sampled["LATENT"], vae=loader["VAE"])["IMAGE"]
