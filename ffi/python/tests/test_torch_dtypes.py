"""gradus.torch with operands of several dtypes and layouts: what torch's own layers make of them, or an error
that names the argument."""

import pytest

torch = pytest.importorskip("torch")

import gradus
from gradus import torch as gt

F = torch.nn.functional
BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
EPS = {BF16: 2**-8, F16: 2**-11, F32: 2**-20, F64: 2**-45}


def normal(seed, *shape, dtype=F32, grad=False):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.requires_grad_(grad)


def close(got, want, tolerance):
    scale = want.abs().max().clamp(min=1e-30)
    worst = ((got.double() - want.double()).abs().max() / scale).item()
    assert worst <= tolerance, worst


# ---- nf4_matmul ---------------------------------------------------------------------------------


def layer(x_dtype, a_dtype, b_dtype, bias_dtype):
    """Leaves with a gradient each, and a weight that was quantized in bf16, as transformers loads one."""
    w = gradus.quantize_4bit(normal(0, 24, 64, dtype=BF16), double_quant=True)
    shapes = [(2, 3, 64), (24,), (4, 64), (24, 4)]
    dtypes = [x_dtype, bias_dtype, a_dtype, b_dtype]
    return w, [normal(i + 1, *shape, dtype=d, grad=True) for i, (shape, d) in enumerate(zip(shapes, dtypes))]


def peft(w, x, bias, a, b, scale):
    """peft.tuners.lora.bnb.Linear4bit on bitsandbytes' layer, in torch's own operators: the product and its bias
    in x's dtype, the adapter in its own, rounded to that of the product and added."""
    base = F.linear(x, w.dequantize().to(x.dtype), bias.to(x.dtype))
    if torch.is_autocast_enabled("cpu"):
        return base + F.linear(F.linear(x, a), b) * scale
    wide = torch.promote_types(a.dtype, b.dtype)
    return base + (F.linear(F.linear(x.to(wide), a.to(wide)), b.to(wide)) * scale).to(base.dtype)


def exact(w, x, bias, a, b, scale):
    wide = [leaf.detach().double().requires_grad_() for leaf in (x, bias, a, b)]
    x, bias, a, b = wide
    return wide, x @ w.dequantize().double().T + bias + scale * (x @ a.T) @ b.T


def compared(autocast, w, leaves):
    """(y, gradients) of ours, of torch's own operators, and of f64."""
    found = []
    for run in (gt_layer, peft):
        with torch.autocast("cpu", dtype=BF16, enabled=autocast):
            y = run(w, *leaves, 0.5)
        found.append((y, torch.autograd.grad(y.float().square().sum(), leaves)))
    wide, y = exact(w, *leaves, 0.5)
    return *found, (y, torch.autograd.grad(y.square().sum(), wide))


def gt_layer(w, x, bias, a, b, scale):
    return gt.nf4_matmul(x, w, bias=bias, a=a, b=b, scale=scale)


MIXED = [(BF16, F32, F32), (BF16, F32, BF16), (BF16, BF16, F32), (F32, BF16, BF16), (F16, F32, F32), (F32, F32, F32)]


@pytest.mark.parametrize("x,a,b", MIXED)
@pytest.mark.parametrize("autocast", [True, False])
def test_an_adapter_of_another_dtype_is_multiplied_as_in_peft(x, a, b, autocast):
    w, leaves = layer(x, a, b, BF16)
    (y, grads), (theirs, their_grads), (truth, true_grads) = compared(autocast, w, leaves)
    out = BF16 if autocast else x
    assert y.dtype == theirs.dtype == out
    assert [g.dtype for g in grads] == [leaf.dtype for leaf in leaves] == [g.dtype for g in their_grads]
    rounding = EPS[BF16 if autocast else max((leaf.dtype for leaf in leaves), key=EPS.get)]
    close(y, truth, 3 * rounding)
    for got, other, want in zip(grads, their_grads, true_grads):
        close(got, want, 4 * rounding)
        # No farther from the truth than torch's own, but for a last place.
        error = lambda g: (g.double() - want).abs().max()
        assert error(got) <= error(other) + 2 * rounding * want.abs().max()


