"""Two processes that train together, over gloo on the CPU, and one process that sees both their batches."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import pathlib
import traceback
from typing import Any

import torch
from model_cases import Texts, ours
from torch import Tensor, distributed, nn

WORLD = 2
STEPS = 3
DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
# Seconds after which a process that waits for the other gives up, and after which both are killed.
_COLLECTIVE, _ALL = 60, 240


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, how it is spread, and which tokens are global on which process."""

    way: str
    name: str = "LongformerForMaskedLM"
    globals_: str = "none"
    checkpointing: bool = False
    dropout: bool = False
    absorb: Any = "auto"

    def model(self) -> Any:
        """In float64, so that the order of sums shows far behind the comma."""
        torch.manual_seed(11)
        options = DROPOUT if self.dropout else {}
        model = ours(self.name, initializer_range=0.1, absorb_global_projections=self.absorb, **options).double().train()
        if self.checkpointing:
            model.gradient_checkpointing_enable()
        return model

    def batch(self, step: int) -> dict[str, Tensor]:
        """Two rows for each process; every row has as many labels, so that a mean of means is the mean."""
        kind = self.globals_ if self.globals_ in ("none", "by_task") else "some"
        batch = Texts(batch=2 * WORLD, globals_=kind, seed=step).inputs(self.name)
        if self.globals_ == "first_process":
            batch["global_attention_mask"][2:] = 0
        return batch


def part(batch: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The rows of one process."""
    return {key: value.chunk(WORLD)[rank] for key, value in batch.items()}


def spread(case: Case, model: Any) -> Any:
    """The model as the training loop of each process has it."""
    if case.way == "ddp":
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=False)
    if case.way in ("fsdp2", "fsdp2_bfloat16"):
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        low = case.way == "fsdp2_bfloat16"
        policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32) if low else MixedPrecisionPolicy()
        for layer in model.base_model.encoder.layer:
            fully_shard(layer, mp_policy=policy)
        return fully_shard(model, mp_policy=policy)
    assert case.way == "alone"
    return model


def train(case: Case, rank: int | None) -> dict[str, Tensor]:
    """Parameters after a few steps of AdamW, gathered, and ``losses``, of each step; without a rank, of the whole batch."""
    model = spread(case if rank is not None else dataclasses.replace(case, way="alone"), case.model())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(0 if rank is None else rank)
    losses = []
    for step in range(STEPS):
        batch = case.batch(step)
        loss = model(**(batch if rank is None else part(batch, rank))).loss
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.detach())
        assert all(parameter.grad is not None for parameter in model.parameters()), "a parameter without a gradient"
        optimizer.step()
    state = {name.removeprefix("module."): _whole(parameter) for name, parameter in model.named_parameters()}
    return {**state, "losses": torch.stack(losses)}


def save_sharded(case: Case, rank: int, folder: pathlib.Path) -> str:
    """Save a sharded model: as it is, which gives the text of an exception, and gathered, into ``folder / "gathered"``."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    model = spread(case, case.model())
    message = "saved"
    try:
        model.save_pretrained(folder / f"sharded-{rank}")
    except ValueError as error:
        message = str(error)
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    model.save_pretrained(folder / "gathered", state_dict=state, is_main_process=rank == 0)
    return message


def _whole(parameter: Any) -> Tensor:
    value = parameter.detach()
    return copy.deepcopy(value.full_tensor() if hasattr(value, "full_tensor") else value)


def _work(rank: int, folder: pathlib.Path, cases: list[Case]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=WORLD,
        timeout=datetime.timedelta(seconds=_COLLECTIVE),
    )  # fmt: skip
    results: list[Any] = []
    for case in cases:
        try:
            results.append(train(case, rank))
        except Exception:
            # Both processes fail alike, or the other one runs into its time limit: the test of this case says why.
            results.append(traceback.format_exc())
    results.append(save_sharded(Case("fsdp2"), rank, folder))
    torch.save(results, folder / f"results-{rank}.pt")
    distributed.destroy_process_group()


def train_together(folder: pathlib.Path, cases: list[Case]) -> list[list[Any]]:
    """What :func:`train` gave each process for each case, or the text of an exception, and what :func:`save_sharded` gave."""
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=_work, args=(rank, folder, cases), daemon=True) for rank in range(WORLD)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(_ALL)
    finally:
        hung = [process.pid for process in processes if process.is_alive()]
        for process in processes:
            process.kill()
    assert not hung, f"processes {hung} still ran after {_ALL} s"
    assert [process.exitcode for process in processes] == [0] * WORLD
    return [torch.load(folder / f"results-{rank}.pt") for rank in range(WORLD)]
