"""The sparse step is the dense step is autograd; statistics are those by hand; a measurement is found again."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minwidth import autoencoder, models, sae, sae_kernel, scales, store, stream, text
from minwidth.autoencoder import Run, Sae, Settings
from tests import small_world

world = small_world.world  # a fixture


@torch.no_grad()
def random_sae(d: int, latents: int, seed: int, density: float, topk: int | None = None):
    """Random parameters and inputs on which about ``density`` of the latents fire."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, d, generator=generator) + 0.3
    model = Sae.initial(x.mean(0), latents, seed, topk)
    model.encoder += 0.1 * torch.randn(latents, d, generator=generator)
    if topk is None:
        model.bias_encoder -= torch.quantile((x - model.bias_pre) @ model.encoder.T, 1 - density)
    return model, x


def written_out(model: Sae, x: torch.Tensor, lam: float):
    """The paper's loss as it is written, in float64, under the same active mask: error and gradients."""
    every = encoder, decoder, bias_pre, bias_encoder = [
        w.detach().double().requires_grad_() for w in model.parameters()
    ]
    z = ((x.double() - bias_pre) @ encoder.T + bias_encoder) * (model.encode(x) > 0)
    error = (x.double() - z @ decoder - bias_pre).square().sum(1).mean()
    (error + lam * z.abs().sum(1).mean()).backward()
    return float(error.detach()), [w.grad for w in every]


@settings(max_examples=25, deadline=None)
@given(
    d=st.integers(2, 40),
    latents=st.integers(8, 200),
    seed=st.integers(0, 10**6),
    lam=st.floats(0, 3),
    topk=st.sampled_from([None, None, 1]),
)
def test_both_ways_give_the_gradients_of_the_loss_as_it_is_written(d, latents, seed, lam, topk):
    model, x = random_sae(d, latents, seed, 0.6 * sae_kernel.ACTIVE, topk)
    model.bias_encoder.requires_grad_()
    error, expected = written_out(model, x, lam)
    found = sae_kernel.gradients(model, x, lam, sae_kernel.Buffers(len(x), latents, d))
    dense = autoencoder.dense_gradients(model, x, lam)
    assert found.l0 == pytest.approx(int((model.encode(x) > 0).sum()) / len(x)) == dense.l0
    assert found.error == pytest.approx(error, rel=1e-5) and dense.error == pytest.approx(error, rel=1e-5)
    assert torch.equal(found.counts, dense.counts)
    fired = found.counts > 0
    for sparse, plain, reference in zip(found.parameters, dense.parameters, expected, strict=True):
        scale = float(reference.abs().max()) + 1e-12
        rows = fired if sparse.ndim == 2 else slice(None)
        torch.testing.assert_close(sparse[rows].double(), reference[rows], rtol=1e-4, atol=1e-5 * scale)
        torch.testing.assert_close(plain.double(), reference, rtol=1e-4, atol=1e-5 * scale)


def test_a_step_is_that_of_torch_adam_with_clipping_and_unit_rows():
    model, x = random_sae(16, 64, 0, 0.01)
    reference = [w.detach().clone().requires_grad_() for w in list(model.parameters())[:3]]
    optimizer, adam = torch.optim.Adam(reference, lr=0.01), sae_kernel.Adam(model)
    buffers, bias = sae_kernel.Buffers(len(x), 64, 16), model.bias_encoder.detach()
    for _ in range(3):
        _, gradients = written_out(Sae(*(w.detach() for w in reference), bias), x, 0.2)
        for w, gradient in zip(reference, gradients, strict=False):
            w.grad = gradient.float()
        assert torch.nn.utils.clip_grad_norm_(reference, sae_kernel.CLIP) > sae_kernel.CLIP  # it does clip
        optimizer.step()
        with torch.no_grad():
            reference[1] /= reference[1].norm(dim=1, keepdim=True)
        adam.step(model, sae_kernel.gradients(model, x, 0.2, buffers), 0.01)
    for w, expected in zip(model.parameters(), [*reference, bias], strict=True):
        torch.testing.assert_close(w.detach(), expected.detach(), rtol=1e-3, atol=2e-5)


def planted(tokens: int) -> torch.Tensor:
    """Tokens that are sparse sums of 40 random directions."""
    generator = torch.Generator().manual_seed(0)
    dictionary = torch.nn.functional.normalize(torch.randn(40, 32, generator=generator))
    return 8 * (torch.rand(tokens, 40, generator=generator) < 0.03).float() @ dictionary


