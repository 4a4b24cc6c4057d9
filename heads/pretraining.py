"""Continued pretraining: masked language modelling over text files, on one process or many (arXiv 2004.05150, section 5).

Nothing is global, as in the paper, so the global projections learn nothing: they are frozen, which saves their optimiser state,
and where they begin as copies of the local ones (a converted RoBERTa's), they end as copies too. The loss is the mean over all
masked tokens of a step, whichever process and batch they are in, and only they go through the language model's head.
"""

from __future__ import annotations

import contextlib
import math
import pickle
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from longformer_triton.heads import packing
from longformer_triton.heads import pretraining_files as files
from longformer_triton.heads.masked_lm import LongformerForMaskedLM
from longformer_triton.heads.pretraining_data import MaskedBatch, TokenMasker, TrainingRows, ValidationRows, held_out
from longformer_triton.heads.pretraining_options import CHECKPOINTS, TOKENS, VALIDATION_TOKENS, PretrainingOptions
from longformer_triton.tokenization import LongformerTokenizer

# AdamW as RoBERTa has it (arXiv 1907.11692, appendix).
_BETAS, _EPSILON = (0.9, 0.98), 1e-6
_UNDECAYED = ("bias", "LayerNorm.weight", "layer_norm.weight")
_COPY_OF = {"query_global": "query", "key_global": "key", "value_global": "value"}


class MaskedTokenLoss(nn.Module):
    """The sum of the losses of masked tokens; the head sees those tokens alone, which are a seventh of all."""

    def __init__(self, model: LongformerForMaskedLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, places: Tensor, targets: Tensor) -> Tensor:
        """A number in float32 from the tensors of a :class:`MaskedBatch`."""
        states = self.model.longformer(input_ids, attention_mask=attention_mask).last_hidden_state
        scores = self.model.lm_head(states.flatten(0, 1)[places])
        return cross_entropy(scores.float(), targets, reduction="sum")


def pretrain(options: PretrainingOptions, console: Console | None = None, *, prepare_only: bool = False) -> Path | None:
    """Train, from the last checkpoint in ``options.out`` if there is one. Seeds the random numbers of the process.

    In ``options.out`` appear ``tokens/``, ``checkpoints/``, ``log.csv``, ``loss.png`` and, at the end, ``model/`` with its
    tokenizer. With several processes all have to see the folder.

    Args:
        options: what to do.
        console: where progress is shown.
        prepare_only: stop when the texts are cut into tokens. A large corpus takes longer than processes wait for each other.

    Returns:
        The directory of the trained model, or None.

    Raises:
        ValueError, TypeError: options that do not fit, or a checkpoint that cannot be read; nothing has been written then.
        NotImplementedError: a checkpoint that no Longformer computes; nothing has been written then.
        FloatingPointError: the loss is no number any more.
    """
    options.validate()
    tokenizer = LongformerTokenizer.from_pretrained(options.tokenizer or options.model)
    model = LongformerForMaskedLM.from_pretrained(options.model)
    seq_len = _checked_length(options, model, tokenizer)
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    accelerator = Accelerator(mixed_precision=options.mixed_precision, cpu=options.cpu)
    options.check_same_run(accelerator.num_processes)
    set_seed(options.seed, device_specific=True)
    console = console or Console()
    if not accelerator.is_main_process:
        console = Console(quiet=True)
    rows, validation = _texts(options, tokenizer, seq_len, accelerator, console)
    return None if prepare_only else _Run(options, accelerator, model, tokenizer, rows, validation, console).train()


def _checked_length(options: PretrainingOptions, model: LongformerForMaskedLM, tokenizer: LongformerTokenizer) -> int:
    """The length of rows.

    Raises:
        ValueError: the model has no positions for it, or another vocabulary than the tokenizer.
    """
    longest = model.longformer.embeddings.longest
    if options.seq_len is not None and options.seq_len > longest:
        raise ValueError(
            f"seq_len: got {options.seq_len}, expected at most {longest}, for which the model has positions; longformer-triton "
            "convert, or model.resize_position_embeddings(n), gives it more."
        )
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"tokenizer: got {len(tokenizer)} tokens, expected at most vocab_size, {model.config.vocab_size}: give the "
            "model's tokenizer, or call model.resize_token_embeddings(len(tokenizer)) and save."
        )
    for name in ("bos_token", "eos_token", "pad_token", "mask_token"):
        if getattr(tokenizer, name) is None:
            raise ValueError(f"tokenizer: got one without a {name}, expected one that has it.")
    if tokenizer.pad_token_id != model.config.pad_token_id:
        raise ValueError(
            f"tokenizer: got pad_token_id {tokenizer.pad_token_id}, expected the model's, {model.config.pad_token_id}: "
            "positions are counted over what is no padding."
        )
    return longest if options.seq_len is None else options.seq_len


