//! The body of a chat completion.

use super::exchange::{Answer, Usage};
use serde_json::Value;

/// What a server returned with status 200.
#[derive(Debug, PartialEq)]
pub struct Completion {
    pub answer: Answer,
    /// None where the server does not say.
    pub usage: Option<Usage>,
}

/// Reads the body.
///
/// # Errors
/// Why it is no chat completion: then something else than a model answered.
pub fn read(body: &[u8]) -> Result<Completion, String> {
    let text = std::str::from_utf8(body).map_err(|it| format!("it is not UTF-8 from byte {}", it.valid_up_to()))?;
    // Nesting is bounded by serde_json: at 128 levels.
    let body: Value = serde_json::from_str(text).map_err(|it| format!("it is not JSON: {it}"))?;
    let message =
        body.pointer("/choices/0/message").and_then(Value::as_object).ok_or("it has no `choices[0].message`")?;
    let cut_off = body.pointer("/choices/0/finish_reason").and_then(Value::as_str) == Some("length");
    let answer = match message.get("content") {
        _ if cut_off => Answer::Nothing("the answer was cut off at its longest length: answer shorter".to_owned()),
        Some(Value::String(text)) if !text.trim().is_empty() => Answer::Text(text.clone()),
        Some(Value::Array(parts)) => {
            Answer::Text(parts.iter().filter_map(|it| it.get("text").and_then(Value::as_str)).collect())
        }
        _ => match message.get("refusal").and_then(Value::as_str) {
            Some(refusal) => Answer::Nothing(format!("you refused: {refusal}")),
            None => Answer::Nothing("the answer was empty".to_owned()),
        },
    };
    Ok(Completion { answer, usage: usage(&body) })
}

fn usage(body: &Value) -> Option<Usage> {
    let tokens = |name: &str| body.get("usage")?.get(name)?.as_u64();
    let (prompt, answer) = (tokens("prompt_tokens"), tokens("completion_tokens"));
    let (prompt_tokens, answer_tokens) = match (prompt, answer, tokens("total_tokens")) {
        (Some(prompt), Some(answer), _) => (prompt, answer),
        (_, _, Some(total)) => (prompt.unwrap_or(0), total.saturating_sub(prompt.unwrap_or(0))),
        _ => return None,
    };
    Some(Usage { prompt_tokens, answer_tokens, estimated: false })
}

/// What a server says is wrong, whatever its way of saying it.
pub fn error(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let body: Value = serde_json::from_str(&text).unwrap_or_default();
    let places = ["/error/message", "/message", "/detail", "/error"];
    let message = places.iter().find_map(|it| body.pointer(it)?.as_str());
    message.unwrap_or(&text).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(body: &str) -> Answer {
        read(body.as_bytes()).unwrap().answer
    }

    #[test]
    fn the_text_is_found() {
        let text = Answer::Text("hi".to_owned());
        assert_eq!(answer(r#"{"choices": [{"message": {"content": "hi"}}]}"#), text);
        let parts = r#"{"choices": [{"message": {"content": [{"type": "text", "text": "h"}, {"text": "i"}, 3]}}]}"#;
        assert_eq!(answer(parts), text);
        let nothing = |it: &str| Answer::Nothing(it.to_owned());
        assert_eq!(
            answer(r#"{"choices": [{"message": {"content": null, "refusal": "no"}}]}"#),
            nothing("you refused: no")
        );
        assert_eq!(answer(r#"{"choices": [{"message": {"content": " "}}]}"#), nothing("the answer was empty"));
        let cut_off = r#"{"choices": [{"message": {"content": "hi"}, "finish_reason": "length"}]}"#;
        assert!(matches!(answer(cut_off), Answer::Nothing(_)));
    }

    #[test]
    fn what_is_no_completion_says_why() {
        let why = |body: &[u8]| read(body).unwrap_err();
        assert_eq!(why(b"\xff"), "it is not UTF-8 from byte 0");
        assert_eq!(why(b"<html>"), "it is not JSON: expected value at line 1 column 1");
        assert_eq!(why(br#"{"choices": []}"#), "it has no `choices[0].message`");
        assert!(why("[".repeat(100_000).as_bytes()).contains("recursion limit"));
    }

    #[test]
    fn tokens_are_read_where_they_are_numbers() {
        let usage = |usage: &str| {
            let body = format!(r#"{{"choices": [{{"message": {{"content": "hi"}}}}], "usage": {usage}}}"#);
            read(body.as_bytes()).unwrap().usage.map(|it| (it.prompt_tokens, it.answer_tokens))
        };
        assert_eq!(usage(r#"{"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}"#), Some((3, 4)));
        assert_eq!(usage(r#"{"total_tokens": 7}"#), Some((0, 7)));
        assert_eq!(usage(r#"{"prompt_tokens": -3, "completion_tokens": 4}"#), None);
        assert_eq!(usage("null"), None);
    }

    #[test]
    fn errors_are_found_where_servers_put_them() {
        assert_eq!(error(br#"{"error": {"message": "a"}}"#), "a");
        assert_eq!(error(br#"{"detail": "b"}"#), "b");
        assert_eq!(error(br#"{"error": "c"}"#), "c");
        assert_eq!(error(b"plain\n"), "plain");
    }
}
