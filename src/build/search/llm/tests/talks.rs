use super::*;

#[test]
fn a_good_answer_becomes_proposals() {
    let server = ChatServer::start(vec![say(&[good(0), good(1)])]);
    let mut llm = llm(&server.url(), settings());
    let proposals = llm.ask(8);
    assert_eq!(schedules(&proposals), [good(0), good(1)]);
    assert_eq!(proposals[0].origin, "llm small: round 1");
    assert_eq!(llm.remarks(), Vec::<String>::new());
    assert_eq!(llm.end(), None);
    let request = &server.received()[0];
    assert_eq!(request.line, "POST /v1/chat/completions");
    assert_eq!(request.header("authorization"), Some(format!("Bearer {KEY}").as_str()));
    assert_eq!(request.body["model"], "small");
    assert_eq!(request.body["response_format"]["type"], "json_schema");
    assert!(request.prompt().contains("Propose 4 schedules"));
}

#[test]
fn what_was_not_handed_out_waits() {
    let server = ChatServer::start(vec![say(&[good(0), good(1), good(2)])]);
    let mut llm = llm(&server.url(), settings());
    assert_eq!(schedules(&llm.ask(2)), [good(0), good(1)]);
    llm.tell(&[measured(good(0), 0.9), measured(good(1), 1.1)]);
    assert_eq!(schedules(&llm.ask(2)), [good(2)]);
    assert_eq!((server.received().len(), llm.ask(0)), (1, vec![]));
}

#[test]
fn schedules_that_did_well_elsewhere_come_first_and_nothing_comes_twice() {
    let server = ChatServer::start(vec![say(&[good(0), good(1), problem().heuristic])]);
    let problem = Problem { seeds: vec![good(0), good(0), problem().heuristic], ..problem() };
    let exchanges = Arc::new(InMemory::default());
    let access = access(&server.url(), settings());
    let mut llm = Llm::new(problem, Value::Null, access, exchanges, never(), Fallback::heuristic());
    let seeds = llm.ask(8);
    assert_eq!((schedules(&seeds), seeds[0].origin.as_str()), (vec![good(0)], "llm: seed"));
    assert_eq!(schedules(&llm.ask(8)), [good(1)]);
    assert!(llm.reasons.iter().all(|it| it.starts_with("was proposed before")) && llm.reasons.len() == 2);
}

#[test]
fn what_did_well_elsewhere_and_may_not_be_chosen_is_no_seed() {
    let problem = Problem { seeds: vec![good(2), good(1)], only: only("kc = 64 65"), ..problem() };
    let (exchanges, access) = (Arc::new(InMemory::default()), access("http://localhost:1", settings()));
    let llm = Llm::new(problem, Value::Null, access, exchanges, never(), Fallback::heuristic());
    assert_eq!(llm.queue.iter().map(|it| &it.schedule).collect::<Vec<_>>(), [&good(1)]);
}

