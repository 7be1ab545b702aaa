"""Starts a ComfyUI's main.py on a machine whose torchvision does not fit its torch: python launch_host.py FOLDER ARGS.

A CUDA build of torchvision beside a CPU torch cannot load its operators and fails at import; two schemas cure that.
"""

from __future__ import annotations

import os
import runpy
import sys

import torch


def define_missing_operators() -> torch.library.Library | None:
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


if __name__ == "__main__":
    held = define_missing_operators()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    folder = sys.argv[1]
    sys.argv = [os.path.join(folder, "main.py"), *sys.argv[2:]]
    os.chdir(folder)
    sys.path.insert(0, folder)
    runpy.run_path(sys.argv[0], run_name="__main__")
