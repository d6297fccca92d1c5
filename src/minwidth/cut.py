"""A model of a narrower residual stream and nothing else narrower, made of its teacher's own weights, to be saved.

The teacher's weights are folded, rotated into the principal directions of its stream and cut to the first of them;
depth, heads and FFN stay, and at full width the student *is* the teacher. It computes what ``projection.projected``
says, which any architecture can be asked for; to be built, one must be described in ``FAMILIES``.
"""

import torch
from huggingface_hub.dataclasses import strict
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.pytorch_utils import Conv1D

from minwidth import models, stream
from minwidth.errors import ParameterError
from minwidth.projection import MATRICES, StreamNorm, asked, stream_norms, zero_mean_basis

FAMILIES = {  # and what their configs call the epsilon of their norms
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "smollm3", "granite", "phi3", "gemma3_text"), "rms_norm_eps"
    ),
    "gpt2": "layer_norm_epsilon",
    "gpt_neox": "layer_norm_eps",
}
POST_NORMS = {  # of Gemma 3: what these matrices write to the stream passes a norm
    "self_attn.o_proj": "post_attention_layernorm",
    "mlp.down_proj": "post_feedforward_layernorm",
}


def cut_to_width(teacher_model: PreTrainedModel, basis: Float[Tensor, "d d"], width: int) -> PreTrainedModel:
    """The teacher with its residual stream cut to ``width``, everything else untouched; at full width, the teacher.

    Norm gains and biases are folded into the matrices that read from the stream, the unembedding is untied, and the
    stream is rotated into ``basis`` and cut to its first directions. The student's gains are sqrt(d_T / width) and
    its epsilon d_T / width times the teacher's, so that the missing directions alone change what a norm gives. A norm
    that a write passes through (Gemma 3) stays as wide as it was, and a matrix behind it leads into the narrow stream.

    LayerNorm also takes the mean out. What is written to the stream can be centred beforehand, so a student of width k
    holds the first k - 1 directions in the zero-mean subspace of its own stream. The direction that its last LayerNorm
    discards carries the teacher's final bias to the logits.

    Args:
        basis: orthonormal columns, best first; under LayerNorm the last one constant (``stream_basis`` gives it so).

    Raises:
        ValueError: a width below the number of heads or above the teacher's, a basis that is not as described, or a
            family that cannot be cut.
    """
    check_family(teacher_model.config)
    d = teacher_model.config.hidden_size
    least = max(2, teacher_model.config.num_attention_heads)
    if not least <= width <= d:
        raise ValueError(f"This teacher of width {d} can be cut to widths from {least} to {d}, not to {width}.")
    basis = basis.to(teacher_model.device, torch.float64)
    if basis.shape != (d, d) or not (basis.T @ basis - torch.eye(d).to(basis)).abs().max() < 1e-5:
        raise ValueError(f"The basis must be {d} x {d} with orthonormal columns; stream_basis computes one.")
    norms = stream_norms(teacher_model)
    through, final = {matrix: norm for norm in norms for matrix in norm.readers}, norms[-1]
    rotation = basis[:, :width]
    if final.centred:
        if not basis[:, :-1].sum(0).abs().max() < 1e-4:
            raise ValueError("A basis for LayerNorm must end with the constant direction; stream_basis computes one.")
        rotation = basis[:, : width - 1] @ zero_mean_basis(width).to(basis).T

    student = models.from_config(cut_config(teacher_model.config, width)).to(basis.device).eval()  # no dropout: exact
    old, new, same = teacher_model.base_model, student.base_model, dict(teacher_model.named_parameters())
    with torch.no_grad():
        for name, parameter in student.named_parameters():  # what has no axis along the stream, such as norms of keys
            if name in same and same[name].shape == parameter.shape:
                parameter.copy_(same[name])
        for name, source in old.named_modules():
            if isinstance(source, nn.Embedding):
                target = new.get_submodule(name)
                scale, own = (getattr(table, "scalar_embed_scale", 1.0) for table in (source, target))  # Gemma 3
                target.weight.copy_(scale / own * source.weight.double() @ rotation)
            elif source in through:
                _set(new.get_submodule(name), *_folded(source, through[source], rotation))
            elif isinstance(source, MATRICES) and not student.config.written_width:  # it writes to the stream
                bias = None if source.bias is None else rotation.T @ source.bias.double()
                _set(new.get_submodule(name), rotation.T @ _matrix(source).double(), bias)
        for name, module in new.named_modules():
            if isinstance(module, nn.Sequential):  # as ``_widen`` left it
                norm, into = module
                norm.load_state_dict(old.get_submodule(name).state_dict())
                into.weight.copy_(rotation.T)
        for norm in norms:
            _set_gain(new.get_submodule(norm.name), (d / width) ** 0.5)
        matrix, bias = _folded(teacher_model.get_output_embeddings(), final, rotation)
        if final.centred:
            new.get_submodule(final.name).bias.fill_(1)
            matrix = matrix + bias[:, None] / width
        student.get_output_embeddings().weight.copy_(matrix)
    return student


