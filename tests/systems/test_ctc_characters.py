"""Models whose CTC head has the decoder's tokens, or the aligner's characters: trained, packed, decoded jointly."""

import itertools
import math
import random
import shutil
import string
import zipfile

import pytest
import tiny
import torch
import training
import yaml
from aligned import VOCABULARY, as_batch, make_acoustic, random_utterances
from made_tokenizers import save_hugging_face
from slow import slow_ctc

from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.config import ChunkingConfig, LossConfig
from espnet_speechllm_xl.decoding.joint_ctc import JointModel
from espnet_speechllm_xl.experiment import CTC_TOKENIZER, planned_ctc_weight
from espnet_speechllm_xl.inference import Speech2Text
from espnet_speechllm_xl.model.llm import Decoder
from espnet_speechllm_xl.settings import ConfigError
from espnet_speechllm_xl.systems.speechllm_xl import SpeechLLMXL
from espnet_speechllm_xl.tokenization import CHARACTERS, load_tokenizer
from espnet_speechllm_xl.trained_model import ModelError, pack
from espnet_speechllm_xl.training.batches import Example, JoinedDataset


@pytest.fixture(scope="module")
def characters(tmp_path_factory):
    """The file of an aligner's tokenizer."""
    out = tmp_path_factory.mktemp("characters")
    (out / "text").write_text("".join(f"u{i:02d} {line}\n" for i, line in enumerate(tiny.SENTENCES)), "utf-8")
    assert cli.main(["tokens", "--text", str(out / "text"), "--out", str(out), "--type", "char"]) == 0
    return out / "tokenizer.model"


@pytest.fixture(scope="module")
def byte_tokens(tmp_path_factory):
    """Tokens of a byte-level tokenizer that knows capitals and punctuation."""
    out = tmp_path_factory.mktemp("bytes")
    sentences = [*tiny.SENTENCES, *(f"{line.capitalize()}!" for line in tiny.SENTENCES)]
    source = save_hugging_face(out / "llm", sentences, True)
    (out / "text").write_text("u1 stop\n")
    options = ["--text", str(out / "text"), "--out", str(out), "--type", "hf", "--hf", str(source)]
    assert cli.main(["tokens", *options]) == 0
    (out / "tokenizer" / CHARACTERS).unlink()  # models that are not trained write anything
    return out


OWN = pytest.mark.parametrize("model_dir", ["sentencepiece", "byte-level"], indirect=True)
SAME = pytest.mark.parametrize("model_dir", ["the decoder's"], indirect=True)


@pytest.fixture(scope="module", params=["the decoder's", "sentencepiece", "byte-level"])
def model_dir(request, tiny_tokens, byte_tokens, characters, tmp_path_factory):
    from espnet_speechllm_xl.systems.speechllm_xl import SpeechLLMXLTask

    def change(model):
        tiny.talkative(model)
        model.ctc.output.weight.mul_(10)

    conf = ["ctc_weight=0.3"]
    if request.param != "the decoder's":
        conf.append(f"ctc_tokenizer={characters}")
    extra = [*tiny.conf("decoder_conf", tiny.DECODER), "--chunking_conf", "chunk=16", "--chunking_conf", "context=2"]
    folder = tiny.write_model(
        tmp_path_factory.mktemp("characters") / "model",
        SpeechLLMXLTask,
        byte_tokens if request.param == "byte-level" else tiny_tokens,
        "model.pth",
        [*extra, *tiny.conf("loss_conf", conf)],
        seed=3,
        change=change,
    )
    if request.param != "the decoder's":
        shutil.copy(characters, folder / CTC_TOKENIZER)
    return folder


def load(model_dir, **settings):
    return Speech2Text.from_pretrained(model_dir, dtype="float64", beam_size=4, max_tokens_per_chunk=8, **settings)


def test_streams_and_batches_give_what_one_file_gives(model_dir):
    s2t, rng = load(model_dir, search="chunk_sync", ctc_weight=0.4), random.Random(5)
    recordings = [tiny.speech(seed, samples) for seed, samples in ((1, 60000), (2, 33000), (3, 300))]
    alone = [s2t(audio, s2t.sample_rate)[0] for audio in recordings]
    assert [each.text for each in alone[:2]] != ["", ""]
    for one, other in zip(alone, s2t.transcribe_batch([s2t.load(each, 16000) for each in recordings]), strict=True):
        assert (one.tokens, one.score) == (other[0].tokens, pytest.approx(other[0].score, abs=1e-8))
    for audio, expected in zip(recordings, alone, strict=True):
        stream = s2t.stream("chunk_sync", settle_seconds=math.inf, endpoint_silence=math.inf, endpoint_length=math.inf)
        assert tiny.said(tiny.play(stream, tiny.cuts(audio, rng, 9000))) == expected.text


