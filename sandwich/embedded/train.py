"""Train the embedded model: `python -m sandwich.embedded.train --help`.

The learning rate follows the share of the time budget that has passed, so a run ends on time on any
machine and under any load. A stopped run goes on from its last checkpoint when it is started again.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from sandwich.embedded import MODEL_DIR
from sandwich.embedded.batches import (
    Batches,
    documents,
    encode,
    end_of_text_id,
    tokens_per_batch,
    training_tokenizer_texts,
)
from sandwich.embedded.completion import complete, first_function
from sandwich.embedded.corpus import Kind, SourceFile, source_files
from sandwich.embedded.evaluate import evaluate, load, print_metrics
from sandwich.embedded.export import write_card, write_model
from sandwich.embedded.muon import Muon
from sandwich.embedded.network import llama_config, new_model, token_losses, total_loss
from sandwich.embedded.tokens import train_tokenizer

LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.1
WARM_UP = 0.02  # share of the budget with a rising learning rate
FINAL_PART = 0.3  # share of the budget, at the end, with mostly functions
DECAY = 0.6  # share of the budget, at the end, with a falling one
MAX_GRAD_NORM = 1.0
SHORT_LENGTH, LONG_LENGTH = 512, 1024
LONG_EVERY = 4  # one step in four sees the whole context
LOG_EVERY, CHECKPOINT_EVERY = 20, 60  # steps
EXAMPLE_TOKENS = 48  # of the greedy completion on the card
PROBE_TOKENS = 16 * 1024  # of the validation set, for the figure shown while training


@dataclass
class Progression:
    """How far a run has come; what a checkpoint holds beside the weights."""

    step: int = 0
    elapsed_s: float = 0.0


def learning_rate(progress: float) -> float:
    """Trapezoid over the share of the budget that has passed, 0 to 1."""
    return LEARNING_RATE * max(0.0, min(1.0, progress / WARM_UP, (1.0 - progress) / DECAY))


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim == 1]
    adamw = torch.optim.AdamW(
        [
            {"params": [model.model.embed_tokens.weight], "weight_decay": WEIGHT_DECAY},
            {"params": norms, "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
        betas=(0.9, 0.95),
    )
    return [Muon(matrices, LEARNING_RATE, WEIGHT_DECAY), adamw]


class Run:
    """One training run: corpus, model, optimizers and how far they have come."""

    def __init__(self, args: argparse.Namespace, console: Console) -> None:
        self.args, self.console = args, console
        self.checkpoint_path: Path = args.checkpoint_dir / "checkpoint.pt"
        files = source_files()
        self.validation_files = [f for f in files if f.is_validation]
        texts = documents([f for f in files if not f.is_validation], args.seed)
        self.tokenizer = self._tokenizer(texts)
        encoded = {kind: encode(self.tokenizer, texts[kind]) for kind in Kind}
        for kind, ids in encoded.items():
            console.print(f"{kind.value}: {len(ids)} documents, {sum(map(len, ids))} tokens")
        self.batches = Batches(encoded, args.seed)
        self.probe = probe_ids(self.tokenizer, self.validation_files)
        self.model = new_model(llama_config(end_of_text_id(self.tokenizer)), args.seed)
        self.optimizers = optimizers(self.model)
        self.at = Progression()
        if self.checkpoint_path.exists():
            self._load()

    def train(self) -> None:
        """Step until the budget is spent; checkpoint on the way and at the end."""
        loss_of = (
            token_losses if self.args.no_compile else torch.compile(token_losses, dynamic=False)
        )
        budget_s = self.args.minutes * 60
        with progress_bar(self.console) as bar:
            task = bar.add_task("training", total=budget_s)
            while self.at.elapsed_s < budget_s:
                started = time.monotonic()
                loss = self._step(loss_of, self.at.elapsed_s / budget_s)
                self.at.step += 1
                self.at.elapsed_s += time.monotonic() - started
                bar.update(task, completed=self.at.elapsed_s)
                if self.at.step % LOG_EVERY == 0:
                    self._log(loss)
                if self.at.step % CHECKPOINT_EVERY == 0:
                    self._save()
        self._save()

    def _step(self, loss_of: Callable[..., torch.Tensor], progress: float) -> float:
        is_long = self.at.step % LONG_EVERY == LONG_EVERY - 1
        length = LONG_LENGTH if is_long else SHORT_LENGTH
        inputs, targets = map(
            torch.from_numpy,
            self.batches.batch(self.at.step, length, is_final=progress >= 1 - FINAL_PART),
        )
        loss = loss_of(self.model, inputs, targets).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(progress)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def _log(self, loss: float) -> None:
        seconds_per_step = self.at.elapsed_s / self.at.step
        line = (
            f"step {self.at.step}  {self.at.elapsed_s / 60:.1f} min  loss {loss:.3f}"
            f"  {tokens_per_batch() / seconds_per_step:.0f} tok/s"
        )
        if self.at.step % CHECKPOINT_EVERY == 0:
            nats, count = total_loss(self.model, self.probe, autocast=True)
            line += f"  validation loss {nats / count:.3f}"
        self.console.print(line)

    def _tokenizer(self, texts: dict[Kind, list[str]]) -> Tokenizer:
        path = self.args.checkpoint_dir / "tokenizer.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            train_tokenizer(training_tokenizer_texts(texts)).save(str(path))
        return Tokenizer.from_file(str(path))

    def _save(self) -> None:
        """Replace the checkpoint at once, so that a kill in between leaves the old one."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.at.step,
            "elapsed_s": self.at.elapsed_s,
        }
        partial = self.checkpoint_path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint_path)

    def _load(self) -> None:
        state = torch.load(self.checkpoint_path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.at = Progression(state["step"], state["elapsed_s"])
        self.console.print(f"going on at step {self.at.step}")


def probe_ids(tokenizer: Tokenizer, files: list[SourceFile]) -> np.ndarray:
    """The first PROBE_TOKENS ids of the held-out library files."""
    texts = [f.text for f in files if f.kind is Kind.LIBRARY]
    return np.concatenate(encode(tokenizer, texts))[:PROBE_TOKENS]


def progress_bar(console: Console) -> Progress:
    """A bar over the time budget."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    return Progress(*columns, TimeElapsedColumn(), console=console)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m sandwich.embedded.train",
        description="Train the embedded model on the standard library's source, or measure it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=70.0, help="time budget of the training")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and chats")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads")
    parser.add_argument("--no-compile", action="store_true", help="do without torch.compile")
    parser.add_argument(
        "--checkpoint-dir",
        type=Path,
        default=Path("embedded-training"),
        help="checkpoint and tokenizer; a run goes on from what lies here",
    )
    parser.add_argument("--output", type=Path, default=MODEL_DIR, help="folder of the model")
    parser.add_argument(
        "--evaluate", action="store_true", help="only measure the model in --output, and print it"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Train and export, or evaluate."""
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    console = Console()
    if args.evaluate:
        print_metrics(console, evaluate(args.output, source_files()))
        return
    run = Run(args, console)
    run.train()
    write_model(args.output, run.model, run.tokenizer, run.validation_files)
    metrics = evaluate(args.output, source_files())
    model, tokenizer = load(args.output)
    example = first_function(complete(model, tokenizer, max_new_tokens=EXAMPLE_TOKENS)[0]).rstrip()
    write_card(args.output, model, metrics, example, run.at.step, run.at.elapsed_s / 60)
    print_metrics(console, metrics)


if __name__ == "__main__":
    main()
