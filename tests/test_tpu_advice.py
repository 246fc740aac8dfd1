"""A batch that is small for TPUs: the word at the start, and the options for the compiler."""

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from atss_jax.run import preflight, train, training_setup
from atss_jax.runtime import compiled, parallel, tpu_options
from tests import tiny


@pytest.fixture
def advice(tmp_path, monkeypatch):
    def of(platform, devices, batch, accumulate=1):
        monkeypatch.setattr(parallel, "platform_of", lambda mesh: platform)
        config = tiny.make_config(tmp_path, data__global_batch=batch, optim__accumulate=accumulate)
        return preflight.tpu_advice(config, jax.make_mesh((devices,), ("data",)))

    return of


@pytest.mark.parametrize(
    ("platform", "devices", "batch", "accumulate", "expected"),
    [
        ("tpu", 8, 64, 1, ""),
        ("tpu", 8, 16, 1, "2 image(s) per TPU chip: with fewer than 8"),
        ("tpu", 4, 64, 4, "4 image(s) per TPU chip and micro-batch (4): with"),
        ("cuda", 8, 16, 1, ""),
        ("cpu", 1, 2, 1, ""),
    ],
)
def test_few_images_per_chip_are_said(advice, platform, devices, batch, accumulate, expected):
    text = advice(platform, devices, batch, accumulate)
    assert text.startswith(expected) and bool(text) == bool(expected)


def test_the_advice_names_a_batch_that_is_large_enough(advice):
    assert "config.data.global_batch=128 has 8" in advice("tpu", 4, 64, 4)
    assert advice("tpu", 4, 128, 4) == ""


class Enough(Exception):
    """Raised in place of what follows the advice."""


def test_a_start_says_it(tmp_path, monkeypatch, capsys):
    def stop(config, setup):
        raise Enough

    tiny.make_coco(tmp_path)
    monkeypatch.setattr(parallel, "platform_of", lambda mesh: "tpu")
    monkeypatch.setattr(train, "initial_state", stop)
    config = tiny.make_config(tmp_path, data__global_batch=2 * jax.device_count())
    with pytest.raises(Enough):
        train.train(config, epath.Path(tmp_path / "run"), with_evaluation=False)
    assert "2 image(s) per TPU chip" in capsys.readouterr().err


def test_only_small_batches_on_tpus_have_options():
    assert tpu_options.compiler_options("tpu", 7) == tpu_options.NO_SPACE_TO_BATCH
    assert tpu_options.compiler_options("tpu", 8) == {}
    assert tpu_options.compiler_options("cpu", 2) == {}


def test_a_step_is_compiled_with_them(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled.CompiledByShape, "program", lambda self, *arguments: None)
    monkeypatch.setattr(parallel, "platform_of", lambda mesh: "tpu")
    tiny.make_coco(tmp_path)
    config = tiny.make_config(tmp_path, data__global_batch=2 * jax.device_count())
    step = preflight.compile_step(config, training_setup.set_up(config))
    assert step._options == tpu_options.NO_SPACE_TO_BATCH


def test_a_compiler_that_does_not_know_an_option_goes_without(caplog):
    step = compiled.CompiledByShape(
        jax.jit(lambda x: 2 * x), expected=1, options={"xla_tpu_no_such_option": "false"}
    )
    assert step(jnp.ones(3)).tolist() == [2, 2, 2]
    assert "compiled without xla_tpu_no_such_option" in caplog.text
