"""kl against F.kl_div and F.cross_entropy on full float64 logits: values, gradients, extremes, memory."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from minwidth import kl


@pytest.fixture(autouse=True, scope="module")
def sixteen_tokens_at_once():
    """So that most problems here take several chunks, of which the last may be shorter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kl, "CPU_ELEMENTS", 0)
        yield


def problem(tokens, vocabulary, d_student, d_teacher, seed=0, scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(tokens, d_student), (vocabulary, d_student), (tokens, d_teacher), (vocabulary, d_teacher)]
    student_hidden, student_matrix, teacher_hidden, teacher_matrix = (
        torch.randn(shape, generator=generator).to(dtype) for shape in shapes
    )
    # hidden states carry the scale: logits then have a standard deviation of about `scale`
    student_hidden *= scale / math.sqrt(d_student)
    teacher_hidden *= scale / math.sqrt(d_teacher)
    return student_hidden.requires_grad_(), student_matrix.requires_grad_(), teacher_hidden, teacher_matrix


def reference(inputs, temperature, direction="forward"):
    """Loss and the student's gradients from full logits in float64."""
    student_hidden, student_matrix, teacher_hidden, teacher_matrix = (x.detach().double() for x in inputs)
    student_hidden.requires_grad_(), student_matrix.requires_grad_()
    student = F.log_softmax(student_hidden @ student_matrix.T / temperature, -1).flatten(0, -2)
    teacher = F.log_softmax(teacher_hidden @ teacher_matrix.T / temperature, -1).flatten(0, -2)
    pair = (student, teacher) if direction == "forward" else (teacher, student)
    loss = F.kl_div(*pair, log_target=True, reduction="batchmean")
    return loss.detach(), *torch.autograd.grad(loss, (student_hidden, student_matrix))


def assert_matches(loss, inputs, expected, loss_tolerance=1e-6, gradient_tolerance=1e-5):
    gradients = torch.autograd.grad(loss, inputs[:2])
    assert abs(loss.item() - expected[0].item()) <= loss_tolerance * max(1.0, expected[0].item())
    for gradient, wanted in zip(gradients, expected[1:], strict=True):
        # where a softmax is saturated, what is left of the gradient is rounding in single precision
        assert (gradient - wanted).norm() <= gradient_tolerance * wanted.norm() + 5e-7


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 40),
    vocabulary=st.integers(2, 300),
    d_student=st.integers(1, 24),
    d_teacher=st.integers(1, 24),
    temperature=st.floats(0.5, 8),
    direction=st.sampled_from(["forward", "reverse"]),
    seed=st.integers(0, 2**16),
)
def test_equals_full_logits(tokens, vocabulary, d_student, d_teacher, temperature, direction, seed):
    inputs = problem(tokens, vocabulary, d_student, d_teacher, seed, scale=3.0)
    loss = kl.divergence(*inputs, temperature, direction=direction)
    assert_matches(loss, inputs, reference(inputs, temperature, direction))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_large_vocabulary_in_several_blocks(direction, monkeypatch):
    monkeypatch.setattr(kl, "BLOCK_ELEMENTS", 3 * 5000)  # neither the chunk nor the tokens are multiples of 3 rows
    inputs = problem(50, 5000, 24, 32, scale=3.0)
    loss = kl.divergence(*inputs, 2.0, direction=direction)
    assert_matches(loss, inputs, reference(inputs, 2.0, direction))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("scale", [30.0, 1e3, 1e5])
def test_extreme_logits(scale, direction):
    inputs = problem(12, 200, 8, 8, scale=scale, dtype=torch.float64)
    loss = kl.divergence(*inputs, 1.0, direction=direction)
    assert_matches(loss, inputs, reference(inputs, 1.0, direction), 1e-10, 1e-9)
    inputs = [x.detach().float().requires_grad_(x.requires_grad) for x in inputs]
    loss = kl.divergence(*inputs, 1.0, direction=direction)
    gradients = torch.autograd.grad(loss, inputs[:2])
    assert loss.item() == pytest.approx(reference(inputs, 1.0, direction)[0].item(), rel=1e-5)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_equal_models_have_divergence_and_gradient_zero():
    hidden, matrix, *_ = problem(20, 100, 8, 8, scale=10.0)
    loss = kl.divergence(hidden, matrix, hidden.detach(), matrix.detach(), 2.0)
    gradients = torch.autograd.grad(loss, (hidden, matrix))
    assert abs(loss.item()) < 1e-7 and all(gradient.abs().max() < 1e-6 for gradient in gradients)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_batches_of_blocks_and_one_number_a_token(direction):
    flat = problem(24, 50, 6, 7, scale=2.0)
    inputs = [flat[0].detach().view(4, 6, 6).requires_grad_(), flat[1], flat[2].view(4, 6, 7), flat[3]]
    loss = kl.divergence(*inputs, 2.0, direction=direction)
    assert_matches(loss, inputs, reference(inputs, 2.0, direction))
    each = kl.divergence(*inputs, 2.0, direction=direction, per_token=True)
    assert each.shape == (4, 6) and not each.requires_grad
    assert each.mean().item() == pytest.approx(loss.item(), rel=1e-6)


