"""The rows of the paper's tables: what they change, how machines share them, what is reported."""

import dataclasses
import functools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

import bench_recipes
import bench_train
import paper_rows
import row_equal_time
import row_jobs
import row_process
import row_report
import row_results
import table_rows
from atss_jax.configs import mini
from atss_jax.errors import UserError
from atss_jax.models.detector import DetectorNetwork, init_variables
from atss_jax.run import recipe_files, recipe_io, train
from atss_jax.run.recipe import Recipe
from row_queue import RowQueue
from table_rows import ROWS, Row
from tests import tiny

ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def load(config: str, fields: tuple[tuple[str, str], ...] = ()) -> Recipe:
    values = recipe_files.load_recipe(config).to_dict()
    for name, text in fields:
        group, field = name.split(".")
        kind = type(values[group][field])
        values[group][field] = text == "True" if kind is bool else kind(text)
    return recipe_io.recipe_from_mapping(values)


def differing(one: Recipe, other: Recipe) -> set[str]:
    before, after = dataclasses.asdict(one), dataclasses.asdict(other)
    return {f"{g}.{f}" for g in before for f in before[g] if before[g][f] != after[g][f]}


def test_there_are_sixty_rows_of_nine_tables():
    assert len(ROWS) >= 60 and {row.table for row in ROWS} == set(table_rows.TABLES)
    for table in table_rows.TABLES:
        rows = [row for row in ROWS if row.table == table]
        assert len({(row.run, row.test) for row in rows}) == len(rows) > 3


def test_rows_differ_from_their_base_in_exactly_the_named_fields():
    for row in ROWS:
        recipe = load(row.config, row.fields)
        assert differing(load(row.base), recipe) == set(row.changes), row
        assert any(other.config == row.base and not other.fields for other in ROWS), row


@pytest.mark.parametrize("preset", row_jobs.PRESETS)
def test_rows_share_a_run_if_their_recipes_are_equal(preset):
    recipes = {row: load(row.config, row.trained) for row in ROWS}
    if preset == "mini":
        recipes = {row: mini.shrink(recipe) for row, recipe in recipes.items()}
    pairs = {(row.run, repr(recipe)) for row, recipe in recipes.items()}
    assert len(pairs) == len({run for run, _ in pairs}) == len({recipe for _, recipe in pairs})
    assert len(row_jobs.make_jobs(ROWS, preset, 1)) == len(pairs)
    known = json.loads((ROOT / "docs/results/paper_mini.json").read_text())["results"]
    assert {result["run"] for result in known} <= {run for run, _ in pairs}


def test_a_miniature_keeps_what_its_recipe_changes():
    preset = {f"{g}.{f}" for g, fields in mini.ALWAYS.items() for f in fields}
    preset |= {"model.flavour", "model.backbone_norm"}  # some rows have the miniature's
    preset.add("optim.num_steps")  # a recipe that counts epochs has the miniature's length
    for row in ROWS:
        small = mini.shrink(load(row.config, row.fields))
        changed = differing(mini.shrink(load(row.base)), small)
        allowed = set(row.changes)
        if "model.dcn_stages" in allowed:  # a ResNet-18 has no bottlenecks: the full one stays
            allowed.add("model.backbone")
        assert set(row.changes) - preset <= changed <= allowed, row
        assert small.data.name == "shapes_crowded" and small.model.init_from == ""
    long = load("mini:paper_table8:backbone=r101")
    assert long.optim.num_steps == 2 * mini.NUM_STEPS and long.model.backbone == "resnet101"
    assert long.data.train_short_sides[0] == 154 and long.data.train_short_sides[-1] == 192
    with pytest.raises(UserError, match="miniature of a miniature"):
        mini.recipe("mini:ablations")


@pytest.mark.parametrize(("index", "has"), [(0, False), (6, True)], ids=["RetinaNet", "FCOS"])
def test_networks_of_rows_have_the_heads_they_name(index, has):
    config = load(f"mini:{ROWS[index].config}")
    model = DetectorNetwork(config.model, 3, config.anchors.num_per_location)
    params = jax.eval_shape(lambda: init_variables(model, (64, 96), 0))["params"]
    paths = jax.tree_util.tree_flatten_with_path(params["head"])[0]
    names = {jax.tree_util.keystr(path) for path, _ in paths}
    assert any("centerness" in name for name in names) == has
    assert any("norm" in name for name in names) == has


