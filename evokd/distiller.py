"""Evolve a distiller from end to end: problem, run folder, baselines, search, finals, export, report, mirror."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from evokd.baselines import baselines
from evokd.config import Config, make_config, read_config, resumed_config
from evokd.controllers import check_controller, make_controller
from evokd.errors import EvokdError
from evokd.export import export_loss, read_loss
from evokd.finals import PUBLISHED, Entry, Row, choose, final_rows
from evokd.folder import write_front
from evokd.funnel import funnel_rows, passed, told_funnel
from evokd.genome.codec import write_number
from evokd.genome.individual import Individual, rank
from evokd.journal import Journal
from evokd.losses.known import KNOWN
from evokd.losses.language import parse_loss, tree_from_names, write_loss
from evokd.losses.own import load_operators
from evokd.memory import kept_for_others
from evokd.mirror import Mirror
from evokd.problem import Problem, open_problem
from evokd.report.lineage import write_end
from evokd.report.page import formula_of, write_report
from evokd.report.sizes import Size, best_per_size, told
from evokd.report.terminal import Terminal
from evokd.resume import Place, check_named, check_own, go_on, journal_of, listening, take_place
from evokd.run import Budget, arm, evaluation_seeds
from evokd.search.controller import Controller
from evokd.search.evolution import default_toolbox

ROW_NAMES = {"evolution": "evolved", "random": "random search"}
TUNED, PLAIN = "KD, tuned with as many trials", "plain, equal steps"
AS_PUBLISHED = f"KD (τ={write_number(PUBLISHED[2])}), as published"


@dataclass(frozen=True)
class Result:
    """What a search hands over.

    Attributes:
        best: the evolved loss in evokd's notation.
        front: (size, fitness, text) of the best loss of each size, on validation.
        run: the run folder.
        rows: the closing table; empty where the user's own training was the evaluator.
    """

    best: str
    front: list[tuple[int, float, str]]
    run: Path
    rows: list[Row]


def evolve_distiller(
    teacher=None,
    student=None,
    data=None,
    evaluate: Callable | None = None,
    *,
    toolbox: Callable = default_toolbox,
    quiet: bool = True,
    **config,
) -> Result:
    """The search of `python -m evokd.evolve distiller`, from a notebook or one's own training code.

    Args:
        teacher: a name, a file, or an `nn.Module` that maps (N,C,H,W) to logits (N,K).
        student: a name, or a callable that takes K and returns a fresh `nn.Module`.
        data: a name, a path, or a `Data` value.
        evaluate: (DistillLoss) → float, greater is better: the user's own training instead of the short distillation. The module
            holds the connectors, whose parameters belong into the user's optimiser. No finals are run then.
        toolbox: (grammar, stream) → DEAP toolbox with `mate`, `mutate` and `select`.
        quiet: say nothing.
        **config: any field of `Config`; `protocol` as a dict.

    Raises:
        EvokdError: whatever the command line would refuse.
    """
    named = {k: v for k, v in {"teacher": teacher, "student": student, "data": data}.items() if v is not None}
    objects = {k: v for k, v in named.items() if not isinstance(v, str)}
    values = {k: v if isinstance(v, str) else getattr(v, "__name__", type(v).__name__) for k, v in named.items()}
    if evaluate is not None:
        config = {"baselines": False, "population": 12} | config | {"funnel": {"rungs": ()} | dict(config.get("funnel", {}))}
    return run(make_config({**values, **config}), Terminal(quiet=quiet), evaluate=evaluate, toolbox=toolbox, **objects)


def resume(
    folder: Path,
    terminal: Terminal,
    changes: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    accept: bool = False,
    **given: Any,
) -> Result:
    """Continue a run, or extend a finished one, from its folder.

    Args:
        folder: of the run.
        terminal: told of the progress.
        changes: settings that are to be others.
        overrides: likewise, as `key=value`.
        accept: go on though settings, space or data have changed; that is recorded.
        **given: what the run had beside its configuration: `evaluate`, `toolbox`, and `teacher`, `student` or `data` as objects.

    Raises:
        EvokdError: not a run folder, `changes` that would alter the search itself, or users' operators that are not named again:
            a folder alone makes no code run.
    """
    check_named(read_config(folder / "config.toml"), changes or {}, given)
    return run(
        resumed_config(folder, "distiller", changes or {}, overrides, accept), terminal, folder=folder, accept=accept, **given
    )


def run(
    config: Config,
    terminal: Terminal,
    *,
    folder: Path | None = None,
    evaluate: Callable | None = None,
    toolbox: Callable = default_toolbox,
    download: bool = False,
    accept: bool = False,
    **objects,
) -> Result:
    """One search in its folder; see `evolve_distiller`. With `folder` the run there goes on."""
    check_controller(config)
    if evaluate is not None and config.rungs:
        raise EvokdError("-s funnel.rungs", "none, as training of one's own cannot be shortened", str(config.funnel.rungs))
    load_operators(config.operators)
    seeds = [read_loss(spec, "--seed-with") for spec in config.seed_with]
    with ExitStack() as stack:
        stack.callback(terminal.done)
        ending, events = listening(stack), journal_of(folder, stack, terminal.warn)
        with ending.dropping():
            problem = open_problem(config, terminal.status, seeds, download=download, evaluate=evaluate, **objects)
        executor = problem.executor
        stack.callback(executor.close)
        check_own(events, evaluate is not None)
        problem.executor = kept_for_others(problem, terminal.warn)
        place = take_place(problem, executor, problem.space.text, folder, events, stack, ending, accept, terminal.warn)
        controller = make_controller(problem, seeds, toolbox)
        return _Session(problem, controller, place, terminal, own=evaluate is not None).run()


def admitted(individuals: Sequence[Individual]) -> Iterator[list]:
    """What the gates had admitted, in their order: a generation as it was proposed, then what tuning made of it."""
    for _, born in groupby(filter(lambda i: passed(i.outcome), individuals), key=lambda i: i.generation):
        pairs = [(individual, individual.outcome.metrics.get("tuned_from")) for individual in born]
        yield from (parse_loss(before) if before else individual for individual, before in pairs)
        yield from (individual for individual, before in pairs if before)


def alone(config: Config) -> str:
    """Row of the loss that a search keeps, without what was added to it."""
    return f"{config.base} alone" if config.base in KNOWN else "the loss kept, alone"


class _Session:
    """One run from its first line to its last."""

    def __init__(self, problem: Problem, controller: Controller, place: Place, terminal: Terminal, own: bool) -> None:
        self.problem, self.config, self.place, self.terminal, self.own = problem, problem.config, place, terminal, own
        self.folder, config = place.folder, problem.config
        self.budget = Budget.of(config, config.share)
        self.search = arm(problem, config.controller, controller, self.budget, config.seed)
        kept = go_on(self.search, place, tree_from_names)
        self.search.gate.recall(admitted(self.search.individuals))
        self.journal = self.search.journal = Journal(self.folder)
        self.fresh, self.shrinks = not kept, sum(e["event"] == "shrink" for e in kept)
        self.mirror = Mirror(problem, self.folder, terminal.warn)

    def run(self) -> Result:
        with closing(self.journal), self.mirror.until_the_end():
            return self.through()

    def through(self) -> Result:
        """Search, choice, baselines, finals, and everything that is written of them."""
        self.terminal.opening(self.problem, self.folder)
        if self.fresh:
            about = {"config": self.config.hash(), "space": self.problem.space.hash, "problem": self.problem.key}
            about |= {"card": self.problem.card} | ({"own": True} if self.own else {})
            self.journal.write("start", version=1, **about, seed=self.config.seed)
        if self.place.drift:
            self.journal.write("drift", lines=self.place.drift)
        self.search.notice = self.notice
        self.tell_shrinkage()
        self.search.run()
        chosen, simplest = self.choice()
        rows = [] if self.own else self.finals(chosen, simplest, self.baselines())
        files = self.export(chosen[0], rows)
        sizes = self.sizes(chosen[0])
        front = write_front(self.folder, sizes)
        shown = formula_of(chosen[0].text, self.problem.examples[:2], self.config.protocol.gamma)
        files += [
            write_report(self.folder, chosen[0].text, shown, rows),
            self.folder / "front.csv",
        ]
        self.journal.write("end", best=chosen[0].text)
        files += write_end(self.folder)
        self.mirror.finish(rows, [*files, self.journal.path], chosen[0])
        self.place.terms.trainings.remove()
        self.terminal.closing(self.search, chosen[0], rows, [*self.tables(sizes), *self.hints()], self.mirror.command)
        return Result(chosen[0].text, front, self.folder, rows)

    def sizes(self, best: Entry) -> list[Size]:
        """The best loss of every size that no smaller one beats."""
        accuracy = self.config.fitness == "accuracy"
        return best_per_size(self.search.individuals, self.search.text, accuracy, best.error or 0.0)

    def tables(self, sizes: Sequence[Size]) -> list[str]:
        """The funnel of the whole run, and the best loss of every size."""
        return [*told_funnel(funnel_rows(self.search.history)), "", *told(sizes), ""]

    def hints(self) -> list[str]:
        """Where the results lie, and how to read them."""
        names = [path.name for path in sorted((self.folder / "best").iterdir(), reverse=True)]
        return [
            f"{self.folder / 'best'}: {' '.join(names)}   {self.folder / 'report.html'}",
            f"formula:    evokd export {self.folder} --format sympy",
        ]

    def baselines(self) -> dict[str, Entry]:
        """What the search has to beat, on the same protocol and budget."""
        spent = replace(self.budget, evaluations=self.search.trained, epochs=None)  # a clock may have ended the search early
        known = baselines(self.problem, spent, self.terminal) if self.config.baselines else {}
        for name, entry in known.items():
            self.journal.write("baseline", **asdict(entry) | {"name": name}, trials=spent.total)
        return known

    def notice(self, summary: dict | None) -> None:
        """After a candidate: the status line. After a generation: the table, the state and the mirror."""
        if summary is None:
            self.terminal.candidate(self.search)
            return
        self.terminal.generation(self.search, summary)
        told = {k: summary[k] for k in ("generation", "evaluations", "best", "best_id")}
        self.journal.mark(seed=self.config.seed, **told)
        self.mirror.generation(self.search, summary)
        self.tell_shrinkage()
        self.place.generation_over()

    def tell_shrinkage(self) -> None:
        """What the controller has dropped from its space since it was last told; a resumed run tells what was cut off."""
        for generation, evidence in getattr(self.search.controller, "dropped", [])[self.shrinks :]:
            self.shrinks += 1
            self.journal.write("shrink", generation=generation, dropped=[asdict(e) for e in evidence])
            self.terminal.say(
                "     space without " + ", ".join(f"{e.name} (mean rank {e.rank:.2f}, p {e.p:.2g})" for e in evidence)
            )

    def choice(self) -> tuple[list[Entry], Entry]:
        """The best after confirmation, and the simplest within one standard error of it."""
        config, search = self.config, self.search
        if not any(i.ok for i in search.individuals):
            reasons = sorted({i.outcome.reason[:60] for i in search.individuals if i.outcome.reason})[:3]
            hint = f"see {self.folder / 'events.jsonl'}: {'; '.join(reasons)}"
            raise EvokdError("search", "at least one candidate that trains", "none", hint)
        if self.own:
            best = min(search.individuals, key=rank)
            entry = Entry(str(best.id), search.text(best), fitness=best.outcome.fitness)
            return [entry], entry
        self.terminal.status(f"confirming: the best {config.confirm} once more on validation")
        repeats = config.confirm, config.confirm_repeats
        chosen, simplest = choose(search.individuals, search.text, self.problem.executor, config.seed, *repeats)
        for entry in chosen:
            self.journal.write("confirm", id=int(entry.name), text=entry.text, fitness=entry.fitness, error=entry.error)
        return chosen, simplest

    def finals(self, chosen: list[Entry], simplest: Entry, known: dict[str, Entry]) -> list[Row]:
        """All rows on test; the reference is the loss that is kept, else tuned KD, or KD as published where there are no baselines."""
        name, (gamma, weight, tau) = ROW_NAMES.get(self.config.controller, self.config.controller), PUBLISHED
        entries = [replace(chosen[0], name=name), replace(simplest, name=f"{name}, simplest within 1σ")]
        if known:
            entries += [replace(known["random"], name="random search, same budget"), replace(known["kd"], name=TUNED)]
        reference = TUNED if known else AS_PUBLISHED
        if self.problem.base:
            reference = alone(self.config)
            entries.append(Entry(reference, write_loss(self.problem.base)))
        entries.append(Entry(AS_PUBLISHED, f"{write_number(weight)}*kl(logits, tau={write_number(tau)})", gamma))
        entries.append(Entry(PLAIN, None, 1.0))
        self.terminal.status(f"finals: {self.config.finals} fresh seeds a row, told on test")
        seeds = evaluation_seeds(self.config.seed, "final", self.config.finals)
        return final_rows(entries, reference, self.problem.executor, seeds, self.journal)

    def export(self, best: Entry, rows: list[Row]) -> list[Path]:
        about = {
            "run": self.folder.name,
            "space": self.problem.space.space.name,
            "pair": {k: self.problem.card[k] for k in ("data", "teacher", "student")},
            "validation_fitness": best.fitness,
            "test": [{"row": r.entry.name, "mean": r.mean, "half": r.half} for r in rows],
        }
        pair = self.problem.examples[:2]
        return export_loss(self.folder / "best", parse_loss(best.text), self.config.protocol.gamma, pair, about)