def _texts(
    options: PretrainingOptions, tokenizer: LongformerTokenizer, seq_len: int, accelerator: Any, console: Console
) -> tuple[TrainingRows, ValidationRows | None]:
    """The rows to learn from and those held out. The main process writes tokens, and the others wait."""
    if accelerator.is_main_process:
        options.write_identity(accelerator.num_processes)

    def packed(paths: Any, name: str, what: str) -> packing.PackedRows:
        sizes = sum(path.stat().st_size for path in paths)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with accelerator.main_process_first(), Progress(*columns, console=console) as progress:
            task = progress.add_task(f"{what} to tokens", total=sizes)
            stream = packing.tokenized(
                tokenizer, paths, options.out / name, options.form, lambda count: progress.advance(task, count)
            )
            progress.update(task, completed=sizes)
        assert tokenizer.bos_token_id is not None
        assert tokenizer.eos_token_id is not None
        return packing.PackedRows(stream, seq_len, tokenizer.bos_token_id, tokenizer.eos_token_id)

    masker = TokenMasker(tokenizer, options.mask_probability, options.seed)
    rows = packed(options.files, TOKENS, "texts")
    if options.validation_files:
        others = packed(options.validation_files, VALIDATION_TOKENS, "held-out texts")
        return TrainingRows(rows, torch.arange(len(rows)), masker), ValidationRows(others, torch.arange(len(others)), masker)
    learned, kept_back = held_out(len(rows), options.validation_share, options.seed)
    return TrainingRows(rows, learned, masker), ValidationRows(rows, kept_back, masker) if len(kept_back) else None


