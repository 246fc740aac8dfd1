"""ATSS detectors in JAX (Zhang et al., CVPR 2020, arXiv 1912.02424).

The map, in the order in which the data flows:

- `structures`: the nouns; read it first. `typing`: the dimension letters.
- `data/`: COCO JSON, ArrayRecord -> batch plan -> images -> `Batch`.
- `models/`: ResNet, FPN, head -> `HeadOutputs`.
- `geometry/`: pyramid, anchors, boxes, NMS. `assigners/`: `GroundTruth` -> `Assignment`.
- `training/`: targets, losses, optimizer, the step.
- `evaluation/`: `HeadOutputs` -> `Detections` -> AP.
- `runtime/`: devices, compiled programs, checkpoints, metric files. `drawing/`: pictures, curves.
- `run/`: the recipe as a whole and every mode of the command line, `main`.
"""

__version__ = "0.1.0"
