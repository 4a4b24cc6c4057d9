"""RoBERTa, XLM-RoBERTa, CamemBERT and BERT checkpoints made long (Beltagy, Peters, Cohan 2020, arXiv 2004.05150, section 5)."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longformer_triton.heads.masked_lm import LongformerForMaskedLM
from longformer_triton.heads.multiple_choice import LongformerForMultipleChoice
from longformer_triton.heads.question_answering import LongformerForQuestionAnswering
from longformer_triton.heads.sequence_classification import LongformerForSequenceClassification
from longformer_triton.heads.token_classification import LongformerForTokenClassification
from longformer_triton.model import conversion, conversion_files
from longformer_triton.model.atomic import write_together
from longformer_triton.model.base import LongformerPreTrainedModel
from longformer_triton.model.config import LongformerConfig
from longformer_triton.model.files import PLACE_OPTIONS, CheckpointError, locate, read_weights, stale_weights
from longformer_triton.model.loading import Report, assemble
from longformer_triton.model.longformer import LongformerModel

_log = logging.getLogger(__name__)
_CLASSES: dict[str, type[LongformerPreTrainedModel]] = {
    model.__name__: model
    for model in (
        LongformerModel,
        LongformerForMaskedLM,
        LongformerForSequenceClassification,
        LongformerForMultipleChoice,
        LongformerForTokenClassification,
        LongformerForQuestionAnswering,
    )
}
_POOLER = f"{LongformerPreTrainedModel.base_model_prefix}.{conversion.POOLER}"
_MAX_SHARD_SIZE = "5GB"


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        model: the result, in evaluation mode.
        source: what the source was: its class, or its model_type.
        learned: positions that the source had learned.
        report: which parameters are copies, new, or were left out.
        tokenizer: names of the tokenizer files that were written.
        takes_text: whether this package's tokenizer reads them.
        notes: what a user should know besides, a sentence each.
    """

    model: LongformerPreTrainedModel
    source: str
    learned: int
    report: Report
    tokenizer: list[str]
    takes_text: bool
    notes: list[str]

    def as_text(self) -> str:
        """The whole of it, a line for each thing."""
        config = self.model.config
        layers = config.num_hidden_layers
        longest = self.model.base_model.embeddings.longest
        windows = sorted(set(config.windows()))
        size = f"{self.model.num_parameters():,} parameters, {str(self.model.dtype).removeprefix('torch.')}"
        lines = [
            f"model: {self.source} -> {type(self.model).__name__}, {layers} layer{'' if layers == 1 else 's'}, {size}",
            f"positions: {self.learned} learned ones tiled to {longest}, the most tokens that a text may have",
            f"attention window: {', '.join(map(str, windows))} tokens, both sides together",
            f"global projections: {len(self.report.copied)} parameters, copied from the local ones",
        ]
        if self.report.new:
            lines.append(f"new, to be trained: {', '.join(self.report.new)}")
        if self.report.unused:
            lines.append(f"in the source, not used: {', '.join(self.report.unused)}")
        if self.tokenizer:
            lines.append(f"tokenizer: {', '.join(self.tokenizer)}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def convert_to_longformer(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str] | None = None,
    *,
    max_positions: int = 4098,
    attention_window: int | list[int] = 512,
    dtype: torch.dtype | str | None = "auto",
    architecture: str | None = None,
    sep_token_id: int | None = None,
    overwrite: bool = False,
    **hub_options: Any,
) -> LongformerPreTrainedModel:
    """Make a Longformer of a RoBERTa, XLM-RoBERTa, CamemBERT or BERT checkpoint (arXiv 2004.05150, section 5).

    Learned positions are tiled, global projections begin as copies of the local ones, everything else is kept; the head too, if
    Longformer has that task. Wherever the window covers a text that the source could read, the result computes what the source
    does. It is meant to be trained on, first of all on the source's own task over long texts.

    BERT's texts have to be padded on the right, as is usual: here positions count real tokens, there all of them.

    Args:
        source: a checkpoint directory (config.json, and weights as safetensors or pytorch_model.bin, whole or in shards), or a
            name on the hub.
        destination: where to write config.json, the weights and the source's tokenizer files, all at once: a new or empty
            directory. None writes nothing.
        max_positions: rows of the position table; texts may have max_positions - pad_token_id - 1 tokens (4096 with RoBERTa's
            pad_token_id of 1, 4097 with BERT's of 0).
        attention_window: even number of tokens, both sides together; one for all layers or one for each.
        dtype: of the parameters; "auto" is the source's, None float32.
        architecture: the class to make, such as "LongformerForQuestionAnswering"; None is the one of the source's task, or
            LongformerModel. A head that the source does not have is new.
        sep_token_id: by which question answering and multiple choice find their global tokens; None is what the source's
            configuration or tokenizer says.
        overwrite: whether ``destination`` may be that of another Longformer, which is then replaced.
        hub_options: ``subfolder``, or options of the hub (revision, token, cache_dir, local_files_only, force_download).

    Returns:
        The model in evaluation mode, of the class ``architecture``.

    Raises:
        CheckpointError: the source is missing, damaged or of another kind; the destination holds something that would be lost.
        NotImplementedError: a decoder, relative positions, or a head that would compute something else.
        ValueError, TypeError: sizes, windows or an argument do not fit. Nothing has been written then.

    Example:
        >>> from longformer_triton import convert_to_longformer
        >>> model = convert_to_longformer("roberta-base", "roberta-base-4096", attention_window=256)  # doctest: +SKIP
    """
    done = convert(
        source,
        destination,
        max_positions=max_positions,
        attention_window=attention_window,
        dtype=dtype,
        architecture=architecture,
        sep_token_id=sep_token_id,
        overwrite=overwrite,
        **hub_options,
    )
    unexpected = done.report.new or done.report.unused or done.notes
    _log.log(logging.WARNING if unexpected else logging.INFO, "%s converted:\n%s", source, done.as_text())
    return done.model


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str] | None,
    *,
    max_positions: int,
    attention_window: int | list[int],
    dtype: torch.dtype | str | None,
    architecture: str | None,
    sep_token_id: int | None,
    overwrite: bool,
    **hub_options: Any,
) -> Conversion:
    """:func:`convert_to_longformer`, with all there is to say about it instead of a log."""
    wrong = sorted(set(hub_options) - set(PLACE_OPTIONS))
    if wrong:
        raise TypeError(f"{', '.join(wrong)}: got unexpected arguments, expected none besides {', '.join(PLACE_OPTIONS)}.")
    if architecture is not None and architecture not in _CLASSES:
        raise ValueError(f"architecture: got {architecture!r}, expected None or one of {', '.join(_CLASSES)}.")
    folder = locate(source, also=conversion_files.TOKENIZER_FILES, **hub_options)
    entries = conversion.read_source(folder)
    target = None if destination is None else conversion_files.check_destination(destination, folder, overwrite)
    separator = conversion_files.separator(entries, folder) if sep_token_id is None else sep_token_id
    config = conversion.configuration(entries, attention_window, separator)
    conversion.check_positions(max_positions, config)
    first = config.pad_token_id + 1
    learned = config.max_position_embeddings - first
    tokenizer = {} if target is None else conversion_files.tokenizer_writers(folder, entries, max_positions - first)
    trouble = _tokenizer_trouble(folder)
    notes = [*([] if trouble is None else [trouble]), *_notes(entries, config)]

    tensors = read_weights(folder)
    own = conversion.class_of(entries, tensors, architecture)
    chosen = architecture or own
    # Of another task's head nothing is taken, whatever its parameters are called.
    head = chosen if chosen == own else conversion.ENCODER
    conversion.check_head(entries, head)
    named, left_out = conversion.renamed(tensors, entries["model_type"], head, first)
    model, report = _assembled(_CLASSES[chosen], config, named, folder, dtype)
    poolers = {name: named[name.removeprefix("longformer.")] for name in report.unused if name.startswith(_POOLER)}
    report.unused = left_out + [name for name in report.unused if name not in poolers]
    model.resize_position_embeddings(max_positions)
    config.architectures = [chosen]
    if target is not None:
        # Other classes read the pooler that this one does without.
        state = {**model.state_dict(), **{name: tensor.to(model.dtype) for name, tensor in poolers.items()}}
        files = {**model.writers(state, _MAX_SHARD_SIZE), **tokenizer}
        others = [name for name in conversion_files.TOKENIZER_FILES if name not in files]
        write_together(target, files, remove=[*stale_weights(target, files), *others])
    kind = str((entries.get("architectures") or [entries["model_type"]])[0])
    return Conversion(model, kind, learned, report, sorted(tokenizer), bool(tokenizer) and trouble is None, notes)