class _Run:
    """The loop, and what it writes."""

    def __init__(
        self,
        options: PretrainingOptions,
        accelerator: Any,
        model: LongformerForMaskedLM,
        tokenizer: LongformerTokenizer,
        rows: TrainingRows,
        validation: ValidationRows | None,
        console: Console,
    ) -> None:
        self.options, self.accelerator, self.console = options, accelerator, console
        self.model, self.tokenizer = model.train(), tokenizer
        self.rows, self.validation = rows, validation
        self.checkpoints = options.out / CHECKPOINTS
        state = model.state_dict()
        self.globals_are_copies = all(torch.equal(state[name], state[local]) for name, local in _copies(state))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("_global." not in name)
        if options.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        optimizer = torch.optim.AdamW(
            self._groups(), lr=options.learning_rate, betas=_BETAS, eps=_EPSILON, weight_decay=options.weight_decay
        )
        self.loss, self.optimizer = accelerator.prepare(MaskedTokenLoss(model), optimizer)
        self.start = self._resumed()
        for group in optimizer.param_groups:
            group["initial_lr"] = options.learning_rate
        # Not prepared: accelerate would step it once for each process.
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, options.learning_rate_factor, self.start - 1)

    def _groups(self) -> list[dict[str, Any]]:
        trained = [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        decayed = [parameter for name, parameter in trained if not name.endswith(_UNDECAYED)]
        others = [parameter for name, parameter in trained if name.endswith(_UNDECAYED)]
        return [{"params": decayed}, {"params": others, "weight_decay": 0.0}]

    def _resumed(self) -> int:
        """The step to go on with: 0, or that of the last checkpoint, which is loaded."""
        if self.accelerator.is_main_process:
            files.clean(self.checkpoints)
        self.accelerator.wait_for_everyone()
        found = files.last_checkpoint(self.checkpoints)
        if found is None:
            return 0
        path, step = found
        from accelerate.utils import load

        try:
            # Random states that it cannot read load_state passes over, and the curve would be another one.
            load(path / f"random_states_{self.accelerator.process_index}.pkl")
            self.accelerator.load_state(str(path))
        except (SafetensorError, pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError, KeyError) as error:
            raise ValueError(
                f"out: {path} cannot be read ({error!r}): remove it, to go on from an older checkpoint or from the start."
            ) from error
        self.console.print(f"going on from {path}")
        return step

    def train(self) -> Path:
        """The steps that are left, then the model."""
        options, accelerator = self.options, self.accelerator
        log = files.TrainingLog(options.out, self.start) if accelerator.is_main_process else None
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task("training", total=options.max_steps, completed=self.start, told="")
            for step in range(self.start + 1, options.max_steps + 1):
                row = self._step(step)
                saves = step % options.save_every == 0 or step == options.max_steps
                if self._evaluates(step, saves):
                    row["validation_loss"], row["validation_bits"] = self._evaluate(progress, step)
                if log is not None:
                    log.append(row)
                told = f"loss {row['loss']:.3f}, {row['tokens_per_second']:,.0f} tokens/s"
                progress.update(task, advance=1, told=told)
                if saves:
                    files.save_checkpoint(accelerator, self.checkpoints, step, options.keep)
                    if log is not None:
                        files.draw_curve(options.out)
        return self._save()

    def _step(self, step: int) -> dict[str, Any]:
        """One step of the optimiser, counted from 1; what the log says of it."""
        options, accelerator = self.options, self.accelerator
        began = time.perf_counter()
        batches = self._batches(step)
        # Sums over all processes: a mean of means would weigh tokens by how many others are masked beside them.
        counts = torch.tensor([sum(len(batch.targets) for batch in batches), sum(batch.tokens for batch in batches)])
        masked, tokens = accelerator.reduce(counts.to(accelerator.device), "sum").tolist()
        total = torch.zeros((), device=accelerator.device)
        for number, batch in enumerate(batches, start=1):
            waits = number < len(batches)
            with accelerator.no_sync(self.loss) if waits else contextlib.nullcontext():
                loss = self.loss(**batch.to(accelerator.device))
                # Gradients of several processes are averaged.
                accelerator.backward(loss * (accelerator.num_processes / max(1, masked)))
            total += loss.detach()
        norm = accelerator.clip_grad_norm_(self.loss.parameters(), options.max_grad_norm)
        rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        mean = float(accelerator.reduce(total, "sum")) / max(1, masked)
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"loss: got {mean} at step {step}; what is saved is not touched. Lower the learning rate, raise warm_up, or "
                "take bf16 instead of fp16."
            )
        seconds = time.perf_counter() - began
        return {
            "step": step,
            "loss": mean,
            "validation_loss": None,
            "validation_bits": None,
            "learning_rate": rate,
            "gradient_norm": float(norm),
            "tokens": tokens,
            "tokens_per_second": round(tokens / seconds, 1),
        }

    def _batches(self, step: int) -> list[MaskedBatch]:
        """This process's share of the rows of a step."""
        size, processes = self.options.batch_size, self.accelerator.num_processes
        first = (step - 1) * size * processes * self.options.accumulation + self.accelerator.process_index * size
        return [self.rows.batch(first + number * size * processes, size) for number in range(self.options.accumulation)]

    def _evaluates(self, step: int, saves: bool) -> bool:
        if self.validation is None:
            return False
        every = self.options.evaluate_every
        return saves if every is None else step % every == 0 or step == self.options.max_steps

    def _evaluate(self, progress: Progress, step: int) -> tuple[float, float]:
        """(nats, bits) for each masked token of the held-out rows."""
        assert self.validation is not None
        accelerator = self.accelerator
        sums = torch.zeros(2, dtype=torch.float64)
        self.loss.eval()
        with torch.no_grad():
            shares = self.validation.batches(self.options.batch_size, accelerator.process_index, accelerator.num_processes)
            task = progress.add_task("held-out text", total=len(shares), told="")
            for batch in shares:
                progress.advance(task)
                sums += torch.tensor([float(self.loss(**batch.to(accelerator.device))), len(batch.targets)])
        progress.remove_task(task)
        self.loss.train()
        total, count = accelerator.reduce(sums.float().to(accelerator.device), "sum").tolist()
        nats = total / max(1, count)
        bits = nats / math.log(2)
        progress.console.print(f"step {step}: held-out text {nats:.4f} nats = {bits:.4f} bits a masked token")
        return nats, bits

    def _save(self) -> Path:
        """The model, and its tokenizer, where transformers and :func:`pipeline` find them."""
        folder = self.options.out / "model"
        gathered = self.accelerator.get_state_dict(self.loss)
        if self.accelerator.is_main_process:
            state = {name.removeprefix("model."): tensor for name, tensor in gathered.items()}
            if self.globals_are_copies:
                state |= {name: state[local].clone() for name, local in _copies(state)}
            self.model.save_pretrained(folder, state_dict=state)
            self.tokenizer.save_pretrained(folder)
            self.console.print(f"saved {folder}")
        self.accelerator.wait_for_everyone()
        return folder


def _copies(state: dict[str, Tensor]) -> list[tuple[str, str]]:
    """(name of a global projection's tensor, name of the local one's)."""
    return [
        (name, name.replace(f".{ours}.", f".{local}."))
        for name in state
        for ours, local in _COPY_OF.items()
        if f".{ours}." in name
    ]