/// What is no answer, and a piece of the reason that the model is told.
#[test]
fn whatever_is_no_answer_is_refused_and_the_model_is_told_why() {
    let illegal = answer(&[good(0)]).replace("\"mr\":8", "\"mr\":31");
    let body = |status, body: Vec<u8>| Behaviour::Respond { status, headers: vec![], body };
    let bad = [
        (Behaviour::Say("Sure! Here is a faster loop order.".to_owned()), "there is no JSON object"),
        (Behaviour::Say("```c\nfor (;;) { a[i] = 0; }\n```".to_owned()), "the JSON in the answer is broken"),
        (Behaviour::Say(r#"{"tile_m": 64}"#.to_owned()), "does not take the field `tile_m`"),
        (Behaviour::Say(answer(&[good(0)]).replace("\"mr\":8", "\"mr\":\"8\"")), "must be a whole number, not a text"),
        (Behaviour::Say(illegal), "`mr` = 31"),
        (Behaviour::Say(format!("{{\"schedules\": {}", "[".repeat(100_000))), "recursion limit"),
        (Behaviour::Say(String::new()), "the answer was empty"),
        (body(200, b"{\"choices\": [{\"message\": {\"content\": \"\xff\"}}]}".to_vec()), "not UTF-8"),
        (body(200, vec![b'['; 200_000]), "recursion limit"),
        (body(200, b"<html>please log in</html>".to_vec()), "no chat completion"),
        (body(200, vec![b' '; 10 << 20]), "more than 1048576 bytes"),
        (Behaviour::Say("x".repeat(10 << 20)), "more than 1048576 bytes"),
        (Behaviour::Endless, "more than 1048576 bytes"),
    ];
    for (behaviour, reason) in bad {
        let server = ChatServer::start(vec![behaviour.clone(), say(&[good(1)])]);
        let mut llm = llm(&server.url(), LlmSettings { max_tokens: 10_000_000, ..settings() });
        assert_eq!(schedules(&llm.ask(8)), [good(1)], "{reason}: {:?}", llm.end());
        let requests = server.received();
        let told = requests[1].prompt();
        assert!(!requests[0].prompt().contains("wrong with your last answer"));
        assert!(told.contains("wrong with your last answer") && told.contains(reason), "{reason}: {told}");
    }
}

#[test]
fn a_bad_schedule_takes_no_good_one_with_it() {
    let text = answer(&[good(0), good(1)]).replacen("\"mr\":8", "\"mr\":0", 1);
    let server =
        ChatServer::start(vec![Behaviour::Say(format!("Here:\n```json\n{text}\n```\nGood luck!")), say(&[good(2)])]);
    let mut llm = llm(&server.url(), settings());
    assert_eq!(schedules(&llm.ask(8)), [good(1)]);
    llm.tell(&[rejected(good(1), "the results differ")]);
    assert_eq!(schedules(&llm.ask(8)), [good(2)]);
    let told = server.received()[1].prompt();
    assert!(told.contains("`mr` = 0") && told.contains("because: the results differ"), "{told}");
}

#[test]
fn a_server_that_is_busy_or_fails_for_a_while_is_asked_again() {
    let busy = Behaviour::Respond { status: 429, headers: vec![("Retry-After", "0".to_owned())], body: vec![] };
    let server = ChatServer::start(vec![busy, Behaviour::status(503, "starting"), say(&[good(0)])]);
    let mut llm = llm(&server.url(), settings());
    assert_eq!(schedules(&llm.ask(8)), [good(0)]);
    assert_eq!((llm.spent().requests, server.received().len()), (3, 3));
}

#[test]
fn a_wait_is_never_longer_than_the_longest() {
    let headers = vec![("Retry-After", "100000".to_owned())];
    let server = ChatServer::start(vec![Behaviour::Respond { status: 429, headers, body: vec![] }, say(&[good(0)])]);
    let mut llm = llm(&server.url(), LlmSettings { longest_wait: Duration::from_millis(1), ..settings() });
    assert_eq!(schedules(&llm.ask(8)), [good(0)]);
}

#[test]
fn json_is_asked_for_in_the_way_that_the_server_understands_and_that_is_remembered() {
    let refuse = |text: &str| Behaviour::status(400, &format!(r#"{{"error": {{"message": "{text}"}}}}"#));
    let server = ChatServer::start(vec![
        refuse("response_format: json_schema is not supported"),
        refuse("response_format is not supported"),
        say(&[good(0)]),
        say(&[good(1)]),
    ]);
    let mut llm = llm(&server.url(), LlmSettings { attempts: 1, ..settings() });
    assert_eq!(schedules(&llm.ask(8)), [good(0)]);
    llm.tell(&[measured(good(0), 1.2)]);
    assert_eq!(schedules(&llm.ask(8)), [good(1)]);
    let formats: Vec<_> =
        server.received().iter().map(|it| it.body["response_format"]["type"].as_str().map(str::to_owned)).collect();
    assert_eq!(formats, [Some("json_schema".to_owned()), Some("json_object".to_owned()), None, None]);
}
