"""Scores taken by several processes: the values of one."""

from dataclasses import asdict, replace

import pytest

from evokd.data import read_data
from evokd.errors import EvokdError
from evokd.evaluate.tabular import read_table
from evokd.scores.ranking import Scorer, Setting, measure
from evokd.scoring import open_scorer, scored_by
from evokd.students import read_student_space

SETTING = Setting(archs=3, seeds=2, batch=4, teacher="resnet8w4")
JOBS = [(repeat, text) for repeat in range(2) for text in ("111", "713", "357")]


@pytest.fixture(scope="module")
def expected():
    space, data = read_student_space("resnet_s0"), read_data("digits")
    return [Scorer(["diswot"], space, data, SETTING)((repeat, text)) for repeat, text in JOBS]


def test_a_worker_finds_what_this_process_does(expected):
    scorer = open_scorer({"names": ["diswot"], "space": "resnet_s0", "data": "digits", "setting": asdict(SETTING)})
    assert [scorer(job).metrics for job in JOBS] == expected
    assert len({value for scores in expected for value in scores.values()}) == len(JOBS)


@pytest.mark.slow
def test_two_workers_find_it_in_the_order_of_the_jobs(expected):
    assert list(scored_by(2, ["diswot"], "resnet_s0", "digits", SETTING)(JOBS)) == expected


@pytest.mark.slow
def test_a_student_that_cannot_be_scored_is_told_by_its_name():
    with pytest.raises(EvokdError, match="student 999"):
        list(scored_by(1, ["diswot"], "resnet_s0", "digits", SETTING)([(0, "999")]))


def test_of_students_that_are_one_network_the_first_stands_for_all(shared_data):
    table, space = read_table("nas_bench_201", shared_data), read_student_space("nas_bench_201")
    texts = sorted(table.rows)[-40:]
    keys = [space.key_of(space.read(text)) for text in texts]
    assert len(set(keys)) < len(texts)
    few = replace(table, rows={text: table.rows[text] for text in texts})
    setting = replace(SETTING, archs=100, seeds=1, distinct=True)
    found = measure(["params"], space, few, "cifar100", read_data("digits"), setting)
    assert sorted(found.texts) == sorted(texts[keys.index(key)] for key in dict.fromkeys(keys))
