//! Names in error texts: the header's, where Rust nests or calls a field otherwise.

use gradus::Error;

/// (op or "" for all, Rust's beginning of the name, the header's). The first that fits is taken.
const NAMES: &[(&str, &str, &str)] = &[
    ("group_advantage", "settings.", ""),
    ("whiten", "settings.", ""),
    ("offpolicy_weight", "settings.reject.", "reject_"),
    ("offpolicy_weight", "settings.", ""),
    ("policy_loss", "settings.kl.", "settings.kl_"),
    ("policy_loss", "class", "class_ids"),
    ("top_fraction", "class.class", "class_ids"),
    ("top_fraction", "class.", ""),
    ("top_fraction", "class", "class_ids"),
    ("gae", "lambda", "gae_lambda"),
    ("lerp", "lambda", "weight"),
    ("copy_rows", "from", "from_rows"),
    ("copy_rows", "to", "to_rows"),
    ("nf4_quantize_absmax", "table", "nested_quant_map"),
    ("nf4_quantize_absmax", "nested", "nested_absmax"),
    ("delta_", "old", "old_value"),
    ("delta_", "new", "new_value"),
    ("seq_weights", "length", "value"),
    ("seq_weights", "tokens", "value"),
    ("vocab_kl", "divergence.beta", "beta"),
    ("vocab_kl", "guidance.logits", "guidance"),
    ("vocab_kl", "guidance.gamma", "gamma"),
    ("preference_loss", "kind.", ""),
    ("preference_loss", "score.", ""),
    ("preference_loss", "logp.", "logp_"),
    ("preference_loss", "reference.", "reference_"),
    ("preference_loss", "length.", "length_"),
    ("preference_loss", "reward.", "reward_"),
    ("preference_loss", "d_logp.", "dlogp_"),
    ("", "d_logp", "dlogp"),
];

/// Parts of 4-bit weights, wherever they stand in a name.
const PARTS: &[(&str, &str)] = &[
    (".absmax.codes", ".absmax"),
    (".absmax.nested_blocksize", ".nested_blocksize"),
    (".absmax.nested", ".nested_absmax"),
    (".absmax.table", ".nested_quant_map"),
    (".absmax.offset", ".offset"),
    (".code", ".quant_map"),
];

/// The same error with the header's name of the argument.
pub(crate) fn of_header(error: Error) -> Error {
    match error {
        Error::InvalidArgument { op, arg, got, expected } => {
            Error::InvalidArgument { op, arg: renamed(op, &arg), got, expected }
        }
        Error::NonFinite { op, arg, index } => {
            Error::NonFinite { op, arg: renamed(op, &arg), index }
        }
        other => other,
    }
}

fn renamed(op: &str, arg: &str) -> String {
    let ends = |rest: &str| {
        rest.is_empty() || !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_')
    };
    for (of, rust, header) in NAMES {
        let fits = |rest: &&str| rust.ends_with('.') || ends(rest);
        if let Some(rest) = arg.strip_prefix(rust).filter(fits).filter(|_| op.starts_with(of)) {
            return format!("{header}{rest}");
        }
    }
    for (rust, header) in PARTS {
        if let Some((before, rest)) = arg.split_once(rust).filter(|(_, rest)| ends(rest)) {
            return format!("{before}{header}{rest}");
        }
    }
    arg.to_string()
}

#[cfg(test)]
mod tests {
    use super::renamed;

    #[test]
    fn names_are_the_headers() {
        for (op, rust, header) in [
            ("policy_loss", "settings.kl.coef", "settings.kl_coef"),
            ("policy_loss", "class", "class_ids"),
            ("policy_loss", "class_weight", "class_weight"),
            ("group_advantage", "settings.eps", "eps"),
            ("gae", "lambda", "gae_lambda"),
            ("vocab_kl_bwd", "divergence.beta", "beta"),
            ("nf4_matmul", "w.absmax.nested", "w.nested_absmax"),
            ("nf4_matmul", "w.absmax.nested_blocksize", "w.nested_blocksize"),
            ("nf4_matmul_grouped", "w[1].code", "w[1].quant_map"),
            ("copy_rows", "from_rows.dtype", "from_rows.dtype"),
            ("preference_loss", "d_logp.chosen", "dlogp_chosen"),
            ("kto_loss", "d_logp", "dlogp"),
            ("logprob", "transform.temperature", "transform.temperature"),
        ] {
            assert_eq!(renamed(op, rust), header, "{op} {rust}");
        }
    }
}
