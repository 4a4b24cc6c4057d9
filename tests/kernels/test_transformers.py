"""Against the original users' implementation: transformers' LongformerSelfAttention, projections, padding, globals and maps."""

import dataclasses

import pytest
import torch

from longformer_triton.kernels import (
    AttentionPattern,
    absorbed_global_attention,
    attention_probabilities,
    longformer_attention,
    sliding_window_attention,
)

pytest.importorskip("transformers", reason="transformers is not installed")

# In float32: transformers' softmax casts to it whatever comes in, and turns float64 into NaN. A window of 2 fails there too.
HEADS, CHANNELS = 3, 4
HIDDEN = HEADS * CHANNELS


@dataclasses.dataclass(frozen=True)
class Text:
    """A batch of texts: their lengths, the global tokens of each, and transformers' total window."""

    lengths: tuple[int, ...]
    globals_: tuple[tuple[int, ...], ...]
    window: int

    @property
    def seq_len(self) -> int:
        return max(self.lengths)

    @property
    def padded_len(self) -> int:
        """Transformers pads to a multiple of the window; we do not."""
        return -(-self.seq_len // self.window) * self.window

    def masks(self, seq_len: int) -> tuple[torch.Tensor, torch.Tensor]:
        real, marked = torch.zeros(2, len(self.lengths), seq_len, dtype=torch.long)
        for sample, (length, positions) in enumerate(zip(self.lengths, self.globals_, strict=True)):
            real[sample, :length] = 1
            marked[sample, list(positions)] = 1
        return real, marked


TEXTS = {
    "no_globals": Text((24, 24), ((), ()), 4),
    "classification": Text((24, 17), ((0,), (0,)), 4),
    "odd_lengths": Text((23, 9, 1), ((0,), (0,), (0,)), 6),
    "differing_counts": Text((31, 30, 11), ((0, 5, 6, 30), (7,), ()), 8),
    "differing_positions": Text((29, 29), ((3, 4, 5), (0, 14, 28)), 4),
    "neighbouring_globals": Text((40, 33), ((0, 1, 2, 3, 4, 5, 6, 7), (20, 21, 22)), 10),
    "all_global": Text((12, 7), (tuple(range(12)), tuple(range(7))), 4),
    "one_sample_without": Text((20, 20), ((), (4, 19)), 4),
    "shorter_than_the_window": Text((13, 5), ((0,), (2,)), 32),
    "several_chunks": Text((127, 101), ((0, 64), (100,)), 16),
}


def random_text(seed: int) -> Text:
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    lengths = tuple(draw(1, 70) for _ in range(draw(1, 3)))
    globals_ = tuple(tuple(torch.randperm(n, generator=generator)[: draw(0, min(n, 6))].sort()[0].tolist()) for n in lengths)
    return Text(lengths, globals_, 2 * draw(2, 12))


TEXTS |= {f"random_{seed}": random_text(seed) for seed in range(8)}
each_text = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)


def original_layer(text: Text) -> torch.nn.Module:
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    torch.manual_seed(13)
    config = LongformerConfig(
        hidden_size=HIDDEN, num_attention_heads=HEADS, attention_window=[text.window], attention_probs_dropout_prob=0.0
    )
    layer = LongformerSelfAttention(config, layer_id=0).eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def run_original(layer: torch.nn.Module, text: Text, hidden: torch.Tensor):
    """(output, local map, global map) as LongformerModel and its encoder arrange them."""
    real, marked = text.masks(text.padded_len)
    padded = torch.nn.functional.pad(hidden, (0, 0, 0, text.padded_len - text.seq_len))
    merged = (real * (1 + marked) - 1).float() * 10000  # negative: padding, 0: local, positive: global
    is_global = merged > 0
    output, local, *maps = layer(
        padded,
        attention_mask=merged,
        is_index_masked=merged < 0,
        is_index_global_attn=is_global,
        is_global_attn=bool(is_global.any()),
        output_attentions=True,
    )
    return output, local.transpose(1, 2), maps[0].transpose(2, 3) if maps else None


