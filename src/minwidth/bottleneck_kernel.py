"""The two minimisations behind ``bottleneck.floor``: over W and all states, and over each context's own state.

A ``Target`` is what is to be met: the teacher's distributions, on all words or on some (chain rule). The losses go
through rows of logits that stay in the cache; the free problem is L-BFGS in coordinates where a change of each state
and each word's row costs about the same, the convex one Newton's method by conjugate gradients.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from minwidth import kl

CACHE_BYTES = 2**32  # the teacher's probabilities are kept up to this size, and computed anew in each pass beyond it
MEMORY = 10  # pairs of steps and gradients that L-BFGS remembers
PATIENCE = 10  # steps over which a fall below the tolerance counts as the end
NEWTON, CONJUGATE = 10, 12  # steps of Newton's method for a held-out state, and of conjugate gradients in each
RANK_TOLERANCE = 1e-10  # share of the largest variance (of logits) below which a direction is rounding


class Target(NamedTuple):
    """The teacher on some contexts and words; hidden states are divided by the temperature."""

    hidden: Float[Tensor, "contexts d_T"]
    unembedding: Float[Tensor, "words d_T"]
    log_sum: Float[Tensor, "contexts"]  # of exp(logits), over all words
    mass: Float[Tensor, "contexts"]  # p(S)
    negentropy: Float[Tensor, "contexts"]  # sum over S of p log(p / p(S))
    cached: Float[Tensor, "contexts words"] | None  # p

    def probabilities(self, rows: slice) -> Float[Tensor, "rows words"]:
        if self.cached is not None:
            return self.cached[rows]
        return torch.mm(self.hidden[rows], self.unembedding.T).sub_(self.log_sum[rows, None]).exp_()


def _chunks(contexts: int, words: int, device: torch.device) -> Iterator[slice]:
    size = kl.tokens_at_once(device.type, words)
    return (slice(start, min(start + size, contexts)) for start in range(0, contexts, size))


def target_of(hidden: Tensor, unembedding: Tensor, chosen: Int[Tensor, "words"] | None = None) -> Target:
    matrix = unembedding if chosen is None else unembedding[chosen]
    contexts, words = len(hidden), len(matrix)
    cached = hidden.new_empty(contexts, words) if contexts * words * hidden.element_size() <= CACHE_BYTES else None
    log_sum, mass, negentropy = (hidden.new_empty(contexts) for _ in range(3))
    for rows in _chunks(contexts, len(unembedding), hidden.device):
        logits = hidden[rows] @ unembedding.T
        log_sum[rows] = logits.logsumexp(1)
        log_p = (logits if chosen is None else logits[:, chosen]).sub_(log_sum[rows, None])
        p = log_p.exp()
        of_part = log_p.logsumexp(1) if chosen is not None else torch.zeros_like(log_sum[rows])
        mass[rows] = of_part.exp()
        negentropy[rows] = torch.linalg.vecdot(p, log_p) - mass[rows] * of_part
        if cached is not None:
            cached[rows] = p
    return Target(hidden, matrix, log_sum, mass, negentropy, cached)


def mean_probabilities(target: Target, weights: Float[Tensor, "contexts"] | None = None) -> Float[Tensor, " words"]:
    """Mean over contexts of each word's probability, or of a weight times that."""
    total = target.hidden.new_zeros(len(target.unembedding))
    for rows in _chunks(len(target.hidden), len(total), total.device):
        p = target.probabilities(rows)
        total += p.sum(0) if weights is None else weights[rows] @ p
    return total / len(target.hidden)


