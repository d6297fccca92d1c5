"""The floor of the last state: cases by hand, its theorem's properties, and the minimisation against float64."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from minwidth import bottleneck, kl, measured, models, scales, store, stream, text
from minwidth import bottleneck_kernel as kernel
from minwidth.errors import ParameterError
from tests.small_models import config_of, save_teacher
from tests.small_world import VOCABULARY, token_blocks

WIDTHS = (2, 4, 6)


def problem(contexts=360, vocabulary=60, d=8, rank=None, held_out=240, dtype=torch.float32, seed=0):
    """States and unembedding of a teacher: logits with a standard deviation of about 2.5 and a falling spectrum."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = 1.5 * torch.arange(1, d + 1) ** -0.5
    spectrum[rank or d :] = 0
    states = torch.randn(contexts + held_out, d, generator=generator) * spectrum
    matrix = torch.randn(vocabulary, d, generator=generator)
    return states[:contexts].to(dtype), matrix.to(dtype), states[contexts:].to(dtype)


@pytest.fixture(scope="module")
def floors():
    states, matrix, held_out = problem()
    return {d: bottleneck.floor(states, matrix, d, 1.0, held_out=held_out, starts=2) for d in WIDTHS}


def test_three_words_by_hand():
    """p1 = (.8, .1, .1), p2 = (.1, .8, .1), d = 1: the best line is w = (1, -1, 0), met at e^h = x by a quadratic."""
    logits = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]], dtype=torch.float64).log()
    x = (0.7 + math.sqrt(0.49 + 4 * 0.3 * 1.7)) / 0.6  # x - 1/x = .7 (x + 1/x + 1): q matches p in the mean of w
    q = np.array([x, 1 / x, 1]) / (x + 1 / x + 1)
    by_hand = (np.array([0.8, 0.1, 0.1]) * np.log([0.8, 0.1, 0.1] / q)).sum()
    matrix = torch.eye(3, dtype=torch.float64)
    found = bottleneck.floor(logits, matrix, 1, 1.0, held_out=logits, starts=8, tolerance=1e-9)
    assert found.low == pytest.approx(by_hand, rel=1e-6)
    assert found.high == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize(("width", "given"), [(8, {}), (3, dict(rank=3)), (1, dict(vocabulary=2))])
def test_nothing_is_lost_at_the_rank_of_the_logits_and_something_below(width, given):
    """That rank is the teacher's width, or less; with two words it is 1 whatever the width."""
    states, matrix, held_out = problem(**given)
    found = bottleneck.floor(states, matrix, width, 2.0, held_out=held_out, starts=1)
    assert min(found.low, found.high) > -1e-6 and max(found.low, found.high) < 1e-5
    if width > 1:
        below = bottleneck.floor(states, matrix, width - 1, 2.0, held_out=held_out, starts=1)
        assert below.low > 1e-3


def test_both_ends_fall_with_width_and_stay_in_order(floors):
    for wide, narrow in zip(WIDTHS[1:], WIDTHS, strict=False):
        assert floors[wide].low < floors[narrow].low
        assert floors[wide].high < floors[narrow].high
    for found in floors.values():
        assert found.low < found.high
        assert found.low_interval[0] < found.low < found.low_interval[1]
        assert found.high_interval[0] < found.high < found.high_interval[1]


def test_the_least_of_the_starts_counts(floors):
    for found in floors.values():
        assert found.low == min(found.starts)
    assert floors[2].starts[1] > 1.05 * floors[2].low  # the problem is not convex: this random start ends higher


def test_states_and_unembedding_attain_the_upper_end(floors):
    _, matrix, held_out = problem()
    for found in floors.values():
        attained = kl.divergence(found.states, found.unembedding, held_out, matrix, 1.0)
        assert float(attained) == pytest.approx(found.high, rel=1e-4)
        assert found.slack < 1e-4 * found.high


def test_more_contexts_close_the_bracket_in_the_mean():
    lows, highs = [], []
    for seed in range(3):
        states, matrix, held_out = problem(contexts=400, held_out=200, seed=seed)
        found = [bottleneck.floor(states[:n], matrix, 2, 1.0, held_out=held_out, starts=1) for n in (40, 400)]
        lows.append([f.low for f in found])
        highs.append([f.high for f in found])
    assert (np.diff(np.mean(lows, 0)) > 0).all()
    assert (np.diff(np.mean(highs, 0)) < 0).all()


