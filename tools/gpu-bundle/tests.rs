//! Every test that runs on all executors, as one executable.

#[path = "../../tests/device_faults.rs"]
mod device_faults;
#[path = "../../tests/device_graph.rs"]
mod device_graph;
#[path = "../../tests/device_steady.rs"]
mod device_steady;
#[path = "../../tests/golden_policy.rs"]
mod golden_policy;
#[path = "../../tests/golden_verl_adv.rs"]
mod golden_verl_adv;
#[path = "../../tests/gpu_conformance.rs"]
mod gpu_conformance;
#[path = "../../tests/gpu_delta.rs"]
mod gpu_delta;
#[path = "../../tests/gpu_device_memory.rs"]
mod gpu_device_memory;
#[path = "../../tests/gpu_dtypes.rs"]
mod gpu_dtypes;
#[path = "../../tests/gpu_dtypes_decoder.rs"]
mod gpu_dtypes_decoder;
#[path = "../../tests/gpu_group.rs"]
mod gpu_group;
#[path = "../../tests/gpu_lerp.rs"]
mod gpu_lerp;
#[path = "../../tests/gpu_logprob.rs"]
mod gpu_logprob;
#[path = "../../tests/gpu_nan.rs"]
mod gpu_nan;
#[path = "../../tests/gpu_token.rs"]
mod gpu_token;
#[path = "../../tests/gpu_vocab.rs"]
mod gpu_vocab;
#[path = "../../tests/model/main.rs"]
mod model;
#[path = "../../tests/ops_advantage.rs"]
mod ops_advantage;
#[path = "../../tests/ops_advantage_errors.rs"]
mod ops_advantage_errors;
#[path = "../../tests/ops_attention.rs"]
mod ops_attention;
#[path = "../../tests/ops_attention_mma.rs"]
mod ops_attention_mma;
#[path = "../../tests/ops_attention_mma_bwd.rs"]
mod ops_attention_mma_bwd;
#[path = "../../tests/ops_attention_paged.rs"]
mod ops_attention_paged;
#[path = "../../tests/ops_copy.rs"]
mod ops_copy;
#[path = "../../tests/ops_decoder.rs"]
mod ops_decoder;
#[path = "../../tests/ops_dequantize.rs"]
mod ops_dequantize;
#[path = "../../tests/ops_gae.rs"]
mod ops_gae;
#[path = "../../tests/ops_group_loss.rs"]
mod ops_group_loss;
#[path = "../../tests/ops_head.rs"]
mod ops_head;
#[path = "../../tests/ops_logprob.rs"]
mod ops_logprob;
#[path = "../../tests/ops_lora_grad.rs"]
mod ops_lora_grad;
#[path = "../../tests/ops_matmul.rs"]
mod ops_matmul;
#[path = "../../tests/ops_nf4_grouped.rs"]
mod ops_nf4_grouped;
#[path = "../../tests/ops_nf4_matmul.rs"]
mod ops_nf4_matmul;
#[path = "../../tests/ops_optim.rs"]
mod ops_optim;
#[path = "../../tests/ops_paged_adamw.rs"]
mod ops_paged_adamw;
#[path = "../../tests/ops_pair_loss.rs"]
mod ops_pair_loss;
#[path = "../../tests/ops_policy_loss.rs"]
mod ops_policy_loss;
#[path = "../../tests/ops_quant.rs"]
mod ops_quant;
#[path = "../../tests/ops_residual.rs"]
mod ops_residual;
#[path = "../../tests/ops_rmsnorm.rs"]
mod ops_rmsnorm;
#[path = "../../tests/ops_sample.rs"]
mod ops_sample;
#[path = "../../tests/ops_sparsity.rs"]
mod ops_sparsity;
#[path = "../../tests/ops_tensor.rs"]
mod ops_tensor;
#[path = "../../tests/ops_vocab.rs"]
mod ops_vocab;
