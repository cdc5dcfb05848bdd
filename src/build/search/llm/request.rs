//! The body of a request, in the words that the server turned out to understand.

use super::exchange::Question;
use serde_json::{Value, json};

/// How JSON is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Format {
    /// The server holds the model to the schema.
    #[default]
    Schema,
    /// The server holds the model to JSON; the prompt says to which.
    Object,
    /// Only the prompt says it.
    Prose,
}

/// What the server takes as the limit of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Limit {
    #[default]
    Tokens,
    /// Its successor, which reasoning models insist on.
    CompletionTokens,
    Absent,
}

/// What the server takes, as far as it said. It begins with everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Accepts {
    format: Format,
    limit: Limit,
    /// Left out, because the server wants its own.
    own_temperature: bool,
}

impl Accepts {
    pub fn body(self, question: &Question, answer_tokens: u64) -> Value {
        let mut body = json!({ "model": question.model, "messages": question.messages });
        if !self.own_temperature {
            body["temperature"] = question.temperature.into();
        }
        match self.limit {
            Limit::Tokens => body["max_tokens"] = answer_tokens.into(),
            Limit::CompletionTokens => body["max_completion_tokens"] = answer_tokens.into(),
            Limit::Absent => {}
        }
        match self.format {
            Format::Schema => {
                let schema = json!({ "name": "schedules", "strict": true, "schema": question.schema });
                body["response_format"] = json!({ "type": "json_schema", "json_schema": schema });
            }
            Format::Object => body["response_format"] = json!({ "type": "json_object" }),
            Format::Prose => {}
        }
        body
    }

    /// Asks for less after the server refused a request with this message. False: there is nothing left to leave out.
    pub fn less(&mut self, message: &str) -> bool {
        let message = message.to_lowercase();
        let names = |it: &str| message.contains(it);
        let format = names("response_format") || names("json_schema");
        match self.limit {
            Limit::Tokens if !format && names("max_tokens") => {
                self.limit = if names("max_completion_tokens") { Limit::CompletionTokens } else { Limit::Absent };
                return true;
            }
            Limit::CompletionTokens if !format && names("max_completion_tokens") => {
                self.limit = Limit::Absent;
                return true;
            }
            _ => {}
        }
        if !format && !self.own_temperature && names("temperature") {
            self.own_temperature = true;
            return true;
        }
        // Named or not: it is what servers differ most in.
        self.format = match self.format {
            Format::Schema => Format::Object,
            Format::Object => Format::Prose,
            Format::Prose => return false,
        };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::{super::exchange::Message, *};

    fn body(accepts: Accepts) -> String {
        let messages = vec![Message::new("user", "x".to_owned())];
        let question = Question {
            model: "m".to_owned(),
            temperature: 0.5,
            seed: 0,
            messages,
            schema: json!({ "type": "object" }),
        };
        accepts.body(&question, 9).to_string()
    }

    #[test]
    fn what_the_server_names_is_left_out_first() {
        let mut it = Accepts::default();
        assert!(body(it).contains("json_schema") && body(it).contains("\"max_tokens\":9"));
        assert!(it.less("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."));
        assert!(body(it).contains("\"max_completion_tokens\":9") && body(it).contains("json_schema"));
        assert!(it.less("'temperature' does not support 0.5") && !body(it).contains("temperature"));
        assert!(it.less("max_completion_tokens: extra input") && !body(it).contains("tokens"));
        assert!(it.less("`response_format` must be json_object"));
        assert!(body(it).contains(r#""response_format":{"type":"json_object"}"#), "{}", body(it));
        assert!(it.less("what?") && !body(it).contains("response_format"));
        assert!(!it.less("what?"));
    }
}
