//! Names in error texts. Rust ops nest some settings that the header has flat, so an argument's path is looked up
//! among the fields of the op's struct.

use gradus::Error;

use crate::registry::FIELDS;

/// Parts of 4-bit weights, Rust's word and the header's: the header has the keys that a checkpoint of bitsandbytes has.
const WORDS: [(&str, &str); 3] =
    [("code", "quant_map"), ("nested", "nested_absmax"), ("table", "nested_quant_map")];

/// An error of an op, with the argument's name in the header.
pub(crate) fn of_header(error: Error) -> Error {
    match error {
        Error::InvalidArgument { op, arg, got, expected } => {
            Error::InvalidArgument { op, arg: renamed(op, arg), got, expected }
        }
        Error::NonFinite { op, arg, index } => {
            Error::NonFinite { op, arg: renamed(op, arg), index }
        }
        other => other,
    }
}

fn renamed(op: &str, arg: String) -> String {
    let word = |part: &str| {
        let (name, index) = part.split_at(part.find('[').unwrap_or(part.len()));
        let found = WORDS.iter().find(|(rust, _)| *rust == name);
        format!("{}{index}", found.map_or(name, |(_, header)| header))
    };
    let path: Vec<String> = arg.split('.').map(word).collect();
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    spelled(&format!("{op}_args"), &path).unwrap_or(arg)
}

/// How the header spells a path of Rust, in a struct of the header.
fn spelled(of: &str, path: &[&str]) -> Option<String> {
    let (&first, rest) = path.split_first()?;
    let name = first.split('[').next().unwrap_or(first);
    let (_, fields) = FIELDS.iter().find(|(kind, _)| *kind == of)?;
    let field = fields.iter().find(|(field, _)| *field == name);
    let Some((&second, further)) = rest.split_first() else {
        return field.map(|_| first.to_string());
    };
    // The header nests too.
    let nested = field.and_then(|(_, kind)| spelled(kind, rest));
    // The header joins the two words: kl.coef is kl_coef.
    let joined = || spelled(of, &[&[format!("{first}_{second}").as_str()], further].concat());
    // The header has no struct there: settings.eps is eps.
    let flat = || spelled(of, rest);
    // The header does not have the part: guidance.logits is guidance.
    let whole = || field.map(|_| first.to_string());
    let nested = nested.map(|rest| format!("{first}.{rest}"));
    nested.or_else(joined).or_else(flat).or_else(whole)
}

#[cfg(test)]
mod tests {
    use super::renamed;

    #[test]
    fn names_are_the_headers() {
        for (op, rust, header) in [
            ("policy_loss", "settings.kl.coef", "settings.kl_coef"),
            ("policy_loss", "settings.class_weight[3]", "settings.class_weight[3]"),
            ("policy_loss", "class_ids", "class_ids"),
            ("policy_loss", "class_weight", "class_weight"),
            ("group_advantage", "settings.eps", "eps"),
            ("offpolicy_weight", "settings.reject.lo", "reject_lo"),
            ("gae", "gae_lambda", "gae_lambda"),
            ("vocab_kl_bwd", "divergence.beta", "beta"),
            ("vocab_kl", "guidance.logits", "guidance"),
            ("vocab_kl", "guidance.gamma", "gamma"),
            ("nf4_matmul", "w.absmax.nested", "w.nested_absmax"),
            ("nf4_matmul", "w.absmax.nested_blocksize", "w.nested_blocksize"),
            ("nf4_matmul", "w.absmax.codes", "w.absmax"),
            ("nf4_matmul_grouped", "w[1].code", "w[1].quant_map"),
            ("nf4_matmul_grouped", "w[1].absmax.offset", "w[1].offset"),
            ("adamw", "tensors[2].grad.shape", "tensors[2].grad.shape"),
            ("copy_rows", "from_rows.dtype", "from_rows.dtype"),
            ("preference_loss", "dlogp.chosen", "dlogp_chosen"),
            ("preference_loss", "kind.margin", "margin"),
            ("top_fraction", "class.class_ids", "class_ids"),
            ("logprob", "transform.temperature", "transform.temperature"),
            ("logprob", "something", "something"),
        ] {
            assert_eq!(renamed(op, rust.to_string()), header, "{op} {rust}");
        }
    }
}
