//! The steady state of every op that the model and the trainer call: with operands in device memory
//! a second call asks the driver for launches, and for one download if it has values for the host.

use std::sync::Arc;

use crate::world::*;
use gradus::Device;
use gradus::device::{DeviceBuffer, Driver, DryDriver, EmuDriver, Gpu, KernelSet};
use gradus::ops::*;

#[test]
fn token_ops() {
    let w = World::new(KernelSet::Sm80);
    let ids = w.of(&[1i32, 0, 47, 3, 3], &[T]);
    let (table, weight, dy) = (w.f(1, &[V, H]), w.f(2, &[H]), w.f(3, &[T, H]));
    let (mut x, mut y) = (w.f(4, &[T, H]), w.zeros(&[T, H]));
    let (mut dtable, mut dweight, mut rstd) = (w.zeros(&[V, H]), w.zeros(&[H]), w.zeros(&[T]));
    w.steady("embedding", 0, |d| {
        embedding(d, Embedding { ids: ids.v(), table: table.v(), y: x.m() })
    });
    w.steady("embedding_bwd", 0, |d| {
        embedding_bwd(d, EmbeddingBwd { ids: ids.v(), dy: dy.v(), dtable: dtable.m() })
    });
    w.steady("rmsnorm", 0, |d| {
        let rstd = Some(rstd.m());
        rmsnorm(d, RmsNorm { x: x.v(), weight: weight.v(), eps: 1e-6, y: y.m(), rstd })
    });
    w.steady("rmsnorm_bwd", 0, |d| {
        let args = RmsNormBwd {
            x: x.v(),
            weight: weight.v(),
            eps: 1e-6,
            dy: dy.v(),
            residual: None,
            dx: y.m(),
            dweight: Some(dweight.m()),
        };
        rmsnorm_bwd(d, args)
    });
    let (gate, up, mut dgate, mut dup) =
        (w.f(5, &[T, H]), w.f(6, &[T, H]), w.zeros(&[T, H]), w.zeros(&[T, H]));
    w.steady("swiglu", 0, |d| swiglu(d, Swiglu { gate: gate.v(), up: up.v(), y: y.m() }));
    w.steady("swiglu_bwd", 0, |d| {
        let (dgate, dup) = (dgate.m(), dup.m());
        swiglu_bwd(d, SwigluBwd { gate: gate.v(), up: up.v(), dy: dy.v(), dgate, dup })
    });
    let (positions, cos, sin) =
        (w.of(&[0i32, 1, 2, 0, 1], &[T]), w.f(7, &[4, D / 2]), w.f(8, &[4, D / 2]));
    x.shape = vec![T as i64, HEADS as i64, D as i64];
    w.steady("rope", 0, |d| {
        let (positions, cos, sin) = (positions.v(), cos.v(), sin.v());
        rope(d, Rope { x: x.m(), positions, cos, sin, inverse: false })
    });
}

#[test]
fn products() {
    let w = World::new(KernelSet::Sm80);
    let (x, dy) = (w.f(1, &[T, H]), w.f(2, &[T, V]));
    let (dense, four, bias) = (w.f(3, &[V, H]), Weight::new(&w, 4, [V, H]), w.f(6, &[V]));
    let (a, b) = (w.f(7, &[R, H]), w.f(8, &[V, R]));
    let (mut y, mut dx, mut s) = (w.zeros(&[T, V]), w.zeros(&[T, H]), w.zeros(&[T, R]));
    let (mut dw, mut dbias) = (w.zeros(&[V, H]), w.zeros(&[V]));
    let (mut da, mut db) = (w.zeros(&[R, H]), w.zeros(&[V, R]));
    w.steady("matmul", 0, |d| {
        let lora = &[lora(&a, &b)][..];
        let (bias, adapter, s, residual) = (Some(bias.v()), None, Some(s.m()), None);
        matmul(d, Matmul { x: x.v(), w: dense.v(), bias, lora, adapter, s, residual, y: y.m() })
    });
    w.steady("nf4_matmul", 0, |d| {
        let lora = &[lora(&a, &b)][..];
        let (bias, adapter, s, residual) = (Some(bias.v()), None, None, None);
        nf4_matmul(
            d,
            Nf4Matmul { x: x.v(), w: four.v(), bias, lora, adapter, s, residual, y: y.m() },
        )
    });
    w.steady("matmul_dx", 0, |d| {
        let (lora, adapter, accumulate) = (&[lora(&a, &b)][..], None, true);
        matmul_dx(d, MatmulDx { dy: dy.v(), w: dense.v(), lora, adapter, accumulate, dx: dx.m() })
    });
    w.steady("nf4_matmul_dx", 0, |d| {
        let (lora, adapter, accumulate) = (&[lora(&a, &b)][..], None, true);
        let args = Nf4MatmulDx { dy: dy.v(), w: four.v(), lora, adapter, accumulate, dx: dx.m() };
        nf4_matmul_dx(d, args)
    });
    w.steady("matmul_dw", 0, |d| {
        let dbias = Some(dbias.m());
        matmul_dw(d, MatmulDw { dy: dy.v(), x: x.v(), dw: dw.m(), dbias })
    });
    w.steady("lora_grad", 0, |d| {
        let args = LoraGrad {
            x: x.v(),
            dy: dy.v(),
            s: s.v(),
            lora: lora(&a, &b),
            adapter: None,
            index: 0,
            da: da.m(),
            db: db.m(),
        };
        lora_grad(d, args)
    });
}

