"""The package with numpy, torch and DLPack: conversions, outputs, devices, errors, documentation."""

import ctypes
import gc
import inspect
import os
import pathlib
import re
import threading

import numpy as np
import pytest

import gradus
from gradus import _sys

HERE = pathlib.Path(__file__).resolve().parent
LOGITS = np.random.default_rng(0).standard_normal((4, 50)).astype("f4")
TARGETS = np.array([1, 2, -100, 49], "i4")


def expected(logits=LOGITS):
    z = logits.astype(np.float64)
    logp = z[np.arange(4), np.maximum(TARGETS, 0)] - np.log(np.exp(z).sum(1))
    return np.where(TARGETS < 0, 0, logp)


def near(got, want=None, tolerance=1e-6):
    np.testing.assert_allclose(np.asarray(got, np.float64), expected() if want is None else want, atol=tolerance)


# ---- outputs ------------------------------------------------------------------------------------


def test_outputs_are_made_when_needed_and_optional_ones_when_asked_for():
    out = gradus.logprob(LOGITS, TARGETS)
    near(out.logp)
    assert out.logp.dtype == np.float32 and out.entropy is None and out._fields[:2] == ("logp", "lse")
    out = gradus.logprob(logits=LOGITS, targets=TARGETS, entropy=True, top1=True, transform={"temperature": 2.0})
    assert out.entropy.shape == (4,) and out.top1.dtype == np.uint8
    near(out.logp, expected(LOGITS / 2))


def test_given_outputs_are_written_in_place_with_their_strides():
    wide = np.full((4, 3), np.nan, "f4")
    out = gradus.logprob(LOGITS, TARGETS, logp=wide[:, 1])
    near(wide[:, 1])
    assert out.logp.base is wide and np.isnan(wide[:, [0, 2]]).all()


def test_rows_with_gaps_are_read_where_they_are():
    padded = np.full((4, 60), np.nan, "f4")
    padded[:, :50] = LOGITS
    near(gradus.logprob(padded, TARGETS, vocab=50).logp)
    near(gradus.logprob(padded[:, :50], TARGETS).logp)


def test_results_for_the_host_are_numbers_and_dicts():
    out = gradus.value_loss(np.array([1.0, 2.0]), np.array([0.0, 0.0]))
    assert out.loss == 2.5 and out.dvalue.tolist() == [1.0, 2.0]
    assert gradus.grad_norm([np.array([3.0]), np.array([4.0])]).norm == 5.0
    groups = gradus.group_advantage(np.array([1.0, 0.0, 3.0]), np.array([0, 2, 3]), groups=True).groups
    assert [g["size"] for g in groups] == [2, 1] and groups[1]["degenerate"] == 1


def test_gradients_that_add_start_at_zero():
    dy, x = np.ones((3, 2), "f4"), np.ones((3, 4), "f4")
    assert (gradus.matmul_dw(dy, x).dw == 3).all()
    dw = np.ones((2, 4), "f4")
    gradus.matmul_dw(dy, x, dw=dw)
    assert (dw == 4).all()


def test_ops_in_place_return_their_operand():
    x = np.ones((2, 1, 4), "f4")
    table = np.zeros((3, 2), "f4")
    out = gradus.rope(x, np.array([0, 1], "i4"), table, table)
    assert out.x is x and (x == 0).all()


def test_enumerators_may_be_names():
    reward, offsets = np.array([1.0, 0.0, 3.0]), np.array([0, 3])
    by_name = gradus.group_advantage(reward, offsets, scale="none", baseline="LEAVE_ONE_OUT").advantage
    by_number = gradus.group_advantage(
        reward, offsets, scale=gradus.SCALE_NONE, baseline=gradus.BASELINE_LEAVE_ONE_OUT
    ).advantage
    assert (by_name == by_number).all()
    with pytest.raises(gradus.InvalidArgument, match="`scale`: got 'std', expected .*SCALE_GROUP_STD"):
        gradus.group_advantage(reward, offsets, scale="std")


def test_structs_may_be_dicts_or_structs():
    rows = dict(
        logp=np.full(2, -1.0),
        old_logp=np.full(2, -2.0),
        advantage=np.ones(1),
        cu_seqlens=np.array([0, 2]),
        seq_weight=np.ones(1),
    )
    settings = gradus.struct("policy_settings", hi=1.1, loss="ppo_clip")
    assert (
        gradus.policy_loss(**rows, settings=settings).loss
        == gradus.policy_loss(**rows, settings={"hi": 1.1}).loss
        == -2.2
    )
    preset = gradus.policy_preset("dapo")
    assert preset.settings.hi == 1.28 and preset.weights([1, 3]).tolist() == [0.25, 0.25]
    with pytest.raises(TypeError, match="`settings` has no field `high`"):
        gradus.policy_loss(**rows, settings={"high": 1.1})


