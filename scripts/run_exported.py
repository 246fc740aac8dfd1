"""Runs an exported detector with jax alone: python run_exported.py EXPORT_FOLDER IMAGE...

A copy of this file is all that another project needs (with jax, numpy and OpenCV installed).
"""

import json
import pathlib
import sys

import cv2
import numpy as np
from jax import export

folder = pathlib.Path(sys.argv[1])
about = json.loads((folder / "detector.json").read_text())
programs = {}

for path in sys.argv[2:]:
    image = np.asarray(cv2.imread(path, cv2.IMREAD_COLOR_RGB), np.uint8)
    height, width = image.shape[:2]
    short, long = about["resize"]["short_side"], about["resize"]["max_long_side"]
    if max(height, width) / min(height, width) * short > long:
        short = round(long * min(height, width) / max(height, width))
    longer = int(short * max(height, width) / min(height, width))
    h, w = (short, longer) if height <= width else (longer, short)
    fitting = [f for f in about["files"] if f["height"] >= h and f["width"] >= w]
    file = min(fitting, key=lambda f: f["height"] * f["width"])
    canvas = np.zeros((1, file["height"], file["width"], 3), np.uint8)
    canvas[0, :h, :w] = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
    if file["path"] not in programs:
        program = export.deserialize(bytearray((folder / file["path"]).read_bytes()))
        programs[file["path"]] = program.call
    scale = np.array([[h / height, w / width]], np.float32)
    outputs = programs[file["path"]](canvas, np.array([[h, w]], np.int32), scale)
    boxes, scores, labels, is_valid = (np.asarray(output)[0].tolist() for output in outputs)
    for box, score, label, valid in zip(boxes, scores, labels, is_valid, strict=True):
        if valid:
            name = about["class_names"][label]
            found = {"file": path, "class": name, "score": score, "box": box}
            print(json.dumps(found))
