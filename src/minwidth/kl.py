"""Distillation losses from hidden states and unembeddings, in chunks: never a tokens x vocabulary tensor.

A chunk of tokens has its logits written into two reused buffers, which a few in-place passes turn into the chunk's
losses and the gradient with respect to the student's logits; two more matrix products accumulate the gradients
with respect to the student's hidden states and unembedding. All of this happens in the forward pass, so that
nothing of the size of the logits is kept for the backward pass, which only multiplies by the incoming scalar.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CHUNK_ELEMENTS = {"cpu": 10 * 2**20, "cuda": 2**26}  # logits of one buffer: large enough for efficient matrix products
BLOCK_ELEMENTS = 2**18  # logits that the in-place passes work on at once on a CPU: they stay in its cache


def divergence(
    student_hidden: Float[Tensor, "*tokens d_S"],
    student_unembedding: Float[Tensor, "vocabulary d_S"],
    teacher_hidden: Float[Tensor, "*tokens d_T"],
    teacher_unembedding: Float[Tensor, "vocabulary d_T"],
    temperature: float = 2.0,
    *,
    mask: Bool[Tensor, "*tokens"] | None = None,
    direction: str = "forward",
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """Mean KL divergence in nats per token between teacher and student at a temperature, without a T^2 factor.

    Forward is KL(teacher || student), reverse is KL(student || teacher). Differentiable in both arguments of the
    student; the teacher is a constant. Accumulates in fp32 at least; under autocast the matrix products use its type.

    Args:
        mask: tokens to count, all if None.
        chunk: tokens whose logits are held at once, chosen for the device if None.

    Raises:
        ValueError: shapes that do not fit, a temperature that is not positive, an unknown direction, no token.
    """
    pieces = _divergence_pieces(
        student_hidden, student_unembedding, teacher_hidden, teacher_unembedding, temperature, mask, direction
    )
    return _mean(*pieces, temperature, chunk)


@torch.no_grad()
def divergence_per_token(
    student_hidden: Float[Tensor, "*tokens d_S"],
    student_unembedding: Float[Tensor, "vocabulary d_S"],
    teacher_hidden: Float[Tensor, "*tokens d_T"],
    teacher_unembedding: Float[Tensor, "vocabulary d_T"],
    temperature: float = 2.0,
    *,
    direction: str = "forward",
    chunk: int | None = None,
) -> Float[Tensor, "*tokens"]:
    """The summands of :func:`divergence`, one a token, in nats; for evaluation, no gradients."""
    pieces = _divergence_pieces(
        student_hidden, student_unembedding, teacher_hidden, teacher_unembedding, temperature, None, direction
    )
    losses, *_ = _losses_and_gradients(*pieces, temperature, chunk, wanted=(False, False))
    return losses.view(student_hidden.shape[:-1])


def cross_entropy(
    hidden: Float[Tensor, "*tokens d"],
    unembedding: Float[Tensor, "vocabulary d"],
    targets: Int[Tensor, "*tokens"],
    temperature: float = 1.0,
    *,
    mask: Bool[Tensor, "*tokens"] | None = None,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats per token of ``targets`` under the logits ``hidden @ unembedding.T``.

    Targets are compared as they come: shift them before the call. Otherwise like :func:`divergence`.
    """
    return _mean(*_cross_entropy_pieces(hidden, unembedding, targets, temperature, mask), temperature, chunk)


@torch.no_grad()
def cross_entropy_per_token(
    hidden: Float[Tensor, "*tokens d"],
    unembedding: Float[Tensor, "vocabulary d"],
    targets: Int[Tensor, "*tokens"],
    temperature: float = 1.0,
    *,
    chunk: int | None = None,
) -> Float[Tensor, "*tokens"]:
    """The summands of :func:`cross_entropy`, one a token, in nats; for evaluation, no gradients."""
    pieces = _cross_entropy_pieces(hidden, unembedding, targets, temperature, None)
    losses, *_ = _losses_and_gradients(*pieces, temperature, chunk, wanted=(False, False))
    return losses.view(targets.shape)


