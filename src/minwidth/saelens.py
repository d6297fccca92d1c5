"""Autoencoders to and from SAELens: a folder with ``cfg.json`` and ``sae_weights.safetensors``.

SAELens's standard SAE is ours with transposed encoder and biases of other names. Ours reads a stream scaled to a mean
norm of sqrt(d), theirs the model's own: since ReLU is homogeneous, dividing both biases by the scale leaves the latents
what they were, in the units of the stream.
"""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from minwidth.sae import Sae
from minwidth.store import replace_folder

WEIGHTS, SETTINGS = "sae_weights.safetensors", "cfg.json"


def save(sae: Sae, folder: Path, scale: float = 1.0, **about: Any) -> None:
    """Write ``sae`` so that ``sae_lens.SAE.load_from_disk`` reads it and takes the model's own stream.

    Args:
        scale: factor on the stream that ``sae`` was trained on (``residual.Calibration.scale`` of its layer).
        about: kept as metadata, as ``model_name`` and ``hook_name``.
    """
    latents, d = sae.decoder.shape
    settings = {
        "architecture": "standard" if sae.topk is None else "topk", "d_in": d, "d_sae": latents, "dtype": "float32",
        "device": "cpu", "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.0.0"} | about,
    }  # fmt: skip
    if sae.topk is not None:
        settings |= {"k": sae.topk, "rescale_acts_by_decoder_norm": False}
    weights = {"W_enc": sae.encoder.T, "W_dec": sae.decoder}
    weights |= {"b_enc": sae.bias_encoder / scale, "b_dec": sae.bias_pre / scale}
    folder = Path(folder)
    with replace_folder(folder) as temporary:
        (temporary / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n")
        tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in weights.items()}
        safetensors.torch.save_file(tensors, temporary / WEIGHTS)


def load(folder: Path, scale: float = 1.0) -> Sae:
    """Read a standard or TopK autoencoder that SAELens saved, for a stream scaled by ``scale``.

    Decoder rows get unit norm, the latents that much larger, so that importances are comparable.

    Raises:
        ValueError: another architecture, inputs normalised token by token, or a TopK that unit rows would change.
    """
    folder = Path(folder)
    settings = json.loads((folder / SETTINGS).read_text())
    kind, normalised = settings.get("architecture", "standard"), settings.get("normalize_activations", "none")
    if settings.get("activation_fn_str", settings.get("activation_fn")) == "topk":  # before SAELens 6
        kind, settings["k"] = "topk", settings["activation_fn_kwargs"]["k"]
    if kind not in ("standard", "topk"):
        raise ValueError(f"The autoencoder in {folder} is of architecture {kind!r}; 'standard' and 'topk' can be read.")
    if normalised not in ("none", None, False):
        raise ValueError(f"The autoencoder in {folder} normalises its inputs ({normalised}); fold that in and save it.")
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    encoder, decoder, bias_encoder, bias_pre = (weights[name].float() for name in ("W_enc", "W_dec", "b_enc", "b_dec"))
    encoder = encoder.T
    if not settings.get("apply_b_dec_to_input", True):
        bias_encoder = bias_encoder + encoder @ bias_pre
    norm = decoder.norm(dim=1)
    uneven = kind == "topk" and not settings.get("rescale_acts_by_decoder_norm", False)
    if uneven and not torch.allclose(norm, norm.mean().expand_as(norm), rtol=1e-4):
        raise ValueError(
            f"The decoder rows in {folder} differ in norm: with unit rows, other latents would be the top k."
        )
    norm = norm.clamp_min(1e-12)
    return Sae(
        (encoder * norm[:, None]).contiguous(),
        (decoder / norm[:, None]).contiguous(),
        bias_pre * scale,
        bias_encoder * norm * scale,
        settings["k"] if kind == "topk" else None,
    )
