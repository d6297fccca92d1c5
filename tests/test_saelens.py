"""Autoencoders cross to SAELens and back unchanged.

SAELens 6.54.12 wrote ``tests/saelens``: a StandardSAE and a TopKSAE of random parameters as ``save_model`` leaves them,
with what they make of some inputs.
"""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from minwidth.autoencoder import Sae, load_saelens, save_saelens

COMMITTED = Path(__file__).parent / "saelens"
KINDS = ("standard", "topk")
D, LATENTS, K = 6, 10, 3


def check(folder: Path, kind: str, scale: float) -> None:
    """What is read from ``folder`` does what SAELens says, also on a stream that is scaled."""
    expected = safetensors.torch.load_file(folder / "expected.safetensors")
    model = load_saelens(folder, scale)
    z = model.encode(expected["x"] * scale)
    theirs = expected["z"] * (expected["norm"] if kind == "standard" else 1)  # TopK's are rescaled there already
    torch.testing.assert_close(z, theirs * scale, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.decode(z), expected["x_hat"] * scale, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.decoder.norm(dim=1), torch.ones(LATENTS))


def layout(folder: Path) -> tuple[set, dict]:
    """The settings that are written, the tensors and their shapes."""
    tensors = safetensors.torch.load_file(folder / "sae_weights.safetensors")
    return set(json.loads((folder / "cfg.json").read_text())), {name: tensor.shape for name, tensor in tensors.items()}


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("kind", KINDS)
def test_what_saelens_saved_is_read(kind, scale):
    check(COMMITTED / kind, kind, scale)


@pytest.mark.parametrize("topk", [None, K])
def test_what_is_saved_is_laid_out_as_saelens_does_and_read_again(topk, tmp_path):
    model = Sae.initial(torch.randn(D, generator=torch.Generator().manual_seed(1)), LATENTS, 0, topk)
    model.bias_encoder.data += 0.1
    save_saelens(model, tmp_path / "sae", scale=0.3, hook_name="blocks.2.hook_resid_post")
    again = load_saelens(tmp_path / "sae", scale=0.3)
    for ours, found in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(ours.detach(), found.detach())
    assert again.topk == topk
    ours, theirs = (layout(folder) for folder in (tmp_path / "sae", COMMITTED / KINDS[topk is not None]))
    assert ours == theirs


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"architecture": "jumprelu"}, "'jumprelu'"),
        ({"normalize_activations": "layer_norm"}, "layer_norm"),
        ({"architecture": "topk", "k": 3}, "differ in norm"),
    ],
)
def test_what_cannot_be_read_is_refused(change, sentence, tmp_path):
    settings = json.loads((COMMITTED / "standard" / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(settings | change))
    (tmp_path / "sae_weights.safetensors").write_bytes((COMMITTED / "standard/sae_weights.safetensors").read_bytes())
    with pytest.raises(ValueError, match=sentence):
        load_saelens(tmp_path)