# ----------------------------------------------------------------------------------------------------------- input


def _cross_entropy_pieces(hidden, unembedding, targets, temperature, mask):
    _check(hidden, unembedding, temperature, mask)
    if targets.shape != hidden.shape[:-1] or targets.is_floating_point():
        raise ValueError(
            f"targets must be one token number for each of {list(hidden.shape[:-1])} tokens, "
            f"not {targets.dtype} {list(targets.shape)}."
        )
    if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < len(unembedding):
        raise ValueError(f"targets must lie in 0 ... {len(unembedding) - 1}, the vocabulary; pass a mask for others.")
    hidden, targets = _selected(mask, hidden), _selected(mask, targets.unsqueeze(-1))
    return hidden, unembedding, targets, None, _cross_entropy_


def _divergence_pieces(student_hidden, student_unembedding, teacher_hidden, teacher_unembedding, t, mask, direction):
    _check(student_hidden, student_unembedding, t, mask)
    _check(teacher_hidden, teacher_unembedding, t, mask)
    if student_hidden.shape[:-1] != teacher_hidden.shape[:-1]:
        raise ValueError(
            f"student and teacher must have hidden states of the same tokens, not {list(student_hidden.shape[:-1])} "
            f"and {list(teacher_hidden.shape[:-1])}."
        )
    if len(student_unembedding) != len(teacher_unembedding):
        raise ValueError(
            f"student and teacher must share a vocabulary, not {len(student_unembedding)} and "
            f"{len(teacher_unembedding)} tokens."
        )
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, not {direction!r}.")
    student_hidden, teacher_hidden = _selected(mask, student_hidden), _selected(mask, teacher_hidden)
    return student_hidden, student_unembedding, teacher_hidden, teacher_unembedding, DIRECTIONS[direction]


def _check(hidden: Tensor, unembedding: Tensor, temperature: float, mask: Tensor | None) -> None:
    if hidden.ndim < 2 or unembedding.ndim != 2 or hidden.shape[-1] != unembedding.shape[1]:
        raise ValueError(
            f"hidden states [..., d] and unembedding [vocabulary, d] must share d, not {list(hidden.shape)} and "
            f"{list(unembedding.shape)}."
        )
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, not {temperature}.")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != hidden.shape[:-1]):
        raise ValueError(
            f"mask must be one bool for each of {list(hidden.shape[:-1])} tokens, not {mask.dtype} {list(mask.shape)}."
        )
    if not (hidden.shape[:-1].numel() if mask is None else mask.any()):
        raise ValueError("no token is left to average over; pass at least one, and a mask that keeps one.")


def _selected(mask: Tensor | None, values: Tensor) -> Tensor:
    return values.flatten(0, -2) if mask is None else values[mask]


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


