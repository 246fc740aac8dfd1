"""Eight CPU devices, checked shapes: both must be set up before jax or the package is imported."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("atss_jax", "beartype.beartype")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the larger test data beside the checkout; its tests skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared with golden files and images is not beside this checkout")
    return SHARED
