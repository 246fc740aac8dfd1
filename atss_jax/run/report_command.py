"""`atss report`: its arguments are looked at before anything slow is imported."""

from collections.abc import Sequence
from pathlib import Path

from atss_jax.run import given_run
from atss_jax.run.arguments import HelpFormatter, Parser

DESCRIPTION = """\
The report of a run that people look at: one self-contained HTML file.

    atss report FOLDER [--output report.html]

The folder is a workdir (the training's last evaluation), or one of the evaluations in its `eval`. A
run writes its report when it ends. It reads config.json, metrics.jsonl, detections.json and
result.json, and the data set of the configuration, and opens from disk without a network.
"""


def main(arguments: Sequence[str]) -> int:
    """Reads the arguments and writes the report; returns the exit code.

    Raises:
      UserError: there is no evaluated run, or a wrong argument.
    """
    parser = Parser(prog="atss report", description=DESCRIPTION, formatter_class=HelpFormatter)
    parser.add_argument("folder", type=Path, help="a workdir, or WORKDIR/eval/NAME")
    parser.add_argument("--output", type=Path, help="default: FOLDER/report.html")
    args = parser.parse_args(arguments)
    given_run.check_report(args.folder, args.output)
    from atss_jax.run import report

    output = report.write_report(args.folder, args.output)
    print(f"{output}: {output.stat().st_size / 2**20:.1f} MiB")
    return 0