def test_the_weight_changes_the_text_and_a_tiny_one_does_not(model_dir):
    audio = tiny.speech(4, 80000)
    for search in ("greedy", "chunk_sync", "alsd"):
        texts = {
            weight: load(model_dir, search=search, ctc_weight=weight)(audio, 16000)[0] for weight in (0, 1e-9, 0.6)
        }
        assert texts[0].tokens == texts[1e-9].tokens != texts[0.6].tokens
        assert texts[0].score == pytest.approx(texts[1e-9].score, abs=1e-4)
        words = texts[0.6].words
        assert all(0 < word.confidence <= 1 and 0 <= word.start <= word.end <= 5.12 for word in words)
        assert all(one.end <= other.end for one, other in itertools.pairwise(words))


@pytest.mark.parametrize("model_dir", ["byte-level"], indirect=True)
def test_only_characters_of_ctc_and_of_the_training_text_are_written(model_dir, tmp_path):
    folder = shutil.copytree(model_dir, tmp_path / "model")
    allowed = set("".join(tiny.SENTENCES)) | set(string.ascii_uppercase) | {"!"}
    for known in (None, "stop!"):
        if known:
            (folder / "tokenizer" / CHARACTERS).write_text(known)
        for search in ("greedy", "chunk_sync", "alsd"):
            text = load(folder, search=search, ctc_weight=0.3)(tiny.speech(4, 80000), 16000)[0].text
            assert text and (set(text) <= allowed) == bool(known)


def test_a_long_stream_keeps_a_window_only(model_dir):
    stream = load(model_dir, ctc_weight=0.4).stream("chunk_sync", settle_seconds=0.64)
    sizes = []
    for seed in range(12):
        stream.push(tiny.speech(seed, 16000))
        sizes.append(max((len(h._past.prefix.tokens), len(h._past.prefix.log_probs)) for h in stream.search.beam))
    longest = 1 if stream.model.ctc.spelling is None else max(map(len, stream.tokenizer.pieces))
    assert max(sizes)[0] <= 3 * 8 * longest + 1 and max(size for _, size in sizes) <= 25 + 16


@SAME
def test_what_cannot_be_joint_is_refused(model_dir, tiny_model_dir, tiny_aligner_dir):
    with pytest.raises(ConfigError, match="ctc_weight 1.0 is not in 0 .. 1"):
        load(model_dir, ctc_weight=1.0)
    model = load(model_dir).model
    model.ctc = None
    with pytest.raises(ConfigError, match="this model has no CTC head"):
        JointModel(model, 0.3)
    with pytest.raises(ConfigError, match="does not write chunk by chunk"):
        Speech2Text.from_pretrained(tiny_aligner_dir, ctc_weight=0.3)


@OWN
def test_a_packed_model_holds_both_tokenizers(model_dir, tmp_path, monkeypatch):
    pack(model_dir, tmp_path / "model.zip", "model.pth")
    assert CTC_TOKENIZER in zipfile.ZipFile(tmp_path / "model.zip").namelist()
    audio = tiny.speech(6, 60000)
    settings = {"search": "chunk_sync", "ctc_weight": 0.4}
    assert load(tmp_path / "model.zip", **settings)(audio) == load(model_dir, **settings)(audio)
    moved = shutil.copytree(model_dir, tmp_path / "moved")
    (moved / CTC_TOKENIZER).unlink()
    values = yaml.safe_load((moved / "config.yaml").read_text())
    assert load(moved, **settings)(audio) == load(model_dir, **settings)(audio), "the file that training used"
    values["loss_conf"]["ctc_tokenizer"] = "elsewhere/tokenizer.model"
    (moved / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ModelError, match=f"moved/{CTC_TOKENIZER} does not exist, .*: copy it from its training"):
        load(moved)


# Training


def test_the_loss_is_of_the_characters(characters):
    """Against the forward algorithm; texts without characters count for nothing but blanks."""
    torch.manual_seed(0)
    decoder = Decoder(VOCABULARY, dim=16, layers=2, heads=2, ffn_dim=24)
    losses = LossConfig(ctc_weight=0.3, ctc_tokenizer=str(characters))
    model = SpeechLLMXL(make_acoustic("conv"), decoder, ChunkingConfig(8, 1), losses).double().eval()
    size = len(load_tokenizer(characters).pieces)
    assert model.ctc.blank == size != VOCABULARY
    utterances = random_utterances(seed=7)
    labels = [[(3 * k + i) % size for k in range(i)] for i in range(len(utterances))]
    batch = as_batch(utterances)
    lengths = torch.tensor([len(each) for each in labels])
    padded = torch.full((len(labels), int(lengths.max())), -1)
    for row, each in zip(padded, labels, strict=True):
        row[: len(each)] = torch.tensor(each)
    total = 0.0
    for utterance, each in zip(utterances, labels, strict=True):
        frames, _ = model.acoustic(utterance["speech"][None], torch.tensor([len(utterance["speech"])]))
        loss = slow_ctc(model.ctc(frames)[0].tolist(), each, size)
        total += 0.0 if math.isinf(loss) else loss
    _, stats, targets = model(**batch, ctc_text=padded, ctc_text_lengths=lengths)
    assert stats["loss_ctc"].item() == pytest.approx(total / int(targets), rel=1e-8)


