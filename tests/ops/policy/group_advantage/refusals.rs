//! Every argument of the advantage, reduction and pair-loss ops wrong once: the error names the
//! argument, and the outputs keep what they held.

use gradus::dtype::Element;
use gradus::ops::*;
use gradus::{Device, Result, View, ViewMut};

const HELD: f64 = 7.5;

/// A view of data that lives as long as the test program.
fn view<T: Element>(data: &[T]) -> View<'static, T> {
    View::from(&*Box::leak(data.to_vec().into_boxed_slice()))
}

fn matrix<T: Element>(data: &[T], shape: [i64; 2]) -> View<'static, T> {
    View::new(Box::leak(data.to_vec().into_boxed_slice()), &shape).unwrap()
}

fn output(len: usize) -> ViewMut<'static, f64> {
    ViewMut::from(Box::leak(vec![HELD; len].into_boxed_slice()))
}

/// The call was refused and its message names `arg`.
#[track_caller]
fn refused(result: Result<()>, arg: &str) {
    let text = result.expect_err(arg).to_string();
    assert!(text.contains(&format!("argument `{arg}`")), "`{arg}` is not named in: {text}");
}

fn held(outputs: &[&[f64]]) {
    assert!(outputs.iter().all(|out| out.iter().all(|&x| x == HELD)), "a refused call wrote");
}

