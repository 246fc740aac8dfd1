"""Trains over the stored batches of golden/trajectory and prints the errors as JSON.

Usage: run_trajectory.py FOLDER SPLIT; JAX_ENABLE_X64 decides the type.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from atss_jax.assigners import assign_atss
from atss_jax.geometry.anchors import AnchorGrid
from atss_jax.models import pretrained
from atss_jax.models.config import ModelConfig
from atss_jax.models.detector import DetectorNetwork, frozen_mask, normalize_images
from atss_jax.structures import GroundTruth
from atss_jax.training import optim
from atss_jax.training.config import OptimConfig
from atss_jax.training.losses import detection_losses
from atss_jax.training.targets import assign_targets

SHAPE = (128, 192)
SLOTS = 48


def batches(golden, dtype):
    """The eight batches: normalised images and ground truth."""
    mean = tuple(float(v) for v in golden["pixel_mean_bgr"])
    for b in range(8):
        images = normalize_images(
            golden["images"][b],
            golden["image_hw"][b],
            mean=mean,
            std=(1.0, 1.0, 1.0),
            channel_order="bgr",
        )
        boxes = np.zeros((2, SLOTS, 4), np.float32)
        labels, valid = np.zeros((2, SLOTS), np.int32), np.zeros((2, SLOTS), bool)
        for i in range(2):
            n = len(golden[f"gt_boxes_{b}_{i}"])
            boxes[i, :n] = golden[f"gt_boxes_{b}_{i}"] + np.array([0, 0, 1, 1], np.float32)
            labels[i, :n], valid[i, :n] = golden[f"gt_labels_{b}_{i}"] - 1, True
        yield (
            np.asarray(images).astype(dtype),
            GroundTruth(boxes.astype(dtype), labels, valid),
        )


def train(golden, regression, dtype):
    """Losses, gradient norms, positives per iteration; change of every parameter."""
    config = ModelConfig(width=1 / 16, stem_channels=8, fpn_channels=64, regression=regression)
    model = DetectorNetwork(config, num_classes=10, dtype=dtype)
    grid = AnchorGrid(SHAPE)
    sizes = jnp.array([SHAPE, SHAPE], jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, *SHAPE, 3)), sizes)
    start = jax.tree.map(lambda a: np.zeros(a.shape, dtype), shapes)
    arrays = {k: golden[k].astype(dtype) for k in golden.files if k.startswith("param/")}
    variables = pretrained.insert(arrays, start)
    params, stats = variables["params"], variables["batch_stats"]
    frozen = frozen_mask(params, config)
    solver = OptimConfig(learning_rate=0.01, lr_scaling="none", decay_at=(16 / 24,), warmup_steps=8)
    schedule = optim.make_schedule(solver, 2, 24)
    optimizer = optim.make_optimizer(params, frozen, solver, schedule)

    @jax.jit
    def step(params, state, images, ground_truth):
        targets = assign_targets(assign_atss, grid, sizes, ground_truth)

        def loss_fn(params):
            outputs: Any = model.apply({"params": params, "batch_stats": stats}, images, sizes)
            losses = detection_losses(outputs, targets, grid, regression=regression)
            return losses.total, losses

        gradients, losses = jax.grad(loss_fn, has_aux=True)(params)
        norm = optim.global_norm(gradients, frozen)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, losses, norm

    state, rows = optimizer.init(params), []
    stored = list(batches(golden, dtype))
    for i in range(24):
        params, state, losses, norm = step(params, state, *stored[i % 8])
        rows.append([float(v) for v in (*losses[1:4], norm, losses.num_positives)])
    change = jax.tree.map(lambda a, b: np.asarray(a) - b, params, variables["params"])
    return np.array(rows), change, variables


def compare_changes(change, variables, deltas):
    """Relative error of every trained tensor's change, by our names."""
    start = jax.tree.map(np.zeros_like, variables)
    # Norm constants are not in the file of changes: give the converter neutral ones.
    expected = pretrained.insert(deltas, start)["params"]
    ours, theirs = pretrained.flatten(change), pretrained.flatten(expected)
    errors = {}
    for name, want in theirs.items():
        size = np.linalg.norm(want)
        if size == 0:
            assert not ours[name].any(), name
        else:
            errors[name] = float(np.linalg.norm(ours[name] - want) / size)
    return errors


def main():
    """Runs and prints."""
    folder, split = Path(sys.argv[1]), sys.argv[2]
    golden = np.load(folder / f"trajectory_{split}.npz")
    x64 = jax.config.read("jax_enable_x64")
    dtype = np.float64 if x64 else np.float32
    rows, change, variables = train(golden, "box" if split.endswith("a") else "point", dtype)
    reference = np.load(folder / f"trajectory_{split}_float64_continuous.npz")
    deltas = {k: np.zeros_like(golden[k]) for k in golden.files if k.startswith("param/")}
    for name in list(deltas):
        if name.endswith("running_var"):
            deltas[name] = np.ones_like(deltas[name])
    if x64:
        found = {f"param/{k[6:]}": reference[k] for k in reference.files if k[:6] == "delta/"}
    else:
        final = np.load(folder / f"trajectory_{split}_final_continuous.npz")
        found = {f"param/{k[6:]}": final[k] - golden[f"param/{k[6:]}"] for k in final.files}
    deltas |= found
    errors = compare_changes(change, variables, deltas)
    target = reference["losses"] if x64 else golden["losses_continuous"]
    norm_target = reference["grad_norm"] if x64 else golden["grad_norm_continuous"]
    relative = np.abs(rows[:, :3] - target) / np.abs(target)
    spread = np.maximum.accumulate(golden["float32_spread"][:, :3].max(-1))
    tolerance = np.maximum(1e-5, 10 * spread)
    worst = max(errors, key=lambda name: np.nan_to_num(errors[name], nan=np.inf))
    report = {
        "losses": relative.max(),
        "losses_over_tolerance": (relative / tolerance[:, None]).max(),
        "grad_norm": (np.abs(rows[:, 3] - norm_target) / norm_target).max(),
        "num_pos": np.abs(rows[:, 4] - golden["num_pos_continuous"]).max(),
        "worst_delta": errors[worst],
        "worst_delta_name": worst,
        "worst_head_delta": np.max([v for k, v in errors.items() if k.startswith("head/")]),
        "median_delta": float(np.median(list(errors.values()))),
    }
    print(json.dumps({k: v if isinstance(v, str) else float(v) for k, v in report.items()}))


if __name__ == "__main__":
    main()
