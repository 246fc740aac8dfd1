"""The whole network: shapes, settings, independence of the bucket, frozen parts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atss_jax.config import field_infos
from atss_jax.errors import UserError
from atss_jax.geometry import pyramid
from atss_jax.models.backbones import BACKBONES
from atss_jax.models.config import ModelConfig
from atss_jax.models.detector import DetectorNetwork, frozen_mask, normalize_images

SMALL = {"width": 0.125, "fpn_channels": 32, "head_convs": 1, "frozen_stages": 0}


def small(num_anchors=1, **fields):
    """A network of 3 classes."""
    values: Any = SMALL | fields
    if not values["backbone"].startswith("convnext"):
        values.setdefault("stem_channels", 8)
    return DetectorNetwork(ModelConfig(**values), 3, num_anchors)


def random_variables(model, images, sizes, seed=0):
    """Random numbers for everything: biases and constants off zero, so that a lost mask shows."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var", "level_scale", "layer_scale"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 100
        return rng.normal(0, 1 / np.sqrt(fan_in), leaf.shape).astype(np.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(seed), images, sizes)
    return jax.tree_util.tree_map_with_path(draw, shapes)


def run(model, images, sizes, *, train=False):
    variables = random_variables(model, images, sizes)
    apply = jax.jit(model.apply, static_argnames="train")
    return variables, apply(variables, images, sizes, train=train)


def test_shapes():
    model = small(backbone="resnet34", num_anchors=2)
    images = jnp.zeros((2, 64, 96, 3))
    _, out = run(model, images, jnp.array([[64, 96], [40, 70]]))
    for (h, w), cls, box, center in zip(
        pyramid.level_shapes((64, 96)), *out[:2], out.centerness_logits, strict=True
    ):
        assert cls.shape == (2, h, w, 2, 3)
        assert box.shape == (2, h, w, 2, 4)
        assert center.shape == (2, h, w, 2)


@pytest.mark.parametrize(
    ("backbone", "norm", "tolerance"),
    [
        ("resnet18", "group_norm", 1e-4),
        ("resnet50", "frozen_bn", 1e-5),
        ("convnext_tiny", "frozen_bn", 1e-5),
    ],
)
@pytest.mark.slow
def test_bucket_does_not_matter(backbone, norm, tolerance):
    """The same image in a larger bucket, beside noise that must not be read."""
    model = small(backbone=backbone, backbone_norm=norm)
    sizes = jnp.array([[70, 100]])  # own region 96 x 128
    image = np.zeros((1, 96, 128, 3), np.float32)
    image[:, :70, :100] = np.random.default_rng(1).normal(size=(1, 70, 100, 3))
    padded = np.zeros((1, 160, 224, 3), np.float32)
    padded[:, :96, :128] = image
    variables, alone = run(model, jnp.asarray(image), sizes)
    apply = jax.jit(model.apply, static_argnames="train")
    in_bucket = apply(variables, jnp.asarray(padded), sizes)
    own = pyramid.level_shapes((96, 128))
    for ours, theirs in zip(jax.tree.leaves(alone), jax.tree.leaves(in_bucket), strict=True):
        h, w = ours.shape[1:3]
        assert (h, w) in own
        np.testing.assert_allclose(theirs[:, :h, :w], ours, atol=tolerance)


