"""Where each task puts its global tokens, and why (arXiv 2004.05150, section 3.1, "Global Attention").

A global token sees every token, and every token sees it, at a cost that grows with their number. They let a task say what the
windows alone cannot know: which tokens must gather, or spread, information of the whole text.

===========================  ===================================  =========================================================
task                         global, if no mask is given          why
===========================  ===================================  =========================================================
sequence classification      the first token, ``<s>``             the classifier reads it, so it has to have read all
question answering           the question, up to its separator    each token of the text is judged against the question
multiple choice              what follows the first separator     as transformers computes it: of (context, question and
                             pair                                 answer) the second part, which the context is read for
masked language modelling    none                                 every token is predicted from its own neighbourhood
token classification         none                                 the same; marks such as sentence starts can be added
===========================  ===================================  =========================================================

A mask that is given is taken as it is. Masked tokens are never global. Masks of one's own, for marks, intervals, stretches or
sentences, are made from encoded texts: :mod:`longformer_triton.tokenization.global_attention`.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from longformer_triton.kernels import checks
from longformer_triton.model import inputs
from longformer_triton.model.settings import check_at_least, plain

_log = logging.getLogger(__name__)


@functools.cache
def tell_nothing_is_global(where: str) -> None:
    """Warn, once for each task, that without token ids nobody knows ``where`` its global tokens begin or end."""
    _log.warning("global_attention_mask: none given, and inputs_embeds do not show where %s: nothing is global", where)


def first_token(tokens: Tensor) -> Tensor:
    """Make the first token of each text global.

    Args:
        tokens: (batch, seq_len) ids, or (batch, seq_len, hidden_size) embeddings.

    Returns:
        (batch, seq_len) int64 of 0 and 1.
    """
    mask = torch.zeros(tokens.shape[:2], dtype=torch.int64, device=tokens.device)
    mask[:, 0] = 1
    return mask


def question(input_ids: Tensor, sep_token_id: int | None, attention_mask: Tensor | None = None) -> Tensor:
    """Make everything before the first separator of each text global.

    Args:
        input_ids: (batch, seq_len); ``<s> question </s></s> text </s>``, with any number of separators after the first.
        sep_token_id: the separator.
        attention_mask: (batch, seq_len); rows that are all padding need no separator.

    Returns:
        (batch, seq_len) int64 of 0 and 1.

    Raises:
        ValueError: no separator is known, or a text has none; the latter is checked in eager mode on the CPU.
        TypeError: an argument is no tensor, or the separator no whole number.
    """
    found = _first_separator(input_ids, sep_token_id, attention_mask, missing=0)
    return (torch.arange(input_ids.shape[1], device=input_ids.device) < found[:, None]).long()


def after_first_separators(input_ids: Tensor, sep_token_id: int | None, attention_mask: Tensor | None = None) -> Tensor:
    """Make everything after the first separator and the token that follows it (its twin) global.

    Args, returns and raises as :func:`question`.
    """
    found = _first_separator(input_ids, sep_token_id, attention_mask, missing=input_ids.shape[1])
    return (torch.arange(input_ids.shape[1], device=input_ids.device) > found[:, None] + 1).long()


def _first_separator(input_ids: Tensor, sep_token_id: int | None, attention_mask: Tensor | None, missing: int) -> Tensor:
    """(batch,) position of each row's first separator, or ``missing``."""
    inputs.tensor("input_ids", input_ids)
    if attention_mask is not None:
        inputs.tensor("attention_mask", attention_mask)
        if attention_mask.shape != input_ids.shape:
            got, expected = tuple(attention_mask.shape), tuple(input_ids.shape)
            raise ValueError(f"attention_mask: got shape {got}, expected that of input_ids, {expected}.")
    if sep_token_id is None:
        raise ValueError(
            "sep_token_id: got None, expected the id of the token that separates the two parts: set model.config.sep_token_id, "
            "or pass global_attention_mask."
        )
    check_at_least("sep_token_id", plain(sep_token_id), 0)
    is_separator = input_ids == sep_token_id
    has_one = is_separator.any(1)
    if checks.should_validate(None, input_ids.device):
        needs_one = torch.ones_like(has_one) if attention_mask is None else (attention_mask != 0).any(1)
        without = (needs_one & ~has_one).nonzero().flatten().tolist()
        if without:
            raise ValueError(
                f"input_ids: row {without[0]} has 0 separators (sep_token_id {sep_token_id}), expected one at least, between "
                f"the two parts: <s> question </s></s> text </s>. ({len(without)} of {len(has_one)} rows have none.) "
                "Encode the parts as a pair, or pass global_attention_mask."
            )
    # argmax has no rule for ties in booleans; in integers the first of equals wins on every device.
    order = torch.arange(input_ids.shape[1], 0, -1, device=input_ids.device)
    return torch.where(has_one, (is_separator * order).argmax(1), missing)
