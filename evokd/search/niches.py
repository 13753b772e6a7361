"""Niches: who survives when trees that mean much the same share few places, so that a population keeps more than one idea."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evokd.genome.individual import Individual, rank

EACH, ALIKE = 2, 0.98  # places of a niche; the cosine of two gradients from which two losses count as one idea


def crowded(
    individuals: Sequence[Individual],
    size: int,
    similarity: Callable[[Individual, Individual], float | None],
    each: int = EACH,
    alike: float = ALIKE,
) -> list[Individual]:
    """Clearing (Pétrowski, ICEC 1996) with `each` winners a niche, and the cleared as a reserve.

    From the best on, a tree enters unless `each` of those that have entered are alike to it. Places that are left go to the best
    of those kept out, so that nothing is lost where there are fewer niches than places. The best of all is always in.
    `functools.partial(crowded, similarity=…)` is what `Evolution` takes as `survivors`.

    Args:
        individuals: sound ones, in any order.
        size: the most that survive.
        similarity: of two, 1 for the same; None where it cannot be told, as for losses that draw noise: never alike. A function of
            the two alone, so that a resumed search selects as the first did.
        each: places of a niche, at least 1.
        alike: from this similarity on, two are of one niche.

    Returns:
        the survivors, best first.
    """
    chosen: list[Individual] = []
    cleared: list[Individual] = []
    for individual in sorted(individuals, key=rank):
        if len(chosen) == size:
            break
        near = sum(_alike(similarity(individual, other), alike) for other in chosen)
        (chosen if near < each else cleared).append(individual)
    return sorted([*chosen, *cleared[: size - len(chosen)]], key=rank)


def _alike(found: float | None, alike: float) -> bool:
    return found is not None and found >= alike