@pytest.mark.slow
def test_batch_norm_statistics_do_not_see_the_padding():
    model = small(backbone="resnet18", backbone_norm="batch_norm")
    image = np.random.default_rng(0).normal(size=(1, 64, 96, 3)).astype(np.float32)
    padded = np.zeros((1, 96, 128, 3), np.float32)
    padded[:, :64, :96] = image
    sizes = jnp.array([[64, 96]])
    variables, _ = run(model, jnp.asarray(image), sizes)
    results = []
    for x in (image, padded):
        _, updates = jax.jit(
            lambda v, x: model.apply(v, x, sizes, train=True, mutable=["batch_stats"])
        )(variables, jnp.asarray(x))
        results.append(updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *results)
    moved = jax.tree.map(
        lambda a, b: float(jnp.max(jnp.abs(a - b))),
        results[0]["batch_stats"],
        variables["batch_stats"],
    )
    assert min(jax.tree.leaves(moved)) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "trained"),
    [("resnet18", "layer2_0"), ("convnext_tiny", "layer2_conv")],
)
def test_frozen_parts(backbone, trained):
    """The network stops the gradients of exactly the parameters that the mask calls frozen."""
    model = small(backbone=backbone, frozen_stages=2)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 64, 96, 3)), jnp.float32)
    sizes = jnp.array([[64, 96]])
    variables, _ = run(model, images, sizes)

    def loss(params):
        out = model.apply({**variables, "params": params}, images, sizes)
        return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(out))

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    frozen = frozen_mask(variables["params"], model.config)
    is_zero = jax.tree.map(lambda g: not bool(jnp.any(g)), gradients)
    assert frozen["backbone"] == is_zero["backbone"]
    assert all(jax.tree.leaves(frozen["backbone"]["layer1_1"]))
    assert not any(jax.tree.leaves(frozen["backbone"][trained]))
    assert not any(jax.tree.leaves((frozen["fpn"], frozen["head"])))
    trains_all = small(backbone=backbone, frozen_stages=0).config
    assert not any(jax.tree.leaves(frozen_mask(variables["params"], trains_all)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "norm"), [("resnet18", "batch_norm"), ("convnext_tiny", "frozen_bn")]
)
def test_remat_changes_no_gradient(backbone, norm):
    """Without GroupNorm, which at P7's one cell makes much of rounding."""
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 96, 3)), jnp.float32)
    sizes = jnp.array([[64, 96], [50, 70]])
    models = [
        small(backbone=backbone, backbone_norm=norm, remat=remat, head_norm="none")
        for remat in ("none", "blocks")
    ]
    variables = random_variables(models[0], images, sizes)

    def loss(params, model):
        state = {**variables, "params": params}
        out, updates = model.apply(state, images, sizes, train=True, mutable=["batch_stats"])
        return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(out)), updates

    gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    kept, recomputed = (gradient(variables["params"], model) for model in models)
    assert jax.tree.structure(kept) == jax.tree.structure(recomputed)
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(recomputed), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5 * np.abs(a).max())
    size = [len(gradient.lower(variables["params"], m).as_text()) for m in models]
    assert size[1] > size[0], "nothing is recomputed"


def test_wrong_settings_are_refused():
    """Words are checked by `ModelConfig`; what needs the other parts or the images, here."""
    with pytest.raises(UserError, match="config.model.backbone='resnet20': use one of resnet18"):
        ModelConfig(**{"backbone": "resnet20"})  # pyright: ignore[reportArgumentType]
    images, sizes = jnp.zeros((1, 32, 64, 3)), jnp.array([[32, 64]])
    with pytest.raises(UserError, match="a point has one box"):
        small(2, backbone="resnet18", regression="point").init(jax.random.key(0), images, sizes)
    with pytest.raises(UserError, match="multiples of 32"):
        small(backbone="resnet18").init(jax.random.key(0), jnp.zeros((1, 33, 64, 3)), sizes)
    with pytest.raises(UserError, match=r"dcn_stages=\(3,\) with resnet18: deformable"):
        small(backbone="resnet18", dcn_stages=(3,)).init(jax.random.key(0), images, sizes)


def test_recipes_name_every_backbone():
    (info,) = (info for info in field_infos(ModelConfig) if info.name == "backbone")
    assert info.choices == tuple(BACKBONES)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("flavour", "torchvision"),
        ("backbone_norm", "batch_norm"),
        ("stem_channels", 32),
        ("dcn_stages", (4, 5)),
    ],
)
def test_fields_of_resnets_are_refused_elsewhere(field, value):
    with pytest.raises(UserError, match=f"config.model.{field}=.*only ResNets and ResNeXts"):
        ModelConfig(**{"backbone": "convnext_tiny", field: value})


def test_normalize_images():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 32, 64, 3), dtype=np.uint8)
    sizes = np.array([[32, 64], [20, 50]], np.int32)
    mean, std = (103.0, 116.0, 123.0), (1.0, 2.0, 4.0)
    out = normalize_images(images, sizes, mean=mean, std=std, channel_order="bgr")
    expected = (images[..., ::-1].astype(np.float32) - np.array(mean, np.float32)) / np.array(std)
    np.testing.assert_allclose(out[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(out[1, :20, :50], expected[1, :20, :50], rtol=1e-6)
    assert not np.any(out[1, 20:]) and not np.any(out[1, :, 50:])
    with pytest.raises(ValueError, match="channel_order='gbr'"):
        normalize_images(images, sizes, mean=mean, std=std, channel_order="gbr")