def test_rows_that_are_the_same_run_are_one_job_with_all_tests():
    jobs = row_jobs.make_jobs(table_rows.selected(["2", "3", "4", "7"]), "mini", 3)
    assert len(jobs) == 60 and [job.seed for job in jobs] == sorted(job.seed for job in jobs)
    (deformable,) = table_rows.selected(["8"], ["ATSS x101_64x4d DCN"])
    job = row_jobs.make_job(deformable, "paper", 1)
    trained, tested = row_jobs.commands(job, "w", ("--config.data.global_batch=8",))
    assert trained[3] == "--config=configs/paper_table8.py:backbone=x101_64x4d,dcn"
    assert trained[-2:] == ["--config.run.seed=1", "--config.data.global_batch=8"]
    assert tested == [*trained, "--mode=eval", "--config.eval.multiscale=paper"]


def test_rows_on_a_folder_of_data_are_jobs_and_results_of_their_own(tmp_path, monkeypatch, capsys):
    row = table_rows.selected(["4"], ["k=15"])[0]
    job = row_jobs.make_job(row, "mini", 0, "data/cells/")
    assert job.name == "mini-cells-ablations-k_15-seed0" and job.preset == "mini-cells"
    assert row_jobs.preset_name("paper", "/a/my cells") == "paper-my_cells"
    fields = ("root=data/cells/", "image_size=256", "max_boxes=0")
    assert job.flags[-3:] == tuple(f"--config.data.{field}" for field in fields)
    queue = RowQueue(tmp_path / "out")
    queue.finish(job.name, result(job.run, 0, 0.5) | {"preset": job.preset})
    command = ["report", "--preset=mini", "--rows=k=15", f"--out={queue.folder}"]
    page = tmp_path / "page.md"
    page.write_text("<!-- rows of mini-cells -->\nold\n<!-- end of mini-cells -->\n")
    call(monkeypatch, 0, *command, "--data=cells", f"--into={page}")
    assert "| k = 15 | 39.1 | -0.2 | 50.0 | – | 1 |" in page.read_text()
    call(monkeypatch, 2, *command)
    assert "no finished row of mini, but of mini-cells." in capsys.readouterr().err
    tiny.make_coco(tmp_path / "cells", 4, "train")
    tiny.make_coco(tmp_path / "cells", 2, "val")
    run = ["run", f"--out={tmp_path / 'new'}", f"--data={tmp_path / 'cells'}", "--preset=mini"]
    call(monkeypatch, 2, *run, "--tables=beyond")
    assert '"torchvision\'s modern recipe" of table beyond: trained' in capsys.readouterr().err


def test_list_prints_commands(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["paper_rows.py", "list", "--rows", "k=15"])
    with pytest.raises(SystemExit, match="0"):
        paper_rows.main()
    assert capsys.readouterr().out.splitlines() == [
        "# table 4, k = 15: paper 39.1; from ablations: assigner.candidates_per_level",
        "python -m atss_jax.main --config=configs/ablations.py:k=15 "
        "--workdir=workdirs/paper/paper-ablations-k_15-seed0 --config.run.seed=0",
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--tables 4 --rows k=8", "--rows 'k=8': no such row in table 4. A row is named as"),
        ("--rows k=15 k=16", "--rows 'k=16': no such row in any table. A row"),
        ("--tables 3,99", "--tables 99: no such table. Tables are 1, 2"),
        ("--tables 3 --rows FCOS k=15", "--rows 'k=15': no such row in table 3."),
    ],
)
def test_every_unknown_table_and_row_is_an_error(capsys, monkeypatch, flags, message):
    monkeypatch.setattr(sys, "argv", ["paper_rows.py", "list", *flags.split()])
    with pytest.raises(SystemExit, match="2"):
        paper_rows.main()
    assert message in capsys.readouterr().err


