"""ATSS detectors in JAX (Zhang et al., CVPR 2020, arXiv 1912.02424).

The map, in the order in which the data flows:

- `structures`: the nouns; read it first. `typing`: the dimension letters.
- `data/`: COCO JSON, ArrayRecord -> batch plan -> images -> `Batch`.
- `models/`: ResNet, FPN, head -> `HeadOutputs`.
- `pyramid`, `anchors`, `boxes`: geometry. `assigners/`: `GroundTruth` -> `Assignment`.
- `targets`, `losses`: -> `Targets`, `Losses`. `optim`, `train`: the step and the loop.
- `nms`, `postprocess`, `coco_metrics`, `evaluate`: -> `Detections` -> AP.
- `predict`, `export`, `main`: what people run.
"""

__version__ = "0.1.0"