def test_a_field_of_a_struct_is_neither_misspelled_nor_cut():
    settings = gradus.policy_preset("dapo").settings
    settings.hi, settings.loss = 1.5, gradus.CISPO
    with pytest.raises(AttributeError, match="high"):
        settings.high = 1.3
    with pytest.raises(OverflowError, match="policy_settings: field `loss`: got 4294967298, which it cannot hold"):
        settings.loss = (1 << 32) + 2
    assert settings.hi == 1.5 and settings.loss == gradus.CISPO


@pytest.mark.parametrize(
    "given,error,text",
    [
        (
            dict(vocab=(1 << 64) + 5),
            gradus.InvalidArgument,
            "argument `vocab`: got 18446744073709551621, expected a whole",
        ),
        (dict(vocab=4.5), TypeError, "argument `vocab`: got 4.5, expected a whole number of 64 bits"),
        (
            dict(transform={"temperature": "hot"}),
            gradus.InvalidArgument,
            "argument `transform.temperature`: got 'hot', expected a number",
        ),
        (
            dict(transform={"temperature": [1.0]}),
            TypeError,
            r"argument `transform.temperature`: got \[1.0\], expected a number",
        ),
        (dict(transform={"reserved": 1}), TypeError, "`transform` has no field `reserved`"),
        (dict(transform=0.7), TypeError, "argument `transform`: got float, expected a dict or logit_transform"),
        (dict(device=3), TypeError, "logprob: argument `device`: got 3, expected a gradus.Device or its name"),
        (dict(device="tpu"), gradus.InvalidArgument, "`device`: got `tpu`"),
    ],
)
def test_what_a_field_cannot_hold_is_refused_by_name(given, error, text):
    with pytest.raises(error, match=text):
        gradus.logprob(LOGITS, TARGETS, **given)


def test_numbers_of_any_kind_are_taken():
    padded = np.pad(LOGITS, ((0, 0), (0, 10)), constant_values=9)
    want = gradus.logprob(LOGITS, TARGETS, transform={"temperature": 2.0}, device="cpu").logp
    got = gradus.logprob(padded, TARGETS, vocab=np.int32(50), transform={"temperature": np.float32(2)}).logp
    assert (got == want).all()


def test_the_operand_of_another_rank_is_named_and_not_the_output():
    for call, text in (
        (
            lambda: gradus.group_advantage(np.zeros((2, 4)), np.array([0, 4, 8])),
            r"`reward`: got rank 2: \[2, 4\], expected \[B\]",
        ),
        (lambda: gradus.logprob(LOGITS[0], TARGETS[0:1]), r"`logits`: got "),
        (lambda: gradus.quantize_4bit(LOGITS[0]), r"`x`: got rank 1: \[50\], expected \[N, K\]"),
        (lambda: gradus.rmsnorm(np.zeros((2, 3, 4)), np.ones(4)), r"`x`: got rank 3: \[2, 3, 4\], expected \[T, D\]"),
        (lambda: gradus.matmul(LOGITS, LOGITS[0]), r"`w`: got rank 1"),
    ):
        with pytest.raises(gradus.InvalidArgument, match=f"argument {text}"):
            call()


@pytest.mark.parametrize(
    "call,text",
    [
        (lambda: gradus.struct("settings"), "struct: argument `name`: got 'settings', expected one of policy_settings"),
        (
            lambda: gradus.struct("policy_settings", class_weight=[1.0, 2.0]),
            "argument `settings.class_weight`: got 2, expected 8",
        ),
        (lambda: gradus.Device("cpu").zeros((2,), "float8"), "Device.zeros: argument `dtype`: got 'float8'"),
        (lambda: gradus.quantize_4bit(np.ones((2, 64), "f4")).dequantize("int4"), "argument `dtype`: got 'int4'"),
        (lambda: gradus.quantize_4bit(np.ones((2, 64), "f4"), quant_type="nf5"), "argument `quant_type`: got 'nf5'"),
        (
            lambda: gradus.Nf4Weight(LOGITS, LOGITS, LOGITS, "4", 50).dequantize(),
            "argument `n`: got '4', expected a whole",
        ),
        (lambda: gradus.seq_weights("token_max", [1, 2]), "argument `aggregation`: got 'token_max'"),
        (lambda: gradus.seq_weights("token_mean", [[1, 2]]), "argument `lengths`: got .*2 dimensions"),
        (lambda: gradus.seq_weights("token_mean", [1.5, 2.0]), "argument `lengths`: got float64"),
    ],
)
def test_errors_before_the_call_name_the_argument(call, text):
    with pytest.raises(gradus.InvalidArgument, match=text):
        call()