def stored(queue: RowQueue) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(queue.folder.glob("rows/*.json"))]


def test_a_claim_belongs_to_one_and_a_dead_one_to_the_next(tmp_path):
    first, second = RowQueue(tmp_path, expires=60), RowQueue(tmp_path, expires=60)
    claim = first.claim("a")
    assert claim is not None and second.claim("a") is None and first.claim("a") is None
    os.utime(tmp_path / "claims" / "a.1", (0, 0))  # no heartbeat for long
    taken = second.claim("a")
    assert taken is not None and first.claim("a") is None
    assert second.finish("a", {"by": 2}) and not first.finish("a", {"by": 1})  # woke up too late
    assert stored(first) == [{"by": 2}] and second.claim("a") is None


def test_work_that_raises_gives_its_claim_back_and_a_failed_job_waits_for_release(tmp_path):
    queue = RowQueue(tmp_path, expires=60)
    claim = queue.claim("a")
    assert claim is not None
    with pytest.raises(KeyboardInterrupt), claim.held():
        raise KeyboardInterrupt
    assert queue.claim("a") is not None
    queue.fail("a", "no memory")
    assert queue.claim("a") is None and queue.has_failed("a")
    queue.release_failed("a")
    assert queue.claim("a") is not None


def test_a_failed_row_is_recorded_and_the_others_run(tmp_path, capsys):
    jobs = row_jobs.make_jobs(table_rows.selected(["2"]), "mini", 1)

    def do(job):
        if "point" in job.run:
            raise row_process.RowFailedError("out of memory")
        return {"job": job.name}

    queue = RowQueue(tmp_path)
    failed = paper_rows.work(queue, jobs, do)
    assert failed == [job.name for job in jobs if "point" in job.run]
    assert len(stored(queue)) == 2 and "out of memory" in capsys.readouterr().err
    record = json.loads((tmp_path / "failed" / f"{failed[0]}.json").read_text())
    assert record["reason"] == "out of memory"


def test_results_of_an_earlier_report_are_not_run_again(tmp_path, monkeypatch, capsys):
    jobs = row_jobs.make_jobs(table_rows.selected(["2"]), "mini", 1)
    known = tmp_path / "results.json"
    row_results.write(known, [result(job.run, job.seed, 0.1) for job in jobs])
    run = ["run", "--tables", "2", "--preset", "mini", "--known", str(known)]
    monkeypatch.setattr(sys, "argv", ["paper_rows.py", *run, "--out", str(tmp_path / "rows")])
    monkeypatch.setattr(row_jobs, "run_job", None)  # would raise TypeError
    with pytest.raises(SystemExit, match="0"):
        paper_rows.main()
    assert f"{len(jobs)} of {len(jobs)} runs finished" in capsys.readouterr().out
    assert len(stored(RowQueue(tmp_path / "rows"))) == len(jobs)


WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, "scripts")
import paper_rows, row_jobs, table_rows
from row_queue import RowQueue
shared, own = Path(sys.argv[1]), Path(sys.argv[2])

def do(job):
    with (own / "started").open("a") as file:
        file.write(job.name + "\\n")
    time.sleep(0.15 if (own / "quick").exists() else 600)
    return {"job": job.name, "by": own.name}

