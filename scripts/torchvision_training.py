"""torchvision's FCOS R-50 as the other side of `bench_train.py`, in a process of its own.

The process is this file, run by an interpreter that has torch and torchvision; it needs no JAX.
"""

import json
import os
import subprocess
import sys
import time

from peak_memory import peak_memory_mib

NUM_CLASSES = 80
BOXES_PER_IMAGE = 7
"""Objects of a synthetic image: COCO's average."""


class TorchvisionTraining:
    """torchvision's FCOS R-50 in a process of its own, idle but when it is asked to run.

    Args:
      python: interpreter with torch and torchvision.
      shape: (H, W) of the images.
      batch: images per step.
    """

    def __init__(self, python: str, shape: tuple[int, int], batch: int):
        command = [python, __file__, *map(str, (*shape, batch))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.peak_rss_mib = 0.0
        self.run(1)

    def run(self, steps: int) -> list[float]:
        """Seconds of each of so many steps."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(steps, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the torchvision process ended; its error is above.")
        seconds, self.peak_rss_mib = json.loads(line)
        return seconds

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def answer_steps(height: int, width: int, batch: int) -> None:
    """Runs so many steps as each line of stdin says; prints [seconds, peak MiB] as JSON.

    FCOS with frozen batch norm, stem and C2 frozen, SGD with momentum: our recipe's counterpart.
    """
    import torch  # pyright: ignore[reportMissingImports]
    from torchvision.models import resnet50  # pyright: ignore[reportMissingImports]
    from torchvision.models.detection import FCOS  # pyright: ignore[reportMissingImports]
    from torchvision.models.detection.backbone_utils import (  # pyright: ignore[reportMissingImports]
        _resnet_fpn_extractor,
    )
    from torchvision.ops import misc  # pyright: ignore[reportMissingImports]
    from torchvision.ops.feature_pyramid_network import (  # pyright: ignore[reportMissingImports]
        LastLevelP6P7,
    )

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_flush_denormal(True)  # as XLA does; random weights without norms make denormals
    torch.manual_seed(0)
    body = resnet50(norm_layer=misc.FrozenBatchNorm2d)
    pyramid = _resnet_fpn_extractor(
        body, 3, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    sides = {"min_size": min(height, width), "max_size": max(height, width)}
    model = FCOS(pyramid, NUM_CLASSES + 1, **sides).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-4, momentum=0.9, weight_decay=1e-4)
    images = [torch.rand(3, height, width) for _ in range(batch)]
    scale = torch.tensor([width, height, width, height])
    targets = []
    for _ in range(batch):
        corner, size = (
            torch.rand(BOXES_PER_IMAGE, 2) * 0.4,
            0.1 + torch.rand(BOXES_PER_IMAGE, 2) / 2,
        )
        boxes = torch.cat([corner, corner + size], 1) * scale
        labels = torch.randint(1, NUM_CLASSES + 1, (BOXES_PER_IMAGE,))
        targets.append({"boxes": boxes, "labels": labels})
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            started = time.perf_counter()
            optimizer.zero_grad()
            torch.stack(list(model(images, targets).values())).sum().backward()
            optimizer.step()
            seconds.append(time.perf_counter() - started)
        print(json.dumps([seconds, peak_memory_mib()]), flush=True)


if __name__ == "__main__":
    answer_steps(*map(int, sys.argv[1:]))
