//! How a section of the configuration is declared: each key once, with its documentation, its default,
//! what it may be, and where the default is from.

use std::fmt::Display;
use std::ops::RangeInclusive;

use crate::train::config::auto::Auto;
use crate::train::config::bounds::Bounds;
use crate::train::config::readers::Reader;

/// A value that a key may have, with what it means.
pub(crate) type Choice = (&'static str, &'static str);

/// The type of a key's value.
pub(crate) trait Setting {
    /// All values that the key, or each item of its list, may have; empty where they are not counted.
    const CHOICES: &'static [Choice] = &[];
    /// Whether it may have other values beside them.
    const OPEN: bool = false;
}

impl Setting for bool {}
impl Setting for u32 {}
impl Setting for u64 {}
impl Setting for i64 {}
impl Setting for usize {}
impl Setting for f64 {}
impl Setting for Auto {}
impl Setting for Bounds {}
impl Setting for String {}

impl<S: Setting> Setting for Vec<S> {
    const CHOICES: &'static [Choice] = S::CHOICES;
    const OPEN: bool = S::OPEN;
}

/// Everything that is known about a key but its value.
pub(crate) struct Key {
    /// Its name with its section's, as `rl.group`.
    pub name: String,
    /// What it means.
    pub meaning: String,
    /// All values that it may have, if they are counted.
    pub choices: &'static [Choice],
    /// Whether it may have other values beside them.
    pub open: bool,
    /// The numbers that it may be, if not all.
    pub range: Option<String>,
    /// Where the default is from.
    pub source: &'static str,
    /// Whether a run may change it when it goes on, because no result depends on it.
    pub neutral: bool,
    /// Who reads it.
    pub readers: &'static [Reader],
}

/// A struct that [`section!`] declares.
pub(crate) trait Section {
    /// Appends the section's keys; `prefix` stands before their names.
    fn keys(prefix: &str, keys: &mut Vec<Key>);

    /// The first key whose value is out of its range, and why.
    fn out_of_range(&self) -> Option<(String, String)>;
}

/// The values of type `V` that a key may have.
pub(crate) trait Range<V> {
    /// Why `value` is none of them, if it is none.
    fn refusal(&self, value: &V) -> Option<String>;

    /// What they are.
    fn text(&self) -> String;
}

/// `value` is not as `wanted`, unless it is `allowed`.
fn unless(allowed: bool, value: impl Display, wanted: &str) -> Option<String> {
    (!allowed).then(|| format!("{value} is not {wanted}"))
}

impl<V: PartialOrd + Display> Range<V> for RangeInclusive<V> {
    fn refusal(&self, value: &V) -> Option<String> {
        unless(self.contains(value), value, &format!("in {}", self.text()))
    }

    fn text(&self) -> String {
        format!("{}..={}", self.start(), self.end())
    }
}

impl Range<Auto> for RangeInclusive<f64> {
    fn refusal(&self, value: &Auto) -> Option<String> {
        value.value().and_then(|x| self.refusal(&x))
    }

    fn text(&self) -> String {
        Range::<f64>::text(self)
    }
}

/// Normal numbers above 0, and up to this one.
pub(crate) struct Positive(pub f64);

impl Range<f64> for Positive {
    fn refusal(&self, value: &f64) -> Option<String> {
        unless((f64::MIN_POSITIVE..=self.0).contains(value), value, &Range::<f64>::text(self))
    }

    fn text(&self) -> String {
        match self.0 {
            f64::INFINITY => "above 0".into(),
            most => format!("above 0 and at most {most}"),
        }
    }
}

impl Range<Auto> for Positive {
    fn refusal(&self, value: &Auto) -> Option<String> {
        value.value().and_then(|x| self.refusal(&x))
    }

    fn text(&self) -> String {
        Range::<f64>::text(self)
    }
}

/// Numbers from this one to the largest that TOML has.
pub(crate) struct AtLeast<V>(pub V);

impl Range<usize> for AtLeast<usize> {
    fn refusal(&self, value: &usize) -> Option<String> {
        let allowed = (self.0..=i64::MAX as usize).contains(value);
        unless(allowed, value, &format!("in {}..={}", self.0, i64::MAX))
    }

    fn text(&self) -> String {
        format!("at least {}", self.0)
    }
}

impl Range<i64> for AtLeast<i64> {
    fn refusal(&self, value: &i64) -> Option<String> {
        unless(*value >= self.0, value, &Range::<i64>::text(self))
    }

    fn text(&self) -> String {
        format!("at least {}", self.0)
    }
}

/// A whole number of steps, or below 1 a share of them.
pub(crate) struct StepsOrShare;

impl Range<Auto> for StepsOrShare {
    fn refusal(&self, value: &Auto) -> Option<String> {
        let x = value.value()?;
        let share = (0.0..1.0).contains(&x);
        let steps = (1.0..=1e9).contains(&x) && x.fract() == 0.0;
        unless(share || steps, x, &Range::<Auto>::text(self))
    }

    fn text(&self) -> String {
        "a whole number of steps, or below 1 a share of the phase".into()
    }
}

/// Finite bounds in order.
pub(crate) struct InOrder;

impl Range<Bounds> for InOrder {
    fn refusal(&self, value: &Bounds) -> Option<String> {
        let (low, high) = value.ends()?;
        let ordered = low.is_finite() && high.is_finite() && low < high;
        unless(ordered, format!("[{low}, {high}]"), &Range::<Bounds>::text(self))
    }

    fn text(&self) -> String {
        "[low, high] with low below high".into()
    }
}

