"""gradus.torch under DistributedDataParallel: two processes with gloo have the gradients of one with all rows."""

import os

import pytest

torch = pytest.importorskip("torch")
import torch.multiprocessing as mp


def model_and_batch():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.Tanh(), torch.nn.Linear(16, 40))
    return model, torch.randn(8, 12), torch.randint(40, (8,))


def loss_of(model, x, targets):
    from gradus import torch as gt

    logp = gt.logprob(model(x), targets, temperature=0.9).logp
    return -logp.mean()


def worker(rank, world, store, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    model, x, targets = model_and_batch()
    ddp = torch.nn.parallel.DistributedDataParallel(model)
    share = slice(rank * 4, rank * 4 + 4)
    for _ in range(2):  # the second step uses buckets in the order of the first
        ddp.zero_grad()
        loss_of(ddp, x[share], targets[share]).backward()
    torch.save([p.grad for p in model.parameters()], f"{results}{rank}")
    torch.distributed.destroy_process_group()


def test_ddp_gradients_are_those_of_one_process(tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("torch without distributed")
    # Children import what this process imports.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, __import__("sys").path))
    mp.spawn(worker, (2, tmp_path / "store", str(tmp_path / "grad")), nprocs=2)
    model, x, targets = model_and_batch()
    loss_of(model, x, targets).backward()
    for rank in range(2):
        for got, p in zip(torch.load(tmp_path / f"grad{rank}"), model.parameters()):
            assert torch.allclose(got, p.grad, rtol=1e-5, atol=1e-7)
