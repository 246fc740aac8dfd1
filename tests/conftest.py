"""Eight CPU devices, checked shapes: both must be set up before jax or the package is imported.

Programs are compiled with few optimisations, several times as fast, and kept from one test run to
the next. Processes that tests start inherit both. With ATSS_JAX_TEST_XLA=default in the environment
they are compiled as users compile them.
"""

import os
from pathlib import Path

from quick_compile import xla_flags

ROOT = Path(__file__).resolve().parents[1]
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        *([] if os.environ.get("ATSS_JAX_TEST_XLA") == "default" else xla_flags()),
        "--xla_force_host_platform_device_count=8",
    ]
)

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

from tests import golden_errors  # noqa: E402

install_import_hook("atss_jax", "beartype.beartype")
if golden_errors.FOLDER in os.environ:
    golden_errors.note_comparisons()

SHARED = ROOT.parent / "shared"


def pytest_collection_modifyitems(items):
    """Files with slow tests first, so that the fast ones then fill the workers evenly.

    Before all of them test_train.py, whose processes wait for each other: others use that time.
    """
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow_files, item.path.name != "test_train.py"))


def with_devices(count: int) -> dict[str, str]:
    """The environment of a new process that sees `count` CPU devices."""
    name = "--xla_force_host_platform_device_count"
    return {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {name}={count}"}


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_file():
    """Programs of a file are dropped after it, or a worker holds gigabytes of them at the end."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The tiny set of a dozen drawn images, with six to validate; see tests/tiny.py."""
    from tests import tiny  # imports the package: only under the hook

    path = tmp_path_factory.mktemp("coco")
    tiny.make_coco(path)
    tiny.make_coco(path, 6, "val")
    return path


@pytest.fixture(scope="module")
def one_device():
    """Runs of this process use one of the simulated devices: they compile several times faster."""
    from atss_jax.runtime import parallel

    with pytest.MonkeyPatch.context() as patch:
        mesh = jax.make_mesh(
            (1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1]
        )
        patch.setattr(parallel, "make_mesh", lambda: mesh)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the larger test data beside the checkout; its tests skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared with golden files and images is not beside this checkout")
    return SHARED
