"""The compiled loop against plain PyTorch autograd in double precision, and what a sweep promises."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minwidth import capacity, toy, toy_kernel
from minwidth.toy import Model, Rows


def reference(weight, bias, importance, alpha, inputs, targets, zero_target):
    """Expected loss of a batch: alpha^n x the all-zero row + (1 - alpha^n) x the mean over the other rows."""
    x = torch.cat([inputs, torch.zeros(1, inputs.shape[1], dtype=inputs.dtype)])
    errors = torch.relu(x @ weight.T @ weight + bias) - torch.cat([targets, zero_target[None]])
    rows = errors**2 @ importance
    zero = alpha ** inputs.shape[1]
    return zero * rows[-1] + (1 - zero) * rows[:-1].mean()


def random_problem(n, width, tiles, alpha, seed):
    rng = np.random.default_rng(seed)
    model = Model(rng.normal(0, 0.5, (width, n)).astype(np.float32), rng.normal(0, 0.2, n).astype(np.float32))
    inputs = toy.draw_rows(n, alpha, tiles * toy.TILE, rng)
    targets, zero_target = np.abs(rng.normal(0, 0.4, (2, *inputs.shape)))
    return model, rng.random(n) + 0.01, inputs, targets.astype(np.float32), zero_target[0].astype(np.float32)


def loss_and_gradients(model, importance, alpha, inputs, targets, zero_target):
    """One step's, by the compiled loop."""
    (width, n), gradient = model.weight.shape, np.zeros_like(model.flat())
    loss = toy_kernel.loss_and_gradient(
        model.flat(), toy_kernel.padded(n, 4), toy_kernel.padded(width, 2), toy_kernel.by_feature(importance),
        toy_kernel.by_feature(zero_target), alpha**n, toy_kernel.pack(inputs), toy_kernel.pack(targets), 0,
        len(inputs) // toy.TILE, toy_kernel.workspace(n, width), gradient,
    )  # fmt: skip
    return loss, toy.unflat(gradient, n, width)


def double(*arrays):
    return [torch.tensor(np.asarray(array), dtype=torch.float64) for array in arrays]


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 48), share=st.floats(0, 1), tiles=st.integers(1, 5), alpha=st.floats(0.01, 0.999),
    to_teacher=st.booleans(), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@example(n=256, share=0.6, tiles=2, alpha=0.9, to_teacher=False, seed=0)
@example(n=10, share=1.0, tiles=8, alpha=0.99, to_teacher=True, seed=1)
def test_loss_and_gradients_are_those_of_autograd(n, share, tiles, alpha, to_teacher, seed):
    width = max(1, round(share * n))
    model, importance, inputs, targets, zero_target = random_problem(n, width, tiles, alpha, seed)
    if not to_teacher:
        targets, zero_target = inputs, np.zeros(n)
    loss, gradients = loss_and_gradients(model, importance, alpha, inputs, targets, zero_target)

    weight, bias = (tensor.requires_grad_() for tensor in double(*model))
    expected = reference(weight, bias, *double(importance), alpha, *double(inputs, targets, zero_target))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(gradients, (weight.grad, bias.grad), strict=True):
        scale = theirs.abs().max().item()
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-4 * scale)


def plain_adam(model, inputs, batches, importance, alpha, steps, first_rate, last_rate):
    """Full-precision PyTorch: the same batches in the same order."""
    weight, bias = (torch.nn.Parameter(tensor) for tensor in double(*model))
    adam = torch.optim.Adam([weight, bias], lr=first_rate)
    for step, batch in enumerate(batches[:steps]):
        adam.param_groups[0]["lr"] = last_rate + (first_rate - last_rate) * (1 + np.cos(np.pi * step / steps)) / 2
        adam.zero_grad()
        rows = inputs[batch * 256 : batch * 256 + 256]
        reference(weight, bias, importance, alpha, rows, rows, torch.zeros(len(bias), dtype=torch.float64)).backward()
        adam.step()
    return weight.detach().numpy(), bias.detach().numpy()