@pytest.mark.parametrize(
    "call,error,text",
    [
        (
            lambda: gradus.policy_preset("nope"),
            gradus.ConfigError,
            "^policy_preset: argument `name`: `nope` is not one of grpo",
        ),
        (lambda: gradus.policy_preset(3), TypeError, "policy_preset: argument `name`: got 3, expected a text"),
        (lambda: gradus.policy_preset("dapo", length="a"), TypeError, "argument `length`: got 'a', expected a number"),
        (lambda: gradus.seq_weights("token_mean_of", [1], value="x"), TypeError, "argument `value`: got 'x', expected"),
        (lambda: gradus.Device(3), TypeError, "Device: argument `name`: got 3, expected a text"),
        (
            lambda: gradus.struct("policy_settings", high=1),
            TypeError,
            "policy_loss: argument `settings` has no field `high`",
        ),
    ],
)
def test_values_of_another_kind_are_refused_by_name(call, error, text):
    with pytest.raises(error, match=text):
        call()


# ---- arrays of others ---------------------------------------------------------------------------


def test_bfloat16_of_numpy():
    bits = gradus.Bf16.of(LOGITS)
    near(gradus.logprob(bits, TARGETS).logp, expected(bits.float()))
    grad = gradus.logprob_bwd(bits, TARGETS, np.ones(4, "f4")).dlogits
    assert isinstance(grad, gradus.Bf16) and grad.bits.shape == (4, 50)
    ml_dtypes = pytest.importorskip("ml_dtypes")
    native = LOGITS.astype(ml_dtypes.bfloat16)
    assert (native.view(np.uint16) == bits.bits).all()
    ours = gradus.logprob_bwd(native, TARGETS, np.ones(4, "f4")).dlogits
    assert ours.dtype == native.dtype and (ours.view(np.uint16) == grad.bits).all()


def test_torch_in_torch_out():
    torch = pytest.importorskip("torch")
    logits = torch.from_numpy(LOGITS).T.contiguous().T  # columns are the contiguous ones
    out = gradus.logprob(torch.from_numpy(LOGITS), torch.from_numpy(TARGETS), entropy=True)
    assert isinstance(out.logp, torch.Tensor) and isinstance(out.entropy, torch.Tensor)
    near(out.logp)
    half = gradus.logprob_bwd(torch.from_numpy(LOGITS).bfloat16(), torch.from_numpy(TARGETS), torch.ones(4)).dlogits
    assert half.dtype == torch.bfloat16
    with pytest.raises(gradus.InvalidArgument, match="`logits`: got strides"):
        gradus.logprob(logits, torch.from_numpy(TARGETS))
    with pytest.raises(TypeError, match="requires grad"):
        gradus.logprob(torch.ones(2, 3, requires_grad=True), torch.zeros(2, dtype=torch.int32))


