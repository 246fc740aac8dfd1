"""The report of a run, made again: python scripts/report.py WORKDIR [--output report.html].

The same as `atss report`; a run writes its report itself when it ends.
"""

import sys

from atss_jax.errors import UserError
from atss_jax.run import report_command

if __name__ == "__main__":
    try:
        sys.exit(report_command.main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
