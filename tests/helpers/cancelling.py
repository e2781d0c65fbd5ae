"""Cancelling a prompt in the running host, and what must then hold."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from comfy_host import ComfyHost, Interrupted, Progress


def files(host: ComfyHost) -> dict[Path, int]:
    """Every file a node may write, with its size."""
    folders = ("output", "models", "input")
    return {p: p.stat().st_size for f in folders for p in (host.base / f).rglob("*") if p.is_file()}


def cancel_midway(host: ComfyHost, prompt: dict, node_id: str, after: int = 2) -> Progress:
    """Run a prompt and interrupt it when `node_id` has reported `after` steps; returns the node's last progress.

    Fails when the prompt ends by itself, when a file was left behind, or when the server does not run a prompt next.
    """
    before, seen = files(host), []

    def watch(event: Progress) -> None:
        if event.node_id == node_id and event.value is not None:
            seen.append(event)
            if event.value >= after:
                host.interrupt()

    with pytest.raises(Interrupted):
        host.run(prompt, on_progress=watch)
    assert files(host) == before, "the cancelled prompt left files behind"
    following = host.run({"1": {"class_type": "TestWait", "inputs": {"steps": 1, "salt": time.time_ns() % 10**9}}})
    assert following.executed == ["1"]
    return seen[-1]
