"""The toy sweep beside its peers: model-steps per CPU-second, CPU-seconds to the same floors, and how cost grows.

    python benchmarks/toy.py [--steps 6000] [--seeds 20]

Compares ``minwidth.toy`` with (a) one nn.Module and one Adam for each seed, (b) all seeds of a cell as an "instances"
axis with einsum, the style of the well-known toy-model notebooks, and (c) torch.compile of (b)'s loss. All draw the
same distribution and use Adam with the same cosine; the peers draw fresh rows, all-zero ones among them, as they do.
One thread each, fp32. Floors of all contestants are measured on the same 131,072 fresh rows.

1. Speed: the cell n = 20, alpha = .9, d = 5 at 1,024 rows a step for everyone; best of interleaved rounds.
2. Cost of floors: for a sample of cells, CPU-seconds a model over the whole training; ours with 128 rows a step that
   have an active feature (its default), the peers with 1,024 rows of all kinds and again with 256, the cheaper one
   that reaches the floors counting. Floors agree if the means differ by less than the seeds' standard deviation (or
   2 %) and the best seeds by less than 2 %. One module a seed is slow, so few seeds are run; its mathematics is
   (b)'s, whose floors stand for it.
3. Growth: seconds for 2,000 steps against n, width and seeds, with the exponent of a power law of the upper half.

Writes results/toy.json and results/toy.png. Takes about twenty minutes.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from common import RESULTS, save
from torch import nn

from minwidth import capacity, figures, toy, toy_kernel

CELL = (20, 0.9, 5)
SAMPLE = [(10, 0.9, 2), (20, 0.8, 3), (20, 0.9, 5), (20, 0.99, 5), (40, 0.95, 8)]  # n, alpha, width
SEEDS_OF_MODULES = 2


def draw(shape: tuple[int, ...], alpha: float, generator: torch.Generator) -> torch.Tensor:
    active = torch.rand(shape, generator=generator) < 1 - alpha
    return active * torch.rand(shape, generator=generator)


class ToyModel(nn.Module):
    """The toy model as one writes it."""

    def __init__(self, n: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, n) * (2 / (n + width)) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(n))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ self.weight.T @ self.weight + self.bias)


def _cosine(adam: torch.optim.Optimizer, steps: int):
    return torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps, toy.FINAL_RATE)


def modules(n: int, alpha: float, width: int, seeds: int, steps: int, rows: int) -> list[toy.Model]:
    """(a) one nn.Module and one Adam for each seed, one after the other."""
    importance = torch.tensor(capacity.zipf(n), dtype=torch.float32)
    found = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        model = ToyModel(n, width)
        adam = torch.optim.Adam(model.parameters(), lr=toy.INITIAL_RATE)
        falling = _cosine(adam, steps)
        for _ in range(steps):
            x = draw((rows, n), alpha, generator)
            loss = (importance * (model(x) - x) ** 2).sum(1).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            falling.step()
        found.append(toy.Model(*(value.detach().numpy() for value in (model.weight, model.bias))))
    return found


def _instances_loss(weight, bias, importance, x):
    hidden = torch.einsum("bif,ihf->bih", x, weight)
    out = torch.relu(torch.einsum("bih,ihf->bif", hidden, weight) + bias)
    return (importance * (out - x) ** 2).sum(2).mean(0).sum()


def instances(
    n: int, alpha: float, width: int, seeds: int, steps: int, rows: int, loss: Callable = _instances_loss
) -> list[toy.Model]:
    """(b) all seeds at once: x is [rows, instances, n], W [instances, width, n]."""
    generator = torch.Generator().manual_seed(0)
    importance = torch.tensor(capacity.zipf(n), dtype=torch.float32)
    weight = nn.Parameter(torch.randn(seeds, width, n, generator=generator) * (2 / (n + width)) ** 0.5)
    bias = nn.Parameter(torch.zeros(seeds, n))
    adam = torch.optim.Adam([weight, bias], lr=toy.INITIAL_RATE)
    falling = _cosine(adam, steps)
    for _ in range(steps):
        x = draw((rows, seeds, n), alpha, generator)
        adam.zero_grad()
        loss(weight, bias, importance, x).backward()
        adam.step()
        falling.step()
    return [toy.Model(w, b) for w, b in zip(weight.detach().numpy(), bias.detach().numpy(), strict=True)]


def compiled(*cell_and_sizes, loss: Callable | None = None) -> list[toy.Model]:
    """(c) as (b), with its loss compiled for these shapes; compiling counts unless a compiled ``loss`` is given."""
    if loss is None:
        torch._dynamo.reset()
        loss = torch.compile(_instances_loss, dynamic=False)
    return instances(*cell_and_sizes, loss=loss)


def ours(n: int, alpha: float, width: int, seeds: int, steps: int, rows: int) -> list[toy.Model]:
    training = toy.pool(n, alpha)  # drawing the pool is part of the cost
    return [
        toy.train(toy.initial_model(n, width, rng), training, capacity.zipf(n), steps, rng, rows)[0]
        for rng in map(np.random.default_rng, range(seeds))
    ]


CONTESTANTS = {"module a seed": modules, "einsum": instances, "einsum compiled": compiled, "ours": ours}


def clock(contestant: Callable, *arguments) -> tuple[float, list[toy.Model]]:
    """CPU-seconds of all threads, and the models."""
    started = time.process_time()
    found = contestant(*arguments)
    return time.process_time() - started, found


def speed(rounds: int, rows: int = 1024, seeds: int = 20) -> dict:
    """Measure 1, without compilation."""
    loss = torch.compile(_instances_loss, dynamic=False)
    runs = CONTESTANTS | {"einsum compiled": lambda *sizes: compiled(*sizes, loss=loss)}
    steps = {"module a seed": 40, "einsum": 100, "einsum compiled": 200, "ours": 2000}
    found = {name: [] for name in runs}
    for again in range(rounds + 1):
        for name, contestant in runs.items():
            seconds, _ = clock(contestant, *CELL, seeds, steps[name] if again else 2, rows)
            if again:  # the first round warms up
                found[name].append(seeds * steps[name] / seconds)
    return {name: max(values) for name, values in found.items()}


def floors(models: list[toy.Model], n: int, alpha: float) -> np.ndarray:
    fresh = toy.pool(n, alpha, toy.EVALUATION_ROWS, toy.MEASURING)
    return np.array([toy.measure(model, fresh, capacity.zipf(n))[0] for model in models])


def cost_of_floors(steps: int, seeds: int) -> list[dict]:
    """Measure 2: a row for each cell and contestant."""
    runs = [("ours", 128, seeds)]
    for rows in (1024, 256):
        runs += [("module a seed", rows, SEEDS_OF_MODULES), ("einsum", rows, seeds), ("einsum compiled", rows, seeds)]
    found = []
    for n, alpha, width in SAMPLE:
        for name, rows, count in runs:
            seconds, models = clock(CONTESTANTS[name], n, alpha, width, count, steps, rows)
            measured = floors(models, n, alpha)
            found.append(
                {"n": n, "alpha": alpha, "width": width, "contestant": name, "rows": rows, "seeds": count,
                 "cpu_seconds_a_model": seconds / count, "floor_mean": measured.mean(), "floor_min": measured.min(),
                 "floor_std": measured.std(ddof=1)}
            )  # fmt: skip
            print(json.dumps(found[-1], default=float), flush=True)
    return found


def parity(found: list[dict]) -> list[dict]:
    """For each cell and number of rows: do (b)'s floors agree with ours?"""
    checked = []
    for row in found:
        if row["contestant"] == "einsum":
            mine = next(r for r in found if r["contestant"] == "ours" and r["n"] == row["n"]
                        and (r["alpha"], r["width"]) == (row["alpha"], row["width"]))  # fmt: skip
            gap = row["floor_mean"] / mine["floor_mean"] - 1
            best_gap = row["floor_min"] / mine["floor_min"] - 1
            spread = np.hypot(row["floor_std"], mine["floor_std"]) / np.sqrt(2) / mine["floor_mean"]
            agree = bool(abs(gap) < max(0.02, spread) and abs(best_gap) < 0.02)
            cell = {key: row[key] for key in ("n", "alpha", "width", "rows")}
            checked.append(cell | {"mean_gap": gap, "best_gap": best_gap, "seed_spread": spread, "agree": agree})
    return checked


