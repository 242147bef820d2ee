"""What type checkers see of the package. Lines that end in `wrong` are errors, all others are none."""

import numpy as np

import gradus

x, targets = np.zeros((4, 50), np.float32), np.zeros(4, np.int32)
reward, offsets = np.zeros(4, np.float32), np.array([0, 2, 4])

out = gradus.logprob(x, targets, entropy=True, transform={"temperature": 0.7, "softcap": 30}, device="cpu")
print(out.logp.shape, out.entropy[0])
gradus.logprob(logits=gradus.Bf16.of(x), targets=targets, vocab=np.int64(40), lse=np.zeros(4, np.float32))
gradus.logprob(x)  # wrong
gradus.logprob([[1.0]], targets)  # wrong
gradus.logprob(x, targets, temperature=0.7)  # wrong
gradus.logprob(x, targets, transform={"temperatur": 0.7})  # wrong
gradus.logprob(x, targets, vocab="all")  # wrong
gradus.logprobs(x, targets)  # wrong
print(out.probabilities)  # wrong

groups = gradus.group_advantage(reward, offsets, scale="none", baseline=gradus.BASELINE_MEAN, groups=True).groups
print(groups[0]["size"])
gradus.group_advantage(reward, offsets, eps="small")  # wrong

preset = gradus.policy_preset("dapo", length=5)
preset.settings.hi = 1.3
loss = gradus.policy_loss(reward, reward, offsets, reward, settings=preset.settings, stats=True)
print(loss.loss + 1.0, loss.dlogp, loss.stats["n_tokens"])
loss.loss.backward()  # wrong
gradus.policy_loss(reward, reward, offsets, reward, settings={"loss": "cispo", "class_weight": [1.0] * 8, "hi": 2})
gradus.struct("policy_settings", hi=1.1)

weight = gradus.quantize_4bit(x, double_quant=True)
adapter = gradus.Lora(x, x, 0.5)
print(gradus.nf4_matmul(x, weight, lora=adapter).y, gradus.nf4_matmul(x, weight, lora=[adapter, adapter]).s)
print(weight.matmul(x), weight.n + 1)
gradus.nf4_matmul(x, x)  # wrong
norm: float = gradus.grad_norm([x, x]).norm
state = {"param": x, "grad": x, "m": x, "v": x}
gradus.adamw([{"param": x, "grad": x, "m": x, "v": x}], settings={"lr": 1e-3, "decay": "decay_before"})
gradus.adamw([{"param": x, "gradient": x}])  # wrong

with gradus.Device("cpu") as device:
    print(device.name + "", device.array(x).numpy(), gradus.workspace_size("logprob", device, logits=x))
device.closed()  # wrong
code: int = gradus.SCALE_NONE + gradus.IGNORE
try:
    gradus.set_threads("own")
except gradus.InvalidArgument as error:
    print(error.status + 1, error.message + error.name)
