"""One training step of a sparse autoencoder beside its peers: CPU seconds, memory and agreement, in one run.

    python benchmarks/sae.py              with --trained smollm2 also on that scale's autoencoder

Contestants, from the same weights on the same inputs, their first loss the same to 1e-5 (else the run ends):

- **ours**: the step of ``autoencoder.Run``, which works on active entries alone and falls back to autograd by itself;
  **ours dense**: that way back, autograd and our Adam;
- **autograd**: the loss as the paper writes it, clipping, torch's Adam, unit rows;
- **SAELens**: what ``SAETrainer`` does in a step, its count of firing latents included; **SAELens bare**: forward,
  backward, clipping and Adam of the same ``StandardTrainingSAE``. Neither keeps rows of unit norm;
- **dictionary_learning**: ``StandardTrainer.update``, which projects gradients and renormalises but does not clip;
  **dictionary_learning bare**: the same with torch's Adam alone;
- **eai-sparsify**: its trainer's step with Adam. It has no L1 penalty, so it takes part in TopK alone, where all of the
  others but the last bare one do too. Its decoder is torch's ``embedding_bag`` where there is no Triton, as here.

Work: width 512, 8,192 latents, batches of 1,024 and 4,096, with 10 %, 3 % and 1 % of the latents active and, to see the
fall back, half of them; TopK with 3 % and 1 %; then trained autoencoders of this repository on held-out text, found in
runs/ or trained first. fp32, one thread. Times are the least CPU seconds of interleaved rounds. Memory is the peak of a
fresh process: as a whole, and by how much it rises above imports and inputs (Linux).

``make bench`` installs the peers; those that cannot be imported are left out, and the result says which.
"""

import argparse
import copy
import json
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from common import RESULTS, importable, in_fresh_processes, least_cpu_seconds, peak_memory, save

from minwidth import autoencoder, figures, models, sae, sae_kernel, scales, stream, text
from minwidth.autoencoder import Sae

D, LATENTS, LAM, RATE = 512, 8192, 0.1, 1e-5
BATCHES, DENSITIES, HALF = (1024, 4096), (0.10, 0.03, 0.01), 0.5
SAME = 1e-5  # relative difference of losses that counts as the same
BARS = {0.01: 4.0, 0.03: 2.5, 0.10: 1.0, HALF: 1.0}  # times faster than the fastest peer that we ask of ourselves
PEERS = ("SAELens", "SAELens bare", "dictionary_learning", "dictionary_learning bare", "eai-sparsify")
L1_ALONE, TOPK_ALONE = ("dictionary_learning bare",), ("eai-sparsify",)


class Work(NamedTuple):
    """What every contestant trains on."""

    name: str
    model: Sae
    x: torch.Tensor
    lam: float

    def start(self) -> Sae:
        """A copy of the initial weights, all of them to be trained, as peers do."""
        return copy.deepcopy(self.model).requires_grad_()

    def fits(self, name: str) -> bool:
        """Whether a contestant has this kind of autoencoder."""
        return name not in (L1_ALONE if self.model.topk else TOPK_ALONE)


class Contestant(NamedTuple):
    loss: float  # of the initial weights
    step: Callable[[], object]


def random_work(batch: int, density: float, d: int = D, latents: int = LATENTS) -> Work:
    """Random inputs and weights, with an encoder bias at which about ``density`` of the latents are active."""
    x = torch.randn(batch, d, generator=torch.Generator().manual_seed(1))
    model = Sae.initial(x.mean(0), latents, 0)
    pre = ((x[:256] - model.bias_pre) @ model.encoder.T).detach()
    model.bias_encoder -= torch.quantile(pre.flatten()[:2_000_000], 1 - density)
    return Work(f"{density:.0%}", model, x, LAM)


def topk_work(batch: int, density: float, d: int = D, latents: int = LATENTS) -> Work:
    """The same with the largest ``density`` of each token's latents kept, and no penalty."""
    x = torch.randn(batch, d, generator=torch.Generator().manual_seed(1))
    return Work(f"TopK, {density:.0%}", Sae.initial(x.mean(0), latents, 0, round(density * latents)), x, 0.0)


