"""The plan: every image once a pass, shares, independence of hosts, constant-time access."""

import pickle
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_jax.data.batch_plan import BatchPlan, choose_bucket
from atss_jax.data.batch_rows import process_rows
from atss_jax.data.images import resized_size

BUCKETS = ((96, 128), (96, 160), (160, 96))


def make_sizes(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shapes = np.array([(60, 80), (60, 95), (90, 60), (48, 64)])
    return shapes[rng.choice(4, count, p=[0.5, 0.2, 0.2, 0.1])].astype(np.int32)


def make_plan(count: int = 200, *, seed: int = 0, global_batch: int = 8, **keywords) -> BatchPlan:
    keywords = {"short_sides": (96,), "max_long_side": 160, "buckets": BUCKETS} | keywords
    return BatchPlan(make_sizes(3, count), global_batch=global_batch, seed=seed, **keywords)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 60), batch=st.integers(1, 24), seed=st.integers(0, 2**40))
def test_every_image_once_a_pass(count, batch, seed):
    plan = make_plan(count, global_batch=batch, seed=seed)
    planned = [plan.step(step) for step in range(3 * count)]
    for bucket in plan.used_buckets:
        records = plan.bucket_records(bucket)
        stream = np.concatenate([p.record_index for p in planned if p.bucket == bucket])
        for first in range(0, len(stream) - len(records) + 1, len(records)):
            np.testing.assert_array_equal(np.sort(stream[first : first + len(records)]), records)


@pytest.mark.parametrize("batch", [1, 3, 8, 16])
def test_shares_and_visits(batch):
    plan = make_plan(200, global_batch=batch)
    cycle = plan.num_records
    visits = np.zeros(200, int)
    steps = Counter()
    for step in range(cycle):
        planned = plan.step(step)
        np.add.at(visits, planned.record_index, 1)
        steps[planned.bucket] += 1
        trained = np.concatenate([plan.bucket_records(b) for b in plan.used_buckets])
        assert np.ptp(visits[trained]) <= 2, step
        for bucket, done in steps.items():  # never far from its share
            assert abs(done - (step + 1) * len(plan.bucket_records(bucket)) / cycle) < len(BUCKETS)
    assert set(visits) == {batch}  # a cycle is exactly `batch` passes over everything


def test_permutations_differ_between_passes_and_seeds():
    plan, other = make_plan(), make_plan(seed=1)
    first = [tuple(plan.step(s).record_index) for s in range(200)]
    assert len(set(first)) > 190
    assert first != [tuple(other.step(s).record_index) for s in range(200)]


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_hosts_split_the_same_batches(hosts):
    plan = make_plan()
    for step in (0, 1, 57):
        whole = plan.step(step)
        parts = [make_plan().step(step).rows(process_rows(8, i, hosts)) for i in range(hosts)]
        joined = np.concatenate([part.record_index for part in parts])
        np.testing.assert_array_equal(joined, whole.record_index)
        np.testing.assert_array_equal(np.concatenate([p.target for p in parts]), whole.target)
        # step and row key the augmentations
        assert [p.first_row for p in parts] == list(range(0, 8, 8 // hosts))
        assert {p.step for p in parts} == {step}


def test_constant_time_far_away_and_pickled():
    plan = make_plan(2000)
    plan.step(0)
    started = time.process_time()
    far = plan.step(10_000_000)
    assert time.process_time() - started < 0.1
    again = pickle.loads(pickle.dumps(plan)).step(10_000_000)
    for value, repeated in zip(far, again, strict=True):
        np.testing.assert_array_equal(value, repeated)


def test_stream_is_pinned():
    """Resuming with another NumPy must go on with the same stream: raw Philox words are fixed."""
    planned = make_plan(short_sides=tuple(range(64, 97))).step(12_345)
    assert planned.bucket == (96, 160)
    assert planned.record_index.tolist() == [87, 56, 190, 189, 42, 35, 171, 196]
    assert planned.target.min(axis=1).tolist() == [81, 73, 71, 77, 70, 73, 79, 67]


def test_short_sides_have_their_range():
    plan = make_plan(short_sides=tuple(range(64, 97)))
    planned = [plan.step(s) for s in range(400)]
    shorts = np.concatenate([p.target.min(axis=1) for p in planned])
    assert set(shorts) == set(range(64, 97))  # every integer of the range
    for p in planned:
        assert (p.target <= p.bucket).all()


def test_images_go_to_the_smallest_bucket():
    sizes = make_sizes(3, 200)
    plan = make_plan(200)
    for bucket in plan.used_buckets:
        for record in plan.bucket_records(bucket):
            target = resized_size(tuple(sizes[record].tolist()), 96, 160)
            assert bucket == choose_bucket(target, BUCKETS)
    assert plan.num_records == 200 and plan.steps_per_epoch == 25.0


def test_a_bucket_too_small_for_a_batch_passes_its_images_on():
    sizes = np.array([(60, 80)] * 3 + [(60, 95)] * 9 + [(90, 60)] * 2, np.int32)
    plan = BatchPlan(
        sizes, buckets=BUCKETS, global_batch=4, seed=0, short_sides=(96,), max_long_side=160
    )
    assert plan.used_buckets == ((96, 160), (160, 96))
    assert len(plan.bucket_records((96, 160))) == 12
    # no other bucket holds the upright ones: a batch then holds an image twice
    assert sorted(plan.bucket_records((160, 96))) == [12, 13]


def test_keep_leaves_records_out():
    keep = np.arange(200) % 2 == 0
    plan = make_plan(keep=keep)
    seen = np.concatenate([plan.step(s).record_index for s in range(50)])
    assert plan.num_records == 100 and set(seen) == set(range(0, 200, 2))


def test_fingerprint_tells_plans_apart():
    same = make_plan().fingerprint()
    assert same == make_plan().fingerprint()
    others = [
        make_plan(seed=1),
        make_plan(199),
        make_plan(global_batch=4),
        make_plan(augmentations=()),
        make_plan(augmentations=("flip(0.4)",)),
        make_plan(augmentations=("flip(0.5)", "color_jitter(0.1)")),
        make_plan(short_sides=(90, 96)),
    ]
    assert len({same, *(plan.fingerprint() for plan in others)}) == 8


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"buckets": ((96, 100),)}, "multiples of 32"),
        ({"buckets": ()}, "at least one"),
        ({"buckets": ((96, 128), (96, 128))}, "each once"),
        ({"buckets": ((96, 128),)}, r"record 2: 144x96 px .* fits none"),
        ({"short_sides": (96, 128)}, "fits none"),  # the largest of a range must fit
        ({"short_sides": ()}, "short sides"),
        ({"short_sides": (200,)}, "short sides"),
        ({"augmentations": ("flip(1.5)",)}, "probability must be at least 0 and at most 1"),
        ({"global_batch": 0}, "data.global_batch=0"),
        ({"keep": np.zeros(200, bool)}, "no record to train on"),
    ],
)
def test_bad_values_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        make_plan(**keywords)


def test_negative_steps_are_refused():
    with pytest.raises(ValueError, match="count from 0"):
        make_plan().step(-1)
