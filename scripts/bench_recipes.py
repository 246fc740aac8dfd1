r"""The training steps of several recipes, in turns, against the first.

    python scripts/bench_recipes.py ablations beyond:qfl beyond:gfl beyond:vfnet
    python scripts/bench_recipes.py mini:ablations mini:beyond:tal --set data.global_batch=8

Recipes are named as after --config=, without a miniature's folder: "mini:beyond:qfl" is
configs/mini.py:beyond:qfl. Fields of one follow a plus: "mini:ablations+loss.box_loss=diou". Each
has a process that compiles its step for noise images and then waits; all take a few steps each in
turn, so that a busy machine is unfair to none. The last line is JSON.
"""

import argparse
import json
import pathlib
import statistics

import bench_flags
import bench_train


def config_file(name: str) -> str:
    """The recipe's file with its argument: "beyond:qfl" -> ".../configs/beyond.py:qfl"."""
    recipe, colon, argument = name.partition(":")
    return f"{bench_train.ROOT / 'configs' / recipe}.py{colon}{argument}"


def measure(names: list[str], changes: list[str], steps: int, rounds: int) -> dict[str, dict]:
    """Seconds of steps by recipe.

    Args:
      names: of recipes with their own changes, the first is the base.
      changes: "group.field=value" for all of them.
      steps: of a turn.
      rounds: turns of each.

    Returns:
      Name -> "step_ms" (median), "fastest_ms", "ratio" (median over the turns of its mean step over
      the base's in the same turn), or "problem".
    """
    flags = {}
    for name in names:
        recipe, *own = name.split("+")
        every = ["--set", *changes, *own] if changes or own else []
        flags[name] = ("", [f"--config={config_file(recipe)}", *every])
    workers = bench_flags.start(flags)
    turns = bench_flags.take_turns(workers, steps, rounds)
    problems = {name: worker.close() for name, worker in workers.items()}
    results = {}
    for name, times in turns.items():
        if problems[name] or not all(times):
            results[name] = {"problem": problems[name] or "ended early"}
            continue
        ratios = [sum(t) / sum(b) for t, b in zip(times, turns[names[0]], strict=True) if b]
        every = [1e3 * second for turn in times for second in turn]
        results[name] = {
            "step_ms": statistics.median(every),
            "fastest_ms": min(every),
            "ratio": statistics.median(ratios) if ratios else None,
        }
    return results


def main() -> None:
    """Reads the command line and prints the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="the first is the base")
    parser.add_argument("--set", nargs="+", default=[], metavar="GROUP.FIELD=VALUE")
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", type=pathlib.Path, help="also write the figures into this file")
    options = parser.parse_args()
    results = measure(options.recipes, options.set, options.steps, options.rounds)
    for name, row in results.items():
        if "problem" in row:
            print(f"{name:28}not run: {row['problem'][:90]}")
            continue
        ratio = f"{row['ratio']:8.2f}" if row["ratio"] else ""
        print(f"{name:28}{row['step_ms']:10.1f} ms{ratio}   fastest {row['fastest_ms']:.1f} ms")
    figures = {"set": options.set, "rows": results}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