def test_the_sparse_path_trains_the_same_autoencoder_and_leaves_dense_batches_to_autograd(monkeypatch):
    model, dense_x = random_sae(16, 64, 0, 2 * sae_kernel.ACTIVE)
    assert sae_kernel.gradients(model, dense_x, 0.2, sae_kernel.Buffers(len(dense_x), 64, 16)) is None
    with pytest.raises(ValueError, match="do not fit buffers for"):
        sae_kernel.gradients(model, dense_x[:-1], 0.2, sae_kernel.Buffers(len(dense_x), 64, 16))
    x = planted(2000)
    setting = Settings(0, 3.0, 80, 250, 64, 1e-2, 0)
    sparse, dense = Run(setting, x.mean(0)), Run(setting, x.mean(0))
    sparse.advance(x, 250)
    assert sparse.sparse  # it did use it
    monkeypatch.setattr(sae_kernel, "gradients", lambda *_: None)
    dense.advance(x, 250)
    a, b = (np.array([[p["error"], p["l0"]] for p in run.curve]) for run in (sparse, dense))
    np.testing.assert_allclose(a, b, rtol=0.01)


def test_a_diverging_run_stops_with_a_sentence():
    x = planted(500)
    x[0] = math.inf
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        Run(Settings(0, 1.0, 80, 20, 64, 1e-2, 0), torch.zeros(32)).advance(x, 20)


# ------------------------------------------------------------------------------------------------------ statistics


def test_statistics_by_hand():
    """Three latents that read the three positive axes, on four tokens of two documents."""
    eye = torch.eye(3)
    model = Sae(eye.clone(), eye.clone(), torch.zeros(3), torch.zeros(3))
    x = torch.tensor([[1.0, 0, 0], [2, 1, 0], [0, 1, -1], [0, 0, -1]])
    sums = sae.sums(model, x, torch.tensor([0, 0, 7, 7]))
    assert sums.error == 2.0  # the two negative entries
    assert sums.document.tolist() == [0, 7] and sums.tokens.tolist() == [2, 2]
    found = sae.statistics(sums)
    assert found.alive == 2 and found.l0 == 1.0 and found.alpha == 0.5 and found.d_star == pytest.approx(math.log(2))
    np.testing.assert_allclose(found.frequency, [0.5, 0.5, 0])
    np.testing.assert_allclose(found.importance, [5 / 4, 2 / 4, 0])
    np.testing.assert_allclose(found.tail, [5 / 4, 2 / 4])
    twice = sae.statistics(sums, np.array([2.0, 1.0]))  # the first document counts twice
    assert twice.l0 == pytest.approx((2 * 3 + 1) / 6)
    np.testing.assert_allclose(twice.importance, [10 / 6, (2 + 1) / 6, 0])
    with pytest.raises(ValueError, match="lower lam"):  # nothing fires
        sae.statistics(sae.sums(model, -x.abs(), torch.zeros(4, dtype=torch.long)))


@given(cuts=st.sets(st.integers(1, 39)))
def test_sums_of_parts_are_those_of_the_whole(cuts):
    """Also where a part ends within a document, and whatever has been read before."""
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    document = torch.arange(40) // 9
    model, edges = Sae.initial(x.mean(0), 12, 0), [0, *sorted(cuts), 40]
    whole, pieces = sae.sums(model, x, document), list(itertools.pairwise(edges))
    found = sae.joined([sae.sums(model, x[a:b], document[a:b]) for a, b in pieces])
    assert found.document.tolist() == whole.document.tolist() and found.tokens.tolist() == whole.tokens.tolist()
    assert (found.active != whole.active).nnz == 0
    np.testing.assert_allclose(found.squares.toarray(), whole.squares.toarray(), rtol=1e-4)
    assert found.error == pytest.approx(whole.error, rel=1e-5)
    mean, covariance = sae.mean_and_covariance(sum(sae.second_moments(x[a:b]) for a, b in pieces))
    torch.testing.assert_close(mean.float(), x.mean(0))
    torch.testing.assert_close(covariance.float(), torch.cov(x.T))


