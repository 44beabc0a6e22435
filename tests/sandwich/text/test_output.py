from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandwich.requests.request import LogprobEntry, RequestTimings, TokenEvent
from sandwich.requests.sampling_params import SamplingParams
from sandwich.text.output import OutputDelta, OutputStream, StopMatcher, TokenLogprobs
from sandwich.text.tokenizer import Tokenizer

TIMINGS = RequestTimings(0.0, 0.1, 0.2, 0.3, 0.4, 1, 2, 0, 0)
EOS = 1
# Few letters, so that stop strings do occur, overlap and begin without ending.
texts = st.text("abé😀", max_size=30)
stops = st.lists(st.text("abé", min_size=1, max_size=4), min_size=1, max_size=3)


def cut(text: str, borders: Sequence[int]) -> list[str]:
    edges = [0, *sorted(border % (len(text) + 1) for border in borders), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def first_stop(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    """(where it starts, the stop) of the stop that is complete first; written the slow way."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return end - len(stop), stop
    return None


def match(pieces: Sequence[str], stops: Sequence[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    shown = ""
    for piece in pieces:
        text, stop = matcher.push(piece)
        shown += text
        if stop is not None:
            return shown, stop
    return shown + matcher.flush(), None


def feed(stream: OutputStream, ids: Sequence[int], last: TokenEvent | None) -> list[OutputDelta]:
    """Events without an end for `ids`, until the stream is at its end, then `last`."""
    deltas = []
    for token_id in ids:
        deltas.append(stream.feed(TokenEvent("r", (token_id,))))
        if stream.is_finished:
            break
    return deltas if last is None else [*deltas, stream.feed(last)]


def joined(deltas: Sequence[OutputDelta]) -> str:
    return "".join(delta.text for delta in deltas)


# ---- stop strings ----


@given(texts, stops, st.lists(st.integers(0, 30), max_size=8))
@example("aab", ["aab", "b"], [1, 2])
@example("ababa", ["abab", "bab"], [])
def test_any_way_to_cut_the_text_ends_it_at_the_same_place(
    text: str, stops: list[str], borders: list[int]
) -> None:
    expected = first_stop(text, stops)
    shown, stop = match(cut(text, borders), stops)
    if expected is None:
        assert (shown, stop) == (text, None)
    else:
        assert (shown, stop) == (text[: expected[0]], expected[1])


@given(texts, stops, st.lists(st.integers(0, 30), max_size=8))
def test_no_more_is_held_back_than_may_begin_a_stop_string(
    text: str, stops: list[str], borders: list[int]
) -> None:
    matcher = StopMatcher(stops)
    seen = shown = ""
    for piece in cut(text, borders):
        seen += piece
        certain, stop = matcher.push(piece)
        shown += certain
        if stop is not None:
            return
        held = seen[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_without_stop_strings_nothing_is_held_back() -> None:
    matcher = StopMatcher(())
    assert matcher.push("abc") == ("abc", None)
    assert matcher.flush() == ""


# ---- a stream of tokens ----


@given(text=texts, stops=stops)
def test_a_stop_string_across_tokens_is_never_shown_and_nothing_in_front_is_lost(
    tokenizers_by_kind: dict[str, Tokenizer], text: str, stops: list[str]
) -> None:
    for kind in ("byte_level", "byte_fallback"):
        tokenizer = tokenizers_by_kind[kind]
        ids = tokenizer.encode(text, add_special_tokens=False)
        params = SamplingParams(stop=stops, max_tokens=None)
        stream = OutputStream(tokenizer, params)
        deltas = feed(stream, ids, None)
        expected = first_stop(text, stops)
        if stream.needs_abort:
            assert expected is not None
        else:
            deltas.append(stream.feed(TokenEvent("r", (EOS,), finish_reason="stop")))
        assert stream.finish_reason == "stop"
        assert stream.stop_reason == (expected[1] if expected else None)
        assert joined(deltas) == stream.text == (text[: expected[0]] if expected else text)


def test_a_stop_string_ends_the_output_before_the_engine_does(tokenizer: Tokenizer) -> None:
    stream = OutputStream(tokenizer, SamplingParams(stop="ld"))
    ids = tokenizer.encode("hello world!", add_special_tokens=False)
    deltas = feed(stream, ids, None)
    assert joined(deltas) == "hello wor"
    had_to_abort = stream.needs_abort
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", "ld")
    num_tokens = len(stream.token_ids)
    late = stream.feed(TokenEvent("r", (ids[-1],)))
    end = stream.feed(TokenEvent("r", finish_reason="abort", timings=TIMINGS))
    assert late == end == OutputDelta()
    assert (had_to_abort, stream.needs_abort) == (True, False)
    result = stream.result()
    assert (result.finish_reason, result.stop_reason, result.text) == ("stop", "ld", "hello wor")
    assert result.timings is TIMINGS
    assert len(result.token_ids) == num_tokens


@given(text=texts, stops=stops, size=st.integers(2, 5))
def test_several_tokens_in_an_event_are_as_good_as_one_event_each(
    tokenizer: Tokenizer, text: str, stops: list[str], size: int
) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    params = SamplingParams(stop=stops, max_tokens=None, logprobs=0)
    single, several = OutputStream(tokenizer, params), OutputStream(tokenizer, params)
    for at in range(0, len(ids), size):
        part = tuple(ids[at : at + size])
        entries = tuple(map(entry, part))
        deltas = [
            single.feed(TokenEvent("r", (token_id,), (logprob,)))
            for token_id, logprob in zip(part, entries, strict=True)
        ]
        delta = several.feed(TokenEvent("r", part, entries))
        assert delta.text == joined(deltas)
        assert delta.token_ids == tuple(id_ for each in deltas for id_ in each.token_ids)
        assert len(delta.logprobs) == len(delta.token_ids)
        assert several.needs_abort == single.needs_abort
    last = TokenEvent("r", finish_reason="length")
    assert several.feed(last) == single.feed(last)
    assert several.result() == single.result()


def test_a_stop_string_in_the_last_token_is_a_stop_and_needs_no_abort(tokenizer: Tokenizer) -> None:
    stream = OutputStream(tokenizer, SamplingParams(stop="b"))
    [a, b] = (tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "ab")
    stream.feed(TokenEvent("r", (a,)))
    delta = stream.feed(TokenEvent("r", (b,), finish_reason="length"))
    assert (delta.text, delta.finish_reason, delta.stop_reason) == ("", "stop", "b")
    assert not stream.needs_abort


@pytest.mark.parametrize("reason", ["length", "abort", "error"])
def test_what_was_held_back_comes_with_the_end(tokenizer: Tokenizer, reason: str) -> None:
    stream = OutputStream(tokenizer, SamplingParams(stop="abc"))
    [a, b] = (tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "ab")
    lead = tokenizer.encode("ß", add_special_tokens=False)[0]
    error = "the step failed" if reason == "error" else None
    last = TokenEvent("r", finish_reason=reason, error=error)
    deltas = feed(stream, [a, b, lead], last)
    assert [delta.text for delta in deltas] == ["", "", "", "ab\ufffd"]
    assert deltas[-1].finish_reason == reason
    assert stream.result().error == deltas[-1].error == error


def test_the_token_of_a_stop_id_counts_but_is_not_shown(tokenizer: Tokenizer) -> None:
    [a, b] = (tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "ab")
    stream = OutputStream(tokenizer, SamplingParams(stop_token_ids=[b]))
    deltas = feed(stream, [a], TokenEvent("r", (b,), finish_reason="stop", stop_reason=b))
    assert joined(deltas) == "a"
    assert deltas[-1].token_ids == (b,)
    assert stream.result().token_ids == [a, b]
    assert stream.result().stop_reason == b


def test_a_stop_string_counts_only_after_min_tokens(tokenizer: Tokenizer) -> None:
    [a, b] = (tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "ab")
    stream = OutputStream(tokenizer, SamplingParams(stop="b", min_tokens=2))
    assert joined(feed(stream, [b, b, a, b], None)) == "bba"
    assert stream.stop_reason == "b"


def test_text_goes_on_from_the_prompt(tokenizers_by_kind: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers_by_kind["byte_fallback"]
    prompt = tokenizer.encode("a")
    stream = OutputStream(tokenizer, SamplingParams(), prompt)
    last = TokenEvent("r", (prompt[0],), finish_reason="length")
    assert joined(feed(stream, prompt, last)) == " a a"


def test_a_request_without_tokens_ends_with_empty_text(tokenizer: Tokenizer) -> None:
    stream = OutputStream(tokenizer, SamplingParams(max_tokens=0))
    stream.feed(TokenEvent("r", finish_reason="length"))
    result = stream.result()
    assert (result.text, result.token_ids, result.finish_reason) == ("", [], "length")


# ---- log probabilities ----


def entry(token_id: int, *top: tuple[int, float], logprob: float = -3.0) -> LogprobEntry:
    ids, logprobs = tuple(i for i, _ in top), tuple(value for _, value in top)
    return LogprobEntry(token_id, logprob, 7, ids, logprobs)


def test_logprobs_belong_to_tokens_and_know_where_their_text_begins(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("aßb", add_special_tokens=False)
    stream = OutputStream(tokenizer, SamplingParams(logprobs=1, stop="zzz"))
    for token_id in ids:
        event = TokenEvent("r", (token_id,), logprobs=(entry(token_id, (EOS, -0.5)),))
        [logprobs] = stream.feed(event).logprobs
        assert logprobs.token_id == token_id
        assert logprobs.chosen.bytes == tokenizer.token_bytes(token_id)
    result = stream.result()
    assert result.logprobs is not None
    assert [each.text_offset for each in result.logprobs] == [0, 1, 1, 2]
    assert b"".join(each.chosen.bytes for each in result.logprobs) == "aßb".encode()
    assert [each.chosen.decoded_token for each in result.logprobs] == ["a", "\ufffd", "\ufffd", "b"]
    assert result.cumulative_logprob == pytest.approx(-3.0 * len(ids))


def test_the_chosen_token_is_among_the_candidates_even_if_it_is_not_likely(
    tokenizer: Tokenizer,
) -> None:
    built = TokenLogprobs.build(entry(5, (6, -0.1), (7, -0.2)), tokenizer, 0)
    assert list(built) == [5, 6, 7]
    assert (built[5].rank, built[6].rank, built[7].rank) == (7, 1, 2)
    assert built.top_ids == (6, 7)
    likely = TokenLogprobs.build(entry(6, (6, -0.1), (7, -0.2), logprob=-0.1), tokenizer, 0)
    assert list(likely) == [6, 7]
    assert likely.chosen.logprob == -0.1


def test_no_logprobs_are_given_unless_asked_for(tokenizer: Tokenizer) -> None:
    stream = OutputStream(tokenizer, SamplingParams())
    assert stream.feed(TokenEvent("r", (70,))).logprobs == ()
    assert stream.result().logprobs is None
    assert stream.result().cumulative_logprob is None


def test_prompt_logprobs_know_where_their_text_begins(tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode("aßb")
    stream = OutputStream(tokenizer, SamplingParams(prompt_logprobs=0), prompt)
    entries = (None, *(entry(token_id) for token_id in prompt[1:]))
    stream.feed(TokenEvent("r", (70,), prompt_logprobs=entries))
    assert stream.prompt_logprobs is not None
    first, *others = stream.prompt_logprobs
    assert first is None
    assert [each.text_offset for each in others if each] == [0, 1, 1, 2]