def losses_and_gradients(
    target: Target,
    hidden: Float[Tensor, "contexts d"],
    unembedding: Float[Tensor, "words d"],
) -> tuple[Float[Tensor, "contexts"], Float[Tensor, "contexts d"], Float[Tensor, "words d"]]:
    """p(S) KL(p|S || q|S) of each context, and the gradients of their *sum* for states and unembedding."""
    contexts, words = len(hidden), len(unembedding)
    losses = hidden.new_empty(contexts)
    for_hidden, for_matrix = torch.empty_like(hidden), torch.zeros_like(unembedding)
    block = max(1, kl.BLOCK_ELEMENTS // words) if hidden.is_cpu else contexts
    for rows in _chunks(contexts, words, hidden.device):
        logits = hidden[rows] @ unembedding.T
        p, mass, negentropy = target.probabilities(rows), target.mass[rows], target.negentropy[rows]
        for start in range(0, len(logits), block):
            part = slice(start, start + block)
            losses[rows][part] = _reduce_(logits[part], p[part], mass[part]).add_(negentropy[part])
        torch.mm(logits, unembedding, out=for_hidden[rows])
        for_matrix.addmm_(logits.T, hidden[rows])
    return losses, for_hidden, for_matrix


def _reduce_(logits: Tensor, p: Tensor, mass: Tensor) -> Tensor:
    """mass log sum exp(logits) - p . logits, row by row; leaves the gradient, mass q - p, in the logits."""
    logits.sub_(logits.amax(1, keepdim=True))
    chosen = torch.linalg.vecdot(p, logits)
    total = logits.exp_().sum(1)
    logits.mul_((mass / total).unsqueeze(1)).sub_(p)
    return total.log_().mul_(mass).sub_(chosen)


# ---------------------------------------------------------------------------------------------------- minimisation


class Fit(NamedTuple):
    hidden: Float[Tensor, "contexts d"]
    unembedding: Float[Tensor, "words d"]
    matrix: Float[Tensor, "_ d"]  # what was varied: the A of W = W_T A, or W itself
    losses: Float[Tensor, "contexts"]
    loss: float
    fall: float  # share over the last PATIENCE steps


def principal(
    target: Target, width: int, generator: torch.Generator | None = None
) -> tuple[Float[Tensor, "contexts d"], Float[Tensor, "d_T d"]]:
    """States and the A of W = W_T A that keep most of the logits' variance, words weighted by their mean probability.

    With M the second moment of the teacher's states and G that of its unembedding, centred, they are principal
    directions of G^1/2 M G^1/2. With a generator, a random sketch of them.
    """
    mean = mean_probabilities(target).double()
    mean /= mean.sum()
    matrix, hidden = target.unembedding.double(), target.hidden.double()
    matrix = matrix - mean @ matrix
    values, vectors = torch.linalg.eigh((matrix.T * mean) @ matrix)
    kept = values > RANK_TOLERANCE * values.max()
    values, vectors = values[kept].sqrt(), vectors[:, kept]
    states = hidden @ (vectors * values)
    moment = states.T @ states / len(states)
    values_of_moment, directions = torch.linalg.eigh(moment)
    rank = int((values_of_moment > RANK_TOLERANCE * values_of_moment.max()).sum())
    width = min(width, rank)
    if generator is None:
        directions = directions[:, -width:].flip(1)
    else:
        noise = torch.randn(len(moment), width, generator=generator, dtype=torch.float64).to(moment.device)
        directions = torch.linalg.qr(moment @ noise).Q
    dtype = target.hidden.dtype
    return (states @ directions).to(dtype), ((vectors / values) @ directions).to(dtype)


def minimise(
    target: Target,
    hidden: Float[Tensor, "contexts d"],
    matrix: Float[Tensor, "d_T d"],
    restricted: bool,
    steps: int,
    tolerance: float,
    progress: str | None,
) -> Fit:
    """Least mean loss over all states and W, or ``restricted``, over all states and A in W = W_T A, from W_T A.

    Coordinates of the state are first chosen so that the mean Hessian is the identity; what a change of a state or of a
    word's row costs then differs by a factor a context or word, which scales the first guess of L-BFGS.
    """
    contexts = len(hidden)
    mean = mean_probabilities(target)
    unembedding = target.unembedding @ matrix
    unembedding = unembedding - (mean / mean.sum()) @ unembedding
    hessian, costs = curvature(target, unembedding)
    lower = _cholesky(hessian)
    hidden, matrix = hidden @ lower, torch.linalg.solve_triangular(lower, matrix.T, upper=False).T.contiguous()
    unembedding = torch.linalg.solve_triangular(lower, unembedding.T, upper=False).T.contiguous()
    hessian, costs = curvature(target, unembedding)
    costs = costs + costs.mean() / 10
    moment = _cholesky(hidden.T @ hidden / contexts)
    basis = None
    if not restricted:
        matrix = unembedding
        spread = mean_probabilities(target, hidden.square().sum(1)) / hidden.square().sum(1).mean()
        spread = spread + 1e-3 / len(spread)
    else:
        basis = target.unembedding - (mean / mean.sum()) @ target.unembedding
        metric = _cholesky((basis.T * mean) @ basis)

    def joined(states: Tensor, matrix: Tensor) -> Tensor:
        return torch.cat([states.flatten(), matrix.flatten()])

    def parts(x: Tensor) -> tuple[Tensor, Tensor]:
        return x[: hidden.numel()].view_as(hidden), x[hidden.numel() :].view_as(matrix)

    def logit_factors(x: Tensor) -> tuple[Tensor, Tensor]:
        states, varied = parts(x)
        return states, varied if basis is None else basis @ varied

    def value(x: Tensor) -> tuple[Tensor, Tensor]:
        losses, for_hidden, for_matrix = losses_and_gradients(target, *logit_factors(x))
        return losses, joined(for_hidden, for_matrix if basis is None else basis.T @ for_matrix).div_(contexts)

    def scaled(gradient: Tensor) -> Tensor:
        for_hidden, for_matrix = parts(gradient)
        for_matrix = for_matrix / spread.unsqueeze(1) if basis is None else torch.cholesky_solve(for_matrix, metric)
        return joined(for_hidden * (contexts / costs).unsqueeze(1), torch.cholesky_solve(for_matrix.T, moment).T)

    x, losses, history = _lbfgs(value, scaled, joined(hidden, matrix), steps, tolerance, progress)
    before = history[max(0, len(history) - 1 - PATIENCE)]
    fall = (before - history[-1]) / max(before, 1e-5)  # a loss of 0 is one of rounding
    return Fit(*logit_factors(x), parts(x)[1], losses, history[-1], fall)


def curvature(
    target: Target, unembedding: Float[Tensor, "words d"]
) -> tuple[Float[Tensor, "d d"], Float[Tensor, "contexts"]]:
    """Mean Hessian of a context's loss in its state, taken at q = p, and each context's trace over d."""
    squares, means, traces = unembedding.square().sum(1), [], []
    for rows in _chunks(len(target.hidden), len(unembedding), unembedding.device):
        p = target.probabilities(rows)
        means.append(p @ unembedding)
        traces.append(p @ squares)
    mean, trace = torch.cat(means), torch.cat(traces)
    weighted = mean / target.mass.unsqueeze(1)
    hessian = (unembedding.T * mean_probabilities(target)) @ unembedding - mean.T @ weighted / len(mean)
    return hessian, (trace - (mean * weighted).sum(1)) / unembedding.shape[1]


def _cholesky(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Lower factor of a matrix that is positive, but for rounding."""
    ridge = 100 * torch.finfo(matrix.dtype).eps * matrix.diagonal().mean() + torch.finfo(matrix.dtype).tiny
    return torch.linalg.cholesky(matrix + ridge * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))


def _lbfgs(value, scaled, x: Tensor, steps: int, tolerance: float, progress: str | None):
    """Minimise the mean of ``value(x)[0]``, whose gradient is ``value(x)[1]``; ``scaled`` guesses H^-1 g."""
    pairs: list[tuple[Tensor, Tensor, float]] = []
    losses, gradient = value(x)
    history = [float(losses.double().mean())]
    shown = {} if progress else {"disable": True}  # False would outdo TQDM_DISABLE
    bar = tqdm(total=steps, desc=progress, unit=" steps", leave=False, **shown)
    while len(history) <= steps:
        direction, shares = gradient.clone(), []
        for step, change, product in reversed(pairs):
            shares.append(float(step @ direction) / product)
            direction.sub_(change, alpha=shares[-1])
        direction = scaled(direction)
        if pairs:
            step, change, product = pairs[-1]
            direction.mul_(product / float(change @ scaled(change)))
        for (step, change, product), share in zip(pairs, reversed(shares), strict=True):
            direction.add_(step, alpha=share - float(change @ direction) / product)
        slope, length = -float(direction @ gradient), 1.0 if pairs else 0.5
        while True:
            new = x - length * direction
            new_losses, new_gradient = value(new)
            loss = float(new_losses.double().mean())
            if loss <= history[-1] + 1e-4 * length * slope or length < 1e-3:
                break
            length *= 0.4
        if not loss < history[-1]:  # rounding is all that is left
            break
        step, change = new - x, new_gradient - gradient
        if (product := float(step @ change)) > 0:
            pairs = [*pairs, (step, change, product)][-MEMORY:]
        x, losses, gradient = new, new_losses, new_gradient
        history.append(loss)
        bar.update()
        bar.set_postfix_str(f"{loss:.5f} nats", refresh=False)  # steps are many; each redraw is a message
        if len(history) > PATIENCE and history[-1 - PATIENCE] - loss < tolerance * loss:
            break
    bar.close()
    return x, losses, history


def held_out_states(target: Target, trained: Target, fit: Fit) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, best state and Newton decrement of each context under the W of a fit to others.

    Starts from the linear map of the teacher's state that suits the fit's contexts. A Newton step solves for the
    Hessian by conjugate gradients, a few products with W, in coordinates in which the mean Hessian is the identity.
    Convex: near the end the loss is above its minimum by about half the decrement.
    """
    states = trained.hidden.double()
    linear = torch.linalg.pinv(states.T @ states, rtol=1e-10, hermitian=True) @ (states.T @ fit.hidden.double())
    lower = _cholesky(curvature(target, fit.unembedding)[0])
    unembedding = torch.linalg.solve_triangular(lower, fit.unembedding.T, upper=False).T.contiguous()
    hidden = target.hidden @ linear.to(lower.dtype) @ lower
    losses, decrements = torch.empty_like(target.mass), torch.empty_like(target.mass)
    for rows in _chunks(len(hidden), len(unembedding), hidden.device):
        hidden[rows], losses[rows], decrements[rows] = _newton(
            hidden[rows], unembedding, target.probabilities(rows), target.mass[rows], target.negentropy[rows]
        )
    return losses, torch.linalg.solve_triangular(lower.T, hidden.T, upper=True).T.contiguous(), decrements


def _newton(
    h: Float[Tensor, "rows d"],
    w: Float[Tensor, "words d"],
    p: Float[Tensor, "rows words"],
    mass: Float[Tensor, "rows"],
    negentropy: Float[Tensor, "rows"],
) -> tuple[Tensor, Tensor, Tensor]:
    """State, loss and Newton decrement of each row, from the state it starts at."""
    tiny, wanted = torch.finfo(h.dtype).tiny, p @ w

    def loss_and_q(h: Tensor, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        logits = h @ w.T
        losses = _reduce_(logits, p[rows], mass[rows]).add_(negentropy[rows])
        return losses, logits.add_(p[rows])

    losses, q = loss_and_q(h, slice(None))
    for _ in range(NEWTON):
        mean = q @ w
        gradient = rest = direction = mean - wanted
        step, size = torch.zeros_like(h), gradient.square().sum(1, keepdim=True)
        for _ in range(CONJUGATE):
            change = direction @ w.T
            moved = torch.linalg.vecdot(q, change).unsqueeze(1) / mass.unsqueeze(1)
            damping = 1e-4 * direction  # for states that cost next to nothing
            product = change.mul_(q) @ w - moved * mean + damping
            length = size / torch.linalg.vecdot(direction, product).unsqueeze(1).clamp_min(tiny)
            step, rest = step + length * direction, rest - length * product
            before, size = size, rest.square().sum(1, keepdim=True)
            direction = rest + size / before.clamp_min(tiny) * direction
            if float(size.mean()) < 1e-3 * float(gradient.square().sum(1).mean()):
                break
        decrement = torch.linalg.vecdot(gradient, step)
        new = h - step
        new_losses, new_q = loss_and_q(new, slice(None))
        for shorter in (4.0**-n for n in range(1, 12)):
            worse = ~(new_losses <= losses + 1e-6)  # or not a number
            if not worse.any():
                break
            new[worse] = h[worse] - shorter * step[worse]
            new_losses[worse], new_q[worse] = loss_and_q(new[worse], worse)
        h, losses, q = new, new_losses, new_q
        if float(decrement.mean()) < 1e-6:
            break
    return h, losses, decrement
