"""A searched student beside MobileNetV2, MNASNet and MobileNetV3 of equal latency or MACs, each trained plain, by KD and by RCO."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from evokd.akd.experiment import Experiment, Plan, Training
from evokd.akd.figures import gap, spread
from evokd.akd.results import Results, Table
from evokd.checkpoint import write_whole
from evokd.data import read_data
from evokd.errors import EvokdError, unknown
from evokd.evaluate.route import RCO, RouteJudge, open_route_judge
from evokd.evaluate.students import StudentJob
from evokd.executor import Serial, Workers
from evokd.genome.codec import to_names
from evokd.models.mobile import DESIGNS, build_mobile
from evokd.models.route import train_route
from evokd.models.zoo import build
from evokd.problem import pick_device
from evokd.report.akd import draw_designs
from evokd.student_export import own_judge
from evokd.student_problem import StudentProblem, open_student_problem
from evokd.students.cost import latency, measure

WIDTHS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.35, 0.5, 0.65, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0)
WAYS = {"plain": "train", "kd": "distill", "rco": RCO}  # way → tier of its job
EQUAL = ("latency", "macs")


@dataclass(frozen=True)
class Trial:
    """What is compared.

    Attributes:
        problem: of the finished teacher.
        executor: trains students and designs in every way.
        student: text of the searched one.
        route: files of the teacher's checkpoints.
    """

    problem: StudentProblem
    executor: Serial | Workers
    student: str
    route: tuple[str, ...]


@dataclass(frozen=True)
class Scaled:
    """A design at the width at which it costs what the student does; the student itself has no `spec`.

    Attributes:
        spec: such as `mobilenet_v2x0.35`.
        parameters: trainable numbers.
        macs: for one image.
        milliseconds: measured for one image on one thread.
        ratio: of latency, to the student's.
    """

    spec: str
    parameters: int
    macs: int
    milliseconds: float
    ratio: float


def open_designs(plan: Plan, say: Callable[[str], None], download: bool = False) -> Trial:
    """The student checked, the teacher's route trained or read, its outputs recorded.

    Raises:
        EvokdError: no student or several, one outside the space, fewer than two final seeds, an unknown measure, a teacher without route.
    """
    if len(plan.students) != 1:
        raise EvokdError("--student", "one student's text", f"{len(plan.students)}", "a search's best/student.json has it")
    if plan.finals < 2:
        raise EvokdError("--finals", "at least 2", str(plan.finals), "an interval needs two")
    if plan.options["equal"] not in EQUAL:
        raise unknown("--equal", "latency or macs", str(plan.options["equal"]), EQUAL)
    if plan.budgets:
        raise EvokdError("evokd akd designs", "no limit, the student is given", str(plan.budgets[0]))
    config = plan.config(max_params=None, max_macs=None, max_latency_ms=None, evaluator="distill")
    route = _route(plan, config, say, download)
    problems = []
    for path in route:
        problems.append(open_student_problem(plan.config(max_params=None, evaluator="distill", teacher=str(path)), say, download))
    problem = problems[-1]
    student = problem.space.write(problem.space.read(plan.students[0]))
    return Trial(problem, _executor(problems), student, tuple(map(str, route)))


def _route(plan: Plan, config, say: Callable[[str], None], download: bool) -> Sequence[Path | str]:
    if given := plan.options.get("route"):
        missing = [path for path in given if not Path(path).is_file()]
        if missing or len(given) < 2:
            raise EvokdError("--route", "at least two existing .safetensors files", repr(missing[0] if missing else given[0]))
        return given
    count, data = plan.options["checkpoints"], read_data(config.data, download)
    if not 2 <= count <= 20:
        raise EvokdError("--checkpoints", "2 to 20", str(count))
    return train_route(
        config.teacher, data, Path(config.out) / "cache", config.teacher_epochs, count, say, pick_device(config.device)
    )


def _executor(problems: Sequence[StudentProblem]) -> Serial | Workers:
    executors = [problem.executor for problem in problems]
    try:
        if isinstance(executors[-1], Serial):
            judges = [executor.evaluate for executor in executors]
            return Serial(RouteJudge([judge.bank for judge in judges], judges[-1].teacher, judges[-1].setup))
        recipes = [executor.setup[1] for executor in executors]
        recipe = recipes[-1] | {"banks": [each["bank"] for each in recipes]}
        open_route_judge(recipe)  # what would fail in every worker fails here
        return Workers(executors[-1].count, open_route_judge, recipe, executors[-1].engine)
    except ValueError as error:
        raise EvokdError("-s cache_gib", "room for the recorded outputs of every checkpoint", str(error)) from None
    finally:
        for executor in executors:
            executor.close()


def run_designs(experiment: Experiment, trial: Trial) -> Results:
    """Widths chosen, all trained in every way, told."""
    with closing(trial.executor):
        experiment.terminal.status("designs: scaled to the student's cost")
        scaled = scaled_designs(experiment, trial)
        wanted = []
        for (name, each), way, seed in product(scaled.items(), WAYS, experiment.seeds):
            student = each.spec or tuple(to_names(trial.problem.space.parse(trial.student)))
            teacher = "" if way == "plain" else trial.route[-1]
            wanted.append(Training(teacher, each.spec or name, way, seed, StudentJob(student, WAYS[way], (seed,), "test")))
        experiment.train(trial.executor, wanted)
    return designs_results(experiment, trial, scaled)


def scaled_designs(experiment: Experiment, trial: Trial) -> dict[str, Scaled]:
    """The student and every design at its width; chosen once, since latencies are never measured twice alike."""
    path = experiment.folder / "designs.json"
    with suppress(OSError, ValueError, TypeError):
        return {name: Scaled(**each) for name, each in json.loads(path.read_text(encoding="utf-8")).items()}
    costs = candidates(trial)
    chosen = choose_widths(costs, trial.student, experiment.plan.options["equal"])
    write_whole(path, json.dumps({name: vars(each) for name, each in chosen.items()}, indent=1) + "\n")
    return chosen


def candidates(trial: Trial) -> dict[str, Scaled]:
    """Costs of the student and of every design at every width; latencies taken in turns."""
    problem, judge = trial.problem, own_judge(trial.problem.executor)
    classes, channels, side = problem.images
    tree = problem.space.parse(trial.student)
    student = lambda: build(lambda k: problem.space.build(tree, k, channels), classes, channels, 0)  # noqa: E731
    specs = [f"{design}x{width:g}" for design, width in product(DESIGNS, WIDTHS)]
    makers = {
        spec: lambda spec=spec: build(lambda k: build_mobile(spec, k, channels, side), classes, channels, 0) for spec in specs
    }
    image = judge.bank.normalised(judge.bank.images["validation"][:1]).cpu()
    times = latency(makers, student, image)
    one = next(iter(times.values()))
    own = one.seconds / one.ratio * 1000  # the reference's, which takes its turn like all others
    found = {trial.student: Scaled("", *measure(student(), image.shape), own, 1.0)}
    for spec, make in makers.items():
        found[spec] = Scaled(spec, *measure(make(), image.shape), times[spec].seconds * 1000, times[spec].ratio)
    return found


def choose_widths(costs: Mapping[str, Scaled], student: str, equal: str) -> dict[str, Scaled]:
    """Design → the width whose latency or MACs come nearest the student's, as a factor."""
    wanted = costs[student]
    distance = {
        "latency": lambda each: abs(math.log(each.milliseconds / wanted.milliseconds)),
        "macs": lambda each: abs(math.log(each.macs / wanted.macs)),
    }[equal]
    of = lambda design: [each for spec, each in costs.items() if spec.rpartition("x")[0] == design and each.spec]  # noqa: E731
    return {student: wanted} | {design: min(of(design), key=distance) for design in DESIGNS}