def trained_work(scale: str, batch: int) -> Work:
    """The default autoencoder of a scale on held-out tokens."""
    p = scales.parameters("03_sae", scale)
    record = sae.measure(p)
    model, calibration = sae.load(record)
    teacher = models.load_teacher(p.teacher)
    unseen = text.token_blocks(teacher.tokenizer, "held_out", p.length, p.percent)[: 2 * batch // p.length + 1]
    x = stream.activations(teacher, unseen, calibration).layers[p.layer][:batch]
    return Work(f"trained, {scale}", model, x, p.lam)


# ------------------------------------------------------------------------------------------------------ contestants


def ours(work: Work) -> Contestant:
    """As in the middle of a run: lambda at its height, the learning rate constant."""
    steps, x = 10**6, work.x
    settings = autoencoder.Settings(0, work.lam, len(work.model.decoder), steps, len(x), RATE, 0, work.model.topk)
    run = autoencoder.Run(settings, x.mean(0))
    run.sae, run.step = work.start(), steps // 2
    run.buffers = sae_kernel.Buffers(len(x), len(run.sae.decoder), x.shape[1])

    def step() -> None:
        run.adam.step(run.sae, run.gradients(x), RATE)
        run.step += 1

    return Contestant(float(run.gradients(x).error) + _penalty(work), step)


def ours_dense(work: Work) -> Contestant:
    model = work.start()
    adam = sae_kernel.Adam(model)

    def step() -> None:
        adam.step(model, autoencoder.dense_gradients(model, work.x, work.lam), RATE)

    return Contestant(float(autoencoder.dense_gradients(model, work.x, work.lam).error) + _penalty(work), step)


def _penalty(work: Work) -> float:
    """The second term of the loss, whose value a step does not need."""
    return work.lam * float(work.model.encode(work.x).detach().sum(1).mean())


def autograd(work: Work) -> Contestant:
    x, start = work.x, work.start()
    encoder, decoder, bias_pre, bias_encoder = parameters = list(start.parameters())
    optimizer = torch.optim.Adam(parameters, lr=RATE)

    def loss() -> torch.Tensor:
        z = torch.relu((x - bias_pre) @ encoder.T + bias_encoder)
        if work.model.topk:
            values, places = z.topk(work.model.topk)
            z = torch.zeros_like(z).scatter(1, places, values)
        return (x - z @ decoder - bias_pre).square().sum(1).mean() + work.lam * z.sum(1).mean()

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            decoder.div_(decoder.norm(dim=1, keepdim=True))

    return Contestant(float(loss().detach()), step)


@torch.no_grad()
def _give(model: Sae, *places: torch.Tensor) -> None:
    """Write the initial weights, in the order of ``Sae.parameters()``, to where a peer has them."""
    for place, value in zip(places, model.parameters(), strict=True):
        place.copy_(value)


def _saelens(work: Work):
    from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig

    latents, d = work.model.decoder.shape
    if work.model.topk:
        peer = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=latents, k=work.model.topk))
    else:
        peer = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=d, d_sae=latents, l1_coefficient=work.lam))
    _give(work.model, peer.W_enc.T, peer.W_dec, peer.b_dec, peer.b_enc)
    return peer


def _saelens_loss(peer, work: Work) -> torch.Tensor:
    from sae_lens.saes.sae import TrainStepInput

    coefficients = {"l1": work.lam}
    return peer.training_forward_pass(TrainStepInput(work.x, coefficients, None, 0, is_logging_step=False)).loss


def saelens(work: Work) -> Contestant:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    peer, batch = _saelens(work), len(work.x)
    settings = SAETrainerConfig(
        total_training_samples=1000 * batch, train_batch_size_samples=batch, lr=RATE, lr_end=RATE
    )
    trainer = SAETrainer(settings, peer, iter([]))
    return Contestant(float(_saelens_loss(peer, work).detach()), lambda: trainer.step(work.x))


def saelens_bare(work: Work) -> Contestant:
    peer = _saelens(work)
    optimizer = torch.optim.Adam(peer.parameters(), lr=RATE)

    def step() -> None:
        optimizer.zero_grad()
        _saelens_loss(peer, work).backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()

    return Contestant(float(_saelens_loss(peer, work).detach()), step)


def dictionary_learning(work: Work, bare: bool = False) -> Contestant:
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    latents, d = work.model.decoder.shape
    shared = dict(steps=1000, activation_dim=d, dict_size=latents, layer=0, lm_name="", lr=RATE, warmup_steps=0)
    if work.model.topk:
        trainer = TopKTrainer(**shared, k=work.model.topk, device="cpu")
    else:
        trainer = StandardTrainer(**shared, l1_penalty=work.lam, sparsity_warmup_steps=None, device="cpu")
    bias_pre = trainer.ae.b_dec if work.model.topk else trainer.ae.bias
    _give(work.model, trainer.ae.encoder.weight, trainer.ae.decoder.weight.T, bias_pre, trainer.ae.encoder.bias)
    if bare:
        trainer.optimizer = torch.optim.Adam(trainer.ae.parameters(), lr=RATE)
        trainer.scheduler = torch.optim.lr_scheduler.ConstantLR(trainer.optimizer, factor=1)
    # TopK's first step is 1: before it the bias is set
    return Contestant(float(trainer.loss(work.x, step=1).detach()), lambda: trainer.update(1, work.x))