#[test]
fn attention_and_its_gradient() {
    let w = World::new(KernelSet::Sm80);
    let (q, k, v) = (w.f(1, &[T, HEADS, D]), w.f(2, &[T, KV, D]), w.f(3, &[T, KV, D]));
    let (cu_seqlens, kv_start, kv_len) =
        (w.of(&[0i64, 3, 5], &[3]), w.of(&[0i64, 3], &[2]), w.of(&[3i64, 2], &[2]));
    let (mut o, mut lse) = (w.zeros(&[T, HEADS, D]), w.zeros(&[T, HEADS]));
    let (mut dq, mut dk, mut dv) =
        (w.zeros(&[T, HEADS, D]), w.zeros(&[T, KV, D]), w.zeros(&[T, KV, D]));
    w.steady("attention", 0, |d| {
        let args = Attention {
            q: q.v(),
            k: k.v(),
            v: v.v(),
            cu_seqlens: cu_seqlens.v(),
            kv_rows: KvRows::From(kv_start.v()),
            kv_len: kv_len.v(),
            scale: 0.3,
            o: o.m(),
            lse: Some(lse.m()),
        };
        attention(d, args)
    });
    w.steady("attention_bwd", 0, |d| {
        let args = AttentionBwd {
            q: q.v(),
            k: k.v(),
            v: v.v(),
            cu_seqlens: cu_seqlens.v(),
            kv_start: kv_start.v(),
            kv_len: kv_len.v(),
            prefix: None,
            scale: 0.3,
            dout: o.v(),
            dq: dq.m(),
            dk: dk.m(),
            dv: dv.m(),
        };
        attention_bwd(d, args)
    });
}

#[test]
fn heads() {
    let w = World::new(KernelSet::Sm80);
    let (hidden, head, four) = (w.f(1, &[T, H]), w.f(2, &[V, H]), Weight::new(&w, 3, [V, H]));
    let targets = w.of(&[1i32, 0, 47, 3, 3], &[T]);
    let (logits, dlogp) = (w.f(5, &[T, V]), w.f(6, &[T]));
    let (mut logp, mut dlogits) = (w.zeros(&[T]), w.zeros(&[T, V]));
    let (mut score, mut dhidden, mut dweight) =
        (w.zeros(&[T, H]), w.zeros(&[T, H]), w.zeros(&[V, H]));
    w.steady("logprob", 0, |d| logprob(d, LogProb::new(logits.v(), targets.v(), logp.m())));
    w.steady("logprob_bwd", 0, |d| {
        logprob_bwd(d, LogProbBwd::new(logits.v(), targets.v(), dlogp.v(), dlogits.m()))
    });
    w.steady("linear_logprob", 0, |d| {
        let head = Head::Nf4(four.v());
        let args = LinearLogProb::new(hidden.v(), head, targets.v(), logp.m());
        linear_logprob(d, LinearLogProb { score: Some(score.m()), ..args })
    });
    w.steady("score_scale", 0, |d| {
        score_scale(d, ScoreScale { score: score.v(), dlogp: dlogp.v(), dhidden: dhidden.m() })
    });
    w.steady("linear_logprob_bwd", 0, |d| {
        let args = LinearLogProbBwd {
            hidden: hidden.v(),
            head: Head::Dense(head.v()),
            lora: &[],
            targets: targets.v(),
            vocab: V as i64,
            transform: LogitTransform::default(),
            dlogp: dlogp.v(),
            dentropy: None,
            dhidden: dhidden.m(),
            dweight: Some(dweight.m()),
        };
        linear_logprob_bwd(d, args)
    });
}