def _assembled(
    model_class: type[LongformerPreTrainedModel],
    config: LongformerConfig,
    named: dict[str, Tensor],
    folder: Path,
    dtype: torch.dtype | str | None,
) -> tuple[LongformerPreTrainedModel, Report]:
    """The model, with as many positions as the source, and what it took; its encoder has to be whole.

    Raises:
        CheckpointError: parameters of the encoder are missing, or some are of another shape.
    """
    has_pooler = any(name.startswith(conversion.POOLER) for name in named)
    arguments: dict[str, Any] = {"add_pooling_layer": has_pooler} if model_class is LongformerModel else {}
    model, report = assemble(model_class, config, named, folder, dtype, ignore_mismatched_sizes=True, **arguments)
    if report.mismatched:
        shapes = ", ".join(f"{name} {theirs} instead of {ours}" for name, theirs, ours in report.mismatched[:3])
        raise CheckpointError(
            f"{folder}: parameters of another shape than its config.json says: {shapes}. Correct that file, or get it again."
        )
    encoder = ("embeddings.", "encoder.")
    missing = [name for name in report.new if name.removeprefix("longformer.").startswith(encoder)]
    if missing:
        raise CheckpointError(
            f"{folder}: parameters of the encoder are missing, such as {missing[0]}: correct num_hidden_layers in its "
            "config.json if that is wrong, or get the checkpoint again."
        )
    return model, report


def _tokenizer_trouble(folder: Path) -> str | None:
    """Why this package's tokenizer does not read the one beside the source, and what does; None if it does."""
    from longformer_triton.tokenization import LongformerTokenizer

    if not any((folder / name).is_file() for name in conversion_files.VOCABULARIES):
        return f"{folder} holds no tokenizer: load the one that the source was trained with from where it is."
    try:
        LongformerTokenizer.from_pretrained(folder)
    except (ValueError, TypeError) as error:
        return (
            "this package's LongformerTokenizer, a byte-level BPE, does not read the source's tokenizer, so that commands that "
            "take text do not work with it: load it with transformers' AutoTokenizer, from the source or from the result, and "
            f"give the model its ids. ({error})"
        )
    return None


def _notes(entries: dict[str, Any], config: LongformerConfig) -> list[str]:
    """What could not be kept as it was, or found out."""
    notes = []
    if config.sep_token_id is None:
        notes.append(
            "sep_token_id is unknown, which question answering and multiple choice need to find their global tokens: pass "
            "sep_token_id, or a global_attention_mask to those models."
        )
    dropout = entries.get("classifier_dropout")
    if dropout is not None and dropout != config.hidden_dropout_prob:
        notes.append(
            f"classifier_dropout of {dropout} is not kept: heads drop with hidden_dropout_prob ({config.hidden_dropout_prob})."
        )
    return notes