def ratios(found: list[dict], checked: list[dict]) -> dict[str, float]:
    """CPU-seconds over the whole sample to ours, each peer with the fewest rows at which floors agree."""
    totals = dict.fromkeys(CONTESTANTS, 0.0)
    for cell in SAMPLE:
        mine = [row for row in found if (row["n"], row["alpha"], row["width"]) == cell]
        good = {c["rows"] for c in checked if (c["n"], c["alpha"], c["width"]) == cell and c["agree"]} or {1024}
        for name in CONTESTANTS:
            rows = [row for row in mine if row["contestant"] == name and (name == "ours" or row["rows"] in good)]
            totals[name] += min(row["cpu_seconds_a_model"] for row in rows)
    return {name: total / totals["ours"] for name, total in totals.items()}


def growth(steps: int = 2000) -> dict[str, dict]:
    """Measure 3: CPU-seconds of training alone, least of three, against one size at a time."""
    axes = {
        "n": ([8, 16, 32, 64, 128, 256], lambda n: (n, 0.9, 5, 1)),
        "width": ([2, 4, 8, 16, 32, 64], lambda width: (64, 0.9, width, 1)),
        "seeds": ([1, 2, 4, 8, 16, 32], lambda seeds: (20, 0.9, 5, seeds)),
    }
    found = {}
    for name, (sizes, cell) in axes.items():
        seconds = []
        for size in sizes:
            n, alpha, width, seeds = cell(size)
            rows = toy.pool(n, alpha, 16_384)
            start = [toy.initial_model(n, width, np.random.default_rng(seed)) for seed in range(seeds)]

            def train(n=n, rows=rows, start=start):
                return [toy.train(m, rows, capacity.zipf(n), steps, np.random.default_rng(0))[0] for m in start]

            seconds.append(min(clock(train)[0] for _ in range(3)))
        half = len(sizes) // 2
        exponent = np.polyfit(np.log(sizes[half:]), np.log(seconds[half:]), 1)[0]
        found[name] = {"sizes": sizes, "cpu_seconds": seconds, "exponent": float(exponent), "steps": steps}
    return found


