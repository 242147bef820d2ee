//! Answers as OpenAI's clients read them, with the ids that vLLM tells.

use serde_json::{Value, json};

use super::calls::Message;
use super::engine::Finish;
use super::request::{Request, Shape};
use crate::text::Codec;
use gradus::error::Result;

/// What of a request shapes its answer.
#[derive(Clone, Debug)]
pub(super) struct Form {
    pub shape: Shape,
    pub model: String,
    /// Name of the answer, and when it was begun in seconds since 1970.
    pub id: String,
    pub created: u64,
    /// Log-probs are told, with those of so many of the likeliest tokens.
    pub logprobs: Option<usize>,
    pub token_ids: bool,
    pub as_ids: bool,
    pub usage: bool,
    /// The request has tools: calls of them are told apart from the text.
    pub calls: bool,
    /// Choices of each prompt.
    pub n: usize,
    /// The prompts.
    pub prompts: Vec<Vec<i32>>,
}

/// A token that was drawn.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub id: i32,
    pub logp: f32,
    pub top: Vec<(i32, f32)>,
    /// Characters of the answer before it.
    pub offset: usize,
}

/// A choice as far as it is there.
#[derive(Clone, Debug, Default)]
pub(super) struct Choice {
    pub tokens: Vec<Token>,
    pub text: String,
    /// Characters of the text.
    pub length: usize,
    pub finish: Option<Finish>,
}

impl Form {
    pub fn of(request: &Request, id: String, created: u64, prompts: Vec<Vec<i32>>) -> Form {
        Form {
            shape: request.shape,
            model: request.model.clone(),
            id,
            created,
            logprobs: request.logprobs,
            token_ids: request.token_ids,
            as_ids: request.as_ids,
            usage: request.usage,
            calls: request.calls,
            n: request.n,
            prompts,
        }
    }

    /// Number of choices.
    pub fn choices(&self) -> usize {
        self.n * self.prompts.len()
    }

