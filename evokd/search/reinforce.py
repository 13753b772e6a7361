"""Reinforcement learning: a policy chooses every production of a tree, and rewards make good choices likelier.

REINFORCE (Williams, Machine Learning 8, 1992) with the policies of NAS-Bench-201 (independent categoricals) and of NASNet and MnasNet
(an LSTM, one token a decision), and PPO's clipped surrogate (Schulman et al., 2017). The policy starts as random search, to which its
logits are added. A finished tree holds all decisions that led to it, so that nothing needs to be remembered between `ask` and `tell`.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from random import Random
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from evokd.errors import EvokdError, unknown
from evokd.genome.codec import to_names
from evokd.genome.grammar import Grammar, Node
from evokd.genome.grow import grow_tree
from evokd.genome.individual import Individual
from evokd.search.ageing import TRIES
from evokd.search.fresh import grow_afresh
from evokd.search.rewards import Reward
from evokd.streams import derive

Context = tuple[str, int]  # parent production and argument slot, which fix the kind; the root's is ("", 0)
ROOT: Context = ("", 0)
MASKED = -1e9  # finite, so that 0 · log 0 is 0 in the entropy
UNITS = 64  # of the LSTM
DECAY, ENTROPY, CLIP = 0.9, 0.01, 0.2
# The best of 0.02–0.3 and of 0.001–0.01 with a hundred evaluations, on NAS-Bench-201 and on a toy; ten times those of long searches.
RATES = {"factorised": 0.1, "lstm": 3.5e-3}
BLIND = 20  # sound trees without a cost before a trade counts as one that has no source


class Decision(NamedTuple):
    """One choice among several options; forced moves are no decisions."""

    context: Context
    options: tuple[Node, ...]
    chosen: Node


class Trail:
    """A chooser that follows the walk of `grow`, so that it knows the context of every node, and keeps the decisions."""

    def __init__(self, choose: Callable[[Context, Sequence[Node]], Node]) -> None:
        self.choose, self.awaited = choose, [ROOT]
        self.decisions: list[Decision] = []

    def __call__(self, options: Sequence[Node]) -> Node:
        context = self.awaited.pop()
        node = self.choose(context, options)
        self.awaited += [(node.name, slot) for slot in reversed(range(node.arity))]
        if len(options) > 1:
            self.decisions.append(Decision(context, tuple(options), node))
        return node


def decisions_of(tree: Sequence[Node], grammar: Grammar) -> list[Decision]:
    """The decisions that make a tree, in prefix order. What the grammar does not offer, as a number tuned since, is none."""
    nodes = iter(tree)
    trail = Trail(lambda context, options: next(nodes))
    grow_tree(grammar, trail)
    return [step for step in trail.decisions if any(step.chosen.name == node.name for node in step.options)]


class Vocabulary:
    """Numbers for the productions and contexts of a grammar."""

    def __init__(self, grammar: Grammar) -> None:
        self.productions = {rule.name: i for i, rule in enumerate(grammar.rules)}
        found = [ROOT, *((rule.name, slot) for rule in grammar.rules for slot in range(len(rule.args)))]
        self.contexts = {context: i for i, context in enumerate(found)}
        self._starts: dict[tuple[str, ...], Tensor] = {}

    def start(self, options: Sequence[Node]) -> Tensor:
        """(V,) log-probabilities of `random_chooser`, half for leaves and half for the rest; `MASKED` for what is not an option."""
        names = tuple(to_names(options))
        if names not in self._starts:
            leaves = sum(not node.arity for node in options)
            groups = (0 < leaves < len(options)) + 1
            self._starts[names] = torch.full((len(self.productions),), MASKED, dtype=torch.float64)
            for node in options:
                size = len(options) - leaves if node.arity else leaves
                self._starts[names][self.productions[node.name]] = -math.log(groups * size)
        return self._starts[names]

    def knows(self, decision: Decision) -> bool:
        return decision.context in self.contexts and all(node.name in self.productions for node in decision.options)

    def tokens(self, walk: Sequence[Decision]) -> Tensor:
        """(L, 2): for each decision its context, and the production chosen before it; V at the start."""
        before = [len(self.productions), *(self.productions[step.chosen.name] for step in walk[:-1])]
        return torch.tensor([[self.contexts[step.context], last] for step, last in zip(walk, before, strict=True)])


class Factorised(nn.Module):
    """Independent categoricals, one for each context: rows of logits, zero at first."""

    def __init__(self, contexts: int, productions: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(contexts, productions, dtype=torch.float64))

    def forward(self, tokens: Tensor, state: None = None) -> tuple[Tensor, None]:
        """(B, L, 2) tokens → (B, L, V) logits, and no state."""
        return self.logits[tokens[..., 0]], None


class Recurrent(nn.Module):
    """An LSTM over (context, production before), weights from U(−0.1, 0.1) as NASNet's."""

    def __init__(self, contexts: int, productions: int, units: int = UNITS) -> None:
        super().__init__()
        self.context = nn.Embedding(contexts, units, dtype=torch.float64)
        self.before = nn.Embedding(productions + 1, units, dtype=torch.float64)
        self.lstm = nn.LSTM(units, units, batch_first=True, dtype=torch.float64)
        self.head = nn.Linear(units, productions, dtype=torch.float64)

    def forward(self, tokens: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(B, L, 2) tokens → (B, L, V) logits, and the state after the last."""
        seen, state = self.lstm(self.context(tokens[..., 0]) + self.before(tokens[..., 1]), state)
        return self.head(seen), state


POLICIES: dict[str, type[nn.Module]] = {"factorised": Factorised, "lstm": Recurrent}


def make_policy(name: str, vocabulary: Vocabulary, seed: int) -> nn.Module:
    """Raises EvokdError for an unknown name."""
    if name not in POLICIES:
        raise unknown("policy", "a policy", name, POLICIES)
    with torch.random.fork_rng(devices=[]):  # torch initialises layers from its global generator, which is given back untouched
        policy = POLICIES[name](len(vocabulary.contexts), len(vocabulary.productions))
    draw = torch.Generator().manual_seed(derive(seed, "policy", name))
    for weight in policy.parameters() if name == "lstm" else ():
        nn.init.uniform_(weight, -0.1, 0.1, generator=draw)
    return policy


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, whatever the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def surrogate(log_probs: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """min(ρA, clip(ρ, 1 − ε, 1 + ε)A) of each decision (PPO, eq. 7). At ρ = 1 its gradient is REINFORCE's, A∇log π."""
    ratio = (log_probs - old).exp()
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


@final
class Reinforce:
    """A policy over the productions of a grammar; it learns from every generation it is told.

    Each generation gives `epochs` steps of Adam on the mean of Σ surrogate + entropy · Σ H over its trees. One epoch is REINFORCE,
    several are PPO. The advantage is the reward less an exponential mean of rewards, over their deviation by the same mean, so that
    learning rate and entropy mean the same for every fitness. Failures, refusals included, get the worst reward seen so far; before
    there is one, they are passed over. A tree that was proposed in this generation already is drawn anew, at last at random, so
    that a policy that has settled does not end the search. Report the best tree seen, not the likeliest.

    Args:
        grammar: the language.
        policy: `factorised` or `lstm`.
        reward: outcome → reward; the fitness by default.
        seed: of the policy's first weights.
        rate: of Adam; if None, one fit for a hundred evaluations.
        epochs: 1 for REINFORCE.
        clip: ε of PPO.
        entropy: weight of the bonus.
        decay: of the exponential means.

    Raises:
        EvokdError: an unknown policy, or epochs below 1.
    """

    def __init__(
        self, grammar: Grammar, policy: str = "factorised", reward: Reward | None = None, *, seed: int = 0, rate: float | None = None,
        epochs: int = 1, clip: float = CLIP, entropy: float = ENTROPY, decay: float = DECAY,
    ) -> None:  # fmt: skip
        if epochs < 1:
            raise EvokdError("epochs", "at least 1", str(epochs))
        self.grammar, self.reward, self.vocabulary = grammar, reward or Reward(), Vocabulary(grammar)
        self.policy = make_policy(policy, self.vocabulary, seed)
        self.optimiser = torch.optim.Adam(self.policy.parameters(), RATES[policy] if rate is None else rate, foreach=False)
        self.epochs, self.clip, self.entropy = epochs, clip, entropy
        self.baseline = Baseline(decay)
        self.worst = math.inf
        self.blind = 0  # sound trees told before the first with a reward
        self._asked: set[tuple[str, ...]] = set()  # of this generation, which a resumed run begins anew

    def ask(self, generation: int, stream: Random) -> Individual:
        for _ in range(TRIES):
            proposal = Individual(self.draw(stream), op="policy")
            if tuple(to_names(proposal)) not in self._asked:
                break
        else:
            proposal = grow_afresh(self.grammar, stream)
        self._asked.add(tuple(to_names(proposal)))
        return proposal

    @torch.no_grad()
    def draw(self, stream: Random) -> list[Node]:
        """One tree from the policy, each decision by inversion of its distribution."""
        state, last = None, len(self.vocabulary.productions)

        def choose(context: Context, options: Sequence[Node]) -> Node:
            nonlocal state, last
            if len(options) == 1:
                return options[0]
            tokens = torch.tensor([[[self.vocabulary.contexts[context], last]]])
            logits, state = self.policy(tokens, state)
            chances = (logits[0, 0] + self.vocabulary.start(options)).softmax(-1).tolist()
            numbers = [self.vocabulary.productions[node.name] for node in options]
            sums = list(accumulate(chances[i] for i in numbers))
            at = min(bisect(sums, stream.random() * sums[-1]), len(options) - 1)
            last = numbers[at]
            return options[at]

        with one_thread():
            return grow_tree(self.grammar, Trail(choose))

    def walk(self, tree: Sequence[Node]) -> list[Decision]:
        return [step for step in decisions_of(tree, self.grammar) if self.vocabulary.knows(step)]

    def log_probs(self, walks: Sequence[Sequence[Decision]]) -> tuple[Tensor, Tensor]:
        """(N,) log-probability of each decision of all walks in turn, and (N,) the entropy of what it was chosen from."""
        tokens = nn.utils.rnn.pad_sequence([self.vocabulary.tokens(walk) for walk in walks], batch_first=True)
        real = torch.arange(tokens.shape[1]) < torch.tensor([[len(walk)] for walk in walks])
        start = torch.stack([self.vocabulary.start(step.options) for walk in walks for step in walk])
        logs = (self.policy(tokens)[0][real] + start).log_softmax(-1)
        chosen = torch.tensor([self.vocabulary.productions[step.chosen.name] for walk in walks for step in walk])
        return logs.gather(1, chosen[:, None])[:, 0], -(logs.exp() * logs).sum(-1)

    def tell(self, individuals: Sequence[Individual]) -> None:
        """Raises EvokdError if the reward trades a cost that no outcome has."""
        self._asked = set()
        rewards = self.rewards(individuals)
        if not rewards:
            return
        walks = [self.walk(individual) for individual in individuals]
        pairs = [(walk, a) for walk, a in zip(walks, self.baseline.advantages(rewards), strict=True) if walk]
        if pairs:
            with one_thread():
                self.learn(*zip(*pairs, strict=True))

    def rewards(self, individuals: Sequence[Individual]) -> list[float]:
        """Of each, the worst seen so far for failures; empty while there is none."""
        found = [self.reward(individual.outcome) for individual in individuals]
        self.worst = min([self.worst, *(reward for reward in found if reward is not None)])
        if self.worst < math.inf:
            return [self.worst if reward is None else reward for reward in found]
        self.blind += sum(individual.ok for individual in individuals)
        if self.blind >= BLIND:
            raise EvokdError(f"reward {self.reward.name}", f"the metric {self.reward.cost}", f"none in {self.blind} outcomes")
        return []

    def learn(self, walks: Sequence[Sequence[Decision]], advantages: Sequence[float]) -> None:
        """Steps of Adam; the policy before the first is the one that proposed."""
        each = torch.tensor([a for walk, a in zip(walks, advantages, strict=True) for _ in walk], dtype=torch.float64)
        old = None
        for _ in range(self.epochs):
            logs, entropy = self.log_probs(walks)
            old = logs.detach() if old is None else old
            gain = surrogate(logs, old, each, self.clip) + self.entropy * entropy
            self.optimiser.zero_grad()
            (-gain.sum() / len(walks)).backward()
            self.optimiser.step()


class Baseline:
    """Exponential means of rewards and of their squared distances, free of the bias of their start; a generation counts as one."""

    def __init__(self, decay: float) -> None:
        self.decay, self.weight, self.mean, self.square = decay, 0.0, 0.0, 0.0

    def advantages(self, rewards: Sequence[float]) -> list[float]:
        """Of a generation, by means that know it (as NAS-Bench-201's code); a first one alone has nothing to be compared with."""
        keep = self.decay
        self.weight = keep * self.weight + 1 - keep
        self.mean = keep * self.mean + (1 - keep) * math.fsum(rewards) / len(rewards)
        centred = [reward - self.mean / self.weight for reward in rewards]
        self.square = keep * self.square + (1 - keep) * math.fsum(c * c for c in centred) / len(centred)
        scale = math.sqrt(self.square / self.weight)
        return [c / scale if scale else 0.0 for c in centred]
