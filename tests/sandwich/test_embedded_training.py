"""The way to the embedded model: corpus, windows, optimizer, a run that stops and goes on."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from sandwich.embedded import evaluate, train
from sandwich.embedded.batches import FINAL_MIXTURE, MIXTURE, WINDOW, Batches, Stream, documents
from sandwich.embedded.completion import first_function, has_ended, is_documented_function
from sandwich.embedded.corpus import Kind, SourceFile, chat_example, functions, source_files
from sandwich.embedded.muon import Muon, orthogonalize
from sandwich.embedded.tokens import train_tokenizer

MODULE = '''
class Account:
    def deposit(self, amount,
                note=None):
        """Add `amount`.

        More words.
        """
        self.total += amount

    def bare(self):
        return self.total

    def empty(self):
        """Only words."""

def single(x):
    'One quote.'
    return x
'''


@pytest.fixture
def module() -> SourceFile:
    return SourceFile("account.py", MODULE)


def test_documented_functions_are_dedented_and_others_are_left_out(module: SourceFile) -> None:
    by_name = {f.name: f for f in functions(module)}
    assert set(by_name) == {"deposit", "single"}
    deposit = by_name["deposit"]
    assert deposit.signature == "def deposit(self, amount,\n            note=None):"
    assert deposit.summary == "Add `amount`."
    assert deposit.source.endswith("    self.total += amount\n")


def test_a_docstring_in_single_quotes_is_put_in_triple_double_quotes(module: SourceFile) -> None:
    single = next(f for f in functions(module) if f.name == "single")
    assert single.source == 'def single(x):\n    """One quote."""\n    return x\n'


def test_a_chat_example_is_answered_with_the_whole_function(module: SourceFile) -> None:
    function = next(functions(module))
    users = {chat_example(function, random.Random(seed)).user for seed in range(20)}
    assert users == {
        "One quote.",
        "Write a function single. One quote.",
        "def single(x):",
    }
    assert chat_example(function, random.Random(0)).assistant == function.source


def test_files_that_do_not_parse_and_tables_are_left_out(tmp_path: Path) -> None:
    for name, data in {
        "good.py": b"x = 1\r\ny = 2\r\n",
        "broken.py": b"def (",
        "latin.py": b"# \xe9",
        "empty.py": b"",
        "site-packages/other.py": b"x = 1\n",
        "encodings/cp437.py": b"x = 1\n",
        "test/test_x.py": b"x = 1\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    files = source_files(tmp_path)
    assert [(f.path, f.kind) for f in files] == [
        ("good.py", Kind.LIBRARY),
        ("test/test_x.py", Kind.TESTS),
    ]
    assert files[0].text == "x = 1\ny = 2\n"


def test_about_one_file_in_fifty_is_held_out_by_its_path_alone() -> None:
    held_out = [SourceFile(f"m{i}.py", "").is_validation for i in range(5000)]
    assert 70 <= sum(held_out) <= 130
    assert held_out[:100] == [SourceFile(f"m{i}.py", "other").is_validation for i in range(100)]


def test_every_token_is_predicted_at_most_once_in_an_epoch_and_nearly_all_are() -> None:
    ids = np.arange(5 * WINDOW + 7, dtype=np.uint16)
    stream = Stream(np.split(ids, [3, WINDOW, 2 * WINDOW + 1]), seed=0)
    targets = np.concatenate([stream.window(i)[1:] for i in range(5)])
    assert len(set(targets.tolist())) == len(targets) == 5 * WINDOW
    assert (stream.window(0) != stream.window(5)).any()


def test_a_batch_depends_on_seed_and_step_alone(module: SourceFile) -> None:
    rng = np.random.default_rng(0)
    encoded = {kind: [rng.integers(0, 99, 9 * WINDOW).astype(np.uint16)] for kind in Kind}
    batches, again = Batches(encoded, seed=1), Batches(encoded, seed=1)
    batches.batch(40, WINDOW, is_final=False)
    inputs, targets = batches.batch(3, 512, is_final=False)
    assert inputs.shape == targets.shape == (2 * sum(MIXTURE.values()), 512)
    assert (inputs[:, 1:] == targets[:, :-1]).all()
    assert (inputs == again.batch(3, 512, is_final=False)[0]).all()
    assert (inputs != Batches(encoded, seed=2).batch(3, 512, is_final=False)[0]).any()


def test_no_window_is_seen_twice_when_the_mixture_changes() -> None:
    first_ids = {kind: np.uint16(1000 * i) for i, kind in enumerate(Kind)}
    num_tokens = 32 * WINDOW
    encoded = {
        kind: [np.repeat(np.arange(32, dtype=np.uint16) + first, WINDOW)[:num_tokens]]
        for kind, first in first_ids.items()
    }
    batches = Batches(encoded, seed=0)
    seen = [batches.batch(step, WINDOW, is_final=step >= 2)[0][:, 1] for step in range(4)]
    assert len(set(np.concatenate(seen).tolist())) == 4 * sum(MIXTURE.values())
    assert sum(MIXTURE.values()) == sum(FINAL_MIXTURE.values())


def test_free_functions_are_copied_more_often_than_methods(module: SourceFile) -> None:
    texts = documents([module], seed=0)
    assert texts[Kind.LIBRARY] == [MODULE]
    assert [text.split("(")[0] for text in texts[Kind.FUNCTION]] == ["def single"] * 3 + [
        "def deposit"
    ]
    assert len(texts[Kind.CHAT]) == 4


def test_long_functions_stand_in_their_files_alone() -> None:
    body = "    x = 1\n" * 40
    texts = documents([SourceFile("m.py", f'def f():\n    """Long."""\n{body}')], seed=0)
    assert not texts[Kind.FUNCTION]
    assert not texts[Kind.CHAT]


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 16), (2, 16, 4)])
def test_orthogonalized_matrices_have_singular_values_near_one(
    shape: tuple[int, int, int],
) -> None:
    torch.manual_seed(0)
    singular = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
    assert float(singular.min()) > 0.4
    assert float(singular.max()) < 1.4


def test_muon_descends_a_quadratic() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(8, 16))
    target = torch.randn(8, 16)
    optimizer = Muon([weight], lr=0.05, weight_decay=0.0)
    losses = []
    for _ in range(120):
        loss = (weight - target).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]


def test_the_learning_rate_rises_holds_and_falls_to_zero() -> None:
    rates = [train.learning_rate(p) for p in (0.0, 0.01, 0.02, 0.4, 0.7, 1.0, 1.2)]
    peak = train.LEARNING_RATE
    assert rates == pytest.approx([0.0, peak / 2, peak, peak, peak / 2, 0.0, 0.0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("def f():\n    pass", "def f():\n    pass"),
        ("def f():\n    pass\n\n\nx = 1\n", "def f():\n    pass\n\n"),
        ("def f():\nx = 1", "def f():"),
    ],
)
def test_a_function_ends_at_the_first_line_at_the_margin(text: str, expected: str) -> None:
    assert first_function(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('def f():\n    """Doc."""\n    return 1\nx = (', True),
        ('def f():\n    """Doc.\n\n    More.\n    """\n    return 1', True),
        ('def f():\n    """Doc."""\n', False),
        ('def f():\n    """   """\n    return 1\n', False),
        ("def f():\n    return 1\n", False),
        ('def f():\n    """Doc\n    return 1\n', False),
        ('def f():\n    """Doc."""\n    return (\n', False),
        ('def f():\n    """Doc."""\n    break\n', False),
        ('x = """Doc."""', False),
        ("", False),
        ("\0", False),
    ],
)
def test_a_documented_function_has_a_closed_docstring_and_a_body(text: str, expected: bool) -> None:
    assert is_documented_function(text) is expected


