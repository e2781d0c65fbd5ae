"""Is a saved mesh upright and does it have the colours of the splat's render, in programs that are not ours?

    .venv/bin/python tests/benchmarks/mesh_elsewhere.py make FOLDER [SPLAT.ply]
        writes FOLDER/mesh.glb, mesh.ply and reference.npz, renders of the splat; without a .ply a toy's is fitted
    python tests/benchmarks/mesh_elsewhere.py compare FOLDER
        in a Python with trimesh, embreex and vtk (not needed by the pack): reads the files, casts rays (trimesh) and
        draws (VTK), and prints PSNR, coverage and the same for the reference upside down and mirrored as a control
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SIDE, RADIUS, FOV, RESOLUTION = 96, 1.5, 49.13, 96
VIEWS = ((0.0, 15.0), (110.0, 15.0), (250.0, 40.0))  # azimuth, elevation


def make(folder: Path, splat: Path | None) -> None:
    where = {"submodule_search_locations": [str(ROOT)]}
    spec = importlib.util.spec_from_file_location("mvpack", ROOT / "__init__.py", **where)
    sys.modules["mvpack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["mvpack"])
    from mvpack.multiview import mesh_files
    from mvpack.multiview.cameras import orbit
    from mvpack.multiview.demo.objects import make_object
    from mvpack.multiview.demo.raycast import render_object
    from mvpack.multiview.splat_mesh import splat_to_mesh
    from mvpack.multiview.splats.fit import FitConfig, fit
    from mvpack.multiview.splats.ply import load_ply, save_ply
    from mvpack.multiview.splats.render import render_gaussians

    if splat is None:
        around = orbit([22.5 * i for i in range(16)], 15.0, RADIUS, FOV)
        toy = render_object(make_object(1_000_003, 0, 3), around, 128)
        gaussians = fit(toy.rgb, around, toy.alpha, FitConfig(iterations=250)).gaussians
    else:
        gaussians = load_ply(splat)
    folder.mkdir(parents=True, exist_ok=True)
    save_ply(gaussians, folder / "splat.ply")
    mesh = splat_to_mesh(gaussians, RESOLUTION)
    saved = (mesh_files.world_to_gltf(mesh.vertices), mesh.faces, mesh_files.srgb_to_linear(mesh.colors))
    mesh_files.write_whole(mesh_files.glb_bytes(*saved), folder / "mesh.glb")
    mesh_files.write_whole(mesh_files.ply_bytes(*saved), folder / "mesh.ply")
    cameras = orbit([a for a, _ in VIEWS], [e for _, e in VIEWS], RADIUS, FOV)
    drawn = render_gaussians(gaussians, cameras, SIDE, SIDE)
    np.savez(folder / "reference.npz", rgb=drawn.features.clamp(0, 1).numpy(), alpha=drawn.alpha[..., 0].numpy())


def to_srgb(linear: np.ndarray) -> np.ndarray:
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055)


def camera_of(azimuth: float, elevation: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Position, right, up and forward in glTF's y-up world: the front camera stands at +z, azimuth grows toward +x."""
    a, e = np.radians(azimuth), np.radians(elevation)
    position = RADIUS * np.array([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)])
    forward = -position / RADIUS
    right = np.array([np.cos(a), 0.0, -np.sin(a)])
    return position, right, np.cross(right, forward), forward


def by_trimesh(mesh) -> np.ndarray:
    """Pictures (N,S,S,4) by casting a ray through every pixel."""
    colors = mesh.visual.vertex_attributes["color"][:, :3].astype(np.float64)
    colors = colors / 255 if colors.max() > 1 else colors
    pictures = []
    for view in VIEWS:
        position, right, up, forward = camera_of(*view)
        grid = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
        u, v = np.meshgrid(grid, grid)
        rays = forward + np.tan(np.radians(FOV) / 2) * (u[..., None] * right - v[..., None] * up)
        where, ray, face = mesh.ray.intersects_location(
            np.tile(position, (SIDE * SIDE, 1)), rays.reshape(-1, 3), multiple_hits=False
        )
        corners = mesh.faces[face]
        a, b, c = (mesh.vertices[corners[:, i]] for i in range(3))
        across = np.cross(b - a, c - a)
        area = (across**2).sum(1)
        shares = [(np.cross(q - p, where - p) * across).sum(1) / area for p, q in ((b, c), (c, a), (a, b))]
        picture = np.concatenate([np.ones((SIDE * SIDE, 3)), np.zeros((SIDE * SIDE, 1))], 1)
        picture[ray, :3] = to_srgb(sum(s[:, None] * colors[corners[:, i]] for i, s in enumerate(shares)))
        picture[ray, 3] = 1
        pictures.append(picture.reshape(SIDE, SIDE, 4))
    return np.stack(pictures)


