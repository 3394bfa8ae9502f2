"""Objectives: what a text means, which of two runs is better, and what is no objective."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaling.tuning.objective import BOUNDED, MAXIMISED, MINIMISED, Condition, Figures, Objective, parse_objective
from cluster.errors import UserError

positive = st.floats(0, 1e6)
runs = st.builds(Figures, attainment=st.floats(0, 1), gpu_hours=positive, cost=positive, goodput_per_gpu_hour=positive)


def figures(attainment: float = 1.0, gpu_hours: float = 1.0, cost: float = 3.0, goodput: float = 100.0) -> Figures:
    return Figures(attainment=attainment, gpu_hours=gpu_hours, cost=cost, goodput_per_gpu_hour=goodput)


@pytest.mark.parametrize(
    ("text", "goal", "conditions"),
    [
        ("cost subject to attainment>=0.99", "cost", [("attainment", 0.99)]),
        (" gpu_hours  subject  to attainment >= .9 ", "gpu_hours", [("attainment", 0.9)]),
        (
            "cost subject to attainment>=0.99 and gpu_hours<=12 and goodput_per_gpu_hour>=1e3",
            "cost",
            [("attainment", 0.99), ("gpu_hours", 12), ("goodput_per_gpu_hour", 1000)],
        ),
        ("goodput_per_gpu_hour", "goodput_per_gpu_hour", []),
        ("goodput_per_gpu_hour subject to cost<=2.5", "goodput_per_gpu_hour", [("cost", 2.5)]),
    ],
)
def test_a_text_is_read(text: str, goal: str, conditions: list[tuple[str, float]]) -> None:
    objective = parse_objective(text)
    assert objective == Objective(
        goal=goal, conditions=tuple(Condition(figure=figure, bound=bound) for figure, bound in conditions)
    )
    assert parse_objective(str(objective)) == objective


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no goal ''"),
        ("costs subject to attainment>=0.99", "no goal 'costs'"),
        ("attainment subject to cost<=3", "no goal 'attainment'"),
        ("cost", "attainment needs a bound"),
        ("gpu_hours subject to cost<=3", "attainment needs a bound"),
        ("cost subject to", "no condition ''"),
        ("cost subject to attainment", "no condition 'attainment'"),
        ("cost subject to attainment>0.99", "no condition 'attainment>0.99'"),
        ("cost subject to attainment>=0.99 and", "no condition 'attainment>=0.99 and'"),
        ("cost subject to attainment>=0.99, gpu_hours<=3", "no condition"),
        ("cost subject to attainmnt>=0.99", "no figure 'attainmnt'"),
        ("cost subject to attainment<=0.99", "write attainment>=0.99"),
        ("cost subject to attainment>=0.99 and gpu_hours>=3", "write gpu_hours<=3"),
        ("cost subject to attainment>=most", "'most' in 'attainment>=most' is no number"),
        ("cost subject to attainment>=99", "attainment is a share"),
        ("cost subject to attainment>=99%", "'99%' in 'attainment>=99%' is no number"),
        ("cost subject to attainment>=0", "no bound above 0"),
        ("cost subject to attainment>=nan", "no bound above 0"),
        ("cost subject to attainment>=0.9 and attainment>=0.99", "attainment has two bounds"),
        ("cost subject to attainment>=0.9 and cost<=3", "cost is both the goal and bounded"),
    ],
)
def test_what_is_no_objective_is_told_in_a_line_with_all_that_is_known(text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_objective(text)
    line = str(caught.value)
    assert words in line
    assert "\n" not in line
    assert all(name in line for name in (*MINIMISED, *MAXIMISED, *BOUNDED))


def test_goals_are_minimised_or_maximised() -> None:
    cost = parse_objective("cost subject to attainment>=0.9")
    assert cost.value(figures(cost=2)) < cost.value(figures(cost=2.001))
    goodput = parse_objective("goodput_per_gpu_hour")
    assert goodput.value(figures(goodput=101)) < goodput.value(figures(goodput=100))


def test_conditions_are_broken_in_parts_of_their_bounds() -> None:
    objective = parse_objective("cost subject to attainment>=0.8 and gpu_hours<=10")
    assert objective.broken_by(figures(attainment=0.8, gpu_hours=10)) == 0
    assert objective.broken_by(figures(attainment=0.6, gpu_hours=10)) == pytest.approx(0.25)
    assert objective.broken_by(figures(attainment=0.6, gpu_hours=15)) == pytest.approx(0.75)


def test_the_order_of_runs() -> None:
    objective = parse_objective("cost subject to attainment>=0.99")
    ordered = [
        figures(attainment=0.99, cost=5),
        figures(attainment=1.0, cost=5e5),
        figures(attainment=0.98, cost=9),
        figures(attainment=0.5, cost=0.0),
    ]
    values = [objective.value(run) for run in ordered]
    assert all(better < worse for better, worse in pairwise(values))


@given(runs, runs, st.sampled_from(["cost", "gpu_hours", "goodput_per_gpu_hour"]), st.floats(0.01, 1))
def test_a_run_that_breaks_a_condition_is_worse_than_any_that_keeps_all(
    one: Figures, other: Figures, goal: str, bound: float
) -> None:
    objective = Objective(goal=goal, conditions=(Condition(figure="attainment", bound=bound),))
    broken, broken_more = sorted((objective.broken_by(one), objective.broken_by(other)))
    kept = [run for run in (one, other) if run.attainment >= bound]
    if len(kept) == 1:
        assert objective.value(kept[0]) <= 0 < max(map(objective.value, (one, other)))
    if broken:
        assert (min(map(objective.value, (one, other))), max(map(objective.value, (one, other)))) == (
            broken,
            broken_more,
        )
