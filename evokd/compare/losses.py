"""Many losses on equal terms: found ones, and hand-made ones whose numbers are tuned, trained with the same seeds and told once on test.

What is tuned is tuned on the validation images of the first pair, every loss with as many trials. The best of them, the losses of a
search (its winner, random search and KD with the same budget), KD as published and plain training then meet with fresh seeds that all
share, on every pair. Each training is on disk when it is done; a comparison that was cut goes on with what is missing.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path

from evokd.baselines import baselines
from evokd.checkpoint import write_whole
from evokd.compare.full import full_trainings
from evokd.compare.loss_mirror import mirrored
from evokd.compare.loss_plan import KD, PLAIN, RANDOM, TUNED, Entrant, Plan
from evokd.compare.loss_tables import Compared, Tuning, written
from evokd.compare.tuning import variants
from evokd.config import change_config
from evokd.errors import EvokdError
from evokd.executor import Serial, Terms, Workers, check_limits
from evokd.finals import PUBLISHED, Entry, confirm
from evokd.folder import locked, new_folder
from evokd.genome.codec import write_number
from evokd.genome.individual import Outcome
from evokd.journal import Journal
from evokd.losses.language import parse_loss
from evokd.losses.program import compile_loss
from evokd.problem import Problem, misfit, open_problem
from evokd.report.terminal import Terminal
from evokd.run import Budget, evaluation_seeds
from evokd.signals import Ending
from evokd.training.recipes import GAMMAS as PUBLISHED_GAMMAS
from evokd.trainings import Trainings

FEW = 2  # best variants of a loss that are trained again before one is taken


def compare_losses(plan: Plan, terminal: Terminal, folder: Path | None = None) -> Compared:
    """Everything that is missing of a comparison, and all that is written of it.

    Raises:
        EvokdError: whatever does not fit, before a folder exists; a folder that another process writes.
    """
    with ExitStack() as stack:
        stack.callback(terminal.done)
        problems = [_opened(plan, student, terminal, stack) for student in plan.students]
        going = folder is not None
        folder = folder or new_folder(plan.config, f"losses-{problems[0].card['data']}", problems[0].space.text)
        stack.enter_context(locked(folder))
        _check_same(folder, problems)
        plan.write(folder)
        trainers = _trainers(plan, problems, folder, going, stack)
        (folder / "events.jsonl").unlink(missing_ok=True)  # told anew from the trainings, which cost nothing any longer
        journal = stack.enter_context(closing(Journal(folder)))
        tell = stack.enter_context(mirrored(plan, folder, problems[0].card, terminal.warn))
        compared = written(_Session(plan, problems, trainers, folder, journal, terminal).run())
        tell(compared)
        return compared


def _opened(plan: Plan, student: str, terminal: Terminal, stack: ExitStack) -> Problem:
    """A pair on which all losses can be trained that fit it."""
    seeds = [parse_loss(each.text) for each in plan.given if each.text]
    guests = [parse_loss(text) for _, text in plan.tuned]
    config = change_config(plan.config, {"student": student})
    problem = open_problem(config, terminal.status, seeds, guests=guests)
    check_limits(config.memory_gib, problem.executor)
    stack.callback(problem.executor.close)
    return problem


def _check_same(folder: Path, problems: Sequence[Problem]) -> None:
    """Raises EvokdError where data, teacher or a student have changed since the comparison began."""
    path, keys = folder / "problems.json", {problem.config.student: problem.key for problem in problems}
    if path.exists() and (was := json.loads(path.read_text(encoding="utf-8"))) != keys:
        raise EvokdError("--resume", f"the pairs that {folder} began with, {was}", str(keys))
    write_whole(path, json.dumps(keys) + "\n")


def _trainers(plan: Plan, problems: Sequence[Problem], folder: Path, going: bool, stack: ExitStack) -> list[Serial | Workers]:
    """What tells each pair on test. Every training is on disk when it is done; a signal ends the comparison between two of them."""
    ending = stack.enter_context(Ending(folder, f"evokd compare losses --resume {shlex.quote(str(folder))}"))
    memory, trainers = int(plan.config.memory_gib * 2**30) if plan.config.memory_gib else None, []
    for number, problem in enumerate(problems):
        home = folder / f"pair-{number}"
        full = full_trainings(problem.config, plan.recipe, home / "full") if plan.recipe else None
        for executor, kept in ((problem.executor, home), (full, home / "full")):
            if executor is not None:
                kept.mkdir(exist_ok=True)
                trainings = Trainings(kept, go_on=going)
                stack.callback(trainings.close)
                executor.terms = Terms(plan.config.timeout_seconds, memory, trainings, ending)
        if full is not None:
            stack.callback(full.close)
        trainers.append(full or problem.executor)
    return trainers


class _Session:
    """One comparison from its first training to its last."""

    def __init__(
        self, plan: Plan, problems: Sequence[Problem], trainers: Sequence[Serial | Workers], folder: Path, journal: Journal,
        terminal: Terminal,
    ) -> None:  # fmt: skip
        self.plan, self.problems, self.trainers = plan, problems, trainers
        self.folder, self.journal, self.terminal = folder, journal, terminal
        self.first, self.seed = problems[0], plan.config.seed
        self.repeats = evaluation_seeds(self.seed, "search", plan.config.protocol.repeats)

    def run(self) -> Compared:
        heading = self.heading()
        for line in heading:
            self.terminal.say(line)
        self.journal.write("start", version=1, pairs=[p.key for p in self.problems], seed=self.seed, card=self.first.card)
        tunings = self.tuned()
        entrants = self.entrants(tunings)
        told = {pair_of(p): self.told(p, each, entrants) for p, each in zip(self.problems, self.trainers, strict=True)}
        connectors = {pair_of(p): {e.name: connectors_of(e, p) for e in entrants} for p in self.problems}
        self.journal.write("end", entrants=[asdict(entrant) for entrant in entrants])
        return Compared(self.plan, self.folder, heading, entrants, tunings, told, connectors)

    def heading(self) -> list[str]:
        plan, config = self.plan, self.plan.config
        lines = [p.heading(self.folder)[0] for p in self.problems]
        tuning = f"{len(plan.tuned)} published losses with {plan.trials} trials each, the best {plan.best} with {plan.more} more"
        length = plan.recipe or f"{config.protocol.steps} steps of {config.protocol.batch}"
        rows = f"{plan.seeds} fresh seeds a row · {length} · run {self.folder}"
        return [*lines, f"{tuning} · {rows}" if plan.tuned else rows]

    def tuned(self) -> list[Tuning]:
        """Hand-made losses, the best first: all with as many trials, then those that go on with more."""
        taps = self.first.examples[:2]
        odd = {name: misfit(parse_loss(text), taps) for name, text in self.plan.tuned}
        sound = [(name, text) for name, text in self.plan.tuned if not odd[name]]
        refused = [Tuning(name, reason=reason) for name, reason in odd.items() if reason]
        first = self.tried(sound, 0, self.plan.trials)
        best = sorted(first, key=lambda name: -_best(first[name]))[: self.plan.best]
        later = self.tried([pair for pair in sound if pair[0] in best], self.plan.trials, self.plan.trials + self.plan.more)
        tunings = [self.settled(name, [*first[name], *later.get(name, ())], name in best) for name, _ in sound]
        for tuning in [*tunings, *refused]:
            self.journal.write("tuned", **asdict(tuning))
        return sorted(tunings, key=lambda t: (not t.goes_on, -(t.best.found if t.best else -math.inf))) + refused

    def tried(self, losses: Sequence[tuple[str, str]], start: int, end: int) -> dict[str, list[tuple[Entry, Outcome]]]:
        """Loss → its trials from `start` to `end`, each with its outcome on validation."""
        entries = {name: self.variants(name, text)[start:end] for name, text in losses}
        jobs = [entry.job(self.repeats, "validation") for each in entries.values() for entry in each]
        outcomes = self.counted(f"tuning {self.first.card['student']}", self.first.executor, jobs)
        return {name: [(entry, self.trial(name, entry, next(outcomes))) for entry in each] for name, each in entries.items()}

    def trial(self, name: str, entry: Entry, outcome: Outcome) -> Outcome:
        """Written down."""
        told = {"status": outcome.status.value, "fitness": outcome.fitness, "reason": outcome.reason}
        self.journal.write("trial", loss=name, text=entry.text, gamma=entry.gamma, **told)
        return outcome

    def variants(self, name: str, text: str) -> list[Entry]:
        gamma = PUBLISHED_GAMMAS.get(name, self.plan.config.protocol.gamma)
        found = variants(name, text, gamma, self.plan.trials + self.plan.more, self.seed)
        return [Entry(f"{name} {number}", variant, g) for number, (variant, g) in enumerate(found)]

    def counted(self, what: str, executor: Serial | Workers, jobs: Sequence) -> Iterator[Outcome]:
        """Outcomes of jobs in their order, with a status line."""
        for number, outcome in enumerate(executor.map(jobs), 1):
            self.terminal.status(f"{what}: {number}/{len(jobs)} trainings")
            yield outcome

    def settled(self, name: str, trials: Sequence[tuple[Entry, Outcome]], goes_on: bool) -> Tuning:
        """The best variant; of a loss that goes on after the best few were trained again."""
        published = trials[0][1].fitness if trials else None
        ended = sorted((t for t in trials if t[1].fitness is not None), key=lambda t: -t[1].fitness)
        scored = [replace(entry, fitness=outcome.fitness) for entry, outcome in ended]
        if goes_on and scored:
            seeds = evaluation_seeds(self.seed, "confirm", self.plan.config.confirm_repeats)
            scored = confirm(scored[:FEW], {e.name: o for e, o in ended}, self.first.executor, seeds)
        if not scored:
            return Tuning(name, len(trials), published, reason=trials[0][1].reason if trials else "")
        best = Entrant(f"{name}, tuned", scored[0].text, scored[0].gamma, len(trials), scored[0].fitness)
        return Tuning(name, len(trials), published, best, "", goes_on)

    def entrants(self, tunings: Sequence[Tuning]) -> tuple[Entrant, ...]:
        """What is told on test: found losses, random search and tuned KD, hand-made ones, KD as published, plain training."""
        gamma, weight, tau = PUBLISHED
        rows = [*self.plan.given]
        if not any(each.name == RANDOM for each in rows):
            rows += self.controls(known={each.name for each in rows})
        rows += [tuning.best for tuning in tunings if tuning.goes_on and tuning.best]
        rows.append(Entrant(KD, f"{write_number(weight)}*kl(logits, tau={write_number(tau)})", gamma))
        rows.append(Entrant(PLAIN, "", 1.0))
        return tuple({each.name: each for each in rows}.values())

    def controls(self, known: set[str]) -> Iterator[Entrant]:
        """Random search and tuned KD with the budget that the configuration gives a search."""
        config = self.plan.config
        budget = Budget(config.generations, config.population, config.budget_evals, None, config.share)
        found = baselines(self.first, budget, self.terminal)
        for name, key in ((RANDOM, "random"), (TUNED, "kd")):
            entry = found[key]
            gamma = config.protocol.gamma if entry.gamma is None else entry.gamma
            if name not in known:
                yield Entrant(name, entry.text, gamma, budget.total, entry.fitness)

    def told(self, problem: Problem, trainer: Serial | Workers, entrants: Sequence[Entrant]) -> dict[str, list[float]]:
        """Row → test accuracy by seed on one pair; losses of one form and γ are trained once."""
        seeds = evaluation_seeds(self.seed, "compare", self.plan.seeds)
        fitting = [e for e in entrants if not e.text or not misfit(parse_loss(e.text), problem.examples[:2])]
        distinct = list({(e.text, e.gamma): e for e in fitting}.values())
        jobs = [e.entry.job([seed], "test") for seed in seeds for e in distinct]  # seed by seed, so that one cut short is even
        found: dict[tuple[str, float], list[float]] = {(e.text, e.gamma): [] for e in distinct}
        outcomes = self.counted(f"finals of {problem.card['student']}", trainer, jobs)
        for seed in seeds:
            for e in distinct:
                found[e.text, e.gamma].append(self.written_down(problem, e, seed, next(outcomes)))
        lost = [math.nan] * len(seeds)
        return {e.name: found.get((e.text, e.gamma), lost) for e in entrants}

    def written_down(self, problem: Problem, entrant: Entrant, seed: int, outcome: Outcome) -> float:
        metrics = {name: value for name, value in outcome.metrics.items() if isinstance(value, float)}
        self.journal.write(
            "final", pair=pair_of(problem), row=entrant.name, text=entrant.text, gamma=entrant.gamma, seed=seed,
            status=outcome.status.value, reason=outcome.reason, metrics=metrics,
        )  # fmt: skip
        return metrics.get("accuracy", math.nan)


def _best(trials: Sequence[tuple[Entry, Outcome]]) -> float:
    return max((o.fitness for _, o in trials if o.fitness is not None), default=-math.inf)


def pair_of(problem: Problem) -> str:
    """Teacher and student, as tables call them."""
    return f"{problem.card['teacher']} → {problem.card['student']}"


def connectors_of(entrant: Entrant, problem: Problem) -> int:
    """Parameters that a loss trains beside the student on a pair; 0 where it does not fit."""
    tree = parse_loss(entrant.text) if entrant.text else None
    if tree is None or misfit(tree, problem.examples[:2]):
        return 0
    return sum(weight.numel() for weight in compile_loss(tree, *problem.examples[:2]).parameters())