def test_a_function_that_was_cut_short_has_not_ended() -> None:
    function = 'def f():\n    """Doc."""\n    return 1'
    assert not has_ended(function)
    assert has_ended(f"{function}\n<|endoftext|>")


def test_the_tokenizer_learns_merges_and_keeps_every_byte() -> None:
    tokenizer = train_tokenizer(["def add(a, b):\n    return a + b\n"] * 50)
    text = "def add(x):\n    ÿ\0"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert "Ġreturn" in tokenizer.get_vocab()


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_leaves_a_folder_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = source_files()
    held_out = [f for f in files if f.is_validation and len(f.text) < 12_000]
    read = [f for f in files if not f.is_validation and f.path.startswith(("a", "test/test_a"))]
    monkeypatch.setattr(train, "source_files", lambda: held_out + read)
    monkeypatch.setattr(evaluate, "NUM_COMPLETIONS", 2)
    flags = ["--no-compile", "--checkpoint-dir", str(tmp_path / "run"), "--output"]
    flags += [str(tmp_path / "model")]
    train.main(["--minutes", "0.01", *flags])
    stopped_at = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    train.main(["--minutes", str(stopped_at["elapsed_s"] / 60 + 0.01), *flags])
    ended_at = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert ended_at["step"] > stopped_at["step"] >= 1
    model, _ = evaluate.load(tmp_path / "model")
    assert model.num_parameters() > 6e6
