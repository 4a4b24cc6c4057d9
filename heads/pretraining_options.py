"""What a run of pretraining is asked to do, refused before anything is written if it cannot."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longformer_triton.heads import packing
from longformer_triton.heads.pretraining_files import last_checkpoint

PACKAGES = ("accelerate", "matplotlib")
RUN = "run.json"
_PRECISIONS = ("no", "fp16", "bf16")
# What may change from one start of a run to the next: how often it saves and measures, and what changes no more than rounding
# and the values that dropout takes. Rows a step are compared, however they are divided.
_FREE = ("out", "save_every", "keep", "evaluate_every", "gradient_checkpointing", "cpu", "batch_size", "accumulation")
TOKENS, VALIDATION_TOKENS, CHECKPOINTS = "tokens", "validation-tokens", "checkpoints"
_TEXTS = {TOKENS: ("files", "form"), VALIDATION_TOKENS: ("validation_files", "form")}


@dataclasses.dataclass(frozen=True)
class PretrainingOptions:
    """Masked language modelling over text files (arXiv 2004.05150, section 5).

    The defaults are for a short run on one device: they are not the paper's, which trains on many more tokens a step, for
    longer.

    Attributes:
        model: a checkpoint directory in Hugging Face's layout, or a name on the hub.
        files: the texts, in UTF-8.
        out: folder of the run. The same options and the same folder go on from the last checkpoint there.
        tokenizer: a directory or a name; None is ``model``.
        form: of the files: "text" (one text), "lines" (a text a line) or "jsonl" (a line is a JSON string, or an object with a
            "text"); None: "jsonl" by the suffix, else "text".
        seq_len: tokens in a row, ``<s>`` and ``</s>`` included; None: as many as the model has positions for.
        batch_size: rows that a process computes at once.
        accumulation: such batches to a step.
        max_steps: steps of the optimiser.
        learning_rate: the highest, reached after ``warm_up`` steps; from there it falls linearly to zero at ``max_steps``.
        warm_up: steps; None: a tenth of ``max_steps``, 500 at most.
        weight_decay: of AdamW, not on biases and layer norms.
        max_grad_norm: longer gradients are cut to this norm.
        mask_probability: with which each token is chosen.
        mixed_precision: "no", "fp16" or "bf16"; None: what ``accelerate launch`` says, else "no".
        gradient_checkpointing: whether layers compute their activations again in backward.
        validation_share: of the rows, drawn at random, that are held out.
        validation_files: held-out texts instead.
        evaluate_every: steps; None: whenever a checkpoint is saved.
        save_every: steps from checkpoint to checkpoint; the last step has one too.
        keep: how many checkpoints stay.
        seed: of the order of rows, masked tokens and dropout.
        cpu: whether to leave GPUs alone.
    """

    model: str | Path
    files: Sequence[Path]
    out: Path
    tokenizer: str | Path | None = None
    form: str | None = None
    seq_len: int | None = None
    batch_size: int = 1
    accumulation: int = 1
    max_steps: int = 3000
    learning_rate: float = 3e-5
    warm_up: int | None = None
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    mask_probability: float = 0.15
    mixed_precision: str | None = None
    gradient_checkpointing: bool = False
    validation_share: float = 0.02
    validation_files: Sequence[Path] = ()
    evaluate_every: int | None = None
    save_every: int = 500
    keep: int = 2
    seed: int = 0
    cpu: bool = False

    @property
    def warm_up_steps(self) -> int:
        """How many steps the learning rate rises for."""
        return min(500, self.max_steps // 10) if self.warm_up is None else self.warm_up

    def learning_rate_factor(self, step: int) -> float:
        """The share of ``learning_rate`` at a step, counted from 0: rising, then falling to zero."""
        if step < self.warm_up_steps:
            return (step + 1) / self.warm_up_steps
        return max(0.0, (self.max_steps - step) / (self.max_steps - self.warm_up_steps))

    def validate(self) -> None:
        """Refuse what cannot run.

        Raises:
            ValueError: an option does not fit, a file is not there, or a package is not installed.
        """
        missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(f'{", ".join(missing)}: not installed; run: pip install "longformer-triton[train]"')
        for name in ("batch_size", "accumulation", "max_steps", "save_every", "keep"):
            _at_least(name, getattr(self, name), 1)
        for name, least in (("seq_len", 3), ("evaluate_every", 1), ("warm_up", 0)):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), least)
        _at_least("seed", self.seed, 0)
        if self.warm_up_steps >= self.max_steps:
            raise ValueError(f"warm_up: got {self.warm_up_steps} steps, expected fewer than max_steps, {self.max_steps}.")
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected more than 0.")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay: got {self.weight_decay}, expected 0 or more.")
        if not 0 < self.mask_probability < 1:
            raise ValueError(f"mask_probability: got {self.mask_probability}, expected between 0 and 1, such as 0.15.")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share: got {self.validation_share}, expected 0 or more, and less than 1.")
        if self.mixed_precision not in (None, *_PRECISIONS):
            raise ValueError(f"mixed_precision: got {self.mixed_precision!r}, expected one of {', '.join(_PRECISIONS)}.")
        if not self.files:
            raise ValueError("files: got none, expected texts in UTF-8.")
        packing.check_files("files", self.files, self.form)
        packing.check_files("validation_files", self.validation_files, self.form)
        self._check_out()

    def _check_out(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"out: got {self.out}, which is a file, expected a folder.")
        if self.out.is_dir() and any(self.out.iterdir()) and not (self.out / RUN).exists():
            raise ValueError(
                f"out: got {self.out}, which holds other files, expected an empty folder, or that of an earlier run."
            )

    def identity(self, processes: int) -> dict[str, Any]:
        """What the numbers of a run follow from, as JSON has it."""
        named = {name: value for name, value in dataclasses.asdict(self).items() if name not in _FREE}
        named["rows_a_step"] = self.batch_size * self.accumulation * processes
        named["processes"] = processes
        for name in ("files", "validation_files"):
            named[name] = [str(Path(path).resolve()) for path in named[name]]
        return json.loads(json.dumps(named, default=str))

    def check_same_run(self, processes: int) -> None:
        """Refuse to go on with a run of other options. Those that nothing has come of yet may change: a first start may fail.

        Raises:
            ValueError: which options, and what they were.
        """
        path = self.out / RUN
        if not path.exists():
            return
        before, now = json.loads(path.read_text(encoding="utf-8")), self.identity(processes)
        settled = {name for folder, names in _TEXTS.items() if packing.holds_tokens(self.out / folder) for name in names}
        if last_checkpoint(self.out / CHECKPOINTS) is not None:
            settled = set(now)
        changed = [
            f"{name} (was {before.get(name)}, is {now[name]})"
            for name in now
            if name in settled and before.get(name) != now[name]
        ]
        if changed:
            raise ValueError(
                f"out: {self.out} holds a run with other options: {'; '.join(changed)}. Repeat them to go on with it, or take "
                "another folder."
            )

    def write_identity(self, processes: int) -> None:
        """Make the folder, and note in it what is run there."""
        self.out.mkdir(parents=True, exist_ok=True)
        draft = self.out / f".{RUN}.new"
        draft.write_text(json.dumps(self.identity(processes), indent=2) + "\n", encoding="utf-8")
        draft.replace(self.out / RUN)


def _at_least(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: got {value!r}, expected a whole number, {least} or more.")