def designs_results(experiment: Experiment, trial: Trial, scaled: Mapping[str, Scaled]) -> Results:
    """Tables and the picture of students that are trained."""
    rows, means = [], {}
    for name, each in scaled.items():
        found = {way: experiment.accuracies("" if way == "plain" else trial.route[-1], each.spec or name, way) for way in WAYS}
        shown = {way: spread(values) for way, values in found.items()}
        gains = [gap([b - a for a, b in zip(found["plain"], found[way], strict=True)]) for way in ("kd", "rco")]
        rows.append((each.spec or name, each.parameters, each.macs, each.milliseconds, each.ratio, *shown.values(), *gains))
        means[each.spec or name] = shown
    columns = ("student", "parameters", "MACs", "ms", "latency ratio", "plain", "KD", "RCO", "KD − plain", "RCO − plain")
    note = "First row: the searched student. Mean ± half width over fresh seeds; gains are paired by seed. ms: one image, one thread."
    equal, problem = experiment.plan.options["equal"], trial.problem
    farthest = max(
        max(each.ratio, 1 / each.ratio) if equal == "latency" else _times(each.macs, scaled) for each in scaled.values()
    )
    about = [
        f"{problem.card['data']}, space {problem.config.space}, loss {problem.config.loss}, {problem.config.protocol.steps} steps"
    ]
    about.append(
        f"teacher {experiment.plan.config().teacher}, its route: {len(trial.route)} checkpoints, each for an equal share of the steps"
    )
    about.append(f"designs scaled to equal {equal}; of their widths the nearest, at worst {farthest:.1f} times off")
    pictures = {"designs": draw_designs(means)}
    return Results(
        "A searched student beside human designs", about, [Table("designs", "Test accuracy (%)", columns, rows, note)], pictures
    )


def _times(macs: int, scaled: Mapping[str, Scaled]) -> float:
    student = next(iter(scaled.values())).macs
    return max(macs / student, student / macs)
