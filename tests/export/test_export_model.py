"""The exported model is the function that ours is, however transformers calls it.

Shapes: B rows, T tokens, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from export_tools import exported, lively_model, some_tokens, write_export
from safetensors.torch import load_file

from nanochat_core.export.comparing import load_exported
from nanochat_core.export.weights import round_like
from nanochat_core.inference.engine import InferenceEngine
from nanochat_core.inference.requests import Request
from nanochat_core.model.gpt import GPT
from nanochat_core.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("code_cache")

TOLERANCE = 1e-5
NEW_TOKENS = 40
LENGTHS = (3, 290, 9, 1)
GREEDY = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": 999}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, code_cache: None) -> tuple[GPT, Any, Tokenizer]:
    """Our model, its export, and the tokenizer."""
    model, tokenizer = lively_model()
    return model, exported(model, tokenizer, tmp_path_factory.mktemp("pair")), tokenizer


@pytest.fixture(autouse=True)
def _inference() -> Any:
    with torch.no_grad():
        yield


def assert_near(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(theirs, ours, rtol=0.0, atol=TOLERANCE)


def padded(rows: Sequence[Sequence[int]], *, on_left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows with rubbish where they have no token, and the mask that hides it."""
    longest = max(map(len, rows))
    tokens_BT = some_tokens(len(rows), longest, seed=99)
    mask_BT = torch.zeros_like(tokens_BT)
    for i, row in enumerate(rows):
        place = slice(longest - len(row), longest) if on_left else slice(0, len(row))
        tokens_BT[i, place] = torch.tensor(row)
        mask_BT[i, place] = 1
    return tokens_BT, mask_BT


def some_rows() -> list[list[int]]:
    return [some_tokens(1, length, seed=length)[0].tolist() for length in LENGTHS]


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"n_layer": 1},
        {"n_layer": 4, "n_kv_head": 4, "window_pattern": "SSSL"},
        {"n_head": 1, "n_kv_head": 1, "n_embd": 16},
    ],
    ids=["grouped", "one-block", "four-blocks", "narrow"],
)
def test_logits_are_ours_beyond_every_window(shape: dict[str, Any], tmp_path: Path) -> None:
    model, tokenizer = lively_model(**shape)
    tokens_BT = some_tokens(2, 600)
    theirs_BTV = exported(model, tokenizer, tmp_path)(tokens_BT).logits
    assert theirs_BTV.shape == (2, 600, tokenizer.vocab_size)
    assert_near(model(tokens_BT), theirs_BTV)


@pytest.mark.parametrize("on_left", [True, False])
def test_padding_changes_nothing(pair: tuple[GPT, Any, Tokenizer], on_left: bool) -> None:
    model, theirs, _ = pair
    tokens_BT, mask_BT = padded(some_rows(), on_left=on_left)
    logits_BTV = theirs(tokens_BT, attention_mask=mask_BT).logits
    for row, mask_T, logits_TV in zip(some_rows(), mask_BT.bool(), logits_BTV, strict=True):
        assert_near(model(torch.tensor([row]))[0], logits_TV[mask_T])


def test_tokens_hidden_in_the_middle_count_as_absent(pair: tuple[GPT, Any, Tokenizer]) -> None:
    model, theirs, _ = pair
    tokens_BT = some_tokens(2, 200)
    mask_BT = (some_tokens(2, 200, seed=1) % 3 > 0).long()
    logits_BTV = theirs(tokens_BT, attention_mask=mask_BT).logits
    for tokens_T, mask_T, logits_TV in zip(tokens_BT, mask_BT.bool(), logits_BTV, strict=True):
        assert_near(model(tokens_T[mask_T][None])[0], logits_TV[mask_T])


@pytest.mark.parametrize("pieces", [(300,), (1, 1, 1, 297), (140, 1, 1, 130, 28)])
def test_a_cache_filled_in_pieces_gives_the_same_logits(
    pair: tuple[GPT, Any, Tokenizer], pieces: Sequence[int]
) -> None:
    model, theirs, _ = pair
    tokens_BT = some_tokens(2, 300)
    cache, logits = None, []
    for piece_BT in tokens_BT.split(list(pieces), dim=1):
        output = theirs(piece_BT, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits)
    assert_near(model(tokens_BT), torch.cat(logits, dim=1))


@pytest.mark.parametrize("on_left", [True, False])
def test_a_cache_goes_on_after_padding(pair: tuple[GPT, Any, Tokenizer], on_left: bool) -> None:
    model, theirs, _ = pair
    tokens_BT, mask_BT = padded(some_rows(), on_left=on_left)
    more_BT = some_tokens(len(LENGTHS), 30, seed=5)
    cache = theirs(tokens_BT, attention_mask=mask_BT, use_cache=True).past_key_values
    for place in range(more_BT.size(1)):
        mask_BT = F.pad(mask_BT, (0, 1), value=1)
        step = theirs(more_BT[:, place : place + 1], attention_mask=mask_BT, past_key_values=cache)
    for row, more_T, logits_V in zip(some_rows(), more_BT, step.logits[:, -1], strict=True):
        assert_near(model(torch.tensor([[*row, *more_T.tolist()]]))[0, -1], logits_V)


