"""Banks: what they contain, when their key changes, and files that are damaged or foreign."""

import pytest
import torch
from mvpack.multiview.cameras import orbit
from mvpack.multiview.demo import bank as banks
from mvpack.multiview.demo.bank import Bank, bank_key, bank_path, build_bank, load_bank, reference_camera, save_bank
from mvpack.multiview.demo.objects import make_object
from mvpack.multiview.demo.raycast import render_object
from safetensors.torch import save_file

CAMS = orbit([60.0 * i for i in range(6)], 15.0, 1.5, 49.13)


@pytest.fixture(scope="module")
def bank() -> Bank:
    return build_bank(CAMS, 16, 2, 3, seed=4)


def test_contents_are_the_objects_in_every_view(bank):
    assert bank.views.shape == (6, 6, 16, 16, 3) and bank.views.dtype == torch.uint8
    assert bank.family.tolist() == [0, 0, 0, 1, 1, 1] and bank.variant.tolist() == [0, 1, 2, 0, 1, 2]
    for k in (1, 5):
        spec = make_object(int(bank.seeds[k]), int(bank.variant[k]), 3)
        expected = (render_object(spec, CAMS, 16).rgb * 255).round().to(torch.uint8)
        assert torch.equal(bank.views[k], expected)
    assert bank.member(1, 2) == 5


def test_references_are_shared_in_a_family_and_equal_the_front_view(bank):
    assert torch.equal(bank.references[0], bank.references[2])
    assert torch.equal(bank.references, bank.views[:, 0])
    assert not torch.equal(bank.references[0], bank.references[3])


def test_the_reference_is_seen_from_azimuth_0_even_if_the_orbit_starts_elsewhere():
    cams = orbit([90.0, 210.0, 330.0], 10.0, 1.6, 40.0)
    front = reference_camera(cams)
    assert front.azimuths()[0] == pytest.approx(0.0, abs=1e-4)
    assert front.elevations()[0] == pytest.approx(10.0, abs=1e-3) and front.radii()[0] == pytest.approx(1.6, abs=1e-5)
    assert torch.allclose(front.intrinsics, cams.intrinsics[:1])


def test_families_of_a_bank_are_of_different_kinds():
    kinds = [make_object(s).name for s in banks.family_seeds(0, 8)]
    assert len(set(kinds)) == 8


def test_progress_is_reported_and_can_cancel():
    seen = []
    build_bank(CAMS.subset([0]), 8, 1, 2, on_step=lambda i, n: seen.append((i, n)))
    assert seen == [(0, 2), (1, 2), (2, 2)]

    class Stop(Exception):
        pass

    def stop(i, n):
        if i == 1:
            raise Stop

    with pytest.raises(Stop):
        build_bank(CAMS.subset([0]), 8, 1, 2, on_step=stop)


def test_the_key_changes_with_everything_that_changes_the_pictures(monkeypatch):
    base = bank_key(CAMS, 64, 4, 6, 0)
    assert base == bank_key(CAMS, 64, 4, 6, 0)
    others = [
        bank_key(orbit([60.0 * i for i in range(6)], 16.0, 1.5, 49.13), 64, 4, 6, 0),
        bank_key(orbit([60.0 * i for i in range(6)], 15.0, 1.5, 50.0), 64, 4, 6, 0),
        bank_key(CAMS, 65, 4, 6, 0),
        bank_key(CAMS, 64, 5, 6, 0),
        bank_key(CAMS, 64, 4, 5, 0),
        bank_key(CAMS, 64, 4, 6, 1),
    ]
    monkeypatch.setattr(banks, "GENERATOR_VERSION", banks.GENERATOR_VERSION + 1)
    others.append(bank_key(CAMS, 64, 4, 6, 0))
    assert len({base, *others}) == 8


def test_files_come_back_unchanged(bank, tmp_path):
    path = save_bank(bank, bank_path(tmp_path / "new", bank.key))
    assert [p.name for p in path.parent.iterdir()] == [f"bank-{bank.key}.safetensors"]
    back = load_bank(path)
    for name in ("views", "references", "family", "variant", "seeds"):
        assert torch.equal(getattr(back, name), getattr(bank, name))
    assert torch.equal(back.cameras.c2w, CAMS.c2w) and torch.equal(back.cameras.intrinsics, CAMS.intrinsics)
    assert (back.cameras.closed, back.cameras.input_view, back.cameras.name) == (
        CAMS.closed,
        CAMS.input_view,
        CAMS.name,
    )
    assert back.key == bank.key


def test_a_failed_write_leaves_the_old_file(bank, tmp_path, monkeypatch):
    path = save_bank(bank, tmp_path / "b.safetensors")
    before = path.read_bytes()

    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_bank(bank, path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_damaged_and_foreign_files_are_named(bank, tmp_path):
    with pytest.raises(ValueError, match="no bank file"):
        load_bank(tmp_path / "none.safetensors")
    path = save_bank(bank, tmp_path / "b.safetensors")
    data = path.read_bytes()
    for length in (0, 5, 200, len(data) - 7):
        (tmp_path / "cut.safetensors").write_bytes(data[:length])
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            load_bank(tmp_path / "cut.safetensors")
    save_file({"x": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="not a demo bank"):
        load_bank(tmp_path / "foreign.safetensors")
    about = {"kind": banks.FILE_KIND}
    tensors = {n: getattr(bank, n) for n in ("views", "references", "family", "variant", "seeds")}
    tensors |= {"c2w": CAMS.c2w, "intrinsics": CAMS.intrinsics}
    save_file({k: v for k, v in tensors.items() if k != "family"}, tmp_path / "lacks.safetensors", metadata=about)
    with pytest.raises(ValueError, match="lacks family"):
        load_bank(tmp_path / "lacks.safetensors")
    for name, bad in (
        ("references", bank.references[:2]),
        ("views", bank.views[0]),
        ("c2w", CAMS.c2w[:3]),
        ("views", bank.views.float()),
    ):
        save_file({**tensors, name: bad.contiguous()}, tmp_path / "shape.safetensors", metadata=about)
        with pytest.raises(ValueError, match="wrong shape or type"):
            load_bank(tmp_path / "shape.safetensors")


@pytest.mark.parametrize("elevation, radius", [(50.0, 1.5), (-20.0, 1.5), (15.0, 1.0)])
def test_an_input_view_that_would_see_the_back_is_refused(elevation, radius):
    with pytest.raises(ValueError, match="between -5 and 35"):
        build_bank(orbit([0.0, 180.0], elevation, radius, 49.13), 16)


@pytest.mark.parametrize("change", [{"size": 4}, {"families": 0}, {"variants": 17}, {"seed": -1}])
def test_wrong_numbers_are_refused_before_any_work(change):
    with pytest.raises(ValueError, match="A bank needs"):
        build_bank(CAMS, **{"size": 16, "families": 1, "variants": 1, "seed": 0, **change})
