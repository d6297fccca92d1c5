"""Distillation losses from hidden states and unembeddings, in chunks: never a tokens x vocabulary tensor.

A chunk of tokens has its logits written into two reused buffers, which a few in-place passes turn into the chunk's
losses and the gradient of the student's logits; two more matrix products accumulate the gradients of the student's
hidden states and unembedding. All of this happens in the forward pass; backward multiplies by the incoming scalar.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

CPU_ELEMENTS, GPU_ELEMENTS = 10 * 2**20, 2**26  # logits of one buffer: enough for efficient matrix products
BLOCK_ELEMENTS = 2**18  # logits that the in-place passes work on at once on a CPU: they stay in its cache


def divergence(
    student_hidden: Float[Tensor, "*tokens d_S"],
    student_unembedding: Float[Tensor, "vocabulary d_S"],
    teacher_hidden: Float[Tensor, "*tokens d_T"],
    teacher_unembedding: Float[Tensor, "vocabulary d_T"],
    temperature: float = 2.0,
    *,
    direction: str = "forward",
    per_token: bool = False,
) -> Float[Tensor, "*tokens"]:
    """Mean KL divergence in nats per token between teacher and student at a temperature, without a T^2 factor.

    Forward is KL(teacher || student), reverse is KL(student || teacher). Differentiable in both arguments of the
    student; the teacher is a constant. Accumulates in fp32 at least; under autocast the matrix products use its type.
    With ``per_token`` one number a token instead of their mean; for evaluation, no gradients.
    """
    _check(student_hidden, student_unembedding)
    _check(teacher_hidden, teacher_unembedding)
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, not {temperature}.")
    tokens, others = list(student_hidden.shape[:-1]), list(teacher_hidden.shape[:-1])
    if tokens != others:
        raise ValueError(f"student and teacher must have hidden states of the same tokens, not {tokens} and {others}.")
    words, others = len(student_unembedding), len(teacher_unembedding)
    if words != others:
        raise ValueError(f"student and teacher must share a vocabulary, not {words} and {others} tokens.")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, not {direction!r}.")
    teacher = teacher_hidden.flatten(0, -2), teacher_unembedding
    return _loss(student_hidden, student_unembedding, *teacher, DIRECTIONS[direction], temperature, per_token)


def cross_entropy(
    hidden: Float[Tensor, "*tokens d"],
    unembedding: Float[Tensor, "vocabulary d"],
    targets: Int[Tensor, "*tokens"],
    *,
    per_token: bool = False,
) -> Float[Tensor, "*tokens"]:
    """Mean cross-entropy in nats per token of ``targets`` under the logits ``hidden @ unembedding.T``.

    Targets are compared as they come: shift them before the call. Otherwise like :func:`divergence`.
    """
    _check(hidden, unembedding)
    if targets.shape != hidden.shape[:-1] or targets.is_floating_point():
        wanted, given = list(hidden.shape[:-1]), f"{targets.dtype} {list(targets.shape)}"
        raise ValueError(f"targets must be one token number for each of {wanted} tokens, not {given}.")
    if not 0 <= int(targets.min()) <= int(targets.max()) < len(unembedding):
        raise ValueError(f"targets must lie in 0 ... {len(unembedding) - 1}, the vocabulary.")
    return _loss(hidden, unembedding, targets.reshape(-1, 1), None, _cross_entropy_, 1.0, per_token)


def tokens_at_once(device: str, vocabulary: int) -> int:
    """Tokens of a chunk on a type of device."""
    return max(16, (CPU_ELEMENTS if device == "cpu" else GPU_ELEMENTS) // vocabulary)


def _check(hidden: Tensor, unembedding: Tensor) -> None:
    if hidden.ndim < 2 or unembedding.ndim != 2 or hidden.shape[-1] != unembedding.shape[1]:
        shapes = f"{list(hidden.shape)} and {list(unembedding.shape)}"
        raise ValueError(f"hidden states [..., d] and unembedding [vocabulary, d] must share d, not {shapes}.")
    if not hidden.shape[:-1].numel():
        raise ValueError("no token is left to average over; pass at least one.")


# ------------------------------------------------------------------------- logits -> losses and gradient, in place
# Each takes the student's logits, the teacher's (or the targets), scratch of the same shape and, if a gradient is
# wanted, its weight; returns one loss a row and leaves weight x d loss / d logits in the student's logits.


def _forward_(student: Tensor, teacher: Tensor, scratch: Tensor, weight: float | None) -> Tensor:
    student.sub_(student.amax(1, keepdim=True))
    teacher.sub_(teacher.amax(1, keepdim=True))
    teacher_sum = torch.exp(teacher, out=scratch).sum(1, keepdim=True)
    difference = torch.linalg.vecdot(scratch, teacher.sub_(student)).unsqueeze(1)
    student_sum = student.exp_().sum(1, keepdim=True)
    if weight is not None:
        student.mul_(weight / student_sum).addcmul_(scratch, weight / teacher_sum, value=-1)
    return difference.div_(teacher_sum).add_((student_sum / teacher_sum).log_()).squeeze(1)


def _reverse_(student: Tensor, teacher: Tensor, scratch: Tensor, weight: float | None) -> Tensor:
    student.sub_(student.amax(1, keepdim=True))
    teacher.sub_(teacher.amax(1, keepdim=True))
    teacher_sum = torch.exp(teacher, out=scratch).sum(1, keepdim=True)
    student_sum = torch.exp(student, out=scratch).sum(1, keepdim=True)
    log_ratio = (teacher_sum / student_sum).log_()
    student.sub_(teacher)
    loss = torch.linalg.vecdot(scratch, student).unsqueeze(1).div_(student_sum).add_(log_ratio)
    if weight is not None:
        student.add_(log_ratio.sub_(loss)).mul_(scratch).mul_(weight / student_sum)
    return loss.squeeze(1)


def _cross_entropy_(student: Tensor, targets: Tensor, scratch: Tensor, weight: float | None) -> Tensor:
    student.sub_(student.amax(1, keepdim=True))
    chosen = student.gather(1, targets)
    total = student.exp_().sum(1, keepdim=True)
    if weight is not None:
        student.mul_(weight / total)
        student.scatter_add_(1, targets, torch.full_like(chosen, -weight))
    return total.log_().sub_(chosen).squeeze(1)


DIRECTIONS: dict[str, Callable] = {"forward": _forward_, "reverse": _reverse_}


# ---------------------------------------------------------------------------------------------------------- chunks


def _loss(hidden: Tensor, *arguments) -> Tensor:
    """``arguments`` as of ``_losses_and_gradients``, then whether one number a token is wanted."""
    *arguments, per_token = hidden.flatten(0, -2), *arguments
    if torch.is_grad_enabled() and not per_token:
        return _ChunkedMean.apply(*arguments)
    losses, *_ = _losses_and_gradients(*arguments, wanted=(False, False))
    return losses.view(hidden.shape[:-1]) if per_token else losses.mean()


class _ChunkedMean(torch.autograd.Function):
    """Mean loss whose gradients are formed while it is computed; backward multiplies them by the incoming scalar."""

    @staticmethod
    def forward(ctx, *arguments):
        losses, *ctx.gradients = _losses_and_gradients(*arguments, wanted=ctx.needs_input_grad[:2])
        return losses.mean()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        if ctx.gradients is None:
            raise RuntimeError("The gradients of this loss were used already; compute it again to go back once more.")
        gradients, ctx.gradients = ctx.gradients, None  # the only reference goes out: no copy when they are stored
        if not upstream.is_cpu or upstream != 1:  # to look at the number would make a GPU wait
            gradients = [None if gradient is None else gradient.mul_(upstream) for gradient in gradients]
        return *gradients, None, None, None, None


def _factors(hidden: Tensor, unembedding: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The factors of the logits at a temperature, in the type of their product: autocast's, or the wider of theirs."""
    device = hidden.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    operand = autocast or torch.promote_types(hidden.dtype, unembedding.dtype)
    return (hidden / temperature).to(operand), unembedding.to(operand)