def sparsify(work: Work) -> Contestant:
    from sparsify import SparseCoder, SparseCoderConfig

    (latents, d), x = work.model.decoder.shape, work.x
    peer = SparseCoder(d, SparseCoderConfig(num_latents=latents, k=work.model.topk))
    _give(work.model, peer.encoder.weight, peer.W_dec, peer.b_dec, peer.encoder.bias)
    optimizer = torch.optim.Adam(peer.parameters(), lr=RATE)
    variance = (x - x.mean(0)).square().sum()

    def step() -> None:
        peer.set_decoder_norm_to_unit_norm()
        peer(x, total_variance=variance).fvu.backward()
        peer.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    return Contestant(float(peer(x).fvu.detach() * variance / len(x)), step)


CONTESTANTS: dict[str, Callable[[Work], Contestant]] = {
    "ours": ours,
    "ours dense": ours_dense,
    "autograd": autograd,
    "SAELens": saelens,
    "SAELens bare": saelens_bare,
    "dictionary_learning": dictionary_learning,
    "dictionary_learning bare": lambda work: dictionary_learning(work, bare=True),
    "eai-sparsify": sparsify,
}


def small_step(name: str) -> None:
    """Imports and compiles."""
    CONTESTANTS[name]((topk_work if name in TOPK_ALONE else random_work)(16, 0.1, 8, 64)).step()


# -------------------------------------------------------------------------------------------------------- measures


def compare(found: Sequence[str], work: Work, rounds: int) -> dict:
    """Losses of the initial weights, then least CPU seconds of a step, the contestants taking turns.

    ``of_matrix_rate`` is the time that a contestant's own multiplications would take at the rate of a large matrix
    product on this machine, over the time of its step.
    """
    batch, (latents, d) = len(work.x), work.model.decoder.shape
    ready = {name: CONTESTANTS[name](work) for name in found if work.fits(name)}
    difference = {name: abs(one.loss / ready["autograd"].loss - 1) for name, one in ready.items()}
    if max(difference.values()) > SAME:
        raise RuntimeError(f"The first losses differ: {difference}.")
    density = float((work.model.encode(work.x) > 0).float().mean())
    left, right, out = torch.randn(batch, d), torch.randn(latents, d), torch.empty(batch, latents)
    every = {"product": lambda: torch.mm(left, right.T, out=out)} | {name: one.step for name, one in ready.items()}
    least = least_cpu_seconds(every, rounds)
    product = least.pop("product")
    # matrix products a step: encoder, decoder, the gradients of z, both matrices and, by autograd, the input
    products = dict.fromkeys(ready, 6.0) | {"ours": 1 + 4 * density if density < sae_kernel.ACTIVE else 6.0}
    products["eai-sparsify"] = 1 + 4 * density
    peers = [least[name] for name in PEERS if name in least]
    return {
        "work": work.name, "batch": batch, "d": d, "latents": latents, "density": density,
        "loss_difference": difference, "gradient_difference": gradient_difference(work),
        "cpu_seconds": least, "tokens_per_cpu_second": {name: batch / value for name, value in least.items()},
        "times_ours": {name: value / least["ours"] for name, value in least.items()},
        "fastest_peer_times_ours": min(peers) / least["ours"] if peers else None,
        "product_gflops": 2e-9 * batch * d * latents / product,
        "of_matrix_rate": {name: products[name] * product / value for name, value in least.items()},
    }  # fmt: skip


def gradient_difference(work: Work) -> dict[str, float]:
    """Largest relative difference of our gradients from autograd's in float64, with the same latents active.

    One pre-activation in millions lies so near to 0 that rounding decides its sign; so each is given its own mask.
    """
    x, buffers = work.x[:256], sae_kernel.Buffers(256, *work.model.decoder.shape)
    active = work.model.encode(x).detach() > 0
    gradients = autoencoder.dense_gradients(work.start(), x, work.lam)
    different = {"ours dense": _from_exact(work, x, active, gradients)}
    if gradients := sae_kernel.gradients(work.model, x, work.lam, buffers):
        active = torch.zeros_like(active)
        tokens = torch.arange(256).repeat_interleave(torch.from_numpy(buffers.rows).diff())
        active[tokens, torch.from_numpy(buffers.latent[: len(tokens)]).long()] = True
        different["ours"] = _from_exact(work, x, active, gradients)
    return different


