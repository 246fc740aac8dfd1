r"""The command of every row of the paper's Tables 1 to 8 (arXiv 1912.02424), with the paper's AP.

    python scripts/paper_rows.py                              all rows
    python scripts/paper_rows.py --tables 4 5 --markdown      as a table for a README
    python scripts/paper_rows.py --tables 4 --rows k=15 --run one of them (COCO; days of one GPU)

None of them is run by this project. Flags after `--` are added to every command, such as
`-- --config.data.global_batch=8`. Rows that are the same run have the same workdir: with `--run`
a finished one is not trained again.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]

DEFAULTS = ("k=9", "anchor_scale=8", "aspect_ratio=1")
"""Arguments that change nothing: rows with them are the same run."""


class Row(NamedTuple):
    """One row of a table."""

    table: int
    name: str
    """As in the paper."""
    recipe: str
    """File under configs."""
    argument: str
    paper_ap: float | None
    """Percent; COCO val2017, test-dev in Table 8. None where it is not at hand."""
    test_flags: tuple[str, ...] = ()
    """A further evaluation of the same run, with these flags."""

    @property
    def config(self) -> str:
        """The value of --config."""
        return f"configs/{self.recipe}.py" + (f":{self.argument}" if self.argument else "")

    @property
    def workdir(self) -> str:
        """Folder of the run; one for each configuration."""
        parts = [part for part in self.argument.split(",") if part and part not in DEFAULTS]
        return "workdirs/paper/" + "-".join([self.recipe, *parts]).replace("=", "_")


def _ablation(table: int, name: str, argument: str, paper_ap: float | None) -> Row:
    """A row of configs/ablations.py."""
    return Row(table, name, "ablations", argument, paper_ap)


def _steps() -> list[Row]:
    """Table 1: RetinaNet with one anchor, one improvement after the other, and FCOS."""
    removed = (
        "head_norm=none",
        "box_loss=smooth_l1",
        "positives_in_box=false",
        "centerness=false",
        "level_scale=false",
    )
    names = ("RetinaNet (#A=1)", "+ GroupNorm", "+ GIoU loss", "+ in GT box", "+ centerness")
    averages = (32.5, 33.4, 34.9, 35.3, 36.8)
    rows = [
        _ablation(1, name, ",".join(("assigner=iou", *removed[i:])), ap)
        for i, (name, ap) in enumerate(zip(names, averages, strict=True))
    ]
    rows.append(_ablation(1, "+ scalar", "assigner=iou", 37.0))
    return [*rows, Row(1, "FCOS", "fcos_r50_fpn_1x", "improved", 37.8)]


def _final_models() -> list[Row]:
    """Table 8, single-scale and then multi-scale testing."""
    averages = {
        "r101": (43.6, 46.3, None),
        "x101_32x8d": (45.1, 47.7, 50.6),
        "x101_64x4d": (45.6, 47.7, 50.7),
    }
    test_flags = ("--mode=eval", "--config.eval.multiscale=paper")
    rows = []
    for column, suffix in enumerate(("", ",dcn", ",dcn")):
        for backbone, numbers in averages.items():
            if numbers[column] is None:
                continue
            name = f"ATSS {backbone}{' DCN' if suffix else ''}"
            arguments = ("paper_table8", f"backbone={backbone}{suffix}", numbers[column])
            if column == 2:
                rows.append(Row(8, f"{name}, multi-scale testing", *arguments, test_flags))
            else:
                rows.append(Row(8, name, *arguments))
    return rows


ROWS = [
    *_steps(),
    _ablation(2, "IoU, box", "assigner=iou", 37.0),
    _ablation(2, "IoU, point", "assigner=iou,regression=point", 36.9),
    _ablation(2, "spatial and scale, box", "assigner=spatial_scale", 37.8),
    _ablation(2, "spatial and scale, point", "assigner=spatial_scale,regression=point", 37.8),
    _ablation(3, "RetinaNet (#A=1)", "assigner=iou", 37.0),
    _ablation(3, "RetinaNet (#A=1) + ATSS", "", 39.3),
    _ablation(3, "FCOS", "assigner=spatial_scale,regression=point", 37.8),
    _ablation(3, "FCOS + center sampling", "assigner=center_sampling,regression=point", 38.6),
    _ablation(3, "FCOS + ATSS", "regression=point", 39.2),
    *(
        _ablation(4, f"k = {k}", f"k={k}", ap)
        for k, ap in zip(
            range(3, 20, 2), (38.0, 38.8, 39.1, 39.3, 39.1, 39.0, 39.1, 39.2, 38.9), strict=True
        )
    ),
    *(
        _ablation(5, f"scale {scale}", f"anchor_scale={scale}", ap)
        for scale, ap in zip(range(5, 10), (39.0, 39.2, 39.3, 39.3, 38.9), strict=True)
    ),
    # The text of the paper that was used here lacks Table 6.
    *(
        _ablation(6, f"height / width {ratio:g}", f"aspect_ratio={ratio:g}", None)
        for ratio in (0.25, 0.5)
    ),
    _ablation(6, "height / width 1", "aspect_ratio=1", 39.3),
    *(
        _ablation(6, f"height / width {ratio:g}", f"aspect_ratio={ratio:g}", None)
        for ratio in (2, 4)
    ),
    Row(7, "RetinaNet (#A=9), 3 scales, 3 ratios", "retinanet_r50_fpn_1x", "", 36.3),
    _ablation(
        7,
        "+ improvements, 3 scales, 3 ratios",
        "assigner=iou,num_scales=3,num_ratios=3,anchor_scale=4",
        38.4,
    ),
    _ablation(7, "+ ATSS, 3 scales, 3 ratios", "num_scales=3,num_ratios=3,anchor_scale=4", 39.2),
    _ablation(7, "+ ATSS, 3 scales, 1 ratio", "num_scales=3,anchor_scale=4", 39.3),
    _ablation(7, "+ ATSS, 1 scale, 3 ratios", "num_ratios=3", 39.2),
    _ablation(7, "+ ATSS, 1 scale, 1 ratio", "", 39.3),
    *_final_models(),
]


def commands(row: Row, extra: tuple[str, ...] = ()) -> list[list[str]]:
    """What makes a row: a training run, and a further evaluation where the row has one.

    Args:
      row: of `ROWS`.
      extra: flags for each command.
    """
    base = ["python", "-m", "atss_jax.main", f"--config={row.config}", f"--workdir={row.workdir}"]
    base += extra
    return [base, [*base, *row.test_flags]] if row.test_flags else [base]


def selected(tables: list[int] | None, words: list[str] | None) -> list[Row]:
    """Rows of the given tables whose name or argument has one of the words.

    Raises:
      ValueError: there is none.
    """
    rows = [
        row
        for row in ROWS
        if (not tables or row.table in tables)
        and (not words or any(w in (row.name, *row.argument.split(",")) for w in words))
    ]
    if not rows:
        raise ValueError(
            f"--tables {tables} --rows {words}: no such row. Tables are 1 to 8; a row is named as "
            "in the paper or by one of its arguments, such as k=15."
        )
    return rows


def main() -> None:
    """Prints the rows, or runs them."""
    arguments = sys.argv[1:]
    extra = arguments[arguments.index("--") + 1 :] if "--" in arguments else []
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", type=int, nargs="+", help="1 to 8; all by default")
    parser.add_argument("--rows", nargs="+", help="names or arguments, such as k=15")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--run", action="store_true", help="run the commands, one by one")
    options = parser.parse_args(arguments[: len(arguments) - len(extra) - bool("--" in arguments)])
    try:
        rows = selected(options.tables, options.rows)
    except ValueError as error:
        parser.error(str(error))
    if options.markdown:
        print("| table | row | `--config=` | paper AP | ours |\n|---|---|---|---|---|")
    for row in rows:
        paper = "not at hand" if row.paper_ap is None else f"{row.paper_ap:.1f}"
        if options.markdown:
            flags = " ".join(row.test_flags)
            config = f"`{row.config}`" + (f" `{flags}`" if flags else "")
            print(f"| {row.table} | {row.name} | {config} | {paper} | not run |")
            continue
        print(f"# Table {row.table}, {row.name}: AP {paper}", flush=True)
        for command in commands(row, tuple(extra)):
            print(shlex.join(command), flush=True)
            if options.run:
                done = subprocess.run([sys.executable, *command[1:]], cwd=ROOT)
                if done.returncode:
                    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