fn group(edit: impl FnOnce(&mut GroupAdvantage<'_, f64>)) -> Result<()> {
    let (mut advantage, mut groups) = (vec![HELD; 3], Vec::new());
    let mut args = GroupAdvantage {
        reward: view(&[1.0, 0.0, 2.0]),
        offsets: view(&[0, 2, 3]),
        length: None,
        settings: GroupSettings::default(),
        advantage: (&mut advantage).into(),
        groups: Some(&mut groups),
    };
    edit(&mut args);
    let result = group_advantage(&Device::Cpu, args);
    if result.is_err() {
        held(&[&advantage]);
        assert!(groups.is_empty());
    }
    result
}

#[test]
fn group_advantage_refuses() {
    group(|_| ()).unwrap();
    refused(group(|a| a.reward = matrix(&[1.0; 3], [1, 3])), "reward");
    refused(group(|a| a.reward = view(&[1.0, f64::INFINITY, 0.0])), "reward");
    refused(group(|a| a.reward = view(&[1.0, -1e200, 0.0])), "reward");
    refused(group(|a| a.offsets = view(&[])), "offsets");
    refused(group(|a| a.offsets = view(&[1, 3])), "offsets");
    refused(group(|a| a.offsets = view(&[0, 2, 1, 3])), "offsets");
    refused(group(|a| a.offsets = view(&[0, 2])), "offsets");
    refused(group(|a| a.offsets = view(&[0, i64::MAX, 3])), "offsets");
    refused(group(|a| a.length = Some(view(&[1, 1]))), "length");
    refused(group(|a| a.length = Some(view(&[1, -1, 1]))), "length");
    refused(group(|a| a.settings.baseline = GroupBaseline::LengthWeighted), "length");
    refused(group(|a| a.settings.eps = -1e-9), "settings.eps");
    refused(group(|a| a.settings.eps = f64::NAN), "settings.eps");
    refused(group(|a| a.settings.ddof = 2), "settings.ddof");
    refused(group(|a| a.advantage = output(4)), "advantage");
    let grouping = Grouping::by_id(&[1, 1, 0]);
    refused(grouping.gather(&[0; 2]).map(|_| ()), "values");
    refused(grouping.scatter(&[0; 4]).map(|_| ()), "grouped");
}

fn token(edit: impl FnOnce(&mut Gae<'_, f64>)) -> Result<()> {
    let (mut advantage, mut returns) = (vec![HELD; 3], vec![HELD; 3]);
    let mut args = Gae {
        reward: view(&[1.0, 0.0, 2.0]),
        value: view(&[1.0, 0.0, 2.0]),
        mask: Some(view(&[1, 0, 1])),
        cu_seqlens: view(&[0, 2, 3]),
        bootstrap: Some(view(&[0.0, 1.0])),
        gamma: 1.0,
        lambda: 0.95,
        advantage: (&mut advantage).into(),
        returns: Some((&mut returns).into()),
    };
    edit(&mut args);
    let result = gae(&Device::Cpu, args);
    if result.is_err() {
        held(&[&advantage, &returns]);
    }
    result
}

#[test]
fn gae_refuses() {
    token(|_| ()).unwrap();
    token(|a| a.value = view(&[1.0, f64::NAN, 2.0])).unwrap();
    refused(token(|a| a.reward = view(&[1.0, 0.0, f64::NAN])), "reward");
    refused(token(|a| a.reward = matrix(&[0.0; 3], [3, 1])), "reward");
    refused(token(|a| a.value = view(&[1.0])), "value");
    refused(token(|a| a.value = view(&[f64::INFINITY, 0.0, 0.0])), "value");
    refused(token(|a| a.mask = Some(view(&[1]))), "mask");
    refused(token(|a| a.cu_seqlens = view(&[0, 3, 2, 3])), "cu_seqlens");
    refused(token(|a| a.bootstrap = Some(view(&[0.0]))), "bootstrap");
    refused(token(|a| a.bootstrap = Some(view(&[0.0, f64::NAN]))), "bootstrap");
    refused(token(|a| a.gamma = 1.1), "gamma");
    refused(token(|a| a.lambda = f64::NAN), "lambda");
    refused(token(|a| a.advantage = output(2)), "advantage");
    refused(token(|a| a.returns = Some(output(5))), "returns");
}

fn discounted(edit: impl FnOnce(&mut DiscountedReturn<'_, f64>)) -> Result<()> {
    let mut args = DiscountedReturn {
        reward: view(&[1.0, 0.0, 2.0]),
        mask: None,
        cu_seqlens: view(&[0, 3]),
        gamma: 1.0,
        masked: MaskedReturn::Skip,
        baseline: None,
        returns: output(3),
    };
    edit(&mut args);
    discounted_return(&Device::Cpu, args)
}

fn white(edit: impl FnOnce(&mut Whiten<'_, f64>)) -> Result<()> {
    let mut args = Whiten {
        x: view(&[1.0, 0.0, 2.0]),
        mask: None,
        settings: WhitenSettings::VERL,
        y: output(3),
        stats: None,
    };
    edit(&mut args);
    whiten(&Device::Cpu, args)
}

fn shaped(edit: impl FnOnce(&mut KlReward<'_, f64>)) -> Result<()> {
    let mut args = KlReward {
        score: view(&[1.0]),
        logp: view(&[-1.0, -2.0, -3.0]),
        reference: view(&[-1.0, -2.0, -3.0]),
        mask: None,
        cu_seqlens: view(&[0, 3]),
        beta: 0.1,
        estimator: RewardKl::K3,
        clamp: f64::INFINITY,
        reward: output(3),
    };
    edit(&mut args);
    kl_reward(&Device::Cpu, args)
}

#[test]
fn token_ops_refuse() {
    discounted(|_| ()).unwrap();
    refused(discounted(|a| a.reward = view(&[f64::NAN, 0.0, 0.0])), "reward");
    refused(discounted(|a| a.mask = Some(view(&[1; 4]))), "mask");
    refused(discounted(|a| a.cu_seqlens = view(&[0, 2])), "cu_seqlens");
    refused(discounted(|a| a.gamma = -0.1), "gamma");
    refused(discounted(|a| a.baseline = Some(view(&[1.0, 2.0]))), "baseline");
    refused(discounted(|a| a.baseline = Some(view(&[f64::NAN]))), "baseline");
    refused(discounted(|a| a.returns = output(1)), "returns");
    white(|_| ()).unwrap();
    refused(white(|a| a.x = view(&[1.0, 0.0, f64::INFINITY])), "x");
    refused(white(|a| a.mask = Some(view(&[0, 1, 0]))), "mask");
    refused(white(|a| a.mask = Some(view(&[1, 1]))), "mask");
    refused(white(|a| a.settings.ddof = 3), "settings.ddof");
    refused(white(|a| a.settings.eps = f64::INFINITY), "settings.eps");
    refused(white(|a| a.settings.count_eps = -1.0), "settings.count_eps");
    refused(white(|a| a.y = output(2)), "y");
    shaped(|_| ()).unwrap();
    refused(shaped(|a| a.score = view(&[1.0, 2.0])), "score");
    refused(shaped(|a| a.score = view(&[f64::NAN])), "score");
    refused(shaped(|a| a.logp = view(&[-1.0, f64::NEG_INFINITY, 0.0])), "logp");
    refused(shaped(|a| a.reference = view(&[-1.0; 2])), "reference");
    refused(shaped(|a| a.reference = view(&[f64::NAN; 3])), "reference");
    refused(shaped(|a| a.mask = Some(view(&[1]))), "mask");
    refused(shaped(|a| a.cu_seqlens = view(&[1, 3])), "cu_seqlens");
    refused(shaped(|a| a.beta = -1.0), "beta");
    refused(shaped(|a| a.clamp = 0.0), "clamp");
    refused(shaped(|a| a.reward = output(1)), "reward");
}

fn reduced(edit: impl FnOnce(&mut SeqReduce<'_, f64>)) -> Result<()> {
    let mut args = SeqReduce {
        x: view(&[1.0, 2.0]),
        mask: None,
        cu_seqlens: view(&[0, 2]),
        reduction: SeqReduction::Sum,
        y: output(1),
        count: None,
    };
    edit(&mut args);
    seq_reduce(&Device::Cpu, args)
}

fn spread(edit: impl FnOnce(&mut SeqBroadcast<'_, f64>)) -> Result<()> {
    let (x, cu_seqlens) = (view(&[1.0]), view(&[0, 2]));
    let mut args = SeqBroadcast { x, mask: None, cu_seqlens, mean: false, y: output(2) };
    edit(&mut args);
    seq_broadcast(&Device::Cpu, args)
}

fn ranked(edit: impl FnOnce(&mut Quantile<'_, f64>)) -> Result<()> {
    let mut args = Quantile {
        x: view(&[1.0, f64::NAN]),
        mask: None,
        scope: QuantileScope::All,
        q: 0.5,
        method: QuantileMethod::Linear,
        on_nan: OnNan::Skip,
        y: output(1),
    };
    edit(&mut args);
    quantile(&Device::Cpu, args)
}

fn top(edit: impl FnOnce(&mut TopFraction<'_, f64>)) -> Result<()> {
    let keep = ViewMut::from(Box::leak(vec![9u8; 2].into_boxed_slice()));
    let (x, scope) = (view(&[1.0, 2.0]), QuantileScope::All);
    let mut args = TopFraction { x, class: None, scope, fraction: 0.2, keep, threshold: None };
    edit(&mut args);
    top_fraction(&Device::Cpu, args)
}

#[test]
fn reductions_and_quantiles_refuse() {
    reduced(|_| ()).unwrap();
    refused(reduced(|a| a.x = matrix(&[1.0, 2.0], [2, 1])), "x");
    refused(reduced(|a| a.mask = Some(view(&[1]))), "mask");
    refused(reduced(|a| a.cu_seqlens = view(&[0, 1])), "cu_seqlens");
    refused(reduced(|a| a.y = output(2)), "y");
    refused(
        reduced(|a| a.count = Some(ViewMut::from(Box::leak(vec![0i64; 2].into_boxed_slice())))),
        "count",
    );
    spread(|_| ()).unwrap();
    refused(spread(|a| a.x = view(&[1.0; 2])), "x");
    refused(spread(|a| a.mask = Some(view(&[1]))), "mask");
    refused(spread(|a| a.cu_seqlens = view(&[0, 3])), "cu_seqlens");
    refused(spread(|a| a.y = output(1)), "cu_seqlens");
    ranked(|_| ()).unwrap();
    refused(ranked(|a| a.x = matrix(&[1.0, 2.0], [1, 2])), "x");
    refused(ranked(|a| a.on_nan = OnNan::Error), "x");
    refused(ranked(|a| a.mask = Some(view(&[1]))), "mask");
    refused(ranked(|a| a.scope = QuantileScope::PerSequence(view(&[0, 1]))), "scope");
    refused(ranked(|a| a.q = 1.5), "q");
    refused(ranked(|a| a.q = f64::NAN), "q");
    refused(ranked(|a| a.y = output(2)), "y");
    top(|_| ()).unwrap();
    refused(top(|a| a.x = view(&[1.0, f64::NAN])), "x");
    let class = RankedClass { class: view(&[1]), ranked: 1, others: true };
    refused(top(|a| a.class = Some(class)), "class");
    refused(top(|a| a.scope = QuantileScope::PerSequence(view(&[]))), "scope");
    refused(top(|a| a.fraction = -0.2), "fraction");
    refused(top(|a| a.threshold = Some(output(2))), "threshold");
    refused(top(|a| a.keep = ViewMut::from(Box::leak(vec![9u8; 3].into_boxed_slice()))), "keep");
}

fn preference(edit: impl FnOnce(&mut PreferenceLoss<'_, f64>)) -> Result<()> {
    let held_vec = || vec![HELD; 2];
    let (mut loss, mut d_chosen, mut d_rejected) = (held_vec(), held_vec(), held_vec());
    let mut args = PreferenceLoss {
        logp: Pair { chosen: view(&[-1.0, -2.0]), rejected: view(&[-3.0, -4.0]) },
        reference: Some(Pair { chosen: view(&[-1.0; 2]), rejected: view(&[-2.0; 2]) }),
        length: Some(Pair { chosen: view(&[1; 2]), rejected: view(&[2; 2]) }),
        kind: PreferenceKind::Ipo,
        score: PreferenceScore::ReverseKl,
        beta: 0.1,
        likelihood: 0.0,
        weight: Some(view(&[1.0; 2])),
        loss: (&mut loss).into(),
        d_logp: Pair { chosen: (&mut d_chosen).into(), rejected: (&mut d_rejected).into() },
        reward: Some(Pair { chosen: output(2), rejected: output(2) }),
        total: Some(output(1)),
    };
    edit(&mut args);
    let result = preference_loss(&Device::Cpu, args);
    if result.is_err() {
        held(&[&loss, &d_chosen, &d_rejected]);
    }
    result
}

#[test]
fn preference_loss_refuses() {
    use PreferenceKind as Kind;
    preference(|_| ()).unwrap();
    let (short, nan) = (|| view(&[-1.0]), || view(&[-1.0, f64::NAN]));
    refused(preference(|a| a.logp.chosen = nan()), "logp.chosen");
    refused(preference(|a| a.logp.rejected = short()), "logp.rejected");
    refused(preference(|a| a.logp.rejected = nan()), "logp.rejected");
    let reference = |chosen, rejected| Some(Pair { chosen, rejected });
    refused(preference(|a| a.reference = reference(short(), nan())), "reference.chosen");
    refused(preference(|a| a.reference = reference(view(&[0.0; 2]), nan())), "reference.rejected");
    let length = |chosen: &[i64], rejected: &[i64]| {
        Some(Pair { chosen: view(chosen), rejected: view(rejected) })
    };
    refused(preference(|a| a.length = length(&[1, -1], &[1, 1])), "length.chosen");
    refused(preference(|a| a.length = length(&[1, 1], &[1])), "length.rejected");
    refused(preference(|a| a.weight = Some(short())), "weight");
    refused(preference(|a| a.weight = Some(nan())), "weight");
    refused(preference(|a| a.loss = output(3)), "loss");
    refused(preference(|a| a.total = Some(output(2))), "total");
    refused(preference(|a| a.d_logp.chosen = output(3)), "d_logp.chosen");
    refused(preference(|a| a.d_logp.rejected = output(1)), "d_logp.rejected");
    let reward =
        |chosen, rejected| Some(Pair { chosen: output(chosen), rejected: output(rejected) });
    refused(preference(|a| a.reward = reward(1, 2)), "reward.chosen");
    refused(preference(|a| a.reward = reward(2, 1)), "reward.rejected");
    refused(preference(|a| a.beta = 0.0), "beta");
    refused(preference(|a| a.likelihood = -1.0), "likelihood");
    let smoothing = "kind.label_smoothing";
    let sigmoid = |label_smoothing, margin| Kind::Sigmoid { label_smoothing, margin };
    refused(preference(|a| a.kind = sigmoid(0.6, 0.0)), smoothing);
    refused(preference(|a| a.kind = sigmoid(0.0, f64::NAN)), "kind.margin");
    refused(preference(|a| a.kind = Kind::Robust { label_smoothing: 0.5 }), smoothing);
    refused(preference(|a| a.kind = Kind::Exo { label_smoothing: 0.0 }), smoothing);
    let bco = Kind::Bco { reference_point: f64::INFINITY };
    refused(preference(|a| a.kind = bco), "kind.reference_point");
    refused(preference(|a| a.kind = Kind::Discopop { temperature: 0.0 }), "kind.temperature");
    refused(preference(|a| a.score = PreferenceScore::Alpha(f64::NAN)), "score.alpha");
    refused(preference(|a| a.kind = Kind::Orpo), "reference");
    let orpo = |a: &mut PreferenceLoss<'_, f64>| (a.kind, a.reference) = (Kind::Orpo, None);
    preference(orpo).unwrap();
    let without_lengths = |a: &mut PreferenceLoss<'_, f64>| {
        orpo(a);
        a.length = None;
    };
    refused(preference(without_lengths), "length");
    let scored = |a: &mut PreferenceLoss<'_, f64>| {
        orpo(a);
        a.score = PreferenceScore::ForwardKl;
    };
    refused(preference(scored), "score");
}

fn kto(edit: impl FnOnce(&mut KtoLoss<'_, f64>)) -> Result<()> {
    let mut args = KtoLoss {
        logp: view(&[-1.0, -2.0]),
        reference: view(&[-1.0, -2.0]),
        desirable: view(&[1, 0]),
        beta: 0.1,
        kl: 0.0,
        desirable_weight: 1.0,
        undesirable_weight: 1.0,
        weight: None,
        loss: output(2),
        d_logp: output(2),
        total: None,
    };
    edit(&mut args);
    kto_loss(&Device::Cpu, args)
}

fn contrast(edit: impl FnOnce(&mut CopgLoss<'_, f64>)) -> Result<()> {
    let mut args = CopgLoss {
        logp: view(&[-1.0, -2.0]),
        reference: Some(view(&[-1.0, -2.0])),
        reward: view(&[1.0, f64::NAN]),
        offsets: view(&[0, 2]),
        beta: 0.1,
        weight: None,
        loss: output(1),
        d_logp: output(2),
        total: None,
    };
    edit(&mut args);
    copg_loss(&Device::Cpu, args)
}

fn proximal(edit: impl FnOnce(&mut PrdpLoss<'_, f64>)) -> Result<()> {
    let mut args = PrdpLoss {
        logp: view(&[-1.0, -2.0]),
        old: view(&[-1.0, -2.0]),
        reference: view(&[-1.0, -2.0]),
        mask: None,
        cu_seqlens: view(&[0, 1, 2]),
        reward: view(&[1.0, 0.0]),
        pairs: matrix(&[0, 1], [1, 2]),
        beta: 0.1,
        clip: 0.1,
        weight: None,
        loss: output(1),
        d_logp: output(2),
        total: None,
    };
    edit(&mut args);
    prdp_loss(&Device::Cpu, args)
}

#[test]
fn sequence_losses_refuse() {
    kto(|_| ()).unwrap();
    refused(kto(|a| a.logp = view(&[f64::NAN, 0.0])), "logp");
    refused(kto(|a| a.reference = view(&[0.0])), "reference");
    refused(kto(|a| a.desirable = view(&[1])), "desirable");
    refused(kto(|a| a.beta = f64::NAN), "beta");
    refused(kto(|a| a.kl = -0.1), "kl");
    refused(kto(|a| a.desirable_weight = -1.0), "desirable_weight");
    refused(kto(|a| a.undesirable_weight = f64::INFINITY), "undesirable_weight");
    refused(kto(|a| a.weight = Some(view(&[1.0]))), "weight");
    refused(kto(|a| a.loss = output(1)), "loss");
    refused(kto(|a| a.d_logp = output(1)), "d_logp");
    contrast(|_| ()).unwrap();
    refused(contrast(|a| a.logp = view(&[f64::NEG_INFINITY, 0.0])), "logp");
    refused(contrast(|a| a.reference = Some(view(&[0.0]))), "reference");
    refused(contrast(|a| a.reward = view(&[f64::INFINITY, 0.0])), "reward");
    refused(contrast(|a| a.reward = view(&[0.0])), "reward");
    refused(contrast(|a| a.offsets = view(&[0, 1])), "offsets");
    refused(contrast(|a| a.beta = -1.0), "beta");
    refused(contrast(|a| a.weight = Some(view(&[1.0; 2]))), "weight");
    refused(contrast(|a| a.loss = output(2)), "loss");
    refused(contrast(|a| a.d_logp = output(1)), "d_logp");
    proximal(|_| ()).unwrap();
    refused(proximal(|a| a.logp = view(&[f64::NAN, 0.0])), "logp");
    refused(proximal(|a| a.old = view(&[0.0])), "old");
    refused(proximal(|a| a.reference = view(&[0.0, f64::NAN])), "reference");
    refused(proximal(|a| a.mask = Some(view(&[1]))), "mask");
    refused(proximal(|a| a.cu_seqlens = view(&[0, 2, 1, 2])), "cu_seqlens");
    refused(proximal(|a| a.reward = view(&[f64::NAN, 0.0])), "reward");
    for pair in [[0, 2], [-1, 0], [1, 1]] {
        refused(proximal(|a| a.pairs = matrix(&pair, [1, 2])), "pairs");
    }
    refused(proximal(|a| a.pairs = matrix(&[0, 1, 0], [1, 3])), "pairs");
    refused(proximal(|a| a.beta = 0.0), "beta");
    refused(proximal(|a| a.clip = -0.1), "clip");
    refused(proximal(|a| a.loss = output(2)), "loss");
    refused(proximal(|a| a.d_logp = output(1)), "d_logp");
    refused(pairs_by_reward(&[1.0f64], &[0, 2]).map(|_| ()), "offsets");
}

fn mml(edit: impl FnOnce(&mut BetaMmlLoss<'_, f64>)) -> Result<()> {
    let mut args = BetaMmlLoss {
        logp: view(&[-1.0, -2.0]),
        offsets: view(&[0, 2]),
        beta: 0.1,
        weight: None,
        loss: output(1),
        d_logp: output(2),
        total: None,
    };
    edit(&mut args);
    beta_mml_loss(&Device::Cpu, args)
}

fn nce(edit: impl FnOnce(&mut InfoNceLoss<'_, f64>)) -> Result<()> {
    let d_logp = ViewMut::rows_of(Box::leak(vec![HELD; 4].into_boxed_slice()), 2).unwrap();
    let (logp, loss) = (matrix(&[-1.0; 4], [2, 2]), output(1));
    let mut args = InfoNceLoss { logp, length: None, loss, d_logp };
    edit(&mut args);
    info_nce_loss(&Device::Cpu, args)
}

#[test]
fn soft_maxima_refuse() {
    mml(|_| ()).unwrap();
    refused(mml(|a| a.logp = view(&[f64::NEG_INFINITY, 0.0])), "logp");
    refused(mml(|a| a.offsets = view(&[0, 3])), "offsets");
    refused(mml(|a| a.beta = 0.0), "beta");
    refused(mml(|a| a.weight = Some(view(&[f64::NAN]))), "weight");
    refused(mml(|a| a.loss = output(2)), "loss");
    refused(mml(|a| a.d_logp = output(1)), "d_logp");
    refused(mml(|a| a.total = Some(output(0))), "total");
    nce(|_| ()).unwrap();
    refused(nce(|a| a.logp = matrix(&[-1.0; 6], [2, 3])), "logp");
    refused(nce(|a| a.logp = matrix(&[-1.0, 0.0, f64::NAN, 0.0], [2, 2])), "logp");
    refused(nce(|a| a.length = Some(view(&[1]))), "length");
    refused(nce(|a| a.length = Some(view(&[1, -4]))), "length");
    refused(nce(|a| a.loss = output(2)), "loss");
    let wide = ViewMut::rows_of(Box::leak(vec![HELD; 6].into_boxed_slice()), 3).unwrap();
    refused(nce(|a| a.d_logp = wide), "d_logp");
}