def test_peft_default_is_bit_equal_in_the_adapter_beside_bf16():
    """Outside of autocast the f32 adapter is not rounded: its share is torch's own, bit for bit."""
    w, (x, bias, a, b) = layer(BF16, F32, F32, BF16)
    both = gt_layer(w, x, bias, a, b, 0.5)
    alone = gt.nf4_matmul(x, w, bias=bias)
    assert torch.equal(both, alone + (F.linear(F.linear(x.float(), a), b) * 0.5).to(BF16))


def test_autocast_casts_where_torch_does():
    """f64 stays f64, and without autocast nothing is rounded to bf16."""
    w = gradus.quantize_4bit(normal(0, 24, 64))
    x = normal(1, 5, 64)
    with torch.autocast("cpu", dtype=BF16):
        assert gt.nf4_matmul(x, w).dtype == F.linear(x, w.dequantize()).dtype == BF16
        assert gt.nf4_matmul(x.double(), w).dtype == F64
        with torch.autocast("cpu", enabled=False):
            assert gt.nf4_matmul(x, w).dtype == F32
    with torch.autocast("cpu", dtype=F16):
        assert gt.nf4_matmul(x, w).dtype == F16


def test_a_transposed_adapter_is_made_contiguous_like_x():
    w, (x, bias, a, b) = layer(F32, F32, F32, F32)
    turned = [t.detach().T.contiguous().T.requires_grad_() for t in (a, b)]
    got = gt_layer(w, x, bias, *turned, 0.5)
    assert torch.equal(got, gt_layer(w, x, bias, a, b, 0.5))
    want = torch.autograd.grad(gt_layer(w, x, bias, a, b, 0.5).sum(), [a, b])
    for g, h in zip(torch.autograd.grad(got.sum(), turned), want):
        assert torch.equal(g, h)


@pytest.mark.parametrize(
    "change,text",
    [
        (dict(a=normal(0, 4, 63)), r"argument `a`: got float32 \[4, 63\], expected floats \[r, 64\]"),
        (dict(b=normal(0, 24, 5)), r"argument `b`: got float32 \[24, 5\], expected floats \[24, 4\]"),
        (dict(b=None), "argument `b`: got none"),
        (dict(a=torch.ones(4, 64, dtype=torch.int64)), r"argument `a`: got int64"),
        (dict(bias=normal(0, 23)), "argument `bias`"),
        (dict(x=normal(0, 2, 63)), "argument `x`"),
    ],
)
def test_errors_of_an_adapter_name_what_was_passed(change, text):
    w, (x, bias, a, b) = layer(F32, F32, F32, F32)
    with pytest.raises(gradus.InvalidArgument, match=text):
        gt.nf4_matmul(**{"x": x, "w": w, "bias": bias, "a": a, "b": b} | change)


@pytest.mark.parametrize("autocast", [True, False])
def test_mixed_dtypes_compile_to_one_graph(autocast):
    w, leaves = layer(BF16, F32, F32, BF16)
    head, targets = normal(9, 40, 24), torch.tensor([[1, 2, -100], [3, 4, 5]])

    def run(x, bias, a, b):
        with torch.autocast("cpu", dtype=BF16, enabled=autocast):
            return gt.linear_logprob(gt.nf4_matmul(x, w, bias=bias, a=a, b=b), head, targets).logp.sum()

    torch._dynamo.reset()
    got = torch.compile(run, fullgraph=True, backend="aot_eager")(*leaves)
    assert torch.equal(got, run(*leaves))
    for g, h in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(run(*leaves), leaves)):
        assert g.dtype == h.dtype and torch.equal(g, h)


# ---- linear_logprob, vocab_kl -------------------------------------------------------------------