@pytest.fixture(scope="module")
def aligner(toy_data, toy_stats, tmp_path_factory):
    out = tmp_path_factory.mktemp("aligner") / "aligner"
    return training.train("ctc", toy_data, out, toy_stats, max_epoch=1)


@pytest.fixture(scope="module")
def toy_pieces(toy_data, tmp_path_factory):
    """The toy data with another tokenizer for the decoder."""
    out = tmp_path_factory.mktemp("pieces")
    options = ["--text", str(toy_data.train / "text"), "--out", str(out), "--type", "bpe", "--vocab-size", "14"]
    assert cli.main(["tokens", *options]) == 0
    return training.ToyData(toy_data.train, toy_data.valid, out / "tokenizer.model", out / "tokens.txt")


def test_a_training_begins_with_the_aligners_head(toy_data, toy_pieces, aligner, toy_stats, tmp_path):
    weights = aligner / "valid.ter.ave.pth"
    options = ["--init_param", f"{weights}:acoustic:acoustic", f"{weights}:ctc:ctc"]
    options += ["--loss_conf", f"ctc_tokenizer={toy_data.tokenizer}", "--freeze_param", "ctc"]
    stats = training.train("speechllm_xl", toy_pieces, tmp_path / "stats", options=options[3:])
    model = training.train("speechllm_xl", toy_pieces, tmp_path / "model", stats, options, max_epoch=1)
    before, after = training.weights(weights), training.weights(model / "valid.acc_text.ave.pth")
    assert after["ctc.output.weight"].equal(before["ctc.output.weight"])
    assert len(after["ctc.output.bias"]) == len(load_tokenizer(toy_data.tokenizer).pieces) + 1
    assert (model / CTC_TOKENIZER).read_bytes() == toy_data.tokenizer.read_bytes()
    figures = training.history(model)[1]["train"]
    assert 0 < figures["loss_ctc"] < math.inf
    shutil.copy(toy_pieces.tokenizer, model / "tokenizer.model")
    spelling = Speech2Text.from_pretrained(model).model.ctc.spelling
    tokenizer = load_tokenizer(toy_pieces.tokenizer)
    text = (toy_data.train / "text").read_text().splitlines()[0].partition(" ")[2]
    assert spelling.spell(tokenizer.encode(text)[0]) == load_tokenizer(toy_data.tokenizer).encode(text)[0]


def test_joined_utterances_join_the_characters():
    import numpy as np

    def arrays(text, labels):
        ids = {"text": np.array(text), "ctc_text": np.array(labels), "ends": np.array([3] * len(text))}
        return {"speech": np.ones(6400, dtype=np.float32), **ids}

    single = {"a": ("a", arrays([1, 2], [5, 6, 7])), "b": ("b", arrays([3], [8]))}
    _, joined = JoinedDataset(single, 16000)[Example(("a", "b"), (0, 12))]
    assert joined["text"].tolist() == [1, 2, 3] and joined["ctc_text"].tolist() == [5, 6, 7, 8]
    assert joined["ends"].tolist() == [3, 3, 15]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("speechllm_xl", "nothing.model", "loss_conf ctc_tokenizer: nothing.model is no file: give the aligner's"),
        ("speechllm_xl", "pieces", "loss_conf ctc_tokenizer: it has tokens of several letters"),
        ("ctc_prompt_lm", "letters", "loss_conf ctc_tokenizer: the prompts are found by the decoder's tokens"),
        ("transducer", "letters", "loss_conf ctc_tokenizer: a transducer's CTC has the transducer's tokens: set null"),
    ],
)
def test_what_cannot_be_trained_is_refused(toy_data, tiny_tokens, toy_pieces, tmp_path, name, value, message):
    files = {"pieces": tiny_tokens / "tokenizer.model", "letters": toy_data.tokenizer}
    changes = {"loss_conf": {"ctc_weight": 0.1, "ctc_tokenizer": str(files.get(value, value))}}
    with pytest.raises(ConfigError, match=message):
        training.train(name, toy_pieces, tmp_path / "stats", **changes)


def test_the_weight_that_a_training_will_have(tmp_path):
    (tmp_path / "a.yaml").write_text("loss_conf: {ctc_weight: 0.2}\n")
    (tmp_path / "b.yaml").write_text("optim: adam\n")
    assert planned_ctc_weight(tmp_path / "a.yaml") == 0.2 and planned_ctc_weight(tmp_path / "b.yaml") == 0
    assert planned_ctc_weight(tmp_path / "a.yaml", "--max_epoch 2 --loss_conf ctc_weight=0") == 0
    assert planned_ctc_weight(tmp_path / "b.yaml", "--loss_conf ctc_weight=0.4") == 0.4