/// Powers of two between these two.
pub(crate) struct PowersOfTwo(pub usize, pub usize);

impl Range<usize> for PowersOfTwo {
    fn refusal(&self, value: &usize) -> Option<String> {
        let allowed = value.is_power_of_two() && (self.0..=self.1).contains(value);
        unless(allowed, value, &self.text())
    }

    fn text(&self) -> String {
        format!("a power of two from {} to {}", self.0, self.1)
    }
}

/// Texts of 1 to this many bytes.
pub(crate) struct TextBytes(pub usize);

impl Range<Vec<String>> for TextBytes {
    fn refusal(&self, texts: &Vec<String>) -> Option<String> {
        let wrong = texts.iter().find(|text| !(1..=self.0).contains(&text.len()))?;
        Some(format!("`{wrong}` is not a text of 1 to {} bytes", self.0))
    }

    fn text(&self) -> String {
        format!("1 to {} bytes each", self.0)
    }
}

/// The lines of a doc comment as one text that may stand in a line: without the capital letter it
/// begins with, unless that belongs to a name, and without its period.
pub(crate) fn meaning(lines: &[&str]) -> String {
    let text = lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
    let text = text.strip_suffix('.').unwrap_or(&text);
    let mut letters = text.chars();
    let Some(first) = letters.next() else { return String::new() };
    let word = letters.as_str().split(' ').next().unwrap_or("");
    match word.chars().all(|c| !c.is_uppercase() && !c.is_ascii_digit()) {
        true => first.to_lowercase().chain(letters).collect(),
        false => text.into(),
    }
}

/// Declares a section: a struct with serde's traits, its defaults, and its keys.
///
/// A key is its documentation, then `name: type = default; source "where the default is from"`. Between
/// the default and the source may stand `; folder value`, the default of a run on a model from disk,
/// `; range values`, what the key may be, and `; by [readers]`, who reads it, if they are others than those
/// behind the section's name. `neutral` behind the source says that no result depends on the key. Sections
/// inside the section stand behind the keys, and behind them tables whose keys other parts know.
macro_rules! section {
    (
        #[doc = $about:literal]
        $name:ident by $readers:tt {
            $(
                $(#[doc = $doc:literal])+
                $field:ident : $type:ty = $default:expr
                    $(; folder $folder:expr)?
                    $(; range $range:expr)?
                    $(; by $own:tt)?
                    ; source $source:literal $($neutral:ident)?,
            )*
        }
        $(sections {
            $($(#[doc = $inner_doc:literal])+ $inner:ident : $section:ident,)*
        })?
        $(tables {
            $($(#[doc = $tables_doc:literal])+ $tables:ident,)*
        })?
    ) => {
        #[doc = $about]
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $field: $type,)*
            $($($(#[doc = $inner_doc])+ pub $inner: $section,)*)?
            $($(
                $(#[doc = $tables_doc])+
                #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
                pub $tables: std::collections::BTreeMap<String, toml::Table>,
            )*)?
        }

        impl Default for $name {
            fn default() -> $name {
                $name {
                    $($field: $default,)*
                    $($($inner: $section::default(),)*)?
                    $($($tables: Default::default(),)*)?
                }
            }
        }

        impl $name {
            /// The defaults of a run on a model from disk: small batches of longer completions, and
            /// the optimizer settings of QLoRA (arXiv:2305.14314, appendix B) and TRL 1.16.
            pub fn pretrained() -> $name {
                $name {
                    $($field: $crate::train::config::section::first!($($folder,)? $default),)*
                    $($($inner: $section::pretrained(),)*)?
                    $($($tables: Default::default(),)*)?
                }
            }
        }

        impl $crate::train::config::section::Section for $name {
            fn keys(prefix: &str, keys: &mut Vec<$crate::train::config::section::Key>) {
                use $crate::train::config::section::{Key, Setting, meaning};
                $(
                    keys.push(Key {
                        name: format!("{prefix}{}", stringify!($field).trim_start_matches("r#")),
                        meaning: meaning(&[$($doc),+]),
                        choices: <$type as Setting>::CHOICES,
                        open: <$type as Setting>::OPEN,
                        range: [$($crate::train::config::section::Range::<$type>::text(&$range))?].into_iter().next(),
                        source: $source,
                        neutral: $crate::train::config::section::neutral!($($neutral)?),
                        readers: $crate::train::config::section::readers!($($own)? $readers),
                    });
                )*
                $($($section::keys(concat!(stringify!($inner), "."), keys);)*)?
            }

            fn out_of_range(&self) -> Option<(String, String)> {
                $($(
                    let range = &$range;
                    let refusal =
                        $crate::train::config::section::Range::<$type>::refusal(range, &self.$field);
                    if let Some(reason) = refusal {
                        return Some((stringify!($field).into(), reason));
                    }
                )?)*
                $($(
                    if let Some((key, reason)) = self.$inner.out_of_range() {
                        return Some((format!("{}.{key}", stringify!($inner)), reason));
                    }
                )*)?
                None
            }
        }
    };
}

/// The first of one or two expressions.
macro_rules! first {
    ($first:expr $(, $more:expr)?) => {
        $first
    };
}

/// The readers in the first of one or two lists.
macro_rules! readers {
    ([$($reader:ident),+] $($section:tt)?) => {
        &[$($crate::train::config::readers::Reader::$reader),+]
    };
}

/// Whether a key's flag is there, which has one name only.
macro_rules! neutral {
    () => {
        false
    };
    (neutral) => {
        true
    };
}

pub(crate) use {first, neutral, readers, section};