@pytest.mark.parametrize("hidden_dtype,head_dtype", [(BF16, F32), (F32, BF16), (F16, BF16), (F32, F32), (F32, F64)])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_head_of_another_dtype(hidden_dtype, head_dtype, autocast, frozen):
    hidden = normal(0, 3, 4, 16, dtype=hidden_dtype, grad=True)
    head = normal(1, 50, 16, dtype=head_dtype, grad=not frozen)
    targets = torch.randint(50, (3, 4), generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", dtype=BF16, enabled=autocast):
        logp = gt.linear_logprob(hidden, head, targets).logp
    wide = [hidden.detach().double().requires_grad_(), head.detach().double().requires_grad_()]
    want = (wide[0] @ wide[1].T).log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    by = [hidden] if frozen else [hidden, head]
    # Without autocast the operands are read as they are; what is rounded is the gradient.
    close(logp, want, 3 * EPS[BF16] if autocast else 1e-6)
    rounding = 4 * EPS[BF16 if autocast else max((leaf.dtype for leaf in by), key=EPS.get)]
    grads, true = torch.autograd.grad(logp.sum(), by), torch.autograd.grad(want.sum(), wide)
    for got, leaf, exact in zip(grads, by, true):
        assert got.dtype == leaf.dtype
        close(got, exact, max(rounding, 1e-5))


def test_autocast_gives_the_log_probs_of_torchs_bf16_logits():
    hidden, head = normal(0, 9, 16, dtype=BF16), normal(1, 50, 16)
    targets = torch.arange(9)
    with torch.autocast("cpu", dtype=BF16):
        got, logits = gt.linear_logprob(hidden, head, targets).logp, F.linear(hidden, head)
    assert torch.equal(got, gt.linear_logprob(hidden, head.to(BF16), targets).logp)
    close(got, logits.double().log_softmax(-1).gather(1, targets[:, None])[:, 0], 3 * EPS[BF16])


def test_a_reference_of_another_dtype():
    policy, reference = normal(0, 5, 33, dtype=BF16, grad=True), normal(1, 5, 33)
    got = gt.vocab_kl(policy, reference)
    assert torch.equal(got, gt.vocab_kl(policy.float(), reference))
    assert torch.autograd.grad(got.sum(), policy)[0].dtype == BF16


# ---- policy_loss --------------------------------------------------------------------------------


def rows(dtype=F32):
    logp, old, advantage = (normal(0, 4, 9) - 2).to(dtype), normal(1, 4, 9) - 2, normal(2, 4)
    mask = torch.arange(9)[None] < torch.tensor([9, 3, 0, 5])[:, None]
    return logp.requires_grad_(), dict(advantage=advantage, seq_weight=torch.full((4,), 0.1), mask=mask, old_logp=old)


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_half_log_probs_are_computed_in_f32(dtype):
    logp, rest = rows(dtype)
    out, wide = gt.policy_loss(logp, **rest), logp.detach().float().requires_grad_()
    want = gt.policy_loss(wide, **rest)
    assert out.loss.dtype == F32 and torch.equal(out.loss, want.loss) and torch.equal(out.token_loss, want.token_loss)
    grad = torch.autograd.grad(out.loss, logp)[0]
    assert grad.dtype == dtype and torch.equal(grad, torch.autograd.grad(want.loss, wide)[0].to(dtype))


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64, F32, torch.uint8])
def test_masks_of_any_dtype_are_read_as_not_zero(mask_dtype):
    logp, rest = rows()
    want = gt.policy_loss(logp, **rest)
    factor = 0.25 if mask_dtype == F32 else 256 if mask_dtype == torch.int64 else 1
    mask = rest["mask"].to(mask_dtype) * factor if factor != 1 else rest["mask"].to(mask_dtype)
    got = gt.policy_loss(logp, **rest | {"mask": mask})
    assert torch.equal(got.loss, want.loss) and got.figures()["n_tokens"] == 17


def test_classes_that_do_not_fit_are_refused_and_not_wrapped():
    logp, rest = rows()
    weights = {"class_weight": [1, 2, 1, 1, 1, 1, 1, 1]}
    ids = torch.ones(4, 9, dtype=torch.int64)
    wanted = gt.policy_loss(logp, **rest, class_ids=ids.to(torch.uint8), settings=weights).loss
    assert torch.equal(gt.policy_loss(logp, **rest, class_ids=ids, settings=weights).loss, wanted)
    for wrong in (256, 257, -255, 1 << 40):
        with pytest.raises(gradus.InvalidArgument, match="argument `class_ids`"):
            gt.policy_loss(logp, **rest, class_ids=ids * wrong, settings=weights)