#[test]
fn losses_and_samples() {
    let w = World::new(KernelSet::Sm80);
    let (logits, mut logp, mut dlogp) = (w.f(1, &[T, V]), w.zeros(&[T]), w.zeros(&[T]));
    let (uniform, mut token) = (w.of(&[0.1f64, 0.3, 0.5, 0.7, 0.9], &[T]), w.of(&[0i32; T], &[T]));
    w.steady("sample", 0, |d| {
        let args = Sample {
            logits: logits.v(),
            vocab: V as i64,
            transform: LogitTransform::default(),
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            greedy: false,
            uniform: uniform.v(),
            token: token.m(),
            logp: logp.m(),
            logp_kept: None,
            kept_mass: None,
            entropy: None,
        };
        sample(d, args)
    });
    let cu = w.of(&[0i64, 2, 5], &[3]);
    let (settings, one, mut loss) = (PolicySettings::default(), w.of(&[1f32; 2], &[2]), 0.0);
    w.steady("policy_loss", 1, |d| {
        let args = PolicyLoss::new(
            logp.v(),
            Advantage::PerSequence(one.v()),
            cu.v(),
            one.v(),
            &settings,
            &mut loss,
            dlogp.m(),
        );
        policy_loss(d, args)
    });
}

#[test]
fn optimizer() {
    let w = World::new(KernelSet::Sm80);
    let (g, h) = (w.f(1, &[5000]), w.f(2, &[70]));
    let mut state: Vec<Tensor<f32>> = (0..3).map(|_| w.zeros(&[5000])).collect();
    let (mut norm, mut outcome) = (GlobalNorm::default(), AdamWOutcome::default());
    w.steady("grad_norm", 1, |d| {
        grad_norm(d, GradNorm { grads: &[g.v(), h.v()], norm: &mut norm })
    });
    w.steady("adamw", 1, |d| {
        let [param, m, v] = &mut state[..] else { unreachable!() };
        let mask = None;
        let tensor = AdamWTensor { param: param.m(), grad: g.v(), m: m.m(), v: v.m(), mask };
        let settings = AdamWSettings::default();
        adamw(d, AdamW { tensors: vec![tensor], settings, outcome: &mut outcome })
    });
    assert!(norm.finite && outcome.updated == 5000);
    let mut codes = [w.of(&[0u8; 5000], &[5000]), w.of(&[0u8; 5000], &[5000])];
    let mut maxima = [w.zeros(&[20]), w.zeros(&[20])];
    w.steady("adamw_8bit", 1, |d| {
        let ([m, v], [m_absmax, v_absmax]) = (&mut codes, &mut maxima);
        let tensor = AdamW8bitTensor {
            param: state[0].m(),
            grad: g.v(),
            m: m.m(),
            v: v.m(),
            m_absmax: m_absmax.m(),
            v_absmax: v_absmax.m(),
            mask: None,
        };
        let settings = AdamWSettings::default();
        adamw_8bit(d, AdamW8bit { tensors: vec![tensor], settings, outcome: &mut outcome })
    });
}

/// Operands that are never the same twice do not fill the device with tables.
#[test]
fn tables_are_bounded() {
    let driver = Arc::new(DryDriver::new(EmuDriver::new().info().clone()));
    let gpu = Arc::new(Gpu::new(driver.clone()).unwrap());
    let device = Device::Gpu(gpu.clone());
    let grad = DeviceBuffer::<f32>::new(&gpu, 4000).unwrap();
    let mut norm = GlobalNorm::default();
    for first in 0..1500 {
        let grad = grad.view(&[4000]).unwrap();
        let grads: Vec<_> = (0..1000).map(|i| grad.narrow(first + i, 1).unwrap()).collect();
        grad_norm(&device, GradNorm { grads: &grads, norm: &mut norm }).unwrap();
    }
    // 36 MB of tables went through slabs of at most 16 MiB.
    let usage = driver.usage();
    assert!(usage.peak < 80 << 20 && usage.allocations < 16, "{usage:?}");
}