def test_the_interval_lies_around_the_value_and_shrinks_with_documents():
    generator = np.random.default_rng(0)
    widths = []
    for documents in (20, 500):
        counts = generator.poisson(5.0, (documents, 4)).astype(float)
        both = [sae.sparse.csr_array(counts)] * 2
        sums = sae.Sums(np.arange(documents), np.full(documents, 50.0), *both, 1)
        found = sae.statistics(sums)
        low, high = sae.interval(found.l0, [draw.l0 for draw in sae.bootstrap(sums, 0)])
        assert low < found.l0 < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


@pytest.mark.parametrize(("blocks", "shard", "steps"), [(100, 200, 37), (100, 30, 37), (64, 8, 500)])
def test_visits_cover_every_step_once(blocks, shard, steps):
    visits = list(autoencoder._visits(blocks, shard, 16, Settings(0, 1.0, 8, steps, 16, 1e-3, 0)))
    assert visits[0][1] == 0 and visits[-1][2] == steps
    assert all(a[2] == b[1] for a, b in itertools.pairwise(visits))
    assert all(0 <= start < blocks for start, _, _ in visits)


# -------------------------------------------------------------------------------------------------- the measurement


def test_a_measurement_trains_every_layer_and_lambda_once(world):
    record = sae.measure(world)
    layers, floors = record["layers"], record["floors"]
    assert set(zip(layers.layer, layers.lam, strict=True)) == {(1, 1.0), (2, 0.3), (2, 1.0), (2, 3.0)}
    assert layers["default"].sum() == 1
    assert (layers.l0.to_numpy()[1:].argsort() == [2, 1, 0]).all()  # a larger lambda, fewer active
    for bound in ("alive", "l0", "alpha", "d_star"):
        assert (layers[f"{bound}_low"] <= layers[bound]).all() and (layers[bound] <= layers[f"{bound}_high"]).all()
    np.testing.assert_allclose(layers.d_star, layers.alive / layers.g)
    assert len(floors) == len(layers) * 6 and set(floors.width) == {4, 8, 12, 16, 24, 32}  # shares of its own width
    default = floors[(floors.layer == 2) & (floors.lam == 1.0)]
    assert (np.diff(default.eq2) <= 0).all()
    assert (default.kept + default.dropped == record["alive"]).all()
    assert (default.eq2_low <= default.eq2).all() and (default.eq2 <= default.eq2_high).all()
    assert default.kl_cut.iloc[-1] == pytest.approx(0, abs=1e-6) and (np.diff(default.kl_cut) < 0).all()
    assert default.pca_tail.iloc[-1] == 0
    assert len(record["importance"]) == record["alive"] and (np.diff(record["importance"]) <= 0).all()
    assert record["importance"].sum() == pytest.approx(default.total.iloc[0], rel=1e-5)
    assert record["left_out"] == {"position 0": 100, "massive": 0}
    assert (layers.kl_spliced < layers.kl_ablated).all()


def test_a_measurement_is_found_and_its_autoencoder_loads(world, monkeypatch):
    record = sae.measure(world)
    monkeypatch.setattr(sae, "_measure", lambda *_: pytest.fail("computed again"))
    model, calibration = sae.load(sae.measure(world))
    teacher = models.load_teacher(world.teacher)
    x = stream.activations(teacher, text.token_blocks(teacher.tokenizer, "held_out"), calibration).layers[2]
    found = sae.statistics(sae.sums(model, x, torch.zeros(len(x), dtype=torch.long)))
    assert found.alive == record["alive"] and found.alpha == pytest.approx(record["alpha"])


def test_a_long_pass_over_the_text_is_kept_on_disk(world, monkeypatch):
    monkeypatch.setattr(autoencoder, "ON_DISK", 0)
    from_disk = sae._measure(world, store.RUNS / "from_disk")
    assert len(list(stream.RUNS.glob("states/tiny-sae-layers-1-2-*.bin"))) == 1
    pd.testing.assert_frame_equal(from_disk["layers"], sae.measure(world)["layers"], rtol=1e-3)


def test_topk_is_measured_too(world):
    record = sae.measure(world.model_copy(update={"kind": "topk", "topk": 5}))
    assert list(record["layers"].layer) == [1, 2]
    assert 4 < record["l0"] <= 5 and sae.load(record)[0].topk == 5


@pytest.mark.parametrize(("change", "says"), [({"tokens": 20_000}, "raise percent"), ({"widths": [64]}, "64 is wider")])
def test_too_little_text_and_too_wide_students_are_named(world, change, says):
    with pytest.raises(ValueError, match=says):
        sae.measure(scales.parameters("03_sae", **(world.model_dump() | change)))
