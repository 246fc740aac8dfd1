r"""ATSS with ResNet-50-FPN, 1x schedule: the paper's main recipe, and the base of all others.

Paper: Table 8, "ATSS ResNet-50" row of the official repository: AP 39.3 on COCO val2017
(arXiv 1912.02424). 90,000 steps of 16 images; about 4 hours on eight V100 in the paper's setting.
Not run to the end by this project.

    python -m atss_jax.main --config=configs/atss_r50_fpn_1x.py --workdir=workdirs/atss_r50

The numbers follow the official code and are the defaults of the dataclasses: every field, with its
meaning and source, stands in the `config.py` of the folder that reads it.
"""

from ml_collections import ConfigDict

from atss_jax.configs import common
from atss_jax.run.recipe import Recipe


def recipe(arg: str = "") -> Recipe:
    """The recipe; it takes no argument (ablations have files of their own)."""
    common.refuse_argument(arg, "configs/atss_r50_fpn_1x.py")
    return Recipe()


def get_config(arg: str = "") -> ConfigDict:
    """The recipe for the command line."""
    return common.config_dict(recipe(arg))