def test_generate_gives_the_tokens_of_our_engine(pair: tuple[GPT, Any, Tokenizer]) -> None:
    model, theirs, tokenizer = pair
    tokens_BT, mask_BT = padded(some_rows(), on_left=True)
    new_BT = theirs.generate(tokens_BT, attention_mask=mask_BT, **GREEDY)[:, tokens_BT.size(1) :]
    for row, new_T in zip(some_rows(), new_BT.tolist(), strict=True):
        assert new_T == engine_tokens(model, tokenizer, row)


def engine_tokens(model: GPT, tokenizer: Tokenizer, prompt: Sequence[int]) -> list[int]:
    engine = InferenceEngine(model, tokenizer)
    engine.submit(Request(tuple(prompt), max_new_tokens=NEW_TOKENS, ignores_stop_tokens=True))
    tokens = []
    while engine.has_work:
        outputs = engine.step()
        assert all(output.is_sampled for output in outputs), "no calculator in this test"
        tokens += [output.token for output in outputs]
    return tokens


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": False, "num_beams": 3},
        {"do_sample": True, "top_k": 20, "temperature": 0.8},
        {"do_sample": True, "num_beams": 2, "num_return_sequences": 2},
        {"do_sample": False, "no_repeat_ngram_size": 2},
    ],
    ids=["beams", "sampling", "sampled-beams", "no-repeats"],
)
def test_generate_with_a_cache_is_generate_without(
    pair: tuple[GPT, Any, Tokenizer], settings: dict[str, Any]
) -> None:
    tokens_BT, mask_BT = padded(some_rows(), on_left=True)
    found = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        found.append(
            pair[1].generate(
                tokens_BT,
                attention_mask=mask_BT,
                use_cache=use_cache,
                **{**GREEDY, "max_new_tokens": 8, **settings},
            )
        )
    assert torch.equal(*found)


def test_guessed_tokens_that_are_taken_back_leave_no_trace(
    pair: tuple[GPT, Any, Tokenizer],
) -> None:
    tokens_BT = some_tokens(1, 20).repeat(1, 4)
    plain_BT = pair[1].generate(tokens_BT, **GREEDY)
    guessed_BT = pair[1].generate(tokens_BT, prompt_lookup_num_tokens=5, **GREEDY)
    assert torch.equal(plain_BT, guessed_BT)


@pytest.mark.parametrize("kind", ["made by the model", "lazy", "of the config"])
def test_a_second_turn_goes_on_from_the_cache_of_the_first(
    pair: tuple[GPT, Any, Tokenizer], kind: str
) -> None:
    from transformers import DynamicCache

    theirs = pair[1]
    caches = {"lazy": DynamicCache, "of the config": lambda: DynamicCache(config=theirs.config)}
    given = {"past_key_values": caches[kind]()} if kind in caches else {}
    first = theirs.generate(some_tokens(1, 140), return_dict_in_generate=True, **given, **GREEDY)
    more_BT = torch.cat([first.sequences, some_tokens(1, 20, seed=3)], dim=1)
    second_BT = theirs.generate(more_BT, past_key_values=first.past_key_values, **GREEDY)
    assert torch.equal(second_BT, theirs.generate(more_BT, **GREEDY))


def test_the_loss_is_ours_with_shifted_labels(pair: tuple[GPT, Any, Tokenizer]) -> None:
    model, theirs, _ = pair
    tokens_BT = some_tokens(2, 50)
    labels_BT = tokens_BT.clone()
    labels_BT[:, :20] = -100
    targets_BT = torch.where(labels_BT == -100, -1, labels_BT)[:, 1:].contiguous()
    ours = model(tokens_BT[:, :-1], targets_BT)
    assert_near(ours, theirs(tokens_BT, labels=labels_BT).loss)


def test_gradients_are_ours(pair: tuple[GPT, Any, Tokenizer]) -> None:
    model, theirs, _ = pair
    tokens_BT = some_tokens(2, 50)
    with torch.enable_grad():
        model(tokens_BT[:, :-1], tokens_BT[:, 1:].contiguous()).backward()
        theirs(tokens_BT, labels=tokens_BT).loss.backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        assert_near(parameter.grad, gradients[name].grad)
    model.zero_grad()
    theirs.zero_grad()


def test_only_the_logits_that_are_wanted_are_made(pair: tuple[GPT, Any, Tokenizer]) -> None:
    tokens_BT = some_tokens(2, 30)
    whole_BTV = pair[1](tokens_BT).logits
    assert_near(whole_BTV[:, -4:], pair[1](tokens_BT, logits_to_keep=4).logits)
    places = torch.tensor([2, 7])
    assert_near(whole_BTV[:, places], pair[1](tokens_BT, logits_to_keep=places).logits)