def cut_config(config: PreTrainedConfig, width: int) -> PreTrainedConfig:
    """The architecture of ``cut_to_width``: only the residual stream is narrower."""
    check_family(config)
    d, epsilon = config.hidden_size, FAMILIES[config.model_type]
    changes = {
        "hidden_size": width,
        "head_dim": getattr(config, "head_dim", None) or d // config.num_attention_heads,
        "written_width": d if config.model_type == "gemma3_text" else None,
        "tie_word_embeddings": False,
        epsilon: getattr(config, epsilon) * d / width,
    }
    changes |= {name: getattr(config, name) or 4 * d for name in models.FFN_WIDTHS if hasattr(config, name)}
    if config.model_type == "gpt_neox":
        changes["attention_bias"] = True  # that of its norms is folded into it
    names = {config.attribute_map.get(name, name): value for name, value in changes.items()}
    return CONFIGS[config.model_type](**(models.settings_of(config) | names))


def check_family(config: PreTrainedConfig) -> None:
    """Raise ParameterError unless the architecture is one that can be built narrower."""
    if config.model_type not in FAMILIES:
        raise ParameterError(
            f"A {config.model_type} cannot be built at another width of its stream alone, only {', '.join(FAMILIES)}; "
            "08_your_model measures any pre-norm decoder."
        )


def _folded(linear: nn.Module, norm: StreamNorm, rotation: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a matrix that reads from the rotated stream as ``linear`` does through ``norm``."""
    weight = _matrix(linear).double()
    bias = None if linear.bias is None else linear.bias.double()
    if norm.centred:
        bias = weight @ norm.bias + (0 if bias is None else bias)
    return (weight * norm.gain) @ rotation, bias


def _matrix(linear: nn.Module) -> Float[Tensor, "out in"]:
    return linear.weight.T if isinstance(linear, Conv1D) else linear.weight


def _set(linear: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    _matrix(linear).copy_(weight)
    if linear.bias is not None:
        linear.bias.copy_(torch.zeros_like(linear.bias) if bias is None else bias)


def _set_gain(norm: nn.Module, gain: float) -> None:
    norm.weight.fill_(gain)
    acts_as, *_ = asked(norm, len(norm.weight))
    norm.weight.fill_(gain - round(float(acts_as[0]) - gain))  # Gemma's gain is 1 + weight
    if getattr(norm, "bias", None) is not None:
        norm.bias.zero_()


def _widen(model: PreTrainedModel, config: PreTrainedConfig) -> None:
    """Give a model that was built for its narrow width the wider parts that its config tells of."""
    inner = config.num_attention_heads * config.head_dim
    for layer in stream.blocks_of(model):
        if config.model_type == "minwidth_gpt2":
            attention = layer.attn
            attention.num_heads, attention.head_dim = config.num_attention_heads, config.head_dim
            attention.split_size = inner
            attention.scaling = config.head_dim**-0.5 if config.scale_attn_weights else 1.0
            attention.scaling /= attention.layer_idx + 1 if config.scale_attn_by_inverse_layer_idx else 1
            attention.c_attn = Conv1D(3 * inner, config.hidden_size)
            attention.c_proj = Conv1D(config.hidden_size, inner)
        if config.model_type == "minwidth_gpt_neox":
            attention = layer.attention
            attention.head_size, attention.scaling = config.head_dim, config.head_dim**-0.5
            attention.rotary_ndims = int(config.head_dim * config.rope_parameters["partial_rotary_factor"])
            attention.query_key_value = nn.Linear(config.hidden_size, 3 * inner, bias=config.attention_bias)
            attention.dense = nn.Linear(inner, config.hidden_size, bias=config.attention_bias)
        for write, norm in POST_NORMS.items() if config.written_width else ():
            matrix, narrow = layer.get_submodule(write), layer.get_submodule(norm)
            wide = nn.Linear(matrix.in_features, config.written_width, bias=matrix.bias is not None)
            layer.set_submodule(write, wide)
            into = nn.Linear(config.written_width, config.hidden_size, bias=False)
            layer.set_submodule(norm, nn.Sequential(type(narrow)(config.written_width, eps=narrow.eps), into))


def _registered(model_type: str) -> type[PreTrainedConfig]:
    """Config and model of a family, known to ``from_pretrained``, whose heads may be wider than the stream together."""
    plain = CONFIG_MAPPING[model_type]
    fields = {"head_dim": None, "written_width": None, "validate_architecture": lambda self: None}
    types = {"head_dim": int | None, "written_width": int | None}
    content = {"model_type": f"minwidth_{model_type}", "__module__": __name__, "__annotations__": types, **fields}
    config_class = strict(type(f"Cut{plain.__name__}", (plain,), content))
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[plain]

    def build(self, config):
        heads = config.num_attention_heads
        if model_type == "gpt2":
            config.num_attention_heads = 1  # else it would refuse a width that heads do not divide
        model_class.__init__(self, config)
        config.num_attention_heads = heads
        _widen(self, config)

    content = {"config_class": config_class, "__init__": build, "__module__": __name__}
    cut_class = type(f"Cut{model_class.__name__}", (model_class,), content)
    AutoConfig.register(config_class.model_type, config_class)
    AutoModelForCausalLM.register(config_class, cut_class)
    globals().update({kind.__name__: kind for kind in (config_class, cut_class)})
    return config_class


CONFIGS = {model_type: _registered(model_type) for model_type in FAMILIES}
