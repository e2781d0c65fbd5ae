"""The harness itself: a test of ours that passes because the harness swallowed a failure would be worth nothing."""

from __future__ import annotations

import threading
import time

import pytest
from comfy_host import HostError, HostStartError, Interrupted, NodeFailed, PromptRejected, workflow_to_prompt


def node(kind, /, **inputs):
    return {"class_type": kind, "inputs": inputs}


def test_runs_and_reports_progress(host):
    events = []
    result = host.run({"1": node("TestWait", steps=4, salt=time.time_ns() % 10**9)}, on_progress=events.append)
    assert result.outputs["1"]["text"] == ["waited 4"]
    assert result.executed == ["1"]
    assert [e.value for e in events if e.value is not None][-1] == 4
    assert all(e.node_id == "1" for e in events)


def test_second_run_comes_from_the_cache(host):
    prompt = {"1": node("TestWait", steps=1, salt=time.time_ns() % 10**9)}
    host.run(prompt)
    again = host.run(prompt)
    assert again.cached == ["1"]
    assert again.executed == []
    assert again.outputs["1"]["text"] == ["waited 1"]


def test_node_error_carries_type_and_message(host):
    with pytest.raises(NodeFailed) as caught:
        host.run({"7": node("TestFail", message="views 3, cameras 4")})
    assert caught.value.exception_message == "views 3, cameras 4"
    assert caught.value.exception_type == "ValueError"
    assert caught.value.node_id == "7"
    assert caught.value.node_type == "TestFail"
    assert host.alive()


def test_refused_prompts_name_node_and_input(host):
    with pytest.raises(PromptRejected, match="steps"):
        host.run({"1": node("TestWait", steps=0, salt=0)})
    with pytest.raises(PromptRejected, match="NoSuchNode"):
        host.run({"1": node("NoSuchNode")})
    # One good and one bad output: the host would run the good one; we refuse the whole.
    with pytest.raises(PromptRejected, match="node 2"):
        host.queue({"1": node("TestWait", steps=1, salt=1), "2": node("TestWait", steps=0, salt=2)})


def test_validate_runs_nothing(host):
    host.validate({"1": node("TestWait", steps=100000, salt=3)})
    assert host.queued() == []
    with pytest.raises(PromptRejected, match="steps"):
        host.validate({"1": node("TestWait", steps=0, salt=0)})


def test_interrupt_then_next(host):
    with pytest.raises(Interrupted):
        host.run({"1": node("TestWait", steps=100000, salt=4)}, on_progress=lambda event: host.interrupt())
    assert host.run({"1": node("TestWait", steps=1, salt=time.time_ns() % 10**9)}).executed == ["1"]


def test_a_prompt_that_takes_too_long_is_interrupted(host):
    with pytest.raises(HostError, match="longer than allowed"):
        host.run({"1": node("TestWait", steps=100000, salt=5)}, timeout=1.5)
    assert host.queued() == []


def test_inspect_node(host):
    result = host.run(
        {
            "1": node("EmptyImage", width=16, height=8, batch_size=2, color=0xFF0000),
            "2": node("TestInspect", value=["1", 0]),
        }
    )
    report = result.outputs["2"]["report"][0]
    assert report["shape"] == [2, 8, 16, 3]
    assert report["max"] == 1.0


def test_upload_and_download(host, tmp_path):
    from PIL import Image

    path = tmp_path / "two by three.png"
    Image.new("RGB", (3, 2), (255, 0, 0)).save(path)
    name = host.upload_image(path)
    result = host.run(
        {"1": node("LoadImage", image=name), "2": node("SaveImage", images=["1", 0], filename_prefix="harness")}
    )
    (file,) = result.files("2")
    assert host.output_path(file).read_bytes() == host.download(file)
    with Image.open(host.output_path(file)) as picture:
        assert picture.size == (3, 2)


def test_core_workflow_converts(host, object_info):
    """A small UI workflow with core nodes, one muted branch and a reroute, written by hand."""
    workflow = {
        "nodes": [
            {
                "id": 1,
                "type": "EmptyImage",
                "widgets_values": [32, 16, 1, 255],
                "inputs": [],
                "mode": 0,
                "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}],
            },
            {
                "id": 2,
                "type": "Reroute",
                "inputs": [{"name": "", "type": "*", "link": 1}],
                "mode": 0,
                "outputs": [{"name": "", "type": "IMAGE", "links": [2, 3]}],
            },
            {
                "id": 3,
                "type": "PreviewImage",
                "inputs": [{"name": "images", "type": "IMAGE", "link": 2}],
                "outputs": [],
                "mode": 0,
                "widgets_values": [],
            },
            {
                "id": 4,
                "type": "PreviewImage",
                "inputs": [{"name": "images", "type": "IMAGE", "link": 3}],
                "outputs": [],
                "mode": 2,
                "widgets_values": [],
            },
        ],
        "links": [[1, 1, 0, 2, 0, "*"], [2, 2, 0, 3, 0, "IMAGE"], [3, 2, 0, 4, 0, "IMAGE"]],
    }
    prompt = workflow_to_prompt(workflow, object_info)
    assert prompt["3"]["inputs"] == {"images": ["1", 0]}
    assert prompt["1"]["inputs"] == {"width": 32, "height": 16, "batch_size": 1, "color": 255}
    assert set(prompt) == {"1", "3"}
    assert list(host.run(prompt).files("3"))


@pytest.mark.slow  # starts two more hosts
def test_start_failures_are_told(host_factory, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('the pack is broken on purpose')\n")
    with pytest.raises(HostStartError, match="broken on purpose"):
        host_factory(pack=broken, extra_packs={}).start()
    with pytest.raises(HostStartError, match="exit code"):
        host_factory(extra_args=["--no-such-option"], extra_packs={}).start()


@pytest.mark.slow  # starts one more host, and kills it
def test_a_host_that_dies_while_running_is_told(host_factory):
    comfy = host_factory()
    comfy.start()
    timer = threading.Timer(1.0, comfy.process.kill)
    timer.start()
    with pytest.raises(HostError, match="comfyui.log"):
        comfy.run({"1": node("TestWait", steps=100000, salt=6)}, timeout=60)
    timer.join()
    comfy.process.wait(timeout=30)
