"""The estimate of memory against what the CUDA allocator saw, for the Triton kernels."""

import pytest
import torch

from longformer_triton import LongformerConfig, LongformerModel, estimate_memory
from longformer_triton.bench.measure import peak_extra_bytes

pytestmark = pytest.mark.gpu
TOLERANCE = 0.1
# Beyond the tensors of a step there is cuBLAS's workspace, which the estimate leaves out: texts are long enough to outweigh it.
MODES = {
    "runs": {"training": False},
    "trains": {"training": True},
    "checkpointing": {"training": True, "checkpointing": True},
}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_peak_that_the_allocator_sees(dtype, mode):
    batch, seq_len = 2, 16384
    config = LongformerConfig(vocab_size=1000, num_hidden_layers=4, max_position_embeddings=seq_len + 2, attention_window=256)
    model = LongformerModel(config).to("cuda", dtype).train(mode["training"])
    if mode.get("checkpointing"):
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(3, 1000, (batch, seq_len), device="cuda")
    marks = torch.zeros_like(ids)
    marks[:, 0] = 1

    def call():
        if not mode["training"]:
            with torch.no_grad():
                model(ids, global_attention_mask=marks)
            return
        found = model(ids, global_attention_mask=marks)
        loss = found.last_hidden_state.mean() + found.pooler_output.mean()
        del found
        loss.backward()
        optimizer.step()

    call()
    model.zero_grad()
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *states))
    estimate = estimate_memory(config, batch, seq_len, dtype, device="cuda", **mode)
    assert estimate.total == pytest.approx(held + peak_extra_bytes(call, torch.device("cuda")), rel=TOLERANCE)
