"""The offline teacher gives the teacher's logits back and heals; streams are the model's own hidden states."""

import numpy as np
import pytest
import torch

from minwidth import models, stream
from tests.small_models import VOCABULARY, D, config_of, model_of, teacher_of

every_family = pytest.mark.parametrize("family", ["gpt_neox", "llama", "gpt2", "opt"])


@pytest.fixture
def teacher():
    return teacher_of(config_of("gpt_neox"))


@pytest.fixture
def blocks():
    return np.random.default_rng(0).integers(0, VOCABULARY, (40, 12)).astype(np.uint16)


@pytest.fixture(autouse=True)
def runs_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "RUNS", tmp_path)
    monkeypatch.setattr(stream, "SHARD_BYTES", 12 * D * 4 * 16)  # 16 blocks, so that there are three shards
    return tmp_path


@pytest.mark.parametrize("family, width", [("gpt_neox", D), ("phi", D + 1)])
def test_the_offline_teacher_gives_the_logits_back_an_output_bias_included(family, width, blocks):
    teacher = teacher_of(config_of(family))
    states = stream.offline_teacher(teacher, blocks, "text")
    logits = torch.from_numpy(states.copy()) @ models.unembedding(teacher.model).T
    expected = teacher.model(torch.from_numpy(blocks.astype(np.int64))).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
    assert states.dtype == np.float32 and not states.flags.writeable and states.shape == (*blocks.shape, width)


def test_states_are_computed_once_and_damage_heals(teacher, blocks, runs_folder):
    expected = stream.offline_teacher(teacher, blocks, "text").copy()
    seen, body = [], teacher.model.base_model
    body.register_forward_pre_hook(lambda _, args, given: seen.append(given["input_ids"].numel()), with_kwargs=True)
    stream.offline_teacher(teacher, blocks, "text")
    assert seen == []
    (file,) = runs_folder.glob("states/*.bin")
    damaged = np.memmap(file, np.float32, "r+", shape=expected.shape)
    damaged[20, 3, 5] += 1
    damaged.flush()
    np.testing.assert_array_equal(stream.offline_teacher(teacher, blocks, "text"), expected)
    assert sum(seen) == 16 * 12  # the damaged shard alone
    file.with_suffix(".json").write_text("{}")
    np.testing.assert_array_equal(stream.offline_teacher(teacher, blocks, "text"), expected)
    assert sum(seen) == 16 * 12 + blocks.size


def test_a_process_checks_unchanged_states_once(teacher, blocks, monkeypatch):
    stream.offline_teacher(teacher, blocks, "text")
    read, real = [], stream.sha256_part
    monkeypatch.setattr(stream, "sha256_part", lambda file, *place: read.append(place) or real(file, *place))
    for _ in range(3):
        stream.offline_teacher(teacher, blocks, "text")
    assert len(read) == 3, "one a shard"


def test_other_blocks_or_teachers_are_other_states(teacher, blocks, runs_folder):
    stream.offline_teacher(teacher, blocks, "text")
    stream.offline_teacher(teacher, blocks[::-1], "text")
    stream.offline_teacher(teacher._replace(revision="1"), blocks, "text")
    assert len(list(runs_folder.glob("states/*.bin"))) == 3


@every_family
def test_streams_are_the_hidden_states_of_transformers_and_the_pass_stops_at_the_deepest(family, blocks):
    model, reached = model_of(config_of(family)), []
    ids = torch.from_numpy(blocks[:4].astype(np.int64))
    hidden = model(ids, output_hidden_states=True).hidden_states  # the last of these is past the final norm
    for number, block in enumerate(stream.blocks_of(model), 1):
        block.register_forward_hook(lambda *_, number=number: reached.append(number))
    for layer, found in stream.streams(model, ids, [0, 1, 2]).items():
        torch.testing.assert_close(found, hidden[layer])
    assert reached == [1, 2]
    with pytest.raises(ValueError, match="layer = 4 does not exist"):
        stream.streams(model, ids, [4])


@every_family
@pytest.mark.parametrize("layer", [0, 2])
def test_splicing_in_the_stream_itself_changes_nothing(family, layer, blocks):
    model, ids = model_of(config_of(family)), torch.from_numpy(blocks[:4].astype(np.int64))
    expected = model(ids).logits
    with stream.spliced(model, layer, lambda x: x.clone()):
        torch.testing.assert_close(model(ids).logits, expected)
    with stream.spliced(model, layer, lambda x: x.flip(0)):
        assert not torch.allclose(model(ids).logits, expected)
    torch.testing.assert_close(model(ids).logits, expected)  # the hook is gone


def test_massive_tokens_and_the_first_are_left_out_and_counted(teacher, blocks):
    calibration = stream.calibrate(teacher, blocks, [1, 2])
    plain = stream.activations(teacher, blocks, calibration)
    assert plain.left_out == {"position 0": 40, "massive": 0} and plain.layers[1].shape == (40 * 11, D)
    with torch.no_grad():
        teacher.model.get_input_embeddings().weight[7] *= 1e4  # token 7 now has a massive activation
    massive = stream.activations(teacher, blocks, calibration)
    assert massive.left_out == {"position 0": 40, "massive": int((blocks[:, 1:] == 7).sum())}
    assert 7 not in blocks.ravel()[massive.place]


def test_activations_match_a_pass_over_each_block(teacher, blocks):
    calibration = stream.calibrate(teacher, blocks, [2])
    got = stream.activations(teacher, blocks, calibration)
    ids = torch.from_numpy(blocks.astype(np.int64))
    expected = teacher.model(ids, output_hidden_states=True).hidden_states[2].flatten(0, 1)
    torch.testing.assert_close(got.layers[2], expected[got.place] * calibration.scale[2])
    assert float(got.layers[2].norm(dim=1).mean()) == pytest.approx(D**0.5, rel=1e-5)
