//! Records of a buffer as texts of their own: what a template makes of prompt, completion, score and
//! feedback. Templates come with the feature `hf`.

use crate::train::trainer::Trainer;
use crate::train::update::record::Record;
use gradus::dtype::Float;
use gradus::error::Result;

#[cfg(feature = "hf")]
use {
    crate::data::UserTemplate, crate::train::update::record::TokenClass, gradus::error::Error,
    serde_json::Value,
};

impl<T: Float> Trainer<T> {
    /// `records` as `sft.template` writes them, or as they are where there is none. A text is cut at the
    /// longest prompt and completion together; every token of it is learned.
    ///
    /// # Errors
    /// `Format` for a field that the template names and a row lacks; `Training` for records of other
    /// prompts than those of the phase's data.
    pub(super) fn written(&self, records: Vec<Record>) -> Result<Vec<Record>> {
        match self.config.sft.template.is_empty() {
            true => Ok(records),
            false => self.texts(&records),
        }
    }
}

#[cfg(feature = "hf")]
impl<T: Float> Trainer<T> {
    fn texts(&self, records: &[Record]) -> Result<Vec<Record>> {
        let template = template(&self.config.sft.template)?;
        records.iter().map(|record| self.text_of(record, &template)).collect()
    }

    fn text_of(&self, record: &Record, template: &UserTemplate) -> Result<Record> {
        let (codec, prompt) = (self.task.codec(), self.task.train_prompt(record.row));
        let read = self.task.encode(&prompt)?;
        if record.ids[..read.len().min(record.ids.len())] != read {
            let reason = "the buffer's prompts are not those of the data of this phase, whose fields \
                          sft.template reads";
            return Err(Error::Training { reason: reason.into() });
        }
        let answer = &record.ids[read.len()..];
        let mut row = (*prompt.fields).clone();
        row.entry("prompt").or_insert_with(|| prompt.text.clone().into());
        row.insert("completion".into(), codec.decode(answer)?.into());
        row.insert("score".into(), Value::from(record.reward as f64));
        row.insert("feedback".into(), record.feedback.clone().unwrap_or_default().into());
        let mut ids = codec.encode_rendered(&template.render(&row)?)?;
        ids.extend(codec.stops().first().filter(|_| record.finished));
        ids.truncate(self.task.lengths().0 + self.max_new_tokens());
        let mut text =
            Record { reward: record.reward, finished: record.finished, ..Record::default() };
        text.push(&ids, TokenClass::Demo, &[]);
        Ok(text)
    }
}

#[cfg(feature = "hf")]
fn template(source: &str) -> Result<UserTemplate> {
    UserTemplate::new(source, "template sft.template")
}

/// Refuses a source that is no template.
///
/// # Errors
/// `Format` with the place in the source.
#[cfg(feature = "hf")]
pub(crate) fn check(source: &str) -> Result<()> {
    template(source).map(drop)
}

#[cfg(not(feature = "hf"))]
impl<T: Float> Trainer<T> {
    fn texts(&self, _: &[Record]) -> Result<Vec<Record>> {
        check(&self.config.sft.template).map(|()| Vec::new())
    }
}

/// # Errors
/// `Config`: there are no templates.
#[cfg(not(feature = "hf"))]
pub(crate) fn check(_: &str) -> Result<()> {
    let reason = "needs templates, which come with the cargo feature `hf`";
    Err(gradus::error::Error::config("sft.template", reason))
}