def picture(result: dict) -> None:
    """results/toy.png: speed, cost of floors, growth."""
    with figures.style():
        figure, ((speeds, costs, growths),) = figures.panels(3, height=2.9)
        names = list(result["speed"])
        colors = [figures.PALETTE[0] if name == "ours" else figures.PALETTE[7] for name in names]
        for axis, values, label in (
            (speeds, result["speed"], "model-steps per\nCPU-second, 1,024 rows"),
            (costs, result["cost_ratios"], "CPU-seconds to the\nsame floors, ours = 1"),
        ):
            axis.barh(names, [values[name] for name in names], color=colors)
            axis.set(xscale="log", xlabel=label, xlim=(0.5 * min(values.values()), 20 * max(values.values())))
            for name in names:
                axis.annotate(f" {values[name]:,.0f}", (values[name], name), va="center", fontsize=7)
        for (name, line), marker in zip(result["growth"].items(), "os^", strict=True):
            growths.plot(line["sizes"], line["cpu_seconds"], marker=marker, markersize=4,
                         label=f"{name}: {line['exponent']:.2f}")  # fmt: skip
        growths.set(xscale="log", yscale="log", xlabel="n, width or seeds", ylabel="CPU-seconds, 2,000 steps")
        growths.legend(title="exponent", loc="upper left", fontsize=7, title_fontsize=7)
        growths.set_ylim(None, 20 * growths.get_ylim()[1])
        costs.set_yticklabels([])
        figure.savefig(RESULTS / "toy.png", metadata={"Software": "minwidth"})


def main(steps: int, seeds: int, rounds: int) -> dict:
    torch.set_num_threads(1)
    started = time.process_time()
    ours(4, 0.9, 2, 1, 1, 256)  # compiled here, or found in Numba's cache
    loading = time.process_time() - started
    found = cost_of_floors(steps, seeds)
    checked = parity(found)
    fast = speed(rounds)
    result = {
        "lanes": toy_kernel.LANES,
        "compile_or_load_cpu_seconds": loading,
        "parity": checked,
        "speed": fast,
        "speed_ratios": {name: fast["ours"] / value for name, value in fast.items()},
        "cost_of_floors": found,
        "cost_ratios": ratios(found, checked),
        "growth": growth(),
        "sizes": {"cell": CELL, "sample": SAMPLE, "steps": steps, "seeds": seeds, "rounds": rounds},
    }
    save("toy", result, "torch", "numba", "numpy")
    picture(result)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6000, help="of each model, for the cost of floors")
    parser.add_argument("--seeds", type=int, default=20, help="models of each cell (one module a seed: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each contestant's speed is taken")
    result = main(**vars(parser.parse_args()))
    print(
        json.dumps({key: result[key] for key in ("parity", "speed", "speed_ratios", "cost_ratios", "growth")}, indent=1)
    )
