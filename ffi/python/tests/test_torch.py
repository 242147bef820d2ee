"""gradus.torch: opcheck of every operator, gradients against torch in f64, torch.compile."""

import copy
import os
import pickle

import pytest

torch = pytest.importorskip("torch")

import gradus
from gradus import torch as gt
from gradus._torch_matmul import flat

OPS = torch.ops.gradus
DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(1, 2), (5, 33), (7, 128)]


def normal(seed, *shape, dtype=torch.float32, grad=False):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.requires_grad_(grad)


def ids(seed, high, *shape, dtype=torch.int32):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def sound(operator, *arguments):
    report = torch.library.opcheck(operator.default, arguments)
    assert set(report.values()) == {"SUCCESS"} and len(report) == 4, report


def targets_of(t, v):
    targets = ids(1, v, t)
    targets[0] = gt.IGNORE
    return targets


# ---- opcheck ------------------------------------------------------------------------------------


@pytest.mark.parametrize("t,v", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("entropy,softcap", [(False, None), (True, 5.0)])
def test_logprob_opcheck(t, v, dtype, entropy, softcap):
    logits = normal(0, t, v, dtype=dtype, grad=True)
    sound(OPS.logprob, logits, targets_of(t, v), v, 0.7, 1.0, softcap, entropy)
    rows = (normal(i, t) for i in (1, 2, 3))
    sound(OPS.logprob_bwd, logits.detach(), targets_of(t, v), *rows, v, 0.7, 1.0, softcap)


@pytest.mark.parametrize("t,v", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("frozen", [True, False])
def test_linear_logprob_opcheck(t, v, dtype, frozen):
    hidden, head = normal(0, t, 16, dtype=dtype, grad=True), normal(1, v, 16, dtype=dtype, grad=not frozen)
    sound(OPS.linear_logprob, hidden, head, targets_of(t, v), v, 1.3, 1.0, None, not frozen, frozen)
    sound(OPS.score_scale, hidden.detach(), normal(2, t))
    plain = (hidden.detach(), head.detach(), targets_of(t, v), normal(3, t), None)
    sound(OPS.linear_logprob_bwd, *plain, v, 1.3, 1.0, None, not frozen)


@pytest.mark.parametrize("t,v", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("renormalize", [True, False])
def test_gather_k_opcheck(t, v, dtype, renormalize):
    logits, chosen = (
        normal(0, t, v, dtype=dtype, grad=True),
        torch.arange(2, dtype=torch.int32).expand(t, 2).contiguous(),
    )
    sound(OPS.gather_k, logits, chosen, v, 1.0, 1.0, None, renormalize)
    sound(OPS.gather_k_bwd, logits.detach(), chosen, normal(1, t, 2), v, 1.0, 1.0, None, renormalize)


@pytest.mark.parametrize("t,v", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("divergence", ["forward_kl", "jsd"])
def test_vocab_kl_opcheck(t, v, dtype, divergence):
    policy, reference = normal(0, t, v, dtype=dtype, grad=True), normal(1, t, v, dtype=dtype)
    sound(OPS.vocab_kl, policy, reference, None, 1.0, v, 1.0, 1.0, None, divergence, 0.3)
    sound(
        OPS.vocab_kl_bwd, policy.detach(), reference, reference, normal(2, t), 1.5, v, 1.0, 1.0, None, divergence, 0.3
    )


@pytest.mark.parametrize("m,n,k", [(1, 6, 64), (5, 32, 64), (33, 17, 128)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("double_quant", [True, False])
def test_nf4_matmul_opcheck(m, n, k, dtype, double_quant):
    w = gt_weight(n, k, dtype, double_quant)
    x, a, b = (
        normal(1, m, k, dtype=dtype, grad=True),
        normal(2, 4, k, dtype=dtype, grad=True),
        normal(3, n, 4, dtype=dtype, grad=True),
    )
    sound(OPS.nf4_matmul, x, *flat(w), normal(4, n, dtype=dtype, grad=True), a, b, 2.0)
    sound(OPS.nf4_matmul, x, *flat(w), None, None, None, 1.0)
    sound(OPS.nf4_matmul_dx, normal(5, m, n, dtype=dtype), *flat(w), a.detach(), b.detach(), 2.0)
    sound(OPS.lora_grad, x.detach(), normal(5, m, n, dtype=dtype), normal(6, m, 4), a.detach(), b.detach(), 2.0)


def gt_weight(n, k, dtype, double_quant=False):
    return gradus.quantize_4bit(normal(0, n, k, dtype=dtype), double_quant=double_quant)


@pytest.mark.parametrize("b,t", [(1, 1), (3, 7), (8, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("entropy", [True, False])
def test_policy_loss_opcheck(b, t, dtype, entropy):
    logp, old, ref = (normal(i, b * t, dtype=dtype) - 2 for i in range(3))
    settings = gt.settings_text({"use_kl": 1, "kl_coef": 0.1, "entropy_coef": 0.01 if entropy else 0.0})
    h = normal(3, b * t, dtype=dtype, grad=True) if entropy else None
    cu = torch.arange(b + 1) * t
    sound(
        OPS.policy_loss,
        logp.requires_grad_(),
        normal(4, b, dtype=dtype),
        cu,
        torch.full((b,), 0.1, dtype=dtype),
        old,
        None,
        ref,
        None,
        torch.ones(b * t, dtype=torch.uint8),
        None,
        None,
        None,
        None,
        h,
        settings,
        False,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("groups,size", [(1, 1), (3, 4), (5, 8)])
def test_group_advantage_opcheck(groups, size, dtype):
    offsets = torch.arange(groups + 1) * size
    sound(
        OPS.group_advantage,
        normal(0, groups * size, dtype=dtype),
        offsets,
        None,
        "mean",
        "group_std",
        1,
        1e-4,
        "add_to_std",
        "zero",
    )


# ---- values and gradients -----------------------------------------------------------------------


def close(got, want, tolerance):
    scale = want.abs().max().clamp(min=1e-30)
    assert (got.double() - want.double()).abs().max() <= tolerance * scale


def test_logprob_has_torchs_values_and_gradients():
    logits, targets = normal(0, 3, 4, 50).transpose(0, 1).requires_grad_(), ids(1, 50, 4, 3, dtype=torch.int64)
    out = gt.logprob(logits, targets, temperature=0.7, entropy=True)
    loss = (out.logp * normal(2, 4, 3) + out.entropy * normal(3, 4, 3) + 0.1 * out.lse).sum()
    wide = logits.detach().double().requires_grad_()
    p = (wide / 0.7).log_softmax(-1)
    logp, lse = p.gather(-1, targets[..., None])[..., 0], (wide / 0.7).logsumexp(-1)
    want = (logp * normal(2, 4, 3) - (p.exp() * p).sum(-1) * normal(3, 4, 3) + 0.1 * lse).sum()
    close(out.logp, logp, 1e-6)
    close(torch.autograd.grad(loss, logits)[0], torch.autograd.grad(want, wide)[0], 1e-6)


@pytest.mark.parametrize("frozen", [True, False])
def test_linear_logprob_has_torchs_gradients(frozen):
    hidden, head = normal(0, 9, 16, grad=True), normal(1, 50, 16, grad=not frozen)
    targets = targets_of(9, 50).long()
    out = gt.linear_logprob(hidden, head, targets, temperature=1.3)
    wide = [hidden.detach().double().requires_grad_(), head.detach().double().requires_grad_()]
    p = (wide[0] @ wide[1].T / 1.3).log_softmax(-1)
    keep = (targets >= 0).double()
    want = p.gather(-1, targets.clamp(min=0)[:, None])[:, 0] * keep
    close(out.logp, want, 1e-6)
    by = [hidden] if frozen else [hidden, head]
    got = torch.autograd.grad((out.logp * normal(2, 9)).sum(), by)
    for a, b in zip(got, torch.autograd.grad((want * normal(2, 9)).sum(), wide)):
        close(a, b, 1e-5)


def test_linear_logprob_differentiates_its_entropy():
    hidden, head = normal(0, 9, 16, grad=True), normal(1, 50, 16)
    out = gt.linear_logprob(hidden, head, ids(2, 50, 9), entropy=True)
    wide = hidden.detach().double().requires_grad_()
    p = (wide @ head.double().T).log_softmax(-1)
    close(torch.autograd.grad(out.entropy.sum(), hidden)[0], torch.autograd.grad(-(p.exp() * p).sum(), wide)[0], 1e-5)


def test_nf4_matmul_has_torchs_gradients():
    w = gt_weight(17, 64, torch.float32, True)
    leaves = [normal(i, *shape, grad=True) for i, shape in enumerate([(2, 3, 64), (17,), (4, 64), (17, 4)])]
    x, bias, a, b = leaves
    y = gt.nf4_matmul(x, w, bias=bias, a=a, b=b, scale=0.5)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    want = wide[0] @ w.dequantize().double().T + wide[1] + 0.5 * (wide[0] @ wide[2].T) @ wide[3].T
    close(y, want, 1e-6)
    dy = normal(9, 2, 3, 17)
    for got, exact in zip(torch.autograd.grad(y, leaves, dy), torch.autograd.grad(want, wide, dy.double())):
        close(got, exact, 1e-6)


def test_a_weight_that_changes_is_seen():
    """A weight keeps its C struct between calls, and no longer than what it was made of."""
    w, x = gt_weight(6, 64, torch.float32, True), normal(1, 3, 64)
    run = lambda: gt.nf4_matmul(x, w)
    first = run()
    other = gradus.quantize_4bit(normal(5, 6, 64), double_quant=True)
    w.packed, w.absmax, w.nested_absmax, w.offset = other.packed, other.absmax, other.nested_absmax, other.offset
    assert torch.equal(run(), gt.nf4_matmul(x, other)) and not torch.equal(run(), first)
    for copied in (copy.deepcopy(w), pickle.loads(pickle.dumps(w))):
        assert torch.equal(gt.nf4_matmul(x, copied), run())
    w.packed.zero_()
    assert torch.equal(run(), gt.nf4_matmul(x, w)) and torch.equal(w.dequantize()[0, :1], w.dequantize()[0, 1:2])
    w.packed.resize_(5)
    with pytest.raises(gradus.InvalidArgument, match="`w.packed`"):
        run()
    w.packed, w.n = other.packed.new_zeros(6 * 32), 7
    with pytest.raises(gradus.InvalidArgument, match="`w.packed`"):
        run()
    w.n, w.dtype = 6, "float33"
    with pytest.raises(gradus.InvalidArgument, match="argument `w.dtype`: got 'float33'"):
        run()


class Seen(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes every operator of gradus."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "gradus":
            self.names.append(function._opname)
        return function(*args, **(kwargs or {}))


def test_eager_products_have_the_bits_of_the_operator():
    """An eager call goes past torch's dispatcher; under a mode it is the operator, which the mode sees."""
    w = gt_weight(17, 64, torch.float32, True)
    leaves = [normal(i, *shape, grad=True) for i, shape in enumerate([(3, 64), (17,), (4, 64), (17, 4)])]
    dy, found = normal(9, 3, 17), []
    for mode in (None, Seen()):
        with mode if mode is not None else torch.enable_grad():
            y = gt.nf4_matmul(leaves[0], w, bias=leaves[1], a=leaves[2], b=leaves[3], scale=0.5)
            found.append([y, *torch.autograd.grad(y, leaves, dy)])
    assert mode.names == ["nf4_matmul", "nf4_matmul_dx", "lora_grad"]
    assert all(torch.equal(a, b) for a, b in zip(*found))
    with pytest.raises(RuntimeError):  # no second derivatives
        (g,) = torch.autograd.grad(gt.nf4_matmul(leaves[0], w).square().sum(), leaves[0], create_graph=True)
        torch.autograd.grad(g.sum(), leaves[0])


def test_vocab_kl_and_gather_k_have_torchs_gradients():
    policy, reference = normal(0, 2, 5, 33, grad=True), normal(1, 2, 5, 33)
    wide = policy.detach().double().requires_grad_()
    q, p = wide.log_softmax(-1), reference.double().log_softmax(-1)
    got, want = gt.vocab_kl(policy, reference, "reverse_kl"), (q.exp() * (q - p)).sum(-1)
    close(got, want, 1e-6)
    close(torch.autograd.grad(got.sum(), policy)[0], torch.autograd.grad(want.sum(), wide)[0], 1e-6)
    chosen = torch.tensor([3, 1, 8]).expand(2, 5, 3)
    got, want = gt.gather_k(policy, chosen).logp, wide.log_softmax(-1).gather(-1, chosen)
    close(got, want, 1e-6)
    close(torch.autograd.grad(got.sum(), policy)[0], torch.autograd.grad(want.sum(), wide)[0], 1e-6)


def test_policy_loss_has_torchs_gradient():
    b, t = 4, 9
    logp, old, advantage = (normal(0, b, t) - 2).requires_grad_(), normal(1, b, t) - 2, normal(2, b)
    mask = torch.arange(t)[None] < torch.tensor([9, 3, 0, 5])[:, None]
    preset = gradus.policy_preset("trl/dapo", t)
    weight = torch.from_numpy(preset.weights(mask.sum(1)))
    out = gt.policy_loss(logp, advantage, seq_weight=weight, settings=preset.settings, mask=mask, old_logp=old)
    wide = logp.detach().double().requires_grad_()
    r = (wide - old).exp()
    each = -torch.min(r * advantage[:, None], r.clamp(0.8, 1.2) * advantage[:, None])
    want = (each * mask).sum() / mask.sum()
    close(out.loss, want, 1e-6)
    close(torch.autograd.grad(out.loss * 3, logp)[0], torch.autograd.grad(want * 3, wide)[0], 1e-6)
    assert out.figures()["n_tokens"] == 17 and out.figures()["n_empty"] == 1


def test_a_gradient_that_is_not_there_is_an_error():
    reference = normal(1, 5, 33, grad=True)
    with pytest.raises(RuntimeError, match="policy"):
        gt.vocab_kl(normal(0, 5, 33, grad=True), reference).sum().backward()
    with pytest.raises(TypeError, match="requires grad"):
        gradus.logprob(normal(0, 5, 33, grad=True), ids(0, 33, 5))


# ---- torch.compile ------------------------------------------------------------------------------


def step(x, head, w, a, b, targets, old, advantage, weight):
    """Every operator that has a gradient, in one graph."""
    hidden = torch.tanh(gt.nf4_matmul(x, w, a=a, b=b, scale=0.5))
    logp = gt.linear_logprob(hidden, head, targets).logp
    logits = hidden @ head.T
    logp = logp + 0.1 * gt.logprob(logits, targets, temperature=0.7, entropy=True).entropy
    settings = {"use_kl": 1, "kl_coef": 0.1}
    loss = gt.policy_loss(logp, advantage, seq_weight=weight, settings=settings, old_logp=old, ref_logp=old).loss
    kl = gt.vocab_kl(logits, logits.detach() + 0.1 * torch.sin(logits.detach())).mean()
    return loss + kl + gt.gather_k(logits, targets[..., None]).logp.mean()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_to_one_graph(backend):
    w = gt_weight(16, 64, torch.float32)
    leaves = [normal(0, 3, 5, 64, grad=True), normal(2, 4, 64, grad=True), normal(3, 16, 4, grad=True)]
    rest = (
        ids(4, 40, 3, 5, dtype=torch.int64),
        normal(5, 3, 5) - 3,
        gt.group_advantage(normal(6, 3), group=3),
        torch.full((3,), 0.1),
    )
    head = normal(1, 40, 16)
    run = lambda f: f(leaves[0], head, w, leaves[1], leaves[2], *rest)
    torch._dynamo.reset()
    want, got = run(step), run(torch.compile(step, fullgraph=True, backend=backend))
    close(got, want, 1e-6)
    for a, b in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves)):
        close(a, b, 1e-5)


def test_compiles_with_dynamic_shapes():
    torch._dynamo.reset()
    f = torch.compile(lambda x, t: gt.logprob(x, t).logp.sum(), fullgraph=True, dynamic=True, backend="aot_eager")
    for t, v in [(4, 20), (7, 33), (2, 50)]:
        x, targets = normal(0, t, v, grad=True), ids(1, v, t)
        close(f(x, targets), x.detach().double().log_softmax(-1).gather(1, targets.long()[:, None]).sum(), 1e-5)


# ---- threads ------------------------------------------------------------------------------------


def test_results_do_not_depend_on_whose_threads_compute():
    w = gt_weight(256, 192, torch.float32, True)
    leaves = [normal(i, *shape, grad=True) for i, shape in enumerate([(150, 192), (256,), (16, 192), (256, 16)])]
    head, targets, found, threads = normal(7, 500, 256), ids(8, 500, 150), [], torch.get_num_threads()

    def step():
        y = gt.nf4_matmul(leaves[0], w, bias=leaves[1], a=leaves[2], b=leaves[3], scale=0.5)
        logp = gt.linear_logprob(y, head, targets).logp
        return [y, logp, *torch.autograd.grad(logp.sum(), leaves)]

    try:
        shared = gradus.set_threads("torch")
        for count in (1, threads):
            torch.set_num_threads(count)
            found.append(step())
        assert not gradus.set_threads("own")
        found.append(step())
    finally:
        torch.set_num_threads(threads)
        gradus.set_threads("torch")
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))
    runtime = "OpenMP" in torch.__config__.parallel_info().partition("parallel backend:")[2]
    assert shared or not runtime or not os.path.exists("/proc/self/maps")
    with pytest.raises(gradus.InvalidArgument, match="set_threads: argument `of`: got 'rayon'"):
        gradus.set_threads("rayon")


def test_the_module_lists_its_own_names_alone():
    assert dir(gt) == sorted(gt.__all__) and "nf4_matmul" in dir(gt)
    foreign = [n for n in dir(gt) if getattr(getattr(gt, n), "__module__", "gradus").partition(".")[0] != "gradus"]
    assert foreign == []