    fn object(&self, streamed: bool) -> &'static str {
        match (self.shape, streamed) {
            (Shape::Chat, false) => "chat.completion",
            (Shape::Chat, true) => "chat.completion.chunk",
            (Shape::Completion, _) => "text_completion",
        }
    }

    fn around(&self, streamed: bool, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": self.object(streamed), "created": self.created,
            "model": self.model, "choices": choices,
        })
    }

    fn usage(&self, drawn: usize) -> Value {
        let read: usize = self.prompts.iter().map(Vec::len).sum();
        json!({"prompt_tokens": read, "completion_tokens": drawn, "total_tokens": read + drawn})
    }

    /// The whole answer.
    ///
    /// # Errors
    /// What the codec says of ids that it does not have.
    pub fn whole(&self, codec: &dyn Codec, choices: &[Choice]) -> Result<Value> {
        let mut all = Vec::new();
        for (index, choice) in choices.iter().enumerate() {
            let mut told = json!({
                "index": index, "finish_reason": finish(choice.finish),
                "logprobs": self.told(codec, &choice.tokens)?,
            });
            match self.shape {
                Shape::Chat => {
                    let (mut message, reason) = self.message(index, &choice.text, choice.finish);
                    message["role"] = json!("assistant");
                    (told["message"], told["finish_reason"]) = (message, reason);
                }
                Shape::Completion => told["text"] = json!(choice.text),
            }
            if self.token_ids {
                told["token_ids"] = ids(&choice.tokens);
            }
            if self.token_ids && self.shape == Shape::Completion {
                told["prompt_token_ids"] = json!(self.prompts[index / self.n]);
            }
            all.push(told);
        }
        let drawn = choices.iter().map(|choice| choice.tokens.len()).sum();
        let mut answer = self.around(false, all);
        answer["usage"] = self.usage(drawn);
        if self.token_ids && self.shape == Shape::Chat {
            answer["prompt_token_ids"] = json!(self.prompts[0]);
        }
        Ok(answer)
    }

    /// What choice `index` says, and why it ended. An answer that was cut off has made no calls.
    fn message(&self, index: usize, text: &str, reason: Option<Finish>) -> (Value, Value) {
        if !self.calls || reason != Some(Finish::Stop) {
            return (json!({"content": text}), finish(reason));
        }
        let Message { content, calls } = Message::of(text, &format!("{}-{index}", self.id));
        match calls.is_empty() {
            true => (json!({"content": content}), finish(reason)),
            false => (json!({"content": content, "tool_calls": calls}), json!("tool_calls")),
        }
    }

    /// The beginning of a stream, where it has one: roles, and the prompts' ids.
    pub fn begin(&self) -> Option<Value> {
        let each = 0..self.choices();
        match self.shape {
            Shape::Chat => {
                let role = |index| {
                    let delta = json!({"role": "assistant", "content": ""});
                    json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null})
                };
                let mut chunk = self.around(true, each.map(role).collect());
                if self.token_ids {
                    chunk["prompt_token_ids"] = json!(self.prompts[0]);
                }
                Some(chunk)
            }
            Shape::Completion if self.token_ids => {
                let prompt = |index: usize| {
                    json!({
                        "index": index, "text": "", "logprobs": null, "finish_reason": null,
                        "prompt_token_ids": self.prompts[index / self.n], "token_ids": [],
                    })
                };
                Some(self.around(true, each.map(prompt).collect()))
            }
            Shape::Completion => None,
        }
    }

    /// A token of choice `index` with the text that it completes; none where it says nothing.
    ///
    /// # Errors
    /// As [`Form::whole`].
    pub fn token(
        &self,
        codec: &dyn Codec,
        index: usize,
        token: &Token,
        text: &str,
    ) -> Result<Option<Value>> {
        if text.is_empty() && self.logprobs.is_none() && !self.token_ids {
            return Ok(None);
        }
        let tokens = std::slice::from_ref(token);
        let mut told =
            json!({"index": index, "logprobs": self.told(codec, tokens)?, "finish_reason": null});
        match self.shape {
            Shape::Chat => told["delta"] = json!({"content": text}),
            Shape::Completion => told["text"] = json!(text),
        }
        if self.token_ids {
            told["token_ids"] = ids(tokens);
        }
        Ok(Some(self.around(true, vec![told])))
    }

    /// The end of choice `index`, with the text and the calls that were held back.
    pub fn end(&self, index: usize, held: &str, reason: Finish) -> Value {
        let mut told = json!({
            "index": index, "logprobs": null, "finish_reason": finish(Some(reason)),
        });
        match self.shape {
            Shape::Chat if self.calls => {
                let (mut delta, reason) = self.message(index, held, Some(reason));
                // Clients join the pieces of calls by their numbers.
                let calls = delta.get_mut("tool_calls").and_then(Value::as_array_mut);
                for (i, call) in calls.into_iter().flatten().enumerate() {
                    call["index"] = json!(i);
                }
                (told["delta"], told["finish_reason"]) = (delta, reason);
            }
            Shape::Chat => told["delta"] = json!({}),
            Shape::Completion => told["text"] = json!(""),
        }
        self.around(true, vec![told])
    }

    /// What a stream has come to, if the request asks for it.
    pub fn total(&self, drawn: usize) -> Option<Value> {
        self.usage.then(|| {
            let mut chunk = self.around(true, Vec::new());
            chunk["usage"] = self.usage(drawn);
            chunk
        })
    }

    /// Log-probs of tokens, if they are told.
    fn told(&self, codec: &dyn Codec, tokens: &[Token]) -> Result<Value> {
        let Some(most) = self.logprobs else { return Ok(Value::Null) };
        match self.shape {
            Shape::Chat => {
                let each = tokens.iter().map(|token| self.of_chat(codec, token));
                Ok(json!({"content": each.collect::<Result<Vec<_>>>()?, "refusal": null}))
            }
            Shape::Completion => self.of_completion(codec, tokens, most),
        }
    }

    fn of_chat(&self, codec: &dyn Codec, token: &Token) -> Result<Value> {
        let one = |id: i32, logp: f32| -> Result<Value> {
            let text = codec.spell(id)?;
            // Part of a character has no text of its own, and its bytes are not known here.
            let whole = !text.contains(char::REPLACEMENT_CHARACTER);
            let bytes = whole.then(|| text.as_bytes().to_vec());
            Ok(json!({"token": self.name(codec, id)?, "logprob": logp, "bytes": bytes}))
        };
        let mut told = one(token.id, token.logp)?;
        let top = token.top.iter().map(|&(id, logp)| one(id, logp));
        told["top_logprobs"] = json!(top.collect::<Result<Vec<_>>>()?);
        Ok(told)
    }

    fn of_completion(&self, codec: &dyn Codec, tokens: &[Token], most: usize) -> Result<Value> {
        let names = tokens.iter().map(|token| self.name(codec, token.id));
        let names = names.collect::<Result<Vec<_>>>()?;
        let mut tops = Vec::new();
        for (token, name) in tokens.iter().zip(&names).filter(|_| most > 0) {
            // The token that was drawn is always among them, also where another one has its text.
            let mut top = serde_json::Map::new();
            for &(id, logp) in &token.top {
                top.entry(self.name(codec, id)?).or_insert(json!(logp));
            }
            top.insert(name.clone(), json!(token.logp));
            tops.push(Value::Object(top));
        }
        let column = |of: fn(&Token) -> Value| tokens.iter().map(of).collect::<Vec<_>>();
        Ok(json!({
            "tokens": names,
            "token_logprobs": column(|token| json!(token.logp)),
            "top_logprobs": (most > 0).then_some(tops),
            "text_offset": column(|token| json!(token.offset)),
        }))
    }

    fn name(&self, codec: &dyn Codec, id: i32) -> Result<String> {
        if self.as_ids { Ok(format!("token_id:{id}")) } else { codec.spell(id) }
    }
}