@torch.no_grad()
def _losses_and_gradients(
    hidden: Float[Tensor, "tokens d_S"],
    unembedding: Float[Tensor, "vocabulary d_S"],
    teacher: Float[Tensor, "tokens d_T"] | Int[Tensor, "tokens 1"],
    teacher_unembedding: Float[Tensor, "vocabulary d_T"] | None,
    reduce_: Callable,
    temperature: float,
    wanted: tuple[bool, bool],
) -> tuple[Float[Tensor, " tokens"], Tensor | None, Tensor | None]:
    """Loss of each token, and the mean loss's gradients for ``hidden`` and ``unembedding`` where wanted."""
    device, tokens, vocabulary = hidden.device, len(hidden), len(unembedding)
    states, matrix = _factors(hidden, unembedding, temperature)
    if teacher_unembedding is not None:
        teacher, teacher_matrix = _factors(teacher, teacher_unembedding, temperature)
    chunks = -(-tokens // tokens_at_once(device.type, vocabulary))
    chunk = -(-tokens // chunks)  # of one size
    block = min(chunk, max(1, BLOCK_ELEMENTS // vocabulary)) if hidden.is_cpu else chunk
    weight = 1 / tokens if any(wanted) else None

    with torch.autocast(device.type, enabled=False):
        new = {"dtype": torch.promote_types(states.dtype, torch.float32), "device": device}
        student_logits = torch.empty(chunk, vocabulary, **new)
        teacher_logits = None if teacher_unembedding is None else torch.empty(chunk, vocabulary, **new)
        scratch, losses = torch.empty(block, vocabulary, **new), torch.empty(tokens, **new)
        hidden_gradient = torch.empty(hidden.shape, **new) if wanted[0] else None
        unembedding_gradient = torch.zeros(unembedding.shape, **new) if wanted[1] else None

        for start in range(0, tokens, chunk):
            rows = slice(start, min(start + chunk, tokens))
            logits, reference = student_logits[: rows.stop - start], teacher[rows]
            _product(states[rows], matrix.T, out=logits)
            if teacher_unembedding is not None:
                reference = _product(reference, teacher_matrix.T, out=teacher_logits[: rows.stop - start])
            for top in range(0, len(logits), block):
                part = logits[top : top + block]
                found = reduce_(part, reference[top : top + block], scratch[: len(part)], weight)
                losses[start + top : start + top + len(part)] = found
            if wanted[0]:
                _product(logits.to(matrix.dtype), matrix, out=hidden_gradient[rows])
            if wanted[1]:
                _product(logits.T.to(matrix.dtype), states[rows], out=unembedding_gradient, add=True)
        if wanted[0]:
            hidden_gradient = hidden_gradient.div_(temperature).to(hidden.dtype)
        if wanted[1]:
            unembedding_gradient = unembedding_gradient.to(unembedding.dtype)
    return losses, hidden_gradient, unembedding_gradient


def _product(left: Tensor, right: Tensor, out: Tensor, add: bool = False) -> Tensor:
    """``out = left @ right``, or ``out += left @ right``, without a temporary where the types agree."""
    if left.dtype != out.dtype:
        return out.add_(left @ right) if add else out.copy_(left @ right)
    return out.addmm_(left, right) if add else torch.mm(left, right, out=out)