queue = RowQueue(shared, expires=3)
paper_rows.work(queue, row_jobs.make_jobs(table_rows.selected(["4"]), "mini", 2), do)
"""


def start_machine(folder: Path, shared: Path, *, quick: bool) -> subprocess.Popen:
    folder.mkdir()
    if quick:
        (folder / "quick").touch()
    return subprocess.Popen([sys.executable, "-c", WORKER, str(shared), str(folder)], cwd=ROOT)


def test_one_of_two_machines_is_killed_and_nothing_is_run_twice_or_lost(tmp_path):
    shared = tmp_path / "shared"
    jobs = row_jobs.make_jobs(table_rows.selected(["4"]), "mini", 2)
    slow = start_machine(tmp_path / "a", shared, quick=False)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "a" / "started").exists():  # it is in the middle of a job
            assert time.monotonic() < deadline
            time.sleep(0.02)
        other = start_machine(tmp_path / "b", shared, quick=True)
        while len(list(shared.glob("rows/*.json"))) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        slow.send_signal(signal.SIGKILL)
    finally:
        slow.kill()
        slow.wait()
    assert other.wait(60) == 0
    killed = (tmp_path / "a" / "started").read_text().split()
    done = Counter((tmp_path / "b" / "started").read_text().split())
    assert len(killed) == 1 and set(done.values()) == {1}
    assert set(done) == {job.name for job in jobs}  # the killed one's job as well
    assert {r["job"] for r in stored(RowQueue(shared))} == set(done)
    assert (shared / "claims" / f"{killed[0]}.2").exists()


def result(run: str, seed: int, ap: float, seconds: float = 60.0) -> dict:
    metrics = {name: ap for name in row_jobs.KEPT}
    row = next(row for row in ROWS if row.run == run)
    (command, *_) = row_jobs.commands(row_jobs.make_job(row, "mini", seed), "WORKDIR")
    return {
        **{"run": run, "preset": "mini", "seed": seed, "metrics": metrics, "evaluations": {}},
        **{"all_seconds": seconds, "device": "1 x cpu", "steps": 500, "command": " ".join(command)},
    }


def call(monkeypatch, code: int, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["paper_rows.py", *words])
    with pytest.raises(SystemExit, match=f"^{code}$"):
        paper_rows.main()


def test_report_by_hand(tmp_path, capsys, monkeypatch):
    queue = RowQueue(tmp_path / "out")
    for seed, (iou, other) in enumerate([(0.10, 0.13), (0.12, 0.15), (0.11, 0.17)]):
        queue.finish(f"iou{seed}", result("ablations-assigner_iou", seed, iou))
        queue.finish(f"fcos{seed}", result("ablations-assigner_spatial_scale", seed, other, 120))
    queue.fail("mini-ablations-assigner_iou-regression_point-seed1", "no memory")
    command = ["report", "--preset=mini", "--tables=2"]
    files = [f"--html={tmp_path}/r.html", f"--json={tmp_path}/r.json"]
    call(monkeypatch, 0, *command, f"--out={tmp_path / 'out'}", *files)
    text = capsys.readouterr().out
    # a paired t test of 3, 3 and 6: standard deviation sqrt(3), 2 degrees of freedom, t = 4.303;
    # the sum of squares is that of both rows, hence sqrt(3 / 2) for one run
    assert "| 37.8 | +0.8 | 15.0 | 2.0 | 3 | +4.0 ± 4.3 | 2.0 |" in text
    assert "1.22 for one run" in text and "(2 degrees of freedom)" in text
    assert "| IoU, point | 36.9 | -0.1 | failed | – | 0 (1 failed) | – | – |" in text
    assert "6 runs on 1 x cpu, 1 failed." in text
    assert (tmp_path / "r.html").read_text().count("<tr>") == 5
    call(monkeypatch, 0, *command, f"--out={tmp_path}/r.json")
    again = capsys.readouterr().out  # the same from the one file, which has no failures
    assert again == text.replace(", 1 failed.", ".").replace(
        "failed | – | 0 (1 failed)", "not run | – | 0"
    )


def test_the_spread_is_what_rows_and_seeds_leave_also_where_runs_are_missing():
    random = np.random.default_rng(0)
    ap = {(row, seed): random.normal() for row in range(5) for seed in range(4)}
    del ap[1, 2], ap[4, 0], ap[4, 1]
    names = [row.run for row in table_rows.selected(["4"])]
    spread = row_report.pooled_spread([result(names[r], s, v / 100) for (r, s), v in ap.items()])
    rest = dict(ap)
    for _ in range(500):  # by turns, until neither rows nor seeds have a mean
        for place in (0, 1):
            for key in range(5):
                group = [k for k in rest if k[place] == key]
                mean = sum(rest[k] for k in group) / max(len(group), 1)
                rest |= {k: rest[k] - mean for k in group}
    assert spread.freedom == 17 - 5 - 3
    assert spread.deviation**2 == pytest.approx(sum(v**2 for v in rest.values()) / 9)
    alone = row_report.pooled_spread([result(names[0], seed, 0.1) for seed in range(3)])
    assert alone.freedom == 0 and math.isnan(alone.interval(3))
    assert row_report.difference({0: 3.0}, {1: 2.0}, spread) == "–"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run --preset=mini --out={0} --seeds=0", "--seeds: 0: give a number of seeds, 1 or more"),
        ("run --preset=mini --out={0} --expires=nan", "--expires: nan: give 10 seconds or more"),
        ("run --preset=mini --out=", "--out: is empty. Give a path"),
        ("list --tables=", "--tables: is empty. Leave it out for all"),
        ("run --preset=mini --out={0} -- --config.optim.num_stepz=2", "config.optim.num_stepz: no"),
        ("run --preset=mini --out={0} -- --config.run.seed=7", "is set by the rows. Use --seeds"),
        ("run --preset=mini --out={0} -- --mode=eval", "-- --mode=eval: only fields may follow"),
        ("run --preset=mini --out={0} --data={0}", "no data set found there"),
        ("run --preset=mini --out={0} --data=/", "rows are named after it"),
        (
            "run --preset=mini --out={0}/new --known={0}/list.json",
            "list.json: no results of `paper",
        ),
        ("run --preset=mini --out={0}/new --known={0}/none.json", "none.json: no such file"),
        ("report --preset=mini --out={0}/half", "seed0.json: cannot be read (.*).* Remove it, and"),
        ("report --preset=mini --out={0}/list.json", "list.json: no results of `paper_rows.py"),
        ("report --preset=mini --out={0}/nothing", "nothing: no such file"),
        ("report --preset=mini --out={0}/twice.json", "seed0|more than once. Remove one"),
        ("report --preset=mini --out={0}/one.json --into={0}/page.md", "each once, in order"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    tmp_path, capsys, monkeypatch, words, message
):
    one = result("ablations", 0, 0.1)
    row_results.write(tmp_path / "one.json", [one])
    row_results.write(tmp_path / "twice.json", [one, one])
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "page.md").write_text("<!-- end of mini --><!-- rows of mini -->")
    (tmp_path / "half/rows").mkdir(parents=True)
    (tmp_path / "half/rows/mini-ablations-seed0.json").touch()
    before = sorted(tmp_path.rglob("*"))
    call(monkeypatch, 2, *words.format(tmp_path).split())
    error = capsys.readouterr().err
    assert re.search(message if "*" in message or "|" in message else re.escape(message), error)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "tables", ["2,4,7,3,6,5,1,beyond", "4", "5", "6", "7"], ids=lambda tables: f"tables {tables}"
)
def test_the_results_of_the_repository_are_known(tmp_path, capsys, monkeypatch, tables):
    known = f"--known={ROOT}/docs/results/paper_mini.json"
    run = ["run", f"--tables={tables}", "--preset=mini", "--seeds=3", f"--out={tmp_path}/rows"]
    monkeypatch.setattr(row_jobs, "run_job", None)  # would raise TypeError
    call(monkeypatch, 0, *run, known)
    jobs = row_jobs.make_jobs(table_rows.selected(tables.split(",")), "mini", 3)
    assert f"has {len(jobs)} of {len(jobs)} runs" in capsys.readouterr().out


def test_rows_of_other_flags_or_data_are_refused(tmp_path, capsys, monkeypatch):
    row_results.write(tmp_path / "known.json", [result("ablations-k_15", 0, 0.1)])
    run = ["run", "--preset=mini", "--rows=k=15", f"--out={tmp_path}/out"]
    places = ["--config.data.data_dir=/elsewhere", "--config.run.log_every=7"]
    call(monkeypatch, 0, *run, f"--known={tmp_path}/known.json", "--", *places)
    call(monkeypatch, 0, *run)  # on another machine
    capsys.readouterr()
    call(monkeypatch, 2, *run, "--", "--config.optim.num_steps=2")
    assert "is finished with other flags (--config.optim.num_steps)" in capsys.readouterr().err
    other = ["run", "--preset=mini", "--rows=k=13", f"--out={tmp_path}/out"]
    call(monkeypatch, 2, *other, "--", "--config.optim.num_steps=2")
    assert "rows of mini were begun there with no flags, and these are" in capsys.readouterr().err


def test_a_mistake_in_all_commands_fails_no_row(tmp_path):
    jobs = row_jobs.make_jobs(table_rows.selected(["2"]), "mini", 1)
    queue = RowQueue(tmp_path)

    def refuse(job):
        raise row_process.RowFailedError("exit code 2: --config.optim.x", is_refused=True)

    with pytest.raises(ValueError, match="optim.x"):
        paper_rows.work(queue, jobs, refuse)
    assert not list(tmp_path.glob("failed/*")) and queue.claim(jobs[0].name) is not None
    queue.finish(jobs[1].name, {})
    assert len(paper_rows.work(RowQueue(tmp_path, 0.1), jobs, refuse)) == 3


def test_a_claim_lives_as_long_as_its_owner_says(tmp_path):
    patient, hasty = RowQueue(tmp_path, expires=3600), RowQueue(tmp_path, expires=2)
    assert patient.claim("a") is not None and hasty.claim("b") is not None
    old = time.time() - 60
    for name in ("a.1", "b.1"):
        os.utime(tmp_path / "claims" / name, (old, old))
    assert hasty.claim("a") is None and patient.claim("b") is None
    assert hasty.claim("b") is not None


def test_a_failed_row_is_recorded_before_others_may_claim_it(tmp_path, monkeypatch):
    (job,) = row_jobs.make_jobs(table_rows.selected(["4"], ["k=15"]), "mini", 1)
    queue, other = RowQueue(tmp_path), RowQueue(tmp_path)
    fail = queue.fail

    def claimed_meanwhile(name, reason):
        assert other.claim(name) is None
        fail(name, reason)

    monkeypatch.setattr(queue, "fail", claimed_meanwhile)

    def broken(job):
        raise row_process.RowFailedError("no memory")

    assert paper_rows.work(queue, [job], broken) == [job.name] and other.claim(job.name) is None


def test_a_file_server_that_is_away_is_waited_for(tmp_path, capsys, monkeypatch):
    (job,) = row_jobs.make_jobs(table_rows.selected(["4"], ["k=15"]), "mini", 1)
    queue, tries = RowQueue(tmp_path, expires=0.2), []

    def finish(name, result):
        tries.append(name)
        if len(tries) == 1:
            raise OSError("stale file handle")
        return RowQueue.finish(queue, name, result)

    monkeypatch.setattr(queue, "finish", finish)
    assert paper_rows.work(queue, [job], lambda job: {}) == [] and len(tries) == 2
    assert "tried again later: stale file handle" in capsys.readouterr().err


def test_a_workdir_without_a_whole_result_fails_its_row_alone(tmp_path, monkeypatch):
    (job,) = row_jobs.make_jobs(table_rows.selected(["4"], ["k=15"]), "mini", 1)
    monkeypatch.setattr(row_process, "call", lambda *_: None)
    (tmp_path / job.name).mkdir()
    (tmp_path / job.name / "row_seconds").touch()
    for text in ("", "{}", '{"metrics": {}}'):
        (tmp_path / job.name / "result.json").write_text(text)
        with pytest.raises(row_process.RowFailedError, match=r"result.json: no result of a run"):
            row_jobs.run_job(job, tmp_path, ())


@pytest.mark.parametrize(
    ("preset", "file", "tables"),
    [
        ("mini", "paper_mini.json", [*table_rows.TABLES[:7], table_rows.BEYOND]),
        ("mini-bccd", "paper_mini_bccd.json", ["2", "3", "7"]),
    ],
)
def test_the_page_has_the_tables_of_the_results(tmp_path, preset, file, tables):
    text = (ROOT / "docs/paper_tables.md").read_text()
    copy = tmp_path / "page.md"
    copy.write_text(text.replace("| 37.0 | -2.3 |", "| |"))
    found = row_results.read(ROOT / "docs/results" / file)
    assert {result["preset"] for result in found} == {preset}
    new = row_report.markdown(table_rows.selected(tables), found)
    assert "not run" not in new and row_report.with_tables(copy, new, preset).count(new) == 1
    assert new in text


def test_the_page_has_the_table_of_equal_time():
    folder = ROOT / "docs/results"
    longer = [r for n in (1000, 1500) for r in row_results.read(folder / f"mini_{n}_steps.json")]
    costs = row_results.read_costs(folder / "mini_costs.json", "mini:ablations")
    results, rows = row_results.read(folder / "paper_mini.json"), table_rows.selected(["beyond"])
    table = row_equal_time.markdown(rows, results, longer, costs, "mini")
    assert table in (ROOT / "docs/beyond.md").read_text() and "not measured" not in table


def test_rows_in_equal_time_by_hand(tmp_path, capsys, monkeypatch):
    names = ("quality focal loss", "distribution focal loss", "both: GFL", "both: VFNet")
    runs = {"ablations": (0.10, 0.12, 0.11), "beyond-qfl": (0.13, 0.15, 0.17)}
    runs |= {"beyond-gfl": (0.2,), "beyond-dfl": (0.12,), "ablations-box_loss_diou": (0.16,)}
    queue = RowQueue(tmp_path / "out")
    for run, values in runs.items():
        for seed, ap in enumerate(values):
            queue.finish(f"{run}{seed}", result(run, seed, ap))
    longer, page = tmp_path / "longer.json", tmp_path / "page.md"
    row_results.write(longer, [result("ablations", s, 0.21) | {"steps": 1000} for s in range(3)])
    costs = {"mini:ablations": 1.0, "mini:beyond:qfl": 1.2, "mini:beyond:gfl": 3.0}
    costs |= {"mini:ablations+loss.box_loss=diou": 0.9, "mini:beyond:dfl": 0.5}
    rows = {name: {"ratio": ratio} for name, ratio in costs.items()}
    (tmp_path / "costs.json").write_text(json.dumps({"rows": rows}))
    page.write_text("<!-- rows of mini -->\n<!-- end of mini -->")
    command = ["equal-time", "--preset=mini", "--tables=beyond", "--rows", *names, "DIoU loss"]
    command += [f"--out={tmp_path}/out", f"--costs={tmp_path}/costs.json", f"--into={page}"]
    call(monkeypatch, 0, *command, "--longer", str(longer))
    text = capsys.readouterr().out
    assert text.strip() in page.read_text()
    # as in the report by hand, t = 4.303 and the variance 1.5; ATSS after 600 steps is
    # 0.8 * 11 + 0.2 * 21 = 13, with 0.8^2 + 0.2^2 = 0.68 variances
    equal, later = 4.303 * math.sqrt(1.5 * 2 / 3), 4.303 * math.sqrt(1.5 * 1.68 / 3)
    one = 4.303 * math.sqrt(1.5 * 2)
    assert "Plain ATSS: 500 steps: 11.0, 1000 steps: 21.0." in text
    start = "| quality focal loss, `qfl` | 1.20 | 15.0 | 2.0 | 3 |"
    assert f"{start} +4.0 ± {equal:.1f} | 13.0 | +2.0 ± {later:.1f} |" in text
    assert f"`gfl` | 3.00 | 20.0 | – | 1 | +10.0 ± {one:.1f} | over 21.0 | – |" in text
    assert f"`dfl` | 0.50 | 12.0 | – | 1 | +2.0 ± {one:.1f} | below 11.0 | – |" in text
    start = "| DIoU loss, `loss.box_loss=diou` | 0.90 | 16.0 | – | 1 |"
    assert f"{start} +6.0 ± {one:.1f} | 11.0 | +6.0 ± {one:.1f} |" in text
    assert "| both: VFNet, `vfnet` | not measured | not run | – | 0 | – | – | – |" in text
    row_results.write(longer, [result("ablations", 0, 0.2) | {"steps": 200}])
    call(monkeypatch, 2, *command, "--longer", str(longer))
    assert "--longer: no run of plain ATSS of more than 500 steps" in capsys.readouterr().err
    for what, message in (({"ratio": 1.4}, "another recipe"), ({"problem": "memory"}, "memory")):
        (tmp_path / "costs.json").write_text(json.dumps({"rows": {**rows, "mini:ablations": what}}))
        call(monkeypatch, 2, *command, "--longer", str(longer))
        assert message in capsys.readouterr().err


def test_every_row_has_its_line_in_equal_time():
    spread = row_report.Spread(1.0, 4)
    points = [row_equal_time.Point(500, {0: 10.0}), row_equal_time.Point(1000, {0: 20.0})]
    for row in ROWS:
        found = [result(row.run, 0, 0.3)]
        found[0]["evaluations"] = {" ".join(row.test): found[0]["metrics"]}
        cells = row_equal_time.cells(row, found, points, 1.5, spread)
        assert len(cells) == len(row_equal_time.HEADER) and cells[5].startswith("+20.0")
        assert cells[-1].startswith("+15.0")


def test_a_step_of_every_row_can_be_timed(monkeypatch):
    flags = {}
    monkeypatch.setattr(bench_recipes.bench_flags, "start", lambda these: flags.update(these) or {})
    monkeypatch.setattr(bench_recipes.bench_flags, "take_turns", lambda *_: {})
    names = list(dict.fromkeys(row_equal_time.cost_name(row, "mini") for row in ROWS))
    bench_recipes.measure(names, ["data.global_batch=8"], 2, 8)
    assert list(flags) == names
    _, (config, *changes) = flags["mini:ablations+loss.box_loss=diou"]
    assert config.endswith("configs/mini.py:ablations")
    assert changes == ["--set", "data.global_batch=8", "loss.box_loss=diou"]
    for _, (config, _, *changes) in flags.values():
        bench_train.read_recipe(config.removeprefix("--config="), changes)


@pytest.mark.parametrize(("freedom", "t"), [(1, 12.706), (2, 4.303), (4, 2.776), (40, 2.021)])
def test_quantiles_of_the_t_distribution(freedom, t):
    assert row_report.t_quantile(freedom) == pytest.approx(t, abs=2e-3)


RUNS: dict[str, Row] = {"".join((row.run, *row.test)): row for row in ROWS}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> str:
    """A folder that holds a dozen crowded images."""
    from atss_jax.data import synthetic, tfds_builders

    folder = str(tmp_path_factory.mktemp("tfds"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "SPLIT_SIZES", {"train": 8, "validation": 2})
        tfds_builders.load_tfds("shapes_crowded", "train", folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_every_run_trains_a_step_and_evaluates(tmp_path, prepared, run):
    small = load(f"mini:{RUNS[run].config}", RUNS[run].fields)
    if small.eval.multiscale == "paper":
        # 26 programs of a ResNeXt-101 take an hour of a core: test_multiscale has all the passes
        small = dataclasses.replace(small, eval=dataclasses.replace(small.eval, multiscale="flip"))
    small = dataclasses.replace(
        small,
        data=dataclasses.replace(small.data, data_dir=prepared, global_batch=8),
        optim=dataclasses.replace(small.optim, num_steps=1),
    )
    found = train.train(small, epath.Path(tmp_path), with_evaluation=True)
    assert found["steps"] == 1 and 0 <= found["metrics"]["AP"] <= 1


@pytest.mark.slow
def test_a_further_evaluation_is_read_where_it_is_written(tmp_path, prepared):
    flags = (
        *(f"--config.data.data_dir={prepared}", "--config.data.global_batch=8"),
        "--config.optim.num_steps=1",
    )
    test = ("--config.eval.multiscale=flip",)
    job = row_jobs.Job("plain", "mini", 0, "mini:ablations", flags, (test,))
    found = row_jobs.run_job(job, tmp_path, ())
    assert set(found["evaluations"]) == {test[0]}
    assert set(found["evaluations"][test[0]]) == set(found["metrics"])