fn ids(tokens: &[Token]) -> Value {
    json!(tokens.iter().map(|token| token.id).collect::<Vec<_>>())
}

fn finish(finish: Option<Finish>) -> Value {
    match finish {
        Some(Finish::Stop) => json!("stop"),
        Some(Finish::Length) => json!("length"),
        None => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Bytes;

    fn form(calls: bool) -> Form {
        Form {
            shape: Shape::Chat,
            model: "tiny".into(),
            id: "chat-7".into(),
            created: 0,
            logprobs: None,
            token_ids: false,
            as_ids: false,
            usage: false,
            calls,
            n: 1,
            prompts: vec![vec![1]],
        }
    }

    /// An answer to tools, whole and as the end of a stream; without tools and cut off it is text.
    #[test]
    fn calls_of_tools_are_told_apart() {
        let text = "so: <tool_call>{\"name\": \"look\", \"arguments\": {}}</tool_call>";
        let said = |calls: bool, finish: Finish| {
            let choice = Choice { text: text.into(), finish: Some(finish), ..Choice::default() };
            let whole = form(calls).whole(&Bytes::new(&[]), &[choice]).unwrap();
            whole["choices"][0].clone()
        };
        let told = said(true, Finish::Stop);
        assert_eq!(told["finish_reason"], "tool_calls");
        assert_eq!(told["message"]["content"], "so:");
        assert_eq!(told["message"]["role"], "assistant");
        let call = json!({"id": "call_chat-7-0_0", "type": "function",
            "function": {"name": "look", "arguments": "{}"}});
        assert_eq!(told["message"]["tool_calls"], json!([call]));
        for (calls, finish, reason) in
            [(false, Finish::Stop, "stop"), (true, Finish::Length, "length")]
        {
            let told = said(calls, finish);
            assert_eq!(
                (&told["finish_reason"], &told["message"]["content"]),
                (&json!(reason), &json!(text))
            );
            assert!(told["message"].get("tool_calls").is_none());
        }
        let end = form(true).end(0, text, Finish::Stop)["choices"][0].clone();
        assert_eq!(
            (&end["finish_reason"], &end["delta"]["content"]),
            (&json!("tool_calls"), &json!("so:"))
        );
        let piece = &end["delta"]["tool_calls"][0];
        assert_eq!((&piece["index"], &piece["id"]), (&json!(0), &json!("call_chat-7-0_0")));
        let end = form(true).end(0, "words", Finish::Length)["choices"][0].clone();
        assert_eq!(
            (&end["finish_reason"], &end["delta"]),
            (&json!("length"), &json!({"content": "words"}))
        );
        assert_eq!(form(false).end(0, "", Finish::Stop)["choices"][0]["delta"], json!({}));
    }
}