def test_hidden_states_and_tuples_on_request(pair: tuple[GPT, Any, Tokenizer]) -> None:
    model, theirs, _ = pair
    tokens_BT = some_tokens(1, 30)
    hidden = theirs(tokens_BT, output_hidden_states=True).hidden_states
    assert len(hidden) == model.config.n_layer + 1
    assert_near(model.hidden(tokens_BT), hidden[-1])
    logits_BTV, *_ = theirs(tokens_BT, return_dict=False)
    assert_near(model(tokens_BT), logits_BTV)


def test_the_file_holds_our_tensors_as_they_are(tmp_path: Path) -> None:
    model, tokenizer = lively_model(compute_dtype=torch.bfloat16)
    folder = write_export(model, tokenizer, tmp_path)
    written = load_file(folder / "model.safetensors")
    assert written.keys() == model.state_dict().keys()
    assert written["wte.weight"].dtype == torch.bfloat16
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, written[name]), name
    assert {p.dtype for p in load_exported(folder, "cpu").parameters()} == {torch.float32}


def test_rounded_weights_are_ours_when_rounded(tmp_path: Path) -> None:
    model, tokenizer = lively_model()
    folder = write_export(model, tokenizer, tmp_path, "bfloat16")
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    theirs = load_exported(folder, "cpu")
    tokens_BT = some_tokens(1, 60)
    assert float((model(tokens_BT) - theirs(tokens_BT).logits).abs().max()) > TOLERANCE
    round_like(model, "bfloat16")
    assert_near(model(tokens_BT), theirs(tokens_BT).logits)


def test_computing_in_bfloat16_is_what_ours_computes_in_bfloat16(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, tokenizer = lively_model(compute_dtype=torch.bfloat16)
    folder = write_export(model, tokenizer, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.bfloat16
    )
    tokens_BT = some_tokens(2, 300)
    logits_BTV = theirs(tokens_BT).logits
    assert logits_BTV.dtype == torch.float32
    assert_near(model(tokens_BT), logits_BTV)


def test_what_transformers_saves_it_loads(pair: tuple[GPT, Any, Tokenizer], tmp_path: Path) -> None:
    model, theirs, _ = pair
    theirs.save_pretrained(tmp_path / "again")
    tokens_BT = some_tokens(1, 30)
    assert_near(model(tokens_BT), load_exported(tmp_path / "again", "cpu")(tokens_BT).logits)


def test_a_model_from_the_config_starts_as_ours_does(pair: tuple[GPT, Any, Tokenizer]) -> None:
    fresh = type(pair[1])(pair[1].config)
    ours = GPT(pair[0].config)
    ours.init_weights(0)
    for name, parameter in fresh.named_parameters():
        wanted = dict(ours.named_parameters())[name]
        assert float(parameter.mean()) == pytest.approx(float(wanted.mean()), abs=0.02), name
        assert float(parameter.std(correction=0)) == pytest.approx(
            float(wanted.std(correction=0)), rel=0.3
        ), name


def test_what_it_cannot_do_is_refused(pair: tuple[GPT, Any, Tokenizer]) -> None:
    theirs = pair[1]
    tokens_BT = some_tokens(1, 30)
    with pytest.raises(ValueError, match=r"2,561 tokens in a row.*end at 2,560"):
        theirs(some_tokens(1, 2561))
    with pytest.raises(ValueError, match="give input_ids"):
        theirs(inputs_embeds=torch.zeros(1, 3, 64))
    with pytest.raises(ValueError, match="leave position_ids out"):
        theirs(tokens_BT, position_ids=torch.arange(30)[None])
    with pytest.raises(ValueError, match="leave output_attentions out"):
        theirs(tokens_BT, output_attentions=True)
    with pytest.raises(ValueError, match=r"\(1, 7\); give \(1, 30\)"):
        theirs(tokens_BT, attention_mask=torch.ones(1, 7))
    with pytest.raises(ValueError, match="StaticCache"):
        theirs.generate(tokens_BT, cache_implementation="static", **GREEDY)
    with pytest.raises(NotImplementedError, match="vocabulary of a nanochat model is fixed"):
        theirs.resize_token_embeddings(512)


def test_hidden_tokens_do_not_count_towards_the_longest_input(
    pair: tuple[GPT, Any, Tokenizer],
) -> None:
    tokens_BT = some_tokens(1, 2600)
    mask_BT = torch.ones_like(tokens_BT)
    mask_BT[:, :100] = 0
    logits_BTV = pair[1](tokens_BT, attention_mask=mask_BT, logits_to_keep=1).logits
    assert_near(pair[0](tokens_BT[:, 100:])[:, -1:], logits_BTV)
