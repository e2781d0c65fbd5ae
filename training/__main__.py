"""Start a training script: `python training depth --minutes 25`, from anywhere.

The pack is imported under a name of its own, as ComfyUI does it, so that its folders (nodes/, tests/) shadow nobody's
modules; its root __init__.py, which needs ComfyUI, is not executed.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

SCRIPTS = {
    "render": "pool",
    "depth": "train_depth",
    "autoencoder": "train_autoencoder",
    "video": "train_video_unet",
    "pose": "train_pose_unet",
    "gate": "gate",
    "joint": "train_joint",
    "joint-gate": "joint_gate",
    "carry": "comfy_classes",
}


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in SCRIPTS:
        print(f"usage: python training {{{','.join(SCRIPTS)}}} [options]; add --help for a script's options")
        return 2
    pack = types.ModuleType("mvpack")
    pack.__path__ = [str(Path(__file__).resolve().parent.parent)]
    sys.modules["mvpack"] = pack
    return importlib.import_module(f"mvpack.training.{SCRIPTS[sys.argv[1]]}").main(sys.argv[2:]) or 0


if __name__ == "__main__":
    sys.exit(main())