def test_no_trained_head_lies_below_the_lower_end(floors):
    """The teacher's trunk with W and a linear map of its last state trained on the very contexts of the lower end."""
    states, matrix, _ = problem()
    contexts = states[torch.randperm(len(states), generator=torch.Generator().manual_seed(0))[36:]]
    down = torch.randn(8, 2, generator=torch.Generator().manual_seed(1)).div_(8**0.5).requires_grad_()
    head = (matrix @ torch.linalg.pinv(down.detach()).T).requires_grad_()
    optimiser = torch.optim.Adam([down, head], 2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 300)
    for _ in range(300):
        optimiser.zero_grad()
        loss = kl.divergence(contexts @ down, head, contexts, matrix, 1.0)
        loss.backward()
        optimiser.step()
        schedule.step()
    assert floors[2].low < loss.item() < 2 * floors[2].high


def test_a_bias_is_one_more_rank(floors):
    states, matrix, held_out = problem()
    found = bottleneck.floor(states, matrix, 3, 1.0, held_out=held_out, bias=True)
    assert found.low == pytest.approx(floors[4].low, rel=0.02)
    assert floors[4].high < found.high < floors[2].high


def test_fewer_words_bound_from_below_by_the_chain_rule(floors):
    states, matrix, held_out = problem()
    found = bottleneck.floor(states, matrix, 2, 1.0, held_out=held_out, words=30, starts=1)
    assert (found.words, found.restricted) == (30, True)
    assert 0.5 < found.mass < 1
    assert 0.2 * floors[2].low < found.low < floors[2].low

    chosen = torch.arange(0, 60, 2)
    target = kernel.target_of(states.double(), matrix.double(), chosen)
    generator = torch.Generator().manual_seed(2)
    h, w = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (len(states), 60))
    p, q = F.log_softmax(states.double() @ matrix.double().T, 1), F.log_softmax(h @ w.T, 1)
    part = F.kl_div(F.log_softmax(q[:, chosen], 1), F.log_softmax(p[:, chosen], 1), log_target=True, reduction="none")
    expected = p[:, chosen].exp().sum(1) * part.sum(1)
    losses, *_ = kernel.losses_and_gradients(target, h, w[chosen])
    torch.testing.assert_close(losses, expected)
    assert (losses <= F.kl_div(q, p, log_target=True, reduction="none").sum(1)).all()


@pytest.mark.parametrize("cached", [True, False])
def test_loss_gradients_and_curvature_against_autograd(monkeypatch, cached):
    monkeypatch.setattr(kernel, "CACHE_BYTES", 2**32 if cached else 0)
    states, matrix, _ = problem(contexts=30, vocabulary=40, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    h, w = (torch.randn(n, 3, generator=generator, dtype=torch.float64, requires_grad=True) for n in (30, 40))
    target = kernel.target_of(states / 2, matrix)
    with torch.no_grad():
        losses, for_hidden, for_matrix = kernel.losses_and_gradients(target, h, w)
    expected = kl.divergence(2 * h, w, states, matrix, 2.0, per_token=True)
    torch.testing.assert_close(losses, expected)
    reference = F.kl_div(F.log_softmax(h @ w.T, 1), F.log_softmax(states @ matrix.T / 2, 1), log_target=True,
                         reduction="none").sum()  # fmt: skip
    for mine, wanted in zip((for_hidden, for_matrix), torch.autograd.grad(reference, (h, w)), strict=True):
        torch.testing.assert_close(mine, wanted)

    exact = states / 2 @ torch.linalg.lstsq(matrix, w.detach()).solution  # any state: the Hessian is taken at q = p
    hessians = []
    for p in F.softmax(states @ matrix.T / 2, 1):
        hessians.append(
            torch.func.hessian(lambda x, p=p: torch.logsumexp(p.log() + w.detach() @ x, 0))(torch.zeros_like(exact[0]))
        )
    hessian, traces = kernel.curvature(target, w.detach())
    torch.testing.assert_close(hessian, torch.stack(hessians).mean(0))
    torch.testing.assert_close(traces, torch.stack([one.trace() / 3 for one in hessians]))


def test_held_out_states_are_the_best_of_their_contexts():
    states, matrix, held_out = problem(dtype=torch.float64, held_out=20)
    found = bottleneck.floor(states, matrix, 3, 1.0, held_out=held_out, starts=1)
    h = torch.zeros(20, 3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([h], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = kl.divergence(h, found.unembedding, held_out, matrix, 1.0)
        value.backward()
        return value

    optimiser.step(loss)
    assert found.high == pytest.approx(loss().item(), abs=1e-6)


def test_same_inputs_give_the_same_bits():
    states, matrix, held_out = problem()
    one, two = (bottleneck.floor(states, matrix, 2, 1.0, held_out=held_out, seed=4) for _ in range(2))
    assert one[:12] == two[:12]
    assert torch.equal(one.unembedding, two.unembedding)


def test_interval_draws_documents():
    losses = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(50)
    by_context = measured.interval(losses, torch.arange(200))
    half = 1.96 * 0.5 / math.sqrt(200)
    assert by_context == pytest.approx((0.5 - half, 0.5 + half), abs=0.02)
    pairs = torch.arange(200) // 2  # losses agree within a document: half as many independent draws
    low, high = measured.interval(losses, pairs)
    assert high - low == pytest.approx(math.sqrt(2) * (by_context[1] - by_context[0]), rel=0.15)
    assert measured.interval(losses, torch.zeros(200)) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(width=0), "width = 0 is outside 1 ... 8"),
        (dict(width=9), "width = 9 is outside 1 ... 8"),
        (dict(temperature=0.0), "temperature = 0.0 is not positive"),
        (dict(temperature=math.nan), "temperature = nan"),
        (dict(teacher_hidden=torch.zeros(15, 8)), "15 contexts are too few for width 8"),
        (dict(held_out=torch.zeros(0, 8)), "No context is held out"),
        (dict(held_out=torch.zeros(9, 7)), "share d_T"),
        (dict(words=8), "words = 8 must exceed the width"),
        (dict(starts=0), "starts = 0"),
        (dict(documents=torch.zeros(3)), "documents must be one number for each of 360"),
    ],
)
def test_bad_input_is_named(changes, said):
    states, matrix, held_out = problem()
    given = dict(teacher_hidden=states, teacher_unembedding=matrix, width=8, temperature=1.0, held_out=held_out)
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        bottleneck.floor(**given | changes)