def tokens_at_once(device: str, vocabulary: int) -> int:
    """Tokens of a chunk on a type of device, where none are asked for."""
    return max(16, CHUNK_ELEMENTS.get(device, 2**26) // vocabulary)


def _mean(*arguments) -> Tensor:
    if torch.is_grad_enabled():
        return _ChunkedMean.apply(*arguments)
    return _losses_and_gradients(*arguments, wanted=(False, False))[0].mean()


class _ChunkedMean(torch.autograd.Function):
    """Mean loss whose gradients are formed while it is computed; backward multiplies them by the incoming scalar."""

    @staticmethod
    def forward(ctx, hidden, unembedding, teacher, teacher_unembedding, reduce_, temperature, chunk):
        losses, *ctx.gradients = _losses_and_gradients(
            hidden, unembedding, teacher, teacher_unembedding, reduce_, temperature, chunk, ctx.needs_input_grad[:2]
        )
        return losses.mean()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        if ctx.gradients is None:
            raise RuntimeError("The gradients of this loss were used already; compute it again to go back once more.")
        gradients, ctx.gradients = ctx.gradients, None  # the only reference goes out: no copy when they are stored
        if not upstream.is_cpu or upstream != 1:  # to look at the number would make a GPU wait
            gradients = [None if gradient is None else gradient.mul_(upstream) for gradient in gradients]
        return *gradients, None, None, None, None, None


def _losses_and_gradients(
    hidden: Float[Tensor, "tokens d_S"],
    unembedding: Float[Tensor, "vocabulary d_S"],
    teacher: Float[Tensor, "tokens d_T"] | Int[Tensor, "tokens 1"],
    teacher_unembedding: Float[Tensor, "vocabulary d_T"] | None,
    reduce_: Callable,
    temperature: float,
    chunk: int | None,
    wanted: tuple[bool, bool],
) -> tuple[Float[Tensor, " tokens"], Tensor | None, Tensor | None]:
    """Loss of each token, and the mean loss's gradients for ``hidden`` and ``unembedding`` where wanted."""
    device = hidden.device
    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    operand = autocast or torch.promote_types(hidden.dtype, unembedding.dtype)
    work = torch.promote_types(operand, torch.float32)

    tokens, vocabulary = len(hidden), len(unembedding)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least one token, not {chunk}; leave it out to have it chosen.")
    in_cache = device.type == "cpu" and chunk is None
    chunk = chunk or tokens_at_once(device.type, vocabulary)
    chunk = -(-tokens // -(-tokens // chunk))  # as many chunks, but of one size
    block = min(chunk, max(1, BLOCK_ELEMENTS // vocabulary)) if in_cache else chunk
    weight = 1 / tokens if any(wanted) else None

    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        student = (hidden / temperature).to(operand), unembedding.to(operand)
        if teacher_unembedding is not None:
            teacher_operand = autocast or torch.promote_types(teacher.dtype, teacher_unembedding.dtype)
            teacher = (teacher / temperature).to(teacher_operand)
            teacher_unembedding = teacher_unembedding.to(teacher_operand)
            teacher_logits = torch.empty(chunk, vocabulary, dtype=work, device=device)
        student_logits = torch.empty(chunk, vocabulary, dtype=work, device=device)
        scratch = torch.empty(block, vocabulary, dtype=work, device=device)
        losses = torch.empty(tokens, dtype=work, device=device)
        hidden_gradient = torch.empty(hidden.shape, dtype=work, device=device) if wanted[0] else None
        unembedding_gradient = torch.zeros(unembedding.shape, dtype=work, device=device) if wanted[1] else None

        for start in range(0, tokens, chunk):
            rows = slice(start, min(start + chunk, tokens))
            logits = student_logits[: rows.stop - start]
            _product(student[0][rows], student[1].T, out=logits)
            if teacher_unembedding is None:
                reference = teacher[rows]
            else:
                reference = teacher_logits[: rows.stop - start]
                _product(teacher[rows], teacher_unembedding.T, out=reference)
            for top in range(0, len(logits), block):
                part = logits[top : top + block]
                losses[start + top : start + top + len(part)] = reduce_(
                    part, reference[top : top + block], scratch[: len(part)], weight
                )
            if wanted[0]:
                _product(logits.to(operand), student[1], out=hidden_gradient[rows])
            if wanted[1]:
                _product(logits.T.to(operand), student[0][rows], out=unembedding_gradient, add=True)
        if wanted[0]:
            hidden_gradient = hidden_gradient.div_(temperature).to(hidden.dtype)
        if wanted[1]:
            unembedding_gradient = unembedding_gradient.to(unembedding.dtype)
    return losses, hidden_gradient, unembedding_gradient


def _product(left: Tensor, right: Tensor, out: Tensor, add: bool = False) -> None:
    """``out = left @ right``, or ``out += left @ right``, without a temporary where the types agree."""
    if left.dtype != out.dtype:
        out.add_(left @ right) if add else out.copy_(left @ right)
    elif add:
        out.addmm_(left, right)
    else:
        torch.mm(left, right, out=out)