class Ours:
    """The same layer from our functions, with the other one's weights."""

    def __init__(self, layer: torch.nn.Module, text: Text, hidden: torch.Tensor) -> None:
        self.layer, self.hidden = layer, hidden
        self.pattern = AttentionPattern.from_masks(*text.masks(text.seq_len), window=text.window // 2)

    def project(self, name: str) -> torch.Tensor:
        return getattr(self.layer, name)(self.hidden).unflatten(-1, (HEADS, CHANNELS)).transpose(1, 2)

    def output(self, backend: str = "torch") -> torch.Tensor:
        query, key, value, key_global, value_global = map(self.project, ("query", "key", "value", "key_global", "value_global"))
        query_global = self.pattern.gather_global(self.project("query_global"))
        out = longformer_attention(query, key, value, query_global, key_global, value_global, self.pattern, backend=backend)
        return out.transpose(1, 2).flatten(2)

    def output_with_absorbed_projections(self) -> torch.Tensor:
        pattern, layer = self.pattern, self.layer
        out = sliding_window_attention(*map(self.project, ("query", "key", "value")), pattern=pattern)
        rows = absorbed_global_attention(
            self.hidden, pattern.gather_global(self.project("query_global")),
            layer.key_global.weight, layer.value_global.weight, layer.value_global.bias, pattern,
        )  # fmt: skip
        out = out.clone()
        for sample, count in enumerate(pattern.global_count.tolist()):
            out[sample, :, pattern.global_index[sample, :count]] = rows[sample, :, :count]
        return out.transpose(1, 2).flatten(2)

    def maps(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        query_global = self.pattern.gather_global(self.project("query_global"))
        return attention_probabilities(
            self.project("query"), self.project("key"), self.pattern,
            query_global=query_global, key_global=self.project("key_global"),
        )  # fmt: skip


def problem(text: Text) -> tuple[torch.nn.Module, torch.Tensor]:
    layer = original_layer(text)
    return layer, torch.randn(len(text.lengths), text.seq_len, HIDDEN, requires_grad=True)


def gradients(out: torch.Tensor, layer: torch.nn.Module, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=out.dtype)
    named = {"hidden_states": hidden, **dict(layer.named_parameters())}
    grads = torch.autograd.grad(out, list(named.values()), weight, allow_unused=True)
    return {
        name: torch.zeros_like(tensor) if grad is None else grad
        for (name, tensor), grad in zip(named.items(), grads, strict=True)
    }


@pytest.mark.parametrize("kind", ["torch", "reference", "absorbed"])
@each_text
def test_outputs_and_gradients(text, kind):
    """Hidden states and all twelve projection tensors, global biases included."""
    layer, hidden = problem(text)
    expected = run_original(layer, text, hidden)[0][:, : text.seq_len]
    ours = Ours(layer, text, hidden)
    got = ours.output_with_absorbed_projections() if kind == "absorbed" else ours.output(kind)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    expected_grads = gradients(expected, layer, hidden)
    assert len(expected_grads) == 13
    # One scale for all: the gradient of the key's bias is zero, and in floats what remains of large numbers that cancel.
    scale = max(grad.abs().max().item() for grad in expected_grads.values())
    for name, grad in gradients(got, layer, hidden).items():
        torch.testing.assert_close(
            grad / scale, expected_grads[name] / scale, rtol=0, atol=3e-6, msg=lambda why, name=name: f"{name}: {why}"
        )


@each_text
def test_attention_maps(text):
    """``attentions`` and ``global_attentions`` as documented, at the real positions; in the padding ours are zero."""
    layer, hidden = problem(text)
    _, local, global_map = run_original(layer, text, hidden)
    ours = Ours(layer, text, hidden)
    got_local, got_global = ours.maps()
    width = ours.pattern.global_index.shape[1]
    assert got_local.shape == (len(text.lengths), HEADS, text.seq_len, width + text.window + 1)
    assert (got_global is None) == (global_map is None)
    for sample, length in enumerate(text.lengths):
        torch.testing.assert_close(got_local[sample, :, :length], local[sample, :, :length], rtol=1e-5, atol=1e-5)
        assert not got_local[sample, :, length:].any()
        if got_global is not None:
            count = len(text.globals_[sample])
            torch.testing.assert_close(
                got_global[sample, :, :length, :count], global_map[sample, :, :length, :count], rtol=1e-5, atol=1e-5
            )
            assert not got_global[sample, :, :, count:].any()
            assert not got_global[sample, :, length:].any()
