"""Pictures and curves of docs/analytic_model.md: run `python -m scripts.demo_model_pictures` in the repository's root.

Takes a few minutes on one CPU core and prints every figure that the page quotes. Deterministic.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from multiview.cameras import orbit
from multiview.demo.analytic import AnalyticModel, AnalyticOptions
from multiview.demo.bank import Bank, bank_key, bank_path, build_bank, load_bank, save_bank
from multiview.demo.measure import Verdict, judge, telling_views
from multiview.demo.objects import KINDS, make_object
from multiview.demo.raycast import render_object

CAMERAS = orbit([22.5 * i for i in range(16)], 15.0, 1.5, 49.13)
STEPS = 18
COLORS = ((200, 60, 60), (60, 120, 200), (60, 150, 80), (150, 90, 190))


def sample(bank: Bank, options: AnalyticOptions, family: int, seed: int) -> torch.Tensor:
    """(N,H,W,3) in [0,1]: Euler steps of the probability-flow ODE on Karras noise levels 700..0.02."""
    n, size = bank.views.shape[1:3]
    model = AnalyticModel(bank, options)
    reference = bank.references[bank.member(family, 0)].movedim(-1, 0).float() / 127.5 - 1
    sigmas = [*(torch.linspace(700 ** (1 / 7), 0.02 ** (1 / 7), STEPS) ** 7).tolist(), 0.0]
    x = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * sigmas[0]
    for now, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        denoised = model.denoise(x, now, reference)
        x = denoised + (x - denoised) * (after / now)
    return (x / 2 + 0.5).clamp(0, 1).movedim(1, -1)


def cached_bank(folder: Path, size: int, families: int) -> Bank:
    path = bank_path(folder, bank_key(CAMERAS, size, families, 6, 0))
    if not path.is_file():
        save_bank(build_bank(CAMERAS, size, families, 6, 0), path)
    return load_bank(path)


def sheet(rows: list[list[torch.Tensor]], path: Path) -> None:
    """Rows of equally large pictures (H,W,3) in [0,1] as one JPEG."""
    picture = torch.cat([torch.cat(row, dim=1) for row in rows], dim=0)
    Image.fromarray((picture * 255).round().clamp(0, 255).to(torch.uint8).numpy()).save(path, quality=88)


def families_sheet(path: Path) -> None:
    """Five families: the front, then the backs of six variants."""
    seeds = {}
    for seed in range(60):
        seeds.setdefault(make_object(seed).name, seed)
    cams = orbit([0.0, 160.0], 15.0, 1.5, 49.13)
    rows = []
    for kind in ("dog", "robot", "owl", "cottage", "monster"):
        shots = [render_object(make_object(seeds[kind], v), cams, 120, 3).rgb for v in range(6)]
        rows.append([shots[0][0], *(shot[1] for shot in shots)])
    sheet(rows, path)


def kinds_sheet(path: Path) -> None:
    """Fronts, sides and backs of every kind."""
    seeds = {}
    for seed in range(200):
        seeds.setdefault(make_object(seed).name, seed)
    cams = orbit([20.0, 180.0], 15.0, 1.5, 49.13)
    shots = [list(render_object(make_object(seeds[k], 2), cams, 104, 3).rgb) for k in KINDS]
    sheet([sum(shots[i : i + 4], []) for i in range(0, len(shots), 4)], path)


def samples_sheet(bank: Bank, options: AnalyticOptions, families: list[int], path: Path) -> None:
    rows = []
    for family in families:
        views = sample(bank, options, family, 1)
        rows.append(list(views[::2, 12:-12, 16:-16]))
        print(f"  {path.name}, family {family}: {describe(judge(views, bank, family))}")
    sheet(rows, path)


def describe(v: Verdict) -> str:
    return (
        f"agreement {v.agreement:.2f}, second faces {v.second_faces}, nearest object {v.object_psnr:.1f} dB, "
        f"nearest picture per view {v.view_psnr:.1f} dB"
    )


def average(bank: Bank, options: AnalyticOptions, runs: list[tuple[int, int]]) -> dict[str, float]:
    found = [judge(sample(bank, options, family, seed), bank, family) for family, seed in runs]
    names = ("agreement", "second_faces", "object_psnr", "view_psnr")
    return {name: sum(float(getattr(v, name)) for v in found) / len(found) for name in names}


def chart(path: Path, title: str, labels: list[str], series: dict[str, list[float]], top: float, unit: str) -> None:
    """A line chart with evenly spaced, labelled x positions and y from 0 to top."""
    width, height, left, right, upper, lower = 640, 360, 60, 150, 40, 50
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    draw.text((left, 12), title, fill="black", font_size=15)

    def at(i: int, value: float) -> tuple[float, float]:
        x = left + (width - left - right) * i / max(len(labels) - 1, 1)
        return x, height - lower - (height - upper - lower) * min(value, top) / top

    for step in range(5):
        y = at(0, top * step / 4)[1]
        draw.line([(left, y), (width - right, y)], fill=(225, 225, 225))
        draw.text((8, y - 8), f"{top * step / 4:g}{unit}", fill=(90, 90, 90), font_size=12)
    for i, label in enumerate(labels):
        draw.text((at(i, 0)[0] - 10, height - lower + 8), label, fill=(90, 90, 90), font_size=12)
    for values, color in zip(series.values(), COLORS, strict=False):
        points = [at(i, v) for i, v in enumerate(values)]
        draw.line(points, fill=color, width=3)
        for x, y in points:
            draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=color)
    for i, (name, color) in enumerate(zip(series, COLORS, strict=False)):
        draw.rectangle([width - right + 16, upper + 22 * i + 4, width - right + 28, upper + 22 * i + 16], fill=color)
        draw.text((width - right + 34, upper + 22 * i + 1), name, fill="black", font_size=13)
    image.save(path, optimize=True)


def curves(bank: Bank, out: Path) -> None:
    """Agreement and fidelity over kappa and over the window, at the small bank's size."""
    runs = [(family, seed) for family in range(3) for seed in range(2)]
    kappas, windows = [0.0, 0.03, 0.1, 0.3, 1.0], [9, 15, 23, 31, 47, 0]
    table = {}
    for window in (15, 31, 0):
        for kappa in kappas:
            table[window, kappa] = average(bank, AnalyticOptions(window, kappa), runs)
    for window in windows:
        if (window, 1.0) not in table:
            table[window, 1.0] = average(bank, AnalyticOptions(window, 1.0), runs)
    chart(
        out / "agreement_over_kappa.png",
        f"Views that agree on one variant ({bank.views.shape[2]} px)",
        [f"{k:g}" for k in kappas],
        {_window_name(w): [table[w, k]["agreement"] for k in kappas] for w in (15, 31, 0)},
        1.0,
        "",
    )
    chart(
        out / "fidelity_over_window.png",
        f"Distance to the nearest whole object, kappa 1 ({bank.views.shape[2]} px)",
        [_window_name(w).removeprefix("window ") for w in windows],
        {"nearest object": [table[w, 1.0]["object_psnr"] for w in windows]},
        100.0,
        " dB",
    )
    print("| window | kappa | agreement | nearest object, dB | nearest picture per view, dB |\n|---|---|---|---|---|")
    for (window, kappa), row in sorted(table.items(), key=lambda item: (item[0][0] or 999, item[0][1])):
        values = f"{row['agreement']:.2f} | {row['object_psnr']:.1f} | {row['view_psnr']:.1f}"
        print(f"| {_window_name(window).removeprefix('window ')} | {kappa:g} | {values} |")
    print("| front bias (whole picture, kappa 0) | second faces per object |\n|---|---|")
    for bias in (0.0, 0.05, 0.1, 0.3):
        print(f"| {bias:g} | {average(bank, AnalyticOptions(0, 0.0, bias), runs)['second_faces']:.1f} |")


def _window_name(window: int) -> str:
    return f"window {window}" if window else "window whole"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/demo_model"))
    parser.add_argument("--banks", type=Path, default=Path("output/banks"), help="where built banks are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    kinds_sheet(out / "kinds.jpg")
    families_sheet(out / "families.jpg")
    large, small = cached_bank(arguments.banks, 128, 4), cached_bank(arguments.banks, 64, 4)
    print("views that tell variants apart:", [int(telling_views(large, f).sum()) for f in range(4)])
    chosen = [0, 1, 2]
    samples_sheet(large, AnalyticOptions(0, 1.0, 0.0), chosen, out / "consistent.jpg")
    samples_sheet(large, AnalyticOptions(63, 0.02, 0.0), chosen, out / "contradictory.jpg")
    samples_sheet(large, AnalyticOptions(31, 0.0, 0.0), chosen, out / "patches.jpg")
    samples_sheet(large, AnalyticOptions(63, 0.02, 0.3), chosen, out / "second_faces.jpg")
    curves(small, out)


if __name__ == "__main__":
    main()