@pytest.mark.parametrize("architecture", ["gpt_neox", "phi"])  # the latter has an output bias
def test_a_ladder_computes_what_is_missing_and_finds_the_rest(architecture, tmp_path, monkeypatch):
    for module in (store, stream):
        monkeypatch.setattr(module, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(text, "token_blocks", token_blocks)
    config = config_of(architecture, vocab_size=VOCABULARY)
    save_teacher(tmp_path / "teacher", config, torch.float32, words=VOCABULARY)
    monkeypatch.setitem(scales.FLOORS, "other", scales.FLOORS["other"] | dict(held_out=60, starts=1))
    teacher, given = models.load_teacher(str(tmp_path / "teacher")), dict(contexts=[80, 160], words=30)
    first = bottleneck.ladder(teacher, [8], **given)
    assert first["table"].words.tolist() == [4 * 8]
    calls = []
    floor = bottleneck.floor
    monkeypatch.setattr(bottleneck, "floor", lambda **k: calls.append(k["width"]) or floor(**k))
    both = bottleneck.ladder(teacher, [16, 8], **given)
    assert calls == [16, 16]
    assert both["growth"][["width", "contexts"]].values.tolist() == [[8, 72], [8, 144], [16, 72], [16, 144]]
    assert both["table"].iloc[:1].equals(first["table"])
    assert both["table"].high.is_monotonic_decreasing
    assert (both["table"].low <= both["table"].high).all()
    with pytest.raises(ParameterError, match=r"width = 33 is outside 1 \.\.\. 32"):
        bottleneck.ladder(teacher, [33])
    with pytest.raises(ParameterError, match="15 contexts are too few for width 8"):
        bottleneck.ladder(teacher, [8], contexts=[15, 80])
    with pytest.raises(ParameterError, match="ask for at most that many"):
        bottleneck.ladder(teacher, [8], contexts=[10**6])
    with pytest.raises(ParameterError, match=r"no 'step'; it takes .*seed.* and steps"):
        bottleneck.ladder(teacher, [8], step=10)


@pytest.mark.parametrize("name", ["ladder", "long", "controls", "depth"])
def test_no_committed_student_lies_below_the_lower_end(name):
    files = sorted(store.COMMITTED.glob(f"*/distill_{name}.csv"))
    assert files
    for students in files:
        table, bracket = pd.read_csv(students), pd.read_csv(students.with_name("bottleneck.csv"))
        low = table.width.map(bracket[bracket.temperature == 2].set_index("width").low).dropna()  # not at every width
        loss = table["loss" if "loss" in table else "kl"][low.index]
        assert len(low) >= 10 and (loss > low).all()