class Exporter:
    """Somebody's array, behind DLPack alone."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **_):
        return self.array.__dlpack__()

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_dlpack_and_array_interface():
    near(gradus.logprob(Exporter(LOGITS), Exporter(TARGETS), logp=np.empty(4, "f4")).logp)
    near(gradus.logprob(Exporter(LOGITS), TARGETS).logp)
    torch = pytest.importorskip("torch")
    half = torch.from_numpy(LOGITS).bfloat16()
    got = gradus.logprob(Exporter(half), Exporter(torch.from_numpy(TARGETS))).logp
    near(got, expected(half.float().numpy()))

    class Interface:
        __array_interface__ = LOGITS.__array_interface__

    near(gradus.logprob(Interface(), TARGETS).logp)


@pytest.mark.parametrize(
    "value,error,text",
    [
        ([[1.0, 2.0]], TypeError, "got list, expected an array"),
        (np.zeros((2, 3), "c8"), TypeError, "got dtype complex64"),
        (np.zeros((2, 3), ">f4"), TypeError, "byte order"),
        (np.zeros((1, 1, 1, 1, 2), "f4"), TypeError, "5 dimensions"),
        (np.zeros(24, "u1")[1:].view("u1")[:12].view("f4").reshape(1, 3), gradus.InvalidArgument, "multiple of 4"),
    ],
)
def test_what_is_no_tensor_is_refused(value, error, text):
    with pytest.raises(error, match=text):
        gradus.logprob(value, np.zeros(len(value), "i4"))


def test_outputs_that_cannot_be_written_or_made():
    fixed = np.zeros(4, "f4")
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="`logp`: got a read-only array"):
        gradus.logprob(LOGITS, TARGETS, logp=fixed)
    with pytest.raises(gradus.InvalidArgument, match="copy_rows: argument `y`: got no tensor"):
        gradus.copy_rows(LOGITS)
    with pytest.raises(TypeError, match="has no argument `temperature`"):
        gradus.logprob(LOGITS, TARGETS, temperature=0.5)
    with pytest.raises(ValueError, match="no op `softmax`"):
        gradus.call("softmax")


# ---- 4-bit weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_four_bit_weights(kind, double_quant):
    x = np.random.default_rng(1).standard_normal((6, 64)).astype("f4")
    if kind == "torch":
        x = pytest.importorskip("torch").from_numpy(x)
    w = gradus.quantize_4bit(x, double_quant=double_quant)
    y = w.dequantize()
    assert type(y) is type(x) and abs(y - x).max() < 1
    rows = x[:2]
    near(w.matmul(rows), np.asarray(rows, np.float64) @ np.asarray(y, np.float64).T, 1e-5)
    lora = gradus.Lora(x[:3], x[:, :3] * 1, 0.5) if kind == "numpy" else gradus.Lora(x[:3], x[:, :3].contiguous(), 0.5)
    out = gradus.nf4_matmul(rows, w, lora=lora, s=True)
    near(out.s, 0.5 * np.asarray(rows, np.float64) @ np.asarray(x[:3], np.float64).T, 1e-5)


def test_a_checkpoint_and_a_quant_state_are_read():
    x = np.random.default_rng(2).standard_normal((6, 64)).astype("f4")
    w = gradus.quantize_4bit(x, double_quant=True)
    state = (
        b'{"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [6, 64], "nested_blocksize": 256, '
        + b'"nested_dtype": "float32", "nested_offset": %r}' % w.offset
    )
    file = {
        "w": w.packed.reshape(-1, 1),
        "w.absmax": w.absmax,
        "w.quant_map": w.quant_map,
        "w.nested_absmax": w.nested_absmax,
        "w.nested_quant_map": w.nested_quant_map,
        "w.quant_state.bitsandbytes__nf4": np.frombuffer(state, np.uint8),
    }
    read = gradus.Nf4Weight.from_checkpoint(file, "w")
    assert (read.dequantize() == w.dequantize()).all() and read.dtype == "float32"
    with pytest.raises(KeyError, match="other"):
        gradus.Nf4Weight.from_checkpoint(file, "other")

    class State:
        nested, shape, dtype, blocksize, code, absmax, offset = (
            True,
            (6, 64),
            "torch.float32",
            64,
            w.quant_map,
            w.absmax,
            w.offset,
        )

        class state2:
            absmax, code, blocksize = w.nested_absmax, w.nested_quant_map, 256

    assert (gradus.Nf4Weight.from_quant_state(file["w"], State).dequantize() == w.dequantize()).all()


# ---- devices ------------------------------------------------------------------------------------


def emulated():
    if "emu" not in gradus.build_info():
        pytest.skip("a library without the feature emu")
    return gradus.Device("emu:sm90a")


def test_devices_close_and_say_so():
    with gradus.Device("cpu") as device:
        assert device.name and repr(device) == "gradus.Device('cpu')"
        near(gradus.logprob(LOGITS, TARGETS, device=device).logp)
        device.synchronize()
        device.reserve(1 << 20)
    device.close()
    with pytest.raises(gradus.BadHandle, match="ctx"):
        gradus.logprob(LOGITS, TARGETS, device=device)
    with pytest.raises(gradus.InvalidArgument, match="`tpu`"):
        gradus.Device("tpu")
    assert isinstance(gradus.Device("auto"), gradus.Device)


def test_forgotten_devices_are_closed():
    device = gradus.Device("cpu")
    context, release = device.context, device._release
    del device
    gc.collect()
    assert not release.alive
    assert gradus._library.LIBRARY.gradus_synchronize(context, None) == gradus.BAD_HANDLE


def test_memory_of_an_emulated_gpu():
    with emulated() as device:
        logits, targets = device.array(LOGITS), device.array(TARGETS)
        out = gradus.logprob(logits, targets, entropy=True)  # the device is that of its arrays
        assert isinstance(out.logp, gradus.DeviceArray)
        near(out.logp.numpy())
        near(gradus.logprob(LOGITS, TARGETS, device=device).logp)
        assert gradus.workspace_size("logprob", device, logits=logits, targets=targets, logp=out.logp) >= 0
        bits = gradus.Bf16.of(LOGITS)
        assert (device.array(bits).numpy().bits == bits.bits).all()
        with pytest.raises(gradus.InvalidArgument, match="memory"):
            gradus.logprob(logits, TARGETS, device=gradus.Device("cpu"), logp=np.empty(4, "f4"))


def test_threads_share_a_device_and_keep_their_errors():
    failures = []

    def work(i):
        for _ in range(50):
            bad = np.array([0, 50 + i, 1, 2], "i4")
            try:
                gradus.logprob(LOGITS, bad)
                failures.append("no error")
            except gradus.InvalidArgument as error:
                if f"got {50 + i} at index 1" not in str(error):
                    failures.append(str(error))
            near(gradus.logprob(LOGITS, TARGETS).logp)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_fork_says_so_and_does_not_hang():
    gradus.logprob(LOGITS, TARGETS)
    child = os.fork()
    if child == 0:
        try:
            gradus.logprob(LOGITS, TARGETS)
        except RuntimeError as error:
            os._exit(7 if "spawn" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


# ---- errors, documentation, drift ---------------------------------------------------------------


@pytest.mark.parametrize(
    "name,bases",
    [
        ("InvalidArgument", ValueError),
        ("NonFinite", ArithmeticError),
        ("OutOfMemory", MemoryError),
        ("NoDriver", RuntimeError),
        ("IoFailure", OSError),
        ("Unsupported", NotImplementedError),
    ],
)
def test_errors_are_pythons_too(name, bases):
    cls = getattr(gradus, name)
    error = cls("text")
    assert isinstance(error, gradus.Error) and isinstance(error, bases) and str(error) == error.message == "text"
    assert getattr(gradus, error.name) == error.status


def test_help_teaches():
    text = gradus.policy_loss.__doc__
    for part in (
        "in R [T], optional: needed for the KL penalty",
        "one of PER_SEQUENCE, PER_TOKEN",
        "PPO_CLIP",
        "kl_coef",
        "out R [T]; 0 where masked",
    ):
        assert part in text
    parameters = inspect.signature(gradus.group_advantage).parameters
    assert list(parameters)[:2] == ["reward", "offsets"] and parameters["eps"].default == 1e-4


def test_help_begins_with_what_the_op_computes():
    first = {name: getattr(gradus, name).__doc__.split("\n")[0] for name in gradus._functions.FUNCTIONS}
    assert all(len(line) > 8 and not line.startswith("Gradient of") for line in first.values()), first
    assert len(set(first.values())) == len(first)
    assert "advantage" in first["gae"] and "mean" in first["whiten"] and "quantile" in first["quantile"]
    for name, line in first.items():
        assert "the gradient of" in line or not name.endswith(("_dx", "_dw")), name


class Other:
    """A library that drifted."""

    def __init__(self, version=None, sizes=None):
        self.version, self.sizes = version, sizes or {}

    def gradus_version(self):
        return gradus._library.LIBRARY.gradus_version() if self.version is None else self.version

    def gradus_sizeof(self, name):
        return self.sizes.get(name.decode(), gradus._library.LIBRARY.gradus_sizeof(name))


def test_a_library_that_does_not_fit_is_refused():
    gradus._library.check(Other(), "here")
    with pytest.raises(ImportError, match="version 0.2.*made for 0.1"):
        gradus._library.check(Other(version=2000), "here")
    with pytest.raises(ImportError, match="struct policy_loss_args has 8 bytes.*generate.py"):
        gradus._library.check(Other(sizes={"policy_loss": 8}), "here")
    assert all(ctypes.sizeof(struct) for struct in _sys.STRUCTS.values())


# ---- README -------------------------------------------------------------------------------------


def examples():
    text = (HERE.parent / "README.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("code", examples(), ids=lambda code: code.split("\n")[0][:40])
def test_readme_runs(code):
    if "torch" in code:
        pytest.importorskip("torch")
    if "trl" in code:
        pytest.importorskip("trl")
    assert len(code.strip().split("\n")) <= 12
    exec(compile(code, "README.md", "exec"), {})


def test_the_package_lists_its_own_names_alone():
    assert {"logprob", "F32", "set_threads", "__version__"} <= set(dir(gradus))
    foreign = [n for n in dir(gradus) if getattr(getattr(gradus, n), "__module__", "gradus").partition(".")[0] != "gradus"]
    assert foreign == []
