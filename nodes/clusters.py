"""Pose labels for pictures of one category, without training (multiview/pose_clusters.py has the procedure)."""

from __future__ import annotations

from pathlib import Path

import torch
from comfy_api.latest import io, ui

from ..multiview import pose_clusters
from ..multiview.checks import check_images
from ..multiview.draw import contact_sheet, from_pil
from ..multiview.pose_folder import labels_json, write_pose_folder
from . import host
from .host import advanced, schema
from .model_folders import model_files, model_path

ClustersType = io.Custom("MV_POSE_CLUSTERS")
DINO, CONNECTED = "dinov2", "(connected clip_vision)"


class PoseClusters(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVPoseClusters",
            display_name="Pose Clusters (Multi-View)",
            category="multiview/poses",
            description="Sorts pictures of one kind of object (cars, mugs, chairs) by the side they show, without any "
            "labels: MIRAGE's procedure on DINOv2 features. Saves a folder to train a pose model on.",
            search_aliases=["mirage", "dinov2", "k-means", "pca", "dataset", "viewpoint", "labels"],
            inputs=[
                io.Image.Input("images", tooltip="Pictures of one kind of object, one object in each. Hundreds or "
                               "more; other objects in the same poses help as much as other poses of one object."),
                io.Combo.Input("dinov2", options=[CONNECTED, *model_files(DINO)], default=CONNECTED,
                               tooltip="model.safetensors of a DINOv2 folder of Hugging Face below models/dinov2 (with "
                               "its config.json), or the model connected to clip_vision."),
                io.Int.Input("clusters", default=10, min=1, max=1000,
                             tooltip="Number of poses. The paper took 25 for cars and 10 for armchairs. Rather too "
                             "many: some poses then have two clusters, but fewer clusters mix poses."),
                io.Int.Input("crop_size", default=64, min=16, max=1024, step=8,
                             tooltip="Side of the cut-outs in pixels. The paper trains on 64."),
                io.String.Input("save_folder", default="",
                                tooltip="Save cut-outs and labels to this folder in ComfyUI's output folder, with a "
                                "number added, to train on. Empty: save nothing."),
                io.Int.Input("seed", default=0, min=0, max=2**31 - 1, control_after_generate=False,
                             tooltip="Of k-means and of the drawn patches. The same seed gives the same labels."),
                advanced(io.Int.Input, "network_size", default=224, min=56, max=1036, step=14,
                         tooltip="Side of the pictures a DINOv2 folder sees; more pixels are finer and slower. A "
                         "connected clip_vision has its own."),
                advanced(io.Float.Input, "fill", default=0.8, min=0.1, max=1.0, step=0.05, round=0.001,
                         tooltip="Share of a cut-out that the object's longer side takes."),
                advanced(io.Float.Input, "threshold", default=0.0, min=-2.0, max=2.0, step=0.05, round=0.001,
                         tooltip="What counts as object, in standard deviations of the first component. 0 = the "
                         "paper. Higher: smaller masks."),
                advanced(io.Boolean.Input, "object_only", default=False,
                         tooltip="Compare object patches only. Off, as in the paper, the background counts too; try "
                         "on where backgrounds are busy."),
                advanced(io.Int.Input, "batch", default=8, min=1, max=256,
                         tooltip="Pictures the network sees at once. Less if memory runs out."),
                io.ClipVision.Input("clip_vision", optional=True,
                                    tooltip="A DINOv2 checkpoint from Load CLIP Vision (large or giant)."),
                ClustersType.Input("fitted", optional=True,
                                   tooltip="Clusters that were found before: the pictures are only sorted into them. "
                                   "All settings but the model and crop_size are then those of that run."),
            ],
            outputs=[
                io.Mask.Output(display_name="masks", tooltip="The object in each picture (1 = object), roughly: as "
                               "fine as a quarter of a patch."),
                io.String.Output(display_name="labels", tooltip="The pose of each picture, as the JSON that training "
                                 "reads."),
                io.Image.Output(display_name="crops", tooltip="The objects, centred and of the same size."),
                io.Image.Output(display_name="sheet", tooltip="A row for each pose: mean of its cut-outs, then the "
                                "most typical ones."),
                io.String.Output(display_name="report", tooltip="Pictures in each pose, what the components explain, "
                                 "pictures without an object."),
                ClustersType.Output(display_name="found", tooltip="The clusters, to sort further pictures into them."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, dinov2) -> bool | str:
        # Taking `dinov2` here also stops the host from refusing files that were put there after the list was made.
        return True if dinov2 in (CONNECTED, *model_files(DINO)) else (
            f"There is no DINOv2 model '{dinov2}' in models/dinov2; put config.json and model.safetensors of "
            "facebook/dinov2-small into models/dinov2/dinov2-small and reload the page."
        )

    @classmethod
    def execute(cls, images, dinov2, clusters, crop_size, save_folder, seed, network_size, fill, threshold,
                object_only, batch, clip_vision=None, fitted=None) -> io.NodeOutput:  # fmt: skip
        images = check_images(images, "pictures")
        network, side = _network(dinov2, clip_vision, network_size)
        if fitted is None:
            settings = pose_clusters.ClusterSettings(clusters, side, fill, threshold, object_only, seed, batch)
        elif fitted.settings.side != side:
            raise ValueError(
                f"The fitted clusters saw pictures of {fitted.settings.side} pixels but this model gets {side}; use "
                "the same model and network_size."
            )
        progress, done = host.Progress(2 * len(images)), 0

        def on_step(count: int) -> None:
            nonlocal done
            done += count
            progress.step(done, max(done, 2 * len(images)))

        if fitted is None:
            found = pose_clusters.fit_pose_clusters(images, network, settings, on_step)
        else:
            found = pose_clusters.assign_poses(images, network, fitted, on_step)
        crops = pose_clusters.cut(images, found.boxes, crop_size)
        lines = _report(found)
        if save_folder.strip():
            path, _, _ = host.output_path(save_folder, "poses")
            write_pose_folder(Path(path), crops, found.labels, len(found.clusters.centres), host.check_cancelled)
            lines.append(f"- saved to {path}")
        report = "\n".join(lines)
        sheet = pose_sheet(crops, found)
        return io.NodeOutput(
            pose_clusters.pixel_masks(found, *images.shape[1:3]),
            labels_json(found.labels, len(found.clusters.centres)),
            crops, sheet, report, found.clusters,
            ui=ui.PreviewImage(sheet, cls=cls),
        )  # fmt: skip


def _network(name: str, clip_vision, wanted: int):
    """The function from pictures to patch features, and the side of the pictures it takes."""
    if name == CONNECTED:
        if clip_vision is None:
            raise ValueError(
                "There is no vision model: choose a DINOv2 folder (models/dinov2), or connect a DINOv2 checkpoint to "
                "clip_vision."
            )

        def features_of(pictures):
            return pose_clusters.patch_grid(clip_vision.encode_image(pictures)["last_hidden_state"])

        return features_of, clip_vision.image_size
    from ..multiview.dino import load_dino

    dino = load_dino(model_path(DINO, name))
    host.place_network(dino.network)
    return dino, dino.side(wanted)


def pose_sheet(crops, found: pose_clusters.Found, columns: int = 10):
    """IMAGE with a row for each pose: the mean, then cut-outs from the most typical on."""
    rows = []
    for pose, count in enumerate(found.counts()):
        members = (found.labels == pose).nonzero()[:, 0]
        if not count:
            continue
        nearest = members[found.distances[members].argsort(stable=True)][: columns - 1]
        pictures = torch.cat([crops[members].mean(0, keepdim=True), crops[nearest]])
        rows.append((f"pose {pose}: {count}", pictures))
    widest = max(len(images) for _, images in rows)
    return from_pil(contact_sheet(rows, ["mean", *map(str, range(1, widest))], columns))


def _report(found: pose_clusters.Found) -> list[str]:
    clusters, counts = found.clusters, found.counts()
    parts = ", ".join(f"{100 * float(share):.0f} %" for share in clusters.parts.share)
    area = 100 * float(found.masks.float().mean())
    lines = [
        f"- {len(found.labels)} pictures in {len(counts)} poses: {', '.join(map(str, counts))}",
        f"- the first component explains {100 * float(clusters.foreground.share[0]):.0f} % of all patches and calls "
        f"{area:.0f} % of the pictures object; of the object patches the three explain {parts}",
        f"- mean distance to the own cluster {float(found.distances.mean()):.3g}",
    ]
    if found.missed:
        some = ", ".join(map(str, found.missed[:8])) + (" ..." if len(found.missed) > 8 else "")
        lines.append(f"- no object was found in {len(found.missed)} pictures ({some}); they count as they are")
    if not 1 < area < 90:
        lines.append("- the masks look wrong: change the threshold, or use pictures with one clear object")
    return lines


NODES = [PoseClusters]
