r"""Plots losses and AP of one workdir, or total loss and AP of several, into a PNG file.

    python scripts/plot_run.py workdirs/quickstart
    python scripts/plot_run.py workdirs/k7 workdirs/k15 --output=k.png

One workdir's picture is `curves.png` inside it unless --output says another place.
"""

import argparse
from pathlib import Path

from etils import epath

from atss_jax.drawing import curves
from atss_jax.runtime.metric_writer import read_rows


def plot(workdirs: list[Path], output: Path | None) -> Path:
    """Writes the picture; returns its path.

    Args:
      workdirs: with a `metrics.jsonl` each.
      output: of the PNG file; needed with several workdirs.

    Raises:
      FileNotFoundError: a workdir without metrics.
      ValueError: several workdirs and no output.
    """
    if output is None:
        if len(workdirs) > 1:
            raise ValueError(f"{len(workdirs)} workdirs: say where to write with --output=x.png.")
        output = workdirs[0] / "curves.png"
    runs = {}
    for workdir in workdirs:
        rows = read_rows(epath.Path(workdir / "metrics.jsonl"))
        if not rows:
            raise FileNotFoundError(
                f"{workdir}/metrics.jsonl: missing or empty. Give the --workdir of a run that "
                "has taken steps."
            )
        short = workdir.resolve().name
        runs[short if short not in runs else str(workdir)] = rows
    if len(runs) == 1:
        ((name, rows),) = runs.items()
        curves.plot_curves(rows, output, title=name)
    else:
        curves.plot_runs(runs, output)
    return output


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdirs", type=Path, nargs="+", help="folders of runs")
    parser.add_argument("--output", type=Path, help="PNG file")
    options = parser.parse_args()
    try:
        print(plot(options.workdirs, options.output))
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
