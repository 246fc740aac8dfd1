"""The names that people import from the top of the package."""

import subprocess
import sys

import atss_jax


def test_every_public_name_is_there_and_documented():
    assert set(atss_jax.__all__) == set(atss_jax._MODULES)
    for name in atss_jax.__all__:
        assert getattr(atss_jax, name).__doc__, name


def test_importing_the_package_imports_no_jax():
    code = "import sys, atss_jax, atss_jax.assigners; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