def test_training_is_adam_with_a_cosine_on_the_pool_in_a_fresh_order_each_epoch():
    n, alpha, steps = 9, 0.7, 40
    inputs = toy.draw_rows(n, alpha, 16 * 256, np.random.default_rng(0))
    importance, start = capacity.zipf(n), toy.initial_model(n, 3, np.random.default_rng(1))
    packed = toy_kernel.pack(inputs)
    rows = Rows(packed, packed, np.zeros(12, dtype=np.float32), alpha**n)
    trained, curve, history = toy.train(start, rows, importance, steps, np.random.default_rng(2), 256, snapshots=True)

    rng = np.random.default_rng(2)
    batches = np.concatenate([rng.permutation(16) for _ in range(3)])
    weight, bias = plain_adam(start, *double(inputs), batches, *double(importance), alpha, steps, 1e-2, 1e-5)
    np.testing.assert_allclose(trained.weight, weight, atol=2e-4)
    np.testing.assert_allclose(trained.bias, bias, atol=2e-4)
    assert len(curve) == len(history) == len(toy.checkpoints(steps))
    np.testing.assert_array_equal(history[-1].weight, trained.weight)
    first = inputs[batches[0] * 256 : batches[0] * 256 + 256]
    expected = loss_and_gradients(start, importance, alpha, first, first, np.zeros(n))[0]
    assert curve[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("activation", ["uniform", "fixed"])
def test_drawn_rows_have_the_distribution_of_rows_that_are_not_zero(activation):
    n, alpha, rows = 6, 0.7, 400 * toy.TILE
    x = toy.draw_rows(n, alpha, rows, np.random.default_rng(0), activation)
    active = x > 0
    assert active.any(1).all()
    some = 1 - alpha**n
    np.testing.assert_allclose(active.mean(0), (1 - alpha) / some, atol=0.01)
    np.testing.assert_allclose((active[:, 0] & active[:, 5]).mean(), (1 - alpha) ** 2 / some, atol=0.01)
    assert (active.sum(1) == 1).mean() == pytest.approx(n * (1 - alpha) * alpha ** (n - 1) / some, abs=0.01)
    moments = {"uniform": (1 / 2, 1 / 3), "fixed": (1, 1)}[activation]
    assert (x[active].mean(), (x[active] ** 2).mean()) == pytest.approx(moments, abs=0.01)


def test_a_measured_loss_is_the_mean_over_all_rows_the_zero_row_included():
    model, importance, *_ = random_problem(11, 5, 1, 0.8, 3)
    rows = toy.pool(11, 0.8, 512)
    loss, error = toy.measure(model, rows, importance)
    x = rows.inputs.reshape(4, 12, toy.TILE)[:, :11].transpose(0, 2, 1).reshape(-1, 11)
    weight, bias, *given = double(*model, importance)
    expected = reference(weight, bias, *given, 0.8, *double(x, x, np.zeros(11)))
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    each = ((np.maximum(x @ model.weight.T @ model.weight + model.bias, 0) - x) ** 2) @ importance
    assert error == pytest.approx((1 - 0.8**11) * each.std() / np.sqrt(512), rel=1e-3)


def test_a_teachers_outputs_become_the_targets_also_of_the_zero_row():
    model, importance, *_ = random_problem(6, 2, 1, 0.8, 4)
    rows = toy.pool(6, 0.8, 256)
    taught = toy.outputs(model, rows)
    assert toy.measure(model, taught, importance)[0] == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(taught.zero_target[:6], np.maximum(model.bias, 0))
    assert toy.measure(model, rows, importance)[0] > 0.01


def test_a_model_depends_on_its_own_cell_and_seed_alone_and_its_parameters_are_those_that_were_measured():
    sizes = dict(features=[5, 6], sparsities=[0.8, 0.95], widths=[1, 3], steps=60)
    one, many = toy.train_all(**sizes, seeds=3, threads=1), toy.train_all(**sizes, seeds=3, threads=5)
    pd.testing.assert_frame_equal(one.floors, many.floors, check_exact=True)
    np.testing.assert_array_equal(one.curves, many.curves)
    np.testing.assert_array_equal(one.parameters, many.parameters)
    alone = toy.sweep(6, 0.95, 3, [2], 60)
    row = one.floors.query("n == 6 and alpha == 0.95 and width == 3 and seed == 2")
    assert alone.floor.item() == row.floor.item()
    assert one.floors.floor.nunique() == len(one.floors) == 2 * 2 * 2 * 3
    assert one.curves.shape == (len(one.floors), len(toy.checkpoints(60)))
    for row, found in one.floors[::5].iterrows():  # of every size and seed
        model = toy.model_of(one.floors, one.parameters, row)
        rows = toy.pool(found.n, found.alpha, toy.EVALUATION_ROWS, toy.MEASURING)
        assert toy.measure(model, rows, capacity.zipf(found.n))[0] == pytest.approx(found.floor, rel=1e-6)


def test_numbers_are_the_same_on_a_processor_with_narrower_registers_and_no_fused_products(tmp_path):
    program = "from minwidth import toy; print(*toy.sweep(6, 0.9, [1, 3], 2, 100).floor.map(float.hex))"
    older = {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_CPU_NAME": "nehalem", "NUMBA_CPU_FEATURES": ""}
    said = subprocess.run([sys.executable, "-c", program], env=os.environ | older, capture_output=True, check=True)
    assert said.stdout.decode().split() == toy.sweep(6, 0.9, [1, 3], 2, 100).floor.map(float.hex).tolist()


def test_floors_are_as_large_as_the_importances_and_the_rate_is_used():
    plain, tenfold, slow = (
        toy.sweep(6, 0.9, 2, 3, 400, importance=factor * capacity.zipf(6), rate=rate).floor
        for factor, rate in ((1, 1e-2), (10, 1e-2), (1, 1e-4))
    )
    np.testing.assert_allclose(tenfold / plain, 10, rtol=0.02)
    assert (slow > 1.2 * plain).all()


def test_students_of_a_teacher_are_no_wider_than_it_and_reach_it_at_its_width():
    floors = toy.sweep(8, 0.9, [1, 2, 3], 4, 1500, target="teacher", teacher_widths=[1, 3])
    assert set(zip(floors.teacher_width, floors.width, strict=True)) == {(1, 1), (3, 1), (3, 2), (3, 3)}
    np.testing.assert_array_equal(floors.floor, floors.loss_against_teacher)
    best = floors[floors.teacher_width == 3].groupby("width")[["loss_against_teacher", "loss_against_x"]].min()
    assert best.loss_against_teacher[3] < 0.1 * best.loss_against_teacher[1]  # not every seed finds its teacher
    assert best.loss_against_x[3] > 5 * best.loss_against_teacher[3]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"sparsities": 1.0}, "sparsities"), ({"sparsities": float("nan")}, "sparsities"), ({"sparsities": []}, "spar"),
        ({"widths": 0}, "widths"), ({"widths": 7}, "width = 7"), ({"widths": 1.5}, "widths"),
        ({"features": 0}, "features"), ({"seeds": 0}, "seeds"), ({"seeds": [-1]}, "seeds"), ({"steps": 0}, "steps"),
        ({"rate": 0.0}, "rate"),
        ({"target": "labels"}, "target"), ({"activation": "normal"}, "activation"),
        ({"importance": [1, 2]}, "importance"), ({"importance": [1, 1, 1, 1, 1, -1]}, "importance"),
        ({"target": "teacher", "teacher_widths": 9}, "width = 9"),
        ({"target": "teacher", "teacher_widths": 0}, "teacher_widths"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(changed, named):
    arguments = dict(features=6, sparsities=0.9, widths=2, seeds=1, steps=10) | changed
    with pytest.raises(ValueError, match=named):
        toy.sweep(**arguments)