def by_vtk(path: Path) -> np.ndarray:
    """Pictures by VTK's .ply reader and software OpenGL, without lighting; the .ply's colours are sRGB already."""
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    reader = vtk.vtkPLYReader()
    reader.SetFileName(str(path))
    mapper, actor = vtk.vtkPolyDataMapper(), vtk.vtkActor()
    mapper.SetInputConnection(reader.GetOutputPort())
    actor.SetMapper(mapper)
    actor.GetProperty().LightingOff()
    renderer, window = vtk.vtkRenderer(), vtk.vtkRenderWindow()
    renderer.SetBackground(1, 1, 1)
    renderer.AddActor(actor)
    window.SetOffScreenRendering(1)
    window.SetMultiSamples(0)
    window.SetSize(SIDE, SIDE)
    window.AddRenderer(renderer)
    pictures = []
    for view in VIEWS:
        position, _, up, _ = camera_of(*view)
        camera = renderer.GetActiveCamera()
        camera.SetPosition(*position)
        camera.SetFocalPoint(0, 0, 0)
        camera.SetViewUp(*up)
        camera.SetViewAngle(FOV)
        renderer.ResetCameraClippingRange()
        window.Render()
        grab = vtk.vtkWindowToImageFilter()
        grab.SetInput(window)
        grab.Update()
        pixels = vtk_to_numpy(grab.GetOutput().GetPointData().GetScalars()).reshape(SIDE, SIDE, -1)[::-1, :, :3] / 255
        depth = vtk.vtkWindowToImageFilter()
        depth.SetInput(window)
        depth.SetInputBufferTypeToZBuffer()
        depth.Update()
        z = vtk_to_numpy(depth.GetOutput().GetPointData().GetScalars()).reshape(SIDE, SIDE)[::-1]
        pictures.append(np.concatenate([pixels, (z < 1)[..., None]], 2))
    return np.stack(pictures)


def compare(folder: Path) -> None:
    import trimesh
    from PIL import Image

    reference = np.load(folder / "reference.npz")
    rgb, mask = reference["rgb"].astype(np.float64), reference["alpha"] > 0.5
    (mesh,) = trimesh.load_scene(folder / "mesh.glb").geometry.values()
    pieces = len(trimesh.graph.connected_components(mesh.edges, nodes=np.arange(len(mesh.vertices))))
    print(
        f"trimesh {trimesh.__version__} reads mesh.glb: {len(mesh.vertices)} vertices, {len(mesh.faces)} faces, "
        f"watertight {mesh.is_watertight}, winding consistent {mesh.is_winding_consistent}, Euler {mesh.euler_number}, "
        f"volume {mesh.volume:.5f}, pieces {pieces}"
    )
    shown = {"trimesh": by_trimesh(mesh), "VTK": by_vtk(folder / "mesh.ply")}
    turned = {"as saved": slice(None), "upside down": (slice(None), slice(None, None, -1))}
    turned["mirrored"] = (slice(None), slice(None), slice(None, None, -1))
    for program, pictures in shown.items():
        for name, how in turned.items():
            own, own_mask = rgb[how], mask[how]
            drawn = pictures[..., 3] > 0.5
            both, either = drawn & own_mask, drawn | own_mask
            error = -10 * np.log10(((pictures[..., :3] - own) ** 2).mean())
            inside = np.abs(pictures[..., :3] - own)[both].mean()
            overlap = both.sum() / either.sum()
            print(f"{program}, {name}: PSNR {error:.2f} dB, overlap {overlap:.3f}, colour error {inside:.4f}")
    rows = [np.concatenate(list(p[..., :3]), 1) for p in (rgb, *shown.values())]
    picture = Image.fromarray((np.concatenate(rows).clip(0, 1) * 255).astype(np.uint8))
    picture.resize((picture.width * 2, picture.height * 2)).save(folder / "compared.png")


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    if sys.argv[1] == "make":
        make(folder, Path(sys.argv[3]) if len(sys.argv) > 3 else None)
    else:
        compare(folder)