@settings(max_examples=15, deadline=None)
@given(
    tokens=st.integers(1, 30),
    vocabulary=st.integers(2, 200),
    seed=st.integers(0, 2**16),
)
def test_cross_entropy_equals_full_logits(tokens, vocabulary, seed):
    hidden, matrix, *_ = problem(tokens, vocabulary, 9, 1, seed, scale=3.0)
    targets = torch.randint(vocabulary, (tokens,), generator=torch.Generator().manual_seed(seed))
    loss = kl.cross_entropy(hidden, matrix, targets)
    wide = hidden.detach().double().requires_grad_(), matrix.detach().double().requires_grad_()
    expected = F.cross_entropy(wide[0] @ wide[1].T, targets)
    each = kl.cross_entropy(hidden, matrix, targets, per_token=True)
    assert each.shape == targets.shape
    assert each.mean().item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    assert_matches(loss, (hidden, matrix), (expected.detach(), *torch.autograd.grad(expected, wide)))


def test_upstream_factor_and_shared_leaves():
    inputs = problem(16, 40, 5, 6)
    loss = kl.divergence(*inputs, 2.0)
    (loss / 4).backward()
    (kl.divergence(*inputs, 2.0) * 0.75).backward()  # accumulates, as micro-batches do
    for leaf, wanted in zip(inputs[:2], reference(inputs, 2.0)[1:], strict=True):
        torch.testing.assert_close(leaf.grad.double(), wanted, rtol=1e-4, atol=1e-8)
    with pytest.raises(RuntimeError, match="compute it again"):
        loss.backward()


@pytest.mark.parametrize(("frozen", "in_grad_mode", "products"), [(0, True, 4), (1, True, 3), (0, False, 2)])
def test_products_for_gradients_only_where_they_are_wanted(frozen, in_grad_mode, products, monkeypatch):
    """Two for the logits, and one for each gradient."""
    calls, product = [], kl._product
    monkeypatch.setattr(kl, "_product", lambda *args, **kwargs: calls.append(1) or product(*args, **kwargs))
    inputs = list(problem(16, 40, 5, 6))
    expected = reference(inputs, 2.0)[1]
    inputs[1].requires_grad_(not frozen)
    with torch.set_grad_enabled(in_grad_mode):
        loss = kl.divergence(*inputs, 2.0)
    assert len(calls) == products and loss.requires_grad == in_grad_mode
    if in_grad_mode:
        torch.testing.assert_close(torch.autograd.grad(loss, inputs[0])[0].double(), expected, rtol=1e-4, atol=1e-8)


def test_nan_is_not_hidden():
    inputs = problem(8, 40, 5, 6)
    with torch.no_grad():
        inputs[0][3, 2] = float("nan")
    assert kl.divergence(*inputs, 2.0).isnan()


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_autocast_bf16(stored):
    """The same code under autocast, as on a GPU: products in bf16, sums and losses in fp32, gradients in fp32."""
    inputs = problem(64, 300, 32, 32, scale=2.0)
    expected = reference(inputs, 2.0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = kl.divergence(*inputs[:2], inputs[2].to(stored), inputs[3], 2.0)
    gradients = torch.autograd.grad(loss, inputs[:2])
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected[0].item(), rel=0.02)
    for gradient, wanted in zip(gradients, expected[1:], strict=True):
        assert gradient.dtype == torch.float32 and (gradient - wanted).norm() < 0.02 * wanted.norm()


def test_never_holds_tokens_by_vocabulary():
    """No tensor that the loss allocates is near tokens x vocabulary."""
    inputs = problem(512, 3000, 4, 4)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kl.divergence(*inputs, 2.0).backward()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < 512 * 3000 * 4 / 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive and finite, not 0.0"),
        ({"temperature": float("nan")}, "temperature must be positive"),
        ({"direction": "both"}, "direction must be one of forward, reverse, not 'both'"),
        ({"student_unembedding": torch.zeros(10, 4)}, r"must share d, not \[6, 3\] and \[10, 4\]"),
        ({"teacher_unembedding": torch.zeros(11, 4)}, "must share a vocabulary, not 10 and 11"),
        ({"teacher_hidden": torch.zeros(5, 4)}, r"same tokens, not \[6\] and \[5\]"),
        ({"student_hidden": torch.zeros(0, 3)}, "no token is left"),
        ({"targets": torch.zeros(5, dtype=torch.long)}, "one token number for each"),
        ({"targets": torch.full((6,), -100)}, "must lie in 0 ... 9"),
    ],
)
def test_bad_input(changes, message):
    inputs = problem(6, 10, 3, 4)
    names = ("student_hidden", "student_unembedding", "teacher_hidden", "teacher_unembedding")
    with pytest.raises(ValueError, match=message):
        if "targets" in changes:
            kl.cross_entropy(*inputs[:2], **changes)
        else:
            kl.divergence(**dict(zip(names, inputs, strict=True)) | changes)