def test_packed_sequences_with_offsets_of_int32():
    logp, advantage = normal(0, 5, grad=True), normal(1, 2)
    weight = torch.ones(2)
    of = lambda dtype: gt.policy_loss(
        logp, advantage, seq_weight=weight, cu_seqlens=torch.tensor([0, 2, 5], dtype=dtype)
    )
    assert torch.equal(of(torch.int32).loss, of(torch.int64).loss)


def test_advantages_whose_shape_says_nothing():
    """Two tokens, two sequences, of which one is empty: per_token says what the two numbers are."""
    logp, two, weight = torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 10.0]), torch.tensor([1.0, 0.5])
    run = lambda **given: gt.policy_loss(
        logp, two, seq_weight=weight, cu_seqlens=torch.tensor([0, 2, 2]), settings={"loss": "reinforce"}, **given
    ).loss.item()
    assert run() == run(per_token=False) == 3.0  # -1 (-1 - 2)
    assert run(per_token=True) == 21.0  # -(1 (-1) + 10 (-2))


@pytest.mark.parametrize(
    "change,error,text",
    [
        (dict(logp=torch.ones(4, 9, dtype=torch.int64)), TypeError, "argument `logp`: got torch.int64"),
        (dict(logp=normal(0, 9)), gradus.InvalidArgument, "argument `logp`: got rank 1"),
        (
            dict(old_logp=normal(0, 4, 8)),
            gradus.InvalidArgument,
            r"argument `old_logp`: got \[4, 8\], expected \[4, 9\]",
        ),
        (dict(mask=torch.ones(5, 9)), gradus.InvalidArgument, r"argument `mask`: got \[5, 9\]"),
        (dict(class_ids=torch.ones(4, 9)), TypeError, "argument `class_ids`: got torch.float32, expected integers"),
        (dict(refs=normal(0, 4, 9)), TypeError, "no argument `refs`; it has old_logp"),
        (dict(advantage=normal(0, 3)), gradus.InvalidArgument, "argument `advantage`"),
        (dict(seq_weight=normal(0, 3)), gradus.InvalidArgument, "argument `seq_weight`"),
    ],
)
def test_errors_of_the_policy_loss_name_what_was_passed(change, error, text):
    logp, rest = rows()
    with pytest.raises(error, match=text):
        gt.policy_loss(**{"logp": logp} | rest | change)


# ---- group_advantage ----------------------------------------------------------------------------


def test_rewards_as_groups_in_rows():
    reward = torch.tensor([[1.0, 0.0, 0.0, 1.0], [2.0, 3.0, 5.0, 2.0]])
    want = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)
    for got in (
        gt.group_advantage(reward),
        gt.group_advantage(reward, group=4),
        gt.group_advantage(reward.T.contiguous().T),
    ):
        assert got.shape == (2, 4)
        close(got, want, 1e-6)
    close(gt.group_advantage(reward.reshape(-1), group=4), want.reshape(-1), 1e-6)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_integer_rewards(dtype):
    reward = torch.tensor([1, 0, 0, 1], dtype=dtype)
    got = gt.group_advantage(reward, group=4)
    assert got.dtype == torch.get_default_dtype()
    assert torch.equal(got, gt.group_advantage(reward.double(), group=4).float())


def test_large_integer_rewards_are_not_rounded_first():
    reward = torch.tensor([(1 << 40) + 1, 1 << 40])
    assert gt.group_advantage(reward, group=2, scale="none").tolist() == [0.5, -0.5]


@pytest.mark.parametrize("dtype,kind", [(BF16, F32), (F16, F32), (F64, F64)])
def test_float_rewards_of_other_widths(dtype, kind):
    reward = torch.tensor([1.0, 0.5, 0.0, 1.0], dtype=dtype)
    got = gt.group_advantage(reward, torch.tensor([0, 1, 4], dtype=torch.int32))
    assert got.dtype == kind and torch.equal(got, gt.group_advantage(reward.to(kind), torch.tensor([0, 1, 4])))


