"""Autoencoders cross to SAELens and back unchanged.

``tests/saelens`` was written by ``written_by_saelens`` with SAELens 6.54.12; where it is installed, it is asked itself.
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


def written_by_saelens(library, kind: str, folder: Path) -> None:
    """Save an autoencoder with uneven decoder rows by SAELens, and what it makes of some inputs."""
    generator = torch.Generator().manual_seed(0)
    if kind == "standard":
        theirs = library.StandardSAE(library.StandardSAEConfig(d_in=D, d_sae=LATENTS, apply_b_dec_to_input=False))
    else:
        settings = library.TopKSAEConfig(d_in=D, d_sae=LATENTS, k=K, rescale_acts_by_decoder_norm=True)
        theirs = library.TopKSAE(settings)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    theirs.save_model(folder)
    x = torch.randn(7, D, generator=generator)
    expected = {"x": x, "x_hat": theirs(x).detach().contiguous(), "z": theirs.encode(x).detach().contiguous()}
    expected["norm"] = theirs.W_dec.norm(dim=1).detach()
    safetensors.torch.save_file(expected, folder / "expected.safetensors")


def check(folder: Path, kind: str, scale: float) -> None:
    """What is read from ``folder`` does what SAELens says, also on a stream that is scaled."""
    expected = safetensors.torch.load_file(folder / "expected.safetensors")
    model = load_saelens(folder, scale)
    z = model.encode(expected["x"] * scale)
    theirs = expected["z"] * (expected["norm"] if kind == "standard" else 1)  # TopK's are rescaled there already
    torch.testing.assert_close(z, theirs * scale, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.decode(z), expected["x_hat"] * scale, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.decoder.norm(dim=1), torch.ones(LATENTS))


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("kind", KINDS)
def test_what_saelens_saved_is_read(kind, scale):
    check(COMMITTED / kind, kind, scale)


@pytest.mark.parametrize("topk", [None, K])
def test_what_is_saved_is_read_again(topk, tmp_path):
    model = Sae.initial(torch.randn(D, generator=torch.Generator().manual_seed(1)), LATENTS, 0, topk)
    model.bias_encoder.data += 0.1
    save_saelens(model, tmp_path / "sae", scale=0.3, hook_name="blocks.2.hook_resid_post")
    again = load_saelens(tmp_path / "sae", scale=0.3)
    for ours, found in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(ours.detach(), found.detach())
    assert again.topk == topk


@pytest.mark.parametrize("kind", KINDS)
def test_saelens_itself_agrees(kind, tmp_path):
    library = pytest.importorskip("sae_lens")
    written_by_saelens(library, kind, tmp_path / "theirs")
    check(tmp_path / "theirs", kind, 0.25)
    model = load_saelens(tmp_path / "theirs", scale=0.25)
    save_saelens(model, tmp_path / "ours", scale=0.25, hook_name="blocks.2.hook_resid_post")
    theirs = library.SAE.load_from_disk(tmp_path / "ours")
    stream = torch.randn(9, D, generator=torch.Generator().manual_seed(2))
    z = model.encode(stream * 0.25)
    torch.testing.assert_close(theirs.encode(stream).detach(), z / 0.25, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(theirs(stream).detach(), model.decode(z) / 0.25, rtol=1e-4, atol=1e-5)
    assert theirs.cfg.metadata.hook_name == "blocks.2.hook_resid_post"


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