def _from_exact(work: Work, x: torch.Tensor, active: torch.Tensor, gradients: sae_kernel.Gradients) -> float:
    exact = [w.detach().double().requires_grad_() for w in work.start().parameters()]
    encoder, decoder, bias_pre, bias_encoder = exact
    z = ((x.double() - bias_pre) @ encoder.T + bias_encoder) * active
    error = (x.double() - z @ decoder - bias_pre).square().sum(1).mean()
    (error + work.lam * z.sum(1).mean()).backward()
    fired = gradients.counts > 0
    pairs = [(g[fired], w.grad[fired]) if g.ndim == 2 else (g, w.grad)
             for g, w in zip(gradients.parameters, exact, strict=True)]  # fmt: skip
    return max(float((g.double() - wanted).norm() / wanted.norm()) for g, wanted in pairs)


def peak(name: str, batch: int, density: float) -> dict[str, int]:
    """Peak resident bytes of this fresh process, and how far two steps raise it above imports and inputs."""
    torch.set_num_threads(1)
    small_step(name)
    work = random_work(batch, density)

    def two_steps() -> None:
        contestant = CONTESTANTS[name](work)
        for _ in range(2):
            contestant.step()

    return peak_memory(two_steps)


def benchmark(rounds: int, trained: Sequence[str]) -> dict:
    torch.set_num_threads(1)
    found, missing = importable(CONTESTANTS, small_step)
    table = [compare(found, random_work(batch, density), rounds) for batch in BATCHES for density in DENSITIES]
    table.append(compare(found, random_work(BATCHES[0], HALF), rounds))
    table += [compare(found, topk_work(BATCHES[0], density), rounds) for density in DENSITIES[1:]]
    table += [compare(found, trained_work(scale, batch), rounds) for scale in trained for batch in BATCHES]
    some = [name for name in found if name not in TOPK_ALONE]
    memory = in_fresh_processes(peak, some, BATCHES[1], DENSITIES[-1])
    bars = [{"work": row["work"], "batch": row["batch"], "wanted": BARS[density], "got": row["fastest_peer_times_ours"]}
            for row in table for density in BARS if row["work"] == f"{density:.0%}"]  # fmt: skip
    return {
        "work": {"lam": LAM, "dtype": "float32", "threads": 1, "rounds": rounds},
        "missing": missing,
        "bars": bars,
        "steps": table,
        "memory": {"batch": BATCHES[1], "density": DENSITIES[-1], "bytes": memory},
    }


# ---------------------------------------------------------------------------------------------------------- output


def draw(result: dict):
    """Tokens per CPU second of each kind of work, and peak memory."""
    with figures.style():
        figure, ((left, right),) = figures.panels(2, height=3.4, width_ratios=[2, 1])
        rows = [row for row in result["steps"] if row["batch"] == BATCHES[0]]
        rows.sort(key=lambda row: (row["work"].startswith("trained"), "TopK" in row["work"], -row["density"]))
        names = [name for name in CONTESTANTS if any(name in row["cpu_seconds"] for row in rows)]
        for place, name in enumerate(names):
            height = [row["cpu_seconds"]["autograd"] / row["cpu_seconds"].get(name, math.inf) for row in rows]
            at = [n + (place - len(names) / 2 + 0.5) * 0.8 / len(names) for n in range(len(rows))]
            left.bar(at, height, 0.8 / len(names), label=name, color=figures.PALETTE[place])
        left.axhline(1, color="0.3", linewidth=0.8, linestyle="--")
        labels = [row["work"].replace(", ", ",\n") for row in rows]
        left.set_xticks(range(len(rows)), labels, fontsize="small")
        left.set(ylabel=f"tokens per CPU second\n(autograd = 1, batch {BATCHES[0]:,})", xlabel="latents active")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        names = list(result["memory"]["bytes"])
        extra = [result["memory"]["bytes"][name]["extra"] / 1e6 for name in names]
        right.barh(names[::-1], extra[::-1], color=[figures.PALETTE[n] for n in range(len(names))][::-1])
        right.set(xlabel=f"peak extra memory (MB)\n(batch {BATCHES[1]:,}, 1 % active)", yticks=[])
        return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each contestant is timed")
    parser.add_argument("--trained", nargs="*", default=["tiny"], help="scales whose autoencoders are timed too")
    result = benchmark(**vars(parser.parse_args()))
    save("sae", result, "torch", "numba", "sae-lens", "dictionary-learning", "eai-sparsify")
    draw(result).savefig(RESULTS / "sae.png", dpi=150, metadata={"Software": "minwidth"})
    for row in result["steps"]:
        print(row["work"], row["batch"], {name: round(value, 2) for name, value in row["times_ours"].items()})
    print(json.dumps({name: result[name] for name in ("missing", "bars", "memory")}, indent=1))
