"""Where a loss curve ends, from its part, with an interval that has been shown to cover.

Losses are known after N/4, N/2 and N steps; how far do they fall until 2 N, 4 N or 8 N? If a loss is a power law plus a
limit, L(t) = L_inf + a t^-b, its falls per doubling shrink by 2^-b, so that

    L(N) - L(hN) = [L(N/2) - L(N)] (2^-b + 4^-b + ... + h^-b).

The exponent b is one that many models share, and the interval is split conformal: its half-width in last falls is a
quantile over calibration models, each with equal weight (Dunn, Wasserman & Ramdas 2022, arXiv:1809.07441, pooled). It
covers models that are exchangeable with those. 04, section 12, finds both in public curves, and tells how often they
held. Losses in nats per token; ``steps`` may as well be tokens.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
LEARNT = 0.9  # of what the best student known has learnt, that a student at its floor has too
TWO_RUNS = 1.645 * 2**0.5  # standard deviations within which two runs' difference stays in 90 % of the cases
SLOWEST = 0.25  # the unit is at least this share of the fall before: an exponent of at most 2


class Calibration(NamedTuple):
    """What calibration models teach."""

    exponent: float  # shared
    radius: dict[int, float]  # half-width of a 90 % interval in last falls, by how many times further ahead


# of all public runs, each with its own decay of the learning rate, as here; 04 computes it again
FINISHED = Calibration(0.39063522415908286, {2: 0.3011994691007514, 4: 0.5030237625413979, 8: 0.6258829686139218})


class End(NamedTuple):
    """A predicted loss with its interval."""

    loss: float
    low: float
    high: float


def end(
    steps: ArrayLike,
    losses: ArrayLike,
    ahead: int = 4,
    calibration: Calibration = FINISHED,
    bound: float = 0.0,
    noise: float = 0.0,
) -> End:
    """The loss after ``ahead`` times as many steps, with an interval.

    Args:
        steps: [runs], N/2 and N (better N/4 too, and what was before), each a run with its schedule stretched.
        losses: [runs], where each run of the student ended.
        bound: no loss can be lower, e.g. the provable part of a floor.
        noise: standard deviation of a loss between seeds, which the calibration, in last falls, knows nothing of: near
            an end that is all there is.
    """
    steps, losses = np.asarray(steps, float), np.asarray(losses, float)
    if steps.shape != losses.shape or steps.ndim != 1 or steps.size < 2 or not np.isfinite(losses).all():
        raise ValueError(f"steps = {steps} and losses = {losses} do not fit: give two or more finite losses, one a run")
    if not np.isclose(steps[-3:][1:], 2 * steps[-3:][:-1], rtol=0.01).all():
        raise ValueError(f"steps = {steps} do not double at the end: give runs of N/4, N/2 and N steps, ascending")
    if ahead not in calibration.radius:
        raise ValueError(f"ahead = {ahead} was not calibrated: give one of {sorted(calibration.radius)}")
    if not noise >= 0:
        raise ValueError(f"noise = {noise} is no standard deviation: give 0 or more, 0 where it is not known")
    if losses[-1] < bound:
        raise ValueError(f"the last loss, {losses[-1]:g}, is below the bound of {bound:g}: one of the two is wrong")
    unit = last_fall(losses[-3:])[0]
    middle = losses[-1] - unit * doublings(2.0**-calibration.exponent, ahead)
    half = np.hypot(unit * calibration.radius[ahead], TWO_RUNS * noise)
    return End(*(float(max(loss, bound)) for loss in (middle, middle - half, middle + half)))


def verdict(
    steps: ArrayLike, losses: ArrayLike, start: float, best: float = np.inf, share: float = 0.02, **options
) -> tuple[str, End, float]:
    """The word, the end, and the share of what was learnt that the loss could still fall by, to the interval's low end.

    The word is "floor" if that is at most ``share``, else "upper bound". What was learnt is ``start``, the loss before
    training, less the last loss. A student that does not move because it has hardly learnt is at no floor: it must have
    learnt ``LEARNT`` of what the ``best`` student known of its width has. ``options`` are those of ``end``.
    """
    predicted, last = end(steps, losses, **options), float(np.asarray(losses, float)[-1])
    if not start > last:
        raise ValueError(f"start = {start:g} is not above the last loss, {last:g}: nothing has been learnt to judge by")
    could_fall = float((last - predicted.low) / (start - last))
    learnt = last <= best or start - last >= LEARNT * (start - best)
    return "floor" if learnt and could_fall <= share else "upper bound", predicted, could_fall


def last_fall(losses: Array) -> tuple[float, float]:
    """The last fall, kept from 0 against noise, and its ratio to the fall before, within 0 and 1."""
    drops = -np.diff(losses)
    before = drops[-2] if drops.size > 1 else 0.0
    ratio = drops[-1] / before if before > 0 else 1.0
    return float(max(abs(drops[-1]), SLOWEST * before)), float(np.clip(ratio, 0, 1))


def doublings(ratio: ArrayLike, ahead: ArrayLike) -> Array:
    """r + r^2 + ... + r^k with k = log2(ahead): the further fall in units of the last, each r times the one before."""
    ratio, ahead = np.broadcast_arrays(np.asarray(ratio, float), np.asarray(ahead))
    powers = np.arange(1, 1 + int(np.log2(ahead.max())))
    return np.where(2**powers <= ahead[..., None], ratio[..., None] ** powers, 0).sum(-1)[()]