@pytest.mark.parametrize(
    "reward,given,text",
    [
        (torch.zeros(2, 4), dict(group=3), r"argument `group`: got 3 beside rewards \[2, 4\], expected 4 or none"),
        (torch.zeros(6), dict(group=4), "argument `group`: got 4 beside 6 rewards"),
        (torch.zeros(6), dict(group=0), "argument `group`: got 0"),
        (torch.zeros(6), dict(), "argument `group`: got none"),
        (torch.zeros(6), dict(group=2, offsets=torch.tensor([0, 6])), "argument `group`: got 2 beside `offsets`"),
        (torch.zeros(2, 3), dict(offsets=torch.tensor([0, 6])), r"argument `reward`: got \[2, 3\] beside `offsets`"),
        (torch.zeros(2, 3, 1), dict(group=3), "argument `reward`: got rank 3"),
        (torch.zeros(6), dict(offsets=torch.tensor([0, 7])), "argument `offsets`"),
        (torch.zeros(6), dict(group=2, length=torch.ones(5, dtype=torch.int64)), r"argument `length`: got \[5\]"),
    ],
)
def test_errors_of_rewards_name_what_was_passed(reward, given, text):
    with pytest.raises(gradus.InvalidArgument, match=text):
        gt.group_advantage(reward, **given)


# ---- targets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [1 << 32, (1 << 32) + 5, -(1 << 32), 50])
def test_targets_that_do_not_fit_are_refused_and_not_wrapped(wrong):
    hidden, head, logits = normal(0, 2, 16), normal(1, 50, 16), normal(2, 2, 50)
    targets = torch.tensor([3, wrong])
    for run, name in (
        (lambda: gt.logprob(logits, targets), "targets"),
        (lambda: gt.linear_logprob(hidden, head, targets), "targets"),
        (lambda: gt.gather_k(logits, targets[:, None]), "ids"),
    ):
        with pytest.raises(gradus.InvalidArgument, match=f"argument `{name}`: got .* (at index|in row)"):
            run()


def test_targets_that_are_no_integers():
    with pytest.raises(TypeError, match="logprob: argument `targets`: got torch.float32, expected integers"):
        gt.logprob(normal(0, 2, 50), torch.tensor([1.0, 2.7]))


@pytest.mark.parametrize(
    "call,text",
    [
        (
            lambda: gt.logprob([[1.0]], torch.tensor([0])),
            "logprob: argument `logits`: got list, expected a torch.Tensor",
        ),
        (lambda: gt.logprob(normal(0, 1, 4), [0]), "argument `targets`: got list"),
        (lambda: gt.linear_logprob(normal(0, 2, 4), None, torch.tensor([0])), "argument `head`: got NoneType"),
        (lambda: gt.vocab_kl(normal(0, 2, 4), 3), "vocab_kl: argument `reference`: got int"),
        (lambda: gt.gather_k(normal(0, 2, 4), 3), "gather_k: argument `ids`: got int"),
        (lambda: gt.group_advantage([1.0, 0.0], group=2), "group_advantage: argument `reward`: got list"),
        (lambda: gt.group_advantage(normal(0, 2), group=2, length=[1, 1]), "argument `length`: got list"),
        (lambda: gt.policy_loss(normal(0, 2, 3), normal(0, 2), seq_weight=1.0), "argument `seq_weight`: got float"),
        (lambda: gt.policy_loss(*rows()[:1], **rows()[1], settings=5), "policy_loss: argument `settings`: got 5"),
        (
            lambda: gt.policy_loss(*rows()[:1], **rows()[1], settings="hi=1=2"),
            "`settings.hi`: got '1=2', expected a number",
        ),
        (lambda: gt.policy_loss(*rows()[:1], **rows()[1], settings={"high": 1}), "`settings` has no field `high`"),
        (
            lambda: gt.nf4_matmul(normal(0, 2, 64), normal(0, 3, 64)),
            "argument `w`: got Tensor, expected a gradus.Nf4Weight",
        ),
    ],
)
def test_what_is_no_tensor_is_named(call, text):
    with pytest.raises((TypeError, gradus.InvalidArgument), match=text):
        call()
