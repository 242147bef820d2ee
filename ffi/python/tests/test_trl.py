"""TRL's GRPOTrainer with and without gradus: the same losses and gradients, step by step."""

import statistics
import time

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from datasets import Dataset
from peft import LoraConfig
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.kernels import ChunkedLogProbFunction

from gradus import torch as gt
from gradus.trl import GradusGRPOMixin, patch

CHARS = "0123456789+-=:"
STEPS = 5


def tokenizer():
    vocab = {c: i for i, c in enumerate(CHARS)} | {"<eos>": len(CHARS), "<pad>": len(CHARS) + 1}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(CHARS) + 2,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        eos_token_id=len(CHARS),
        pad_token_id=len(CHARS) + 1,
        bos_token_id=None,
        initializer_range=0.2,
    )
    path = tmp_path_factory.mktemp("qwen2")
    Qwen2ForCausalLM(config).save_pretrained(path)
    return str(path)


def reward(completions, **_):
    """Varied, and without a score for some completions."""
    return [None if len(text) % 5 == 4 else float(len(set(text)) + text.count("1")) for text in completions]


class Recorder(TrainerCallback):
    """Gradients before every optimizer step."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def run(cls, path, tmp_path, peft=False, **settings):
    """Losses, gradients and metrics of STEPS steps; two optimizer steps per batch, so that ratios leave 1. SGD:
    Adam's first step is the gradient's sign, which makes a rounding of 1e-9 a step like any other."""
    torch.manual_seed(0)
    settings = dict(beta=0.0, loss_type="grpo", epsilon_high=0.28) | settings
    arguments = GRPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to=[],
        per_device_train_batch_size=8,
        num_generations=4,
        max_steps=STEPS,
        max_completion_length=6,
        temperature=0.9,
        optim="sgd",
        learning_rate=0.3,
        num_iterations=2,
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        gradient_checkpointing=False,
        seed=1,
        **settings,
    )
    recorder = Recorder()
    prompts = [{"prompt": f"{i % 9 + 1}{i % 7 + 1}{i % 5 + 1}={i % 19}:"} for i in range(64)]
    trainer = cls(
        model=path,
        reward_funcs=reward,
        args=arguments,
        callbacks=[recorder],
        processing_class=tokenizer(),
        train_dataset=Dataset.from_list(prompts),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if peft else None,
    )
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert len(logs) == len(recorder.gradients) == STEPS
    return logs, recorder.gradients


class GradusTrainer(GradusGRPOMixin, GRPOTrainer):
    pass


SAME = (
    "grad_norm",
    "reward",
    "entropy",
    "kl",
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    "clip_ratio/region_mean",
    "clip_ratio/low_min",
    "clip_ratio/high_max",
    "cispo_clip_ratio",
    "vespo/phi_seq_mean",
    "policy_loss",
)


def same_runs(path, tmp_path, **settings):
    (want_logs, want), (got_logs, got) = (run(cls, path, tmp_path, **settings) for cls in (GRPOTrainer, GradusTrainer))
    for step, (a, b) in enumerate(zip(got_logs, want_logs)):
        assert abs(a["loss"] - b["loss"]) <= 1e-5, f"step {step}: loss {a['loss']} against {b['loss']}"
        for key in SAME:
            assert (key in a) == (key in b), key
            assert key not in a or abs(a[key] - b[key]) <= 1e-4 * max(1.0, abs(b[key])), f"step {step}: {key}"
    worst = 0.0
    for step, (a, b) in enumerate(zip(got, want)):
        assert a.keys() == b.keys()
        norm = torch.stack([b[name].norm() for name in b]).norm()
        assert norm > 0, f"step {step}: nothing to compare"
        for name in b:
            # Relative to the tensor; one that is a ten-thousandth of all has rounding of its own.
            off = (a[name] - b[name]).norm() / b[name].norm().clamp(min=1e-4 * norm)
            worst = max(worst, float(off))
            assert off <= 1e-4, f"step {step}: {name} is off by {off}"
    moved = max(abs(row["loss"]) for row in want_logs)
    print(f"{settings}: gradients within {worst:.1e}, losses up to {moved:.3f}")


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "bnpo"])
def test_five_steps_are_trls(loss_type, beta, model_path, tmp_path):
    same_runs(model_path, tmp_path, loss_type=loss_type, beta=beta)


@pytest.mark.parametrize(
    "settings",
    [
        dict(loss_type="grpo", beta=0.04, peft=True),
        dict(loss_type="dapo", gradient_accumulation_steps=2),
        dict(loss_type="grpo", importance_sampling_level="sequence", scale_rewards="batch"),
        dict(loss_type="dapo", delta=1.5, beta=0.04, use_bias_correction_kl=True, scale_rewards="none"),
        dict(loss_type="grpo", top_entropy_quantile=0.5, off_policy_mask_threshold=0.01),
        dict(loss_type="grpo", entropy_coef=0.01),
        dict(loss_type="cispo", epsilon_high=5.0),
        dict(loss_type="sapo"),
        dict(loss_type="vespo"),
        dict(loss_type="luspo", importance_sampling_level="sequence"),
        dict(loss_type="grpo", multi_objective_aggregation="normalize_then_sum"),
    ],
    ids=lambda s: "-".join(f"{k}={v}" for k, v in s.items()),
)
def test_other_settings_are_trls(settings, model_path, tmp_path):
    same_runs(model_path, tmp_path, **settings)


def test_patch_makes_an_existing_trainer_ours(model_path, tmp_path):
    made = []
    run(lambda **kw: made.append(patch(GRPOTrainer(**kw))) or made[0], model_path, tmp_path)
    assert isinstance(made[0], GradusGRPOMixin) and hasattr(made[0], "_gradus_settings") and patch(made[0]) is made[0]


# ---- time ---------------------------------------------------------------------------------------


def milliseconds(f, repeats=7):
    f()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        f()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def test_time_of_the_loss_part(capsys):
    """Median of 7, forward and backward: the head on a policy with a frozen head, and the formula of the loss."""
    n, h, v, b, t = 256, 256, 32000, 64, 512
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(n, h, generator=g).requires_grad_(), torch.randn(v, h, generator=g) * 0.1
    targets, upstream = torch.randint(v, (n,), generator=g), torch.randn(n, generator=g)
    logp, old, ref = ((torch.randn(b, t, generator=g) - 2) for _ in range(3))
    mask, advantage = torch.arange(t)[None] < torch.randint(1, t, (b, 1), generator=g), torch.randn(b, generator=g)
    logp.requires_grad_()

    def trl_head():
        out = ChunkedLogProbFunction.apply(
            hidden, weight, None, targets, 0.9, 32768, None, 1.0, ("log_probs", "entropy")
        )
        (out[0] * upstream).sum().backward()

    def our_head():
        out = gt.linear_logprob(hidden, weight, targets, temperature=0.9, entropy=True, score=True)
        (out.logp * upstream).sum().backward()

    def trl_loss():
        ratio, k = torch.exp(logp - old), ref - logp
        clipped, a = torch.clamp(ratio, 0.8, 1.28), advantage[:, None]
        each = -torch.min(ratio * a, clipped * a) + 0.04 * (torch.exp(k) - k - 1)
        (((each * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()).backward()

    settings = {"hi": 1.28, "use_kl": 1, "kl_coef": 0.04}

    def our_loss():
        weights = 1 / (b * mask.sum(1).clamp(min=1.0))
        gt.policy_loss(
            logp, advantage, seq_weight=weights, settings=settings, mask=mask, old_logp=old, ref_logp=ref
        ).loss.backward()

    rows = [(f"head, {n} x {h} by {v}", trl_head, our_head), (f"loss, {b} x {t} tokens, k3", trl_loss, our_loss)]
    with capsys.disabled():
        print(f"\n{'':28} {'TRL':>10} {'gradus':>10}   {torch.get_num_threads()} threads")
        for name, theirs, ours in rows:
            print(f"{name:28} {milliseconds(theirs):7.2f} ms {milliseconds(ours):7.2f} ms")
